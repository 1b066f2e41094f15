"""How far and how fast a robot's commands may go, joint by joint, and which embodiment says so.

    found = find_limits(config, ["shoulder_pan.pos", ...], robot_type="so_follower")
    found.limits          ActionLimits in the order of these names; None where nothing is known
    found.text            which they are and where they come from, or why there are none: for the log

An action dim of an embodiment may have ``range`` (lowest and highest command) and ``speed`` (largest change in a
second). Whose are taken, best first:

1. a policy of several robots: those of the robot that it drives;
2. ``config.embodiment``: the preset or YAML file that it names;
3. presets whose robot type and joint names are the robot's; of several (so100, so101) the loosest bounds.

Nothing is guessed: without limits, or where joints have other names or units, commands stay as they are, and the text
says so. What acts on them is serving/action_limits.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.embodiments.matching import plain_joint, recorded_ranges
from lerobot_internvla.embodiments.registry import embodiments_called, get_embodiment, presets
from lerobot_internvla.embodiments.rows import read_rows
from lerobot_internvla.embodiments.spec import Dim, Embodiment
from lerobot_internvla.errors import InternVLAError

HOW_TO_LIMIT = (
    "write `range` and `speed` of its joints into an embodiment file (`internvla-embodiments new <dataset>` drafts "
    "them; docs/robots.md) and pass --policy.embodiment=<file>.yaml (internvla-policy-server: --embodiment)"
)


@dataclass(frozen=True)
class JointLimit:
    """Bounds of one number of a command."""

    name: str
    """As the robot calls it."""
    unit: str
    low: float = -math.inf
    high: float = math.inf
    speed: float = math.inf
    """Units per second."""

    @property
    def is_limited(self) -> bool:
        return any(math.isfinite(bound) for bound in (self.low, self.high, self.speed))

    def __str__(self) -> str:
        """ "elbow.pos -100..100 deg, 270 deg/s"."""
        bounds = [f"{bound:g}" if math.isfinite(bound) else "" for bound in (self.low, self.high)]
        parts = [in_unit("..".join(bounds), self.unit)] if any(bounds) else []
        parts += [f"{in_unit(f'{self.speed:g}', self.unit)}/s"] if math.isfinite(self.speed) else []
        return f"{self.name} {', '.join(parts) or 'unlimited'}"


@dataclass(frozen=True)
class ActionLimits:
    """Bounds of a robot's commands."""

    joints: tuple[JointLimit, ...]
    """One per number of a command, in order; a joint without bounds is among them."""
    source: str
    """Whose they are: "preset so101"."""

    def __str__(self) -> str:
        limited = [str(joint) for joint in self.joints if joint.is_limited]
        free = [joint.name for joint in self.joints if not joint.is_limited]
        return "; ".join([*limited, *([f"unlimited: {', '.join(free)}"] if free else [])])


@dataclass(frozen=True)
class FoundLimits:
    """What ``find_limits`` found."""

    limits: ActionLimits | None
    text: str
    """For people: which limits these are, or why there are none."""
    advice: str = ""
    """What to do where nobody chose to have none."""


def find_limits(
    config: InternVLAA1Config, names: Sequence[str], *, robot: str | None = None, robot_type: str | None = None
) -> FoundLimits:
    """The limits of a robot that a policy drives.

    Args:
        config: of the policy.
        names: what the robot calls the numbers of a command, in the order in which they are sent.
        robot: of a policy of several robots: the one that it drives.
        robot_type: LeRobot's; None where nobody knows it.

    Raises:
        InternVLAError: ``config.embodiment`` names no embodiment, or one with other joints.
    """
    if not config.limit_actions:
        return FoundLimits(None, "switched off by policy.limit_actions=false")
    known: Embodiment | None = None
    if robot is not None and config.embodiments:
        known = read_rows(config.embodiments)[robot].embodiment
        if has_limits(known):
            limits = _by_name(known, names)
            if limits is not None:
                return _found(limits, f"robot {robot} of the policy")
            text = (
                f"robot {robot!r} of the policy has limits for {', '.join(known.action_names)}, and the one at hand "
                f"takes {', '.join(names)}"
            )
            return FoundLimits(None, text, "name the joints of both alike, in the embodiment file of the training")
        preset = presets().get(robot)  # a checkpoint from before presets had limits
        if preset is not None and _fits(preset, names, known) and (found := _loosest([preset], names)) is not None:
            return found
    elif config.embodiment is not None and not config.embodiments:
        named = named_embodiment(config)
        assert named is not None
        if not same_joints(named.action_names, names):
            raise InternVLAError(
                f"policy.embodiment={config.embodiment!r} describes a robot with the commands "
                f"{', '.join(named.action_names)}, and the one at hand takes {', '.join(names)}. Its action limits "
                "are those of other joints. Name the embodiment of this robot, or pass --policy.limit_actions=false."
            )
        limits = _by_name(named, names)
        if has_limits(named) and limits is not None:
            return _found(limits, f"embodiment {named.name}")
        return FoundLimits(None, f"embodiment {named.name} has none", HOW_TO_LIMIT)
    candidates = embodiments_called(robot_type) if robot_type else []
    found = _loosest([candidate for candidate in candidates if _fits(candidate, names, known)], names)
    if found is not None:
        return found
    if robot_type is None:
        return FoundLimits(None, "nobody says which robot this is", HOW_TO_LIMIT)
    return FoundLimits(None, f"no limits are known for a robot of type {robot_type!r} with these joints", HOW_TO_LIMIT)


