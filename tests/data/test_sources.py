"""Mixture files held against real (small) datasets on disk: weights, frames, rates, robots, and every mistake."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import BackwardCompatibilityError
from lerobot.utils import constants
from packaging.version import Version

from lerobot_internvla.data import dataset_meta
from lerobot_internvla.data.sources import Mixture, describe, load_mixture
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.testing import tiny_dataset

SHIPPED = Path(__file__).parents[2] / "configs" / "mixtures"
JOINTS = ("shoulder", "elbow", "wrist", "gripper")
LENGTHS = (12, 16, 9, 13)

ROBOT = """
name: {name}
title: A robot of the tests
robot_types: [tiny]
fps: null
cameras: {{head: [top], left_wrist: [wrist]}}
gripper: 0 is closed, 1 is open
source: lerobot_internvla.testing
state:
  - key: observation.state
    dims: [{state}]
action:
  - key: action
    dims: [{action}]
"""


def robot_file(path: Path, name: str = "tiny_arm", relative: str = "true") -> None:
    path.write_text(
        ROBOT.format(
            name=name,
            state=", ".join(f"{{name: {joint}, unit: rad}}" for joint in JOINTS),
            action=", ".join(f"{{name: {joint}, unit: rad, relative: {relative}}}" for joint in JOINTS),
        )
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One dataset with pictures in its tables and one with videos; tests copy and change them."""
    folder = tmp_path_factory.mktemp("recorded")
    cameras = {"top": (32, 32), "wrist": (32, 32)}
    for kind in ("pictures", "videos"):
        tiny_dataset(
            folder / kind, episode_lengths=LENGTHS, cameras=cameras, joint_names=JOINTS, video=kind == "videos"
        )
    return {kind: folder / kind for kind in ("pictures", "videos")}


class Workshop:
    """A folder with datasets, a robot's file and a mixture file."""

    def __init__(self, folder: Path, recorded: dict[str, Path]) -> None:
        self.folder, self.recorded = folder, recorded
        robot_file(folder / "arm.yaml")

    def dataset(self, name: str, *, kind: str = "pictures", **info: Any) -> Path:
        """A copy of the recorded dataset, with changes to meta/info.json."""
        root = self.folder / name
        shutil.copytree(self.recorded[kind], root)
        path = root / "meta" / "info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | info))
        return root

    def drop(self, name: str, *features: str) -> None:
        """Remove features from meta/info.json."""
        path = self.folder / name / "meta" / "info.json"
        info = json.loads(path.read_text())
        for feature in features:
            del info["features"][feature]
        path.write_text(json.dumps(info))

    def load(self, text: str) -> Mixture:
        (self.folder / "mixture.yaml").write_text(text)
        return load_mixture(self.folder / "mixture.yaml")

    def complaint(self, text: str) -> str:
        with pytest.raises(InternVLAError) as caught:
            self.load(text)
        return str(caught.value)


