"""Simulated robots for LeRobot's robot commands. Importing this package registers them and imports no simulator.

``config_conveyor``  robot types ``conveyor`` and ``conveyor_mujoco``, teleoperator type ``conveyor_expert``
``conveyor``         the devices; LeRobot finds them next to their configurations, by name
``simulation``       one conveyor that robot and teleoperator share: episodes, clock, the expert's action
``operator``         presses the keys that end an episode, as the person at the keyboard would
"""

from lerobot_internvla.robots.config_conveyor import (
    ConveyorExpertConfig,
    ConveyorMujocoRobotConfig,
    ConveyorRobotConfig,
)

__all__ = ["ConveyorExpertConfig", "ConveyorMujocoRobotConfig", "ConveyorRobotConfig"]
