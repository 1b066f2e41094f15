"""The mixture file: many datasets, how often each is drawn, and what each teaches. Only the text is read here.

    foresight_interval_s: 0.5
    groups:
      lab: {share: 0.7, rule: frames, gamma: 0.5}
    sources:
      kitchen: {repo_id: me/kitchen, group: lab}
      bench:   {root: ../data/bench_*, group: lab, embodiment: so101, episodes: "0:90"}
      people:  {repo_id: me/people, weight: 0.3, embodiment: human_video, supervision: foresight}

``read_mixture`` checks everything that can be checked without a dataset; ``sources.load_mixture`` looks at the datasets
and reports the problems of both in one message. The format is described in docs/mixtures.md.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.data.rank_plan import RANK_STRATEGIES
from lerobot_internvla.model.architecture import CAMERA_SLOTS
from lerobot_internvla.yaml_lines import Problems, YamlFile, check_keys, did_you_mean

DEFAULT_INTERVAL_S = 0.5
"""Seconds between past, now and future: 15 frames at 30 fps (paper section "Architecture")."""

RULES = ("uniform", "frames", "episodes")
ACTION_AND_FORESIGHT, FORESIGHT = "action+foresight", "foresight"
SUPERVISIONS = (ACTION_AND_FORESIGHT, FORESIGHT)

FILE_KEYS = ("foresight_interval_s", "rank_strategy", "groups", "sources")
GROUP_KEYS = ("share", "rule", "gamma")
SOURCE_KEYS = (
    *("repo_id", "root", "revision", "episodes", "embodiment"),
    *("weight", "group", "rule", "gamma", "supervision", "cameras", "fps"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Rule:
    """How a weight is divided over several datasets: in proportion to ``size ** gamma``."""

    size: str = "frames"
    """What counts: ``frames``, ``episodes``, or ``uniform`` (all datasets alike)."""
    gamma: float = 1.0
    """1: in proportion to size; below 1: small datasets get more than that; 0: as ``uniform``."""

    def divide(self, frames: Sequence[int], episodes: Sequence[int]) -> NDArray[np.float64]:
        """Parts of 1, one per dataset, from their frames and episodes in use (each at least 1)."""
        sizes = {"uniform": [1] * len(frames), "frames": frames, "episodes": episodes}[self.size]
        # Through logarithms: 692 million frames to a large gamma would overflow.
        logs = self.gamma * np.log(np.asarray(sizes, dtype=np.float64))
        parts = np.exp(logs - logs.max())
        return parts / parts.sum()

    def __str__(self) -> str:
        return self.size if self.size == "uniform" or self.gamma == 1 else f"{self.size}^{self.gamma:g}"


@dataclass(frozen=True)
class GroupSpec:
    """A budget that several sources share."""

    name: str
    share: float
    """On the same scale as the weights of sources without a group."""
    rule: Rule
    line: int


@dataclass(frozen=True)
class EpisodeRange:
    """``"a:b"``, as in Python: from episode a up to but not including b; negative numbers count from the end."""

    start: int | None
    stop: int | None

    def __str__(self) -> str:
        start, stop = ("" if bound is None else str(bound) for bound in (self.start, self.stop))
        return f"{start}:{stop}"


@dataclass(frozen=True)
class SourceSpec:
    """One entry of ``sources``, as written."""

    name: str
    repo_id: str | None = None
    root: str | None = None
    revision: str | None = None
    episodes: tuple[int, ...] | EpisodeRange | None = None
    """None: all of them."""
    embodiment: str | None = None
    """None: inferred from the dataset."""
    weight: float | None = None
    group: str | None = None
    rule: Rule = Rule()
    """How the weight of a glob is divided over the datasets it finds; without a group only."""
    trains_actions: bool = True
    cameras: Mapping[str, str] | None = None
    """Camera slot -> feature key or short name."""
    fps: float | None = None
    """None: the dataset's own."""
    lines: Mapping[str, int] = field(default_factory=dict[str, int])
    """Line of each key; "" is that of the name."""

    def line(self, *keys: str) -> int | None:
        """Line of the first of ``keys`` that is in the file, or of the source's name."""
        return next((self.lines[key] for key in (*keys, "") if key in self.lines), None)

    @property
    def glob(self) -> str | None:
        """The pattern that names several datasets, if there is one."""
        return next((text for text in (self.root, self.repo_id) if text is not None and is_glob(text)), None)


