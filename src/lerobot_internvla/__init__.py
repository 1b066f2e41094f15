"""InternVLA-A1 for stock LeRobot.

Importing this package registers the policy type ``internvla_a1``, the conveyor environments and the simulated robots
with LeRobot; LeRobot's own commands do it by themselves. It stays light: transformers and diffusers are imported when a
policy is built, simulators when one is needed, and what is missing is named then.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from . import envs, robots
from .configuration_internvla_a1 import WHEN_CREATED, InternVLAA1Config
from .conversion import unconverted as unconverted  # the reference's own policy types, refused with the next command
from .errors import InternVLAError

if TYPE_CHECKING:
    from .modeling_internvla_a1 import InternVLAA1Policy

try:
    __version__ = version("lerobot_policy_internvla_a1")
except PackageNotFoundError:  # a checkout on PYTHONPATH: usable from Python, but LeRobot's commands will not find it
    __version__ = "0+not.installed"


def _enter_training() -> None:
    """Wrap what lerobot-train makes its dataset with; only where that is loaded, because importing it is slow."""
    if "lerobot.datasets.factory" in sys.modules:
        from .data import stock_training

        stock_training.install()


def _enter_rollout() -> None:
    """Wrap what lerobot-rollout makes its inference engine with; the same."""
    if "lerobot.rollout.context" in sys.modules:
        from .serving import rollout

        rollout.enter_rollout()


# The commands import us after their own modules, and a notebook may import us first and LeRobot's training later.
_enter_training()
WHEN_CREATED.append(_enter_training)
WHEN_CREATED.append(_enter_rollout)

__all__ = ["InternVLAA1Config", "InternVLAA1Policy", "InternVLAError", "envs", "robots"]


def __getattr__(name: str) -> Any:
    if name == "InternVLAA1Policy":
        from .modeling_internvla_a1 import InternVLAA1Policy

        return InternVLAA1Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
