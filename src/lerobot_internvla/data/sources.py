"""From a mixture file to datasets that are really there: weights, frames, cameras, rates, checked before training.

``load_mixture(path)`` reads the file (``mixture_file``) and the ``meta/`` folder of every dataset that it names
(``dataset_meta``), and returns a ``Mixture``: one ``Source`` per dataset, with weights that sum to one. No picture and
no data table is opened here. ``describe`` says in words what came out.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.data.dataset_meta import DatasetMeta, Place, find_places, missing_files, read_all
from lerobot_internvla.data.mixture_file import (
    ACTION_AND_FORESIGHT,
    FORESIGHT,
    EpisodeRange,
    MixtureSpec,
    SourceSpec,
    parse_mixture,
)
from lerobot_internvla.embodiments.matching import SourceFeatures, infer_embodiment, match_features
from lerobot_internvla.embodiments.registry import get_embodiment
from lerobot_internvla.embodiments.spec import Embodiment
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.yaml_lines import Problems

INTERVAL_TOLERANCE = 0.1
"""A foresight interval that frames realise within this part of what was asked for is taken; others are refused."""

EmbodimentOrigin = Literal["preset", "file", "inferred"]


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
    """The commit, for a dataset in the Hub cache; None for a folder."""
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
    from_hub: bool
    """It lies in LeRobot's Hub cache, which may not hold all its files yet; see ``lerobot_arguments``."""
    embodiment_origin: EmbodimentOrigin
    share_origin: str
    """Which part of the file the weight comes from, for people."""

    @cached_property
    def num_frames(self) -> int:
        """Frames in use; each may be drawn, whatever ``frame_stride`` is."""
        return int(self.episode_lengths.sum())

    @cached_property
    def episode_ends(self) -> NDArray[np.int64]:
        """Frames in use up to and with each of ``episodes``, [episodes]."""
        return np.cumsum(self.episode_lengths)

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    @property
    def hours(self) -> float:
        return self.num_frames / self.dataset_fps / 3600

    @property
    def lerobot_arguments(self) -> dict[str, Any]:
        """``LeRobotDataset(**source.lerobot_arguments)`` opens the dataset: folders where they are, others from the Hub
        cache at a pinned commit, downloading what is not there yet."""
        root = None if self.from_hub else self.root
        return {"repo_id": self.repo_id, "root": root, "revision": self.revision}


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


def load_mixture(path: str | Path, *, progress: bool = True) -> Mixture:
    """Read a mixture file and the metadata of its datasets; datasets that are not here are looked up on the Hub.

    Args:
        path: the YAML file.
        progress: show a bar while many datasets are looked at.

    Raises:
        InternVLAError: every problem of the file and of its datasets, with line numbers.
    """
    path = Path(path).expanduser().resolve()
    spec, problems = parse_mixture(path)
    loader = _Loader(spec, problems, path.parent)
    drafts = loader.find(progress)
    _refuse_duplicates(drafts, problems)
    headline = f"The mixture {path} cannot be used"
    problems.raise_if_any(headline)
    weights = _weights(spec, drafts, problems)
    embodiments = _distinct_embodiments(drafts, problems)
    problems.raise_if_any(headline)
    sources = tuple(
        draft.finish(index, weight) for index, (draft, weight) in enumerate(zip(drafts, weights, strict=True))
    )
    return Mixture(
        path=path,
        sources=sources,
        foresight_interval_s=spec.foresight_interval_s,
        rank_strategy=spec.rank_strategy,
        fingerprint=_fingerprint(spec, sources, [draft.meta for draft in drafts]),
        embodiments=embodiments,
    )