@pytest.fixture
def shop(tmp_path: Path, recorded: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setattr(constants, "HF_LEROBOT_HOME", tmp_path / "home")
    return Workshop(tmp_path, recorded)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_pair_of_datasets(shop):
    shop.dataset("a")
    shop.dataset("b", fps=20)
    mixture = shop.load("""
sources:
  first: {root: a, embodiment: arm.yaml, weight: 3}
  second: {root: b, embodiment: arm.yaml, weight: 1, supervision: foresight, episodes: "1:3"}
""")
    first, second = mixture.sources
    assert [source.index for source in mixture.sources] == [0, 1]
    assert [source.weight for source in mixture.sources] == [0.75, 0.25]
    assert (first.name, first.repo_id, first.root) == ("first", "local/a", shop.folder / "a")
    assert (first.num_frames, first.num_episodes, first.episodes) == (50, 4, (0, 1, 2, 3))
    assert first.hours == pytest.approx(50 / 10 / 3600)
    assert (first.trains_actions, second.trains_actions) == (True, False)
    assert (first.features.state_keys, first.features.action_keys) == (("observation.state",), ("action",))
    assert dict(first.features.cameras) == {
        "head": "observation.images.top",
        "left_wrist": "observation.images.wrist",
    }
    assert second.features.action_keys == ()
    assert (second.episodes, second.num_frames) == ((1, 2), 25)
    assert mixture.embodiments == (first.embodiment,)
    assert (mixture.foresight_interval_s, mixture.rank_strategy) == (0.5, "exact")
    assert (first.interval_frames, second.interval_frames) == (5, 10)


def test_episodes_lie_where_lerobot_says(shop):
    root = shop.dataset("a")
    source = shop.load("sources: {a: {root: a, embodiment: arm.yaml, weight: 1, episodes: [3, 1]}}").sources[0]
    stock = LeRobotDatasetMetadata("local/a", root=root)
    rows = [stock.episodes[episode] for episode in source.episodes]
    assert source.episodes == (1, 3)
    assert source.episode_starts.tolist() == [row["dataset_from_index"] for row in rows]
    assert source.episode_lengths.tolist() == [row["length"] for row in rows]
    assert source.episode_starts.dtype == source.episode_lengths.dtype == np.int64


def test_lerobot_opens_a_source(shop):
    shop.dataset("a", kind="videos")
    source = shop.load("sources: {a: {root: a, embodiment: arm.yaml, weight: 1}}").sources[0]
    dataset = LeRobotDataset(**source.lerobot_arguments, video_backend="pyav")
    assert dataset.num_frames == source.num_frames
    assert dataset[int(source.episode_starts[2])]["frame_index"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1:3", (1, 2)), (":-1", (0, 1, 2)), ("-2:", (2, 3)), (":", (0, 1, 2, 3)), ("0:4", (0, 1, 2, 3))],
)
def test_ranges_of_episodes_are_pythons(shop, text, expected):
    shop.dataset("a")
    mixture = shop.load(f"sources: {{a: {{root: a, embodiment: arm.yaml, weight: 1, episodes: '{text}'}}}}")
    assert mixture.sources[0].episodes == expected


def test_a_glob_becomes_one_source_per_dataset_and_divides_its_weight(shop):
    for name in ("many/x1", "many/x2", "many/other", "single"):
        shop.dataset(name)
    mixture = shop.load("""
sources:
  many: {root: many/x*, embodiment: arm.yaml, weight: 3, rule: uniform}
  single: {root: single, embodiment: arm.yaml, weight: 1}
""")
    assert [source.name for source in mixture.sources] == ["many/x1", "many/x2", "single"]
    assert [source.weight for source in mixture.sources] == [0.375, 0.375, 0.25]


def test_a_glob_divides_by_frames_in_use_unless_it_says_otherwise(shop):
    shop.dataset("x1")
    shop.dataset("x2", kind="videos")
    # Both have 4 episodes of 12, 16, 9 and 13 frames; what differs is made below.
    edit_episodes(shop.folder / "x2", keep=2)
    weights = {}
    for rule in ("", "rule: frames, gamma: 0.5,", "rule: episodes,"):
        mixture = shop.load(f"sources: {{x: {{root: 'x?', embodiment: arm.yaml, {rule} weight: 1}}}}")
        weights[rule] = [source.weight for source in mixture.sources]
    root = np.sqrt([50, 28])
    np.testing.assert_allclose(weights[""], [50 / 78, 28 / 78])
    np.testing.assert_allclose(weights["rule: frames, gamma: 0.5,"], root / root.sum())
    np.testing.assert_allclose(weights["rule: episodes,"], [4 / 6, 2 / 6])


def edit_episodes(root: Path, keep: int) -> None:
    """Cut a dataset down to its first episodes, in the metadata."""
    import pyarrow.parquet as parquet

    path = next((root / "meta" / "episodes").glob("*/*.parquet"))
    parquet.write_table(parquet.read_table(path)[:keep], path)
    info = root / "meta" / "info.json"
    changes = {"total_episodes": keep, "total_frames": sum(LENGTHS[:keep])}
    info.write_text(json.dumps(json.loads(info.read_text()) | changes))


def test_datasets_of_one_name_are_told_apart_by_their_folders(shop):
    shop.dataset("data/monday/pick")
    shop.dataset("data/friday/pick")
    mixture = shop.load("sources: {all: {root: data/**, embodiment: arm.yaml, weight: 1}}")
    assert [source.name for source in mixture.sources] == ["all/friday/pick", "all/monday/pick"]


def test_groups_share_a_budget(shop):
    for name in ("a", "b1", "b2", "c"):
        shop.dataset(name)
    mixture = shop.load("""
groups:
  lab: {share: 6, rule: frames}
sources:
  a: {root: a, embodiment: arm.yaml, group: lab, episodes: [0, 2]}
  b: {root: 'b?', embodiment: arm.yaml, group: lab}
  c: {root: c, embodiment: arm.yaml, weight: 2}
""")
    shares = {source.name: source.weight for source in mixture.sources}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-15)
    assert shares["c"] == pytest.approx(0.25)
    assert shares["a"] == pytest.approx(0.75 * 21 / 121)
    assert shares["b/b1"] == shares["b/b2"] == pytest.approx(0.75 * 50 / 121)


