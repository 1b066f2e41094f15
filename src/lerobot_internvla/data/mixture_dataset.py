"""A mixture as the dataset that stock ``lerobot-train`` reads: it looks like one LeRobotDataset and never ends.

    position (LeRobot's sampler counts 0, 1, 2, ...)  ->  draw of this rank  ->  (source, frame)  ->  canonical sample

Every rank plans alone and alike (``rank_plan``), draws from its own pieces (``order``) and opens a source only when a
frame of it is due. Nothing random happens here: sample ``position`` is a function of the mixture file, the seed, the
number of ranks, the rank and the batch size, whichever worker asks for it and whenever.
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor
from torch.utils.data import Dataset

from lerobot_internvla.errors import InternVLAError

from .canonical import CAMERA_KEYS, SampleShape, canonical_sample, delta_timestamps
from .exact_resume import InOrder
from .frame_cache import keep_frames
from .latent_cache import NO_AUGMENTATION, LatentCache
from .order import DrawOrder
from .rank_plan import RankPlan, plan_ranks
from .source_reader import SourceReader
from .sources import Mixture, Source

logger = logging.getLogger(__name__)

VIRTUAL_LENGTH = 2**48
"""Positions before the order would start again: never. A constant, so that ``--steps`` may be raised on resume."""
MAX_OPEN_SOURCES = 64
"""Sources that one process keeps open; the least recently used is closed for the next one."""


class MixtureMetadata:
    """What LeRobot's commands ask of ``dataset.meta``. Its features are those of a canonical sample."""

    has_language_columns = False
    robot_type = "mixture"
    cached_latents: LatentCache | None = None
    """What the dataset reads latents from; the policy compares it with its own image tokenizer."""

    def __init__(self, mixture: Mixture, shape: SampleShape, repo_id: str, *, positions_per_step: int) -> None:
        self.mixture = mixture
        self.repo_id = repo_id
        self.revision = None
        self.root = mixture.path.parent
        self.total_frames = sum(source.num_frames for source in mixture.sources)
        self.total_episodes = sum(source.num_episodes for source in mixture.sources)
        self.fps = None
        self.camera_keys = list(CAMERA_KEYS.values())
        self.video_keys = list(self.camera_keys)
        self.image_keys: list[str] = []
        self.depth_keys: list[str] = []
        self.episodes = {"dataset_from_index": InOrder([0], positions_per_step), "dataset_to_index": [VIRTUAL_LENGTH]}
        picture = {"dtype": "video", "shape": (*shape.view_size, 3), "names": ["height", "width", "channels"]}
        self.features: dict[str, dict[str, Any]] = dict.fromkeys(self.camera_keys, picture)
        for key, width in ((OBS_STATE, shape.max_state_dim), (ACTION, shape.max_action_dim)):
            self.features[key] = {"dtype": "float32", "shape": (width,), "names": None}
        # The policy normalises, by robot; LeRobot's own normaliser is told to change nothing.
        self.stats = {
            key: {
                "mean": np.zeros(feature["shape"]),
                "std": np.ones(feature["shape"]),
                "min": -np.ones(feature["shape"]),
                "max": np.ones(feature["shape"]),
                "count": np.array([self.total_frames]),
            }
            for key, feature in self.features.items()
            if key not in self.camera_keys
        }


@dataclass(frozen=True)
class ReadSettings:
    """How frames are read; the flags of ``lerobot-train``."""

    video_backend: str | None = None
    tolerance_s: float = 1e-4
    image_transforms: Callable[[Tensor], Tensor] | None = None
    cache_frames_gb: float = 0.0
    max_open_sources: int = MAX_OPEN_SOURCES