@dataclass(frozen=True)
class MixtureSpec:
    """The whole file, as written."""

    path: Path
    foresight_interval_s: float
    rank_strategy: str
    groups: Mapping[str, GroupSpec]
    sources: tuple[SourceSpec, ...]


def is_glob(text: str) -> bool:
    """Whether ``text`` has a wildcard; write ``[*]`` for a star that is meant."""
    return any(mark in text for mark in "*?[")


def read_mixture(path: str | Path) -> MixtureSpec:
    """Read and check the file alone; no dataset is looked at.

    Raises:
        InternVLAError: every problem, with its line.
    """
    spec, problems = parse_mixture(path)
    problems.raise_if_any(f"{path} is not a mixture file")
    return spec


def parse_mixture(path: str | Path) -> tuple[MixtureSpec, Problems]:
    """What could be understood of the file, and what is wrong with it.

    Values that are wrong are replaced by their defaults, and sources that do not say which data they mean are left out,
    so that whoever goes on to look at the datasets can report the problems of both at once.

    Raises:
        InternVLAError: no such file, or not YAML.
    """
    file = YamlFile.load(path)
    problems = file.problems()
    if not isinstance(file.root, dict):
        what = "nothing" if file.root is None else f"a {type(file.root).__name__}"
        problems.add(f"the file holds {what}; expected a mapping with {', '.join(FILE_KEYS)}", 1)
        return MixtureSpec(Path(path), DEFAULT_INTERVAL_S, "exact", {}, ()), problems

    read = _Reader(file, problems)
    check_keys(problems, file, known=FILE_KEYS, required=("sources",))
    groups = {
        name: group for name in read.names("groups", optional=True) if (group := _read_group(read, name)) is not None
    }
    sources = tuple(
        source
        for name in read.names("sources", optional=False)
        if (source := _read_source(read, name, read.keys("groups"))) is not None
    )
    wanted = {text for name in read.keys("sources") if isinstance(text := read.value("sources", name, "group"), str)}
    for name in groups:
        if name not in wanted:
            problems.add(
                f"groups.{name}: no source names it, so its share would be lost. "
                f"Write 'group: {name}' in a source, or remove the group",
                file.line_of("groups", name),
            )
    return (
        MixtureSpec(
            path=Path(path),
            foresight_interval_s=read.number("foresight_interval_s") or DEFAULT_INTERVAL_S,
            rank_strategy=read.choice(RANK_STRATEGIES, "rank_strategy") or "exact",
            groups=groups,
            sources=sources,
        ),
        problems,
    )


def _read_group(read: "_Reader", name: str) -> GroupSpec | None:
    where = ("groups", name)
    if not check_keys(read.problems, read.file, *where, known=GROUP_KEYS, required=("share",)):
        return None
    share = read.number(*where, "share")
    # A share that is missing or wrong is reported; 1 stands in, so that the group's sources are checked as well.
    return GroupSpec(name, share or 1.0, read.rule(*where), read.file.line_of(*where))


def _read_source(read: "_Reader", name: str, groups: Sequence[str]) -> SourceSpec | None:
    where = ("sources", name)
    if not check_keys(read.problems, read.file, *where, known=SOURCE_KEYS):
        return None
    repo_id, root = read.text(*where, "repo_id"), read.text(*where, "root")
    source = SourceSpec(
        name=name,
        repo_id=repo_id,
        root=root,
        revision=read.text(*where, "revision"),
        episodes=read.episodes(*where, "episodes"),
        embodiment=read.text(*where, "embodiment"),
        weight=read.number(*where, "weight"),
        group=read.choice(
            groups, *where, "group", otherwise="Groups are listed under 'groups:' at the top of the file"
        ),
        rule=read.rule(*where),
        # A word that is not known counts as foresight, which asks the least of the dataset: no complaints on top.
        trains_actions="supervision" not in read.keys(*where)
        or read.choice(SUPERVISIONS, *where, "supervision") == ACTION_AND_FORESIGHT,
        cameras=read.cameras(*where, "cameras"),
        fps=read.number(*where, "fps"),
        lines={"": read.file.line_of(*where), **{key: read.file.line_of(*where, key) for key in read.keys(*where)}},
    )
    _check_data(read, source)
    _check_share(read, source)
    return source if source.repo_id or source.root else None


