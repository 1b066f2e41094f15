"""MuJoCo, imported so that it can draw without a display. The other files import ``mujoco`` from here.

MuJoCo fixes its way to OpenGL when it is imported, from the variable ``MUJOCO_GL``, and without it wants a display. On
Linux the variable is set here unless it has a value: ``egl`` where EGL has a device (a GPU's driver, or Mesa's software
renderer, which needs no GPU), else ``osmesa`` where that library is installed. Physics needs neither.
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
    _library = offscreen_library()
    if _library is not None:
        os.environ["MUJOCO_GL"] = _library

mujoco: Any = importlib.import_module("mujoco")

__all__ = ["HOW_TO_DRAW", "mujoco", "offscreen_library"]
