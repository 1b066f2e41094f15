"""The conveyor as a Gymnasium environment, in the form that LeRobot's evaluation expects.

Observation: ``{"pixels": {"head", "left_wrist", "right_wrist"}, "agent_pos"}``; the pictures are RGB uint8
(size, size, 3), ``agent_pos`` is the state. Action: absolute targets in the order of ``Backend.action_names``. Reward:
1 on the step that succeeds, else 0. The instruction is ``task_description``, the outcome ``info["is_success"]``. The
step limit is Gymnasium's own (``max_episode_steps`` of ``gym.make``), where LeRobot looks for it.
"""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.backend import episode_rng, resolve_backend
from lerobot_internvla.envs.conveyor.task import CAMERAS, resolve_task
from lerobot_internvla.errors import InternVLAError

ObservationType = Literal["pixels", "pixels_agent_pos"]
CameraFeed = Literal["live", "other_episode"]

OTHER_EPISODE = 10_000_019
"""Distance between the seeds of an episode and of the one filmed instead of it."""


class ConveyorEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """One conveyor. The episode is a pure function of the seed given to ``reset`` and of the actions.

    Args:
        backend: which simulator, a key of ``BACKENDS``.
        task: a key of ``TASKS``: speed range, parcel count, bins.
        parcels: exactly this many parcels instead of the task's range.
        belt_speed: (slowest, fastest) in belt lengths per second instead of the task's range.
        obs_type: "pixels_agent_pos", or "pixels" without the state.
        image_size: pixels per edge of the camera pictures; None is the simulator's own choice.
        camera_feed: "live", or "other_episode": the cameras show the expert at work in another episode, while state and
            instruction stay true. A control: a policy that succeeds all the same does not use its cameras.
        render_mode: "rgb_array" or None.
        render_height: height in pixels of the frame that ``render`` returns.

    Raises:
        InternVLAError: unknown backend, task or observation type, or values out of range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        backend: str = "conveyor",
        task: str = "train",
        *,
        parcels: int | None = None,
        belt_speed: tuple[float, float] | None = None,
        obs_type: ObservationType = "pixels_agent_pos",
        image_size: int | None = None,
        camera_feed: CameraFeed = "live",
        render_mode: str | None = "rgb_array",
        render_height: int = 352,
    ) -> None:
        if obs_type not in ("pixels", "pixels_agent_pos"):
            raise InternVLAError(f"Unknown obs_type {obs_type!r}. Known: pixels_agent_pos, pixels. Fix --env.obs_type.")
        if camera_feed not in ("live", "other_episode"):
            raise InternVLAError(
                f"Unknown camera_feed {camera_feed!r}. Known: live, other_episode. Fix --env.camera_feed."
            )
        self._backend = resolve_backend(backend)
        conveyor_task = resolve_task(task, parcels=parcels, belt_speed=belt_speed)
        self._world = self._backend.make_world(conveyor_task)
        self._filmed = self._world if camera_feed == "live" else self._backend.make_world(conveyor_task)
        self._expert = self._backend.make_expert()
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self._backend.fps}
        self.task = task
        self.render_mode = render_mode
        self._image_size = image_size or self._backend.image_size
        self._render_height = render_height
        self._with_state = obs_type == "pixels_agent_pos"

        low = np.array(self._backend.action_low, dtype=np.float32)
        high = np.array(self._backend.action_high, dtype=np.float32)
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        picture = gym.spaces.Box(0, 255, (self._image_size, self._image_size, 3), dtype=np.uint8)
        spaces: dict[str, gym.Space[Any]] = {"pixels": gym.spaces.Dict(dict.fromkeys(CAMERAS, picture))}
        if self._with_state:
            spaces["agent_pos"] = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gym.spaces.Dict(spaces)

    @property
    def task_description(self) -> str:
        """The instruction of the current episode; LeRobot hands it to the policy as ``task``."""
        return self._world.instruction.text

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        # A generator per episode, so that an episode never depends on how long the one before it took.
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        self._world.reset(episode_rng(episode))
        if self._filmed is not self._world:
            self._filmed.reset(episode_rng(episode + OTHER_EPISODE))
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._world.step(action)
        if self._filmed is not self._world and self._filmed.ending is None:
            self._filmed.step(self._expert.act(self._filmed))
        ending = self._world.ending
        return self._observation(), float(ending == "success"), ending is not None, False, self._info()

    def render(self) -> NDArray[np.uint8]:  # pyright: ignore[reportIncompatibleMethodOverride]  # gymnasium allows None
        """An RGB frame for people: the scene, both wrist views, the instruction and the time."""
        return self._backend.draw_for_people(self._world, self._render_height)

    def _observation(self) -> dict[str, Any]:
        observation: dict[str, Any] = {"pixels": self._backend.draw_cameras(self._filmed, self._image_size)}
        if self._with_state:
            observation["agent_pos"] = self._world.state()
        return observation

    def _info(self) -> dict[str, Any]:
        return {"is_success": self._world.ending == "success", "belt_speed": self._world.belt_speed}
