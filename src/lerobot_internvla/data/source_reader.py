"""One source of a mixture, opened to read frames: LeRobot's own reader, without two things that grow with the dataset.

``LeRobotDataset`` asks for the files of every single episode when it is opened (0.4 ms per episode of three cameras, in
every worker of every rank), and keeps a dictionary of all frames when it is asked for some episodes (up to 190 bytes
each). Here every file is looked for once, and the row of a frame is a sum.
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.import_utils import get_safe_default_video_backend

from lerobot_internvla.errors import InternVLAError

from .dataset_meta import Place, missing_files, read_meta
from .sources import Source
from .video_reader import take_over


class RowOfFrame:
    """``rows[index]``: the row of the frame with that absolute index, in a table that holds some episodes only.

    Equal to LeRobot's dictionary for the same episodes; it grows with them instead of with their frames.

    Args:
        starts: absolute index of the first frame of each episode in the table, ascending.
        lengths: frames of each.
    """

    def __init__(self, starts: Sequence[int], lengths: Sequence[int]) -> None:
        self._starts, self._lengths = list(starts), list(lengths)
        self._rows = [0, *accumulate(self._lengths)]

    def __len__(self) -> int:
        return self._rows[-1]

    def __getitem__(self, index: int) -> int:
        episode = bisect_right(self._starts, index) - 1
        if episode < 0 or index - self._starts[episode] >= self._lengths[episode]:
            raise KeyError(index)
        return self._rows[episode] + index - self._starts[episode]


class SourceReader:
    """Frames of one source, by their absolute index.

    Args:
        source: of the mixture.
        places: positions in ``source.episodes`` of the only episodes that are needed, ascending; only their files are
            fetched from the Hub. None: the whole table of the dataset, which all workers of a computer then share.
        delta_timestamps, tolerance_s, video_backend: as for ``LeRobotDataset``; None is its default backend.

    Raises:
        InternVLAError: the table does not hold the frames that ``meta/`` says.
    """

    reader: DatasetReader

    def __init__(
        self,
        source: Source,
        places: Sequence[int] | None = None,
        *,
        delta_timestamps: dict[str, list[float]],
        tolerance_s: float,
        video_backend: str | None,
    ) -> None:
        cameras = source.features.cameras.values()
        meta = LeRobotDatasetMetadata(**source.lerobot_arguments)
        found = read_meta(Place(source.name, None, meta.root, None))
        wanted = np.asarray(source.episodes)[slice(None) if places is None else list(places)]
        if missing_files(found, wanted, list(cameras)):  # of a dataset on the Hub; folders were looked at before
            some = None if places is None else wanted.tolist()
            LeRobotDataset(**source.lerobot_arguments, episodes=some, video_backend="pyav")  # it downloads
        if places is None and missing_files(found, np.arange(len(found.episode_lengths)), []):
            places = range(source.num_episodes)  # a partial copy: rows are not absolute indices
        self.reader = DatasetReader(
            meta=meta,
            root=meta.root,
            episodes=None if places is None else wanted.tolist(),
            tolerance_s=tolerance_s,
            video_backend=video_backend or get_safe_default_video_backend(),
            delta_timestamps=delta_timestamps,
            image_transforms=None,
            return_uint8=True,
        )
        take_over(self.reader, frozenset(cameras))
        private = cast(Any, self.reader)  # the public way to load the table builds the dictionary
        private.hf_dataset = private._load_hf_dataset()
        starts, lengths = found.episode_starts[wanted], found.episode_lengths[wanted]
        first_rows = starts
        if places is not None:
            private._absolute_to_relative_idx = RowOfFrame(starts.tolist(), lengths.tolist())
            first_rows = np.cumsum(lengths) - lengths
        table = private.hf_dataset.data
        if len(table) < first_rows[-1] + lengths[-1] or table.column("index").take(first_rows).to_pylist() != list(
            starts
        ):
            raise InternVLAError(
                f"Source {source.name!r}: the table in {meta.root / 'data'} does not hold the frames that "
                f"{meta.root / 'meta'} says, or in another order. Copy, download or record the dataset again."
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """What ``LeRobotDataset`` returns for the frame with this absolute index."""
        rows = cast(Any, self.reader)._absolute_to_relative_idx
        return cast(Any, self.reader).get_item(index if rows is None else rows[index])