def describe(mixture: Mixture) -> list[str]:
    """The mixture in words, for the log: a headline, and two lines per source with everything that was decided."""
    frames = sum(source.num_frames for source in mixture.sources)
    hours = sum(source.hours for source in mixture.sources)
    lines = [
        f"Mixture {mixture.path.name}: {len(mixture.sources)} sources, {frames:,} frames, {hours:,.2f} h; foresight "
        f"interval {mixture.foresight_interval_s:g} s; ranks {mixture.rank_strategy}; "
        f"fingerprint {mixture.fingerprint[:12]}"
    ]
    for source in mixture.sources:
        place = f"{source.repo_id}@{source.revision}" if source.from_hub else str(source.root)
        rate = f"{source.dataset_fps:g} fps"
        if source.frame_stride > 1:
            rate += f" used at {source.fps:g} fps (stride {source.frame_stride})"
        cameras = ", ".join(f"{slot} = {key}" for slot, key in source.features.cameras.items())
        lines += [
            f"  {source.name}: {source.weight:.4%} of the draws ({source.share_origin}); {source.num_frames:,} frames, "
            f"{source.num_episodes:,} episodes, {source.hours:,.2f} h, {rate}; foresight {source.interval_frames} "
            f"frames = {source.interval_s:.3g} s; {ACTION_AND_FORESIGHT if source.trains_actions else FORESIGHT}",
            f"    {source.embodiment.name} ({source.embodiment_origin}); {cameras}; {place}",
        ]
    return lines


@dataclass(frozen=True, eq=False)
class _Draft:
    """A source without its weight, which depends on all the others."""

    spec: SourceSpec
    meta: DatasetMeta
    embodiment: Embodiment
    embodiment_origin: EmbodimentOrigin
    features: SourceFeatures
    frame_stride: int
    interval_steps: int
    episodes: NDArray[np.int64]

    @property
    def frames(self) -> int:
        return int(self.meta.episode_lengths[self.episodes].sum())

    def finish(self, index: int, weight: tuple[float, str]) -> Source:
        fps = self.meta.fps / self.frame_stride
        return Source(
            index=index,
            name=self.meta.place.name,
            repo_id=self.meta.repo_id,
            root=self.meta.root,
            revision=self.meta.revision,
            embodiment=self.embodiment,
            features=self.features,
            trains_actions=self.spec.trains_actions,
            weight=weight[0],
            dataset_fps=self.meta.fps,
            fps=fps,
            frame_stride=self.frame_stride,
            interval_frames=self.frame_stride * self.interval_steps,
            interval_s=self.interval_steps / fps,
            episodes=tuple(self.episodes.tolist()),
            episode_starts=self.meta.episode_starts[self.episodes],
            episode_lengths=self.meta.episode_lengths[self.episodes],
            from_hub=self.meta.from_hub,
            embodiment_origin=self.embodiment_origin,
            share_origin=weight[1],
        )


@dataclass
class _Complaints:
    """What is wrong with one dataset: (keys of the source that say where, text)."""

    found: list[tuple[tuple[str, ...], str]] = field(default_factory=list[tuple[tuple[str, ...], str]])

    def add(self, text: str, *keys: str) -> None:
        self.found.append((keys, text))


