"""The reference's stats.json: which robot it is about, and the normalisation of that robot's states and actions.

stats.json is nested: robot type -> feature key -> {mean, std, min, max, count}. (A file of one robot may lack the first
level.) Nothing in it says in which order keys are concatenated, which dims are relative, or whether the action numbers
are of relative or absolute actions. The first two come from ``embodiments.released``; the last from train_config.json
or, where the numbers leave no doubt, from the numbers. What stays in doubt is an error that lists the choices.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from lerobot_internvla.action_space import CONSTANT_STD, ActionSpace
from lerobot_internvla.embodiments.released import (
    RELEASED_EMBODIMENTS,
    Parts,
    ReleasedEmbodiment,
    embodiment_named,
    require_embodiment,
)
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.statistics import FeatureStatistics, Representation

STATISTICS = "stats.json"
TRAIN_CONFIG = "train_config.json"
UNNAMED = "(the file has no robot type)"
Entry = Mapping[str, Mapping[str, Any]]
"""Feature key -> {mean, std, ...} of one robot."""


@dataclass(frozen=True)
class Robot:
    """The embodiment that a checkpoint is converted for, and why it is this one."""

    embodiment: ReleasedEmbodiment
    statistics_key: str | None
    """Robot type in stats.json; None where the file has no such level, or there is no file."""
    state: FeatureStatistics | None
    """[D], concatenated; None without statistics."""
    action: FeatureStatistics | None
    state_dim: int
    action_dim: int
    representation: Representation
    relative: tuple[bool, ...]
    """Per action dim; all False for absolute actions."""
    reasons: tuple[str, ...]
    """How embodiment and representation were determined, for people."""

    @property
    def state_names(self) -> list[str]:
        """One name per state dim."""
        return _names(self.embodiment, self.embodiment.state, self.state_dim)

    @property
    def action_names(self) -> list[str]:
        """One name per action dim."""
        return _names(self.embodiment, self.embodiment.action, self.action_dim)

    def action_space(self, max_state_dim: int, max_action_dim: int) -> ActionSpace:
        """The normalisation that the checkpoint was trained with, as buffers.

        Standard deviations are taken over as they are, also tiny ones: the weights have learned the numbers that they
        give. The one exception is a state dim that never moved at all (range below ``CONSTANT_STD``): it reads 0 either
        way, and dividing by its standard deviation would blow up the first deviation on a real robot.
        """
        space = ActionSpace(
            state_dim=self.state_dim,
            action_dim=self.action_dim,
            max_state_dim=max_state_dim,
            max_action_dim=max_action_dim,
            representation=self.representation,
            relative_mask=self.relative if self.representation == "relative" else (),
        )
        if self.state is not None and self.action is not None:
            space.set_identity()
            still = self.state.max - self.state.min < CONSTANT_STD
            state = dataclasses.replace(self.state, std=np.where(still, 1.0, self.state.std))
            for name, feature in (("state", state), ("action", self.action)):
                for which, values in (("mean", feature.mean), ("std", feature.std)):
                    buffer = space.get_buffer(f"{name}_{which}")
                    buffer[: feature.dim] = buffer.new_tensor(values.astype(np.float32))
        return space


def _names(embodiment: ReleasedEmbodiment, parts: Parts, dim: int) -> list[str]:
    if embodiment.names is not None and len(embodiment.names) == dim:
        return list(embodiment.names)
    return [f"dim_{i}" for i in range(dim)]


# ----------------------------------------------------------------------------------------------------------- the file


def read_statistics(file: Path) -> dict[str, Entry]:
    """Robot type -> feature key -> numbers; the key ``UNNAMED`` where the file lacks the level of robot types.

    Raises:
        InternVLAError: not JSON, or not of this form.
    """
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InternVLAError(f"{str(file)!r} cannot be read ({error}). Download it again.") from error
    expected = f"{str(file)!r} should be {{robot type: {{feature key: {{mean, std, min, max, count}}}}}}"
    if not isinstance(data, dict) or not data or not all(isinstance(v, dict) for v in data.values()):
        raise InternVLAError(f"{expected}, but it is something else. Pass the reference's own: --statistics <file>.")
    entries = cast(dict[str, Any], data)
    if all("mean" in entry for entry in entries.values()):
        return {UNNAMED: cast(Entry, entries)}
    malformed = sorted(name for name, entry in entries.items() if not all(isinstance(v, dict) for v in entry.values()))
    if malformed:
        raise InternVLAError(f"{expected}, but these are not: {', '.join(malformed)}.")
    return cast(dict[str, Entry], entries)


def _feature(entry: Entry, parts: Parts, robot: str) -> FeatureStatistics:
    """Statistics of the concatenated feature keys."""
    problems: list[str] = []
    columns: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in ("mean", "std", "min", "max")}
    count = None
    for key, _ in parts:
        numbers = entry[key]
        for name, pieces in columns.items():
            value = numbers.get(name)
            try:
                pieces.append(np.asarray(value, dtype=np.float64).reshape(-1))
            except (TypeError, ValueError):
                problems.append(f"{key} has no usable {name!r} ({value!r})")
        counted = np.asarray(numbers.get("count", 1), dtype=np.float64).reshape(-1)
        count = int(counted[0]) if count is None else min(count, int(counted[0]))
    if not problems:
        try:
            vectors = {name: np.concatenate(pieces) for name, pieces in columns.items()}
            return FeatureStatistics(**vectors, count=max(1, count or 1))
        except InternVLAError as error:
            problems.append(str(error))
    raise InternVLAError(f"The statistics of {robot!r} cannot be used: {'; '.join(problems)}.")


def _width(entry: Entry, key: str) -> int | None:
    mean = entry.get(key, {}).get("mean")
    return None if mean is None else int(np.asarray(mean).size)


def _misfits(entry: Entry, embodiment: ReleasedEmbodiment) -> list[str]:
    """Why the entry cannot be this robot's; empty if it can."""
    problems: list[str] = []
    for key, dim in (*embodiment.state, *embodiment.action):
        found = _width(entry, key)
        if found is None:
            problems.append(f"no {key}")
        elif dim is not None and found != dim:
            problems.append(f"{key} has {found} dims, expected {dim}")
    return problems


