"""What a robot's numbers mean, as data: joints in order with units, cameras, the gripper's convention.

An embodiment is a YAML file that a person can check against the datasheet (``presets/*.yaml``, or your own, which
``internvla-embodiments new`` writes from a dataset). It reads like ``Embodiment`` below:

    name: my_robot
    title: My robot
    robot_types: [my_robot_follower]        # LeRobot's robot_type of its datasets; other spellings too
    fps: 30                                 # typical rate of its datasets, or null
    cameras: {head: [top], left_wrist: [wrist]}
    gripper: 0 is closed, 100 is open
    source: datasheet, page 3
    names_are_checked: true                 # compare the names below with those in a dataset
    state:                                  # feature keys, concatenated in this order
      - key: observation.state
        dims:
          - {name: shoulder.pos, unit: deg}
          - {name: gripper.pos, unit: 0..100}
    action:
      - key: action
        dims:                               # relative: may be trained relative to the state (grippers stay absolute)
          - {name: shoulder.pos, unit: deg, relative: true, range: [-100, 100], speed: 270}
          - {name: gripper.pos, unit: 0..100, relative: false}

``range`` and ``speed`` are optional: what a command may be and how fast it may change (limits.py, docs/robots.md).
The same form, as JSON, is kept in a checkpoint's config.json.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import CAMERA_SLOTS
from lerobot_internvla.yaml_lines import Step, YamlFile, check_keys, did_you_mean

UNITS: dict[str, str] = {
    "rad": "radians",
    "deg": "degrees",
    "m": "metres",
    "mm": "millimetres",
    "rad/s": "radians per second",
    "deg/s": "degrees per second",
    "m/s": "metres per second",
    "N": "newtons",
    "Nm": "newton metres",
    "px": "pixels",
    "0..1": "from 0 to 1",
    "-1..1": "from -1 to 1",
    "0..100": "percent of the calibrated range",
    "-100..100": "the calibrated range, its middle at 0",
    "scene": "a unit of the simulated scene, explained under source",
    "unknown": "nobody has said yet",
}
"""Every unit that a dim may have. They are for people and for plausibility checks: no number is converted."""

EMBODIMENT_KEYS = (
    *("name", "title", "robot_types", "fps", "cameras", "gripper", "source", "names_are_checked"),
    *("state", "action"),
)
REQUIRED_KEYS = tuple(key for key in EMBODIMENT_KEYS if key != "names_are_checked")


@dataclass(frozen=True)
class Dim:
    """One number of a state or an action."""

    name: str
    unit: str
    """One of ``UNITS``."""
    relative: bool = False
    """Action dims: it may be trained relative to the state, whose dim at the same position is the same joint. False for
    grippers, velocities and every dim of a state."""
    range: tuple[float | None, float | None] | None = None
    """Action dims: lowest and highest command, in ``unit``; None is no bound."""
    speed: float | None = None
    """Action dims: how fast the command may change, in ``unit`` per second; None is no bound."""


@dataclass(frozen=True)
class Part:
    """One feature of a dataset."""

    key: str
    """Feature key, such as "observation.state"."""
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Embodiment:
    """One robot: what its state, actions and cameras are called, in which order and in which units.

    Raises:
        InternVLAError: the values contradict each other; all problems at once.
    """

    name: str
    """Lower case letters, digits and underscores; it names the robot's statistics in a checkpoint."""
    title: str
    robot_types: tuple[str, ...]
    """LeRobot's ``robot_type`` of its datasets, and other spellings."""
    state: tuple[Part, ...]
    """Features, concatenated in this order. Empty: a video without a robot."""
    action: tuple[Part, ...]
    cameras: Mapping[str, tuple[str, ...]] = field(hash=False)
    """Slot (head, left_wrist, right_wrist) -> feature keys or short names, best first. A slot that is not listed: the
    robot has no such camera."""
    gripper: str
    """What both ends of the gripper's range mean, in one sentence."""
    fps: float | None
    """Typical rate of its datasets, for people: the rate of a dataset is read from the dataset."""
    source: str
    """Where all this is known from."""
    names_are_checked: bool = True
    """Whether the names of a dataset's dims must be these. False where nobody knows how datasets of this robot name
    them, or where they do not: then widths are compared, and names only if they are the same ones in another order."""

    def __post_init__(self) -> None:
        problems = [_located(steps, text) for steps, text in find_problems(self.to_dict())]
        if problems:
            raise InternVLAError(f"Embodiment {self.name!r} is not valid: " + "; ".join(problems) + ".")

    @property
    def state_dim(self) -> int:
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(dim.name for part in self.state for dim in part.dims)

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(dim.name for part in self.action for dim in part.dims)

    @property
    def relative_mask(self) -> tuple[bool, ...]:
        """Per action dim, whether it may be relative to the state."""
        return tuple(dim.relative for dim in self.action_dims)

    @property
    def action_dims(self) -> tuple[Dim, ...]:
        """The dims of all action features, in order."""
        return tuple(dim for part in self.action for dim in part.dims)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data in the form of the YAML file; ``from_dict`` gives back an equal embodiment."""

        def dims(part: Part, is_action: bool) -> list[dict[str, Any]]:
            shown: list[dict[str, Any]] = [
                {"name": dim.name, "unit": dim.unit, "relative": dim.relative} for dim in part.dims
            ]
            for entry, dim in zip(shown, part.dims, strict=True):
                if not is_action and not dim.relative:
                    del entry["relative"]  # a state dim has none; True is kept, to be refused
                if dim.range is not None:
                    entry["range"] = list(dim.range)
                if dim.speed is not None:
                    entry["speed"] = dim.speed
            return shown

        return {
            "name": self.name,
            "title": self.title,
            "robot_types": list(self.robot_types),
            "fps": self.fps,
            "cameras": {slot: list(names) for slot, names in self.cameras.items()},
            "gripper": self.gripper,
            "source": self.source,
            "names_are_checked": self.names_are_checked,
            "state": [{"key": part.key, "dims": dims(part, False)} for part in self.state],
            "action": [{"key": part.key, "dims": dims(part, True)} for part in self.action],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Embodiment":
        """Read what ``to_dict`` wrote.

        Raises:
            InternVLAError: it is something else; all problems at once.
        """
        problems = [_located(steps, text) for steps, text in find_problems(data)]
        if problems:
            raise InternVLAError(f"Embodiment {data.get('name')!r} is not valid: " + "; ".join(problems) + ".")
        return _build(data)


def load_embodiment(path: str | Path) -> Embodiment:
    """Read an embodiment's YAML file.

    Raises:
        InternVLAError: every problem of the file, with its line.
    """
    file = YamlFile.load(path)
    problems = file.problems()
    if check_keys(problems, file, known=EMBODIMENT_KEYS, required=REQUIRED_KEYS):
        for steps, text in find_problems(file.root, check_top_level=False):
            problems.add(_located(steps, text), file.line_of(*steps))
    problems.raise_if_any(f"{path} does not describe an embodiment (docs/embodiments.md has the form)")
    return _build(file.root)


def find_problems(data: Mapping[str, Any], *, check_top_level: bool = True) -> Iterator[tuple[tuple[Step, ...], str]]:
    """Everything that is wrong with an embodiment in plain data: (steps to the place, what is wrong there)."""
    if check_top_level:
        yield from _key_problems(data, (), EMBODIMENT_KEYS, REQUIRED_KEYS)
    for key in ("title", "gripper", "source"):
        if key in data and not _is_text(data[key]):
            yield (key,), f"expected a text, got {data[key]!r}"
    name = data.get("name")
    if "name" in data and not (isinstance(name, str) and re.fullmatch("[a-z][a-z0-9_]*", name)):
        yield ("name",), f"expected lower case letters, digits and underscores, such as my_robot; got {name!r}"
    robot_types = data.get("robot_types", [])
    if not _is_list(robot_types) or not all(_is_text(kind) for kind in robot_types):
        yield (
            ("robot_types",),
            f"expected a list of texts, or [] if no dataset has this robot_type; got {robot_types!r}",
        )
    fps = data.get("fps")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not fps > 0):
        yield ("fps",), f"expected frames per second above 0, or null; got {fps!r}"
    if not isinstance(data.get("names_are_checked", True), bool):
        yield ("names_are_checked",), f"expected true or false, got {data['names_are_checked']!r}"
    if "cameras" in data:
        yield from _camera_problems(data["cameras"])
    sound = True
    for key in ("state", "action"):
        if key in data:
            for problem in _part_problems(data[key], key):
                sound = False
                yield problem
    if sound and "state" in data and "action" in data:
        yield from _relative_problems(data["state"], data["action"])


def _camera_problems(cameras: Any) -> Iterator[tuple[tuple[Step, ...], str]]:
    if not isinstance(cameras, Mapping):
        yield ("cameras",), f"expected slots and their cameras, such as {{head: [top]}}; got {cameras!r}"
        return
    owner: dict[str, str] = {}
    for slot, names in cast("Mapping[Any, Any]", cameras).items():
        steps = ("cameras", slot)
        if slot not in CAMERA_SLOTS:
            hint = did_you_mean(str(slot), CAMERA_SLOTS) or f"; there are {', '.join(CAMERA_SLOTS)}"
            yield steps, f"there is no such slot{hint}"
        if not _is_list(names) or not names or not all(_is_text(name) for name in names):
            yield steps, f"expected a list of feature keys or short names, best first; got {names!r}"
            continue
        for name in names:
            if name in owner:
                yield steps, f"camera {name!r} is already under {owner[name]}"
            owner.setdefault(name, str(slot))
    if "head" not in cameras:
        yield ("cameras",), "there is no head camera, which the model requires"


def _part_problems(parts: Any, key: str) -> Iterator[tuple[tuple[Step, ...], str]]:
    """Problems of ``state`` or ``action``."""
    if not _is_list(parts):
        yield (key,), f"expected a list of features with key and dims, or []; got {parts!r}"
        return
    required = ("name", "unit", "relative") if key == "action" else ("name", "unit")
    known = (*required, "range", "speed") if key == "action" else required
    keys: set[str] = set()
    names: set[str] = set()
    for index, part in enumerate(parts):
        steps: tuple[Step, ...] = (key, index)
        missing = list(_key_problems(part, steps, ("key", "dims"), ("key", "dims")))
        yield from missing
        if missing:
            continue
        if not _is_text(part["key"]):
            yield (*steps, "key"), f"expected a feature key such as observation.state, got {part['key']!r}"
        elif part["key"] in keys:
            yield (*steps, "key"), f"{part['key']!r} is already listed"
        keys.add(str(part["key"]))
        if not _is_list(part["dims"]) or not part["dims"]:
            yield (*steps, "dims"), f"expected a list of dims, got {part['dims']!r}"
            continue
        for position, dim in enumerate(part["dims"]):
            where = (*steps, "dims", position)
            wrong = list(_key_problems(dim, where, known, required))
            yield from wrong
            if wrong:
                continue
            if not _is_text(dim["name"]):
                yield where, f"expected a text as name, got {dim['name']!r}"
            elif dim["name"] in names:
                yield where, f"the name {dim['name']!r} is already taken"
            names.add(str(dim["name"]))
            if dim["unit"] not in UNITS:
                hint = did_you_mean(str(dim["unit"]), tuple(UNITS)) or f"; known: {', '.join(UNITS)}"
                yield where, f"unknown unit {dim['unit']!r}{hint}"
            if not isinstance(dim.get("relative", False), bool):
                yield where, f"expected true or false for relative, got {dim['relative']!r}"
            for text in _limit_problems(dim):
                yield where, text


def _limit_problems(dim: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a dim's ``range`` and ``speed``, where it has them."""
    bounds, speed = dim.get("range"), dim.get("speed")
    if bounds is not None:
        if not _is_list(bounds) or len(bounds) != 2 or not all(b is None or _is_number(b) for b in bounds):
            yield f"expected [lowest, highest] for range, either of them null where there is no bound; got {bounds!r}"
        elif bounds[0] is None and bounds[1] is None:
            yield "range: [null, null] bounds nothing; leave it out"
        elif bounds[0] is not None and bounds[1] is not None and not bounds[0] < bounds[1]:
            yield f"range: {bounds[0]!r} is not below {bounds[1]!r}"
    if speed is not None and not (_is_number(speed) and speed > 0):
        yield f"expected a number above 0 for speed, in units per second; got {speed!r}"


