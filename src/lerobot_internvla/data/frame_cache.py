"""Decode every episode's video once: frames kept in memory, for small datasets.

Even three sparse moments per camera cost more to decode than a training step of the tiny policy. With
``--policy.cache_frames_gb=<limit>`` the first sample of an episode decodes all of it in one go, and every later sample
reads memory. Frames come from LeRobot's own decoder; a test compares them bit by bit.
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import logging
import math
from typing import Any, ClassVar

from lerobot.datasets.dataset_reader import DatasetReader
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

from .video_reader import SparseVideoReader, take_over

logger = logging.getLogger(__name__)


class FrameCachingReader(SparseVideoReader):
    """A reader that keeps the decoded episodes of this process up to a limit, and reads the others sparsely."""

    limit_bytes: int
    frames: dict[tuple[int, str], Tensor]
    """(episode, camera) -> [frames, 3, height, width]."""
    _warned: ClassVar[bool] = False

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes start empty: frames are cheaper to decode than to send.
        return {**self.__dict__, "frames": {}}

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded frames held now; never more than ``limit_bytes``."""
        return sum(frames.nbytes for frames in self.frames.values())

    def _query_videos(self, query_timestamps: dict[str, list[float]], ep_idx: int) -> dict[str, Tensor]:
        self._keep_episode(ep_idx, list(query_timestamps))
        result: dict[str, Tensor] = {}
        others: dict[str, list[float]] = {}
        for camera, timestamps in query_timestamps.items():
            frames = self.frames.get((ep_idx, camera))
            if frames is None:
                others[camera] = timestamps
            else:
                result[camera] = frames[[round(t * self._meta.fps) for t in timestamps]].squeeze(0)
        return result | super()._query_videos(others, ep_idx) if others else result

    def _keep_episode(self, ep_idx: int, cameras: list[str]) -> None:
        """Decode and keep all frames of an episode, where they fit and are not depth."""
        meta: Any = self._meta
        length = int(meta.episodes[ep_idx]["length"])
        room = self.limit_bytes - self.cached_bytes
        fitting: list[str] = []
        for camera in cameras:
            if (ep_idx, camera) in self.frames or camera in self._meta.depth_keys:
                continue
            size = length * math.prod(meta.features[camera]["shape"]) * (1 if self._return_uint8 else 4)
            if size > room:
                self._warn()
                continue
            room -= size
            fitting.append(camera)
        if not fitting:
            return
        every = [index / self._meta.fps for index in range(length)]
        for camera, frames in super()._query_videos(dict.fromkeys(fitting, every), ep_idx).items():
            self.frames[ep_idx, camera] = frames if length > 1 else frames[None]

    def _warn(self) -> None:
        if not FrameCachingReader._warned:
            FrameCachingReader._warned = True
            logger.warning(
                "The frame cache is full (%.1f GB per worker): further episodes are decoded for every sample. "
                "Raise --policy.cache_frames_gb if there is memory.",
                self.limit_bytes / 1e9,
            )


def cache_frames(dataset: Any, limit_gb: float) -> None:
    """Let ``dataset`` (a LeRobotDataset) keep decoded frames, at most ``limit_gb`` GB in every process that reads it.

    Raises:
        InternVLAError: the dataset streams, so that there are no episodes to keep.
    """
    reader = getattr(dataset, "reader", None)
    if not isinstance(reader, DatasetReader):
        raise InternVLAError(
            f"policy.cache_frames_gb={limit_gb} needs a local dataset; {type(dataset).__name__} streams. "
            "Drop --dataset.streaming=true or set --policy.cache_frames_gb=0."
        )
    keep_frames(reader, limit_gb)


def keep_frames(reader: DatasetReader, limit_gb: float) -> None:
    """``cache_frames`` for a reader without a dataset around it."""
    take_over(reader)
    reader.__class__ = FrameCachingReader
    assert isinstance(reader, FrameCachingReader)
    reader.limit_bytes, reader.frames = int(limit_gb * 1e9), {}
