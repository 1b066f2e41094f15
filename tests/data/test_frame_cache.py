"""Decoded frames kept in memory: the same bits, decoded once, bounded."""

import pickle
from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.data.frame_cache import FrameCachingReader, cache_frames
from lerobot_internvla.envs.conveyor.recording import record_expert_episodes
from lerobot_internvla.errors import InternVLAError

CAMERAS = [f"observation.images.{name}" for name in ("head", "left_wrist", "right_wrist")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames") / "dataset"
    record_expert_episodes(folder, "local/frames", 2, image_size=32, progress=False)
    return folder


def open_dataset(root: Path) -> LeRobotDataset:
    deltas = {camera: [-0.5, 0.0, 0.5] for camera in CAMERAS}
    return LeRobotDataset("local/frames", root=root, video_backend="pyav", delta_timestamps=deltas, return_uint8=True)


def test_cached_frames_are_those_of_the_stock_reader(root: Path):
    stock, cached = open_dataset(root), open_dataset(root)
    cache_frames(cached, 1.0)
    for index in (0, 3, len(stock) // 2, len(stock) - 1, 3):
        ours, theirs = cached[index], stock[index]
        assert ours.keys() == theirs.keys()
        for camera in CAMERAS:
            assert torch.equal(ours[camera], theirs[camera]), (index, camera)


def test_an_episode_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    from lerobot.datasets import dataset_reader

    calls: list[int] = []
    decode = dataset_reader.decode_video_frames
    monkeypatch.setattr(dataset_reader, "decode_video_frames", lambda *a, **k: calls.append(1) or decode(*a, **k))
    dataset = open_dataset(root)
    cache_frames(dataset, 1.0)
    for index in range(5):
        dataset[index]
    assert len(calls) == len(CAMERAS)
    assert isinstance(dataset.reader, FrameCachingReader)
    assert dataset.reader.cached_bytes > 0
    # A worker starts empty.
    assert pickle.loads(pickle.dumps(dataset.reader)).cached_bytes == 0


@pytest.mark.parametrize("cameras_that_fit", [0, 2])
def test_the_limit_holds_and_what_does_not_fit_is_read_as_before(
    root: Path, cameras_that_fit: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FrameCachingReader, "_warned", False)
    dataset, stock = open_dataset(root), open_dataset(root)
    episode = dataset.meta.episodes[0]["length"] * 3 * 32 * 32
    cache_frames(dataset, (cameras_that_fit * episode + 1) / 1e9)
    first = dataset[0]
    assert dataset.reader.cached_bytes == cameras_that_fit * episode
    dataset[len(dataset) - 1]
    assert dataset.reader.cached_bytes <= cameras_that_fit * episode + 1
    for camera in CAMERAS:
        assert torch.equal(first[camera], stock[0][camera])
    assert caplog.text.count("frame cache is full") == 1


def test_a_stream_is_refused():
    with pytest.raises(InternVLAError, match="streams"):
        cache_frames(object(), 1.0)