@pytest.mark.parametrize(
    ("dataset_fps", "settings", "interval_s", "expected"),
    [
        (30, "", 0.5, (30, 1, 15, 0.5)),
        (30, "fps: 15,", 0.5, (15, 2, 16, 8 / 15)),
        (30, "fps: 7.5,", 0.4, (7.5, 4, 12, 0.4)),
        (50, "fps: 10,", 0.5, (10, 5, 25, 0.5)),
        (15, "", 0.5, (15, 1, 8, 8 / 15)),
        (10, "", 0.1, (10, 1, 1, 0.1)),
    ],
)
def test_the_foresight_interval_is_in_seconds(shop, dataset_fps, settings, interval_s, expected):
    shop.dataset("a", fps=dataset_fps)
    source = shop.load(f"""
foresight_interval_s: {interval_s}
sources: {{a: {{root: a, embodiment: arm.yaml, weight: 1, {settings}}}}}
""").sources[0]
    assert source.dataset_fps == dataset_fps
    assert (source.fps, source.frame_stride, source.interval_frames) == expected[:3]
    assert source.interval_s == pytest.approx(expected[3])


@pytest.mark.parametrize(
    ("dataset_fps", "interval_s", "fitting"),
    [(5, 0.5, "2.5 frames at 5 fps"), (5, 0.5, "0.4 s or 0.6 s"), (2, 0.2, "0.5 s,"), (3, 0.5, "0.333 s or 0.667 s")],
)
def test_another_interval_than_asked_for_is_refused(shop, dataset_fps, interval_s, fitting):
    shop.dataset("a", fps=dataset_fps)
    text = shop.complaint(
        f"foresight_interval_s: {interval_s}\nsources: {{a: {{root: a, embodiment: arm.yaml, weight: 1}}}}"
    )
    assert "no whole number of frames is within 10% of it" in text
    assert fitting in text


def test_a_rate_must_divide_the_datasets(shop):
    shop.dataset("a", fps=30)
    for fps in (20, 60, 29.97):
        text = shop.complaint(f"sources:\n  a:\n    root: a\n    embodiment: arm.yaml\n    weight: 1\n    fps: {fps}\n")
        assert f"line 6: sources.a: fps {fps:g} does not divide the dataset's 30" in text
        assert "30, 15, 10, 7.5, 6, 5 ..." in text


def test_the_mixture_goes_to_worker_processes(shop):
    shop.dataset("a")
    mixture = shop.load("sources: {a: {root: a, embodiment: arm.yaml, weight: 1}}")
    copy = pickle.loads(pickle.dumps(mixture))
    assert copy.fingerprint == mixture.fingerprint
    assert copy.sources[0].episode_starts.tolist() == mixture.sources[0].episode_starts.tolist()
    assert copy.sources[0].features == mixture.sources[0].features
    assert copy.embodiments == mixture.embodiments


