"""The four functions of ``conveyor.backend`` for the 2-D conveyor."""

from lerobot_internvla.envs.conveyor.planar.drawing import draw_cameras, draw_for_people
from lerobot_internvla.envs.conveyor.planar.expert import PlanarExpert as make_expert
from lerobot_internvla.envs.conveyor.planar.world import PlanarWorld as make_world

__all__ = ["draw_cameras", "draw_for_people", "make_expert", "make_world"]
