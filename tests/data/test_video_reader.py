"""Sparse moments of a video: the frames of the stock reader, bit for bit, without decoding what lies between."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets import dataset_reader
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import FrameTimestampError
from lerobot.utils.import_utils import get_safe_default_video_backend

from lerobot_internvla.data.frame_cache import cache_frames
from lerobot_internvla.data.video_reader import (
    START_FRAMES,
    SparseVideoReader,
    frames_per_keyframe,
    read_sparsely,
    split_into_parts,
)

FPS, LENGTHS = 30, (40, 12, 33)
COLOUR, DEPTH = "observation.images.head", "observation.images.depth"
ENCODERS = {
    "av1": RGBEncoderConfig(),  # LeRobot's default
    "h264": RGBEncoderConfig(vcodec="h264", g=2, crf=23),
    "h264, rare keyframes": RGBEncoderConfig(vcodec="h264", g=250, crf=23),
}
INTERVAL = 15


def record(root: Path, encoder: RGBEncoderConfig, depth: bool = False) -> Path:
    """Three episodes in one file, one shorter than the interval; no two pictures are alike."""
    names = ["height", "width", "channels"]
    features: dict[str, Any] = {
        COLOUR: {"dtype": "video", "shape": (64, 80, 3), "names": names},
        "action": {"dtype": "float32", "shape": (1,), "names": ["x"]},
    }
    if depth:
        features[DEPTH] = {"dtype": "video", "shape": (64, 80, 1), "names": names, "info": {"is_depth_map": True}}
    dataset = LeRobotDataset.create(
        "local/moments", FPS, features, root=root, rgb_encoder=encoder, video_backend="pyav", streaming_encoding=True
    )
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 255, (64, 80, 3), dtype=np.uint8)
    for length in LENGTHS:
        for index in range(length):
            frame: dict[str, Any] = {"task": "look", "action": np.zeros(1, np.float32)}
            frame[COLOUR] = np.roll(picture, (3 * index, index), axis=(0, 1))
            if depth:
                frame[DEPTH] = (np.roll(picture[..., :1], index, axis=0).astype(np.uint16) + 1) * 30
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("moments")
    return {name: record(folder / name, encoder) for name, encoder in ENCODERS.items()}


def open_dataset(root: Path, offsets: list[int] | None = None, **arguments: Any) -> LeRobotDataset:
    deltas = {COLOUR: [offset / FPS for offset in offsets]} if offsets else None
    keywords = {"video_backend": "pyav", "return_uint8": True} | arguments
    return LeRobotDataset("local/moments", root=root, delta_timestamps=deltas, **keywords)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What LeRobot's decoder was asked for, in frames of the file."""
    asked: list[list[int]] = []
    decode = dataset_reader.decode_video_frames

    def spy(path: Path, timestamps: list[float], *arguments: Any, **keywords: Any) -> Any:
        asked.append([round(t * FPS) for t in timestamps])
        return decode(path, timestamps, *arguments, **keywords)

    monkeypatch.setattr(dataset_reader, "decode_video_frames", spy)
    return asked


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("offsets", [[-INTERVAL, 0, INTERVAL], [INTERVAL, 0, -2, 0, -INTERVAL]], ids=str)
def test_every_sample_is_that_of_the_stock_reader(roots: dict[str, Path], encoder: str, offsets: list[int]):
    """At every place of an episode: in the middle, and where moments are clamped to its ends."""
    stock, ours = (open_dataset(roots[encoder], offsets) for _ in range(2))
    read_sparsely(ours)
    for index in (0, 7, 20, LENGTHS[0] - 1, LENGTHS[0], LENGTHS[0] + 5, sum(LENGTHS) - 1):
        ours_here, stock_here = ours[index], stock[index]
        assert ours_here.keys() == stock_here.keys()
        assert ours_here[COLOUR].dtype == torch.uint8
        assert torch.equal(ours_here[COLOUR], stock_here[COLOUR]), index


