"""The Haar image tokenizer: parameter-free, invertible, and the first stage of Cosmos.

One level turns every 2x2 block of pixels ``a b / c d`` into four channels at half the resolution:

    LL = (a + b + c + d) / 4    LH = (a + b - c - d) / 4    HL = (a - b + c - d) / 4    HH = (a - b - c + d) / 4

The order is [LL | LH | HL | HH], each over all input channels, and the next level is applied to all of them (a wavelet
packet, as in NVIDIA's Cosmos tokenizer with ``patch_method="haar"``). LL is a mean, and each of the others is at most
half the range of the block: pixels in [-1, 1] give latents in [-1, 1], and the inverse needs no rescaling.
"""

import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.protocol import require_images, require_latents

CONFIG_NAME = "config.json"


def haar(
    images: Float[Tensor, "n channel height width"], levels: int
) -> Float[Tensor, "n channel*4**{levels} height//2**{levels} width//2**{levels}"]:
    """``levels`` Haar levels. Height and width must be multiples of ``2**levels``."""
    for _ in range(levels):
        # The division by four comes first: a power of two is exact, and one product is cheaper than four.
        quarter = images * 0.25
        top, bottom = quarter[..., 0::2, :], quarter[..., 1::2, :]
        total, change = top + bottom, top - bottom
        left, right = total[..., 0::2], total[..., 1::2]
        change_left, change_right = change[..., 0::2], change[..., 1::2]
        images = torch.cat((left + right, change_left + change_right, left - right, change_left - change_right), dim=1)
    return images


def inverse_haar(
    latents: Float[Tensor, "n channel h w"], levels: int
) -> Float[Tensor, "n channel//4**{levels} h*2**{levels} w*2**{levels}"]:
    """Undo ``haar``: exact up to the rounding of the dtype, and bit-exact for pixels on a power-of-two grid."""
    for _ in range(levels):
        ll, lh, hl, hh = latents.chunk(4, dim=1)
        top, top_change = ll + lh, hl + hh
        bottom, bottom_change = ll - lh, hl - hh
        top_row = torch.stack((top + top_change, top - top_change), dim=-1).flatten(-2)
        bottom_row = torch.stack((bottom + bottom_change, bottom - bottom_change), dim=-1).flatten(-2)
        latents = torch.stack((top_row, bottom_row), dim=-2).flatten(-3, -2)
    return latents


class HaarImageTokenizer(nn.Module):
    """``ImageTokenizer`` without parameters: ``3 * 4**levels`` channels, one cell per ``2**levels`` pixels.

    Cheap enough for training on a CPU, and decoding predicted latents loses nothing. It computes in the dtype of its
    argument.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        if levels < 1:
            raise InternVLAError(f"HaarImageTokenizer needs at least one level, got levels={levels}.")
        self.levels = levels
        self.latent_channels = 3 * 4**levels
        self.compression = 2**levels

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n channel h w"]:
        """RGB in [-1, 1] to latents in [-1, 1].

        Raises:
            InternVLAError: not floating point, not [n, 3, height, width], or not multiples of ``compression``.
        """
        require_images(images, self.compression)
        return haar(images, self.levels)

    def decode(self, latents: Float[Tensor, "n channel h w"]) -> Float[Tensor, "n 3 height width"]:
        """Latents to RGB; predictions may leave [-1, 1] and are not clamped.

        Raises:
            InternVLAError: not floating point or not [n, latent_channels, h, w].
        """
        require_latents(latents, self.latent_channels)
        return inverse_haar(latents, self.levels)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``config.json``, in diffusers' form; there are no weights."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, "levels": self.levels}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "HaarImageTokenizer":
        """Read a folder written by ``save_pretrained``.

        Raises:
            InternVLAError: no config.json, or one that does not describe a HaarImageTokenizer.
        """
        path = Path(folder) / CONFIG_NAME
        try:
            loaded: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InternVLAError(f"Cannot read the image tokenizer's {path}: {error}") from error
        config = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
        levels = config.get("levels")
        if not isinstance(levels, int) or config.get("_class_name") != cls.__name__:
            raise InternVLAError(
                f"{path} does not describe a {cls.__name__}: expected "
                f'{{"_class_name": "{cls.__name__}", "levels": <int>}}, got {loaded}.'
            )
        return cls(levels)
