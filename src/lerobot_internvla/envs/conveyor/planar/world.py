"""The conveyor seen from above: a belt, two point grippers, two bins, one to three parcels. Physics only, no pictures.

Units: lengths in belt lengths. x runs along the belt, 0 where it starts and 1 where it ends; y runs across it, positive
to the left of the direction of travel. Time in seconds, speeds in belt lengths per second, gripper opening in [0, 1]
(0 closed, 1 open).

State and action are six numbers each, in the order of ``ACTION_NAMES``: where the grippers are, and where they should
go (absolute). A gripper follows its target with a first-order lag and a speed limit, its fingers with a speed limit.
A parcel is caught only if the gripper is within ``CATCH_RADIUS`` of it at the tick at which the fingers close, so
at belt speed the gripper has to move along with it. Everything is a pure function of random generator and actions.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.task import (
    NO_DISTURBANCES,
    SIDES,
    ConveyorTask,
    Disturbances,
    Ending,
    Side,
    draw_instruction,
)

FloatArray = NDArray[np.float64]

FPS = 10
"""Control ticks per second."""
EPISODE_STEPS = 60
"""The step limit, kept by whoever runs an episode."""
ACTION_NAMES: tuple[str, ...] = ("left_x", "left_y", "left_gripper", "right_x", "right_y", "right_gripper")
ACTION_LOW: FloatArray = np.array([0.0, -0.5, 0.0] * 2)
ACTION_HIGH: FloatArray = np.array([1.0, 0.5, 1.0] * 2)

TIME_CONSTANT_S = 0.1
"""Of the first-order lag between a target and the gripper."""
FOLLOW = 1.0 - math.exp(-1.0 / (FPS * TIME_CONSTANT_S))
"""Fraction of the remaining way that a gripper covers in one tick when the speed limit does not bind (0.632)."""
MAX_STEP = 1.2 / FPS
"""Longest way of a gripper in one tick: a speed limit of 1.2 belt lengths per second."""
MAX_FINGER_STEP = 0.5
"""Largest change of the opening in one tick: fingers close or open in 0.2 s."""
CLOSED_BELOW = 0.4
OPEN_ABOVE = 0.6
HOLDING_OPENING = 0.3
"""Fingers stop here around a parcel, so that the state tells a catch from a miss."""
BUMP_SIZE = 0.08
"""Standard deviation of a bump along each axis: more than the catch radius, so that the way back shows the parcel."""

CATCH_RADIUS = 0.05
PARCEL_SIZE = 0.08
"""Edge of a parcel."""
BELT_HALF_WIDTH = 0.12
LANE_HALF_WIDTH = 0.05
"""Parcels lie within this distance of the belt's centre line."""
BIN_HALF_SIZE = 0.10
BIN_CENTRES: dict[Side, FloatArray] = {"left": np.array([0.80, 0.36]), "right": np.array([0.80, -0.36])}
HOMES: dict[Side, FloatArray] = {"left": np.array([0.30, 0.22]), "right": np.array([0.30, -0.22])}
"""Where the arms rest."""
HOME_JITTER = 0.03
ENTRY: tuple[float, float] = (-0.06, 0.06)
"""x of the named parcel when the episode starts. Independent of the speed, so that the first frame does not tell it."""
PARCEL_SPACING = 0.20

Place = Literal["belt", "left gripper", "right gripper", "left bin", "right bin", "floor", "gone"]


@dataclass
class Parcel:
    colour: str
    position: FloatArray
    """(x, y) of its centre."""
    place: Place = "belt"


@dataclass
class Gripper:
    side: Side
    position: FloatArray
    """(x, y)."""
    opening: float = 1.0
    is_closed: bool = False
    """With hysteresis: closes below ``CLOSED_BELOW``, opens above ``OPEN_ABOVE``."""
    held: Parcel | None = field(default=None, repr=False)


