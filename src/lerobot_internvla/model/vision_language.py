"""The understanding expert's eyes and words: towers behind one protocol.

A vision-language front end turns letterboxed views and prompt ids into the understanding block. Stock transformers
modules hold the parameters under the released names; their forward passes are driven from here, because the stock ones
read grids back from the device and loop over images. All images of a batch go through the tower in one call.
Axes: B batch, V views, N = B x V images, G patches of one image, n image tokens, P prompt tokens, D width.
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # partly typed by torch

from .architecture import CAMERA_SLOTS, Architecture

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VisionLanguage(nn.Module, ABC):
    """Views and prompt -> understanding tokens. Subclasses provide ``encode_images`` and their towers."""

    may_be_rounded = True
    """Whether bfloat16 weights (``policy.weights_dtype``) are good enough for this front end."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(architecture.vocabulary, architecture.understanding.hidden)

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Image tokens [N, n, D] of views [N, 3, height, width] in [0, 1]."""

    def dead_modules(self) -> list[nn.Module]:
        """Modules that the checkpoint carries and nothing ever computes."""
        return []

    def _run(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Call one tower block, recomputing it in the backward pass when checkpointing is on."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
        return block(*inputs)

    def embed_prompt(self, prompt_ids: Tensor) -> Tensor:
        """Text embeddings [B, P, D]."""
        embedded = self.embed_tokens(prompt_ids)
        if self.architecture.scale_text_embeddings:
            embedded = embedded * self.architecture.understanding.hidden**0.5
        return embedded

    def frame_images(self, tokens: Tensor) -> Tensor:
        """Image tokens of one view [B, V, n, D] with whatever the family puts around them."""
        return tokens

    def forward(self, images: Tensor, prompt_ids: Tensor) -> Tensor:
        """The understanding block.

        Args:
            images: [B, V, 3, height, width], RGB in [0, 1].
            prompt_ids: [B, P].

        Returns:
            [B, V x view_tokens + P, D]: views in slot order, then the prompt.
        """
        batch, views = images.shape[:2]
        tokens = torch.unflatten(self.encode_images(images.flatten(0, 1)), 0, (batch, views))
        text = self.embed_prompt(prompt_ids)
        return torch.cat([self.frame_images(tokens).flatten(1, 2).to(text.dtype), text], dim=1)


class Qwen3VLFrontEnd(VisionLanguage):
    """Qwen3-VL: 3b. The deepstack streams are dropped, as the released model was trained without them."""

    position_index: Tensor
    position_weight: Tensor
    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, architecture: Architecture) -> None:
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

        super().__init__(architecture)
        vision = architecture.vision
        settings: dict[str, Any] = {
            "depth": vision.depth,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.mlp,
            "num_heads": vision.heads,
            "patch_size": vision.patch_size,
            "out_hidden_size": architecture.understanding.hidden,
            "num_position_embeddings": vision.position_embeddings,
            "deepstack_visual_indexes": list(vision.deepstack_layers),
        }
        self.vision_tower = Qwen3VLVisionModel(Qwen3VLVisionConfig(**settings))
        # The grid never changes, so what the stock forward derives from it on every call is computed once.
        index, weight = _interpolated_positions(vision.grid, int(vision.position_embeddings**0.5))
        cos, sin = _patch_rotary(vision.grid, vision.hidden // vision.heads)
        for name, table in (("position_index", index), ("position_weight", weight)):
            self.register_buffer(name, table, persistent=False)
        for name, table in (("rotary_cos", cos), ("rotary_sin", sin)):
            self.register_buffer(name, table, persistent=False)

    def dead_modules(self) -> list[nn.Module]:
        return list(self.vision_tower.deepstack_merger_list)

    def _block(self, block: Any, hidden: Tensor) -> Tensor:
        """One tower block over [N, G, D]; attention stays inside an image."""
        heads = block.attn.num_heads
        projected = block.attn.qkv(block.norm1(hidden)).unflatten(-1, (3 * heads, -1))
        query_key, value = projected.split([2 * heads, heads], dim=2)
        query, key = _rotate(query_key, self.rotary_cos, self.rotary_sin).chunk(2, dim=2)
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        return hidden + block.mlp(block.norm2(hidden))

    def encode_images(self, images: Tensor) -> Tensor:
        from .qwen_pixels import qwen_patches, qwen_pixels

        vision = self.architecture.vision
        tower = self.vision_tower
        count = images.shape[0]
        patches = qwen_patches(qwen_pixels(images, vision.image_size), vision.patch_size)
        hidden = tower.patch_embed(patches).unflatten(0, (count, -1))
        corners = tower.pos_embed(self.position_index) * self.position_weight[:, :, None].to(
            tower.pos_embed.weight.dtype
        )
        hidden = hidden + (corners[0] + corners[1] + corners[2] + corners[3])
        for block in tower.blocks:
            hidden = self._run(self._block, block, hidden)
        return tower.merger(hidden.flatten(0, 1)).unflatten(0, (count, -1))

    def frame_images(self, tokens: Tensor) -> Tensor:
        special = self.architecture.special_tokens
        weight = self.embed_tokens.weight
        shape = (*tokens.shape[:2], 1, -1)
        start, end = (weight[token].expand(shape) for token in (special.vision_start, special.vision_end))
        return torch.cat([start.to(tokens.dtype), tokens, end.to(tokens.dtype)], dim=2)


class InternVL3FrontEnd(VisionLanguage):
    """InternVL3: 2b. ImageNet normalisation, class token dropped, 2x2 pixel shuffle, projector."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig
        from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

        super().__init__(architecture)
        vision = architecture.vision
        settings: dict[str, Any] = {
            "hidden_size": vision.hidden,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "image_size": list(vision.image_size),
            "patch_size": [vision.patch_size, vision.patch_size],
            "attention_bias": vision.attention_bias,
            "use_qk_norm": False,
            "attn_implementation": "sdpa",
        }
        self.vision_tower = InternVLVisionModel(InternVLVisionConfig(**settings))
        both: dict[str, Any] = {
            "vision_config": settings,
            "text_config": {"model_type": "qwen2", "hidden_size": architecture.understanding.hidden},
        }
        self.projector = InternVLMultiModalProjector(InternVLConfig(**both))
        if architecture.untied_lm_head:
            self.lm_head = nn.Linear(architecture.understanding.hidden, architecture.vocabulary, bias=False)
        for name, values in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def dead_modules(self) -> list[nn.Module]:
        return [self.lm_head] if hasattr(self, "lm_head") else []

    def encode_images(self, images: Tensor) -> Tensor:
        from transformers.models.internvl.modeling_internvl import InternVLModel

        size = self.architecture.vision.image_size
        if tuple(images.shape[-2:]) != tuple(size):
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        hidden = self.vision_tower.embeddings((images - self.image_mean) / self.image_std)
        for block in self.vision_tower.encoder.layer:
            hidden = self._run(block, hidden)
        patches = torch.unflatten(hidden[:, 1:], 1, self.architecture.vision.grid)
        # A function of the patches alone: the model it belongs to is not read.
        merged = InternVLModel.pixel_shuffle(self, patches, scale_factor=0.5)  # pyright: ignore[reportArgumentType]
        return self.projector(merged.flatten(1, 2))