def test_the_log_says_what_was_decided(shop):
    shop.dataset("a", fps=30)
    shop.dataset("b1")
    mixture = shop.load("""
groups: {lab: {share: 1, rule: frames, gamma: 0.5}}
sources:
  a: {root: a, embodiment: arm.yaml, weight: 3, fps: 15}
  b: {root: b*, embodiment: arm.yaml, group: lab, supervision: foresight}
""")
    text = "\n".join(describe(mixture))
    for words in (
        "2 sources, 100 frames, 0.00 h; foresight interval 0.5 s; ranks exact",
        mixture.fingerprint[:12],
        "a: 75.0000% of the draws (weight 3); 50 frames, 4 episodes",
        "30 fps used at 15 fps (stride 2); foresight 16 frames = 0.533 s; action+foresight",
        "b/b1: 25.0000% of the draws (group lab 1 by frames^0.5)",
        "10 fps; foresight 5 frames = 0.5 s; foresight",
        "tiny_arm (file); head = observation.images.top, left_wrist = observation.images.wrist",
        str(shop.folder / "b1"),
    ):
        assert words in text


def test_the_fingerprint_is_of_the_content(shop, tmp_path_factory):
    text = "sources: {{a: {{root: a, embodiment: arm.yaml, weight: 1}}, b: {{root: b, embodiment: arm.yaml, {b}}}}}"
    shop.dataset("a")
    shop.dataset("b")
    original = shop.load(text.format(b="weight: 1")).fingerprint
    assert len(original) == 64
    assert shop.load(text.format(b="weight: 1")).fingerprint == original
    for change in ("weight: 2", "weight: 1, episodes: [1]", "weight: 1, supervision: foresight", "weight: 1, fps: 5"):
        assert (
            shop.load("foresight_interval_s: 1\n" * ("fps" in change) + text.format(b=change)).fingerprint != original
        )

    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(shop.folder, elsewhere)
    (elsewhere / "mixture.yaml").write_text(text.format(b="weight: 1"))
    assert load_mixture(elsewhere / "mixture.yaml").fingerprint == original
    robot_file(elsewhere / "arm.yaml", relative="false")
    assert load_mixture(elsewhere / "mixture.yaml").fingerprint != original
    robot_file(elsewhere / "arm.yaml")
    edit_episodes(elsewhere / "b", keep=3)
    assert load_mixture(elsewhere / "mixture.yaml").fingerprint != original


def test_many_datasets_need_neither_lerobots_tables_nor_a_network(shop, monkeypatch):
    monkeypatch.setattr(dataset_meta, "LeRobotDatasetMetadata", lambda *_: pytest.fail("the slow way"))
    first = shop.dataset("many/d00")
    for index in range(1, 24):
        shutil.copytree(first, shop.folder / f"many/d{index:02d}")
    mixture = shop.load("sources: {all: {root: many/*, embodiment: arm.yaml, weight: 1}}")
    assert [source.name for source in mixture.sources] == [f"all/d{index:02d}" for index in range(24)]


def test_home_and_absolute_folders(shop, monkeypatch):
    monkeypatch.setenv("HOME", str(shop.folder))
    shop.dataset("a")
    shop.dataset("b")
    mixture = shop.load(f"""
sources:
  a: {{root: ~/a, embodiment: ~/arm.yaml, weight: 1}}
  b: {{root: {shop.folder}/b, embodiment: {shop.folder}/arm.yaml, weight: 1}}
""")
    assert [source.root for source in mixture.sources] == [shop.folder / "a", shop.folder / "b"]


# --- robots and supervision -------------------------------------------------------------------------------------------


def test_video_of_people_needs_neither_state_nor_actions(shop):
    shop.dataset("people")
    shop.drop("people", "observation.state", "action", "observation.images.wrist")
    people = shop.load(
        "sources: {people: {root: people, embodiment: human_video, weight: 1, supervision: foresight}}"
    ).sources[0]
    assert (people.features.state_keys, people.features.action_keys) == ((), ())
    assert people.embodiment.action == ()
    assert list(people.features.cameras) == ["head"]


def test_foresight_alone_needs_no_actions_of_a_robot(shop):
    shop.dataset("a")
    shop.drop("a", "action")
    text = "sources: {{a: {{root: a, embodiment: arm.yaml, weight: 1{more}}}}}"
    assert "the dataset has no action, where tiny_arm keeps them; write 'supervision: foresight'" in shop.complaint(
        text.format(more="")
    )
    source = shop.load(text.format(more=", supervision: foresight")).sources[0]
    assert source.features.state_keys == ("observation.state",)
    shop.drop("a", "observation.state")
    assert shop.load(text.format(more=", supervision: foresight")).sources[0].features.state_keys == ()


