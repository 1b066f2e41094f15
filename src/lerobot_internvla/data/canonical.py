"""One sample of any robot -> the sample that the policy trains on: the same keys, shapes and types for every source.

    cameras   three slots, black where a robot has none; frames at -interval, 0, +interval, letterboxed to the view
    state     the robot's features in the embodiment's order, robot units, zero-padded to the policy's width
    actions   ``chunk_size`` of them, one per step of the source's rate: step k is what was commanded k / fps seconds
              after the frame "now", with k = 0 at that frame, as in LeRobot. Absolute, robot units, zero-padded
    masks     which cameras exist, which frames and steps lie outside the episode, which latent cells are letterbox bars

Normalisation and relative actions are the policy's business (``ActionSpaces``): a sample carries robot units and says
which robot it is of.
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor

from lerobot_internvla.batch_keys import (
    CACHED_LATENTS,
    CAMERA_IS_PRESENT,
    EMBODIMENT_INDEX,
    LATENT_IS_CONTENT,
    SOURCE_INDEX,
)
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.images import content_box, content_mask, letterbox
from lerobot_internvla.model.architecture import CAMERA_SLOTS

from .latent_cache import CachedMoments
from .sources import Source

CAMERA_KEYS = {slot: f"{OBS_IMAGES}.{slot}" for slot in CAMERA_SLOTS}
"""Slot -> key of its frames in a canonical sample."""


@dataclass(frozen=True)
class SampleShape:
    """What the policy wants its samples to look like."""

    view_size: tuple[int, int]
    image_size: tuple[int, int]
    """(height, width) in pixels that the image tokenizer encodes."""
    latent_size: tuple[int, int]
    chunk_size: int
    max_state_dim: int
    max_action_dim: int
    use_foresight: bool
    cached_latents: bool = False
    """Latents of past, now and future are read from disk, and only the frame "now" is decoded."""

    @classmethod
    def of(cls, config: InternVLAA1Config) -> "SampleShape":
        architecture = config.architecture
        return cls(
            view_size=architecture.view_size,
            image_size=architecture.image_tokenizer.image_size,
            latent_size=architecture.image_tokenizer.latent_size,
            chunk_size=config.chunk_size,
            max_state_dim=architecture.max_state_dim,
            max_action_dim=architecture.max_action_dim,
            use_foresight=config.use_foresight,
            cached_latents=config.latent_cache,
        )

    @property
    def moments(self) -> int:
        """Per camera: past, now, future; or now alone."""
        return 3 if self.use_foresight else 1

    @property
    def frames(self) -> int:
        """Moments of which a sample has the frame."""
        return 1 if self.cached_latents else self.moments


def delta_timestamps(source: Source, shape: SampleShape) -> dict[str, list[float]]:
    """What to ask of the source's ``LeRobotDataset``, in seconds relative to "now", whole frames of the dataset."""
    interval = source.interval_frames / source.dataset_fps
    moments = [-interval, 0.0, interval] if shape.frames == 3 else [0.0]
    deltas = dict.fromkeys(source.features.cameras.values(), moments)
    if source.trains_actions:
        steps = [step * source.frame_stride / source.dataset_fps for step in range(shape.chunk_size)]
        deltas |= dict.fromkeys(source.features.action_keys, steps)
    return deltas


