"""Where a dataset keeps what an embodiment describes: its features against the robot's, every difference at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lerobot_internvla.embodiments.spec import Embodiment


@dataclass(frozen=True)
class SourceFeatures:
    """Feature keys of one dataset, in the embodiment's order."""

    state_keys: tuple[str, ...]
    action_keys: tuple[str, ...]
    cameras: Mapping[str, str] = field(hash=False)
    """Slot -> feature key, in the order head, left_wrist, right_wrist. A slot without a camera is absent."""


def match_features(
    embodiment: Embodiment,
    features: Mapping[str, Mapping[str, Any]],
    *,
    camera_map: Mapping[str, str] | None = None,
    needs_actions: bool = True,
    needs_state: bool = True,
) -> SourceFeatures:
    """Find the embodiment's state, actions and cameras in a dataset."""
    raise NotImplementedError


def infer_embodiment(robot_type: str | None, features: Mapping[str, Mapping[str, Any]]) -> Embodiment:
    """The preset of a dataset's ``robot_type``."""
    raise NotImplementedError
