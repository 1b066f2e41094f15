"""Whether this computer has MuJoCo and can draw with it; tests that cannot run say why."""

import importlib.util
import os
import sys

import pytest

INSTALL = 'needs MuJoCo: pip install "lerobot_policy_internvla_a1[mujoco]"'


def why_not() -> str | None:
    """What is missing for pictures of the MuJoCo conveyor; None where nothing is."""
    if importlib.util.find_spec("mujoco") is None:
        return INSTALL
    from lerobot_internvla.envs.conveyor.mujoco.library import HOW_TO_DRAW, offscreen_library

    display = sys.platform != "linux" or "DISPLAY" in os.environ
    return None if display or offscreen_library() is not None else HOW_TO_DRAW


needs_drawing = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


def skip_unless_it_draws() -> None:
    if reason := why_not():
        pytest.skip(reason)
