"""Environments as LeRobot environment types. Importing this package registers them and imports no simulator."""

from lerobot_internvla.envs.configuration_conveyor import ConveyorEnvConfig, ConveyorMujocoEnvConfig

__all__ = ["ConveyorEnvConfig", "ConveyorMujocoEnvConfig"]