def test_actions_asked_of_an_embodiment_without_actions(shop):
    shop.dataset("a")
    text = shop.complaint("sources:\n  a: {root: a, embodiment: human_video, weight: 1}")
    assert "line 2: sources.a: actions are asked for (supervision action+foresight), but human_video has none" in text
    assert "supervision: foresight" in text
    assert "1 problem." in text


def test_an_unknown_embodiment_gets_a_suggestion(shop):
    shop.dataset("a")
    text = shop.complaint("sources:\n  a:\n    root: a\n    embodiment: conveyer\n    weight: 1\n")
    assert "line 4: sources.a: Unknown robot 'conveyer' (did you mean 'conveyor'?)" in text


def test_an_embodiment_that_cannot_be_inferred_is_asked_for(shop):
    shop.dataset("a")  # its robot_type is "tiny", which no preset has
    assert "line 2: sources.a: Unknown robot 'tiny'" in shop.complaint("sources:\n  a: {root: a, weight: 1}")


def test_two_robots_of_one_name_are_refused(shop):
    shop.dataset("a")
    shop.dataset("b")
    robot_file(shop.folder / "other.yaml", relative="false")
    text = shop.complaint("""
sources:
  a: {root: a, embodiment: arm.yaml, weight: 1}
  b: {root: b, embodiment: other.yaml, weight: 1}
""")
    assert "line 4: sources.b: its embodiment has the name 'tiny_arm', and so has a different one, of sources.a" in text
    robot_file(shop.folder / "other.yaml", name="tiny_other", relative="false")
    assert [embodiment.name for embodiment in shop.load((shop.folder / "mixture.yaml").read_text()).embodiments] == [
        "tiny_arm",
        "tiny_other",
    ]


def test_a_missing_camera_is_mapped_by_hand(shop):
    shop.dataset("a")
    info = shop.folder / "a/meta/info.json"
    info.write_text(info.read_text().replace("observation.images.top", "observation.images.cam7"))
    text = shop.complaint("sources:\n  a: {root: a, embodiment: arm.yaml, weight: 1}")
    assert "line 2: sources.a:" in text
    assert "head" in text
    assert "observation.images.cam7" in text
    source = shop.load("sources: {a: {root: a, embodiment: arm.yaml, weight: 1, cameras: {head: cam7}}}").sources[0]
    assert dict(source.features.cameras) == {"head": "observation.images.cam7"}


# --- what is refused --------------------------------------------------------------------------------------------------


def test_problems_of_the_file_and_of_the_datasets_come_together(shop):
    shop.dataset("a")
    text = shop.complaint("""
sources:
  a: {root: a, embodiment: arm.yaml, weight: -1, episodes: [4]}
  b: {root: nowhere, embodiment: arm.yaml, weight: 1}
  c: {root: nothing_*, embodiment: arm.yaml, weight: 1}
  d: {root: a, embodiment: arms.yaml, wieght: 1}
""")
    for problem in (
        "line 3: sources.a.weight: got -1",
        "line 3: sources.a: episodes reach beyond the dataset (4): it has 4, 0 to 3",
        f"line 4: sources.b: there is no folder {shop.folder / 'nowhere'}",
        "line 5: sources.c: root 'nothing_*' matches no dataset",
        "line 6: sources.d: There is no file",
        "line 6: sources.d: unknown key 'wieght' (did you mean 'weight'?)",
        "line 6: sources.d: has neither 'weight' nor 'group'",
    ):
        assert problem in text
    assert "7 problems" in text


def test_one_entry_for_a_problem_that_many_datasets_of_a_glob_have(shop):
    for name in ("x1", "x2", "x3", "x4", "x5"):
        shop.dataset(name, fps=10 if name == "x3" else 7)
    text = shop.complaint("sources:\n  x: {root: x*, embodiment: arm.yaml, weight: 1, fps: 5}")
    assert text.count("does not divide the dataset's 7") == 1
    assert "(in 4 of the 5 datasets that the glob finds: x/x1, x/x2, x/x4 and 1 more)" in text


