"""A source opened to read: what LeRobotDataset gives, at a cost that does not grow with frames."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.data import source_reader
from lerobot_internvla.data.source_reader import RowOfFrame, SourceReader
from lerobot_internvla.data.sources import Source, load_mixture
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.testing import tiny_dataset

LENGTHS = (12, 7, 16, 9, 11)
DELTAS = {"observation.images.top": [-0.2, 0.0, 0.2], "action": [0.0, 0.1, 0.2]}


@pytest.fixture(scope="module")
def source(mixture_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The arm of the tiny mixture, of five episodes."""
    root = tmp_path_factory.mktemp("source") / "arm"
    tiny_dataset(root, episode_lengths=LENGTHS, cameras={"top": (48, 64), "wrist": (48, 64)})
    file = root.with_name("mixture.yaml")
    robot = mixture_file.with_name("tiny_arm.yaml")
    file.write_text(f"foresight_interval_s: 0.2\nsources: {{arm: {{root: arm, embodiment: {robot}, weight: 1}}}}")
    return load_mixture(file).sources[0]


def opened(source: Source, places: list[int] | None = None) -> SourceReader:
    return SourceReader(source, places, delta_timestamps=DELTAS, tolerance_s=1e-4, video_backend="pyav")


def stock(source: Source, episodes: list[int] | None = None) -> Any:
    return LeRobotDataset(
        "local/arm",
        root=source.root,
        episodes=episodes,
        delta_timestamps=DELTAS,
        return_uint8=True,
        video_backend="pyav",
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=8))
def test_rows_are_those_of_a_dictionary_over_all_frames(gaps_and_lengths: list[tuple[int, int]]):
    starts, lengths, frames, end = [], [], [], 0
    for gap, length in gaps_and_lengths:
        starts.append(end + gap)
        lengths.append(length)
        end += gap + length
        frames += range(end - length, end)
    rows, dictionary = RowOfFrame(starts, lengths), dict(zip(frames, range(len(frames)), strict=True))
    assert len(rows) == len(dictionary)
    for index in range(-2, end + 2):
        if index in dictionary:
            assert rows[index] == dictionary[index]
        else:
            with pytest.raises(KeyError):
                rows[index]


@pytest.mark.parametrize("episodes", [None, [1, 2, 4], [0], [3]])
def test_frames_and_mapping_are_those_of_lerobot(source: Source, episodes: list[int] | None):
    ours, theirs = opened(source, episodes), stock(source, episodes)
    mapping = theirs.absolute_to_relative_idx
    ours_mapping: Any = ours.reader._absolute_to_relative_idx  # type: ignore[attr-defined]
    if episodes is None:
        assert mapping is None and ours_mapping is None
    else:
        assert not isinstance(ours_mapping, dict)
        assert {index: ours_mapping[index] for index in mapping} == mapping and len(ours_mapping) == len(mapping)
    for index in (mapping or range(sum(LENGTHS))) if episodes else (0, 11, 12, 30, sum(LENGTHS) - 1):
        got, expected = ours[index], theirs[index if mapping is None else mapping[index]]
        assert got.keys() == expected.keys() and got["task"] == expected["task"]
        assert all(torch.equal(got[key], expected[key]) for key in got if key != "task")


def test_opening_looks_for_files_once_and_not_for_every_episode(source: Source, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise AssertionError("this grows with the dataset")

    monkeypatch.setattr(DatasetReader, "_check_cached_episodes_sufficient", fail)
    monkeypatch.setattr(DatasetReader, "_build_index_mapping", fail)
    for places in (None, [1, 3]):
        opened(source, places)


def test_lerobot_downloads_what_is_missing_and_only_that(source: Source, tmp_path: Path, monkeypatch: Any):
    """LeRobot is asked for the rank's episodes if one of their files is not there, and not at all otherwise."""
    root = tmp_path / "arm"
    shutil.copytree(source.root, root)
    copy = dataclasses.replace(source, root=root)
    asked: list[Any] = []

    def download(*_: Any, episodes: Any, **__: Any) -> None:
        asked.append(episodes)
        shutil.copytree(source.root, root, dirs_exist_ok=True)

    monkeypatch.setattr(source_reader, "LeRobotDataset", download)
    opened(copy, [1, 2])
    assert asked == []
    for folder, places in (("videos", [1, 2]), ("data", [0]), ("data", None)):
        shutil.rmtree(root / folder)
        assert opened(copy, places)[13]["task"] if places != [0] else opened(copy, places)[3]["task"]
    assert asked == [[1, 2], [0], None]


def test_of_a_partial_copy_rows_are_counted(source: Source, tmp_path: Path):
    """Only the second data file of two was copied: frame 19 is its first row."""
    root = tmp_path / "arm"
    shutil.copytree(source.root, root)
    (data,) = root.glob("data/*/*.parquet")
    parquet.write_table(parquet.read_table(data).slice(sum(LENGTHS[:2])), data.with_name("file-001.parquet"))
    data.unlink()
    (episodes,) = root.glob("meta/episodes/*/*.parquet")
    table = parquet.read_table(episodes)
    place = table.schema.get_field_index("data/file_index")
    column = pyarrow.array([0, 0, 1, 1, 1], type=table.schema.field(place).type)
    parquet.write_table(table.set_column(place, table.schema.field(place), column), episodes)
    keep = [2, 3, 4]
    partial = dataclasses.replace(
        source,
        root=root,
        episodes=(2, 3, 4),
        episode_starts=source.episode_starts[keep],
        episode_lengths=source.episode_lengths[keep],
    )
    ours, theirs = opened(partial), stock(source)
    for index in (19, 34, 35, sum(LENGTHS) - 1):
        got, expected = ours[index], theirs[index]
        assert all(torch.equal(got[key], expected[key]) for key in got if key != "task")


def test_a_table_in_another_order_is_refused(source: Source, tmp_path: Path):
    root = tmp_path / "arm"
    shutil.copytree(source.root, root)
    (data,) = root.glob("data/*/*.parquet")
    table = parquet.read_table(data)
    parquet.write_table(table.take(list(reversed(range(len(table))))), data)
    for places in (None, [1, 2]):
        with pytest.raises(InternVLAError, match=r"'arm': the table in .* does not hold the frames"):
            opened(dataclasses.replace(source, root=root), places)
    parquet.write_table(table.slice(0, 50), data)
    with pytest.raises(InternVLAError, match="does not hold the frames"):
        opened(dataclasses.replace(source, root=root))
