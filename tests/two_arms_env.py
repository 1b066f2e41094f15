"""A LeRobot environment without a world: ``--env.type=two_arms``. Importing this file registers it.

The joints of an ALOHA, cameras whose names no checkpoint knows, other pictures and another state on every tick. What
was seen and done is kept for the test to read.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

CAMERAS = ("top", "left", "right")
JOINTS, SIZE, STEPS = 14, (48, 64, 3), 7
INSTRUCTION = "pick up the pen"


class TwoArms(gym.Env[dict[str, Any], np.ndarray]):
    """Ends after ``STEPS`` ticks (Gymnasium's own limit), without success."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Dict(
        {
            "pixels": gym.spaces.Dict({name: gym.spaces.Box(0, 255, SIZE, np.uint8) for name in CAMERAS}),
            "agent_pos": gym.spaces.Box(-np.inf, np.inf, (JOINTS,), np.float32),
        }
    )
    action_space = gym.spaces.Box(-np.inf, np.inf, (JOINTS,), np.float32)
    task = task_description = INSTRUCTION
    seen: ClassVar[list[dict[str, Any]]] = []
    done: ClassVar[list[np.ndarray]] = []

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode

    def _observe(self) -> dict[str, Any]:
        random = np.random.default_rng(len(self.seen))
        pixels = {name: random.integers(0, 255, SIZE, dtype=np.uint8) for name in CAMERAS}
        self.seen.append({"pixels": pixels, "agent_pos": random.normal(1, 0.2, JOINTS).astype(np.float32)})
        return self.seen[-1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.done.append(action.copy())
        return self._observe(), 0.0, False, False, {"is_success": False}

    def render(self) -> np.ndarray:
        return self.seen[-1]["pixels"]["top"]


gym.register("tests/TwoArms-v0", entry_point=TwoArms, max_episode_steps=STEPS)


@EnvConfig.register_subclass("two_arms")
@dataclass
class TwoArmsConfig(EnvConfig):
    """Features under the names that LeRobot gives to what the environment returns."""

    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (JOINTS,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (JOINTS,)),
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
        return "tests/TwoArms-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"render_mode": "rgb_array"}
