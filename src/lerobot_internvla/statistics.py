"""Mean and standard deviation of states and actions: exact in float64, from a LeRobot dataset, cached by content.

In goes a dataset's metadata (LeRobot's ``LeRobotDatasetMetadata``); out comes one frozen ``Statistics`` value, which
``ActionSpace.set_statistics`` turns into buffers. Axes: N samples, D dims (state or action), frames t, chunk steps k.

Two kinds of action statistics exist, and a ``Statistics`` says which one it is:

    absolute   action[t], every frame once. LeRobot's own ``meta/stats.json`` holds these and is used when it is sound.
    relative   action[t + k] - mask * state[t], pooled over exactly the pairs that training uses: every frame t starts a
               window, k = 0 .. chunk_size - 1, as long as t + k lies in the same episode (later steps are padding,
               which the loss masks). One mean and one standard deviation per dim, shared by all steps k.

LeRobot's ``compute_relative_action_stats`` differs in three ways: it skips windows that reach past the end of their
episode (and thus every episode shorter than the chunk), works in float32, and is not run by training.

Numbers are never E[x^2] - E[x]^2: that loses all digits when a joint moves little around a large mean. Samples are
centred first, and parts are merged by the law of total variance.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_internvla.errors import InternVLAError

logger = logging.getLogger(__name__)

Representation = Literal["absolute", "relative"]
Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

ROWS_PER_READ = 16_384
"""Frames read and worked on at a time (more where an episode is longer: episodes are never cut)."""
_FORMAT = 1
"""Raise when the meaning of a cached number changes: older cache files are then left alone and never read."""


@runtime_checkable
class DatasetMetadata(Protocol):
    """The part of LeRobot 0.6's ``LeRobotDatasetMetadata`` that is read here."""

    repo_id: str
    revision: str | None
    root: Path
    episodes: Any
    """``datasets.Dataset``: one row per episode, with ``length`` and ``data/{chunk,file}_index``."""
    stats: Mapping[str, Mapping[str, Any]] | None

    @property
    def features(self) -> dict[str, dict[str, Any]]: ...
    @property
    def total_frames(self) -> int: ...
    @property
    def data_path(self) -> str: ...


