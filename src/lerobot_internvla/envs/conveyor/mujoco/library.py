"""MuJoCo, and a way for it to draw without a display. The other files import ``mujoco`` from here.

MuJoCo takes its way to OpenGL from the variable ``MUJOCO_GL`` and without it wants a display. Here a variable that is
not set means, on Linux: ``egl`` where EGL has a device (a GPU's driver, or Mesa's software renderer, which needs no
GPU), else ``osmesa`` where that library is installed. Physics needs neither.
"""

import ctypes
import ctypes.util
import importlib
import os
import sys
from typing import Any

HOW_TO_DRAW = (
    "Drawing without a display needs EGL or OSMesa: on Debian and Ubuntu `apt-get install libegl1 libgl1-mesa-dri "
    "libopengl0`, or libosmesa6 where that still exists. MUJOCO_GL=egl or MUJOCO_GL=osmesa forces one of them."
)


def offscreen_library() -> str | None:
    """The value of ``MUJOCO_GL`` that can draw here without a display; None where MuJoCo's own choice is best."""
    if not sys.platform.startswith("linux"):
        return None
    if _count_egl_devices() > 0:
        return "egl"
    return "osmesa" if ctypes.util.find_library("OSMesa") else None


def make_context(size: int) -> Any:
    """An OpenGL context for pictures of ``size`` x ``size`` pixels, whatever MuJoCo has chosen when it was imported."""
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower() or offscreen_library()
    module = importlib.import_module(f"mujoco.{wanted}") if wanted in ("egl", "osmesa") else mujoco
    return module.GLContext(size, size)


def _count_egl_devices() -> int:
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
        address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    except (OSError, AttributeError):
        return 0
    if not address:
        return 0
    count = ctypes.c_int(0)
    pointer = ctypes.POINTER(ctypes.c_int)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, pointer)(address)
    return count.value if query(0, None, ctypes.byref(count)) else 0


if "mujoco" not in sys.modules and not os.environ.get("MUJOCO_GL"):
    # Saves loading the library of the display, which is noisy where there is none.
    _library = offscreen_library()
    if _library is not None:
        os.environ["MUJOCO_GL"] = _library

# Mesa's software renderer, if that is what draws, without threads of its own: pictures this small cost the same CPU
# time with them, and several times the time on the wall when other processes keep the cores busy. GPUs ignore it.
os.environ.setdefault("LP_NUM_THREADS", "0")

mujoco: Any = importlib.import_module("mujoco")

__all__ = ["HOW_TO_DRAW", "make_context", "mujoco", "offscreen_library"]
