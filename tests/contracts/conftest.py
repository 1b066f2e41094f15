"""A small dataset that fits the conveyor environment, recorded once per worker."""

from pathlib import Path

import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.testing import tiny_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Three short episodes with video, with the cameras, joints and frame rate of ``--env.type=conveyor``."""
    conveyor = BACKENDS["conveyor"]
    root: Path = tmp_path_factory.mktemp("dataset") / "tiny"
    return tiny_dataset(root, joint_names=conveyor.action_names, fps=conveyor.fps)
