"""A LeRobot robot without hardware: ``--robot.type=wandering``. Importing this file registers it.

Its joints jump to other values on every tick, so a target that depends on the state of the wrong tick is seen at once.
LeRobot looks for the class next to its configuration, in a module that can be imported by name: hence its own file.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig


@RobotConfig.register_subclass("wandering")
@dataclass
class WanderingRobotConfig(RobotConfig):
    """Joints and cameras as in the dataset; joint values are drawn anew on every tick."""

    joints: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=lambda: ["head", "left_wrist", "right_wrist"])


class WanderingRobot(Robot):
    """Remembers what it said and what it was told, for the test to read."""

    config_class = WanderingRobotConfig
    name = "wandering"
    seen: list[np.ndarray] = []
    sent: list[dict[str, float]] = []

    def __init__(self, config: WanderingRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras = dict.fromkeys(config.views)

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        return {**self.action_features, **dict.fromkeys(self.config.views, (64, 64, 3))}

    @cached_property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self.config.joints, float)

    is_connected = False
    is_calibrated = True

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        random = np.random.default_rng(len(self.seen))
        state = random.normal(size=len(self.config.joints)).astype(np.float32)
        self.seen.append(state)
        pictures = {name: random.integers(0, 255, (64, 64, 3), dtype=np.uint8) for name in self.config.views}
        return {**dict(zip(self.config.joints, state.tolist(), strict=True)), **pictures}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.sent.append({**action, "observations": len(self.seen)})
        return action
