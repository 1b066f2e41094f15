"""A small policy with random weights, and a small dataset: a wide head camera (letterbox bars) and a square one."""

from pathlib import Path

import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy

CAMERAS = {"head": (48, 64), "left_wrist": (64, 64)}
INTERVAL = 3  # frames; at 10 fps 0.3 s
LENGTHS = (12, 9, 2)  # the last episode is shorter than the interval


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    folder = tmp_path_factory.mktemp("foresight") / "dataset"
    return tiny_dataset(folder, cameras=CAMERAS, episode_lengths=LENGTHS, fps=10, video=False)


@pytest.fixture
def policy() -> InternVLAA1Policy:
    return tiny_policy(tiny_config(cameras=list(CAMERAS), foresight_interval=INTERVAL, fps=10.0))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foresight") / "policy"
    tiny_policy(tiny_config(cameras=list(CAMERAS), foresight_interval=INTERVAL, fps=10.0)).save_pretrained(folder)
    return folder
