"""A first YAML file for a robot that nobody has described yet, from the metadata of one of its datasets.

What the metadata says is filled in: feature keys, widths, names, cameras, rate. What it cannot say is marked and left
for people: units, the gripper's ends, where the facts come from. The file loads, and its dataset fits it.

Limits of the commands (limits.py) are drafted from what was recorded, with a margin, for people to review.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lerobot_internvla.camera_slots import resolve_camera_slots, short_name
from lerobot_internvla.embodiments.matching import Features, camera_keys, camera_problem, dim_names, vector_keys
from lerobot_internvla.embodiments.spec import UNITS, Embodiment
from lerobot_internvla.errors import InternVLAError

STAYS_ABSOLUTE = ("gripper", "vel", "torque", "effort")
"""Parts of names of what the draft does not call relative: an opening, a speed or a force is no offset to the state."""

RANGE_MARGIN = 0.1
"""Of the recorded range, added at both ends."""
SPEED_MARGIN = 1.5
"""Times the largest recorded change."""


@dataclass(frozen=True)
class Recorded:
    """What one action feature of a dataset did, dim by dim, in its own units."""

    low: Sequence[float]
    high: Sequence[float]
    fastest: Sequence[float] | None
    """Largest change from one frame to the next, per second; None where the numbers themselves were not read."""


def draft_embodiment(
    name: str,
    features: Features,
    *,
    robot_type: str | None,
    fps: float,
    dataset: str,
    camera_map: Mapping[str, str] | None = None,
    recorded: Mapping[str, Recorded] | None = None,
) -> str:
    """The text of a YAML file with comments; ``spec.load_embodiment`` reads it.

    Args:
        name: of the new embodiment.
        features, robot_type, fps: of the dataset.
        dataset: what the file calls the dataset; no path of this machine, for checkpoints carry it on.
        camera_map: slot -> feature key or short name, where the names of the cameras do not tell.
        recorded: action feature -> what it did; without it no limits are drafted.

    Raises:
        InternVLAError: the cameras cannot be told apart, there are none, or ``name`` is no name.
    """
    cameras = camera_keys(features)
    try:
        slots = resolve_camera_slots(cameras, camera_map)
    except InternVLAError as error:
        if not cameras:
            raise
        raise InternVLAError(
            f"{camera_problem(error, cameras)}. Say which is which: --camera-map head=<camera> left_wrist=<camera>; "
            "cameras that you leave out are not used."
        ) from error
    state, action, unused = _choose_features(features)
    state_dims, action_dims = (_name_dims(keys, features) for keys in (state, action))
    in_state = [dim for _, dims in state_dims for dim in dims]
    position = 0
    action_part: list[dict[str, Any]] = []
    named = all(dim_names(features[key]) for key in (*state, *action))
    for key, dims in action_dims:
        part: dict[str, Any] = {"key": key, "dims": []}
        for index, dim in enumerate(dims):
            same_joint = named and position < len(in_state) and in_state[position] == dim
            may_be = same_joint and not any(word in dim.lower() for word in STAYS_ABSOLUTE)
            limits = _draft_limits((recorded or {}).get(key), index)
            part["dims"].append({"name": dim, "unit": "unknown", "relative": may_be, **limits})
            position += 1
        action_part.append(part)
    data: dict[str, Any] = {
        "name": name,
        "title": robot_type or name,
        "robot_types": [robot_type] if robot_type else [],
        "fps": fps,
        "cameras": {slot: [short_name(key)] for slot, key in slots.items()},
        "gripper": "unknown",
        "source": f"metadata of {dataset}; units and gripper not filled in yet",
        "names_are_checked": named and bool(state or action),
        "state": [{"key": key, "dims": [{"name": dim, "unit": "unknown"} for dim in dims]} for key, dims in state_dims],
        "action": action_part,
    }
    Embodiment.from_dict(data)
    unused += [key for key in cameras if key not in slots.values()]
    return _with_comments(data, dataset, unused)


def _draft_limits(recorded: Recorded | None, index: int) -> dict[str, Any]:
    """``range`` and ``speed`` of one dim; none for what never moved."""
    if recorded is None:
        return {}
    low, high = float(recorded.low[index]), float(recorded.high[index])
    limits: dict[str, Any] = {}
    if math.isfinite(low) and math.isfinite(high) and low < high:
        margin = RANGE_MARGIN * (high - low)
        limits["range"] = [_outward(low - margin, high - low, -1), _outward(high + margin, high - low, 1)]
    fastest = 0.0 if recorded.fastest is None else SPEED_MARGIN * float(recorded.fastest[index])
    if math.isfinite(fastest) and fastest > 0:
        limits["speed"] = _outward(fastest, fastest, 1)
    return limits


def _outward(value: float, scale: float, side: int) -> float:
    """Rounded up (side 1) or down (-1) to a hundredth of the power of ten in ``scale``."""
    digits = 2 - math.floor(math.log10(scale))
    rounded = side * math.ceil(side * value * 10.0**digits - 1e-9) / 10.0**digits
    return round(rounded, max(digits, 0)) + 0.0  # no -0.0


def _choose_features(features: Features) -> tuple[list[str], list[str], list[str]]:
    """(state, action, other) keys: LeRobot's own if they are there, else what is named like them, in dataset order."""
    keys = vector_keys(features)
    state = [key for key in keys if key.startswith(("observation.state", "states."))]
    action = [key for key in keys if key.startswith("action")]
    state = ["observation.state"] if "observation.state" in state else state
    action = ["action"] if "action" in action else action
    return state, action, [key for key in keys if key not in state and key not in action]


