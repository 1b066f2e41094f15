"""Lowest, highest and fastest action of a dataset, episode by episode."""

from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.data.dataset_meta import Place, read_meta
from lerobot_internvla.data.recorded_motion import recorded_motion
from lerobot_internvla.testing import tiny_dataset


def test_what_the_actions_did(tmp_path: Path):
    root = tmp_path / "data"
    tiny_dataset(root, episode_lengths=(9, 7), fps=20, video=False)
    dataset = LeRobotDataset("local/data", root=root)
    actions = np.array(dataset.hf_dataset.with_format("numpy")["action"][:], dtype=float)
    meta = read_meta(Place("data", None, root, None))
    found = recorded_motion(meta)["action"]
    assert found.low == pytest.approx(actions.min(axis=0), abs=1e-6)
    assert found.high == pytest.approx(actions.max(axis=0), abs=1e-6)
    within = [np.abs(np.diff(episode, axis=0)).max(axis=0) for episode in (actions[:9], actions[9:])]
    assert found.fastest == pytest.approx(np.maximum(*within) * 20, rel=1e-6), "not across the end of an episode"
    across = np.abs(actions[9] - actions[8]) * 20
    assert (across > np.array(found.fastest)).any(), "which the dataset can tell apart"


def test_metadata_alone_tells_no_speed(tmp_path: Path):
    root = tmp_path / "data"
    tiny_dataset(root, episode_lengths=(9,), video=False)
    for file in (root / "data").rglob("*.parquet"):
        file.unlink()
    assert recorded_motion(read_meta(Place("data", None, root, None)))["action"].fastest is None
