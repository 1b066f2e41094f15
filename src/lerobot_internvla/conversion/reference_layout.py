"""Read and write checkpoints in the reference implementation's layout.

    read_reference(folder) -> ReferenceCheckpoint(architecture, policy_state, image_tokenizer_state, policy_config)
    write_reference(folder, ...)                     the inverse

A folder holds ``model.safetensors`` and ``config.json``. Two kinds of config.json exist:

    released    the reference's own (``"type": "qwena1"`` or ``"interna1"``). It names a variant and a layer count; all
                other sizes are fixed per family by the reference's code.
    described   every size spelled out under ``resolved``, ``spec`` and ``cosmos_kwargs``, as in the golden tensors of
                this project. Needed for any size that the reference does not hard-code.

Sizes travel through one table per family (``_SIZES``), used in both directions. Whatever the table says is then checked
against the tensors' shapes: a model is built on the meta device and must match the file name by name.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lerobot_internvla.conversion.key_table import Constant, Shape, Translation, key_table
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.model.action_head import MAX_PERIOD, MIN_PERIOD
from lerobot_internvla.model.architecture import CAMERA_SLOTS, Architecture, build_architecture
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.model.vision_language import IMAGENET_MEAN, IMAGENET_STD

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_VARIANTS = {"qwen3_vl": "3b", "internvl3": "2b"}


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """A reference checkpoint in our names. Tensors are views into the memory-mapped file, in the file's dtypes."""

    architecture: Architecture
    policy_state: dict[str, Tensor]
    """Complete state dict of ``InternVLAA1(architecture)``."""
    image_tokenizer_state: dict[str, Tensor]
    """Complete state dict of the Cosmos image tokenizer, or empty if the file holds none."""
    policy_config: dict[str, Any] = field(default_factory=dict[str, Any])
    """The reference's policy settings that are not sizes: chunk_size, num_inference_steps, lambda_gen, dtype, ..."""
    names: Translation = field(default_factory=lambda: Translation({}, {}))
    """What became of every name in the file."""


# --- sizes: our Architecture field <- places in a described config.json -----------------------------------------------
# Paths are dotted, numbers index lists. The first place is read, the others must agree if they are there; all of them
# are written.

_TEXT = "resolved.und_expert.text_config"
_VISION = "resolved.und_expert.vision_config"
_EXPERTS = ("resolved.gen_expert", "resolved.act_expert")


def _everywhere(key: str) -> tuple[str, ...]:
    """A number that all three language models share."""
    return tuple(f"{place}.{key}" for place in (_TEXT, *_EXPERTS))


_SHARED_SIZES: dict[str, tuple[str, ...]] = {
    "understanding.mlp": (f"{_TEXT}.intermediate_size",),
    "expert.hidden": tuple(f"{place}.hidden_size" for place in _EXPERTS),
    "expert.mlp": tuple(f"{place}.intermediate_size" for place in _EXPERTS),
    "layers": _everywhere("num_hidden_layers"),
    "query_heads": _everywhere("num_attention_heads"),
    "key_value_heads": _everywhere("num_key_value_heads"),
    "vocabulary": (f"{_TEXT}.vocab_size",),
    "rope_theta": _everywhere("rope_theta"),
    "rms_norm_eps": _everywhere("rms_norm_eps"),
    "view_size.0": ("spec.data.height",),
    "view_size.1": ("spec.data.width",),
    "prompt_tokens": ("spec.data.text_len",),
    "foresight_stride": ("resolved.policy_config.scale_factor",),
    "max_state_dim": ("resolved.policy_config.max_state_dim",),
    "max_action_dim": ("resolved.policy_config.max_action_dim",),
    "image_tokenizer.channels": ("cosmos_kwargs.channels",),
    "image_tokenizer.channels_mult": ("cosmos_kwargs.channels_mult",),
    "image_tokenizer.num_res_blocks": ("cosmos_kwargs.num_res_blocks",),
    "image_tokenizer.latent_channels": ("cosmos_kwargs.latent_channels", "cosmos_kwargs.z_channels"),
    "image_tokenizer.compression": ("cosmos_kwargs.spatial_compression",),
}
_SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "3b": {
        **_SHARED_SIZES,
        "understanding.hidden": (f"{_TEXT}.hidden_size", f"{_VISION}.out_hidden_size"),
        "head_width": _everywhere("head_dim"),
        "rope_sections": _everywhere("rope_scaling.mrope_section"),
        "qkv_bias": _everywhere("attention_bias"),
        "vision.depth": (f"{_VISION}.depth",),
        "vision.hidden": (f"{_VISION}.hidden_size",),
        "vision.mlp": (f"{_VISION}.intermediate_size",),
        "vision.heads": (f"{_VISION}.num_heads",),
        "vision.patch_size": (f"{_VISION}.patch_size",),
        "vision.position_embeddings": (f"{_VISION}.num_position_embeddings",),
        "vision.deepstack_layers": (f"{_VISION}.deepstack_visual_indexes",),
        "special_tokens.vision_start": ("resolved.und_expert.vision_start_token_id",),
        "special_tokens.vision_end": ("resolved.und_expert.vision_end_token_id",),
        "special_tokens.image": ("resolved.und_expert.image_token_id",),
        "special_tokens.pad": ("spec.tokens.pad_token_id",),
    },
    "2b": {
        **_SHARED_SIZES,
        "understanding.hidden": (f"{_TEXT}.hidden_size",),
        "vision.depth": (f"{_VISION}.num_hidden_layers",),
        "vision.hidden": (f"{_VISION}.hidden_size",),
        "vision.mlp": (f"{_VISION}.intermediate_size",),
        "vision.heads": (f"{_VISION}.num_attention_heads",),
        "vision.attention_bias": (f"{_VISION}.attention_bias",),
        "vision.patch_size": (f"{_VISION}.patch_size.0", f"{_VISION}.patch_size.1"),
        "vision.image_size.0": (f"{_VISION}.image_size.0", "spec.data.height"),
        "vision.image_size.1": (f"{_VISION}.image_size.1", "spec.data.width"),
        "special_tokens.pad": ("spec.data.pad_token_id",),
    },
}

