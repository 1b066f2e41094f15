"""The scripted expert of the MuJoCo conveyor: line up, fall in step, go down, close, lift, carry, let go.

It sees the whole world, the belt speed included. It has no memory: its action is a function of the present world, so
that a policy which sees two frames can imitate it. As in 2-D it waits downstream of the parcel, lets it come and moves
along with it before it closes, and where it aims sideways until then depends on the parcel and not on the hand.
"""

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.mujoco.arm import FPS, SERVO_LAG_S, FloatArray, joints_for
from lerobot_internvla.envs.conveyor.mujoco.scene import (
    BELT_HALF_WIDTH,
    BELT_TOP,
    BIN_CENTRES,
    BIN_HALF_SIZE,
    PARCEL_HALF_SIZE,
)
from lerobot_internvla.envs.conveyor.mujoco.world import HOMES, MujocoWorld
from lerobot_internvla.envs.conveyor.task import SIDES, Side

GRASP_HEIGHT = BELT_TOP + PARCEL_HALF_SIZE + 0.006
HOVER_HEIGHT = GRASP_HEIGHT + 0.075
"""Of the tool point over the belt: the finger tips clear a parcel by 3 cm."""
CARRY_HEIGHT = BELT_TOP + 0.10
READY_X = 0.36
"""Where the named arm waits, over the belt."""
VISIBLE_X = 0.05
"""It lines up with the parcel once the parcel is this far, and in the picture with some certainty."""
LEAD_S = SERVO_LAG_S + 0.5 / FPS
"""A target that is this far ahead of the parcel, and held for a tick, keeps the lagging hand over it."""
DOWN_WITHIN = 0.018
CLOSE_WITHIN = 0.014
HELD_WITHIN = 0.025
CARRY_SPEED = 0.75
"""Metres per second."""
TAPER = 0.35
"""Largest fraction of the remaining way in one tick: the arm slows down instead of stopping dead."""
LET_GO_WITHIN = 0.03
OPEN_AGAIN_BELOW = 0.9


class MujocoExpert:
    """Stateless: ``act`` reads the world and returns fourteen absolute targets, ``arm.ACTION_NAMES`` order."""

    def act(self, world: MujocoWorld) -> NDArray[np.float32]:
        action: list[float] = []
        for side in SIDES:
            position, yaw, opening = HOMES[side], 0.0, 1.0
            if side == world.instruction.arm:
                position, yaw, opening = self._work(world, side)
            action += [*joints_for(side, position, yaw), opening]
        return np.array(action, dtype=np.float32)

    def _work(self, world: MujocoWorld, side: Side) -> tuple[FloatArray, float, float]:
        """Target of the named arm's tool point, its yaw, and the opening of its gripper."""
        tool, parcel, opening = world.tool_position(side), world.target_position, world.opening(side)
        offset = parcel - tool
        if world.holds(side, world.instruction.colour) and np.linalg.norm(offset) < HELD_WITHIN:
            return self._carry(world, tool)
        is_on_belt = abs(parcel[1]) < BELT_HALF_WIDTH and abs(parcel[2] - BELT_TOP - PARCEL_HALF_SIZE) < 0.02
        if not is_on_belt:
            # Let go a moment ago: out of the falling parcel's way is up.
            above = np.array([*BIN_CENTRES[world.instruction.bin], CARRY_HEIGHT + 0.05])
            is_falling = np.linalg.norm(parcel[:2] - above[:2]) < BIN_HALF_SIZE
            return above if is_falling else HOMES[side], 0.0, 1.0
        lane = parcel[1] if parcel[0] > VISIBLE_X else 0.0
        ahead = parcel[0] + world.belt_speed * LEAD_S
        is_over = abs(offset[0]) < DOWN_WITHIN and abs(offset[1]) < DOWN_WITHIN and ahead > READY_X
        is_low = tool[2] < GRASP_HEIGHT + 0.012
        # Fingers that are closed on nothing are opened before the next try, above the parcel.
        may_go_down = is_over and (opening > OPEN_AGAIN_BELOW or is_low)
        closes = is_over and is_low and max(abs(offset[0]), abs(offset[1])) < CLOSE_WITHIN
        height = GRASP_HEIGHT if may_go_down else HOVER_HEIGHT
        yaw = world.target_yaw if ahead > READY_X else 0.0
        return np.array([max(READY_X, ahead), lane, height]), yaw, 0.0 if closes else 1.0

    def _carry(self, world: MujocoWorld, tool: FloatArray) -> tuple[FloatArray, float, float]:
        """Up, over to the bin, and open."""
        goal = np.array([*BIN_CENTRES[world.instruction.bin], CARRY_HEIGHT])
        way = goal[:2] - tool[:2]
        distance = float(np.linalg.norm(way))
        if distance < LET_GO_WITHIN:
            return goal, 0.0, 1.0
        # Sideways only as far as the parcel is clear of the rail.
        clear = float(np.clip((tool[2] - GRASP_HEIGHT) / 0.05, 0.0, 1.0))
        step = min(TAPER * distance, CARRY_SPEED / FPS) * clear
        lead = 1.0 + SERVO_LAG_S * FPS
        ahead = tool[:2] + way / distance * step * lead
        if clear < 1.0:
            # Until then it keeps moving along with the belt.
            ahead = ahead + np.array([world.belt_speed / FPS * lead * (1.0 - clear), 0.0])
        return np.array([*ahead, CARRY_HEIGHT]), 0.0, 0.0