def named_embodiment(config: InternVLAA1Config) -> Embodiment | None:
    """The robot that ``config.embodiment`` of a policy of one robot names: the described one, a preset or a file.

    Raises:
        InternVLAError: it names none of these.
    """
    if config.embodiment is None:
        return None
    described = config.described_embodiment
    if described.get("name") == config.embodiment:
        return Embodiment.from_dict(described)
    return get_embodiment(config.embodiment)


def describe_robot(config: InternVLAA1Config, names: Sequence[str] | None, action_dim: int, dataset: str) -> None:
    """Note in ``config``, which is saved with the weights, which robot a policy of one robot is trained for.

    A file is read now and kept, because it is not where the robot is; a preset is known by its name there.

    Args:
        names: of the dataset's actions, where it has names that say more than a position.

    Raises:
        InternVLAError: ``config.embodiment`` names no embodiment, or another robot than that of the dataset.
    """
    robot = named_embodiment(config)
    if robot is None:
        return
    others = robot.names_are_checked and names is not None and not same_joints(robot.action_names, names)
    if robot.action_dim != action_dim or others:
        raise InternVLAError(
            f"policy.embodiment={config.embodiment!r} is a robot with the actions {', '.join(robot.action_names)}, and "
            f"those of dataset {dataset!r} are {', '.join(names) if names else f'{action_dim} numbers'}. Name the "
            "embodiment of the dataset's robot, or pass --policy.embodiment=null."
        )
    config.embodiment = robot.name
    config.described_embodiment = {} if presets().get(robot.name) == robot else robot.to_dict()


def same_joints(names: Sequence[str], others: Sequence[str]) -> bool:
    """In any order, without what LeRobot's robots add to a joint's name."""
    return sorted(map(plain_joint, names)) == sorted(map(plain_joint, others))


def has_limits(robot: Embodiment) -> bool:
    """Whether any command of the robot is bounded."""
    return any(dim.range is not None or dim.speed is not None for dim in robot.action_dims)


def beyond_limits(robot: Embodiment, stats: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    """Sentences about recorded actions that the robot's ranges would not let pass.

    Args:
        stats: LeRobot's ``meta.stats``: key -> min, max per dim. None: nothing is known.
    """
    found: list[str] = []
    for part in robot.action:
        ranges = recorded_ranges((stats or {}).get(part.key), len(part.dims))
        for dim, (low, high) in zip(part.dims, ranges, strict=False):
            limit = _joint(dim.name, dim)
            if low < limit.low or high > limit.high:
                found.append(
                    f"{part.key}: {dim.name} was recorded from {low:.4g} to {high:.4g}, and its range is "
                    f"{limit.low:g}..{limit.high:g}: on a robot, commands beyond it would be cut"
                )
    return found


def in_unit(number: str, unit: str) -> str:
    """ "3 deg"; units that are a range themselves, and unknown ones, are left out."""
    return number if ".." in unit or unit == "unknown" else f"{number} {unit}"


def _found(joints: tuple[JointLimit, ...], source: str) -> FoundLimits:
    limits = ActionLimits(joints, source)
    return FoundLimits(limits, f"{source}: {limits}")


def _by_name(robot: Embodiment, names: Sequence[str]) -> tuple[JointLimit, ...] | None:
    """The robot's limits in the order of ``names``; None where these are other joints."""
    dims = {plain_joint(dim.name): dim for dim in robot.action_dims}
    if len(dims) != len(names) or any(plain_joint(name) not in dims for name in names):
        return None
    return tuple(_joint(name, dims[plain_joint(name)]) for name in names)


def _joint(name: str, dim: Dim) -> JointLimit:
    low, high = dim.range or (None, None)
    return JointLimit(
        name,
        dim.unit,
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        speed=math.inf if dim.speed is None else dim.speed,
    )


def _fits(candidate: Embodiment, names: Sequence[str], known: Embodiment | None) -> bool:
    """The same joints and, where the policy knows them, the same units: limits in degrees say nothing about percent."""
    joints = _by_name(candidate, names)
    if joints is None:
        return False
    units = {plain_joint(dim.name): dim.unit for dim in known.action_dims} if known is not None else {}
    return all(units.get(plain_joint(joint.name), "unknown") in ("unknown", joint.unit) for joint in joints)


def _loosest(candidates: Sequence[Embodiment], names: Sequence[str]) -> FoundLimits | None:
    """Limits that hold for each of several robots; None where these bound nothing, or count in different units."""
    found = [limits for candidate in candidates if (limits := _by_name(candidate, names)) is not None]
    if not found or len({tuple(joint.unit for joint in joints) for joints in found}) > 1:
        return None
    joints = tuple(
        JointLimit(
            same[0].name,
            same[0].unit,
            low=min(joint.low for joint in same),
            high=max(joint.high for joint in same),
            speed=max(joint.speed for joint in same),
        )
        for same in zip(*found, strict=True)
    )
    if not any(joint.is_limited for joint in joints):
        return None
    several = " and ".join(candidate.name for candidate in candidates)
    return _found(joints, f"preset {several}" + (", the loosest of both" if len(candidates) == 2 else ""))