# ------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What is known about one vector-valued feature. Arrays are [D], float64, read-only; ``std`` is that of the
    population (divided by N, as in LeRobot)."""

    mean: Vector
    std: Vector
    min: Vector
    max: Vector
    count: int
    """Samples behind the numbers (frames, or frame-step pairs for relative actions)."""

    def __post_init__(self) -> None:
        for name in ("mean", "std", "min", "max"):
            vector: Vector = getattr(self, name)
            if vector.ndim != 1 or vector.shape != self.mean.shape:
                raise InternVLAError(f"Statistics {name!r} has shape {vector.shape}, expected one number per dim.")
            if not np.isfinite(vector).all():
                raise InternVLAError(
                    f"Statistics {name!r} is not finite in dims {np.flatnonzero(~np.isfinite(vector)).tolist()}."
                )
            vector.setflags(write=False)
        if (self.std < 0).any() or self.count < 1:
            raise InternVLAError(f"Statistics need std >= 0 and count >= 1; got std {self.std}, count {self.count}.")

    @property
    def dim(self) -> int:
        return len(self.mean)

    @classmethod
    def from_samples(cls, samples: Matrix) -> "FeatureStatistics":
        """Two passes over ``samples`` [N, D]. Centred on the first sample, so a constant dim has a std of exactly 0."""
        offset = samples[0]
        centred = samples - offset
        mean = centred.mean(axis=0)
        std = np.sqrt(np.square(centred - mean).mean(axis=0))
        return cls(offset + mean, std, samples.min(axis=0), samples.max(axis=0), len(samples))

    @classmethod
    def merged(cls, parts: Sequence["FeatureStatistics"]) -> "FeatureStatistics":
        """Statistics of all samples behind ``parts`` together, by the law of total variance.

        var = E[var of the parts] + var[mean of the parts]: exact, and nothing large is subtracted from anything large.
        """
        count = sum(part.count for part in parts)
        weight = np.array([part.count for part in parts], dtype=np.float64)[:, None] / count
        offset = parts[0].mean
        centred = np.stack([part.mean for part in parts]) - offset
        mean = (weight * centred).sum(axis=0)
        within = np.square(np.stack([part.std for part in parts]))
        std = np.sqrt((weight * (within + np.square(centred - mean))).sum(axis=0))
        return cls(
            offset + mean,
            std,
            np.min([part.min for part in parts], axis=0),
            np.max([part.max for part in parts], axis=0),
            count,
        )

    def __eq__(self, other: object) -> bool:
        """Equal to the last digit."""
        if not isinstance(other, FeatureStatistics):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """JSON data; Python prints floats so that they read back to the same bits."""
        vectors = {name: getattr(self, name).tolist() for name in ("mean", "std", "min", "max")}
        return {**vectors, "count": self.count}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FeatureStatistics":
        vectors = {name: np.array(data[name], dtype=np.float64) for name in ("mean", "std", "min", "max")}
        return cls(**vectors, count=int(data["count"]))


@dataclass(frozen=True)
class Statistics:
    """Statistics of one robot's states and actions, and what the action numbers mean.

    Raises:
        InternVLAError: representation, mask and chunk size contradict each other.
    """

    state: FeatureStatistics
    action: FeatureStatistics
    representation: Representation
    relative_mask: tuple[bool, ...]
    """Per action dim: True where the numbers are offsets from the state at the start of the chunk."""
    chunk_size: int | None
    """Steps per window that relative numbers were pooled over; None for absolute ones, which do not depend on it."""
    source: str
    """For people: where the numbers come from."""
    fingerprint: str
    """SHA-256 of the data behind the numbers and of how they were computed."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.representation not in ("absolute", "relative"):
            problems.append(f"representation {self.representation!r} is neither 'absolute' nor 'relative'")
        if len(self.relative_mask) != self.action.dim:
            problems.append(f"relative_mask has {len(self.relative_mask)} entries for {self.action.dim} action dims")
        if any(self.relative_mask) != (self.representation == "relative"):
            problems.append(f"representation {self.representation!r} does not go with mask {self.relative_mask}")
        if (self.chunk_size is not None) != (self.representation == "relative"):
            problems.append(f"representation {self.representation!r} does not go with chunk_size {self.chunk_size}")
        if problems:
            raise InternVLAError("Contradictory statistics: " + "; ".join(problems) + ".")

    def to_json(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"state": self.state.to_dict(), "action": self.action.to_dict()}
        return json.dumps(fields, allow_nan=False, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Statistics":
        """Inverse of ``to_json``, to the last bit.

        Raises:
            InternVLAError: not JSON, a field is missing or unknown, or the numbers contradict each other.
        """
        try:
            data = json.loads(text)
            data |= {name: FeatureStatistics.from_dict(data[name]) for name in ("state", "action")}
            data["relative_mask"] = tuple(bool(value) for value in data["relative_mask"])
            return cls(**data)
        except InternVLAError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InternVLAError(f"These are not statistics as written by Statistics.to_json: {error!r}.") from error


# ------------------------------------------------------------------------------------------------------- from LeRobot


def statistics_from_lerobot_stats(
    stats: Mapping[str, Mapping[str, Any]],
    *,
    source: str,
    state_key: str | Sequence[str] = OBS_STATE,
    action_key: str | Sequence[str] = ACTION,
) -> Statistics:
    """Absolute statistics from LeRobot's own dictionary (``dataset.meta.stats``, the ``dataset_stats`` argument).

    Several keys are concatenated in the order given.

    Raises:
        InternVLAError: a feature or one of mean, std, min, max, count is missing.
    """
    state_keys, action_keys = _as_keys(state_key), _as_keys(action_key)
    missing = [
        f"{key}/{name}"
        for key in (*state_keys, *action_keys)
        for name in ("mean", "std", "min", "max", "count")
        if name not in stats.get(key, {})
    ]
    if missing:
        raise InternVLAError(
            f"The dataset statistics of {source} lack {', '.join(missing)}; found: {', '.join(stats) or 'nothing'}. "
            "Recompute them with `lerobot-edit-dataset --operation.type recompute_stats`, or use "
            "statistics_from_dataset, which reads the data itself."
        )

    def feature(keys: tuple[str, ...]) -> FeatureStatistics:
        vectors = {
            name: np.concatenate([np.array(stats[key][name], dtype=np.float64).reshape(-1) for key in keys])
            for name in ("mean", "std", "min", "max")
        }
        counts = {int(np.asarray(stats[key]["count"]).reshape(-1)[0]) for key in keys}
        if len(counts) > 1:
            raise InternVLAError(f"The statistics of {source} count {sorted(counts)} samples for {', '.join(keys)}.")
        return FeatureStatistics(**vectors, count=counts.pop())

    state, action = feature(state_keys), feature(action_keys)
    content = json.dumps([_FORMAT, "lerobot stats", state.to_dict(), action.to_dict()])
    return Statistics(
        state=state,
        action=action,
        representation="absolute",
        relative_mask=(False,) * action.dim,
        chunk_size=None,
        source=source,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )


def _as_keys(key: str | Sequence[str]) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else tuple(key)


@dataclass(frozen=True)
class _Request:
    """Everything besides the data that decides the numbers."""

    representation: Representation
    relative_mask: tuple[bool, ...]
    chunk_size: int | None
    state_dims: tuple[tuple[str, int], ...]
    """(feature key, width), concatenated in this order."""
    action_dims: tuple[tuple[str, int], ...]
    episodes: tuple[int, ...] | None
    frame_stride: int

    @property
    def state_dim(self) -> int:
        return sum(dim for _, dim in self.state_dims)

    @property
    def action_dim(self) -> int:
        return sum(dim for _, dim in self.action_dims)


def _stored_statistics(meta: DatasetMetadata, request: _Request) -> tuple[Statistics | None, list[str]]:
    """What ``meta/stats.json`` says, and why it should not be used. No doubts: it is sound.

    - They count something else than the dataset's frames: the dataset changed since, or someone ran
      ``recompute_stats --relative_action true``, after which the entry "action" holds *relative* numbers.
    - LeRobot computes E[x^2] - E[x]^2 in float32. Below |mean| / 100 the standard deviation has lost its digits: the
      variance is then smaller than 1e-4 mean^2, and its rounding error is about 1e-7 mean^2.
    - A standard deviation is at most half the range.
    """
    try:
        stored = statistics_from_lerobot_stats(
            meta.stats or {},
            source=f"{meta.repo_id} (meta/stats.json)",
            state_key=[key for key, _ in request.state_dims],
            action_key=[key for key, _ in request.action_dims],
        )
    except InternVLAError as error:
        return None, [str(error)]
    doubts: list[str] = []
    wanted = (request.state_dim, request.action_dim)
    for name, feature, dim in zip(("state", "action"), (stored.state, stored.action), wanted, strict=True):
        if feature.dim != dim:
            doubts.append(f"they have {feature.dim} {name} dims, the dataset has {dim}")
            continue
        if feature.count != meta.total_frames:
            doubts.append(f"{name} counts {feature.count} samples, the dataset has {meta.total_frames} frames")
        imprecise = (feature.std < 0.01 * np.abs(feature.mean)) & (feature.max > feature.min)
        if imprecise.any():
            doubts.append(f"{name} dims {np.flatnonzero(imprecise).tolist()} move too little for float32 statistics")
        impossible = feature.std > 0.5 * (feature.max - feature.min) * (1 + 1e-3) + 1e-6 * np.abs(feature.mean)
        if impossible.any():
            doubts.append(f"{name} dims {np.flatnonzero(impossible).tolist()} have a std above half their range")
    return stored, doubts


def statistics_from_dataset(
    meta: DatasetMetadata,
    *,
    representation: Representation,
    relative_mask: Sequence[bool] = (),
    chunk_size: int,
    episodes: Sequence[int] | None = None,
    state_key: str | Sequence[str] = OBS_STATE,
    action_key: str | Sequence[str] = ACTION,
    frame_stride: int = 1,
    cache: bool = True,
    progress: bool = True,
) -> Statistics:
    """Statistics of a LeRobot dataset, as ``ActionSpace`` needs them.

    Absolute statistics of a whole dataset are LeRobot's own (``meta.stats``) unless these are missing or unsound (see
    ``_stored_statistics``). Everything else is computed in float64 from the parquet files, of which only the state,
    action and episode columns are read, and only some thousand frames at a time: the work grows with frames x
    log(chunk_size), the memory not at all. Files that are not on disk are fetched through ``LeRobotDataset``, without
    videos.

    Args:
        meta: LeRobot's ``LeRobotDatasetMetadata``.
        relative_mask: per action dim, True where actions are relative to the state; empty for absolute actions.
        chunk_size: steps per window, as the policy's ``chunk_size``. Absolute statistics do not depend on it.
        episodes: only these; None for all, as LeRobot's ``--dataset.episodes``.
        state_key, action_key: feature keys; several are concatenated in the order given.
        frame_stride: frames between two steps of a chunk, for a dataset that is used at a fraction of its frame rate.
        cache: keep the result under ``<HF_HOME>/lerobot_internvla/statistics``, named by a hash of the content of the
            columns and of the arguments, so that a copied dataset is recognised and an edited one is not. Concurrent
            processes wait for the first and read its result.
        progress: show a bar when it takes longer than a second.

    Raises:
        InternVLAError: features missing or not vectors, mask and dims that do not fit, NaN in the data, data files
            that do not hold the frames that the metadata promises.
    """
    request = _request(
        meta,
        representation,
        relative_mask,
        chunk_size,
        episodes,
        _as_keys(state_key),
        _as_keys(action_key),
        frame_stride,
    )
    if representation == "absolute" and episodes is None:
        stored, doubts = _stored_statistics(meta, request)
        if stored is not None and not doubts:
            return stored
        logger.info("Not using the stored statistics of %s: %s. Computing them.", meta.repo_id, "; ".join(doubts))

    files, lengths = _data_files(meta, request.episodes)
    fingerprint = _fingerprint(files, request)

    def compute() -> Statistics:
        state, action = _compute(files, lengths, request, name=meta.repo_id, progress=progress)
        return Statistics(
            state=state,
            action=action,
            representation=request.representation,
            relative_mask=request.relative_mask,
            chunk_size=request.chunk_size,
            source=source,
            fingerprint=fingerprint,
        )

    source = f"{meta.repo_id} ({len(lengths)} episodes, {sum(lengths.values())} frames)"
    return dataclasses.replace(_cached(fingerprint, compute) if cache else compute(), source=source)


def _request(
    meta: DatasetMetadata,
    representation: Representation,
    relative_mask: Sequence[bool],
    chunk_size: int,
    episodes: Sequence[int] | None,
    state_keys: tuple[str, ...],
    action_keys: tuple[str, ...],
    frame_stride: int,
) -> _Request:
    problems: list[str] = []
    dims: dict[str, int] = {}
    for key in (*state_keys, *action_keys):
        feature = meta.features.get(key)
        if feature is None:
            problems.append(f"it has no feature {key!r} (it has {', '.join(meta.features)})")
        elif len(feature["shape"]) != 1:
            problems.append(f"feature {key!r} has shape {tuple(feature['shape'])}, expected a vector")
        else:
            dims[key] = int(feature["shape"][0])
    for name, value in (("chunk_size", chunk_size), ("frame_stride", frame_stride)):
        if value < 1:
            problems.append(f"{name} is {value}, expected at least 1")
    if episodes is not None and len(episodes) == 0:
        problems.append("the list of episodes is empty")
    if representation not in ("absolute", "relative"):
        problems.append(f"representation {representation!r} is neither 'absolute' nor 'relative'")
    mask = tuple(bool(value) for value in relative_mask)
    if representation == "absolute" and any(mask):
        problems.append("absolute statistics were asked for together with relative dims")
    if representation == "relative" and not any(mask):
        problems.append("relative statistics were asked for, but relative_mask names no relative dim")
    whole = all(key in dims for key in (*state_keys, *action_keys))
    if representation == "relative" and whole:
        state_dim, action_dim = (sum(dims[key] for key in keys) for keys in (state_keys, action_keys))
        if len(mask) != action_dim:
            problems.append(f"relative_mask has {len(mask)} entries for {action_dim} action dims")
        if beyond := [dim for dim, relative in enumerate(mask) if relative and dim >= state_dim]:
            problems.append(f"action dims {beyond} are relative, but the state has only {state_dim} dims")
    if problems:
        raise InternVLAError(f"Cannot compute statistics of dataset {meta.repo_id!r}: " + "; ".join(problems) + ".")
    relative = representation == "relative"
    return _Request(
        representation=representation,
        relative_mask=mask if relative else (False,) * sum(dims[key] for key in action_keys),
        chunk_size=chunk_size if relative else None,
        state_dims=tuple((key, dims[key]) for key in state_keys),
        action_dims=tuple((key, dims[key]) for key in action_keys),
        episodes=None if episodes is None else tuple(sorted(set(episodes))),
        frame_stride=frame_stride if relative else 1,  # absolute statistics count every frame once
    )


# ------------------------------------------------------------------------------------------------------------ reading


def _data_files(meta: DatasetMetadata, episodes: tuple[int, ...] | None) -> tuple[list[Path], dict[int, int]]:
    """The parquet files that hold the wanted episodes, in order, and the length that each episode should have."""
    table: dict[str, list[int]] = meta.episodes.select_columns(
        ["episode_index", "length", "data/chunk_index", "data/file_index"]
    ).to_dict()
    rows = {row[0]: row[1:] for row in zip(*table.values(), strict=True)}
    if unknown := [episode for episode in episodes or () if episode not in rows]:
        raise InternVLAError(f"Dataset {meta.repo_id!r} has {len(rows)} episodes; it does not have {unknown}.")
    wanted = sorted(rows) if episodes is None else episodes
    lengths = {episode: rows[episode][0] for episode in wanted}
    places = sorted({rows[episode][1:] for episode in wanted})
    names = [meta.data_path.format(chunk_index=chunk, file_index=file) for chunk, file in places]
    root = Path(meta.root)
    if not all((root / name).is_file() for name in names):
        root = _download(meta)
    if missing := [name for name in names if not (root / name).is_file()]:
        raise InternVLAError(
            f"Dataset {meta.repo_id!r} lacks {len(missing)} of {len(names)} data files, among them {missing[0]!r}. "
            "Download it again, or check --dataset.root and --dataset.revision."
        )
    return [root / name for name in names], lengths


def _download(meta: DatasetMetadata) -> Path:
    """Let LeRobot fetch the data files of a dataset whose metadata alone is on disk (streaming does that)."""
    from lerobot.datasets import LeRobotDataset

    if getattr(meta, "repo_type", "dataset") != "dataset":
        raise InternVLAError(
            f"The data files of {meta.repo_id!r} live in a storage bucket, which LeRobot only streams. Relative action "
            "statistics need them on disk: download the dataset and pass --dataset.root."
        )
    logger.info("Fetching the data files of %s (no videos) for its statistics.", meta.repo_id)
    root = getattr(meta, "_requested_root", None)  # LeRobot keeps the --dataset.root of the user only here
    try:
        return Path(LeRobotDataset(meta.repo_id, root=root, revision=meta.revision, download_videos=False).root)
    except Exception as error:  # the Hub, the file system and the network each have their own
        raise InternVLAError(
            f"The data files of dataset {meta.repo_id!r} are not on disk and could not be fetched: {error}. "
            "Statistics need them: download the dataset, or check --dataset.repo_id, --dataset.root and the network."
        ) from error


def _fingerprint(files: Sequence[Path], request: _Request) -> str:
    """SHA-256 over the request and the stored bytes of the columns that decide the numbers.

    Not over names, times or sizes: those say nothing about content. Hashing the compressed bytes is much cheaper than
    decoding them.
    """
    import pyarrow.parquet as pq

    digest = hashlib.sha256(json.dumps([_FORMAT, dataclasses.astuple(request)]).encode())
    keys = (*(key for key, _ in (*request.state_dims, *request.action_dims)), "episode_index")
    for path in files:
        metadata = pq.read_metadata(path)
        digest.update(f"{metadata.num_rows} rows".encode())
        with path.open("rb") as file:
            for group in range(metadata.num_row_groups):
                for index in range(metadata.num_columns):
                    column = metadata.row_group(group).column(index)
                    if not any(f"{column.path_in_schema}.".startswith(f"{key}.") for key in keys):
                        continue
                    # A dictionary page, where there is one, precedes the data pages of its column chunk.
                    starts = (column.dictionary_page_offset, column.data_page_offset)
                    file.seek(min(start for start in starts if start))
                    digest.update(f"{column.path_in_schema} {column.physical_type} {column.compression}".encode())
                    digest.update(file.read(column.total_compressed_size))
    return digest.hexdigest()


@dataclass(frozen=True)
class _Run:
    """Consecutive whole episodes: ``states`` [N, S], ``actions`` [N, A], ``episode`` [N]."""

    states: Matrix
    actions: Matrix
    episode: npt.NDArray[np.int64]


def _read_runs(files: Sequence[Path], request: _Request) -> Iterator[_Run]:
    """Stream the wanted columns; an episode that a read or a file cuts in two is held back until it is whole."""
    import pyarrow.parquet as pq

    keys = [*dict.fromkeys(key for key, _ in (*request.state_dims, *request.action_dims)), "episode_index"]

    def read(batch: Any, dims: tuple[tuple[str, int], ...]) -> Matrix:
        parts = [_matrix(batch.column(key), dim, key) for key, dim in dims]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    held: _Run | None = None
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_READ, columns=keys):
                if not batch.num_rows:
                    continue
                run = _Run(
                    states=read(batch, request.state_dims),
                    actions=read(batch, request.action_dims),
                    episode=batch.column("episode_index").to_numpy(zero_copy_only=False).astype(np.int64),
                )
                if held is not None:
                    run = _Run(
                        states=np.concatenate([held.states, run.states]),
                        actions=np.concatenate([held.actions, run.actions]),
                        episode=np.concatenate([held.episode, run.episode]),
                    )
                whole = run.episode != run.episode[-1]
                if whole.any():
                    yield _Run(run.states[whole], run.actions[whole], run.episode[whole])
                held = _Run(run.states[~whole], run.actions[~whole], run.episode[~whole])
    if held is not None:
        yield held