def test_nothing_between_the_moments_is_decoded(roots: dict[str, Path], requests: list[list[int]]):
    dataset = open_dataset(roots["av1"], [-INTERVAL, 0, INTERVAL])
    dataset[20]
    assert requests == [[5, 20, 35]], "the stock reader asks for the span; if this fails, look whether it still does"
    requests.clear()
    read_sparsely(dataset)
    dataset[20]
    assert sorted(requests) == [[5], [20], [35]]


def test_clamped_moments_are_decoded_once(roots: dict[str, Path], requests: list[list[int]]):
    dataset = open_dataset(roots["av1"], [-INTERVAL, 0, INTERVAL])
    read_sparsely(dataset)
    assert dataset[0][COLOUR].shape[0] == 3
    assert sorted(requests) == [[0], [15]]
    requests.clear()
    dataset[LENGTHS[0]]  # twice the first frame and once the last
    assert sorted(requests) == [[LENGTHS[0]], [LENGTHS[0] + LENGTHS[1] - 1]]


def test_where_keyframes_are_rare_the_span_is_cheaper(roots: dict[str, Path], requests: list[list[int]]):
    dataset = open_dataset(roots["h264, rare keyframes"], [-INTERVAL, 0, INTERVAL])
    read_sparsely(dataset)
    dataset[20]
    assert requests == [[5, 20, 35]]
    videos = {name: next(root.glob("videos/**/*.mp4")) for name, root in roots.items()}
    assert frames_per_keyframe(videos["av1"]) == pytest.approx(2, abs=0.1)
    assert frames_per_keyframe(videos["h264, rare keyframes"]) > 20


def test_neighbours_are_decoded_together(roots: dict[str, Path], requests: list[list[int]]):
    dataset = open_dataset(roots["av1"], [-1, 0, START_FRAMES, START_FRAMES + 15])
    read_sparsely(dataset)
    dataset[10]
    assert sorted(requests) == [[9, 10, 14], [29]]


