"""The reference's Cosmos at reduced width: its weights, inputs and outputs, and ours with the same weights."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.image_tokenizer.spec import ImageTokenizerSpec

FOLDER = Path(__file__).parents[1] / "goldens" / "cosmos_ci_tiny"
TINY = ImageTokenizerSpec("cosmos_ci8x8", (64, 64), 16, 8, channels=32, channels_mult=(1, 2, 2))
RELATIVE_TO_MAX = 2e-5  # golden.md, fp32


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference relative to the largest reference value."""
    assert ours.shape == reference.shape
    return ((ours.double() - reference.double()).abs().max() / reference.double().abs().max()).item()


@functools.cache
def config() -> dict[str, Any]:
    return json.loads((FOLDER / "config.json").read_text())


@functools.cache
def inputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "inputs.safetensors")


@functools.cache
def outputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "outputs.safetensors")


@functools.cache
def weights() -> dict[str, Tensor]:
    """The reference's weights. They were drawn at random, so the shipped subset holds the recipe instead of 5 MB."""
    stored = FOLDER / "model.safetensors"
    if stored.is_file():
        return load_file(stored)
    recipe = config()["weights"]
    generator = torch.Generator().manual_seed(recipe["seed"])
    drawn: dict[str, Tensor] = {}
    for name, shape in sorted(recipe["shapes"].items()):
        noise = torch.randn(shape, generator=generator)
        is_bias = name.endswith("bias")
        if "norm" in name:
            drawn[name] = 0.3 * noise if is_bias else 1 + 0.3 * noise
        elif is_bias:
            drawn[name] = 0.25 * noise
        else:
            drawn[name] = noise * min(max(1.5 / math.sqrt(math.prod(shape[1:])), 0.02), 0.5)
    first_values = torch.stack([drawn[name].flatten()[0] for name in sorted(drawn)])
    torch.testing.assert_close(
        first_values, outputs()["weights_probe"], rtol=1e-5, atol=1e-6,
        msg="torch's CPU generator draws other numbers than it did for the reference: the recipe no longer holds",
    )  # fmt: skip
    return drawn


def golden_tokenizer(dtype: torch.dtype = torch.float32) -> CosmosImageTokenizer:
    tokenizer = CosmosImageTokenizer(**config()["kwargs"])
    tokenizer.load_state_dict(weights())
    return tokenizer.to(dtype)
