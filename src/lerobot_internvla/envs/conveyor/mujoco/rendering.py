"""Pictures of the MuJoCo conveyor: three cameras for a policy, one composed frame for people.

Shadows and multisampling are off: without a GPU they cost several times as much as the rest. An OpenGL context belongs
to the thread that made it, so every thread that draws has its own; most programs have one such thread.
"""

import atexit
import threading

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.mujoco.arm import FPS
from lerobot_internvla.envs.conveyor.mujoco.library import HOW_TO_DRAW, make_context, mujoco
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


class Renderer:
    """Draws square pictures of one size, in the thread that made it.

    Raises:
        InternVLAError: OpenGL does not work on this machine.
    """

    def __init__(self, size: int) -> None:
        self._model = scene_model()
        self._model.vis.global_.offwidth = self._model.vis.global_.offheight = size
        try:
            self._opengl = make_context(size)
            self._opengl.make_current()
            self._drawing = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:  # ImportError, AttributeError, RuntimeError, mujoco.FatalError: whatever is missing
            raise InternVLAError(f"MuJoCo cannot draw on this machine ({error}). {HOW_TO_DRAW}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawing)
        self._scene = mujoco.MjvScene(self._model, maxgeom=500)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._frame = mujoco.MjrRect(0, 0, size, size)
        self._size = size

    def draw(self, world: MujocoWorld, camera: str) -> Picture:
        """RGB (size, size, 3) of what a camera of the scene sees."""
        self._camera.fixedcamid = self._model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, world.data, self._options, None, self._camera, everything, self._scene)
        self._opengl.make_current()
        mujoco.mjr_render(self._frame, self._scene, self._drawing)
        picture = np.empty((self._size, self._size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, self._frame, self._drawing)
        return np.ascontiguousarray(picture[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        self._opengl.make_current()
        self._drawing.free()
        self._opengl.free()


def _draw(world: MujocoWorld, camera: str, size: int) -> Picture:
    return _renderer(size).draw(world, camera)


def _renderer(size: int) -> Renderer:
    renderers: dict[int, Renderer] = _own.__dict__.setdefault("renderers", {})
    if size not in renderers:
        renderer = Renderer(size)
        if not renderers and threading.current_thread() is threading.main_thread():
            # Before the interpreter takes OpenGL apart, which OSMesa's contexts do not survive quietly.
            atexit.register(lambda: [renderer.close() for renderer in renderers.values()])
        renderers[size] = renderer
    return renderers[size]