class _Loader:
    """Looks at every dataset of a file and notes what is wrong with it."""

    def __init__(self, spec: MixtureSpec, problems: Problems, base: Path) -> None:
        self.spec, self.problems, self.base = spec, problems, base
        self.named_embodiments: dict[str, Embodiment | InternVLAError] = {}

    def find(self, progress: bool) -> list[_Draft]:
        """All datasets in the order of the file; those with a problem are left out."""
        places: list[tuple[SourceSpec, Place]] = []
        for source in self.spec.sources:
            try:
                places += [(source, place) for place in find_places(source, self.base)]
            except InternVLAError as error:
                self.problems.add(f"sources.{source.name}: {error}", source.line("root", "repo_id"))
        metas = read_all([place for _, place in places], progress=progress)
        drafts: list[_Draft] = []
        complaints: dict[str, list[tuple[str, _Complaints]]] = {}
        for (source, place), meta in zip(places, metas, strict=True):
            wrong = _Complaints()
            complaints.setdefault(source.name, []).append((place.name, wrong))
            if isinstance(meta, InternVLAError):
                wrong.add(str(meta), "root", "repo_id")
            elif (draft := self._draft(source, meta, wrong)) is not None:
                drafts.append(draft)
        for source in self.spec.sources:
            self._report(source, complaints.get(source.name, []))
        return drafts

    def _report(self, source: SourceSpec, complaints: Sequence[tuple[str, _Complaints]]) -> None:
        """One entry per kind of problem, however many datasets of a glob have it."""
        datasets: dict[tuple[tuple[str, ...], str], list[str]] = {}
        for name, wrong in complaints:
            for complaint in wrong.found:
                datasets.setdefault(complaint, []).append(name)
        for (keys, text), names in datasets.items():
            if source.glob is not None:
                some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                text += f"\n(in {len(names)} of the {len(complaints)} datasets that the glob finds: {some})"
            self.problems.add(f"sources.{source.name}: {text}", source.line(*keys))

    def _draft(self, source: SourceSpec, meta: DatasetMeta, wrong: _Complaints) -> _Draft | None:
        episodes = _episodes(source, meta, wrong)
        stride = _frame_stride(source, meta, wrong)
        steps = _interval_steps(self.spec.foresight_interval_s, meta.fps / stride, wrong)
        embodiment, origin = self._embodiment(source, meta, wrong)
        features = None if embodiment is None else _match(source, meta, embodiment, wrong)
        if episodes is not None and features is not None:
            _check_episodes(source, meta, episodes, features, stride * steps, wrong)
        if wrong.found or episodes is None or embodiment is None or features is None:
            return None
        return _Draft(source, meta, embodiment, origin, features, stride, steps, episodes)

    def _embodiment(
        self, source: SourceSpec, meta: DatasetMeta, wrong: _Complaints
    ) -> tuple[Embodiment | None, EmbodimentOrigin]:
        if source.embodiment is None:
            if "embodiment" in source.lines:  # it is there but no text, which was reported
                return None, "inferred"
            try:
                return infer_embodiment(meta.robot_type, meta.features), "inferred"
            except InternVLAError as error:
                hint = ""
                if not source.trains_actions and not _looks_like_a_robot(meta):
                    hint = "\nIt has neither state nor action: for video of people write 'embodiment: human_video'"
                wrong.add(f"{error}{hint}")
                return None, "inferred"
        is_file = source.embodiment.endswith((".yaml", ".yml"))
        if source.embodiment not in self.named_embodiments:
            name = source.embodiment
            if is_file:
                file = Path(name).expanduser()
                name = str(file if file.is_absolute() else self.base / file)
            try:
                self.named_embodiments[source.embodiment] = get_embodiment(name)
            except InternVLAError as error:
                self.named_embodiments[source.embodiment] = error
        found = self.named_embodiments[source.embodiment]
        if isinstance(found, InternVLAError):
            wrong.add(str(found), "embodiment")
            return None, "preset"
        return found, "file" if is_file else "preset"


def _looks_like_a_robot(meta: DatasetMeta) -> bool:
    return any(key.startswith(("action", "observation.state", "states.")) for key in meta.features)


def _match(source: SourceSpec, meta: DatasetMeta, embodiment: Embodiment, wrong: _Complaints) -> SourceFeatures | None:
    """State, action and cameras of the embodiment among the dataset's features."""
    needs_actions = source.trains_actions
    if needs_actions:
        remedy = "write 'supervision: foresight' to learn from its video alone, or name the right embodiment"
        if not embodiment.action:
            wrong.add(
                f"actions are asked for (supervision {ACTION_AND_FORESIGHT}), but {embodiment.name} has none; {remedy}",
                "supervision",
                "embodiment",
            )
            needs_actions = False
        elif not any(part.key in meta.features for part in embodiment.action):
            wanted = ", ".join(part.key for part in embodiment.action)
            wrong.add(
                f"actions are asked for (supervision {ACTION_AND_FORESIGHT}), but the dataset has no {wanted}, where "
                f"{embodiment.name} keeps them; {remedy}",
                "supervision",
                "embodiment",
            )
            needs_actions = False
    # Foresight does not see the state (docs/architecture.md), so a robot's video without states will do.
    needs_state = source.trains_actions or any(part.key in meta.features for part in embodiment.state)
    try:
        return match_features(
            embodiment,
            meta.features,
            camera_map=source.cameras,
            needs_actions=needs_actions,
            needs_state=needs_state and bool(embodiment.state),
        )
    except InternVLAError as error:
        wrong.add(str(error), "cameras", "embodiment")
        return None