def _vectors(entry: Entry) -> str:
    """What a robot's entry holds, for messages; cameras left out."""
    widths = {key: _width(entry, key) for key in sorted(entry)}
    return ", ".join(f"{key} ({width})" for key, width in widths.items() if width is not None and "image" not in key)


# ------------------------------------------------------------------------------------------------------ which robot


def choose_embodiment(
    entries: Mapping[str, Entry], wanted: str | None = None, statistics_key: str | None = None
) -> tuple[ReleasedEmbodiment, str, str]:
    """The embodiment and its entry in stats.json.

    A robot type that we know decides; one that we do not know decides if exactly one known robot has these keys and
    dims. ``wanted`` (a known robot) and ``statistics_key`` (a robot type of the file) narrow the choice.

    Returns:
        the embodiment, its key in ``entries``, and how it was found.

    Raises:
        InternVLAError: none fits, or several do; they are listed with the flags that choose.
    """
    if statistics_key is not None and statistics_key not in entries:
        raise InternVLAError(
            f"{STATISTICS} has no robot type {statistics_key!r}. It has: {', '.join(map(repr, entries))}."
        )
    considered = {k: e for k, e in entries.items() if statistics_key in (None, k)}
    row = require_embodiment(wanted) if wanted is not None else None
    candidates: list[tuple[ReleasedEmbodiment, str, str]] = []
    misfits: list[str] = []
    for key, entry in considered.items():
        named = embodiment_named(key)
        rows = [row] if row is not None else [named] if named is not None else list(RELEASED_EMBODIMENTS)
        for option in rows:
            if problems := _misfits(entry, option):
                if option is named or option is row:
                    misfits.append(f"{key!r} is not {option.name}: {'; '.join(problems)}")
            elif option is named:
                candidates.append((option, key, f"robot type {key!r} in {STATISTICS}"))
            else:
                how = "--embodiment" if row is not None else f"keys and dims of {key!r} in {STATISTICS}"
                candidates.append((option, key, how))
    by_name = [c for c in candidates if embodiment_named(c[1]) is c[0]]
    chosen = by_name if row is not None and by_name else candidates
    if len(chosen) == 1:
        return chosen[0]
    listed = [f"{key}: {_vectors(entry) or 'no vectors'}" for key, entry in considered.items()]
    contents = f"{STATISTICS} describes:\n  " + "\n  ".join(listed)
    if not chosen:
        why = "".join(f"\n  {line}" for line in misfits)
        known = "\n  ".join(f"{r.name}: {_expects(r.state)} -> {_expects(r.action)}" for r in RELEASED_EMBODIMENTS)
        raise InternVLAError(
            f"No known embodiment has the keys and dims of these statistics.{why}\n{contents}\nKnown:\n  {known}\n"
            "Choose one with --embodiment, or pass another file: --statistics <stats.json>."
        )
    options = "\n  ".join(
        f"--embodiment {option.name}" + (f" --stats-key {key!r}" if len(considered) > 1 else "")
        for option, key, _ in chosen
    )
    raise InternVLAError(
        f"These statistics can be read for {len(chosen)} robots. {contents}\nChoose one of:\n  {options}"
    )


