"""The simulated conveyor as LeRobot devices: two robots and the scripted expert as their teleoperator.

Joints are called ``<name>.pos`` with the names of the environment's dataset, in the same order and units; cameras are
``head``, ``left_wrist``, ``right_wrist``. Actions are absolute targets. LeRobot makes these classes from their
configurations in ``config_conveyor``, by name.
"""

import logging
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.robots.robot import Robot
from lerobot.teleoperators.teleoperator import Teleoperator
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.backend import Backend
from lerobot_internvla.envs.conveyor.task import CAMERAS
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.robots import simulation
from lerobot_internvla.robots.config_conveyor import (
    ConveyorExpertConfig,
    ConveyorMujocoRobotConfig,
    ConveyorRobotConfig,
)
from lerobot_internvla.robots.operator import Operator
from lerobot_internvla.robots.simulation import Simulation

logger = logging.getLogger(__name__)


class ConveyorRobot(Robot):
    """The 2-D conveyor. Needs no calibration.

    Raises:
        InternVLAError: on ``connect`` if the simulator is missing; on ``send_action`` for missing or non-finite joints.
    """

    config_class = ConveyorRobotConfig
    name = "conveyor"
    _simulation: Simulation | None = None

    def __init__(self, config: ConveyorRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras: dict[str, Any] = dict.fromkeys(CAMERAS)
        """Their names; LeRobot counts them."""
        self._operator = Operator()

    @cached_property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(joint_keys(self.config.backend), float)

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        picture = (self.config.image_size, self.config.image_size, 3)
        return {**self.action_features, **dict.fromkeys(CAMERAS, picture)}

    @property
    def is_connected(self) -> bool:
        return self._simulation is not None

    @property
    def simulation(self) -> Simulation:
        """What the robot is connected to.

        Raises:
            InternVLAError: it is not connected.
        """
        if self._simulation is None:
            raise InternVLAError(f"The simulated {self.name} robot is not connected. Call connect() first.")
        return self._simulation

    def connect(self, calibrate: bool = True) -> None:
        if self.is_connected:
            raise InternVLAError(f"The simulated {self.name} robot is connected already.")
        made = Simulation(
            self.config.backend,
            self.config.conveyor_task(),
            image_size=self.config.image_size,
            seed=self.config.seed,
            first_episode=self.config.first_episode,
            clock=self.config.clock,
            on_end=lambda keep: self._operator.press("right" if keep else "left"),
        )
        simulation.connect(made)
        self._simulation = made
        if self.config.press_keys:
            self._operator.sit_down()
        logger.info(
            "The simulated %s is connected: %d Hz, clock %s. Its episodes ask for: %s",
            self.name,
            made.backend.fps,
            self.config.clock,
            self.config.instruction or "anything (an instruction is drawn for each)",
        )

    def disconnect(self) -> None:
        self._operator.stand_up()
        simulation.disconnect(self.simulation)
        if endings := self.simulation.endings:
            logger.info(
                "Episodes of the simulated %s: %s",
                self.name,
                ", ".join(f"{ending} {count}" for ending, count in endings.items()),
            )
        self._simulation = None

    def get_observation(self) -> dict[str, Any]:
        """Joint positions as floats, pictures as RGB uint8 (size, size, 3)."""
        state, pictures = self.simulation.observe()
        return {**dict(zip(self.action_features, state.tolist(), strict=True)), **pictures}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Move towards absolute targets; returns them as clipped to the joint limits."""
        missing = [key for key in self.action_features if key not in action]
        if missing:
            raise InternVLAError(
                f"The {self.name} robot was sent no target for {', '.join(missing)}. Got: {', '.join(action)}. The "
                "policy or dataset belongs to another robot."
            )
        targets = np.array([float(action[key]) for key in self.action_features], dtype=np.float32)
        return dict(zip(self.action_features, self.simulation.act(targets).tolist(), strict=True))

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...


class ConveyorMujocoRobot(ConveyorRobot):
    """The conveyor in MuJoCo. Needs the extra ``mujoco``, and EGL or OSMesa for its cameras."""

    config_class = ConveyorMujocoRobotConfig
    name = "conveyor_mujoco"


class ConveyorExpert(Teleoperator):
    """The scripted expert at the controls of the simulated robot in the same process.

    It sees the whole simulated world, which the cameras do not, and needs the robot to be connected when it acts, not
    when it connects: LeRobot's commands differ in the order.
    """

    config_class = ConveyorExpertConfig
    name = "conveyor_expert"
    _is_connected = False

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(joint_keys(simulation.connected().backend), float)

    @property
    def feedback_features(self) -> dict[str, type]:
        return {}

    def connect(self, calibrate: bool = True) -> None:
        self._is_connected = True

    def disconnect(self) -> None:
        self._is_connected = False

    def get_action(self) -> dict[str, float]:
        shared = simulation.connected()
        action: NDArray[np.float32] = shared.expert_action()
        return dict(zip(joint_keys(shared.backend), action.tolist(), strict=True))

    def send_feedback(self, feedback: dict[str, Any]) -> None: ...

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...


def joint_keys(backend: Backend) -> list[str]:
    """Names of the joints as LeRobot's robots have them: state and action alike, in the dataset's order."""
    return [f"{name}.pos" for name in backend.action_names]