class MixtureDataset(Dataset[dict[str, Any]]):
    """Samples of one rank.

    Args:
        mixture: from ``load_mixture``.
        shape: what the policy wants.
        repo_id: the run's name for the mixture (``--dataset.repo_id``), for cards and logs.
        seed: of the run.
        batch_size: samples per rank and step.
        rank, world_size: of this process.
        latents: from ``open_latents``, if ``shape.cached_latents``.

    Raises:
        InternVLAError: latents that are wanted and not given, or given together with image transforms.
    """

    episodes = None
    absolute_to_relative_idx = None

    def __init__(
        self,
        mixture: Mixture,
        shape: SampleShape,
        *,
        repo_id: str,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        settings: ReadSettings | None = None,
        latents: LatentCache | None = None,
    ) -> None:
        if shape.cached_latents != (latents is not None):
            raise InternVLAError(
                f"policy.latent_cache={shape.cached_latents}, but latents are {'' if latents else 'not '}given. Pass "
                "latents=open_latents(...) with policy.latent_cache=true, and none otherwise."
            )
        if latents is not None and settings is not None and settings.image_transforms is not None:
            raise InternVLAError(NO_AUGMENTATION)
        self.mixture = mixture
        self.shape = shape
        self.meta = MixtureMetadata(mixture, shape, repo_id, positions_per_step=batch_size * world_size)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.settings = settings or ReadSettings()
        self.meta.cached_latents = latents
        self.plan: RankPlan = plan_ranks(
            [source.weight for source in mixture.sources],
            [source.episode_lengths for source in mixture.sources],
            world_size,
            mixture.rank_strategy,
        )
        self.pieces = self.plan.of_rank(rank)
        self.order = DrawOrder(self.pieces, seed=seed, rank=rank)
        self._embodiment_index = {robot.name: i for i, robot in enumerate(mixture.embodiments)}
        self._open: OrderedDict[int, SourceReader] = OrderedDict()

    @property
    def num_frames(self) -> int:
        """Frames of the mixture, over all ranks; a frame of a heavy source is drawn more often than once per these."""
        return self.meta.total_frames

    @property
    def num_episodes(self) -> int:
        return self.meta.total_episodes

    def __len__(self) -> int:
        return VIRTUAL_LENGTH

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open what they need: files and decoders do not travel.
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.sample(*self.locate(position))

    def sample(self, source: Source, frame: int) -> dict[str, Any]:
        """The canonical sample at a frame of a source, by its place among the frames in use."""
        place, offset = self._place(source, frame)
        item = self._reader(source)[int(source.episode_starts[place]) + offset]
        cache = self.meta.cached_latents
        latents = None if cache is None else cache.moments(source, place, offset)
        robot = self._embodiment_index[source.embodiment.name]
        return canonical_sample(item, source, robot, self.shape, self.settings.image_transforms, latents)

    def locate(self, position: int) -> tuple[Source, int]:
        """Which frame is at a position of the sampler: the source, and the frame's place among its frames in use.

        Raises:
            InternVLAError: the position belongs to another rank.
        """
        # accelerate hands batch b to rank b % world_size, so a rank's own batches are every world_size-th.
        batch, place = divmod(position, self.batch_size)
        if batch % self.world_size != self.rank:
            raise InternVLAError(
                f"Rank {self.rank} of {self.world_size} was asked for position {position}, which is in batch {batch} "
                f"of {self.batch_size} and so belongs to rank {batch % self.world_size}. The mixture expects LeRobot's "
                "own data loader; in your own loop ask each rank for its own batches."
            )
        draw = batch // self.world_size * self.batch_size + place
        piece, frame = self.order(draw)
        return self.mixture.sources[self.pieces[piece].source], frame

    @staticmethod
    def _place(source: Source, frame: int) -> tuple[int, int]:
        """A frame's episode, as a place in ``source.episodes``, and its place in that. O(log episodes)."""
        ends = source.episode_ends
        episode = int(np.searchsorted(ends, frame, side="right"))
        before = int(ends[episode - 1]) if episode else 0
        return episode, frame - before

    def _reader(self, source: Source) -> SourceReader:
        if source.index in self._open:
            self._open.move_to_end(source.index)
            return self._open[source.index]
        if len(self._open) >= self.settings.max_open_sources:
            self._open.popitem(last=False)
        opened = self._open[source.index] = self._open_source(source)
        return opened

    def _open_source(self, source: Source) -> SourceReader:
        settings = self.settings
        opened = SourceReader(
            source,
            # Only what this rank reads is fetched from the Hub. A local folder is there anyway, and memory-mapped.
            self._episodes_of_rank(source) if source.from_hub else None,
            delta_timestamps=delta_timestamps(source, self.shape),
            tolerance_s=settings.tolerance_s,
            video_backend=settings.video_backend,
        )
        if settings.cache_frames_gb > 0:
            share = sum(p.mass for p in self.pieces if p.source == source.index) / sum(p.mass for p in self.pieces)
            keep_frames(opened.reader, settings.cache_frames_gb * share)
        return opened

    def _episodes_of_rank(self, source: Source) -> list[int]:
        """Places in ``source.episodes``."""
        wanted = np.zeros(source.num_episodes, dtype=bool)
        for piece in self.pieces:
            if piece.source == source.index:
                first, last = np.searchsorted(source.episode_ends, [piece.first_frame, piece.last_frame - 1], "right")
                wanted[int(first) : int(last) + 1] = True
        return np.flatnonzero(wanted).tolist()

    @property
    def open_sources(self) -> tuple[str, ...]:
        """Names of the sources that this process has open now."""
        return tuple(self.mixture.sources[index].name for index in self._open)
