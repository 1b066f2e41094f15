"""A small dataset that fits the conveyor environment, recorded once per worker; the clocked world and its planner.

The world is imported where it is asked for: importing it registers a robot and an environment.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.testing import tiny_dataset

if TYPE_CHECKING:
    from clocked_planner import Planner
    from clocked_world import Diary


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Three short episodes with video, with the cameras, joints and frame rate of ``--env.type=conveyor``."""
    conveyor = BACKENDS["conveyor"]
    root: Path = tmp_path_factory.mktemp("dataset") / "tiny"
    return tiny_dataset(root, joint_names=conveyor.action_names, fps=conveyor.fps)


@pytest.fixture
def diary() -> "Iterator[Diary]":
    """What the clocked world notes in this test: clocked_world.py."""
    from clocked_world import World

    yield World.begin()
    World.begin()


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> "Planner":
    """Chunks that are known by hand: clocked_planner.py."""
    from clocked_planner import Planner

    planner = Planner()
    planner.install(monkeypatch)
    return planner
