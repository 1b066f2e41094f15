"""Image tokenizers by specification (random weights) or from a folder: one function each.

diffusers is imported only when a Cosmos tokenizer is asked for.
"""

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any, cast, get_args

import torch

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.haar import CONFIG_NAME, HaarImageTokenizer
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer
from lerobot_internvla.image_tokenizer.spec import COSMOS_CI8X8, ImageTokenizerSpec

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
NVIDIA_FILES = ("encoder.jit", "decoder.jit", "encoder.safetensors", "decoder.safetensors")
"""A repository or folder with either pair is NVIDIA's released CI8x8."""
_STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CLASS_NAMES = ("CosmosImageTokenizer", "HaarImageTokenizer")
CHECKPOINT_FOLDER = "image_tokenizer"
"""Where a policy's checkpoint keeps its own."""


def find_image_tokenizer(
    spec: ImageTokenizerSpec,
    *,
    named: str | None,
    checkpoint: str | os.PathLike[str] | None,
    dtype: torch.dtype,
) -> ImageTokenizer:
    """The image tokenizer of a policy: the one that is named, else its checkpoint's own, else the built-in one.

    Args:
        spec: of the policy's architecture.
        named: folder or Hub id, ``policy.image_tokenizer``.
        checkpoint: folder or Hub id of the policy, where there is one.
        dtype: of the weights.

    Raises:
        InternVLAError: there is none, or it does not fit ``spec``.
    """
    if named is not None:
        return load_image_tokenizer(named, dtype=dtype, spec=spec)
    if checkpoint is not None and (not Path(checkpoint).is_dir() or Path(checkpoint, CHECKPOINT_FOLDER).is_dir()):
        return load_image_tokenizer(checkpoint, subfolder=CHECKPOINT_FOLDER, dtype=dtype, spec=spec)
    if spec.kind == "haar":
        return build_image_tokenizer(spec)
    raise InternVLAError(
        "Foresight needs the weights of the Cosmos CI8x8 image tokenizer, which this package does not ship (NVIDIA "
        "Open Model License). Pass --policy.image_tokenizer=<folder or Hub id>: a folder with encoder.jit and "
        "decoder.jit, a safetensors pair, or a converted folder. Without foresight: --policy.use_foresight=false."
    )


def build_image_tokenizer(spec: ImageTokenizerSpec, *, dtype: torch.dtype | None = None) -> ImageTokenizer:
    """The image tokenizer of ``spec``; Cosmos with random weights, in float32 unless ``dtype`` is given.

    Raises:
        InternVLAError: numbers in ``spec`` that contradict each other, or diffusers is missing.
    """
    match spec.kind:
        case "cosmos_ci8x8":
            _require_diffusers()
            from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer

            tokenizer = CosmosImageTokenizer.from_spec(spec)
            return tokenizer if dtype is None else tokenizer.to(dtype)
        case "haar":
            tokenizer = HaarImageTokenizer(levels=max(1, spec.compression.bit_length() - 1))
            if (tokenizer.latent_channels, tokenizer.compression) != (spec.latent_channels, spec.compression):
                raise InternVLAError(
                    f"A Haar image tokenizer with L levels has latent_channels 3 * 4**L and compression 2**L, but the "
                    f"specification says {spec.latent_channels} and {spec.compression}. The nearest that exists: "
                    f"{tokenizer.latent_channels} and {tokenizer.compression}."
                )
            return tokenizer
        case _:
            kinds = ", ".join(get_args(ImageTokenizerSpec.__annotations__["kind"]))
            raise InternVLAError(f"Unknown image tokenizer kind {spec.kind!r}. Known: {kinds}.")


