"""Frames -> latents, in the one way that training, inference and caches share; and which tokenizer it was."""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer


@torch.no_grad()
def encode_frames(
    tokenizer: ImageTokenizer, frames: Float[Tensor, "n 3 height width"], image_size: tuple[int, int]
) -> Float[Tensor, "n channel h w"]:
    """Latents of letterboxed views in [0, 1]; float32, no gradient.

    Args:
        image_size: (height, width) that the tokenizer encodes; views of another size are resized (bilinear, no
            antialias), as in the released checkpoint.
    """
    if tuple(frames.shape[-2:]) != tuple(image_size):
        frames = F.interpolate(frames, size=image_size, mode="bilinear", align_corners=False)
    return tokenizer.encode(frames * 2.0 - 1.0).float()


def latent_dtype(tokenizer: ImageTokenizer) -> torch.dtype:
    """In which latents can be kept without loss: that of the weights, or float32 where there are none."""
    parameters = tokenizer.parameters() if isinstance(tokenizer, nn.Module) else iter(())
    first = next(parameters, None)
    return torch.float32 if first is None else first.dtype


def describe_identity(tokenizer: ImageTokenizer) -> dict[str, Any]:
    """What tells this tokenizer from any other, as plain data: its class, its settings, a hash of its weights.

    Two tokenizers with the same description give the same latents, up to the rounding of another device.
    """
    settings = cast(Mapping[str, Any], getattr(tokenizer, "config", {}))
    return {
        "class": type(tokenizer).__name__,
        "latent_channels": tokenizer.latent_channels,
        "compression": tokenizer.compression,
        "settings": {name: settings[name] for name in sorted(settings) if not name.startswith("_")},
        "dtype": str(latent_dtype(tokenizer)).removeprefix("torch."),
        "weights": _hash_of_weights(tokenizer),
    }


def _hash_of_weights(tokenizer: ImageTokenizer) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all tensors."""
    digest = hashlib.sha256()
    weights: dict[str, Tensor] = tokenizer.state_dict() if isinstance(tokenizer, nn.Module) else {}
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(cast(Any, tensor.detach().cpu().contiguous().flatten().view(torch.uint8)).numpy().data)
    return digest.hexdigest()