def _check_data(read: "_Reader", source: SourceSpec) -> None:
    """Which dataset is meant?"""
    keys = read.keys("sources", source.name)

    def complain(text: str, *at: str) -> None:
        read.problems.add(f"sources.{source.name}: {text}", source.line(*at))

    if not {"repo_id", "root"} & set(keys):
        complain("names no data; write 'repo_id: <owner>/<name>' or 'root: <folder>'")
    if source.repo_id is not None and not re.fullmatch(r"[^/]+/[^/]+", source.repo_id):
        complain(f"repo_id {source.repo_id!r}; expected <owner>/<name>. A folder is named by 'root'", "repo_id")
    elif source.repo_id is not None and is_glob(source.repo_id.split("/")[0]):
        complain(f"repo_id {source.repo_id!r}; a glob may stand in the name, not in the owner", "repo_id")
    if source.repo_id is not None and source.root is not None and source.glob is not None:
        complain("a glob names many datasets: give 'root' or 'repo_id', not both", "root", "repo_id")
    if source.revision is not None and source.root is not None:
        complain(
            "'revision' with 'root'; LeRobot takes a folder as it is, whatever its revision. "
            "Leave out 'root' (the Hub cache keeps revisions apart) or 'revision'",
            "revision",
        )
    if source.glob is None:
        for key in ("rule", "gamma"):
            if key in keys and source.group is None:
                complain(f"{key!r} divides the weight of a glob, and there is none here; remove it", key)


def _check_share(read: "_Reader", source: SourceSpec) -> None:
    """How often is it drawn?"""
    keys = read.keys("sources", source.name)

    def complain(text: str, *at: str) -> None:
        read.problems.add(f"sources.{source.name}: {text}", source.line(*at))

    if "weight" in keys and "group" in keys:
        complain("has both 'weight' and 'group'; a group's share is divided by its rule. Keep one of them", "weight")
    if "weight" not in keys and "group" not in keys:
        complain("has neither 'weight' nor 'group'; write 'weight: <number above 0>' or 'group: <name>'")
    if "group" in keys:
        for key in ("rule", "gamma"):
            if key in keys:
                complain(f"{key!r} beside 'group'; the group has the rule. Remove it here", key)