def canonical_sample(
    item: Mapping[str, Any],
    source: Source,
    embodiment_index: int,
    shape: SampleShape,
    image_transforms: Callable[[Tensor], Tensor] | None = None,
    latents: CachedMoments | None = None,
) -> dict[str, Any]:
    """A sample of ``source`` as the policy trains on it.

    Args:
        item: of the source's ``LeRobotDataset``, asked with ``delta_timestamps``.
        embodiment_index: of the source's robot in the mixture.
        image_transforms: LeRobot's augmentation; once per camera, the same for its three frames.
        latents: from a cache, if ``shape.cached_latents``.

    Returns:
        ``observation.images.<slot>`` uint8 [T, 3, height, width] (T = 1 with cached latents) and ``..._is_pad`` bool
        [3, or 1 without foresight]; ``observation.state``
        float32 [S]; ``action`` float32 [K, A] and ``action_is_pad`` bool [K]; the keys of batch_keys.py; ``task``.
    """
    sample: dict[str, Any] = {"task": item["task"]}
    content: list[Tensor] = []
    for slot, key in CAMERA_KEYS.items():
        theirs = source.features.cameras.get(slot)
        frames = None if theirs is None else stacked(item[theirs], shape.frames)
        if frames is not None and image_transforms is not None:
            frames = image_transforms(frames)
        black = torch.zeros(shape.frames, 3, *shape.view_size, dtype=torch.uint8)
        sample[key] = black if frames is None else to_view(frames, shape.view_size)
        is_pad = item.get(f"{theirs}_is_pad") if latents is None else latents.is_pad
        if theirs is None or is_pad is None:
            is_pad = torch.full((shape.moments,), theirs is None)
        sample[f"{key}_is_pad"] = is_pad
        content.append(_content(None if frames is None else tuple(frames.shape[-2:]), shape))
    sample[CAMERA_IS_PRESENT] = torch.tensor([slot in source.features.cameras for slot in CAMERA_SLOTS])
    sample[LATENT_IS_CONTENT] = torch.stack(content)
    if latents is not None:
        sample[CACHED_LATENTS] = latents.values
    sample[OBS_STATE] = torch.zeros(shape.max_state_dim)
    sample[ACTION] = torch.zeros(shape.chunk_size, shape.max_action_dim)
    sample["action_is_pad"] = torch.ones(shape.chunk_size, dtype=torch.bool)
    # A robot without actions has no statistics, hence no state that the model could read.
    if source.features.state_keys and source.embodiment.action_dim:
        state = _joined(item, source.features.state_keys)
        sample[OBS_STATE][: state.shape[-1]] = state
    if source.trains_actions:
        actions = _joined(item, source.features.action_keys)
        sample[ACTION][:, : actions.shape[-1]] = actions
        sample["action_is_pad"] = item[f"{source.features.action_keys[0]}_is_pad"]
    sample[EMBODIMENT_INDEX] = torch.tensor(embodiment_index)
    sample[SOURCE_INDEX] = torch.tensor(source.index)
    return sample


def _joined(item: Mapping[str, Any], keys: Sequence[str]) -> Tensor:
    """Features side by side. LeRobot gives a vector of one as a plain number."""
    is_chunk = f"{keys[0]}_is_pad" in item
    wanted = 2 if is_chunk else 1
    parts = [part[..., None] if part.ndim < wanted else part for part in (item[key].float() for key in keys)]
    return torch.cat(parts, dim=-1)


def stacked(frames: Tensor, count: int) -> Tensor:
    """[T, 3, height, width]; LeRobot leaves out the first axis of a single frame."""
    frames = frames[None] if frames.ndim == 3 else frames
    if frames.shape[0] != count or frames.shape[1] != 3:
        raise InternVLAError(
            f"A camera delivers frames of shape {tuple(frames.shape)}, expected [{count}, 3, height, width]. Depth and "
            "grey cameras cannot be used: leave them out of the embodiment or of the source's 'cameras'."
        )
    return frames


def to_view(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Decoded frames [T, 3, height, width] as uint8 [T, 3, *size]."""
    if frames.dtype == torch.uint8:
        return letterbox_bytes(frames, size)
    # Pictures that lie in the table come as floats. Rounding moves a value by half of one of 255 levels.
    return letterbox(frames, size).mul(255).round_().to(torch.uint8)


def letterbox_bytes(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """``images.letterbox`` in whole numbers: uint8 [T, 3, height, width] -> uint8 [T, 3, *size].

    The same geometry; values are at most one of 255 levels away from the policy's own letterbox rounded to bytes, where
    a video codec is several away. It takes a tenth of the time at 480 x 640, and reading would wait for it.
    """
    height, width = frames.shape[-2:]
    if (height, width) == size:
        return frames
    top, left, bottom, right = content_box(height, width, size)
    frames = F.interpolate(frames, size=(bottom - top, right - left), mode="bilinear", align_corners=False)
    view = torch.zeros(len(frames), 3, *size, dtype=torch.uint8)
    view[..., top:bottom, left:right] = frames
    return view


@lru_cache(maxsize=256)
def _content(frame_size: tuple[int, int] | None, shape: SampleShape) -> Tensor:
    """Latent cells that show the scene, [h, w]; all of them for a camera that is not there (its mask says so)."""
    if frame_size is None:
        return torch.ones(shape.latent_size, dtype=torch.bool)
    box = content_box(*frame_size, shape.view_size)
    return content_mask(box, shape.view_size, shape.image_size, shape.latent_size)
