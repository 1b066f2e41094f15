"""The report counts what the rank plans do, in numbers that can be checked by hand; pictures stay readable."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.video_utils import DEFAULT_DECODER_CACHE_SIZE
from matplotlib import image

from lerobot_internvla.data import mixture_report
from lerobot_internvla.data.mixture_report import largest_and_rest, report_mixture, save_report
from lerobot_internvla.data.sources import Mixture, Source
from lerobot_internvla.embodiments.matching import SourceFeatures
from lerobot_internvla.embodiments.spec import Dim, Embodiment, Part
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.testing import tiny_dataset

TABLE_3 = {"InternData-A1": 0.64, "RoboTwin": 0.08, "AgiBot-World": 0.18, "RoboMind": 0.02, "EgoDex": 0.08}


def robot(dims: int = 7) -> Embodiment:
    names = [f"joint_{index}" for index in range(dims)]
    return Embodiment(
        name="arm",
        title="An arm",
        robot_types=("arm",),
        state=(Part("observation.state", tuple(Dim(name, "rad") for name in names)),),
        action=(Part("action", tuple(Dim(name, "rad", relative=True) for name in names)),),
        cameras={"head": ("top",), "left_wrist": ("wrist",)},
        gripper="no gripper",
        fps=30.0,
        source="tests",
    )


def source(index: int, name: str, weight: float, lengths, *, fps: float = 30.0, from_hub: bool = False) -> Source:
    lengths = np.asarray(lengths, dtype=np.int64)
    cameras = {"head": "observation.images.top", "left_wrist": "observation.images.wrist"}
    return Source(
        index=index,
        name=name,
        repo_id=f"local/{name}",
        root=Path(name),
        revision=None,
        embodiment=robot(),
        features=SourceFeatures(("observation.state",), ("action",), cameras),
        trains_actions=name != "EgoDex",
        weight=weight,
        dataset_fps=fps,
        fps=fps,
        frame_stride=1,
        interval_frames=15,
        interval_s=0.5,
        episodes=tuple(range(len(lengths))),
        episode_starts=np.cumsum(lengths) - lengths,
        episode_lengths=lengths,
        from_hub=from_hub,
        embodiment_origin="preset",
        share_origin="weight",
    )


def mixture(*sources: Source, strategy: str = "exact") -> Mixture:
    return Mixture(Path("folder/kitchen.yaml"), sources, 0.5, strategy, "0123456789abcdef", (robot(),))


def table_3() -> Mixture:
    frames = (571_000, 24_500, 300_000, 7_200, 98_800)
    return mixture(
        *(
            source(index, name, weight, np.full(frames[index] // 100, 100))
            for index, (name, weight) in enumerate(TABLE_3.items())
        )
    )


def many(count: int = 1000) -> Mixture:
    rng = np.random.default_rng(0)
    weights = rng.lognormal(0, 2, count)
    return mixture(
        *(
            source(
                index,
                f"collection/dataset_with_a_long_name_{index:04}",
                weight,
                np.full(int(rng.lognormal(5, 1)) + 1, 700),
            )
            for index, weight in enumerate(weights / weights.sum())
        )
    )


def test_numbers_of_two_sources_on_two_ranks():
    small, large = source(0, "small", 0.5, [100, 100]), source(1, "large", 0.5, [900, 900], fps=10.0)
    report = report_mixture(mixture(small, large), 2, samples=4000)
    first, second = report.sources
    assert (first.frames, first.episodes, first.hours) == (200, 2, pytest.approx(200 / 30 / 3600))
    assert second.hours == pytest.approx(1800 / 10 / 3600)
    for use in first.use.values():  # each rank has one source, whichever strategy
        assert use.share == pytest.approx(0.5)
        assert use.draws_per_frame == pytest.approx(0.5 * 1e6 / 200)
        assert use.passes == pytest.approx(0.5 * 4000 / 200)
        assert use.most_drawn == pytest.approx(1)
        assert use.ranks == 1
    rank = report.ranks["exact"][0]
    assert (rank.sources, rank.frames, rank.mass) == (("small",), 200, pytest.approx(0.5))
    assert rank.table_bytes == 200 * (36 + 4 * 14)
    assert rank.decoder_bytes == 2 * 2 * 3_000_000  # two cameras, two episodes
    assert rank.memory_bytes == rank.table_bytes + rank.decoder_bytes
    assert report.total_variation == {"exact": pytest.approx(0, abs=1e-12), "lpt": pytest.approx(0, abs=1e-12)}


def test_table_3_on_8_ranks_shows_what_plain_lpt_does():
    report = report_mixture(table_3(), 8)
    shares = {row.name: row.use["lpt"].share for row in report.sources}
    assert list(shares.values()) == pytest.approx([0.25, 0.125, 0.25, 0.125, 0.25])
    assert [row.use["exact"].share for row in report.sources] == pytest.approx(list(TABLE_3.values()), abs=1e-12)
    assert report.total_variation["lpt"] == pytest.approx(0.39, abs=0.005)
    assert report.total_variation["exact"] < 1e-12
    assert [row.use["lpt"].ranks for row in report.sources] == [2, 1, 2, 1, 2]
    assert report.sources[0].use["exact"].ranks == 6
    for ranks in report.ranks.values():
        assert [rank.rank for rank in ranks] == list(range(8))
        assert [rank.mass for rank in ranks] == pytest.approx([1 / 8] * 8)
    assert sum(rank.frames for rank in report.ranks["exact"]) == sum(row.frames for row in report.sources)


def test_frames_that_come_more_often_than_others_of_their_source_are_reported():
    # Two pieces of equal mass, but episodes of 300 and 100 frames: the short one's frames come twice the average.
    report = report_mixture(mixture(source(0, "uneven", 1.0, [300, 100])), 2)
    assert report.sources[0].use["exact"].most_drawn == pytest.approx(2)
    assert report.sources[0].use["lpt"].most_drawn == pytest.approx(1)  # replicas hold all of it
    # Three ranks and two frames: one frame is on two ranks.
    report = report_mixture(mixture(source(0, "short", 1.0, [2])), 3)
    assert report.sources[0].use["exact"].most_drawn == pytest.approx(4 / 3)


def test_memory_is_bounded_where_it_must_be():
    long = source(0, "long", 1.0, np.full(10_000, 100), from_hub=True)
    (rank,) = report_mixture(mixture(long), 1).ranks["exact"]
    assert rank.decoder_bytes == 100 * 3_000_000
    assert rank.table_bytes == 1_000_000 * (36 + 4 * 14)
    ranks = report_mixture(mixture(long), 10).ranks["exact"]
    assert [r.table_bytes for r in ranks] == [100_000 * (36 + 4 * 14)] * 10  # it grows with the rank's own frames only
    assert mixture_report.MAX_DECODERS == DEFAULT_DECODER_CACHE_SIZE  # or the note in mixture_report is out of date


def test_bytes_per_frame_are_those_of_lerobots_table(tmp_path: Path):
    dataset = tiny_dataset(tmp_path / "tiny", episode_lengths=(300, 400), cameras=["head"], fps=10)
    table = dataset.hf_dataset.data
    assert table.nbytes / len(dataset) == pytest.approx(mixture_report.INDEX_COLUMNS_BYTES + 4 * (4 + 4), rel=0.1)


def test_the_strategy_in_use():
    assert report_mixture(table_3(), 2).strategy == "exact"
    assert report_mixture(mixture(source(0, "one", 1.0, [5]), strategy="lpt"), 2).strategy == "lpt"
    assert report_mixture(table_3(), 2, strategy="lpt").strategy == "lpt"
    with pytest.raises(InternVLAError, match="Unknown rank strategy 'fair'"):
        report_mixture(table_3(), 2, strategy="fair")
    with pytest.raises(InternVLAError, match="world_size is 0"):
        report_mixture(table_3(), 0)
    with pytest.raises(InternVLAError, match="samples is 0"):
        report_mixture(table_3(), 1, samples=0)


def test_a_thousand_sources_become_twenty_one_lines():
    report = report_mixture(many(), 64, samples=10**7)
    rows = largest_and_rest(report)
    assert len(rows) == 21
    assert rows[-1].name == "980 more"
    assert sum(row.requested for row in rows) == pytest.approx(1)
    assert sum(row.frames for row in rows) == sum(row.frames for row in report.sources)
    rest = rows[-1].use["exact"]
    assert rest.passes == pytest.approx(10 * rest.draws_per_frame)
    assert rest.draws_per_frame == pytest.approx(rest.share * 1e6 / rows[-1].frames)
    assert min(row.requested for row in rows[:-1]) >= max(row.requested for row in report.sources if row not in rows)


def test_json_and_picture(tmp_path: Path):
    data, picture = save_report(report_mixture(table_3(), 8, samples=10**6), tmp_path / "new" / "folder")
    read = json.loads(data.read_text())
    assert (read["file"], read["world_size"], read["strategy"], read["samples"]) == ("kitchen.yaml", 8, "exact", 10**6)
    assert read["sources"][4]["use"]["lpt"]["share"] == pytest.approx(0.25)
    assert len(read["ranks"]["exact"]) == len(read["ranks"]["lpt"]) == 8
    assert read["ranks"]["exact"][0]["memory_bytes"] > 0
    pixels = image.imread(picture)[..., :3]
    for colour in ("#8c959f", "#1f6feb", "#d4822a"):  # requested, exact, lpt
        wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        assert (np.abs(pixels - wanted).max(axis=-1) < 0.01).sum() > 500, colour


def test_a_report_of_many_sources_and_ranks_is_quick_and_of_readable_size(tmp_path: Path):
    start = time.perf_counter()
    report = report_mixture(many(), 512)
    assert time.perf_counter() - start < 10
    _, picture = save_report(report, tmp_path)
    height, width = image.imread(picture).shape[:2]
    assert width < 2000
    assert height < 2000


def test_output_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InternVLAError, match="is a file, not a folder"):
        save_report(report_mixture(table_3(), 1), tmp_path / "taken")
