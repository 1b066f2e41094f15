"""Sparse moments of a video, each decoded by itself.

Foresight reads three moments per camera: half a second ago, now, half a second ahead. LeRobot's PyAV backend opens the
file and decodes everything from the first to the last of them, 31 frames to get 3. The reader below splits such a
request where a fresh start at the keyframe before the next moment is cheaper than decoding up to it, and asks LeRobot's
own decoder for each part: the frames are the same, bit for bit. TorchCodec skips the frames between by itself, so its
requests pass through untouched; depth maps always go through PyAV.
"""

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import torch
from lerobot.datasets.dataset_reader import DatasetReader  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

SPAN_BACKENDS = ("pyav", "video_reader")
"""Backends that decode everything between two moments; the second is LeRobot's old name for the first."""
START_FRAMES = 4
"""What opening a file and seeking costs, in decoded frames: 2 to 6 at common picture sizes (docs/performance.md)."""
PROBED_PACKETS = 256
"""Packets in which keyframes are counted, undecoded: more than a file without further keyframes is worth."""


def split_into_parts(timestamps: Iterable[float], longest_gap: float) -> list[list[float]]:
    """Timestamps without duplicates, in order, split wherever two neighbours are further apart than ``longest_gap``.

    Args:
        timestamps: in seconds, in any order; at least one.
        longest_gap: in seconds.
    """
    first, *others = sorted(set(timestamps))
    parts = [[first]]
    for moment in others:
        if moment - parts[-1][-1] > longest_gap:
            parts.append([])
        parts[-1].append(moment)
    return parts


def frames_per_keyframe(video: Path) -> float:
    """Average distance of keyframes near the start of a file, in frames; nothing is decoded."""
    is_keyframe: list[bool] = []
    with av.open(str(video)) as container:
        packets = itertools.islice(container.demux(container.streams.video[0]), PROBED_PACKETS)
        is_keyframe += [packet.is_keyframe for packet in packets if packet.size]
    return len(is_keyframe) / max(1, sum(is_keyframe))


class SparseVideoReader(DatasetReader):
    """LeRobot's reader, without the frames between the moments that were asked for."""

    keyframe_distances: dict[str, float]
    """In frames, by camera, from the first of its files that is read. They decide about time, never about frames."""
    cameras: frozenset[str] | None
    """The only cameras that are decoded; None for all. Samples lack the others."""

    def _get_query_timestamps(
        self, current_ts: float, query_indices: dict[str, list[int]] | None = None
    ) -> dict[str, list[float]]:
        wanted = super()._get_query_timestamps(current_ts, query_indices)
        return {key: moments for key, moments in wanted.items() if self.cameras is None or key in self.cameras}

    def _query_videos(self, query_timestamps: dict[str, list[float]], ep_idx: int) -> dict[str, Tensor]:
        """Frames of one episode.

        Args:
            query_timestamps: camera -> seconds since the start of the episode.
            ep_idx: the episode.

        Returns:
            camera -> [timestamps, channels, height, width], without the first dim where there is one timestamp.
        """
        parts = [
            (camera, part)
            for camera, timestamps in query_timestamps.items()
            for part in self._parts(camera, timestamps, ep_idx)
        ]
        stock = super()._query_videos
        if len(parts) == len(query_timestamps) and all(part == query_timestamps[camera] for camera, part in parts):
            return stock(query_timestamps, ep_idx)

        def decode(camera: str, part: list[float]) -> Tensor:
            frames = stock({camera: part}, ep_idx)[camera]
            return frames if len(part) > 1 else frames[None]

        # As many threads as LeRobot takes: one per camera. Decoding releases the interpreter's lock.
        with ThreadPoolExecutor(max_workers=len(query_timestamps)) as pool:
            decoded = pool.map(decode, *zip(*parts, strict=True))
        frame_at: dict[tuple[str, float], Tensor] = {}
        for (camera, part), frames in zip(parts, decoded, strict=True):
            frame_at |= {(camera, moment): frame for moment, frame in zip(part, frames, strict=True)}
        return {
            camera: torch.stack([frame_at[camera, moment] for moment in timestamps]).squeeze(0)
            for camera, timestamps in query_timestamps.items()
        }

    def _parts(self, camera: str, timestamps: Sequence[float], ep_idx: int) -> list[list[float]]:
        """What to decode in one go."""
        if self._video_backend not in SPAN_BACKENDS and camera not in self._meta.depth_keys:
            return [list(timestamps)]
        if len(timestamps) == 1:
            return [list(timestamps)]
        if camera not in self.keyframe_distances:
            video = self.root / self._meta.get_video_file_path(ep_idx, camera)
            self.keyframe_distances[camera] = frames_per_keyframe(video)
        # On average, half of the frames between two keyframes come before the moment that is wanted.
        longest_gap = int(START_FRAMES + self.keyframe_distances[camera] / 2)
        return split_into_parts(
            timestamps, (longest_gap + 0.5) / self._meta.fps
        )  # half a frame: timestamps are rounded


def read_sparsely(dataset: Any, cameras: frozenset[str] | None = None) -> None:
    """Let ``dataset`` (a LeRobotDataset) decode no frame that nobody asked for; a dataset that streams stays as it is.

    Frames, errors and everything else of the dataset stay the same. Asking twice changes nothing.

    Args:
        cameras: videos that are decoded; samples lack the others. None: all of them, as LeRobot does.
    """
    reader = getattr(dataset, "reader", None)
    if isinstance(reader, DatasetReader):
        take_over(reader, cameras)


def take_over(reader: DatasetReader, cameras: frozenset[str] | None = None) -> None:
    """``read_sparsely`` for a reader without a dataset around it."""
    if not isinstance(reader, SparseVideoReader):
        reader.__class__ = SparseVideoReader  # LeRobot gives no say in which class it builds
        assert isinstance(reader, SparseVideoReader)
        reader.keyframe_distances = {}
        reader.cameras = cameras
