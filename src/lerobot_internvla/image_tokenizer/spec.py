"""Which image tokenizer, and how large: a kind and its constructor arguments. No torch in this file."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageTokenizerSpec:
    """How foresight turns pixels into latents: a kind and its constructor arguments."""

    kind: Literal["cosmos_ci8x8", "haar"]
    image_size: tuple[int, int]
    """Pixels (height, width) that are encoded; views are resized to it (bilinear, no antialias)."""
    latent_channels: int
    compression: int
    """Pixels per latent cell along each axis."""
    channels: int = 128
    channels_mult: tuple[int, ...] = (2, 4, 4)
    num_res_blocks: int = 2

    @property
    def latent_size(self) -> tuple[int, int]:
        """Latent (height, width)."""
        return self.image_size[0] // self.compression, self.image_size[1] // self.compression


COSMOS_CI8X8 = ImageTokenizerSpec("cosmos_ci8x8", (256, 256), latent_channels=16, compression=8)
"""The released Cosmos CI8x8 (76.8 M parameters), as InternVLA-A1 uses it."""
