"""Cosmos CI8x8 weights, from wherever they are, under the names of ``CosmosImageTokenizer``.

    encoder.jit + decoder.jit                  NVIDIA's release (nvidia-open-model-license), read without running it
    encoder.safetensors + decoder.safetensors  the same names in a safe form
    one .safetensors                           those names together, or a whole InternVLA-A1 checkpoint, which has them
                                               as model.cosmos._enc_model.* and model.cosmos._dec_model.*
    a folder                                   with the files above, or written by save_pretrained

The table of names is closed: every tensor has a rule, and the result is complete or an error lists all that is wrong.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.image_tokenizer.spec import COSMOS_CI8X8, ImageTokenizerSpec
from lerobot_internvla.image_tokenizer.torchscript_archive import read_torchscript_tensors

CHECKPOINT_PREFIXES = ("model.cosmos.", "model.cosmos_tokenizer.")
"""Where InternVLA-A1 3B and 2B checkpoints keep the image tokenizer."""
HALF_PREFIXES = ("_enc_model.", "_dec_model.")
"""The extra level of those checkpoints, one for each of the two scripted modules."""
DROPPED_NAMES = (
    "encoder.patcher.wavelets",
    "encoder.patcher._arange",
    "decoder.unpatcher.wavelets",
    "decoder.unpatcher._arange",
)
"""Constants, not weights: the Haar filter and its index. TorchScript stores every buffer; ``haar.py`` has them in code,
where bfloat16 does not round 1/sqrt(2)."""

PAIRS = (("encoder.safetensors", "decoder.safetensors"), ("encoder.jit", "decoder.jit"))
SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")

Source = str | Path
"""A file or a folder."""


def load_cosmos_weights(
    source: Source | tuple[Source, Source],
    *,
    spec: ImageTokenizerSpec = COSMOS_CI8X8,
    dtype: torch.dtype | None = None,
) -> CosmosImageTokenizer:
    """Build the image tokenizer of ``spec`` with the weights in ``source``, on the CPU.

    Args:
        source: a folder, a file, or the pair (encoder file, decoder file); the module's docstring lists the layouts.
        spec: the sizes that are expected; by default the released CI8x8.
        dtype: of the parameters; None keeps the stored one (bfloat16 in the released files).

    Raises:
        InternVLAError: files that cannot be read, or names and shapes that do not fit; all problems at once.
    """
    weights: dict[str, Tensor] = {}
    files = _files(source)
    for file in files:
        for name, tensor in _read(file).items():
            if name in weights:
                raise InternVLAError(
                    f"{name} is in more than one of {', '.join(map(str, files))}: pass the encoder and the decoder."
                )
            weights[name] = tensor
    try:
        state = cosmos_state_dict_from(weights, spec=spec)
    except InternVLAError as error:
        raise InternVLAError(f"In {', '.join(map(str, files))}: {error}") from error
    dtypes = {tensor.dtype for tensor in state.values()}
    if dtype is None and len(dtypes) > 1:
        raise InternVLAError(
            f"{', '.join(map(str, files))} mix the dtypes {', '.join(sorted(map(str, dtypes)))}: "
            "pass dtype=torch.bfloat16 or dtype=torch.float32."
        )
    with torch.device("meta"):
        tokenizer = CosmosImageTokenizer.from_spec(spec)
    tokenizer.load_state_dict(
        {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in state.items()}, assign=True
    )
    return tokenizer


def cosmos_state_dict_from(
    weights: Mapping[str, Tensor], *, spec: ImageTokenizerSpec = COSMOS_CI8X8
) -> dict[str, Tensor]:
    """Pick and rename the image tokenizer's tensors: complete, in the order of ``CosmosImageTokenizer``.

    ``weights`` may be a whole InternVLA-A1 checkpoint: if any name starts with one of ``CHECKPOINT_PREFIXES``, only
    those are looked at. Tensors are passed on as they are, without a cast or a copy, and may be on the meta device.

    Raises:
        InternVLAError: names that are unknown, missing or found twice, shapes or dtypes that do not fit; all at once.
    """
    with torch.device("meta"):
        expected = CosmosImageTokenizer.from_spec(spec).state_dict()
    problems: list[str] = []
    found: dict[str, str] = {}
    for name in tokenizer_names(weights):
        plain = plain_name(name)
        if plain in found:
            problems.append(f"{found[plain]} and {name} are both {plain}")
        elif plain not in DROPPED_NAMES:
            found[plain] = name
    if not found.keys() & expected.keys():
        examples = ", ".join(sorted(weights)[:3]) or "nothing"
        raise InternVLAError(
            f"No weights of the Cosmos image tokenizer among {len(weights)} tensors ({examples}, ...). Expected names "
            "like encoder.conv_in.weight, or model.cosmos._enc_model.encoder.conv_in.weight."
        )
    problems += [f"unknown: {found[plain]}" for plain in found if plain not in expected]
    problems += _missing(expected.keys(), found.keys())
    for plain in found.keys() & expected.keys():
        tensor, wanted = weights[found[plain]], expected[plain]
        if tensor.shape != wanted.shape:
            problems.append(f"shape of {found[plain]}: {tuple(tensor.shape)} instead of {tuple(wanted.shape)}")
        if not tensor.is_floating_point():
            problems.append(f"dtype of {found[plain]}: {tensor.dtype} is not floating point")
    if problems:
        raise InternVLAError(
            f"These are not the weights of the Cosmos image tokenizer with {spec}: " + "; ".join(sorted(problems))
        )
    return {plain: weights[found[plain]] for plain in expected}


def tokenizer_names(names: Iterable[str]) -> list[str]:
    """The names that belong to the image tokenizer: in a checkpoint those under its prefix, otherwise all."""
    names = list(names)
    return [name for name in names if name.startswith(CHECKPOINT_PREFIXES)] or names


def plain_name(name: str) -> str:
    """``model.cosmos._enc_model.encoder.conv_in.weight`` -> ``encoder.conv_in.weight``; plain names stay."""
    for prefixes in (CHECKPOINT_PREFIXES, HALF_PREFIXES):
        for prefix in prefixes:
            name = name.removeprefix(prefix)
    return name


def _missing(expected: Iterable[str], found: Iterable[str]) -> list[str]:
    """One line per missing tensor, or one per part of the model that is missing as a whole."""
    missing_by_part: dict[str, list[str]] = {}
    found = set(found)
    for name in expected:
        if name not in found:
            missing_by_part.setdefault(name.split(".")[0], []).append(name)
    lines: list[str] = []
    for part, names in missing_by_part.items():
        if any(name.startswith(f"{part}.") for name in found):
            lines += [f"missing: {name}" for name in names]
        else:
            lines.append(f"missing: all {len(names)} tensors of {part} (pass the encoder and the decoder file)")
    return lines


def _files(source: Source | tuple[Source, Source]) -> tuple[Path, ...]:
    """The file or files that ``source`` stands for."""
    if isinstance(source, tuple):
        files = tuple(Path(part) for part in source)
    elif Path(source).is_dir():
        folder = Path(source)
        layouts = ((SINGLE_FILES[0],), *PAIRS, (SINGLE_FILES[1],))
        for layout in layouts:
            if all((folder / name).is_file() for name in layout):
                return tuple(folder / name for name in layout)
        raise InternVLAError(
            f"No Cosmos weights in {folder}: expected {', or '.join(' with '.join(layout) for layout in layouts)}. "
            f"Found: {', '.join(sorted(entry.name for entry in folder.iterdir())) or 'nothing'}."
        )
    else:
        files = (Path(source),)
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise InternVLAError(f"No such file: {', '.join(absent)}. Expected Cosmos weights as .jit or .safetensors.")
    return files


def _read(file: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(file):
        return read_torchscript_tensors(file)
    try:
        opened: Any = safe_open(file, framework="pt")  # untyped
        with opened as archive:
            # A whole checkpoint has gigabytes: read only what is ours.
            return {name: archive.get_tensor(name) for name in tokenizer_names(archive.keys())}
    except (SafetensorError, OSError) as error:
        raise InternVLAError(
            f"{file} is neither a TorchScript archive nor a safetensors file ({error}). It may be a Git LFS pointer or "
            "an incomplete download; fetch it again."
        ) from error
