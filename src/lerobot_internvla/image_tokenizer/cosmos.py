"""NVIDIA's Cosmos continuous image tokenizer (CI8x8) as plain, frozen modules.

    encode   pixels -> Haar (2 levels: 48 channels at a quarter) -> convolutions, one more halving -> 16 channels at 1/8
    decode   the mirror image

Architecture and parameter names are those of NVIDIA's Cosmos-Tokenizer (Apache-2.0, arXiv 2501.03575), whose released
weights are also stored inside InternVLA-A1 checkpoints. No class of diffusers fits: its Cosmos is the causal video
model, and its image autoencoders tie the first convolution's width to the first level's.
The released configuration attends at the bottleneck only, so ``attn_resolutions`` does not exist here.

Axes: n images, 3 colours, height x width pixels, channel latent channels, h x w latent cells.
"""

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import (
    ConfigMixin,
    register_to_config,  # pyright: ignore[reportUnknownVariableType]  # diffusers is partly typed
)
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.haar import haar, inverse_haar
from lerobot_internvla.image_tokenizer.protocol import require_images, require_latents
from lerobot_internvla.image_tokenizer.spec import ImageTokenizerSpec

_NORM_GROUPS = 32


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_NORM_GROUPS, channels, eps=1e-6)


def _conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """Two rounds of norm, SiLU, 3x3 convolution; a 1x1 convolution on the shortcut where the width changes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = _conv3x3(channels_in, channels_out)
        self.norm2 = _norm(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Float[Tensor, "n channels_in h w"]) -> Float[Tensor, "n channels_out h w"]:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.nin_shortcut(x) + hidden


class AttentionBlock(nn.Module):
    """Residual single-head self-attention over all cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels h w"]:
        normed = self.norm(x)
        query, key, value = (
            projection(normed).flatten(2).transpose(1, 2).unsqueeze(1) for projection in (self.q, self.k, self.v)
        )  # each [n, 1 head, h * w, channels]
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(attended.squeeze(1).transpose(1, 2).reshape(x.shape))