@pytest.mark.parametrize("episodes", ["'0:5'", "'-5:'", "[0, 4]", "'3:2'", "'4:'"])
def test_episodes_that_are_not_there(shop, episodes):
    shop.dataset("a")
    text = shop.complaint(f"sources: {{a: {{root: a, embodiment: arm.yaml, weight: 1, episodes: {episodes}}}}}")
    assert "episodes" in text
    assert "1 problem." in text


def test_old_formats_are_refused_with_lerobots_converter(shop):
    shop.dataset("a", codebase_version="v2.1")
    text = shop.complaint("sources:\n  a: {root: a, embodiment: arm.yaml, weight: 1}")
    assert "line 2: sources.a: not a dataset of format v3.0 (it is in format v2.1)" in text
    assert (
        "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=local/a "
        f"--root={shop.folder / 'a'} --push-to-hub=false" in text
    )
    import lerobot.scripts.convert_dataset_v21_to_v30 as stock

    for flag in ("--repo-id", "--root", "--push-to-hub"):
        assert flag in Path(stock.__file__).read_text()


def test_newer_formats_are_refused(shop):
    shop.dataset("a", codebase_version="v4.0")
    assert "Update LeRobot" in shop.complaint("sources: {a: {root: a, embodiment: arm.yaml, weight: 1}}")


@pytest.mark.parametrize("second", ["root: a", "root: ./x/../a", "root: link", "root: '?'"])
def test_the_same_dataset_twice_is_refused(shop, second):
    shop.dataset("a")
    (shop.folder / "x").mkdir()
    (shop.folder / "link").symlink_to(shop.folder / "a")
    text = shop.complaint(f"""
sources:
  first: {{root: a, embodiment: arm.yaml, weight: 1, episodes: [0, 1, 2]}}
  second: {{{second}, embodiment: arm.yaml, weight: 1, episodes: [1, 2, 3]}}
""")
    assert "line 4: sources.second" in text
    assert "the same dataset as sources.first (line 3)" in text
    assert "both use episode 1 to 2 (2)" in text


def test_the_same_dataset_may_be_split_by_episodes(shop):
    shop.dataset("a")
    mixture = shop.load("""
sources:
  first: {root: a, embodiment: arm.yaml, weight: 1, episodes: ":2"}
  second: {root: a, embodiment: arm.yaml, weight: 1, episodes: "2:", supervision: foresight}
""")
    assert [source.episodes for source in mixture.sources] == [(0, 1), (2, 3)]


def test_a_folder_of_datasets_is_no_dataset(shop):
    shop.dataset("many/x")
    (shop.folder / "empty").mkdir()
    text = shop.complaint("""
sources:
  many: {root: many, embodiment: arm.yaml, weight: 1}
  empty: {root: empty, embodiment: arm.yaml, weight: 1}
""")
    assert "is no dataset but holds 1 (x ...); write" in text
    assert "empty is no LeRobot dataset: it has no meta/info.json" in text


def test_files_that_are_missing_are_named_before_training(shop):
    root = shop.dataset("a", kind="videos")
    video = next((root / "videos" / "observation.images.wrist").glob("*/*.mp4"))
    video.unlink()
    text = "sources: {{a: {{root: a, embodiment: arm.yaml, weight: 1{more}}}}}"
    assert f"1 of its files cannot be found, the first is {video}" in shop.complaint(text.format(more=""))
    shop.load(text.format(more=", cameras: {head: top}"))  # nobody looks at the other camera
    shutil.rmtree(root / "data")
    assert "1 of its files cannot be found" in shop.complaint(text.format(more=", cameras: {head: top}"))
    shutil.rmtree(root / "meta" / "episodes")
    assert "the dataset was not finished" in shop.complaint(text.format(more=""))


@pytest.mark.parametrize(
    "damage",
    [
        lambda info: "{",
        lambda info: json.dumps({"codebase_version": "v3.0"}),
        lambda info: json.dumps(info | {"codebase_version": None}),
        lambda info: json.dumps(info | {"fps": 0}),
        lambda info: json.dumps(info | {"total_frames": 51}),
        lambda info: json.dumps(info | {"total_episodes": 3}),
    ],
)
def test_damaged_metadata_is_explained(shop, damage: Callable[[dict[str, Any]], str]):
    shop.dataset("a")
    info = shop.folder / "a/meta/info.json"
    info.write_text(damage(json.loads(info.read_text())))
    text = shop.complaint("sources: {a: {root: a, embodiment: arm.yaml, weight: 1}}")
    assert "is damaged" in text or "does not agree with meta/info.json: 4 episodes of 50 frames" in text


