"""Sparse moments of a video, each decoded by itself.

Foresight reads three moments per camera: half a second ago, now, half a second ahead. LeRobot's PyAV backend opens the
file and decodes everything from the first to the last of them, 31 frames to get 3. The reader below splits such a
request where a fresh start at the keyframe before the next moment is cheaper than decoding up to it, and asks LeRobot's
own decoder for each part: the frames are the same, bit for bit. TorchCodec skips the frames between by itself, so its
requests pass through untouched; depth maps always go through PyAV.
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pyarrow
import torch
from lerobot.datasets.dataset_reader import DatasetReader
from numpy.typing import NDArray
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
    """LeRobot's reader, without the frames between the moments that were asked for, nor detours to the numbers."""

    keyframe_distances: dict[str, float]
    """In frames, by camera, from the first of its files that is read. They decide about time, never about frames."""
    cameras: frozenset[str] | None
    """The only cameras that are decoded; None for all. Samples lack the others."""

    def _get_query_timestamps(
        self, current_ts: float, query_indices: dict[str, list[int]] | None = None
    ) -> dict[str, list[float]]:
        wanted: dict[str, list[float]] = {}
        for camera in self._meta.video_keys:
            if self.cameras is not None and camera not in self.cameras:
                continue
            indices = None if query_indices is None else query_indices.get(camera)
            moments = None if indices is None else self._numbers("timestamp", indices)
            if indices is not None and moments is None:  # time stamps of another type
                return {
                    key: moments
                    for key, moments in super()._get_query_timestamps(current_ts, query_indices).items()
                    if self.cameras is None or key in self.cameras
                }
            wanted[camera] = [current_ts] if moments is None else cast(list[float], cast(Any, moments).tolist())
        return wanted

    def _query_hf_dataset(self, query_indices: dict[str, list[int]]) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        others: dict[str, list[int]] = {}
        for key, indices in query_indices.items():
            if key in self._meta.video_keys:
                continue
            numbers = self._numbers(key, indices)
            if numbers is None:
                others[key] = indices
            else:
                result[key] = numbers
        return result | cast(Any, super())._query_hf_dataset(others) if others else result

    def _numbers(self, key: str, indices: Sequence[int]) -> Tensor | None:
        """float32 rows of one episode straight from the table, [rows] or [rows, dims]; None for any other column.

        LeRobot makes Python numbers of them first and a tensor of each row, which for chunks of 50 actions takes a
        quarter of a sample's time where TorchCodec decodes the frames.
        """
        table: Any = self.hf_dataset
        arrow: Any = pyarrow
        column: Any = table.data.column(key)
        is_list = arrow.types.is_fixed_size_list(column.type)
        if (column.type.value_type if is_list else column.type) != arrow.float32() or table._indices is not None:
            return None
        mapping: Any = self._absolute_to_relative_idx
        rows = np.array(indices if mapping is None else [mapping[index] for index in indices])
        first = int(rows.min())  # an episode lies in one piece
        column = column.slice(first, int(rows.max()) - first + 1)
        if column.null_count:
            return None
        values: NDArray[np.float32] = np.concatenate(
            [(chunk.flatten() if is_list else chunk).to_numpy() for chunk in column.chunks]
        )
        if is_list:
            values = values.reshape(len(column), -1)
        return torch.from_numpy(values[rows - first])  # pyright: ignore[reportUnknownMemberType]  # partly typed by torch

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
