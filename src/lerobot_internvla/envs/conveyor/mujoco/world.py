"""The conveyor in MuJoCo: rigid bodies, friction, servos with a lag. Physics and bookkeeping, no pictures.

State and action are fourteen numbers each in the order of ``arm.ACTION_NAMES``: six joint angles in radians and a
gripper opening in [0, 1] per arm, as they are, and as they should be (absolute). A tick is ``SUBSTEPS`` steps of
physics. What happens to parcels is nothing but contact: the belt's friction carries them, the fingers' holds them.

An episode is a pure function of the random generator and of the actions, on one version of MuJoCo and one kind of
processor; physics elsewhere may differ in the last digit, and contacts amplify that.
"""

import functools
import math
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.mujoco.arm import (
    ACTION_HIGH,
    ACTION_LOW,
    FINGER_TRAVEL,
    FPS,
    JOINTS,
    FloatArray,
    joints_for,
)
from lerobot_internvla.envs.conveyor.mujoco.library import mujoco
from lerobot_internvla.envs.conveyor.mujoco.scene import (
    BELT_END,
    BELT_TOP,
    BIN_CENTRES,
    BIN_HALF_SIZE,
    BIN_HEIGHT,
    CHEVRON_PERIOD,
    FINGER_FRICTION,
    PARCEL_HALF_SIZE,
    TIMESTEP,
    mjcf,
)
from lerobot_internvla.envs.conveyor.task import (
    NO_DISTURBANCES,
    SIDES,
    ConveyorTask,
    Disturbances,
    Ending,
    Side,
    draw_instruction,
)

SUBSTEPS = round(1.0 / FPS / TIMESTEP)

HOMES: dict[Side, FloatArray] = {"left": np.array([0.34, 0.19, 0.30]), "right": np.array([0.34, -0.19, 0.30])}
"""Where the tool points rest."""
HOME_JITTER = 0.03
ENTRY: tuple[float, float] = (-0.06, 0.06)
"""x of the named parcel when the episode starts. Independent of the speed, so that the first frame does not tell it."""
LANE_HALF_WIDTH = 0.04
PARCEL_SPACING = 0.20
PARCEL_YAW = 0.15
"""Parcels lie turned by at most this angle (rad); closing fingers straighten them."""
MAX_JOINT_SPEED = 4.0
"""Radians per second. As in a servo with a velocity profile, what a joint is told moves no faster than this."""
BUMP_FORCE = 120.0
"""Standard deviation along each horizontal axis, in newtons for one tick, of a push against the hand: which is 3.5 cm
off at the end of that tick, more than a finger may be, and back within 1 cm three ticks later."""
SLIPPERY = 0.02
"""Friction of fingers that a parcel slips through."""
_IS_JOINT = np.array([True] * len(JOINTS) + [False] + [True] * len(JOINTS) + [False])
OPEN_ABOVE = 0.85
"""A gripper that is opened further than this can hold no parcel."""


@functools.cache
def scene_model() -> Any:
    """The compiled scene. Shared for drawing; a world that steps has a copy of its own."""
    return mujoco.MjModel.from_xml_string(mjcf())


