"""Reading and writing reference checkpoints: sizes from the file, tensors mapped, everything wrong said at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from conversion.reference_files import key_list, tiny_tensors, write_tiny
from lerobot_internvla.conversion.reference_layout import read_architecture, read_reference, write_reference
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.model.architecture import VARIANTS, Architecture, build_architecture
from lerobot_internvla.model.internvla_a1 import InternVLAA1

VARIANT_NAMES = ["3b", "2b"]
CONFIG = Path("config.json")


def expected_tiny(variant: str) -> Architecture:
    """The sizes of the tiny reference models, written out by hand."""
    tokenizer = {"channels": 32, "channels_mult": [1, 1, 2], "num_res_blocks": 1}
    shared: dict[str, Any] = {"layers": 3, "query_heads": 4, "key_value_heads": 2, "head_width": 16}
    if variant == "3b":
        return build_architecture(
            "3b",
            {
                **shared,
                "understanding": {"hidden": 64, "mlp": 96},
                "expert": {"hidden": 32, "mlp": 48},
                "vocabulary": 200,
                "vision": {
                    "depth": 4, "hidden": 32, "mlp": 48, "heads": 4, "image_size": [64, 96],
                    "position_embeddings": 36, "deepstack_layers": [0, 2],
                },
                "view_size": [64, 96],
                "rope_sections": [4, 2, 2],
                "image_tokenizer": tokenizer,
                "special_tokens": {"vision_start": 192, "vision_end": 193, "image": 195, "pad": 190},
            },
        )  # fmt: skip
    return build_architecture(
        "2b",
        {
            **shared,
            "understanding": {"hidden": 64, "mlp": 96},
            "expert": {"hidden": 64, "mlp": 80},
            "vocabulary": 160,
            "vision": {"depth": 3, "hidden": 32, "mlp": 48, "heads": 4, "image_size": [56, 56]},
            "view_size": [56, 56],
            "rope_theta": 10_000.0,
            "image_tokenizer": tokenizer,
            "special_tokens": {"pad": 150},
        },
    )


def file_contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118


def assert_same_tensors(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_sizes_come_from_the_file(tmp_path: Path, variant: str):
    assert read_reference(write_tiny(tmp_path, variant)).architecture == expected_tiny(variant)


def _set(config: dict[str, Any], value: Any, *paths: str) -> None:
    for path in paths:
        node: Any = config
        *parents, last = path.split(".")
        for key in parents:
            node = node[key]
        node[last] = value


def test_other_sizes_are_read_too():
    """No number of the tiny example is built in: change each one and see it arrive."""
    text, gen, act = "resolved.und_expert.text_config", "resolved.gen_expert", "resolved.act_expert"
    everywhere = (text, gen, act)
    config = key_list("3b", "tiny")["config"]
    _set(config, 5, *(f"{place}.num_hidden_layers" for place in everywhere))
    _set(config, 6, *(f"{place}.num_attention_heads" for place in everywhere))
    _set(config, 3, *(f"{place}.num_key_value_heads" for place in everywhere))
    _set(config, 32, *(f"{place}.head_dim" for place in everywhere))
    _set(config, [6, 6, 4], *(f"{place}.rope_scaling.mrope_section" for place in everywhere))
    _set(config, 1e6, *(f"{place}.rope_theta" for place in everywhere))
    _set(config, 1e-5, *(f"{place}.rms_norm_eps" for place in everywhere))
    _set(config, 72, f"{text}.hidden_size", "resolved.und_expert.vision_config.out_hidden_size")
    _set(config, 40, f"{gen}.hidden_size", f"{act}.hidden_size")
    _set(config, 96, "spec.data.height")
    _set(config, 160, "spec.data.width")
    _set(config, 21, "spec.data.text_len")
    _set(config, 14, "resolved.policy_config.max_action_dim")
    _set(config, 4, "resolved.policy_config.scale_factor")
    _set(config, [1, 2, 2], "cosmos_kwargs.channels_mult")
    _set(config, 77, "resolved.und_expert.image_token_id")
    architecture, _ = read_architecture(config, CONFIG)
    assert (architecture.layers, architecture.query_heads, architecture.key_value_heads) == (5, 6, 3)
    assert (architecture.head_width, architecture.rope_sections) == (32, (6, 6, 4))
    assert (architecture.rope_theta, architecture.rms_norm_eps) == (1e6, 1e-5)
    assert (architecture.understanding.hidden, architecture.expert.hidden) == (72, 40)
    assert architecture.vision.image_size == architecture.view_size == (96, 160)
    assert (architecture.prompt_tokens, architecture.max_action_dim, architecture.foresight_stride) == (21, 14, 4)
    assert architecture.image_tokenizer.channels_mult == (1, 2, 2)
    assert architecture.special_tokens.image == 77


def test_the_tower_may_see_more_pixels_than_a_view_has():
    """The released image processor enlarges 224 to 256: the number of patches per view tells."""
    config = key_list("3b", "tiny")["config"]
    _set(config, 224, "spec.data.height", "spec.data.width")
    config["tensors"] = {"inputs": {"pixel_values": ["float32", [2, 3 * 256, 1536]]}}
    architecture, _ = read_architecture(config, CONFIG)
    assert architecture.view_size == (224, 224)
    assert architecture.vision.image_size == (256, 256)


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_a_model_of_that_architecture_loads_the_checkpoint(tmp_path: Path, variant: str):
    checkpoint = read_reference(write_tiny(tmp_path, variant))
    InternVLAA1(checkpoint.architecture).load_state_dict(checkpoint.policy_state, strict=True)
    image_tokenizer = CosmosImageTokenizer.from_spec(checkpoint.architecture.image_tokenizer)
    image_tokenizer.load_state_dict(checkpoint.image_tokenizer_state, strict=True)
    assert checkpoint.policy_config["chunk_size"] == 50


def test_tensors_are_views_into_the_file(tmp_path: Path):
    folder = write_tiny(tmp_path, "3b")
    checkpoint = read_reference(folder)
    tensors = [*checkpoint.policy_state.values(), *checkpoint.image_tokenizer_state.values()]
    starts = [tensor.data_ptr() for tensor in tensors]
    ends = [tensor.data_ptr() + tensor.nbytes for tensor in tensors]
    assert max(ends) - min(starts) <= (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_writing_what_was_read_gives_the_same_file(tmp_path: Path, variant: str):
    source = write_tiny(tmp_path / "source", variant)
    first = read_reference(source)
    write_reference(
        tmp_path / "copy", first.architecture, first.policy_state, first.image_tokenizer_state, first.policy_config,
        scripted=True,
    )  # fmt: skip
    tensors, metadata = file_contents(tmp_path / "copy" / "model.safetensors")
    assert_same_tensors(tensors, tiny_tensors(variant))
    assert metadata == key_list(variant, "tiny")["metadata"]
    second = read_reference(tmp_path / "copy")
    assert second.architecture == first.architecture
    assert_same_tensors(second.policy_state, first.policy_state)
    assert_same_tensors(second.image_tokenizer_state, first.image_tokenizer_state)


def test_a_checkpoint_can_be_written_over_itself(tmp_path: Path):
    checkpoint = read_reference(write_tiny(tmp_path, "2b"))
    write_reference(tmp_path, checkpoint.architecture, checkpoint.policy_state, checkpoint.image_tokenizer_state)
    assert_same_tensors(read_reference(tmp_path).policy_state, checkpoint.policy_state)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_single_file_can_be_named(tmp_path: Path):
    folder = write_tiny(tmp_path, "3b")
    (folder / "model.safetensors").rename(folder / "model_released_layout.safetensors")
    assert read_reference(folder / "model_released_layout.safetensors").architecture == expected_tiny("3b")
    with pytest.raises(InternVLAError, match=r"no file .*model\.safetensors"):
        read_reference(folder)


@pytest.mark.parametrize(
    ("variant", "config", "changes"),
    [
        ("3b", {"type": "qwena1", "qwen3_vl_variant": "qwen3_vl_28l", "action_expert_variant": "qwen3_28l"}, {}),
        (
            "3b",
            {"type": "qwena1", "qwen3_vl_variant": "qwen3_vl_6l", "action_expert_variant": "qwen3_6l"},
            {"layers": 6},
        ),
        (
            "2b",
            {"type": "interna1", "internvl_variant": "internvl_24l", "qwen2_variant": "qwen2_24l"},
            {"rope_theta": 1e4},  # what the reference runs its 2B with, unlike our default
        ),
    ],
)
def test_released_configurations(variant: str, config: dict[str, Any], changes: dict[str, Any]):
    config |= {"scale_factor": 8, "max_state_dim": 32, "max_action_dim": 32, "chunk_size": 50}
    architecture, settings = read_architecture(config, CONFIG)
    assert architecture == build_architecture(variant, changes)
    assert settings["chunk_size"] == 50


def test_released_configurations_must_say_how_deep_they_are():
    config = {
        "type": "qwena1",
        "qwen3_vl_variant": "qwen3_vl_2b",
        "action_expert_variant": "qwen3_28l",
        "scale_factor": 8,
    }
    with pytest.raises(InternVLAError) as caught:
        read_architecture(config, CONFIG)
    for part in ("qwen3_vl_variant is 'qwen3_vl_2b'", "max_state_dim is missing", "max_action_dim is missing"):
        assert part in str(caught.value)
    with pytest.raises(InternVLAError, match="differ in depth"):
        read_architecture({**config, "qwen3_vl_variant": "qwen3_vl_24l"}, CONFIG)


def test_released_sizes_are_written_as_a_released_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    architecture = build_architecture("3b", {"layers": 2})
    with torch.device("meta"):
        policy_state = InternVLAA1(architecture).state_dict()
    written: dict[str, Any] = {}

    def save_nothing(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
        written.update(tensors)
        path.touch()

    monkeypatch.setattr("lerobot_internvla.conversion.reference_layout.save_file", save_nothing)
    write_reference(tmp_path, architecture, policy_state, {}, {"chunk_size": 50})
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["type"], config["qwen3_vl_variant"], config["chunk_size"]) == ("qwena1", "qwen3_vl_2l", 50)
    assert read_architecture(config, CONFIG)[0] == architecture
    assert len(written) == len(policy_state)


def test_sizes_that_the_layout_cannot_express_are_refused(tmp_path: Path):
    checkpoint = read_reference(write_tiny(tmp_path / "source", "3b"))
    odd = build_architecture("3b", {"image_tokenizer": {"image_size": [512, 512]}})
    with torch.device("meta"):
        policy_state = InternVLAA1(odd).state_dict()
    with pytest.raises(InternVLAError, match="cannot express"):
        write_reference(tmp_path / "copy", odd, policy_state, {})
    with pytest.raises(InternVLAError, match="wrong shape"):
        write_reference(tmp_path / "copy", VARIANTS["3b"], checkpoint.policy_state, {})
    assert not (tmp_path / "copy").exists()


# --- what is wrong is said, all at once -------------------------------------------------------------------------------


def test_contradictions_in_a_described_configuration_are_all_listed(tmp_path: Path):
    config = key_list("3b", "tiny")["config"]
    _set(config, 4, "resolved.act_expert.num_hidden_layers")
    _set(config, "relu", "resolved.gen_expert.hidden_act")
    _set(config, [16], "cosmos_kwargs.attn_resolutions")
    del config["spec"]["data"]["text_len"]
    with pytest.raises(InternVLAError) as caught:
        read_reference(write_tiny(tmp_path, "3b", config=config))
    for part in (
        "resolved.act_expert.num_hidden_layers is 4, but resolved.und_expert.text_config.num_hidden_layers is 3",
        "resolved.gen_expert.hidden_act is 'relu', but our model only knows 'silu'",
        "cosmos_kwargs.attn_resolutions is [16]",
        "spec.data.text_len is missing",
    ):
        assert part in str(caught.value)


def test_sizes_are_checked_against_the_tensors(tmp_path: Path):
    config = key_list("3b", "tiny")["config"]
    _set(config, 201, "resolved.und_expert.text_config.vocab_size")
    with pytest.raises(InternVLAError, match=r"lm_head\.weight is 200x64, expected 201x64"):
        read_reference(write_tiny(tmp_path, "3b", config=config))


def test_another_normalisation_is_refused(tmp_path: Path):
    tensors = tiny_tensors("2b")
    tensors["model.imagenet_mean"] = torch.full((1, 3, 1, 1), 0.5)
    with pytest.raises(InternVLAError, match="imagenet_mean differs from its known value"):
        read_reference(write_tiny(tmp_path, "2b", tensors))


def test_embeddings_that_are_not_tied_are_refused(tmp_path: Path):
    tensors = tiny_tensors("3b")
    (stored,) = (name for name in tensors if name.endswith("lm_head.weight"))
    alias = stored.replace("lm_head", "model.language_model.embed_tokens")
    tensors[alias] = tensors[stored].clone()
    read_reference(write_tiny(tmp_path, "3b", tensors))
    tensors[alias][0, 0] += 1
    with pytest.raises(InternVLAError, match="should be tied to"):
        read_reference(write_tiny(tmp_path, "3b", tensors))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _foreign_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"type": "act"}')


def _our_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"type": "internvla_a1"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "Cannot read .*Download the file again"),
        (_pointer, "Git LFS pointer"),
        (_no_config, r"no config\.json in"),
        (_broken_config, "not valid JSON"),
        (_foreign_config, "type is 'act', expected one of 'qwena1', 'interna1'"),
        (_our_config, "from_pretrained"),
    ],
)
def test_damaged_or_foreign_folders(tmp_path: Path, damage: Callable[[Path], None], message: str):
    damage(write_tiny(tmp_path, "3b"))
    with pytest.raises(InternVLAError, match=message):
        read_reference(tmp_path)