def _expects(parts: Parts) -> str:
    return " + ".join(f"{key} ({'any' if dim is None else dim})" for key, dim in parts)


# ------------------------------------------------------------------------------------- relative or absolute actions


def _modes(node: Any, path: str = "") -> Iterator[tuple[str, Representation]]:
    """Settings of a train_config.json that say how actions were trained: ...mode = delta, abs."""
    words: dict[str, Representation] = {"delta": "relative", "relative": "relative", "abs": "absolute"}
    words["absolute"] = "absolute"
    if isinstance(node, dict):
        for key, value in cast(dict[str, Any], node).items():
            place = f"{path}.{key}" if path else key
            if isinstance(value, str) and "action" in key and value in words:
                yield place, words[value]
            yield from _modes(value, place)


def _evidence(robot_mask: tuple[bool, ...], state: FeatureStatistics, action: FeatureStatistics) -> tuple[float, float]:
    """How far the mean action is from the mean state, and from zero, in standard deviations of the state (medians).

    Absolute targets are the states of a moment later: their mean is the state's. Offsets from the state have a mean
    near zero. Only joints whose mean state is away from zero can tell.
    """
    dims = [i for i, relative in enumerate(robot_mask) if relative and i < state.dim and state.std[i] > CONSTANT_STD]
    if not dims:
        return np.nan, np.nan
    scale = state.std[dims]
    away = np.abs(state.mean[dims]) / scale
    telling = [d for d, far in zip(dims, away, strict=True) if far > 1.0]
    if len(telling) < 2:
        return np.nan, np.nan
    scale = state.std[telling]
    to_state = float(np.median(np.abs(action.mean[telling] - state.mean[telling]) / scale))
    to_zero = float(np.median(np.abs(action.mean[telling]) / scale))
    return to_state, to_zero