class MujocoWorld:
    """One episode at a time. ``reset`` draws it, ``step`` advances it by one tick.

    Args:
        task: speed range, parcel count, which bins.
        disturbances: what goes wrong by chance; nothing in evaluation.
    """

    def __init__(self, task: ConveyorTask, *, disturbances: Disturbances = NO_DISTURBANCES) -> None:
        self.task = task
        self.disturbances = disturbances
        self.model: Any = copy(scene_model())
        self.data: Any = mujoco.MjData(self.model)
        self._joint_addresses = {
            side: np.array([self.model.joint(f"{side}_{joint}").qposadr[0] for joint in JOINTS]) for side in SIDES
        }
        self._finger_addresses = {side: int(self.model.joint(f"{side}_finger_a").qposadr[0]) for side in SIDES}
        self._tools = {side: self.model.site(f"{side}_tool").id for side in SIDES}
        self._hands = {side: self.model.body(f"{side}_hand").id for side in SIDES}
        self._finger_geoms = {
            side: [self.model.geom(f"{side}_finger_{name}").id for name in ("a", "b")] for side in SIDES
        }
        self._belt = self.model.joint("belt")
        self.reset(np.random.default_rng(0))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw a new episode from ``rng``, which also drives its disturbances."""
        self._rng = rng
        self.belt_speed = float(rng.uniform(self.task.min_belt_speed, self.task.max_belt_speed))
        self.belt_offset = float(rng.uniform(0.0, 1.0))
        """How far the belt has travelled, in metres; drives its texture."""
        count = int(rng.integers(self.task.min_parcels, self.task.max_parcels + 1))
        self.instruction, colours = draw_instruction(self.task, count, rng)
        self.steps = 0
        self._slipping = False

        mujoco.mj_resetData(self.model, self.data)
        # The named parcel enters at a drawn place; the others are ahead of it or behind it, at least a spacing apart.
        order = rng.permutation(count)
        entry = rng.uniform(*ENTRY)
        for i, colour in enumerate(colours):
            joint = self.data.joint(colour)
            yaw = rng.uniform(-PARCEL_YAW, PARCEL_YAW) / 2
            x = entry + PARCEL_SPACING * (order[i] - order[0])
            y = rng.uniform(-LANE_HALF_WIDTH, LANE_HALF_WIDTH)
            joint.qpos[:] = x, y, BELT_TOP + PARCEL_HALF_SIZE, math.cos(yaw), 0.0, 0.0, math.sin(yaw)
            joint.qvel[0] = self.belt_speed
        action: list[float] = []
        for side in SIDES:
            joints = joints_for(side, HOMES[side] + rng.uniform(-HOME_JITTER, HOME_JITTER, 3))
            self.data.qpos[self._joint_addresses[side]] = joints
            for name in ("a", "b"):
                self.data.joint(f"{side}_finger_{name}").qpos[0] = FINGER_TRAVEL
            action += [*joints, 1.0]
        self._told = np.array(action)
        self._command(self._told)
        self._drive_belt()
        mujoco.mj_forward(self.model, self.data)

    @property
    def ending(self) -> Ending | None:
        """How the episode ended, None while it goes on (the world knows no step limit)."""
        x, y, z = self.target_position
        for side in SIDES:
            bin_x, bin_y = BIN_CENTRES[side]
            is_over = abs(x - bin_x) < BIN_HALF_SIZE and abs(y - bin_y) < BIN_HALF_SIZE
            if is_over and z < BIN_HEIGHT and not any(self.holds(arm, self.instruction.colour) for arm in SIDES):
                return "success" if side == self.instruction.bin else "wrong place"
            if is_over:
                return None
        if z < BELT_TOP / 2:
            return "missed" if x > BELT_END - PARCEL_HALF_SIZE else "wrong place"
        return (
            "missed" if x > BELT_END and abs(y) < 2 * LANE_HALF_WIDTH and z < BELT_TOP + 2 * PARCEL_HALF_SIZE else None
        )

    @property
    def target_position(self) -> FloatArray:
        """World (x, y, z) of the named parcel's centre."""
        return self.data.joint(self.instruction.colour).qpos[:3]

    @property
    def target_yaw(self) -> float:
        """Of the named parcel about the vertical, in [-pi/4, pi/4): a cube looks the same after a quarter turn."""
        w, x, y, z = self.data.joint(self.instruction.colour).qpos[3:]
        yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        return (yaw + math.pi / 4) % (math.pi / 2) - math.pi / 4

    def tool_position(self, side: Side) -> FloatArray:
        """World (x, y, z) between the fingers of one arm."""
        return self.data.site_xpos[self._tools[side]]

    def opening(self, side: Side) -> float:
        """Of one gripper, in [0, 1]."""
        return float(np.clip(self.data.qpos[self._finger_addresses[side]] / FINGER_TRAVEL, 0.0, 1.0))

    def holds(self, side: Side, colour: str) -> bool:
        """Whether both fingers of an arm touch the parcel."""
        parcel = self.model.geom(colour).id
        touching = {
            geom for contact in self.data.contact if parcel in contact.geom for geom in contact.geom if geom != parcel
        }
        return touching.issuperset(self._finger_geoms[side])

    def state(self) -> NDArray[np.float32]:
        """Fourteen numbers in the order of ``arm.ACTION_NAMES``: where the joints are."""
        values: list[float] = []
        for side in SIDES:
            values += [*self.data.qpos[self._joint_addresses[side]], self.opening(side)]
        return np.array(values, dtype=np.float32)

    def step(self, action: NDArray[np.floating[Any]]) -> None:
        """Advance one tick towards ``action``, which is clipped to the joint limits."""
        self._command(np.clip(np.asarray(action, dtype=np.float64), ACTION_LOW, ACTION_HIGH))
        self._disturb()
        self.belt_offset += self.belt_speed / FPS
        self._drive_belt()
        mujoco.mj_step(self.model, self.data, SUBSTEPS)
        mujoco.mj_forward(self.model, self.data)  # positions, contacts and cameras of the moment that is seen
        self.steps += 1

    def _command(self, targets: FloatArray) -> None:
        way = targets - self._told
        way[_IS_JOINT] = np.clip(way[_IS_JOINT], -MAX_JOINT_SPEED / FPS, MAX_JOINT_SPEED / FPS)
        self._told = self._told + way
        self.data.ctrl[:] = self._told
        self.data.ctrl[[len(JOINTS), 2 * len(JOINTS) + 1]] *= FINGER_TRAVEL

    def _drive_belt(self) -> None:
        self.data.qpos[self._belt.qposadr[0]] = 0.0
        self.data.qvel[self._belt.dofadr[0]] = self.belt_speed
        self.data.mocap_pos[0] = [self.belt_offset % CHEVRON_PERIOD, 0.0, 0.0]

    def _disturb(self) -> None:
        """Push the named arm's hand, or make its fingers slippery while they close."""
        # Drawn whether or not they happen: the episode's random stream must not depend on the actions.
        bump_draw, slip_draw, push = self._rng.random(), self._rng.random(), self._rng.normal(0.0, BUMP_FORCE, 2)
        side = self.instruction.arm
        is_open = self.opening(side) > OPEN_ABOVE
        hand = self._hands[side]
        self.data.xfrc_applied[hand] = 0.0
        if is_open and bump_draw < self.disturbances.bumps_per_second / FPS:
            self.data.xfrc_applied[hand, :2] = push
        closes = self.data.ctrl[SIDES.index(side) * (len(JOINTS) + 1) + len(JOINTS)] < OPEN_ABOVE * FINGER_TRAVEL
        if is_open:
            self._slipping = closes and slip_draw < self.disturbances.slip_probability
            self.model.geom_friction[self._finger_geoms[side], 0] = SLIPPERY if self._slipping else FINGER_FRICTION