class PlanarWorld:
    """One episode at a time. ``reset`` draws it, ``step`` advances it by one tick.

    Args:
        task: speed range, parcel count, which bins.
        disturbances: what goes wrong by chance; nothing in evaluation.
    """

    def __init__(self, task: ConveyorTask, *, disturbances: Disturbances = NO_DISTURBANCES) -> None:
        self.task = task
        self.disturbances = disturbances
        self.reset(np.random.default_rng(0))

    def reset(self, rng: np.random.Generator) -> None:
        """Draw a new episode from ``rng``, which also drives its bumps."""
        self._rng = rng
        self.belt_speed = float(rng.uniform(self.task.min_belt_speed, self.task.max_belt_speed))
        self.belt_offset = float(rng.uniform(0.0, 1.0))
        """How far the belt has travelled; drives its texture."""
        count = int(rng.integers(self.task.min_parcels, self.task.max_parcels + 1))
        self.instruction, colours = draw_instruction(self.task, count, rng)

        # The named parcel enters at a drawn place; the others are ahead of it or behind it, at least a spacing apart.
        order = rng.permutation(count)
        entry = rng.uniform(*ENTRY)
        self.parcels = [
            Parcel(
                colour,
                np.array(
                    [
                        entry + PARCEL_SPACING * (order[i] - order[0]),
                        rng.uniform(-LANE_HALF_WIDTH, LANE_HALF_WIDTH),
                    ]
                ),
            )
            for i, colour in enumerate(colours)
        ]
        self.grippers = {side: Gripper(side, HOMES[side] + rng.uniform(-HOME_JITTER, HOME_JITTER, 2)) for side in SIDES}
        self.steps = 0

    @property
    def target(self) -> Parcel:
        """The parcel that the instruction names."""
        return self.parcels[0]

    @property
    def ending(self) -> Ending | None:
        """How the episode ended, None while it goes on (the world knows no step limit)."""
        place = self.target.place
        if place == f"{self.instruction.bin} bin":
            return "success"
        if place in ("left bin", "right bin", "floor"):
            return "wrong place"
        return "missed" if place == "gone" else None

    def state(self) -> NDArray[np.float32]:
        """Six numbers in the order of ``ACTION_NAMES``: where the grippers are."""
        return np.array(
            [v for side in SIDES for v in (*self.grippers[side].position, self.grippers[side].opening)],
            dtype=np.float32,
        )

    def step(self, action: NDArray[np.floating]) -> None:
        """Advance one tick. ``action`` is clipped to ``ACTION_LOW``..``ACTION_HIGH``.

        The belt moves first, then the grippers, then the fingers: whatever closes does so at the new positions.
        """
        targets = np.clip(np.asarray(action, dtype=np.float64), ACTION_LOW, ACTION_HIGH)
        travel = self.belt_speed / FPS
        self.belt_offset += travel
        for parcel in self.parcels:
            if parcel.place == "belt":
                parcel.position[0] += travel
                if parcel.position[0] > 1.0:
                    parcel.place = "gone"
        for i, side in enumerate(SIDES):
            self._move_gripper(self.grippers[side], targets[3 * i : 3 * i + 2], float(targets[3 * i + 2]))
        self.steps += 1

    def _move_gripper(self, gripper: Gripper, target: FloatArray, opening: float) -> None:
        step = FOLLOW * (target - gripper.position)
        length = float(np.linalg.norm(step))
        if length > MAX_STEP:
            step *= MAX_STEP / length
        # Drawn whether or not they happen: the episode's random stream must not depend on the actions.
        bump_draw, slip_draw, push = self._rng.random(), self._rng.random(), self._rng.normal(0.0, BUMP_SIZE, 2)
        may_be_bumped = gripper.side == self.instruction.arm and gripper.opening > OPEN_ABOVE
        if may_be_bumped and bump_draw < self.disturbances.bumps_per_second / FPS:
            step += push
        gripper.position = np.clip(gripper.position + step, ACTION_LOW[:2], ACTION_HIGH[:2])
        gripper.opening += float(np.clip(opening - gripper.opening, -MAX_FINGER_STEP, MAX_FINGER_STEP))

        if gripper.held is not None:
            gripper.held.position = gripper.position.copy()
        if not gripper.is_closed and gripper.opening < CLOSED_BELOW:
            gripper.is_closed = True
            if slip_draw >= self.disturbances.slip_probability:
                self._catch(gripper)
        elif gripper.is_closed and gripper.opening > OPEN_ABOVE:
            gripper.is_closed = False
            self._release(gripper)
        if gripper.held is not None:
            gripper.opening = max(gripper.opening, HOLDING_OPENING)

    def _catch(self, gripper: Gripper) -> None:
        within_reach = [
            (float(np.linalg.norm(parcel.position - gripper.position)), i)
            for i, parcel in enumerate(self.parcels)
            if parcel.place == "belt"
        ]
        if within_reach and min(within_reach)[0] <= CATCH_RADIUS:
            parcel = self.parcels[min(within_reach)[1]]
            parcel.place = "left gripper" if gripper.side == "left" else "right gripper"
            parcel.position = gripper.position.copy()
            gripper.held = parcel

    def _release(self, gripper: Gripper) -> None:
        parcel, gripper.held = gripper.held, None
        if parcel is not None:
            parcel.place = place_at(parcel.position)


def place_at(position: FloatArray) -> Place:
    """Where a parcel lies that is let go at ``position``."""
    if np.all(np.abs(position - BIN_CENTRES["left"]) <= BIN_HALF_SIZE):
        return "left bin"
    if np.all(np.abs(position - BIN_CENTRES["right"]) <= BIN_HALF_SIZE):
        return "right bin"
    return "belt" if abs(position[1]) <= BELT_HALF_WIDTH else "floor"
