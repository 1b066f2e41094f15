"""The reference's Cosmos at reduced width: its weights, inputs and outputs, and ours with the same weights."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from golden_models import draw_weights
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
    """The reference's weights, drawn again from its seed."""
    return draw_weights(config()["weights"])


def golden_tokenizer(dtype: torch.dtype = torch.float32) -> CosmosImageTokenizer:
    tokenizer = CosmosImageTokenizer(**config()["kwargs"])
    tokenizer.load_state_dict(weights())
    return tokenizer.to(dtype)
