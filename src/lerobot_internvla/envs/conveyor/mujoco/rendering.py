"""Pictures of the MuJoCo conveyor: three cameras for a policy, one composed frame for people.

Shadows and multisampling are off: without a GPU they cost several times as much as the rest. An OpenGL context belongs
to the thread that made it, so every thread that draws has its own; most programs have one such thread.
"""

import atexit
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.mujoco.arm import FPS
from lerobot_internvla.envs.conveyor.mujoco.library import HOW_TO_DRAW, mujoco
from lerobot_internvla.envs.conveyor.mujoco.world import MujocoWorld, scene_model
from lerobot_internvla.envs.conveyor.people import Colour, compose
from lerobot_internvla.envs.conveyor.task import CAMERAS
from lerobot_internvla.errors import InternVLAError

Picture = NDArray[np.uint8]

EDGES: dict[str, Colour] = {"head": (120, 120, 120), "left_wrist": (242, 143, 59), "right_wrist": (138, 92, 196)}

_own = threading.local()


def draw_cameras(world: MujocoWorld, size: int) -> dict[str, Picture]:
    """What the policy sees: one RGB picture (size, size, 3) per name in ``CAMERAS``.

    Raises:
        InternVLAError: OpenGL does not work on this machine; the message says what to install.
    """
    return {name: _draw(world, name, size) for name in CAMERAS}


def draw_for_people(world: MujocoWorld, height: int = 352) -> Picture:
    """A composed frame for videos: the scene from the side, the three cameras beside it, the instruction below.

    Returns:
        RGB, ``height`` x about 1.25 ``height``; both even, so that every video codec takes it.
    """
    return compose(
        world,
        FPS,
        height,
        lambda size: _draw(world, "people", size),
        [(lambda size, name=name: _draw(world, name, size), EDGES[name]) for name in CAMERAS],
    )


def _draw(world: MujocoWorld, camera: str, size: int) -> Picture:
    renderer = _renderer(size)
    renderer.update_scene(world.data, camera)
    return renderer.render()


def _renderer(size: int) -> Any:
    renderers: dict[int, Any] = _own.__dict__.setdefault("renderers", {})
    if size not in renderers:
        model = scene_model()
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        try:
            renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # ImportError, RuntimeError, mujoco.FatalError, AttributeError: whatever is missing
            raise InternVLAError(f"MuJoCo cannot draw on this machine ({error}). {HOW_TO_DRAW}") from error
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        if not renderers and threading.current_thread() is threading.main_thread():
            # Before the interpreter takes OpenGL apart, which OSMesa's contexts do not survive quietly.
            atexit.register(lambda: [renderer.close() for renderer in renderers.values()])
        renderers[size] = renderer
    return renderers[size]
