"""The scripted expert of the 2-D conveyor: get ready downstream, move along with the parcel, close, carry, let go.

It sees the whole world, the belt speed included. It has no memory: its action is a function of the present world, so
that a policy which sees two frames can imitate it. What makes it easy to imitate:

- it gets ready over the belt, downstream of the parcel, which takes the instruction but no speed; by the time the speed
  matters, two frames half a second apart have shown it;
- it lets the parcel come, falls in step with it and stays so for a while before it closes, instead of betting on one
  interception;
- until it closes, its targets depend on the parcel and not on where the gripper is: a policy that copies the gripper's
  own motion instead of watching the parcel is no good imitation;
- the other arm rests.
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

READY_X = 0.30
"""Where the named arm waits, over the belt."""
VISIBLE_X = 0.05
"""It lines up with the parcel once the parcel is this far, and in the picture with some certainty."""
PICK_X = 0.45
"""It closes from here on and not before: it has then moved along for a while, and a tick sooner or later is no
matter."""
CLOSE_WITHIN = 0.04
CARRY_STEP = 0.9 / FPS
TAPER = 0.5
"""Largest fraction of the remaining way to the bin in one tick: the arm slows down instead of stopping dead."""
LET_GO_WITHIN = 0.07


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
            return _carry(gripper.position, goal), 1.0 if arrived else 0.0
        if parcel.place != "belt":
            return HOMES[gripper.side], 1.0
        lane = parcel.position[1] if parcel.position[0] > VISIBLE_X else 0.0
        # A gripper that follows its target with a lag is over the parcel when the target is this far ahead of it.
        ahead = parcel.position[0] + world.belt_speed / FPS / FOLLOW
        offset = gripper.position - parcel.position
        # Fingers that are closed on nothing are opened again before the next try.
        is_there = np.linalg.norm(offset) < CLOSE_WITHIN and parcel.position[0] > PICK_X
        is_closing = is_there and not gripper.is_closed
        return np.array([max(READY_X, ahead), lane]), 0.0 if is_closing else 1.0


def _carry(position: FloatArray, goal: FloatArray) -> FloatArray:
    """The target that moves a lagging gripper by at most ``CARRY_STEP`` towards ``goal`` within one tick."""
    way = goal - position
    step = min(TAPER, CARRY_STEP / max(float(np.linalg.norm(way)), 1e-9))
    return position + way * step / FOLLOW