class _Reader:
    """Values of the file by their place, each checked; what is wrong is noted and None returned."""

    def __init__(self, file: YamlFile, problems: Problems) -> None:
        self.file, self.problems = file, problems

    def value(self, *where: str) -> Any:
        """The value at ``where``, None if there is nothing."""
        found: Any = self.file.root
        for step in where:
            found = cast(dict[str, Any], found).get(step) if isinstance(found, dict) else None
        return found

    def keys(self, *where: str) -> tuple[str, ...]:
        mapping = self.value(*where)
        return tuple(str(key) for key in cast(dict[Any, Any], mapping)) if isinstance(mapping, dict) else ()

    def complain(self, where: tuple[str, ...], text: str) -> None:
        self.problems.add(f"{'.'.join(where)}: {text}", self.file.line_of(*where))

    def _present(self, where: tuple[str, ...]) -> bool:
        """Whether something is written there; an empty value (``weight:``) is a problem, not an absence."""
        *parent, key = where
        if key not in self.keys(*parent):
            return False
        if self.value(*where) is None:
            self.complain(where, "has no value; write one, or remove the key")
            return False
        return True

    def names(self, key: str, *, optional: bool) -> tuple[str, ...]:
        """The keys of a mapping of named things."""
        if not self._present((key,)):
            return ()
        mapping = self.value(key)
        if not isinstance(mapping, dict) or not (mapping or optional):
            example = "a name and its settings per entry, for example 'kitchen: {repo_id: me/kitchen, weight: 1}'"
            self.complain((key,), f"expected {example}" if key == "sources" else "expected names and their settings")
            return ()
        good: list[str] = []
        for name in cast(dict[Any, Any], mapping):
            if isinstance(name, str) and _NAME.fullmatch(name):
                good.append(name)
            else:
                self.problems.add(
                    f"{key}: the name {name!r}; expected text of letters, digits, '_', '-' and '.' "
                    "(names appear in logs and metrics)",
                    self.file.line_of(key, name),
                )
        return tuple(good)

    def text(self, *where: str) -> str | None:
        if not self._present(where):
            return None
        value = self.value(*where)
        if isinstance(value, str) and value.strip():
            return value.strip()
        self.complain(where, f"got {value!r}, expected text; quotes keep YAML from reading it as something else")
        return None

    def number(self, *where: str) -> float | None:
        """A finite number above zero."""
        return self._number(where, "a number above 0", lambda number: number > 0)

    def _number(self, where: tuple[str, ...], expected: str, is_good: Callable[[float], bool]) -> float | None:
        if not self._present(where):
            return None
        value = self.value(*where)
        number = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
        elif isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value):
            number = float(value)  # YAML 1.1 takes 1e-3 for text: its numbers want a dot before the exponent.
        if math.isfinite(number) and is_good(number):
            return number
        hint = "; to leave a source out, remove it" if where[-1] == "weight" and number == 0 else ""
        self.complain(where, f"got {value!r}, expected {expected}{hint}")
        return None

    def choice(self, known: Sequence[str], *where: str, otherwise: str = "") -> str | None:
        if not self._present(where):
            return None
        value = self.value(*where)
        if value in known:
            return cast(str, value)
        listed = f"known: {', '.join(known)}" if known else "none is known"
        self.complain(
            where,
            f"there is no {where[-1]} {value!r}{did_you_mean(str(value), known)}; {listed}"
            + (f". {otherwise}" if otherwise else ""),
        )
        return None

    def rule(self, *where: str) -> Rule:
        size = self.choice(RULES, *where, "rule") or "frames"
        gamma = self._number((*where, "gamma"), "a number from 0", lambda number: number >= 0)
        if size == "uniform" and "gamma" in self.keys(*where):
            self.complain(
                (*where, "gamma"), "'gamma' is for the rules frames and episodes; uniform has none. Remove it"
            )
        return Rule(size, 1.0 if gamma is None else gamma)

    def cameras(self, *where: str) -> dict[str, str] | None:
        if not self._present(where):
            return None
        mapping = self.value(*where)
        if not isinstance(mapping, dict) or not mapping:
            self.complain(where, f"got {mapping!r}, expected a map such as {{head: observation.images.top}}")
            return None
        if "head" not in mapping:
            self.complain(where, "the map has no 'head', which the model requires")
        found: dict[str, str] = {}
        for slot in self.keys(*where):
            if slot not in CAMERA_SLOTS:
                hint = did_you_mean(slot, CAMERA_SLOTS)
                self.complain(
                    (*where, slot), f"there is no camera slot {slot!r}{hint}; known: {', '.join(CAMERA_SLOTS)}"
                )
            elif (camera := self.text(*where, slot)) is not None:
                found[slot] = camera
        return found or None

    def episodes(self, *where: str) -> tuple[int, ...] | EpisodeRange | None:
        if not self._present(where):
            return None
        value = self.value(*where)
        if isinstance(value, str) and (bounds := re.fullmatch(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*", value)):
            start, stop = (None if bound is None else int(bound) for bound in bounds.groups())
            return EpisodeRange(start, stop)
        if isinstance(value, list) and value:
            listed = cast(list[Any], value)
            if all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in listed):
                episodes = tuple(sorted(cast(list[int], listed)))
                twice = sorted({one for one, next_one in itertools.pairwise(episodes) if one == next_one})
                if twice:
                    self.complain(where, f"lists {', '.join(map(str, twice))} more than once")
                return tuple(dict.fromkeys(episodes))
        # YAML 1.1 reads an unquoted 1:30 as a number to the base 60.
        quotes = " (with the quotes: YAML reads 1:30 without them as 90)" if isinstance(value, int) else ""
        self.complain(where, f'got {value!r}, expected a list such as [0, 1, 5] or a range such as "0:90"{quotes}')
        return None