def load_image_tokenizer(
    source: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    spec: ImageTokenizerSpec | None = None,
) -> ImageTokenizer:
    """Load a folder written by ``save_pretrained``, or one with NVIDIA's CI8x8 files, from disk or from the Hub.

    Args:
        source: a local folder or a Hub id. A local folder is never looked up on the Hub.
        subfolder: inside of ``source``, for example "image_tokenizer" in a checkpoint.
        revision: branch, tag or commit on the Hub.
        dtype: of the parameters; None keeps the stored one.
        spec: what a model expects; a tokenizer with other latents is refused.

    Raises:
        InternVLAError: not found, not an image tokenizer, incomplete, not what ``spec`` says, or diffusers is missing.
    """
    folder = _local_folder(source, subfolder, revision)
    tokenizer = _load_folder(folder, dtype, spec)
    if spec is not None:
        expected = (spec.latent_channels, spec.compression)
        if (tokenizer.latent_channels, tokenizer.compression) != expected:
            raise InternVLAError(
                f"The image tokenizer in {folder} has {tokenizer.latent_channels} latent channels, one cell per "
                f"{tokenizer.compression} pixels; the model expects {expected[0]} and {expected[1]} ({spec.kind})."
            )
    return tokenizer


def _load_folder(folder: Path, dtype: torch.dtype | None, spec: ImageTokenizerSpec | None) -> ImageTokenizer:
    name = _class_name(folder)
    if name == "HaarImageTokenizer":
        return HaarImageTokenizer.from_pretrained(folder)
    if name == "CosmosImageTokenizer":
        _require_diffusers()
        from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer

        return CosmosImageTokenizer.from_pretrained(folder, torch_dtype=dtype or _stored_dtype(folder / WEIGHTS_NAME))
    present = {file for file in NVIDIA_FILES if (folder / file).is_file()}
    if present >= set(NVIDIA_FILES[:2]) or present >= set(NVIDIA_FILES[2:]):
        _require_diffusers()
        from lerobot_internvla.image_tokenizer.cosmos_weights import load_cosmos_weights

        return load_cosmos_weights(folder, spec=spec or COSMOS_CI8X8, dtype=dtype)
    raise InternVLAError(
        f"{folder} is not an image tokenizer: expected a {CONFIG_NAME} whose _class_name is one of "
        f"{', '.join(CLASS_NAMES)} (it is {name!r}), or NVIDIA's {' and '.join(NVIDIA_FILES[:2])}. Found: "
        f"{', '.join(sorted(entry.name for entry in folder.iterdir())) or 'nothing'}."
    )


def _require_diffusers() -> None:
    if importlib.util.find_spec("diffusers") is None:
        raise InternVLAError(
            "The Cosmos image tokenizer needs the package diffusers, which is not installed. Run: pip install diffusers"
        )


def _local_folder(source: str | os.PathLike[str], subfolder: str | None, revision: str | None) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(os.fspath(source), subfolder, revision)
    if subfolder is not None:
        folder = folder / subfolder
    if not folder.is_dir():
        raise InternVLAError(f"No image tokenizer: there is no folder {folder}.")
    return folder


def _download(repository: str, subfolder: str | None, revision: str | None) -> Path:
    """Fetch the few files that an image tokenizer consists of."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InternVLAError(f"No image tokenizer: {repository!r} is neither a folder nor a Hub id (owner/name).")
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]  # partly typed

    prefix = "" if subfolder is None else f"{subfolder}/"
    wanted = [prefix + name for name in (CONFIG_NAME, WEIGHTS_NAME, *NVIDIA_FILES)]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # no such repository or revision, no access, no network, hub switched off
        raise InternVLAError(
            f"No image tokenizer: {repository!r} is not a local folder, and the Hub says: {error}"
        ) from error


def _class_name(folder: Path) -> str | None:
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InternVLAError(f"Cannot read the image tokenizer's {path}: {error}") from error
    return cast(dict[str, Any], config).get("_class_name") if isinstance(config, dict) else None


def _stored_dtype(weights: Path) -> torch.dtype:
    """The dtype of the stored tensors, from the file's header. (diffusers would convert to float32.)"""
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(weights, framework="pt")  # untyped
        with opened as archive:
            dtypes = {str(archive.get_slice(name).get_dtype()) for name in archive.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise InternVLAError(f"Cannot read the image tokenizer's weights in {weights}: {error}") from error
    if len(dtypes) != 1 or not dtypes <= _STORED_DTYPES.keys():
        raise InternVLAError(
            f"{weights} stores the dtypes {', '.join(sorted(dtypes)) or '(no tensors)'}, but one of "
            f"{', '.join(_STORED_DTYPES)} is expected for all. Pass dtype=torch.float32 to convert."
        )
    return _STORED_DTYPES[dtypes.pop()]
