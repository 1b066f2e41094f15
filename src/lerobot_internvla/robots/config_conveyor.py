"""The conveyor as LeRobot robot types, its scripted expert as a teleoperator type. Configuration only.

    lerobot-record --robot.type=conveyor_mujoco --teleop.type=conveyor_expert ...

The simulators are those of the environment types of the same names; OpenCV and MuJoCo are imported when a robot
connects.
"""

from dataclasses import dataclass
from typing import ClassVar

from lerobot.robots.config import RobotConfig
from lerobot.teleoperators.config import TeleoperatorConfig

from lerobot_internvla.envs.conveyor.backend import BACKENDS, Backend
from lerobot_internvla.envs.conveyor.task import ConveyorTask, Instruction, resolve_task
from lerobot_internvla.errors import InternVLAError

CLOCKS: tuple[str, ...] = ("ticks", "real")
DEFAULT_INSTRUCTION = Instruction("red", "left", "left").text


@RobotConfig.register_subclass("conveyor")
@dataclass(kw_only=True)
class ConveyorRobotConfig(RobotConfig):
    """The 2-D conveyor as a robot: two grippers, three cameras, 10 Hz.

    Raises:
        InternVLAError: unknown values or values out of range, all at once; raised when the command line is read.
    """

    # What every episode asks for; give the commands the same text as --dataset.single_task or --task. null: drawn anew.
    instruction: str | None = DEFAULT_INSTRUCTION
    task: str = "train"  # train | slow | fast | unseen | any_bin | three_parcels
    parcels: int | None = None  # Exactly this many parcels (1 to 3) instead of the task's range.
    belt_speed: tuple[float, float] | None = (
        None  # (slowest, fastest) instead of the task's range, belt lengths per second.
    )
    image_size: int = BACKENDS["conveyor"].image_size  # Pixels per edge of the camera pictures.
    seed: int = 0  # Of the episodes; they are never those of an evaluation.
    first_episode: int = 0  # Number of the first one: --robot.first_episode=7 starts where a recording had its eighth.
    clock: str = "ticks"  # ticks (the world waits for the command) | real (it does not)
    press_keys: bool = True  # End recorded episodes as a person would: right arrow, or left where the expert failed.

    simulator: ClassVar[str] = "conveyor"

    def __post_init__(self) -> None:
        super().__post_init__()
        problems: list[str] = []
        if self.clock not in CLOCKS:
            problems.append(f"unknown clock {self.clock!r}, known are {', '.join(CLOCKS)}")
        if self.image_size < 16 or self.image_size % 2:
            problems.append(f"image_size {self.image_size} px, expected an even number from 16")
        if min(self.seed, self.first_episode) < 0:
            problems.append(f"seed {self.seed} and first_episode {self.first_episode}, expected 0 or more")
        try:
            self.conveyor_task()
        except InternVLAError as error:
            problems.append(str(error).rstrip("."))
        if problems:
            raise InternVLAError(f"This simulated robot cannot be built: {'; '.join(problems)}.")

    @property
    def backend(self) -> Backend:
        return BACKENDS[self.simulator]

    def conveyor_task(self) -> ConveyorTask:
        """What the robot's episodes are drawn from."""
        return resolve_task(
            self.task, parcels=self.parcels, belt_speed=self.belt_speed, instruction=self.instruction or None
        )


@RobotConfig.register_subclass("conveyor_mujoco")
@dataclass(kw_only=True)
class ConveyorMujocoRobotConfig(ConveyorRobotConfig):
    """The conveyor in MuJoCo as a robot: two six-joint arms with grippers, three cameras, 20 Hz."""

    image_size: int = BACKENDS["conveyor_mujoco"].image_size  # Pixels per edge of the camera pictures.

    simulator: ClassVar[str] = "conveyor_mujoco"


@TeleoperatorConfig.register_subclass("conveyor_expert")
@dataclass(kw_only=True)
class ConveyorExpertConfig(TeleoperatorConfig):
    """The scripted expert of the simulated conveyor that is connected in the same process, whichever it is."""
