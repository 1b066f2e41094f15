"""The conveyor with one arm to control, another camera and half the rate: ``--env.type=one_arm_conveyor``.

The scripted expert drives the right arm. What is left has three joints, one camera ("above", 48 x 48) and 5 steps per
second: a robot that has neither dims nor cameras nor rate in common with the whole conveyor. ``record`` makes its
dataset, through LeRobot's recording API. Importing this file registers the environment.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import EnvConfig

from lerobot_internvla.envs.conveyor.backend import episode_rng, resolve_backend
from lerobot_internvla.envs.conveyor.recording import RECORDING_DISTURBANCES
from lerobot_internvla.envs.conveyor.task import resolve_task

JOINTS, SIZE, TICKS_PER_STEP = 3, 48, 2
BACKEND = resolve_backend("conveyor")
NAMES = BACKEND.action_names[:JOINTS]
FPS = BACKEND.fps // TICKS_PER_STEP

EMBODIMENT = """
name: one_arm
title: The left arm of the conveyor
robot_types: [one_arm]
fps: 5
cameras: {head: [above]}
gripper: 0 is closed, 1 is open
source: tests/one_arm_conveyor.py
state:
  - key: observation.state
    dims: [{name: left_x, unit: scene}, {name: left_y, unit: scene}, {name: left_gripper, unit: 0..1}]
action:
  - key: action
    dims:
      - {name: left_x, unit: scene, relative: true}
      - {name: left_y, unit: scene, relative: true}
      - {name: left_gripper, unit: 0..1, relative: false}
"""


class OneArmConveyor(gym.Env[dict[str, Any], np.ndarray]):
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}
    observation_space = gym.spaces.Dict(
        {
            "pixels": gym.spaces.Dict({"above": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)}),
            "agent_pos": gym.spaces.Box(-np.inf, np.inf, (JOINTS,), np.float32),
        }
    )
    action_space = gym.spaces.Box(-np.inf, np.inf, (JOINTS,), np.float32)
    task = "train"

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode
        self.world, self.expert = BACKEND.make_world(resolve_task("train")), BACKEND.make_expert()

    @property
    def task_description(self) -> str:
        return self.world.instruction.text

    def observe(self) -> dict[str, Any]:
        return {
            "pixels": {"above": BACKEND.draw_cameras(self.world, SIZE)["head"]},
            "agent_pos": self.world.state()[:JOINTS],
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed)
        self.world.reset(episode_rng(seed or 0))
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        for _ in range(TICKS_PER_STEP):
            if self.world.ending is None:
                self.world.step(np.concatenate([action, self.expert.act(self.world)[JOINTS:]]))
        done = self.world.ending is not None
        return self.observe(), 0.0, done, False, {"is_success": self.world.ending == "success"}

    def render(self) -> np.ndarray:
        return BACKEND.draw_for_people(self.world, 64)


gym.register("tests/OneArmConveyor-v0", entry_point=OneArmConveyor, max_episode_steps=BACKEND.episode_steps // 2)


@EnvConfig.register_subclass("one_arm_conveyor")
@dataclass
class OneArmConveyorConfig(EnvConfig):
    fps: int = FPS
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (JOINTS,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (JOINTS,)),
            "observation.images.above": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            "observation.images.above": "observation.images.above",
        }
    )

    @property
    def gym_id(self) -> str:
        return "tests/OneArmConveyor-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"render_mode": "rgb_array"}


def record(root: Path, episodes: int, seed: int = 0) -> None:
    """The expert's episodes as this robot sees them."""
    joints = {"dtype": "float32", "shape": (JOINTS,), "names": list(NAMES)}
    camera = {"dtype": "image", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        repo_id="local/one_arm",
        fps=FPS,
        features={"observation.state": dict(joints), "action": dict(joints), "observation.images.above": camera},
        root=root,
        robot_type="one_arm",
        use_videos=False,
    )
    world = BACKEND.make_world(resolve_task("train"), disturbances=RECORDING_DISTURBANCES)
    expert = BACKEND.make_expert()
    for episode in range(episodes):
        world.reset(np.random.default_rng([seed, episode]))
        while world.ending is None and world.steps < BACKEND.episode_steps:
            action = expert.act(world)
            if world.steps % TICKS_PER_STEP == 0:
                dataset.add_frame(
                    {
                        "observation.state": world.state()[:JOINTS],
                        "action": action[:JOINTS],
                        "observation.images.above": BACKEND.draw_cameras(world, SIZE)["head"],
                        "task": world.instruction.text,
                    }
                )
            world.step(action)
        dataset.save_episode()
    dataset.finalize()