# What our model takes for granted. A described config that says otherwise is refused; one that is silent is fine.
_SHARED_FACTS: dict[str, Any] = {
    **dict.fromkeys(_everywhere("hidden_act"), "silu"),
    "resolved.policy_config.min_period": MIN_PERIOD,
    "resolved.policy_config.max_period": MAX_PERIOD,
    "cosmos_kwargs.in_channels": 3,
    "cosmos_kwargs.out_channels": 3,
    "cosmos_kwargs.patch_size": 4,
    "cosmos_kwargs.patch_method": "haar",
    "cosmos_kwargs.z_factor": 1,
    "cosmos_kwargs.formulation": "AE",
    # Together: no attention outside the middle blocks.
    "cosmos_kwargs.resolution": 1024,
    "cosmos_kwargs.attn_resolutions": [32],
}
_FACTS: dict[str, dict[str, Any]] = {
    "3b": {
        **_SHARED_FACTS,
        **dict.fromkeys(_everywhere("rope_scaling.rope_type"), "default"),
        **dict.fromkeys(_everywhere("rope_scaling.mrope_interleaved"), True),
        f"{_TEXT}.tie_word_embeddings": True,
        f"{_VISION}.in_channels": 3,
        f"{_VISION}.hidden_act": "gelu_pytorch_tanh",
        f"{_VISION}.spatial_merge_size": 2,
        f"{_VISION}.temporal_patch_size": 2,
    },
    "2b": {
        **_SHARED_FACTS,
        **dict.fromkeys(_everywhere("rope_scaling"), None),
        **dict.fromkeys(_everywhere("use_sliding_window"), False),
        f"{_TEXT}.tie_word_embeddings": False,
        f"{_VISION}.num_channels": 3,
        f"{_VISION}.hidden_act": "gelu",
        f"{_VISION}.norm_type": "layer_norm",
        f"{_VISION}.layer_norm_eps": 1e-6,
        f"{_VISION}.use_qk_norm": False,
        f"{_VISION}.use_mask_token": False,
        f"{_VISION}.use_absolute_position_embeddings": True,
        # Mean pooling makes the tower's last LayerNorm an identity.
        f"{_VISION}.use_mean_pooling": True,
        "resolved.und_expert.downsample_ratio": 0.5,
        "resolved.und_expert.projector_hidden_act": "gelu",
        "resolved.und_expert.vision_feature_layer": -1,
        "resolved.und_expert.vision_feature_select_strategy": "default",
        "resolved.policy_config.imagenet_mean": list(IMAGENET_MEAN),
        "resolved.policy_config.imagenet_std": list(IMAGENET_STD),
    },
}

# --- the released config.json -----------------------------------------------------------------------------------------