def _matrix(column: Any, dim: int, key: str) -> Matrix:
    """[N, dim] float64 from an arrow column of lists, or of plain numbers (how LeRobot stores vectors of one)."""
    values = column if column.type.num_fields == 0 else column.flatten()
    if len(values) != len(column) * dim:
        raise InternVLAError(
            f"Feature {key!r} has {len(values)} numbers in {len(column)} rows, expected {dim} per row as in "
            "meta/info.json: the dataset is damaged."
        )
    return values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, dim)


def _frames_left(episode: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[N], for every row: frames from it to the end of its episode, itself included."""
    last = np.append(np.flatnonzero(np.diff(episode)) + 1, len(episode))
    return np.repeat(last, np.diff(last, prepend=0)) - np.arange(len(episode))


# ---------------------------------------------------------------------------------------------------------- computing


def _compute(
    files: Sequence[Path], lengths: Mapping[int, int], request: _Request, *, name: str, progress: bool
) -> tuple[FeatureStatistics, FeatureStatistics]:
    from tqdm import tqdm

    states: list[FeatureStatistics] = []
    actions: list[FeatureStatistics] = []
    found: dict[int, int] = {}
    wanted = np.array(sorted(lengths), dtype=np.int64)
    with tqdm(
        total=sum(lengths.values()), desc=f"Statistics of {name}", unit=" frames", delay=1.0, disable=not progress
    ) as bar:
        for run in _read_runs(files, request):
            keep = np.isin(run.episode, wanted)
            if not keep.any():
                continue
            run = _Run(run.states[keep], run.actions[keep], run.episode[keep])
            _check_finite(run, name)
            for episode, frames in zip(*np.unique(run.episode, return_counts=True), strict=True):
                found[int(episode)] = found.get(int(episode), 0) + int(frames)
            states.append(FeatureStatistics.from_samples(run.states))
            if request.chunk_size is None:
                actions.append(FeatureStatistics.from_samples(run.actions))
            else:
                actions.append(
                    _relative_statistics(run, request.relative_mask, request.chunk_size, request.frame_stride)
                )
            bar.update(len(run.episode))
    if wrong := [episode for episode in lengths if found.get(episode) != lengths[episode]]:
        raise InternVLAError(
            f"The data files of dataset {name!r} do not hold what its metadata promises: {len(wrong)} of "
            f"{len(lengths)} episodes have another length, for example episode {wrong[0]} with "
            f"{found.get(wrong[0], 0)} frames instead of {lengths[wrong[0]]}. Was the recording cut off? "
            "Download the dataset again or record the episodes anew."
        )
    return FeatureStatistics.merged(states), FeatureStatistics.merged(actions)


@dataclass(frozen=True)
class _Windows:
    """For every frame t of a run, statistics over a window of steps that starts at t and ends with t's episode."""

    count: npt.NDArray[np.int64]
    """[N, 1], at least 1."""
    mean: Matrix
    squares: Matrix
    """Sum of squared deviations from ``mean``."""
    min: Matrix
    max: Matrix

    def followed_by(self, other: "_Windows", after: int, frames_left: npt.NDArray[np.int64]) -> "_Windows":
        """Append to the window at t the one that ``other`` holds at t + ``after``, unless that is past the episode."""
        exists = (frames_left > after)[:, None]
        start = np.minimum(np.arange(len(frames_left)) + after, len(frames_left) - 1)
        added = np.where(exists, other.count[start], 0)
        count = self.count + added
        step = other.mean[start] - self.mean
        share = added / count
        return _Windows(
            count=count,
            mean=self.mean + share * step,
            squares=self.squares + np.where(exists, other.squares[start], 0.0) + self.count * share * np.square(step),
            min=np.minimum(self.min, np.where(exists, other.min[start], np.inf)),
            max=np.maximum(self.max, np.where(exists, other.max[start], -np.inf)),
        )


def _windows(actions: Matrix, frames_left: npt.NDArray[np.int64], width: int, stride: int = 1) -> _Windows:
    """Windows of up to ``width`` steps, ``stride`` frames apart, built by doubling: one of 50 is 2, then 16, then 32.

    O(N log width) work instead of O(N width); nothing is subtracted from a running sum, so no digits are lost.
    """
    zeros = np.zeros_like(actions)
    power = _Windows(np.ones((len(actions), 1), dtype=np.int64), actions, zeros, actions, actions)
    steps, filled, windows = 1, 0, None
    while True:
        if width & steps:
            windows = power if windows is None else windows.followed_by(power, filled * stride, frames_left)
            filled += steps
        if windows is not None and filled == width:
            return windows
        power = power.followed_by(power, steps * stride, frames_left)
        steps *= 2


def _relative_statistics(
    run: _Run, relative_mask: Sequence[bool], chunk_size: int, stride: int = 1
) -> FeatureStatistics:
    """action[t + k * stride] - mask * state[t], over every frame t and every step k inside t's episode.

    The state is constant within a window: it moves the window's mean, minimum and maximum, and not its spread.
    """
    mask = np.array(relative_mask)
    anchor = np.zeros_like(run.actions)
    anchor[:, mask] = run.states[:, : len(mask)][:, mask[: run.states.shape[1]]]
    windows = _windows(run.actions, _frames_left(run.episode), chunk_size, stride)
    count = int(windows.count.sum())
    means = windows.mean - anchor
    mean = means[0] + (windows.count * (means - means[0])).sum(axis=0) / count
    squares = (windows.squares + windows.count * np.square(means - mean)).sum(axis=0)
    return FeatureStatistics(
        mean, np.sqrt(squares / count), (windows.min - anchor).min(axis=0), (windows.max - anchor).max(axis=0), count
    )


def _check_finite(run: _Run, name: str) -> None:
    for feature, values in (("state", run.states), ("action", run.actions)):
        rows, dims = np.nonzero(~np.isfinite(values))
        if len(rows):
            raise InternVLAError(
                f"Dataset {name!r} has NaN or infinite numbers in its {feature}, first in episode "
                f"{run.episode[rows[0]]}, dims {sorted(set(dims.tolist()))}. Statistics and training would both be "
                "NaN: repair or drop these episodes (`lerobot-edit-dataset --operation.type delete_episodes`)."
            )


# ------------------------------------------------------------------------------------------------------------ caching


def cache_directory() -> Path:
    """``<HF_HOME>/lerobot_internvla/statistics``."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "lerobot_internvla" / "statistics"


def _cached(fingerprint: str, compute: Callable[[], Statistics]) -> Statistics:
    """Read the cache file of this fingerprint, or compute and write it. A cache that fails never fails the caller."""
    from huggingface_hub.utils import WeakFileLock

    path = cache_directory() / f"{fingerprint}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        logger.warning("Cannot write to %s: the statistics are computed, but not kept for next time.", path.parent)
        return compute()
    with WeakFileLock(path.with_suffix(".lock")):
        if (statistics := _read_cache(path, fingerprint)) is not None:
            return statistics
        statistics = compute()
        try:
            _write_cache(path, statistics)
        except OSError as error:
            logger.warning("Could not keep the statistics in %s for next time: %s", path, error)
        return statistics


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_cache(path: Path, fingerprint: str) -> Statistics | None:
    try:
        stored = json.loads(path.read_text())
        text = stored["statistics"]
        if _checksum(text) != stored["checksum"]:
            raise InternVLAError("the checksum does not match")
        statistics = Statistics.from_json(text)
        if statistics.fingerprint != fingerprint:
            raise InternVLAError("the file belongs to other data")
        return statistics
    except FileNotFoundError:
        return None
    except (InternVLAError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("Replacing the damaged statistics cache %s: %s", path, error)
        return None


def _write_cache(path: Path, statistics: Statistics) -> None:
    """Write beside, then rename: a reader sees the old file or the whole new one. The caller holds the lock."""
    text = statistics.to_json()
    draft = path.with_suffix(".draft")
    try:
        draft.write_text(json.dumps({"checksum": _checksum(text), "statistics": text}))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
