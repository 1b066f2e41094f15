"""What foresight needs of an image tokenizer: pixels in [-1, 1] to latents and back, nothing else.

Axes: n images, 3 colours (RGB), height x width pixels, channel latent channels, h x w latent cells.
"""

import os
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lerobot_internvla.errors import InternVLAError


@runtime_checkable
class ImageTokenizer(Protocol):
    """Frozen map between pixels and latents.

    Stateless: an answer depends on the argument alone. The answer has the dtype of the argument, whatever dtype the
    weights have, is contiguous, and is the same inside and outside of ``torch.autocast``.
    """

    latent_channels: int
    compression: int
    """Pixels per latent cell along each axis. Image height and width must be multiples of it."""

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n channel h w"]:
        """RGB in [-1, 1] to latents in the tokenizer's own scale; no mean or standard deviation is applied."""
        ...

    def decode(self, latents: Float[Tensor, "n channel h w"]) -> Float[Tensor, "n 3 height width"]:
        """Latents to RGB, nominally in [-1, 1] and not clamped."""
        ...

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write a folder that ``factory.load_image_tokenizer`` reads back."""
        ...

    def to(self, device: torch.device | str) -> "ImageTokenizer":
        """Move to ``device`` in place."""
        ...


def require_images(images: Tensor, compression: int) -> None:
    """Raise InternVLAError unless ``images`` are floating point [n, 3, height, width], multiples of ``compression``."""
    shape = tuple(images.shape)
    problems: list[str] = []
    if not images.is_floating_point():
        problems.append(f"dtype {images.dtype} is not floating point: convert to [-1, 1] first (uint8 / 127.5 - 1)")
    if len(shape) != 4 or shape[1] != 3:
        problems.append("expected [n, 3, height, width]: flatten view and time axes into n first")
    else:
        for axis, pixels in zip(("height", "width"), shape[2:], strict=True):
            if pixels == 0 or pixels % compression:
                problems.append(f"{axis} {pixels} is not a positive multiple of {compression}: resize first")
    if problems:
        raise InternVLAError(f"Cannot encode images of shape {shape}: " + "; ".join(problems))


def require_latents(latents: Tensor, latent_channels: int) -> None:
    """Raise InternVLAError unless ``latents`` are floating point [n, latent_channels, h, w]."""
    shape = tuple(latents.shape)
    problems: list[str] = []
    if not latents.is_floating_point():
        problems.append(f"dtype {latents.dtype} is not floating point")
    if len(shape) != 4 or shape[1] != latent_channels:
        problems.append(f"expected [n, {latent_channels}, h, w]")
    if problems:
        raise InternVLAError(f"Cannot decode latents of shape {shape}: " + "; ".join(problems))