def choose_representation(
    embodiment: ReleasedEmbodiment,
    state: FeatureStatistics | None,
    action: FeatureStatistics | None,
    *,
    wanted: Literal["relative", "absolute"] | None = None,
    absolute_dims: tuple[int, ...] | None = None,
    train_config: Mapping[str, Any] | None = None,
) -> tuple[Representation, tuple[bool, ...], str]:
    """Whether the checkpoint produces relative or absolute actions.

    Returns:
        the representation, the mask of relative dims, and how it was found.

    Raises:
        InternVLAError: nothing says it for certain, two sources contradict, or the robot has no relative form.
    """
    dim = action.dim if action is not None else embodiment.dims(embodiment.action)
    assert dim is not None, "the caller has seen to it"
    if absolute_dims is not None:
        if outside := [i for i in absolute_dims if not 0 <= i < dim]:
            raise InternVLAError(f"--absolute-dims {outside} are outside 0 to {dim - 1}.")
        mask: tuple[bool, ...] | None = tuple(i not in absolute_dims for i in range(dim))
    else:
        mask = embodiment.relative
    absolute: tuple[Representation, tuple[bool, ...]] = ("absolute", (False,) * dim)
    if wanted == "absolute":
        if absolute_dims is not None:
            raise InternVLAError("--absolute-dims has no meaning with --actions absolute: all dims are absolute then.")
        return *absolute, "--actions absolute"
    if wanted == "relative":
        if mask is None:
            raise InternVLAError(
                f"The embodiment {embodiment.name!r} has no list of relative dims. Say which action dims stay absolute "
                "(grippers): --absolute-dims 6 13, or --absolute-dims with nothing behind it."
            )
        return "relative", mask, "--actions relative"
    said = dict(_modes(train_config or {}))
    if len(set(said.values())) == 1:
        place, representation = next(iter(said.items()))
        if representation == "absolute":
            return *absolute, f"{place} in {TRAIN_CONFIG}"
        if mask is not None:
            return "relative", mask, f"{place} in {TRAIN_CONFIG}"
    if mask is None and not said:
        return *absolute, f"the reference has no relative actions for {embodiment.name!r}"
    hint = ""
    if mask is not None and state is not None and action is not None and not said:
        to_state, to_zero = _evidence(mask, state, action)
        numbers = f"mean actions are {to_state:.2g} standard deviations from the mean state and {to_zero:.2g} from zero"
        if to_zero < 0.3 and to_state > 1.0:
            return "relative", mask, f"the statistics: {numbers}"
        if to_state < 0.3 and to_zero > 1.0:
            return *absolute, f"the statistics: {numbers}"
        if np.isfinite(to_state):
            hint = f" (The statistics do not settle it: {numbers}.)"
    contradiction = f" {TRAIN_CONFIG} says {said}." if said else ""
    raise InternVLAError(
        f"Nothing says whether this checkpoint was trained on relative (the reference's 'delta') or absolute "
        f"actions.{contradiction}{hint} Pass --actions relative or --actions absolute; with the wrong one the robot "
        "moves wrongly. The published checkpoints of InternRobotics' recipes are relative."
    )


def describe_robot(
    entries: Mapping[str, Entry] | None,
    *,
    embodiment: str | None = None,
    statistics_key: str | None = None,
    actions: Literal["relative", "absolute"] | None = None,
    absolute_dims: tuple[int, ...] | None = None,
    train_config: Mapping[str, Any] | None = None,
) -> Robot:
    """Everything about the robot that the converted policy needs; ``entries`` None: no statistics, only sizes.

    Raises:
        InternVLAError: see ``choose_embodiment`` and ``choose_representation``.
    """
    state = action = key = None
    if entries is None:
        if embodiment is None:
            raise InternVLAError(
                "Without statistics nothing tells the robot: pass --embodiment, one of "
                f"{', '.join(r.name for r in RELEASED_EMBODIMENTS)}."
            )
        row, how = require_embodiment(embodiment), "--embodiment"
        if row.dims(row.state) is None or row.dims(row.action) is None:
            raise InternVLAError(
                f"The dims of {row.name!r} are known from statistics only. Pass --statistics <stats.json>."
            )
    else:
        row, key, how = choose_embodiment(entries, embodiment, statistics_key)
        state, action = (_feature(entries[key], parts, key) for parts in (row.state, row.action))
    state_dim = state.dim if state is not None else row.dims(row.state)
    action_dim = action.dim if action is not None else row.dims(row.action)
    assert state_dim is not None and action_dim is not None
    representation, relative, why = choose_representation(
        row, state, action, wanted=actions, absolute_dims=absolute_dims, train_config=train_config
    )
    return Robot(
        embodiment=row,
        statistics_key=None if key == UNNAMED else key,
        state=state,
        action=action,
        state_dim=state_dim,
        action_dim=action_dim,
        representation=representation,
        relative=relative,
        reasons=(f"embodiment {row.name}: {how}", f"{representation} actions: {why}"),
    )
