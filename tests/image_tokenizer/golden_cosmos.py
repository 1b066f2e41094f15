"""The reference's Cosmos at reduced width: its weights, inputs and outputs, and ours with the same weights."""

import functools
import json
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

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


class _HaarBuffers(nn.Module):
    """What tracing leaves of NVIDIA's patcher."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("wavelets", torch.full((2,), 0.5**0.5), persistent=False)
        self.register_buffer("_arange", torch.arange(2), persistent=False)


def trace_jit_pair(tokenizer: CosmosImageTokenizer, folder: Path) -> tuple[Path, Path]:
    """``encoder.jit`` and ``decoder.jit`` laid out as NVIDIA's, traced from our own module in its dtype."""
    dtype = tokenizer.quant_conv.weight.dtype
    tokenizer.encoder.patcher = _HaarBuffers().to(dtype)
    tokenizer.decoder.unpatcher = _HaarBuffers().to(dtype)
    halves = {
        "encoder": [("encoder", tokenizer.encoder), ("quant_conv", tokenizer.quant_conv)],
        "decoder": [("post_quant_conv", tokenizer.post_quant_conv), ("decoder", tokenizer.decoder)],
    }
    examples = {"encoder": torch.zeros(1, 3, 16, 16, dtype=dtype), "decoder": torch.zeros(1, 16, 2, 2, dtype=dtype)}
    for name, modules in halves.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(nn.Sequential(OrderedDict(modules)), examples[name], check_trace=False)
        traced.save(str(folder / f"{name}.jit"))  # pyright: ignore
    return folder / "encoder.jit", folder / "decoder.jit"
