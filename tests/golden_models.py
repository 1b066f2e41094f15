"""Golden model folders, complete: the shipped subset plus the weights, which are drawn again instead of stored.

The reference's golden weights were random numbers from one seeded CPU generator. ``config.json`` records the recipe and
the last value of every tensor, which proves that torch still draws the same numbers.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def draw_weights(recipe: dict) -> dict[str, Tensor]:
    """The reference's weights by name, fp32."""
    generator = torch.Generator().manual_seed(recipe["seed"])
    weights: dict[str, Tensor] = {}
    for name, (kind, shape, last) in sorted(recipe["parameters"].items()):
        noise = torch.randn(shape, generator=generator)
        is_bias = name.endswith("bias")
        if "Norm" in kind:
            drawn = 0.3 * noise if is_bias else 1 + 0.3 * noise
        elif "lambda" in name:
            drawn = 1 + 0.3 * noise
        elif kind == "Embedding" or name.endswith(("cls_token", "position_embeddings")):
            drawn = 0.5 * noise
        elif is_bias:
            drawn = 0.25 * noise
        else:
            fan_in = shape[0] if kind == "ConvTranspose2d" else math.prod(shape[1:])
            drawn = noise * min(max(1.5 / math.sqrt(fan_in), 0.02), 0.5)
        found = float(drawn.flatten()[-1])
        assert abs(found - last) < 1e-5, (
            f"{name}: torch draws {found}, the reference had {last}; the recipe no longer holds"
        )
        weights[name] = drawn
    return weights


def complete_folder(subset: Path, destination: Path) -> Path:
    """Copy ``subset`` to ``destination`` and add model.safetensors, as the reference would have saved it."""
    shutil.copytree(subset, destination, dirs_exist_ok=True)
    recipe = json.loads((subset / "config.json").read_text())["weights"]
    weights = draw_weights(recipe)
    for alias, stored in recipe["tied"].items():
        weights[stored] = weights.pop(alias)
    for name, values in recipe["constants"].items():
        weights[name] = torch.tensor(values).view(1, -1, 1, 1)
    save_file(weights, destination / "model.safetensors", metadata={"format": "pt", **recipe["tied"]})
    return destination