class TinyFrontEnd(VisionLanguage):
    """Convolutions that keep positions: tiny. Per view, a grid of image tokens and one token of keypoint coordinates.

    Small moving objects reward a tower that says where things are to a fraction of a cell (facts: sims).
    """

    may_be_rounded = False  # coordinates need more than 8 bits

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        vision, width = architecture.vision, architecture.understanding.hidden
        self.vision_tower = TinyVisionTower(vision.hidden, vision.depth, vision.patch_size, vision.image_size)
        self.projector = nn.Sequential(
            nn.LayerNorm(4 * vision.hidden),
            nn.Linear(4 * vision.hidden, vision.mlp),
            nn.GELU(),
            nn.Linear(vision.mlp, width),
        )
        self.keypoint_projector = nn.Sequential(
            nn.Linear(2 * vision.hidden, vision.mlp), nn.GELU(), nn.Linear(vision.mlp, width)
        )
        self.view_embedding = nn.Parameter(torch.zeros(len(CAMERA_SLOTS), 1, width))

    def encode_images(self, images: Tensor) -> Tensor:
        size = self.architecture.vision.image_size
        if tuple(images.shape[-2:]) != tuple(size):
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        cells, keypoints = self.vision_tower(images * 2.0 - 1.0, self._run)
        merged = F.pixel_unshuffle(cells, 2).flatten(2).transpose(1, 2)
        return torch.cat([self.projector(merged), self.keypoint_projector(keypoints.flatten(1))[:, None]], dim=1)

    def frame_images(self, tokens: Tensor) -> Tensor:
        return tokens + self.view_embedding[: tokens.shape[1]]


