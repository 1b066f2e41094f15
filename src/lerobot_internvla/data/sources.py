"""From a mixture file to datasets that are really there: weights, frames, cameras, rates, checked before training.

``load_mixture(path)`` reads the file (``mixture_file``) and the ``meta/`` folder of every dataset it names, and returns a
``Mixture``: one ``Source`` per dataset, with weights that sum to one. No picture and no data table is opened here.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.embodiments.matching import SourceFeatures
from lerobot_internvla.embodiments.spec import Embodiment


@dataclass(frozen=True, eq=False)
class Source:
    """One dataset of a mixture."""

    index: int
    """Position in ``Mixture.sources``."""
    name: str
    """As in the file; ``<name>/<folder or repo name>`` for a dataset that a glob found."""
    repo_id: str
    """owner/name; ``local/<folder>`` where the file names a folder only."""
    root: Path
    """Folder of the dataset on this machine; it holds at least ``meta/``."""
    revision: str | None
    embodiment: Embodiment
    features: SourceFeatures
    trains_actions: bool
    """False: the source trains foresight only (``supervision: foresight``)."""
    weight: float
    """Share of all draws; sums to 1 over the sources of a mixture."""
    dataset_fps: float
    """Frames per second of the recording."""
    fps: float
    """Frames per second at which actions and foresight step through it."""
    frame_stride: int
    """``dataset_fps / fps``, a whole number."""
    interval_frames: int
    """Foresight interval in frames of the dataset, a multiple of ``frame_stride``."""
    interval_s: float
    """The same in seconds: what was realised of ``Mixture.foresight_interval_s``."""
    episodes: tuple[int, ...]
    """Episode indices in use, ascending."""
    episode_starts: NDArray[np.int64]
    """Absolute index of the first frame of each of ``episodes``, [episodes]."""
    episode_lengths: NDArray[np.int64]
    """Frames of each of ``episodes``, [episodes]."""

    @cached_property
    def num_frames(self) -> int:
        """Frames in use; each may be drawn, whatever ``frame_stride`` is."""
        return int(self.episode_lengths.sum())

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    @property
    def hours(self) -> float:
        return self.num_frames / self.dataset_fps / 3600


@dataclass(frozen=True, eq=False)
class Mixture:
    """Many datasets as one stream. Plain values and arrays: it pickles, for data loader workers."""

    path: Path
    sources: tuple[Source, ...]
    foresight_interval_s: float
    """As asked for; ``Source.interval_s`` is what a frame rate makes of it."""
    rank_strategy: str
    """``exact`` or ``lpt``."""
    fingerprint: str
    """SHA-256 of what is trained on (settings, features, episodes), not of where it lies on this machine."""
    embodiments: tuple[Embodiment, ...]
    """Distinct ones, in the order of first use."""


def load_mixture(path: str | Path) -> Mixture:
    """Read a mixture file and the metadata of its datasets."""
    raise NotImplementedError
