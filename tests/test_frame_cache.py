"""Decoded frames kept in memory: the same bits, decoded once, bounded, through the stock factory."""

import pickle
from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.data import frame_cache
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


def test_the_limit_holds(root: Path):
    dataset = open_dataset(root)
    cache_frames(dataset, 1e-9)
    first = dataset[0]
    held = dataset.reader.cached_bytes
    dataset[len(dataset) - 1]
    assert dataset.reader.cached_bytes == held
    assert torch.equal(first[CAMERAS[0]], open_dataset(root)[0][CAMERAS[0]])


def test_a_stream_is_refused():
    with pytest.raises(InternVLAError, match="streams"):
        cache_frames(object(), 1.0)


def test_the_stock_factory_is_wrapped_once(monkeypatch: pytest.MonkeyPatch):
    from lerobot.datasets import factory

    made: list[object] = []
    monkeypatch.setattr(factory, "make_dataset", lambda cfg: made.append(cfg) or "dataset")
    frame_cache.install()
    wrapped = factory.make_dataset
    frame_cache.install()
    assert factory.make_dataset is wrapped
    assert wrapped(object()) == "dataset", "everything that does not ask for a cache falls through"
