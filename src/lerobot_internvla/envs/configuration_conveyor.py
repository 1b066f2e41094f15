"""The conveyor as LeRobot environment types: ``--env.type=conveyor`` and ``conveyor_mujoco``. Configuration only.

Importing this file registers the types with LeRobot and the environments with Gymnasium; OpenCV and the simulators are
imported when the first environment is made, also inside the worker processes of an asynchronous evaluation.

Feature names are those of the recorded dataset, so that a policy trained on one runs on the other without a rename:
``observation.images.head``, ``.left_wrist``, ``.right_wrist``, ``observation.state``, ``action``.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_internvla.envs.conveyor.backend import BACKENDS, Backend
from lerobot_internvla.envs.conveyor.task import CAMERAS, resolve_task
from lerobot_internvla.errors import InternVLAError

GYM_ID = "lerobot_internvla/Conveyor-v0"
MUJOCO_GYM_ID = "lerobot_internvla/ConveyorMujoco-v0"

for _id, _backend in ((GYM_ID, "conveyor"), (MUJOCO_GYM_ID, "conveyor_mujoco")):
    gym.register(
        _id,
        entry_point="lerobot_internvla.envs.conveyor.gym_env:ConveyorEnv",
        max_episode_steps=BACKENDS[_backend].episode_steps,
        kwargs={"backend": _backend},
    )


@EnvConfig.register_subclass("conveyor")
@dataclass
class ConveyorEnvConfig(EnvConfig):
    """The 2-D conveyor: two grippers, three cameras, 10 Hz.

    Raises:
        InternVLAError: unknown task or observation type, or values out of range; raised when the command line is read.
    """

    task: str | None = "train"  # train | slow | fast | unseen | any_bin | three_parcels
    fps: int = BACKENDS["conveyor"].fps
    episode_length: int = BACKENDS["conveyor"].episode_steps
    obs_type: str = "pixels_agent_pos"  # pixels_agent_pos | pixels
    image_size: int = BACKENDS[
        "conveyor"
    ].image_size  # Pixels per edge of the camera pictures; as in the dataset that the policy was trained on.
    parcels: int | None = None  # Exactly this many parcels (1 to 3) instead of the task's range.
    belt_speed: tuple[float, float] | None = (
        None  # (slowest, fastest) instead of the task's range, belt lengths per second.
    )
    camera_feed: str = "live"  # live | other_episode (a control: the cameras show another episode)
    render_mode: str = "rgb_array"
    render_height: int = 352  # Pixels; of the videos, not of what the policy sees.
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    backend_name: ClassVar[str] = "conveyor"
    registered_as: ClassVar[str] = GYM_ID

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.fps != self.backend.fps:
            problems.append(f"fps {self.fps}, but the {self.backend_name} runs at {self.backend.fps}")
        if self.obs_type not in ("pixels", "pixels_agent_pos"):
            problems.append(f"unknown obs_type {self.obs_type!r}, known are pixels_agent_pos, pixels")
        if self.camera_feed not in ("live", "other_episode"):
            problems.append(f"unknown camera_feed {self.camera_feed!r}, known are live, other_episode")
        if self.image_size < 16:
            problems.append(f"image_size {self.image_size} px is too small to see a parcel, expected 16 or more")
        try:
            resolve_task(self.task or "", parcels=self.parcels, belt_speed=self.belt_speed)
        except InternVLAError as error:
            problems.append(str(error))
        if problems:
            raise InternVLAError(f"This conveyor cannot be built: {'; '.join(problems)}")

        # The keys are the dataset's names on purpose: `lerobot-eval --eval.recording=true` makes dataset features of
        # them, and does not take a name with a slash.
        width = len(self.backend.action_names)
        self.features = {ACTION: PolicyFeature(FeatureType.ACTION, (width,))}
        for camera in CAMERAS:
            shape = (self.image_size, self.image_size, 3)
            self.features[f"{OBS_IMAGES}.{camera}"] = PolicyFeature(FeatureType.VISUAL, shape)
        self.features_map = {name: name for name in self.features}
        if self.obs_type == "pixels_agent_pos":
            self.features["agent_pos"] = PolicyFeature(FeatureType.STATE, (width,))
            self.features_map["agent_pos"] = OBS_STATE

    @property
    def backend(self) -> Backend:
        return BACKENDS[self.backend_name]

    @property
    def gym_id(self) -> str:
        return self.registered_as

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "backend": self.backend_name,
            "task": self.task,
            "parcels": self.parcels,
            "belt_speed": self.belt_speed,
            "obs_type": self.obs_type,
            "image_size": self.image_size,
            "camera_feed": self.camera_feed,
            "render_mode": self.render_mode,
            "render_height": self.render_height,
            "max_episode_steps": self.episode_length,
        }


@EnvConfig.register_subclass("conveyor_mujoco")
@dataclass
class ConveyorMujocoEnvConfig(ConveyorEnvConfig):
    """The conveyor in MuJoCo: two six-joint arms with grippers, three cameras, 20 Hz. Needs the extra ``mujoco``.

    Raises:
        InternVLAError: as for ``ConveyorEnvConfig``; a missing simulator is named when the first environment is made.
    """

    fps: int = BACKENDS["conveyor_mujoco"].fps
    episode_length: int = BACKENDS["conveyor_mujoco"].episode_steps
    image_size: int = BACKENDS["conveyor_mujoco"].image_size

    backend_name: ClassVar[str] = "conveyor_mujoco"
    registered_as: ClassVar[str] = MUJOCO_GYM_ID