_RELEASED_TYPES = {"qwena1": "3b", "interna1": "2b"}
_LAYER_COUNTS = {"3b": ("qwen3_vl_variant", "action_expert_variant"), "2b": ("internvl_variant", "qwen2_variant")}
"""The two fields whose value ends in ``_<layers>l``."""
_LAYER_COUNT_STEMS = {"3b": ("qwen3_vl", "qwen3"), "2b": ("internvl", "qwen2")}
_RELEASED_SIZES = {
    "foresight_stride": "scale_factor",
    "max_state_dim": "max_state_dim",
    "max_action_dim": "max_action_dim",
}
# The reference builds the 2B with transformers' default although the backbone was pre-trained with 1e6; a checkpoint
# that it trained must be run with what it was trained with.
_RELEASED_OVERRIDES: dict[str, dict[str, Any]] = {"3b": {}, "2b": {"rope_theta": 10_000.0}}

_ABSENT = object()


def _get(tree: Any, path: str) -> Any:
    """The value at a dotted path, or ``_ABSENT``."""
    for key in path.split("."):
        if isinstance(tree, list | tuple) and key.isdecimal() and int(key) < len(tree):
            tree = tree[int(key)]
        elif isinstance(tree, Mapping) and key in tree:
            tree = tree[key]
        else:
            return _ABSENT
    return tree


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    """Store ``value`` at a dotted path; lists are filled in order."""
    keys = path.split(".")
    node: Any = tree
    for key, child in pairwise(keys):
        node = node.setdefault(key, [] if child.isdecimal() else {})
    last = keys[-1]
    if isinstance(node, list):
        assert int(last) <= len(node), path
        node[int(last) :] = [value]
    else:
        node[last] = value


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    return list(value) if isinstance(value, tuple) else value


def _described_architecture(config: Mapping[str, Any], source: Path) -> Architecture:
    variant = "2b" if _get(config, "resolved.policy_config.internvl_variant") is not _ABSENT else "3b"
    problems: list[str] = []
    overrides: dict[str, Any] = {}
    for size, places in _SIZES[variant].items():
        value = _get(config, places[0])
        if value is _ABSENT:
            problems.append(f"{places[0]} is missing")
            continue
        for place in places[1:]:
            other = _get(config, place)
            if other is not _ABSENT and other != value:
                problems.append(f"{place} is {other!r}, but {places[0]} is {value!r}: our model needs them equal")
        _set(overrides, size, value)
    for place, fact in _FACTS[variant].items():
        value = _get(config, place)
        if value is not _ABSENT and value != fact:
            problems.append(f"{place} is {value!r}, but our model only knows {fact!r}")
    if problems:
        raise InternVLAError(
            f"{source} does not describe a {variant} model that we can build:\n  " + "\n  ".join(problems)
        )
    if variant == "2b":
        # Qwen2 has no head_dim of its own.
        overrides["head_width"] = overrides["understanding"]["hidden"] // overrides["query_heads"]
    else:
        overrides["vision"]["image_size"] = _tower_pixels(config, overrides)
    return build_architecture(variant, overrides)