def _relative_problems(state: Any, action: Any) -> Iterator[tuple[tuple[Step, ...], str]]:
    """A relative action dim needs the same joint at the same position of the state: that is what is subtracted."""
    state_names: list[str] = [dim["name"] for part in state for dim in part["dims"]]
    position = 0
    for index, part in enumerate(action):
        for offset, dim in enumerate(part["dims"]):
            there = state_names[position] if position < len(state_names) else None
            if dim["relative"] and there != dim["name"]:
                yield (
                    ("action", index, "dims", offset),
                    f"{dim['name']!r} is relative, but dim {position} of the state is {there!r}: both must be the same "
                    "joint, under the same name",
                )
            position += 1


def _key_problems(
    mapping: Any, steps: tuple[Step, ...], known: Sequence[str], required: Sequence[str]
) -> Iterator[tuple[tuple[Step, ...], str]]:
    if not isinstance(mapping, Mapping):
        yield steps, f"expected a mapping with the keys {', '.join(known)}; got {mapping!r}"
        return
    for key in cast("Mapping[Any, Any]", mapping):
        if key not in known:
            yield (*steps, key), f"unknown key{did_you_mean(str(key), known) or '; known: ' + ', '.join(known)}"
    for key in required:
        if key not in mapping:
            yield steps, f"{key!r} is missing"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _located(steps: Sequence[Step], text: str) -> str:
    """ "action[0].dims[2]: text"."""
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    return f"{place}: {text}" if place else text


def _build(data: Mapping[str, Any]) -> Embodiment:
    """Plain data without problems -> values."""

    def number(value: Any) -> float | None:
        return None if value is None else float(value)

    def dim(given: Mapping[str, Any]) -> Dim:
        bounds = given.get("range")
        return Dim(
            name=given["name"],
            unit=given["unit"],
            relative=given.get("relative", False),
            range=None if bounds is None else (number(bounds[0]), number(bounds[1])),
            speed=number(given.get("speed")),
        )

    def parts(key: str) -> tuple[Part, ...]:
        return tuple(Part(part["key"], tuple(dim(given) for given in part["dims"])) for part in data[key])

    return Embodiment(
        name=data["name"],
        title=data["title"],
        robot_types=tuple(data["robot_types"]),
        state=parts("state"),
        action=parts("action"),
        cameras={slot: tuple(names) for slot, names in data["cameras"].items()},
        gripper=data["gripper"],
        fps=None if data["fps"] is None else float(data["fps"]),
        source=data["source"],
        names_are_checked=data.get("names_are_checked", True),
    )