def test_metadata_that_cannot_be_read_is_named(shop):
    root = shop.dataset("a")
    (root / "meta/info.json").unlink()
    (root / "meta/info.json").symlink_to(root / "meta")
    table = next((shop.dataset("b") / "meta" / "episodes").glob("*/*.parquet"))
    table.write_bytes(b"cut short")
    text = shop.complaint("""
sources:
  a: {root: a, embodiment: arm.yaml, weight: 1}
  b: {root: b, embodiment: arm.yaml, weight: 1}
""")
    assert "line 3: sources.a:" in text
    assert f"line 4: sources.b: {table} cannot be read" in text


def test_episodes_too_short_for_foresight_alone(shop):
    shop.dataset("a")
    text = """
foresight_interval_s: 1.6
sources: {{a: {{root: a, embodiment: arm.yaml, weight: 1, supervision: {supervision}}}}}
"""
    assert "at most 16 frames long and the foresight interval is 16" in shop.complaint(
        text.format(supervision="foresight")
    )
    shop.load(text.format(supervision="action+foresight"))  # its actions can still be learnt


def test_a_gamma_that_leaves_nothing(shop):
    shop.dataset("x1")
    shop.dataset("x2")
    edit_episodes(shop.folder / "x2", keep=1)
    text = shop.complaint("sources: {x: {root: 'x?', embodiment: arm.yaml, weight: 1, gamma: 1000}}")
    assert "sources.x/x2: gamma 1000 leaves nothing for it" in text


# --- LeRobot's home and the Hub ---------------------------------------------------------------------------------------


def test_a_repo_in_lerobots_home_is_found(shop):
    shop.dataset("home/me/kitchen")
    text = "sources: {{kitchen: {{repo_id: me/kitchen, embodiment: arm.yaml, weight: 1{more}}}}}"
    source = shop.load(text.format(more="")).sources[0]
    assert (source.repo_id, source.root, source.revision) == ("me/kitchen", shop.folder / "home/me/kitchen", None)
    assert source.lerobot_arguments == {"repo_id": "me/kitchen", "root": source.root, "revision": None}
    assert "LeRobot takes the copy in" in shop.complaint(text.format(more=", revision: v1"))


def test_a_glob_of_repos_looks_into_lerobots_home_first(shop, monkeypatch):
    monkeypatch.setattr(dataset_meta, "HfApi", lambda: pytest.fail("the Hub was asked"))
    for name in ("so101_a", "so101_b", "koch"):
        shop.dataset(f"home/me/{name}")
    mixture = shop.load("sources: {mine: {repo_id: me/so101_*, embodiment: arm.yaml, weight: 1}}")
    assert [source.name for source in mixture.sources] == ["mine/so101_a", "mine/so101_b"]
    assert [source.repo_id for source in mixture.sources] == ["me/so101_a", "me/so101_b"]


class FakeHub:
    """Datasets that "me" has on the Hub; ``fetch`` stands where LeRobot would download."""

    def __init__(self, shop: Workshop, *names: str) -> None:
        self.shop, self.names = shop, names
        self.fetched: list[tuple[str, Path | None, str | None]] = []

    def list_datasets(self, author: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=f"{author}/{name}") for name in self.names]

    def fetch(self, repo_id: str, root: Path | None, revision: str | None) -> SimpleNamespace:
        self.fetched.append((repo_id, root, revision))
        name = repo_id.split("/")[1]
        where = f"home/hub/datasets--me--{name}/snapshots/{name}c0ffee" if root is None else str(root)
        return SimpleNamespace(root=self.shop.dataset(where), revision="v3.0")