def _name_dims(keys: list[str], features: Features) -> list[tuple[str, list[str]]]:
    """(key, one name per dim) for each key; names are unique over all of them."""
    parts: list[tuple[str, list[str]]] = []
    for key in keys:
        names = dim_names(features[key]) or tuple(f"dim_{i}" for i in range(int(features[key]["shape"][0])))
        parts.append((key, list(names)))
    flat = [name for _, names in parts for name in names]
    if len(set(flat)) == len(flat):
        return parts
    parts = [(key, [f"{_tail(key)}.{name}" for name in names]) for key, names in parts]
    flat = [name for _, names in parts for name in names]
    if len(set(flat)) == len(flat):
        return parts
    return [(key, [f"{_tail(key)}.dim_{i}" for i in range(len(names))]) for key, names in parts]


def _tail(key: str) -> str:
    """What state and action share: "action.left_arm" and "observation.state.left_arm" -> "left_arm"."""
    for start in ("observation.state.", "states.", "actions.", "action."):
        if key.startswith(start):
            return key.removeprefix(start)
    return key


def _with_comments(data: dict[str, Any], dataset: str, unused: list[str]) -> str:
    """YAML by hand: a file that people fill in wants its comments where the gaps are."""
    lines = [
        f"# {data['title']}, drafted by `internvla-embodiments new` from the metadata of {dataset}.",
        "# Fill in what is 'unknown'. The metadata of a dataset names no units: look at the robot, or at the program",
        "# that recorded. Then: internvla-embodiments check <dataset> --embodiment <this file>",
        "#",
        f"# units: {', '.join(unit for unit in UNITS if unit != 'unknown')}",
        "# relative: whether an action may be trained relative to the state; it must be a target for the joint that",
        "#   the state has at the same position. Grippers, velocities and forces stay absolute.",
    ]
    dims = [dim for part in data["action"] for dim in part["dims"]]
    if any("range" in dim for dim in dims):
        lines += [
            "# range, speed: what commands are limited to on a robot (docs/robots.md). Drafted from what was recorded:",
            f"#   lowest and highest action, and {RANGE_MARGIN:.0%} of their distance beyond both; largest change from",
            f"#   frame to frame, times {SPEED_MARGIN:g}. TODO review: they know no datasheet and no table.",
        ]
        if not any("speed" in dim for dim in dims):
            lines.append("#   No speed: the recorded numbers are not on this computer, only their metadata.")
    if unused:
        lines.append(f"# Also in the dataset, not used: {', '.join(unused)}")
    lines += [
        f"name: {data['name']}",
        f"title: {_quoted(data['title'])}",
        f"robot_types: {_listed(data['robot_types'])}  # robot_type of its datasets; other spellings may follow",
        f"fps: {data['fps']:g}",
        "cameras:  # best first, where datasets name them differently; a slot that is not listed: no such camera",
        *(f"  {slot}: {_listed(names)}" for slot, names in data["cameras"].items()),
        f"gripper: {_quoted(data['gripper'])}  # TODO what both ends of its range mean; 'There is none.' if so",
        f"source: {_quoted(data['source'])}  # TODO datasheet, program, person",
        f"names_are_checked: {_listed(data['names_are_checked'])}"
        + ("" if data["names_are_checked"] else "  # the dataset does not name its dims: these names are made up"),
    ]
    for kind in ("state", "action"):
        if not data[kind]:
            lines.append(f"{kind}: []")
            continue
        order = "  # concatenated in this order: check it" if len(data[kind]) > 1 else ""
        lines.append(f"{kind}:{order}")
        for part in data[kind]:
            lines += [f"  - key: {_quoted(part['key'])}", "    dims:"]
            for dim in part["dims"]:
                others = [f", {key}: {json.dumps(dim[key])}" for key in ("relative", "range", "speed") if key in dim]
                lines.append(f"      - {{name: {_quoted(dim['name'])}, unit: {dim['unit']}{''.join(others)}}}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A JSON string is a YAML string; plain where that reads the same."""
    plain = text and text[0].isalpha() and all(c.isalnum() or c in "._-" for c in text)
    return text if plain and text.lower() not in _YAML_WORDS else json.dumps(text, ensure_ascii=False)


_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_quoted(item) for item in cast('list[str]', value))}]"
    return json.dumps(value)