def _episodes(source: SourceSpec, meta: DatasetMeta, wrong: _Complaints) -> NDArray[np.int64] | None:
    total = len(meta.episode_lengths)
    wanted = source.episodes
    if wanted is None:
        # What was written and not understood has been reported; all of them stand in.
        return np.arange(total)
    if isinstance(wanted, EpisodeRange):
        bounds = [bound for bound in (wanted.start, wanted.stop) if bound is not None]
        # Python would clip; a range that reaches beyond the data is more likely a mistake in one of the two.
        outside = [bound for bound in bounds if abs(bound) > total]
        chosen = np.arange(total)[slice(wanted.start, wanted.stop)]
    else:
        outside = [episode for episode in wanted if episode >= total]
        chosen = np.asarray(wanted, dtype=np.int64)
    if outside:
        some = ", ".join(map(str, outside[:3])) + (" ..." if len(outside) > 3 else "")
        wrong.add(f"episodes reach beyond the dataset ({some}): it has {total}, 0 to {total - 1}", "episodes")
        return None
    if len(chosen) == 0:
        wrong.add(f"episodes '{wanted}' is none of the {total} episodes of the dataset", "episodes")
        return None
    return chosen


def _frame_stride(source: SourceSpec, meta: DatasetMeta, wrong: _Complaints) -> int:
    if source.fps is None:
        return 1
    stride = round(meta.fps / source.fps)
    if stride < 1 or not math.isclose(stride * source.fps, meta.fps, rel_tol=1e-6):
        fitting = ", ".join(f"{meta.fps / divisor:g}" for divisor in range(1, 7))
        wrong.add(
            f"fps {source.fps:g} does not divide the dataset's {meta.fps:g}; frames are left out, never made up. "
            f"These fit: {fitting} ...",
            "fps",
        )
        return 1
    return stride


def _interval_steps(wanted_s: float, fps: float, wrong: _Complaints) -> int:
    """The foresight interval in steps of ``1 / fps``."""
    exact = wanted_s * fps
    steps = math.floor(exact + 0.5)
    if steps >= 1 and abs(steps - exact) <= INTERVAL_TOLERANCE * exact * (1 + 1e-9):
        return steps
    below, above = math.floor(exact), math.floor(exact) + 1
    fitting = " or ".join(f"{n / fps:.3g} s" for n in (below, above) if n > 0)
    wrong.add(
        f"foresight_interval_s {wanted_s:g} is {exact:.3g} frames at {fps:g} fps, and no whole number of frames is "
        f"within {INTERVAL_TOLERANCE:.0%} of it. Set foresight_interval_s to {fitting}, for all sources, or use this "
        "source at another fps",
        "fps",
    )
    return max(1, steps)


def _check_episodes(
    source: SourceSpec,
    meta: DatasetMeta,
    episodes: NDArray[np.int64],
    features: SourceFeatures,
    interval: int,
    wrong: _Complaints,
) -> None:
    longest = int(meta.episode_lengths[episodes].max())
    if not source.trains_actions and longest <= interval:
        wrong.add(
            f"its episodes are at most {longest} frames long and the foresight interval is {interval}: there is no "
            "future to learn from",
            "episodes",
        )
    if meta.place.repo_id is None:  # Otherwise LeRobot downloads what is missing.
        missing = missing_files(meta, episodes, list(features.cameras.values()))
        if missing:
            wrong.add(
                f"{len(missing)} of its files cannot be found, the first is {missing[0]}. "
                "Copy the dataset again, or add 'repo_id' if it is on the Hub",
                "root",
            )


def _refuse_duplicates(drafts: Sequence[_Draft], problems: Problems) -> None:
    """The same frames twice would be drawn more often than any weight says."""
    seen: dict[object, list[_Draft]] = {}
    for draft in drafts:
        meta = draft.meta
        keys: list[object] = [meta.root.resolve()]
        if meta.place.repo_id is not None:
            keys.append((meta.place.repo_id, meta.revision))
        for other in dict.fromkeys(other for key in keys for other in seen.get(key, [])):
            both = np.intersect1d(draft.episodes, other.episodes)
            if len(both):
                episodes = f"{both[0]} to {both[-1]} ({len(both)})" if len(both) > 1 else f"{both[0]}"
                line = other.spec.line("root", "repo_id")
                problems.add(
                    f"sources.{meta.place.name}: the same dataset as sources.{other.meta.place.name} (line {line}), "
                    f"{meta.root}; both use episode {episodes}. Remove one, or give them different episodes",
                    draft.spec.line("root", "repo_id"),
                )
        for key in keys:
            seen.setdefault(key, []).append(draft)


