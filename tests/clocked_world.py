"""A robot and an environment whose frames tell when they were taken: ``--robot.type=clocked``, ``--env.type=clocked``.

Every pixel of a frame is the number of the tick, and the joints are at another place on every tick, so a past frame of
the wrong age and a target relative to the state of the wrong tick are seen at once. Importing this file registers both.
LeRobot looks for a robot's class next to its configuration, in a module that can be imported by name.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.robots import Robot, RobotConfig

JOINTS = ["shoulder.pos", "elbow.pos", "grip.pos"]
CAMERAS = ["head", "left_wrist", "right_wrist"]
SIZE = (64, 64, 3)
FPS = 30


def state_at(tick: int) -> np.ndarray:
    """Joint positions at a tick; each differs from its neighbours by more than any tolerance."""
    return np.random.default_rng(tick).normal(size=len(JOINTS)).astype(np.float32)


def frame_at(tick: int) -> np.ndarray:
    assert tick < 256, "the picture of a tick is one byte"
    return np.full(SIZE, tick, dtype=np.uint8)


@dataclass
class Diary:
    """What happened in the world, for the test to read."""

    seen_at: list[float] = field(default_factory=list)
    """Unix time of every observation; its index is the tick."""
    connections: int = 0
    """How often a robot was connected."""
    commands: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """(tick of the last observation before it, joint targets)."""
    before_tick: Callable[[int], None] | None = None
    """Called as a tick begins: a test may cut cables here."""
    changes: Callable[[int, dict[str, Any]], dict[str, Any]] | None = None
    """What becomes of the robot's observation of a tick."""

    def tick(self) -> int:
        if self.before_tick is not None:
            self.before_tick(len(self.seen_at))
        self.seen_at.append(time.time())
        return len(self.seen_at) - 1

    def command(self, action: np.ndarray) -> None:
        self.commands.append((len(self.seen_at) - 1, action))


class World:
    """The one world of a test process."""

    diary: ClassVar[Diary] = Diary()

    @classmethod
    def begin(cls) -> Diary:
        cls.diary = Diary()
        return cls.diary


# --------------------------------------------------------------------------------------------------------------- robot


@RobotConfig.register_subclass("clocked")
@dataclass
class ClockedRobotConfig(RobotConfig):
    """Three joints and three cameras, unless told otherwise."""

    joints: list[str] = field(default_factory=lambda: list(JOINTS))
    """At most as many as ``state_at`` knows."""
    views: list[str] = field(default_factory=lambda: list(CAMERAS))
    clock: str = "ticks"
    """``ticks``: this world's time is the number of observations, as a simulator's. ``real``: it is on the wall."""


class ClockedRobot(Robot):
    """Every ``get_observation`` is a tick."""

    config_class = ClockedRobotConfig
    name = "clocked"

    def __init__(self, config: ClockedRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras = dict.fromkeys(config.views)

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        return {**self.action_features, **dict.fromkeys(self.config.views, SIZE)}

    @cached_property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self.config.joints, float)

    is_connected = False
    is_calibrated = True

    def connect(self, calibrate: bool = True) -> None:
        World.diary.connections += 1
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        diary = World.diary
        tick = diary.tick()
        joints = dict(zip(self.config.joints, state_at(tick).tolist(), strict=False))
        observation = {**joints, **{name: frame_at(tick) for name in self.config.views}}
        return observation if diary.changes is None else diary.changes(tick, observation)

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        World.diary.command(np.array([action[joint] for joint in self.config.joints], dtype=np.float32))
        return action


# --------------------------------------------------------------------------------------------------------- environment


class ClockedEnv(gym.Env[dict[str, Any], np.ndarray]):
    """Every observation is a tick; ends by Gymnasium's own limit, without success."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}
    observation_space = gym.spaces.Dict(
        {
            "pixels": gym.spaces.Dict({name: gym.spaces.Box(0, 255, SIZE, np.uint8) for name in CAMERAS}),
            "agent_pos": gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32),
        }
    )
    action_space = gym.spaces.Box(-np.inf, np.inf, (len(JOINTS),), np.float32)
    task = task_description = "move the square to the left"

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode

    def _observe(self) -> dict[str, Any]:
        tick = World.diary.tick()
        return {"pixels": {name: frame_at(tick) for name in CAMERAS}, "agent_pos": state_at(tick)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        World.diary.command(action.astype(np.float32))
        return self._observe(), 0.0, False, False, {"is_success": False}

    def render(self) -> np.ndarray:
        return np.zeros(SIZE, dtype=np.uint8)


STEPS = 45
gym.register("tests/Clocked-v0", entry_point=ClockedEnv, max_episode_steps=STEPS)


@EnvConfig.register_subclass("clocked")
@dataclass
class ClockedEnvConfig(EnvConfig):
    """Features under the names that LeRobot gives to what the environment returns."""

    fps: int = FPS
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (len(JOINTS),)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (len(JOINTS),)),
            **{f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, SIZE) for name in CAMERAS},
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            **{name: name for name in (f"observation.images.{name}" for name in CAMERAS)},
        }
    )

    @property
    def gym_id(self) -> str:
        return "tests/Clocked-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"render_mode": "rgb_array"}
