"""The arms of the MuJoCo conveyor: dimensions, joint names and limits, closed-form kinematics. No simulator needed.

Two equal arms of six joints and a parallel gripper, in the joint order of ALOHA. In the arm's own frame (x forward,
z up, origin on the table under the waist) and with all joints at zero the upper arm points up and forearm and hand
point forward; a positive shoulder, elbow or wrist angle bends down. Lengths in metres, angles in radians, gripper
opening in [0, 1] (0 closed, 1 open).

The expert only ever asks for a hand that points straight down, for which the inverse has a closed form.
"""

import math

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.task import SIDES, Side
from lerobot_internvla.errors import InternVLAError

FloatArray = NDArray[np.float64]

FPS = 20
"""Control ticks per second."""
EPISODE_STEPS = 160
"""The step limit, kept by whoever runs an episode: 8 s."""

JOINTS: tuple[str, ...] = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
ACTION_NAMES: tuple[str, ...] = tuple(f"{side}_{joint}" for side in SIDES for joint in (*JOINTS, "gripper"))
JOINT_LIMITS: dict[str, tuple[float, float]] = {
    "waist": (-2.6, 2.6),
    "shoulder": (-1.8, 1.8),
    "elbow": (-1.6, 2.4),
    "forearm_roll": (-3.0, 3.0),
    "wrist_angle": (-1.8, 2.2),
    "wrist_rotate": (-3.0, 3.0),
}
_ONE_ARM = [*JOINT_LIMITS.values(), (0.0, 1.0)]
ACTION_LOW: FloatArray = np.array([low for low, _ in _ONE_ARM] * 2)
ACTION_HIGH: FloatArray = np.array([high for _, high in _ONE_ARM] * 2)

BASES: dict[Side, tuple[float, float]] = {"left": (0.50, 0.32), "right": (0.50, -0.32)}
"""(x, y) of the waist in the world."""
BASE_YAWS: dict[Side, float] = {"left": -math.pi / 2, "right": math.pi / 2}
"""Both arms face the belt."""
SHOULDER_HEIGHT = 0.30
LINK_LENGTH = 0.36
"""Of the upper arm and of the forearm."""
TOOL_LENGTH = 0.17
"""From the wrist's axis to the tool point, between the fingers."""
FINGER_TRAVEL = 0.045
"""Way of each finger from closed to open."""

SERVO_LAG_S = 0.06
"""How far a joint is behind a target that moves steadily: damping over stiffness of every joint's servo."""


def tool_position(side: Side, joints: FloatArray) -> FloatArray:
    """World (x, y, z) of the tool point for the six joint angles of one arm. Any pose."""
    waist, shoulder, elbow, roll, wrist, _ = joints
    fore = _about_y(shoulder + elbow)
    hand = fore @ _about_x(roll) @ _about_y(wrist)
    reach = (
        _about_y(shoulder) @ [0.0, 0.0, LINK_LENGTH] + fore @ [LINK_LENGTH, 0.0, 0.0] + hand @ [TOOL_LENGTH, 0.0, 0.0]
    )
    turned = _about_z(BASE_YAWS[side] + waist) @ reach
    return turned + np.array([*BASES[side], SHOULDER_HEIGHT])


def joints_for(side: Side, position: FloatArray, yaw: float = 0.0) -> FloatArray:
    """Six joint angles that put the tool point at ``position`` with the hand pointing down and the elbow up.

    Args:
        side: which arm.
        position: world (x, y, z) of the tool point.
        yaw: angle by which the fingers' closing direction is turned from the world's y axis.

    A point out of reach is replaced by the nearest one on the way to it, as a person's arm would do.

    Raises:
        InternVLAError: ``position`` is not finite.
    """
    if not np.all(np.isfinite(position)):
        raise InternVLAError(f"The {side} arm cannot go to {position}; expected three finite numbers in metres.")
    dx, dy = position[0] - BASES[side][0], position[1] - BASES[side][1]
    waist = _wrapped(math.atan2(dy, dx) - BASE_YAWS[side])
    out, up = math.hypot(dx, dy), position[2] + TOOL_LENGTH - SHOULDER_HEIGHT
    distance = min(max(math.hypot(out, up), 0.05), 2 * LINK_LENGTH - 1e-3)
    direction = math.atan2(up, out)
    # Two equal links make an isosceles triangle over the line from shoulder to wrist.
    base_angle = math.acos(distance / 2 / LINK_LENGTH)
    shoulder = math.pi / 2 - (direction + base_angle)
    forearm_down = base_angle - direction
    return np.array([waist, shoulder, forearm_down - shoulder, 0.0, math.pi / 2 - forearm_down, _wrapped(waist - yaw)])


def _wrapped(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _about_x(angle: float) -> FloatArray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _about_y(angle: float) -> FloatArray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _about_z(angle: float) -> FloatArray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