@pytest.fixture
def hub(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(shop, "so101_a", "so101_b", "koch")
    monkeypatch.setattr(dataset_meta, "HfApi", lambda: hub)
    monkeypatch.setattr(dataset_meta, "LeRobotDatasetMetadata", hub.fetch)
    return hub


def test_a_glob_of_repos_asks_the_hub(shop, hub):
    mixture = shop.load("sources: {mine: {repo_id: me/so101_*, embodiment: arm.yaml, weight: 1}}")
    assert sorted(hub.fetched) == [("me/so101_a", None, None), ("me/so101_b", None, None)]
    source = mixture.sources[0]
    assert (source.name, source.repo_id) == ("mine/so101_a", "me/so101_a")
    assert "none of the 3 that 'me' shows you on the Hub" in shop.complaint(
        "sources: {mine: {repo_id: me/so100_*, embodiment: arm.yaml, weight: 1}}"
    )


def test_a_dataset_of_the_hub_is_pinned_to_its_commit(shop, hub):
    mixture = shop.load("sources: {koch: {repo_id: me/koch, revision: v1, embodiment: arm.yaml, weight: 1}}")
    assert hub.fetched == [("me/koch", None, "v1")]
    source = mixture.sources[0]
    assert source.lerobot_arguments == {"repo_id": "me/koch", "root": None, "revision": "kochc0ffee"}
    assert any("me/koch@kochc0ffee" in line for line in describe(mixture))


def test_a_repo_is_downloaded_into_the_root_that_is_given(shop, hub):
    mixture = shop.load("sources: {koch: {repo_id: me/koch, root: here, embodiment: arm.yaml, weight: 1}}")
    assert hub.fetched == [("me/koch", shop.folder / "here", None)]
    assert mixture.sources[0].lerobot_arguments["root"] == shop.folder / "here"


def test_a_hub_that_cannot_be_reached_is_explained(shop):
    text = shop.complaint("""
sources:
  one: {repo_id: me/nothing, embodiment: arm.yaml, weight: 1}
  many: {repo_id: me/nothing_*, embodiment: arm.yaml, weight: 1}
""")
    assert "line 3: sources.one: 'me/nothing' cannot be had from the Hub" in text
    assert "line 4: sources.many: repo_id 'me/nothing_*' matches no dataset in" in text
    assert "the Hub cannot be asked" in text


@pytest.mark.parametrize("error", [BackwardCompatibilityError("me/old", Version("2.1")), NotImplementedError("v2.0")])
def test_an_old_dataset_of_the_hub_is_refused_with_lerobots_converter(shop, monkeypatch, error):
    def fetch(*_: object) -> None:
        raise error

    monkeypatch.setattr(dataset_meta, "LeRobotDatasetMetadata", fetch)
    text = shop.complaint("sources: {old: {repo_id: me/old, embodiment: arm.yaml, weight: 1}}")
    assert "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=me/old\n" in text


# --- the shipped toy pair ---------------------------------------------------------------------------------------------


def test_the_toy_pair_works_as_its_header_says(tmp_path):
    import shlex

    from lerobot_internvla.scripts.conveyor import main

    file = tmp_path / "configs" / "mixtures" / "toy_conveyor_pair.yaml"
    file.parent.mkdir(parents=True)
    shutil.copy(SHIPPED / file.name, file)
    commands = [line for line in file.read_text().splitlines() if "internvla-conveyor record" in line]
    for command in commands:
        arguments = dict(part.split("=") for part in shlex.split(command.split("record", 1)[1]))
        arguments |= {"--root": str(tmp_path / arguments["--root"]), "--episodes": "1", "--image_size": "32"}
        assert main(["record", *(f"{flag}={value}" for flag, value in arguments.items())]) == 0
    mixture = load_mixture(file)
    assert [(source.name, source.weight) for source in mixture.sources] == [("train", 0.75), ("fast", 0.25)]
    assert all(source.embodiment_origin == "preset" for source in mixture.sources)
    assert all(source.interval_s == 0.5 for source in mixture.sources)

    # Without a name, the robot that the recording names is taken.
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "embodiment:" not in line))
    inferred = load_mixture(file)
    assert {source.embodiment_origin for source in inferred.sources} == {"inferred"}
    assert inferred.embodiments == mixture.embodiments
    assert inferred.fingerprint == mixture.fingerprint
    assert "conveyor (inferred)" in "\n".join(describe(inferred))