class TinyVisionTower(nn.Module):
    """Strided convolutions to one cell per patch, and the places where learned features are strongest."""

    def __init__(self, hidden: int, depth: int, patch_size: int, image_size: tuple[int, int]) -> None:
        # LeRobot has no type stubs.
        from lerobot.policies.diffusion.modeling_diffusion import SpatialSoftmax

        super().__init__()
        rows, columns = image_size
        # Four pixels at once, then halves: most of the work would otherwise go into full-resolution maps.
        self.stem = nn.Sequential(nn.Conv2d(3, hidden // 2, 4, stride=4), nn.GroupNorm(8, hidden // 2), nn.GELU())
        self.detector = nn.Sequential(nn.Conv2d(hidden // 2, hidden // 2, 3, padding=1), nn.GELU())
        self.keypoints = SpatialSoftmax((hidden // 2, rows // 4, columns // 4), num_kp=hidden)
        down: list[nn.Module] = []
        for scale in range(2, patch_size.bit_length() - 1):
            fan_in = hidden // 2 if scale == 2 else hidden
            down += [nn.Conv2d(fan_in, hidden, 3, 2, padding=1), nn.GroupNorm(8, hidden), nn.GELU()]
        self.down = nn.Sequential(*down)
        self.position = nn.Parameter(torch.zeros(1, hidden, rows // patch_size, columns // patch_size))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, hidden), nn.GELU(), nn.Conv2d(hidden, hidden, 3, padding=1))
            for _ in range(depth)
        )

    def forward(self, images: Tensor, run: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Images [N, 3, height, width] in [-1, 1] -> cells [N, hidden, rows, columns] and keypoints [N, hidden, (x, y)]
        in [-1, 1].

        ``run`` calls one block (``VisionLanguage._run``: recomputed in the backward pass where that is asked for).
        """
        fine = self.stem(images)
        hidden = self.down(fine) + self.position
        for block in self.blocks:
            hidden = hidden + run(block, hidden)
        return hidden, self.keypoints(fine + self.detector(fine))


FRONT_ENDS: dict[str, type[VisionLanguage]] = {
    "qwen3_vl": Qwen3VLFrontEnd,
    "internvl3": InternVL3FrontEnd,
    "tiny": TinyFrontEnd,
}


def build_vision_language(architecture: Architecture) -> VisionLanguage:
    """The front end of ``architecture.family``, with random weights."""
    return FRONT_ENDS[architecture.family](architecture)


def _merge_order(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reorder patches [.., rows * columns] from raster order to Qwen's order: 2x2 neighbours side by side."""
    rows, columns = grid
    shaped = torch.unflatten(table, -1, (rows // 2, 2, columns // 2, 2))
    return shaped.transpose(-3, -2).flatten(-4)


def _interpolated_positions(grid: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """Bilinear look-up of a ``side`` x ``side`` position table at ``grid``: indices and weights, both [4, G]."""
    rows, columns = (torch.linspace(0, side - 1, n) for n in grid)
    row, column = rows.int(), columns.int()
    next_row, next_column = (row + 1).clip(max=side - 1), (column + 1).clip(max=side - 1)
    up, left = (rows - row)[:, None], (columns - column)[None, :]
    index = [(r[:, None] * side + c[None, :]).flatten() for r in (row, next_row) for c in (column, next_column)]
    weight = [(a * b).flatten() for a in (1 - up, up) for b in (1 - left, left)]
    return _merge_order(torch.stack(index).long(), grid), _merge_order(torch.stack(weight), grid)


def _patch_rotary(grid: tuple[int, int], head_width: int) -> tuple[Tensor, Tensor]:
    """Two-dimensional rotary angles of the tower's patches, for ``_rotate``: cos and sin, each [G, 1, head_width]."""
    quarter = head_width // 2
    frequencies = 1.0 / (10_000.0 ** (torch.arange(0, quarter, 2, dtype=torch.float32) / quarter))
    rows, columns = grid
    row = torch.arange(rows)[:, None].expand(grid).flatten()
    column = torch.arange(columns)[None, :].expand(grid).flatten()
    places = torch.stack([_merge_order(row, grid), _merge_order(column, grid)], dim=-1).float()
    angles = (places[:, :, None] * frequencies).flatten(1)
    cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [N, G, heads, H] in float32, cast back. ``sin`` is negative in the first half of a head."""
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(wide.shape[-1] // 2, dims=-1), sin).to(x.dtype)
