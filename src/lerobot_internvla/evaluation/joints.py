"""What the numbers of a dataset's actions are called and in which units, as far as anybody has said.

A LeRobot dataset names its joints and no units. Units come from an embodiment: the one that is named, or the presets
that carry the dataset's ``robot_type`` and fit its actions. Where these disagree, or there are none, the unit is
"unknown", and is printed as such.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_internvla.action_space import joint_names
from lerobot_internvla.embodiments.matching import examine, unit_doubts
from lerobot_internvla.embodiments.registry import embodiments_called, get_embodiment
from lerobot_internvla.embodiments.spec import Embodiment
from lerobot_internvla.errors import InternVLAError

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Joint:
    """One dim of the action."""

    name: str
    unit: str
    """One of ``embodiments.spec.UNITS``."""
    state_dim: int | None
    """Position of the same joint in the state; None: the state does not hold it."""


@dataclass(frozen=True)
class Joints:
    """All dims of the action, in order."""

    joints: tuple[Joint, ...]
    notes: tuple[str, ...]
    """Where names and units come from, and what is doubtful about them; sentences."""

    def __len__(self) -> int:
        return len(self.joints)

    def __iter__(self):
        return iter(self.joints)


def describe_joints(
    features: Mapping[str, Any],
    *,
    robot_type: str | None,
    stats: Mapping[str, Any] | None = None,
    embodiment: str | None = None,
) -> Joints:
    """Names and units of a dataset's actions.

    Args:
        features: LeRobot's ``meta.features``.
        robot_type: ``meta.robot_type``.
        stats: LeRobot's ``meta.stats``: numbers that cannot have the embodiment's unit are noted.
        embodiment: preset or YAML file; None looks for presets of this robot type.

    Raises:
        InternVLAError: no actions, an unknown embodiment, or one that does not fit the actions.
    """
    if ACTION not in features:
        raise InternVLAError(
            f"The dataset has no feature {ACTION!r}, so there is nothing to compare a policy with. Numeric features: "
            f"{', '.join(k for k, f in features.items() if str(f.get('dtype')).startswith('float')) or 'none'}."
        )
    width = int(features[ACTION]["shape"][0])
    given = joint_names(features[ACTION])
    names = given or tuple(f"dim_{i}" for i in range(width))
    notes = [] if given else [f"The dataset does not name its {width} actions; they are numbered here."]
    units, source = _units(features, robot_type, stats, embodiment)
    notes += source
    state_dims, note = _state_dims(features, given, width)
    notes += note
    joints = tuple(Joint(*row) for row in zip(names, units or (UNKNOWN,) * width, state_dims, strict=True))
    return Joints(joints, tuple(notes))


def _units(
    features: Mapping[str, Any], robot_type: str | None, stats: Mapping[str, Any] | None, wanted: str | None
) -> tuple[tuple[str, ...] | None, list[str]]:
    candidates = [get_embodiment(wanted)] if wanted else embodiments_called(robot_type or "")
    if not candidates:
        return None, [f"Units are unknown: no embodiment describes robot_type {robot_type!r}. Name one: --embodiment."]
    problems = {robot.name: _action_problems(robot, features) for robot in candidates}
    if wanted and (wrong := problems[candidates[0].name]):
        raise InternVLAError(f"The dataset's actions are not those of embodiment {wanted!r}: {'; '.join(wrong)}.")
    fitting = [robot for robot in candidates if not problems[robot.name]]
    if not fitting:
        listed = "; ".join(f"{name}: {', '.join(wrong)}" for name, wrong in problems.items())
        return None, [f"Units are unknown: robot_type {robot_type!r} is known, but its actions are others ({listed})."]
    # Several robots may share a robot type (SO-100 and SO-101 do); where they agree, it does not matter which it is.
    units = {tuple(dim.unit for dim in robot.action[0].dims) for robot in fitting}
    known_as = " or ".join(robot.name for robot in fitting)
    if len(units) > 1:
        return None, [f"Units are unknown: the dataset may be of {known_as}, which differ. Name one: --embodiment."]
    doubts = unit_doubts(fitting[0], stats)
    return units.pop(), [f"Units are those of embodiment {known_as}.", *(f"Doubtful: {doubt}." for doubt in doubts)]


def _action_problems(robot: Embodiment, features: Mapping[str, Any]) -> list[str]:
    if [part.key for part in robot.action] != [ACTION]:
        return [f"its actions are not one feature {ACTION!r}"]
    found = examine(robot, features, needs_state=False)
    return [problem for part in found.parts for problem in part.problems]


def _state_dims(
    features: Mapping[str, Any], names: Sequence[str] | None, width: int
) -> tuple[list[int | None], list[str]]:
    """Where each action dim is in the state: by name, or by position where neither is named and both are as wide."""
    state = features.get(OBS_STATE)
    state_names = joint_names(state)
    if state is None:
        return [None] * width, ["There is no state, so holding it is no baseline here."]
    if names is not None and state_names is not None:
        found = [state_names.index(name) if name in state_names else None for name in names]
        missing = [name for name, dim in zip(names, found, strict=True) if dim is None]
        note = f"The state has no {', '.join(missing)}: holding it is no baseline there."
        return list(found), [note] if missing else []
    if int(state["shape"][0]) == width:
        note = "State or actions are not named: dim i of the state is taken for dim i of the action."
        return list(range(width)), [note]
    return [None] * width, ["State and action differ in width and are not named: holding the state is no baseline."]