def test_torchcodec_skips_by_itself(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    """Its requests go through as they are; no need for it to be installed."""
    asked: list[tuple[list[int], str]] = []

    def decode(path: Path, timestamps: list[float], tolerance: float, backend: str, **keywords: Any) -> torch.Tensor:
        asked.append(([round(t * FPS) for t in timestamps], backend))
        return torch.zeros(len(timestamps), 3, 64, 80)

    monkeypatch.setattr(dataset_reader, "decode_video_frames", decode)
    dataset = open_dataset(roots["av1"], [-INTERVAL, 0, INTERVAL], video_backend="torchcodec")
    read_sparsely(dataset)
    dataset[0]
    assert asked == [([0, 0, 15], "torchcodec")]


@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
def test_depth_always_goes_through_pyav(tmp_path: Path, requests: list[list[int]], backend: str):
    if backend == "torchcodec" and get_safe_default_video_backend() != backend:
        pytest.skip("torchcodec needs FFmpeg's libraries, which are not here")
    root = record(tmp_path / "depth", ENCODERS["h264"], depth=True)
    deltas = {key: [offset / FPS for offset in (-INTERVAL, 0, INTERVAL)] for key in (COLOUR, DEPTH)}
    stock, ours = (
        LeRobotDataset("local/moments", root=root, delta_timestamps=deltas, video_backend=backend, return_uint8=True)
        for _ in range(2)
    )
    assert stock.meta.depth_keys == [DEPTH]
    read_sparsely(ours)
    for index in (0, 20, LENGTHS[0]):
        ours_here, stock_here = ours[index], stock[index]
        assert torch.equal(ours_here[COLOUR], stock_here[COLOUR])
        assert torch.equal(ours_here[DEPTH], stock_here[DEPTH])
    requests.clear()
    ours[20]
    depth = [[5], [20], [35]]
    assert sorted(requests) == (sorted(depth * 2) if backend == "pyav" else [[5], [5, 20, 35], [20], [35]])


def test_a_moment_that_is_not_there_is_an_error_as_before(roots: dict[str, Path]):
    for prepare in (lambda dataset: None, read_sparsely):
        dataset = open_dataset(roots["av1"])
        prepare(dataset)
        with pytest.raises(FrameTimestampError, match="tolerance"):
            dataset.reader._query_videos({COLOUR: [0.1, 1000.0]}, 0)


def test_workers_read_sparsely_too_and_asking_twice_changes_nothing(roots: dict[str, Path], requests: list[list[int]]):
    dataset = open_dataset(roots["av1"], [-INTERVAL, 0, INTERVAL])
    read_sparsely(dataset)
    distances = dataset.reader.keyframe_distances
    read_sparsely(dataset)
    assert dataset.reader.keyframe_distances is distances
    copy = pickle.loads(pickle.dumps(dataset))
    assert isinstance(copy.reader, SparseVideoReader)
    copy[20]
    assert sorted(requests) == [[5], [20], [35]]
    read_sparsely(object())  # one that streams


def test_a_cache_fills_in_one_go_and_reads_sparsely_what_it_does_not_hold(
    roots: dict[str, Path], requests: list[list[int]]
):
    stock, ours = (open_dataset(roots["av1"], [-INTERVAL, 0, INTERVAL]) for _ in range(2))
    cache_frames(ours, (LENGTHS[0] + LENGTHS[1]) * 64 * 80 * 3 / 1e9)
    start = LENGTHS[0] + LENGTHS[1]
    samples = {index: ours[index] for index in (20, LENGTHS[0], start + 16)}
    assert requests[:2] == [list(range(LENGTHS[0])), list(range(LENGTHS[0], start))]
    assert sorted(requests[2:]) == [[start + 1], [start + 16], [start + 31]]
    for index, sample in samples.items():
        assert torch.equal(sample[COLOUR], stock[index][COLOUR]), index


@given(st.lists(st.integers(0, 200), min_size=1, max_size=12), st.integers(0, 30))
def test_parts_cover_every_moment_once_and_break_at_gaps_only(frames: list[int], gap: int):
    parts = split_into_parts([frame / FPS for frame in frames], (gap + 0.5) / FPS)
    flat = [round(moment * FPS) for part in parts for moment in part]
    assert flat == sorted(set(frames))
    firsts = {round(part[0] * FPS) for part in parts}
    assert firsts - {flat[0]} == {later for earlier, later in itertools.pairwise(flat) if later - earlier > gap}


@pytest.mark.parametrize("episodes", [None, [0, 2]])
def test_chunks_come_from_the_table_without_lerobots_detour(
    roots: dict[str, Path], episodes: list[int] | None, monkeypatch: pytest.MonkeyPatch
):
    """At the edges of episodes too; whatever is not float32 goes LeRobot's way."""
    deltas = {"action": [-0.1, 0.0, 0.1, 0.5], "index": [0.0, 1 / FPS]}
    stock, ours = (
        LeRobotDataset(
            "local/moments",
            root=roots["h264"],
            episodes=episodes,
            delta_timestamps=deltas | {COLOUR: [-0.5, 0.0, 0.5]},
            video_backend="pyav",
            return_uint8=True,
        )
        for _ in range(2)
    )
    read_sparsely(ours)
    query = DatasetReader._query_hf_dataset
    asked: list[str] = []

    def spy(self: Any, indices: dict[str, list[int]]) -> Any:
        asked.extend(indices if self is ours.reader else [])
        return query(self, indices)

    monkeypatch.setattr(DatasetReader, "_query_hf_dataset", spy)
    for index in (0, 1, 20, 39, 40, 44, len(stock) - 1):
        expected, found = stock[index], ours[index]
        assert expected.keys() == found.keys()
        for key in expected.keys() - {"task"}:
            assert torch.equal(expected[key], found[key]) and expected[key].dtype == found[key].dtype, key
    assert set(asked) == {"index"}
