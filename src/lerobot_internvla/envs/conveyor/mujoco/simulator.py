"""The four functions of ``conveyor.backend`` for the MuJoCo conveyor."""

from lerobot_internvla.envs.conveyor.mujoco.expert import MujocoExpert as make_expert
from lerobot_internvla.envs.conveyor.mujoco.rendering import draw_cameras, draw_for_people
from lerobot_internvla.envs.conveyor.mujoco.world import MujocoWorld as make_world

__all__ = ["draw_cameras", "draw_for_people", "make_expert", "make_world"]
