"""Reference checkpoints for these tests: the real names, shapes and configuration, with made-up values."""

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lerobot_internvla.conversion.key_table import Shape

KEYS = Path(__file__).parents[1] / "goldens" / "keys"
FAMILIES = {"3b": "qwen3_vl", "2b": "internvl3"}


def key_list(variant: str, size: str) -> dict[str, Any]:
    """The recorded key list of the reference at ``size`` "full" or "tiny"."""
    return json.loads(gzip.decompress((KEYS / f"a1_{variant}_{size}.json.gz").read_bytes()))


def shapes_of(tensors: dict[str, Any]) -> dict[str, Shape]:
    return {name: tuple(shape) for name, (_, shape) in tensors.items()}


def stored_shapes(variant: str) -> dict[str, Shape]:
    """What a full-size file holds: tied names once."""
    recorded = key_list(variant, "full")
    return {name: shape for name, shape in shapes_of(recorded["tensors"]).items() if name not in recorded["tied"]}


def tiny_tensors(variant: str) -> dict[str, Tensor]:
    """A tiny checkpoint in the released key set and dtypes; random but for the known constants."""
    generator = torch.Generator().manual_seed(0)
    known = {
        "imagenet_mean": [0.485, 0.456, 0.406],
        "imagenet_std": [0.229, 0.224, 0.225],
        "wavelets": [0.5**0.5] * 2,
        "_arange": [0, 1],
    }
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape) in key_list(variant, "tiny")["tensors"].items():
        values = known.get(name.rsplit(".", 1)[-1])
        tensor = torch.randn(shape, generator=generator) if values is None else torch.tensor(values).reshape(shape)
        tensors[name] = tensor.to(getattr(torch, dtype))
    return tensors


def write_tiny(
    folder: Path, variant: str, tensors: dict[str, Tensor] | None = None, config: dict[str, Any] | None = None
) -> Path:
    """A folder as the golden tensors have it, described config included."""
    recorded = key_list(variant, "tiny")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors or tiny_tensors(variant), folder / "model.safetensors", metadata=recorded["metadata"])
    (folder / "config.json").write_text(json.dumps(config or recorded["config"]))
    return folder
