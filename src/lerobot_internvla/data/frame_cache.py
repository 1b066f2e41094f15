"""Decode every episode's video once: frames kept in memory, for small datasets.

Foresight reads three moments per camera. LeRobot's PyAV reader opens the file and decodes the whole span between them
for every sample, which costs more than a training step of the tiny policy. With ``--policy.cache_frames_gb=<limit>``
the first sample of an episode decodes all of it, and every later sample reads memory.

LeRobot offers no hook for this, so its function ``lerobot.datasets.factory.make_dataset`` is wrapped once when the
plugin is imported: it calls the original and, only when the policy asks for a cache, gives the dataset's reader the
class below. Frames come from LeRobot's own decoder; a test compares them bit by bit.
"""

import functools
import logging
import sys
from typing import Any, ClassVar

from lerobot.datasets.dataset_reader import DatasetReader  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

logger = logging.getLogger(__name__)


class FrameCachingReader(DatasetReader):
    """LeRobot's reader, with the decoded episodes of this process kept up to a limit."""

    _internvla_limit_bytes: int
    _internvla_frames: dict[tuple[int, str], Tensor]
    """(episode, camera) -> [frames, 3, height, width]."""
    _warned: ClassVar[bool] = False

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes start empty: frames are cheaper to decode than to send.
        return {**self.__dict__, "_internvla_frames": {}}

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded frames held now."""
        return sum(frames.nbytes for frames in self._internvla_frames.values())

    def _query_videos(self, query_timestamps: dict[str, list[float]], ep_idx: int) -> dict[str, Tensor]:
        fps = self._meta.fps
        result: dict[str, Tensor] = {}
        for camera, timestamps in query_timestamps.items():
            frames = self._episode(ep_idx, camera)
            if frames is None:
                result |= super()._query_videos({camera: timestamps}, ep_idx)
            else:
                result[camera] = frames[[round(t * fps) for t in timestamps]].squeeze(0)
        return result

    def _episode(self, ep_idx: int, camera: str) -> Tensor | None:
        """All frames of one episode; None when they do not fit or are depth."""
        if camera in self._meta.depth_keys:
            return None
        key = (ep_idx, camera)
        if key not in self._internvla_frames:
            if self.cached_bytes >= self._internvla_limit_bytes:
                if not FrameCachingReader._warned:
                    FrameCachingReader._warned = True
                    logger.warning(
                        "The frame cache is full (%.1f GB per worker): further episodes are decoded for every sample. "
                        "Raise --policy.cache_frames_gb if there is memory.",
                        self._internvla_limit_bytes / 1e9,
                    )
                return None
            episodes: Any = self._meta.episodes  # LeRobot loads it before the first item
            length = int(episodes[ep_idx]["length"])
            every = [index / self._meta.fps for index in range(length)]
            decoded = super()._query_videos({camera: every}, ep_idx)[camera]
            self._internvla_frames[key] = decoded if length > 1 else decoded[None]
        return self._internvla_frames[key]


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
    reader.__class__ = FrameCachingReader
    reader._internvla_limit_bytes = int(limit_gb * 1e9)  # pyright: ignore[reportAttributeAccessIssue]
    reader._internvla_frames = {}  # pyright: ignore[reportAttributeAccessIssue]


def install() -> None:
    """Wrap ``lerobot.datasets.factory.make_dataset``, once, if LeRobot's training is what imported us."""
    factory = sys.modules.get("lerobot.datasets.factory")
    if factory is None or hasattr(factory.make_dataset, "__wrapped__"):
        return
    original = factory.make_dataset

    @functools.wraps(original)
    def make_dataset(cfg: Any) -> Any:
        dataset = original(cfg)
        limit_gb = getattr(getattr(cfg, "policy", None), "cache_frames_gb", 0.0)
        if limit_gb > 0:
            cache_frames(dataset, limit_gb)
        return dataset

    vars(factory)["make_dataset"] = make_dataset
