"""The robots that reference checkpoints were trained on: which numbers make up a state, and in which order.

A reference checkpoint says none of this: its stats.json has one entry per robot type and feature key, and the order of
the keys, the cameras and the dims that are relative lie in the code that trained it. Here they are data, one row per
robot (model facts 2.10). Positions are joint positions in the units of the robot's datasets, grippers included.

    state    the feature keys, concatenated in this order, with their dims (None: whatever the statistics have)
    names    one per dim, the same for state and action; a gripper has "gripper" in its name and stays absolute
    cameras  slot -> feature key, as LeRobot accepts it (the InternData sets call them images.rgb.<name>)
"""

import difflib
from dataclasses import dataclass

from lerobot_internvla.errors import InternVLAError

STATE, ACTION = "observation.state", "action"

Parts = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class ReleasedEmbodiment:
    """One robot type of the reference."""

    name: str
    state: Parts
    """(feature key, dims) in the order in which they are concatenated."""
    action: Parts
    cameras: dict[str, str]
    """Camera slot -> LeRobot feature key."""
    relative: tuple[bool, ...] | None
    """Dims that are relative to the state when the checkpoint was trained on relative actions; None: it has no relative
    form, the reference trains it on absolute actions only."""
    names: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    """Other spellings of the robot type."""

    def dims(self, parts: Parts) -> int | None:
        """Width of state or action; None where only the statistics tell."""
        sizes = [dim for _, dim in parts]
        return None if None in sizes else sum(dim for dim in sizes if dim is not None)


def _arm(side: str, joints: int, gripper: bool = True) -> tuple[str, ...]:
    start = f"{side}_" if side else ""
    return tuple(f"{start}joint_{i}" for i in range(joints)) + ((f"{start}gripper",) if gripper else ())


def _mask(names: tuple[str, ...]) -> tuple[bool, ...]:
    return tuple("gripper" not in name for name in names)


def _both(template: str, *parts: tuple[str, int | None]) -> tuple[Parts, Parts]:
    """The same keys for state and action: ``template`` with {} for "state" or "action"."""
    state, action = (tuple((template.format(word, part), dim) for part, dim in parts) for word in ("state", "action"))
    return state, action


_ALOHA_NAMES = _arm("left", 6) + _arm("right", 6)
_GENIE_NAMES = _arm("left", 7, gripper=False) + _arm("right", 7, gripper=False) + ("left_gripper", "right_gripper")
_WHOLE_14: tuple[Parts, Parts] = (((STATE, 14),), ((ACTION, 14),))
_HEAD_AND_HANDS = {
    "head": "observation.images.head",
    "left_wrist": "observation.images.hand_left",
    "right_wrist": "observation.images.hand_right",
}
_ALOHA_CAMERAS = {
    "head": "observation.images.cam_high",
    "left_wrist": "observation.images.cam_left_wrist",
    "right_wrist": "observation.images.cam_right_wrist",
}
_R1_PARTS = ("left_arm", "right_arm", "left_gripper", "right_gripper")


_SPLIT_ARMS = _both("{}s.{}.position", ("left_joint", 6), ("left_gripper", 1), ("right_joint", 6), ("right_gripper", 1))
_GENIE = _both("{}s.{}.position", ("left_joint", 7), ("right_joint", 7), ("left_gripper", 1), ("right_gripper", 1))
_FRANKA = _both("{}s.{}.position", ("joint", 7), ("gripper", 1))
_PANDA_NAMES = tuple(f"dim_{i}" for i in range(7))

RELEASED_EMBODIMENTS: tuple[ReleasedEmbodiment, ...] = (
    ReleasedEmbodiment(
        "aloha", *_WHOLE_14, cameras=_ALOHA_CAMERAS, relative=_mask(_ALOHA_NAMES), names=_ALOHA_NAMES
    ),
    ReleasedEmbodiment(
        "piper",
        *_SPLIT_ARMS,
        cameras=_HEAD_AND_HANDS,
        relative=_mask(_ALOHA_NAMES),
        names=_ALOHA_NAMES,
        aliases=("arx_lift2", "ARX Lift-2", "AgileX Split Aloha", "ARX AC One"),
    ),
    ReleasedEmbodiment(
        "genie1",
        *_GENIE,
        cameras=_HEAD_AND_HANDS,
        relative=_mask(_GENIE_NAMES),
        names=_GENIE_NAMES,
        aliases=("Genie-1",),
    ),
    ReleasedEmbodiment(
        "a2d",
        state=(("observation.states.joint.position", 14), ("observation.states.effector.position", 2)),
        action=(("actions.joint.position", 14), ("actions.effector.position", 2)),
        cameras=_HEAD_AND_HANDS,
        relative=_mask(_GENIE_NAMES),
        names=_GENIE_NAMES,
    ),
    ReleasedEmbodiment(
        "franka",
        *_FRANKA,
        cameras={"head": "observation.images.head", "left_wrist": "observation.images.hand"},
        relative=_mask(_arm("", 7)),
        names=_arm("", 7),
    ),
    ReleasedEmbodiment(
        # Its seventh dim is a gripper and is relative all the same; hence names that do not say "gripper".
        "panda",
        state=((STATE, 7),),
        action=((ACTION, 7),),
        cameras={"head": "observation.images.image", "left_wrist": "observation.images.image2"},
        relative=(True,) * 7,
        names=_PANDA_NAMES,
    ),
    ReleasedEmbodiment(
        "r1lite",
        state=tuple((f"observation.state.{part}", None) for part in _R1_PARTS),
        action=tuple((f"action.{part}", None) for part in _R1_PARTS),
        cameras={
            "head": "observation.images.head_rgb",
            "left_wrist": "observation.images.left_wrist_rgb",
            "right_wrist": "observation.images.right_wrist_rgb",
        },
        relative=None,
    ),
    ReleasedEmbodiment(
        "split_aloha", *_WHOLE_14, cameras={"head": "observation.image"}, relative=_mask(_ALOHA_NAMES),
        names=_ALOHA_NAMES,
    ),
    ReleasedEmbodiment(
        "frankarobotiq",
        state=((STATE, 8),),
        action=((ACTION, 8),),
        cameras={"head": "observation.image"},
        relative=_mask(_arm("", 7)),
        names=_arm("", 7),
    ),
    ReleasedEmbodiment(
        # What the reference takes for every robot type that it does not know.
        "generic",
        state=((STATE, None),),
        action=((ACTION, None),),
        cameras={"head": "observation.image"},
        relative=None,
        aliases=("pusht",),
    ),
)  # fmt: skip


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def embodiment_named(name: str) -> ReleasedEmbodiment | None:
    """The row of a robot type, by name or alias; capitals, spaces, dashes and underscores do not matter."""
    for row in RELEASED_EMBODIMENTS:
        if _plain(name) in {_plain(known) for known in (row.name, *row.aliases)}:
            return row
    return None


def require_embodiment(name: str) -> ReleasedEmbodiment:
    """The row of a robot type.

    Raises:
        InternVLAError: there is none; the nearest and all known names are listed.
    """
    row = embodiment_named(name)
    if row is None:
        known = [row.name for row in RELEASED_EMBODIMENTS]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise InternVLAError(f"Unknown embodiment {name!r}.{hint} Known: {', '.join(known)}.")
    return row
