"""The scripted expert of the 2-D conveyor: watch, move along with the parcel, close, carry, let go.

It sees the whole world, the belt speed included. It has no memory: its action is a function of the present world, so
that a policy which sees two frames can imitate it. What makes it easy to imitate:

- it watches for half a second before it moves, so that the speed can be seen before it is needed;
- it approaches in the frame of the moving parcel and stays with it, instead of betting on one interception;
- its speed tapers off towards the goal, and the other arm rests.

The lag of the grippers is undone exactly (dead-beat): to be at ``p`` in the next tick, aim ``1 / FOLLOW`` times as far.
"""

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.planar.world import (
    ACTION_HIGH,
    ACTION_LOW,
    BIN_CENTRES,
    FOLLOW,
    FPS,
    HOMES,
    FloatArray,
    Gripper,
    PlanarWorld,
)
from lerobot_internvla.envs.conveyor.task import SIDES

WATCH_STEPS = FPS // 2
START_LINE = 0.25
"""The arm leaves its rest when the parcel has passed this x and ``WATCH_STEPS`` have gone by."""
APPROACH_STEP = 0.6 / FPS
CARRY_STEP = 0.9 / FPS
TAPER = 0.6
"""Largest fraction of the remaining way in one tick: the approach slows down instead of stopping dead."""
CLOSE_WITHIN = 0.02
LET_GO_WITHIN = 0.04


class PlanarExpert:
    """Stateless: ``act`` reads the world and returns six absolute targets, ``ACTION_NAMES`` order."""

    def act(self, world: PlanarWorld) -> NDArray[np.float32]:
        action: list[float] = []
        for side in SIDES:
            gripper = world.grippers[side]
            if side == world.instruction.arm:
                position, opening = self._work(world, gripper)
            else:
                position, opening = HOMES[side], 1.0
            action += [*position, opening]
        return np.clip(action, ACTION_LOW, ACTION_HIGH).astype(np.float32)

    def _work(self, world: PlanarWorld, gripper: Gripper) -> tuple[FloatArray, float]:
        """Target position and opening of the named arm."""
        parcel = world.target
        if gripper.held is not None:
            goal = BIN_CENTRES[world.instruction.bin]
            arrived = np.linalg.norm(goal - gripper.position) < LET_GO_WITHIN
            return _aim(gripper.position, _towards(gripper.position, goal, CARRY_STEP)), 1.0 if arrived else 0.0
        if parcel.place != "belt" or parcel.position[0] < START_LINE or world.steps < WATCH_STEPS:
            return HOMES[gripper.side], 1.0
        parcel_next = parcel.position + np.array([world.belt_speed / FPS, 0.0])
        offset = gripper.position - parcel.position
        offset_next = _towards(offset, np.zeros(2), APPROACH_STEP)
        # Once the fingers are on their way they stay on it; a miss shows as closed and empty, and is opened again.
        is_closing = not gripper.is_closed and (np.linalg.norm(offset) < CLOSE_WITHIN)
        return _aim(gripper.position, parcel_next + offset_next), 0.0 if is_closing else 1.0


def _towards(start: FloatArray, goal: FloatArray, longest: float) -> FloatArray:
    """The next point on the straight way from ``start`` to ``goal``: at most ``longest``, and tapering off."""
    way = goal - start
    distance = float(np.linalg.norm(way))
    return goal if distance < 1e-9 else start + way * min(TAPER, longest / distance)


def _aim(position: FloatArray, wanted: FloatArray) -> FloatArray:
    """The target that brings a lagging gripper from ``position`` to ``wanted`` within one tick."""
    return position + (wanted - position) / FOLLOW
