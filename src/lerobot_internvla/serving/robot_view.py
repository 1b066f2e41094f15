"""A robot as the policy sees it: which camera is which, which joints there are, and whether they fit.

LeRobot's rollout and LeRobot's policy server describe robots alike, so both go through here.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lerobot.processor import RenameObservationsProcessorStep
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

from .faults import refuse_unusable_observation

logger = logging.getLogger(__name__)


class RobotView:
    """How a robot's raw observations map to what the policy reads.

    Args:
        features: LeRobot's dataset features of the robot's observations (``hw_to_dataset_features``).
        rename_map: the robot's keys -> the policy's, as of ``--rename_map``.
        policy_cameras: keys of the cameras that the policy has.
    """

    def __init__(
        self, features: Mapping[str, Mapping[str, Any]], rename_map: Mapping[str, str], policy_cameras: Any
    ) -> None:
        keys = {key: rename_map.get(key, key) for key in features if key.startswith(f"{OBS_IMAGES}.")}
        self.cameras = {
            theirs.removeprefix(f"{OBS_IMAGES}."): ours for theirs, ours in keys.items() if ours in policy_cameras
        }
        """The robot's name of a camera -> the policy's key."""
        self.all_cameras = list(keys)
        """The robot's keys, among them those that the policy has no use for."""
        self.joints: list[str] = list(features[OBS_STATE]["names"]) if OBS_STATE in features else []

    def check(self, observation: Mapping[str, Any]) -> None:
        """Raises InternVLAError where a frame or a joint is missing or not a number."""
        refuse_unusable_observation(observation, self.cameras, self.joints)

    def frames(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """[1, 3, H, W] by the policy's key, as the camera made them (views: whoever keeps them must copy)."""
        return {
            ours: torch.from_numpy(np.asarray(observation[theirs])).permute(2, 0, 1)[None]
            for theirs, ours in self.cameras.items()
        }


def rename_map_of(preprocessor: Any) -> dict[str, str]:
    """The ``--rename_map`` in a LeRobot pipeline; empty where there is none."""
    return next(
        (step.rename_map for step in preprocessor.steps if isinstance(step, RenameObservationsProcessorStep)), {}
    )


def refuse_missing_cameras(view: RobotView, policy: Any, advice: str) -> None:
    """Nothing, where the robot has every camera that the policy needs of it.

    Args:
        advice: how to rename a camera here, with ``{}`` for the policy's name of one that is missing.

    Raises:
        InternVLAError: with the names of both sides.
    """
    missing = sorted(set(policy.driven_cameras().values()) - set(view.cameras.values()))
    if missing:
        raise InternVLAError(
            f"The robot has the cameras {', '.join(view.all_cameras) or 'none'}; the policy also needs "
            f"{', '.join(missing)}. Name the cameras so on the robot, or {advice.format(missing[0])}"
        )


def warn_of_other_rate(trained_hz: float | None, rate_hz: float) -> None:
    """Say so where a policy runs at another rate than it was trained at; None: nobody knows that."""
    if trained_hz is not None and abs(trained_hz - rate_hz) > 1e-6:
        logger.warning(
            "The robot runs at %g Hz and the policy was trained at %g Hz: chunks are executed, and the past is taken, "
            "at the wrong speed. Pass --fps=%g.",
            rate_hz,
            trained_hz,
            trained_hz,
        )
