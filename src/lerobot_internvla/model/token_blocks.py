"""The token sequence as ordered blocks: who attends to whom, and where each token stands.

InternVLA-A1 reads four blocks (paper section "Architecture"): understanding, foresight, state, actions. A block
attends to itself, in both directions, and to every block before it. So attention needs no query x key mask at all:
block i attends to the concatenated keys of blocks 0..i, of which padding is hidden by one boolean per key. No query row
can ever be fully masked, as long as one camera or one prompt token is real.

Positions have a closed form (checked against stock transformers' ``get_rope_index``): a present camera takes
``max(rows, columns) + 2`` positions, a prompt token one, a foresight, state or action token one; missing cameras take
none. Axes: B batch, S tokens of a block, axis = (time, height, width) of multimodal RoPE.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .architecture import Architecture

BLOCKS: tuple[str, ...] = ("understanding", "foresight", "state", "actions")
"""In order of attention."""
EXPERT_OF_BLOCK: dict[str, str] = {
    "understanding": "understanding",
    "foresight": "foresight",
    "state": "action",
    "actions": "action",
}


@dataclass(frozen=True)
class Block:
    """One block, ready for the joint layers."""

    name: str
    cos: Tensor
    """[B, S, 1, head_width / 2], float32: rotary cosines, broadcast over heads."""
    sin: Tensor
    """Like ``cos``."""
    visible_keys: Tensor
    """[B, 1, 1, keys of this block and of all before it], bool: True where a query of this block may look."""

    @property
    def expert(self) -> str:
        return EXPERT_OF_BLOCK[self.name]

    def repeated(self, times: int) -> "Block":
        """The same block for a batch in which every sample stands ``times`` times in a row."""
        cos, sin, visible = (t.repeat_interleave(times, dim=0) for t in (self.cos, self.sin, self.visible_keys))
        return Block(self.name, cos, sin, visible)


def explain(blocks: tuple[str, ...] = BLOCKS) -> str:
    """A table of who (row) attends to whom (column), for docs, logs and the curious.

    >>> print(explain(("understanding", "actions")))
                   understanding        actions
    understanding              x              .
          actions              x              x
    """
    width = max(len(name) for name in blocks) + 2
    rows = [" " * width + "".join(name.rjust(width) for name in blocks)]
    for i, query in enumerate(blocks):
        rows.append(query.rjust(width) + "".join(("x" if j <= i else ".").rjust(width) for j in range(len(blocks))))
    margin = min(len(row) - len(row.lstrip()) for row in rows)
    return "\n".join(row[margin:].rstrip() for row in rows)


def rotary_frequencies(architecture: Architecture) -> Tensor:
    """Inverse frequencies [head_width / 2], float32."""
    exponent = torch.arange(0, architecture.head_width, 2, dtype=torch.float32) / architecture.head_width
    return 1.0 / (architecture.rope_theta**exponent)


def rotary_axes(architecture: Architecture) -> Tensor:
    """Which position axis (0 time, 1 height, 2 width) turns each rotary pair: [head_width / 2], int64.

    Interleaved multimodal RoPE of Qwen3-VL: pairs 1, 4, 7, ... follow height and 2, 5, 8, ... width, for as many pairs
    as their section asks for; the rest follow time.
    """
    axes = torch.zeros(architecture.head_width // 2, dtype=torch.int64)
    if architecture.rope_sections is not None:
        for axis in (1, 2):
            axes[axis : architecture.rope_sections[axis] * 3 : 3] = axis
    return axes


def understanding_positions(
    architecture: Architecture, camera_is_present: Tensor, prompt_is_valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions of camera and prompt tokens.

    Args:
        camera_is_present: [B, V] bool.
        prompt_is_valid: [B, P] bool, right-padded.

    Returns:
        positions [axes, B, S] int64 (3 axes with multimodal RoPE, else 1) and the position that follows the last valid
        token, [B]. Tokens of missing cameras and padding carry position 1, as in transformers 4; they are never seen.
    """
    batch = camera_is_present.shape[0]
    device = camera_is_present.device
    valid = torch.cat([camera_is_present.repeat_interleave(architecture.view_tokens, dim=1), prompt_is_valid], dim=1)
    if architecture.rope_sections is None:
        positions = valid.long().cumsum(dim=1) - 1
        return positions[None], positions[:, -1] + 1

    rows, columns = architecture.vision.merged_grid
    stride = max(rows, columns) + 2
    zero, row, column = (torch.arange(n, device=device) for n in (1, rows, columns))
    # Offsets inside one view: vision_start, the grid (time, height, width), vision_end.
    grid = torch.stack(
        [
            (zero[:, None] + zero).expand(rows, columns),
            row[:, None].expand(rows, columns),
            column[None, :].expand(rows, columns),
        ]
    ).flatten(1)
    edge = torch.zeros(3, 1, dtype=torch.int64, device=device)
    view = torch.cat([edge, grid + 1, edge + stride - 1], dim=1)
    present = camera_is_present.long()
    base = stride * (present.cumsum(dim=1) - present)
    images = (base[None, :, :, None] + view[:, None, None, :]).flatten(2)
    text_start = stride * present.sum(dim=1, keepdim=True)
    text = text_start + prompt_is_valid.long().cumsum(dim=1) - 1
    positions = torch.cat([images, text[None].expand(3, batch, -1)], dim=2)
    end = text_start[:, 0] + prompt_is_valid.sum(dim=1)
    return torch.where(valid[None], positions, 1), end


def following_positions(start: Tensor, valid: Tensor, *, count_padding: bool = False) -> Tensor:
    """Positions [B, S] of a block that follows position ``start`` - 1.

    Args:
        start: [B], first free position.
        valid: [B, S] bool.
        count_padding: number padded tokens too, as the reference does at inference
            (docs/differences_from_reference.md).
    """
    counted = torch.ones_like(valid) if count_padding else valid
    return start[:, None] + counted.long().cumsum(dim=1) - 1
