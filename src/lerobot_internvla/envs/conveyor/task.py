"""The conveyor task, whichever simulator runs it: what is asked, how hard it is, when it is done.

A belt carries coloured parcels past two arms. One sentence names a parcel, an arm and a bin; the episode succeeds when
the named parcel lies in the named bin. The belt speed is drawn per episode and cannot be seen in a single frame, so a
policy has to look at two moments and aim at where the parcel will be.

Everything here is plain data without numpy or OpenCV, shared by the 2-D world (``conveyor``) and the one in MuJoCo
(``conveyor_mujoco``): sentences, task names with their speed ranges, camera names, why an episode ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lerobot_internvla.errors import InternVLAError

if TYPE_CHECKING:
    import numpy as np

Side = Literal["left", "right"]
"""As seen along the belt's direction of travel. The head camera looks down with the belt running left to right, so the
left arm and the left bin are at the top of the picture."""

SIDES: tuple[Side, Side] = ("left", "right")
COLOURS: tuple[str, ...] = ("red", "blue", "yellow")
"""Each colour and each side has a letter that no other word of the sentence has (d, u, w; f, h), so that even a byte
tokenizer with a bag-of-letters understanding can tell them apart."""

CAMERAS: tuple[str, ...] = ("head", "left_wrist", "right_wrist")

MAX_INSTRUCTION_BYTES = 48
"""The prompt length of the ``tiny`` variant, whose text tokenizer reads one byte per token."""

Ending = Literal["success", "wrong place", "missed"]
"""How an episode ended: the named parcel lies in the named bin; it lies in the other bin or on the floor; it left the
belt. Without any of these within the step limit it is out of time, which is no ending of its own."""


@dataclass(frozen=True)
class Instruction:
    """What one episode asks for. ``text`` is what the policy and the dataset see."""

    colour: str
    arm: Side
    bin: Side

    @property
    def text(self) -> str:
        return f"{self.colour} parcel, {self.arm} arm to {self.bin} bin"

    @classmethod
    def parse(cls, text: str) -> Instruction:
        """The instruction that reads ``text``.

        Raises:
            InternVLAError: no instruction does.
        """
        known = {i.text: i for i in (cls(c, arm, to) for c in COLOURS for arm in SIDES for to in SIDES)}
        if text not in known:
            raise InternVLAError(
                f"{text!r} is not an instruction of the conveyor; one is {next(iter(known))!r}, with the colours "
                f"{', '.join(COLOURS)} and the sides {' and '.join(SIDES)}."
            )
        return known[text]


@dataclass(frozen=True)
class ConveyorTask:
    """How hard an episode is. Ranges are inclusive; every episode draws from them.

    Speeds are in belt lengths per second.
    """

    name: str
    min_belt_speed: float
    max_belt_speed: float
    min_parcels: int = 1
    max_parcels: int = 2
    any_bin: bool = False
    """False: the named bin is on the named arm's side. True: the arm and the bin are drawn independently."""
    instruction: Instruction | None = None
    """What every episode asks for; None draws it anew."""


@dataclass(frozen=True)
class Disturbances:
    """What goes wrong by chance. A recording uses them so that the expert also shows how to recover."""

    bumps_per_second: float = 0.0
    """How often, on average, the named arm is pushed to a random side while its fingers are open."""
    slip_probability: float = 0.0
    """How often a parcel slips through closing fingers, which then are closed on nothing."""


NO_DISTURBANCES = Disturbances()

TASKS: dict[str, ConveyorTask] = {
    task.name: task
    for task in (
        ConveyorTask("train", 0.15, 0.45),
        ConveyorTask("slow", 0.12, 0.15),
        ConveyorTask("fast", 0.35, 0.45),
        ConveyorTask("unseen", 0.45, 0.60),
        ConveyorTask("three_parcels", 0.15, 0.45, min_parcels=3, max_parcels=3),
        ConveyorTask("any_bin", 0.15, 0.45, any_bin=True),
    )
}
"""Task names accepted by ``--env.task``. ``train`` is what the demo records and trains on; ``slow`` and ``unseen`` lie
wholly outside its speeds, ``fast`` is its fastest third. ``three_parcels`` and ``any_bin`` are harder to learn: more to
tell apart, more ways to go."""

SPEED_BANDS: tuple[tuple[str, float, float], ...] = (
    ("slower", 0.0, 0.15),
    ("0.15-0.25", 0.15, 0.25),
    ("0.25-0.35", 0.25, 0.35),
    ("0.35-0.45", 0.35, 0.45),
    ("faster", 0.45, float("inf")),
)
"""Bands for reports: name, from (inclusive), to (exclusive), belt lengths per second."""


def resolve_task(
    name: str,
    *,
    parcels: int | None = None,
    belt_speed: tuple[float, float] | None = None,
    instruction: str | None = None,
) -> ConveyorTask:
    """Look up a task by name and, where given, replace its parcel count, its speed range and its instruction.

    Args:
        name: a key of ``TASKS``.
        parcels: exactly this many parcels in every episode (1 to 3); None keeps the task's range.
        belt_speed: (slowest, fastest) in belt lengths per second; None keeps the task's range.
        instruction: the text of an ``Instruction`` that every episode asks for; None draws one per episode.

    Raises:
        InternVLAError: unknown name or impossible values; all problems at once.
    """
    problems: list[str] = []
    if name not in TASKS:
        problems.append(f"unknown task {name!r}, known are {', '.join(TASKS)}")
    if parcels is not None and not 1 <= parcels <= len(COLOURS):
        problems.append(f"{parcels} parcels, but every parcel has its own colour and there are {len(COLOURS)}")
    if belt_speed is not None and not 0.0 < belt_speed[0] <= belt_speed[1] <= 1.0:
        problems.append(f"belt_speed {belt_speed}, expected 0 < slowest <= fastest <= 1 belt lengths per second")
    named = None
    if instruction is not None:
        try:
            named = Instruction.parse(instruction)
        except InternVLAError as error:
            problems.append(str(error).rstrip("."))
    if problems:
        raise InternVLAError(
            f"The conveyor task does not work out: {'; '.join(problems)}. "
            "Fix --env.task, --env.parcels or --env.belt_speed (--robot.task and so on for a simulated robot)."
        )
    task = replace(TASKS[name], instruction=named)
    if parcels is not None:
        task = replace(task, min_parcels=parcels, max_parcels=parcels)
    if belt_speed is not None:
        task = replace(task, min_belt_speed=belt_speed[0], max_belt_speed=belt_speed[1])
    return task


def draw_instruction(task: ConveyorTask, count: int, rng: np.random.Generator) -> tuple[Instruction, list[str]]:
    """What the next episode asks for, and the colours of its ``count`` parcels, the named one first.

    A task that fixes the instruction takes as many numbers from ``rng`` as one that does not.
    """
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))]
    arm, other_bin = SIDES[int(rng.integers(2))], SIDES[int(rng.integers(2))]
    drawn = Instruction(colours[0], arm, other_bin if task.any_bin else arm)
    instruction = task.instruction or drawn
    others = [colour for colour in colours if colour != instruction.colour]
    return instruction, [instruction.colour, *others][:count]


def speed_band(belt_speed: float) -> str:
    """The name of the ``SPEED_BANDS`` entry that ``belt_speed`` falls into."""
    # The top of the training range belongs to the training range, although drawing exactly that speed is unlikely.
    for name, start, end in SPEED_BANDS:
        if start <= belt_speed < end:
            return name
    raise InternVLAError(f"Belt speed {belt_speed} is not a speed in belt lengths per second; expected 0 or more.")