def _weights(spec: MixtureSpec, drafts: Sequence[_Draft], problems: Problems) -> list[tuple[float, str]]:
    """(share of all draws, where it comes from) of each; shares sum to 1."""
    budgets: dict[tuple[str, str], list[int]] = {}
    for position, draft in enumerate(drafts):
        budget = ("source", draft.spec.name) if draft.spec.group is None else ("group", draft.spec.group)
        budgets.setdefault(budget, []).append(position)
    raw = [0.0] * len(drafts)
    origins = [""] * len(drafts)
    for (kind, name), members in budgets.items():
        source = drafts[members[0]].spec
        if kind == "group":
            share, rule = spec.groups[name].share, spec.groups[name].rule
            origin = f"group {name} {share:g} by {rule}"
        else:
            assert source.weight is not None
            share, rule = source.weight, source.rule
            origin = f"weight {share:g}" + ("" if source.glob is None else f" by {rule}")
        parts = rule.divide(
            [drafts[member].frames for member in members], [len(drafts[member].episodes) for member in members]
        )
        for member, part in zip(members, parts.tolist(), strict=True):
            raw[member], origins[member] = share * part, origin
            if not raw[member] > 0:
                problems.add(
                    f"sources.{drafts[member].meta.place.name}: gamma {rule.gamma:g} leaves nothing for it. "
                    "Use a smaller gamma",
                    drafts[member].spec.line("group", "gamma"),
                )
    total = math.fsum(raw)
    return [(weight / total, origin) for weight, origin in zip(raw, origins, strict=True)]


def _distinct_embodiments(drafts: Sequence[_Draft], problems: Problems) -> tuple[Embodiment, ...]:
    """Each once; statistics and actions are kept by the name of the embodiment, so names must be unique too."""
    first: dict[str, _Draft] = {}
    for draft in drafts:
        other = first.setdefault(draft.embodiment.name, draft)
        if other.embodiment != draft.embodiment:
            line = other.spec.line("embodiment")
            problems.add(
                f"sources.{draft.meta.place.name}: its embodiment has the name {draft.embodiment.name!r}, and so has a "
                f"different one, of sources.{other.meta.place.name} (line {line}); give it another name",
                draft.spec.line("embodiment"),
            )
    return tuple(draft.embodiment for draft in first.values())


def _fingerprint(spec: MixtureSpec, sources: Sequence[Source], metas: Sequence[DatasetMeta]) -> str:
    """Equal on every machine that holds the same data; different as soon as anything would train differently."""
    content: dict[str, Any] = {
        "foresight_interval_s": spec.foresight_interval_s,
        "rank_strategy": spec.rank_strategy,
        "sources": [_content(source, meta) for source, meta in zip(sources, metas, strict=True)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _content(source: Source, meta: DatasetMeta) -> Mapping[str, Any]:
    episodes = np.stack([np.asarray(source.episodes, np.int64), source.episode_starts, source.episode_lengths])
    return {
        "name": source.name,
        "info": hashlib.sha256(meta.info_bytes).hexdigest(),
        "episodes": hashlib.sha256(episodes.astype("<i8").tobytes()).hexdigest(),
        "total_frames": int(meta.episode_lengths.sum()),
        "embodiment": source.embodiment.name,
        "state": [source.features.state_keys, source.embodiment.state_names],
        "action": [source.features.action_keys, source.embodiment.action_names, source.embodiment.relative_mask],
        "cameras": dict(source.features.cameras),
        "trains_actions": source.trains_actions,
        "weight": source.weight,
        "frame_stride": source.frame_stride,
        "interval_frames": source.interval_frames,
    }