class Bottleneck(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve by a strided convolution, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels h//2 w//2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double by repeating cells, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3x3(channels, channels)

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels h*2 w*2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _residual_blocks(channels_in: int, width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(channels_in if index == 0 else width, width) for index in range(count))


def _run_level(level: nn.ModuleDict, resample: str, x: Tensor) -> Tensor:
    """The blocks of one level, then its change of resolution, where it has one."""
    for block in cast(nn.ModuleList, level["block"]):
        x = block(x)
    return level[resample](x) if resample in level else x


class Encoder(nn.Module):
    """Pixels to ``z_channels`` features. ``widths`` lists the levels from fine to coarse."""

    def __init__(
        self,
        *,
        in_channels: int,
        haar_levels: int,
        stem: int,
        widths: tuple[int, ...],
        halvings: int,
        num_res_blocks: int,
        z_channels: int,
    ) -> None:
        super().__init__()
        self.haar_levels = haar_levels
        self.conv_in = _conv3x3(in_channels * 4**haar_levels, stem)
        self.down = nn.ModuleList()
        channels = stem
        for index, width in enumerate(widths):
            level = nn.ModuleDict({"block": _residual_blocks(channels, width, num_res_blocks)})
            if index < halvings:
                level["downsample"] = Downsample(width)
            self.down.append(level)
            channels = width
        self.mid = Bottleneck(channels)
        self.norm_out = _norm(channels)
        self.conv_out = _conv3x3(channels, z_channels)

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n z h w"]:
        x = self.conv_in(haar(images, self.haar_levels))
        for level in cast(Iterable[nn.ModuleDict], self.down):
            x = _run_level(level, "downsample", x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """``z_channels`` features to pixels. ``up`` is indexed like ``widths``, from fine to coarse, and runs backwards."""

    def __init__(
        self,
        *,
        out_channels: int,
        haar_levels: int,
        widths: tuple[int, ...],
        doublings: int,
        num_res_blocks: int,
        z_channels: int,
    ) -> None:
        super().__init__()
        self.haar_levels = haar_levels
        channels = widths[-1]
        self.conv_in = _conv3x3(z_channels, channels)
        self.mid = Bottleneck(channels)
        levels: list[nn.ModuleDict] = []
        for index, width in reversed(list(enumerate(widths))):
            # One block more than the encoder has.
            level = nn.ModuleDict({"block": _residual_blocks(channels, width, num_res_blocks + 1)})
            if index >= len(widths) - doublings:
                level["upsample"] = Upsample(width)
            levels.append(level)
            channels = width
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _norm(channels)
        self.conv_out = _conv3x3(channels, out_channels * 4**haar_levels)

    def forward(self, features: Float[Tensor, "n z h w"]) -> Float[Tensor, "n 3 height width"]:
        x = self.mid(self.conv_in(features))
        for level in cast(Iterable[nn.ModuleDict], reversed(self.up)):
            x = _run_level(level, "upsample", x)
        return inverse_haar(self.conv_out(F.silu(self.norm_out(x))), self.haar_levels)


class CosmosImageTokenizer(ModelMixin, ConfigMixin):
    """``ImageTokenizer`` with the weights' names and shapes of NVIDIA's CI8x8: 198 tensors, 76,789,472 parameters.

    Always frozen: parameters take no gradient and ``train()`` leaves it in evaluation mode; gradients still flow
    through ``decode`` to the latents. It computes in the dtype of its parameters (the released model runs in bfloat16)
    and in either memory format: ``.to(memory_format=torch.channels_last)``.

    Args:
        channels: width of the first convolution.
        channels_mult: width of each level, fine to coarse, in units of ``channels``.
        num_res_blocks: residual blocks per encoder level; the decoder has one more.
        latent_channels: channels of the latents.
        z_channels: channels on the inner side of ``quant_conv`` and ``post_quant_conv``.
        patch_size: 2 ** (Haar levels).
        spatial_compression: pixels per latent cell; what Haar does not provide, strided convolutions do.
        in_channels: colours in.
        out_channels: colours out.

    Raises:
        InternVLAError: sizes that do not fit together; all problems at once.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        channels: int = 128,
        channels_mult: Sequence[int] = (2, 4, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 16,
        z_channels: int = 16,
        patch_size: int = 4,
        spatial_compression: int = 8,
        in_channels: int = 3,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = tuple(channels * factor for factor in channels_mult)
        halvings = _halvings(channels, widths, patch_size, spatial_compression)
        haar_levels = round(math.log2(patch_size))
        self.latent_channels = latent_channels
        self.compression = spatial_compression
        self.encoder = Encoder(
            in_channels=in_channels,
            haar_levels=haar_levels,
            stem=channels,
            widths=widths,
            halvings=halvings,
            num_res_blocks=num_res_blocks,
            z_channels=z_channels,
        )
        self.quant_conv = nn.Conv2d(z_channels, latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, z_channels, 1)
        self.decoder = Decoder(
            out_channels=out_channels,
            haar_levels=haar_levels,
            widths=widths,
            doublings=halvings,
            num_res_blocks=num_res_blocks,
            z_channels=z_channels,
        )
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_spec(cls, spec: ImageTokenizerSpec) -> "CosmosImageTokenizer":
        """Random weights at the sizes of ``spec``."""
        return cls(
            channels=spec.channels,
            channels_mult=spec.channels_mult,
            num_res_blocks=spec.num_res_blocks,
            latent_channels=spec.latent_channels,
            z_channels=spec.latent_channels,
            spatial_compression=spec.compression,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any
    ) -> "CosmosImageTokenizer":
        """diffusers' ``from_pretrained``, from safetensors only and with nothing missing.

        As in diffusers, ``torch_dtype=None`` means float32; ``factory.load_image_tokenizer`` keeps the stored dtype.

        Raises:
            InternVLAError: weights that are missing, unexpected or of another shape. (diffusers would warn, and leave
                missing weights random.)
        """
        try:
            loaded: Any = super().from_pretrained(  # pyright: ignore[reportUnknownMemberType]  # diffusers is partly typed
                pretrained_model_name_or_path, use_safetensors=True, output_loading_info=True, **kwargs
            )
        except ValueError as error:  # how diffusers reports another shape
            raise InternVLAError(
                f"The image tokenizer in {pretrained_model_name_or_path} does not fit its config.json: {error}"
            ) from error
        tokenizer, report = cast(tuple[CosmosImageTokenizer, dict[str, list[Any]]], loaded)
        problems = [
            f"{kind.replace('_', ' ')}: {', '.join(map(str, found))}" for kind, found in report.items() if found
        ]
        if problems:
            raise InternVLAError(
                f"The image tokenizer in {pretrained_model_name_or_path} does not fit its config.json: "
                + "; ".join(problems)
                + ". Save it again with save_pretrained, or import the released weights with cosmos_weights."
            )
        # diffusers notes where the weights came from; a folder of this machine says nothing to whom it is sent.
        tokenizer.register_to_config(_name_or_path="")  # pyright: ignore[reportUnknownMemberType]  # the same
        return tokenizer

    def to(self, *args: Any, **kwargs: Any) -> "CosmosImageTokenizer":  # pyright: ignore[reportIncompatibleVariableOverride]
        """As ``torch.nn.Module.to``. (diffusers' warns on every cast about float32 modules; there are none here.)"""
        return cast(CosmosImageTokenizer, nn.Module.to(self, *args, **kwargs))

    def train(self, mode: bool = True) -> "CosmosImageTokenizer":
        """Stay in evaluation mode: an image tokenizer defines the target and is never trained here."""
        return super().train(False)

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n channel h w"]:
        """RGB in [-1, 1] to latents in the released, raw scale.

        Raises:
            InternVLAError: not floating point, not [n, 3, height, width], or not multiples of ``compression``.
        """
        require_images(images, self.compression)
        with _no_autocast(images.device.type):
            latents = self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype)))
        return latents.to(images.dtype).contiguous()

    def decode(self, latents: Float[Tensor, "n channel h w"]) -> Float[Tensor, "n 3 height width"]:
        """Latents to RGB, nominally in [-1, 1] and not clamped.

        Raises:
            InternVLAError: not floating point or not [n, latent_channels, h, w].
        """
        require_latents(latents, self.latent_channels)
        with _no_autocast(latents.device.type):
            images = self.decoder(self.post_quant_conv(latents.to(self.post_quant_conv.weight.dtype)))
        return images.to(latents.dtype).contiguous()


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Training under autocast must not choose the dtype of the target. (The meta device knows no autocast.)"""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _halvings(channels: int, widths: tuple[int, ...], patch_size: int, spatial_compression: int) -> int:
    """How many levels change the resolution; every way in which the sizes cannot work, at once."""
    problems: list[str] = []
    for name, value in (("patch_size", patch_size), ("spatial_compression", spatial_compression)):
        if value < 1 or value & (value - 1):
            problems.append(f"{name} {value} is not a power of two")
    if not widths:
        problems.append("channels_mult is empty")
    for width in sorted({channels, *widths}):
        if width < 1 or width % _NORM_GROUPS:
            problems.append(f"a width of {width} is not a multiple of the {_NORM_GROUPS} normalisation groups")
    halvings = spatial_compression.bit_length() - patch_size.bit_length()
    if not problems and not 0 <= halvings <= len(widths):
        problems.append(
            f"spatial_compression {spatial_compression} needs {halvings} halvings after patch_size {patch_size}, "
            f"but channels_mult has {len(widths)} levels"
        )
    if problems:
        raise InternVLAError("The Cosmos image tokenizer cannot be built: " + "; ".join(problems))
    return halvings