def _tower_pixels(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[int]:
    """(height, width) that the Qwen3-VL tower sees: its image processor may have enlarged the views.

    The recorded number of patches tells, as the processor keeps the proportions. Without a record: not enlarged.
    """
    height, width = overrides["view_size"]
    patch = overrides["vision"]["patch_size"]
    recorded = _get(config, "tensors.inputs.pixel_values.1.1")
    if recorded is _ABSENT:
        return [height, width]
    scale = math.sqrt(recorded / len(CAMERA_SLOTS) * patch**2 / (height * width))
    return [round(pixels * scale / (2 * patch)) * 2 * patch for pixels in (height, width)]


def _describe(architecture: Architecture, policy_config: Mapping[str, Any]) -> dict[str, Any]:
    """The described config.json; inverse of ``_described_architecture``."""
    variant = _VARIANTS[architecture.family]
    config: dict[str, Any] = {"resolved": {"policy_config": dict(policy_config)}}
    for field_name, stem in zip(_LAYER_COUNTS[variant], _LAYER_COUNT_STEMS[variant], strict=True):
        config["resolved"]["policy_config"][field_name] = f"{stem}_{architecture.layers}l"
    for place, fact in _FACTS[variant].items():
        _set(config, place, fact)
    for size, places in _SIZES[variant].items():
        for place in places:
            value: Any = architecture
            for key in size.split("."):
                value = value[int(key)] if key.isdecimal() else getattr(value, key)
            _set(config, place, _plain(value))
    return config


def _released_architecture(config: Mapping[str, Any], source: Path) -> Architecture:
    variant = _RELEASED_TYPES[config["type"]]
    problems: list[str] = []
    layers: dict[str, int] = {}
    for name in _LAYER_COUNTS[variant]:
        match = re.search(r"_(\d+)l$", str(config.get(name)))
        if match is None:
            problems.append(f"{name} is {config.get(name)!r}, expected a name that ends in _<number of layers>l")
        else:
            layers[name] = int(match[1])
    if len(set(layers.values())) > 1:
        problems.append(f"the experts differ in depth, {layers}: our model needs one number of layers")
    for name in _RELEASED_SIZES.values():
        if name not in config:
            problems.append(f"{name} is missing")
    if problems:
        raise InternVLAError(
            f"{source} does not describe a {variant} model that we can build:\n  " + "\n  ".join(problems)
        )
    sizes = {size: config[name] for size, name in _RELEASED_SIZES.items()}
    return build_architecture(variant, {"layers": next(iter(layers.values())), **sizes, **_RELEASED_OVERRIDES[variant]})


def _released_config(architecture: Architecture, policy_config: Mapping[str, Any]) -> dict[str, Any]:
    variant = _VARIANTS[architecture.family]
    stems = zip(_LAYER_COUNTS[variant], _LAYER_COUNT_STEMS[variant], strict=True)
    return {
        **policy_config,
        "type": next(kind for kind, name in _RELEASED_TYPES.items() if name == variant),
        **{field_name: f"{stem}_{architecture.layers}l" for field_name, stem in stems},
        **{name: getattr(architecture, size) for size, name in _RELEASED_SIZES.items()},
    }


def _load_config(source: Path) -> dict[str, Any]:
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InternVLAError(
            f"There is no {CONFIG} in {source.parent}. A reference checkpoint is a folder with {WEIGHTS} and {CONFIG}; "
            "download both."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InternVLAError(f"{source} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(config, dict):
        raise InternVLAError(f"{source} holds a {type(config).__name__}, expected a JSON object. Download it again.")
    return cast(dict[str, Any], config)  # JSON has no other keys than strings


def read_architecture(config: Mapping[str, Any], source: Path) -> tuple[Architecture, dict[str, Any]]:
    """Sizes and policy settings from the parsed config.json of a reference checkpoint.

    Args:
        config: the parsed file.
        source: where it came from, for messages.

    Raises:
        InternVLAError: neither a released nor a described config, or one that our model cannot represent.
    """
    if config.get("type") in _RELEASED_TYPES:
        return _released_architecture(config, source), {k: v for k, v in config.items() if k != "type"}
    if "resolved" in config:
        return _described_architecture(config, source), dict(_get(config, "resolved.policy_config"))
    if config.get("type") == "internvla_a1":
        raise InternVLAError(
            f"{source} belongs to a checkpoint of this library, not of the reference. Load it with "
            "InternVLAA1Policy.from_pretrained (--policy.path=<folder>)."
        )
    raise InternVLAError(
        f"{source} is not the configuration of an InternVLA-A1 reference checkpoint: type is {config.get('type')!r}, "
        f"expected one of {', '.join(map(repr, _RELEASED_TYPES))}, or a 'resolved' section with every size."
    )


@cache
def expected_shapes(architecture: Architecture) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Name -> shape of every tensor of the model and of its Cosmos image tokenizer; takes no memory for weights."""
    with torch.device("meta"):
        model = InternVLAA1(architecture)
        image_tokenizer = CosmosImageTokenizer.from_spec(architecture.image_tokenizer)
    policy, cosmos = (
        {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        for module in (model, image_tokenizer)
    )
    return policy, cosmos


def read_reference(path: str | Path) -> ReferenceCheckpoint:
    """Read a checkpoint of the reference implementation, 3B or 2B, of any size.

    Args:
        path: a folder with ``model.safetensors`` and ``config.json``, or a ``.safetensors`` file next to a config.json.

    Returns:
        Complete state dicts in our names. The weights file is memory-mapped: nothing is copied until used.

    Raises:
        InternVLAError: no such file, a corrupt file, a config that our model cannot represent, or tensors that do not
            fit the model (every unknown, missing and misshaped one is listed).
    """
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    architecture, policy_config = read_architecture(_load_config(weights.parent / CONFIG), weights.parent / CONFIG)
    tensors = _map_file(weights)
    table = key_table(architecture.family)
    translation = table.match({name: tuple(t.shape) for name, t in tensors.items()}, *expected_shapes(architecture))

    changed = [c.reference for c in translation.constants if not _is_constant(tensors[c.reference], c)]
    untied = [alias for alias, stored in translation.duplicates.items() if not tensors[alias].equal(tensors[stored])]
    if changed or untied:
        raise InternVLAError(
            f"{weights} holds values that our model cannot represent:"
            + "".join(f"\n  {name} differs from its known value" for name in changed)
            + "".join(f"\n  {name} should be tied to {translation.duplicates[name]} but differs" for name in untied)
            + "\nThe model that wrote it computes something else; it cannot be converted."
        )
    return ReferenceCheckpoint(
        architecture=architecture,
        policy_state={ours: tensors[theirs] for ours, theirs in translation.policy.items()},
        image_tokenizer_state={ours: tensors[theirs] for ours, theirs in translation.image_tokenizer.items()},
        policy_config=policy_config,
        names=translation,
    )


def _map_file(weights: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file as a view into the memory-mapped file."""
    if not weights.is_file():
        raise InternVLAError(
            f"There is no file {weights}. Pass a folder with {WEIGHTS} and {CONFIG}, or a .safetensors file next to a "
            f"{CONFIG}. Pickled weights (.bin, .pt) are not read."
        )
    try:
        with safe_open(weights, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        with weights.open("rb") as file:
            is_pointer = file.read(40).startswith(b"version https://git-lfs")
        reason = "it is a Git LFS pointer, not the weights; run `git lfs pull`" if is_pointer else f"{error}"
        raise InternVLAError(f"Cannot read {weights}: {reason}. Download the file again.") from error


def constant_tensor(constant: Constant, image_tokenizer_dtype: torch.dtype) -> Tensor:
    """The tensor that a reference file holds for a constant."""
    dtype = image_tokenizer_dtype if constant.dtype is None else getattr(torch, constant.dtype)
    return torch.tensor(constant.values, dtype=dtype).reshape(constant.shape)


def _is_constant(tensor: Tensor, constant: Constant) -> bool:
    # The dtype may be any; a filter that was rounded to bf16 once stays rounded, hence its half-ulp of tolerance.
    known = torch.tensor(constant.values, dtype=torch.float64).reshape(constant.shape)
    return bool(torch.allclose(tensor.double(), known, rtol=2**-8, atol=0.0))


def reference_config(architecture: Architecture, policy_config: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's config.json for an architecture: the released kind where that can express it, else described.

    Raises:
        InternVLAError: neither can.
    """
    source = Path(CONFIG)
    config = _released_config(architecture, policy_config)
    if _released_architecture(config, source) != architecture:
        config = _describe(architecture, policy_config)
        if _described_architecture(config, source) != architecture:
            raise InternVLAError(
                "This architecture has sizes that the reference layout cannot express. Only the fields listed in "
                f"conversion/reference_layout.py may differ from the defaults of a {architecture.family} model."
            )
    return config


def write_reference(
    folder: str | Path,
    architecture: Architecture,
    policy_state: Mapping[str, Tensor],
    image_tokenizer_state: Mapping[str, Tensor],
    policy_config: Mapping[str, Any] | None = None,
    *,
    scripted: bool = False,
) -> None:
    """Write ``model.safetensors`` and ``config.json`` as the reference implementation would; inverse of reading.

    The config.json is the released kind where that can express ``architecture``, else the described kind.

    Args:
        folder: created if needed; existing files are replaced, each in one step.
        architecture: a 3b or 2b architecture.
        policy_state: complete state dict of ``InternVLAA1(architecture)``; dtypes are kept.
        image_tokenizer_state: complete state dict of the Cosmos image tokenizer, or empty to leave it out.
        policy_config: settings of the reference that are not sizes (chunk_size, ...), written as they are.
        scripted: also write the buffers that a TorchScript image tokenizer adds, as in released files.

    Raises:
        InternVLAError: tensors that do not fit the architecture, all of them; a family without a reference.
    """
    table = key_table(architecture.family)
    names = table.to_reference(policy_state, image_tokenizer_state, scripted=scripted and bool(image_tokenizer_state))
    tokenizer_dtype = next((t.dtype for t in image_tokenizer_state.values()), torch.float32)
    tensors = {theirs: policy_state[ours] for theirs, ours in names.policy.items()}
    tensors |= {theirs: image_tokenizer_state[ours] for theirs, ours in names.image_tokenizer.items()}
    tensors |= {constant.reference: constant_tensor(constant, tokenizer_dtype) for constant in names.constants}
    table.match({name: tuple(t.shape) for name, t in tensors.items()}, *expected_shapes(architecture))

    folder = Path(folder)
    config = reference_config(architecture, policy_config or {})
    folder.mkdir(parents=True, exist_ok=True)
    # Replacing at the end keeps an interrupted write from destroying the checkpoint that these very tensors may map.
    unfinished = folder / f".{WEIGHTS}.unfinished"
    save_file({name: t.contiguous() for name, t in tensors.items()}, unfinished, metadata=dict(names.aliases) or None)
    os.replace(unfinished, folder / WEIGHTS)
    unfinished = folder / f".{CONFIG}.unfinished"
    unfinished.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / CONFIG)
