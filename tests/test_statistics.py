"""Statistics are exact, count what training counts, and a cached one never outlives the data it came from."""

import dataclasses
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.compute_stats import compute_relative_action_stats
from lerobot.datasets.dataset_tools import recompute_stats

from lerobot_internvla import statistics as statistics_module
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.statistics import (
    FeatureStatistics,
    Statistics,
    cache_directory,
    statistics_from_dataset,
    statistics_from_lerobot_stats,
)

NAMES = ["shoulder", "elbow", "gripper"]
MASK = (True, True, False)
CHUNK = 6
LENGTHS = (1, 9, 4, 23)
"""Frames per episode: one frame, two longer than the chunk, one shorter."""
Episodes = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))


def recorded(lengths=LENGTHS, dim=3, seed=0, offset=0.0, scale=1.0) -> Episodes:
    """(states, actions) per episode: a random walk, and actions that lead it."""
    rng = np.random.default_rng(seed)
    episodes = []
    for length in lengths:
        states = offset + scale * np.cumsum(rng.normal(size=(length, dim)), axis=0)
        actions = states + scale * rng.normal(0.3, 0.1, size=(length, dim))
        episodes.append((states.astype(np.float32), actions.astype(np.float32)))
    return episodes


def write_dataset(root: Path, episodes: Episodes, names=NAMES, **settings) -> Any:
    """Through LeRobot's own API, without cameras; returns its metadata as read back."""
    dim = episodes[0][0].shape[1]
    feature = {"dtype": "float32", "shape": (dim,), "names": list(names)[:dim]}
    dataset = LeRobotDataset.create(
        "somebody/tiny",
        fps=10,
        root=root,
        features={"observation.state": feature, "action": feature},
        use_videos=False,
        **settings,
    )
    for states, actions in episodes:
        for state, action in zip(states, actions, strict=True):
            dataset.add_frame({"observation.state": state, "action": action, "task": "push"})
        dataset.save_episode()
    dataset.finalize()
    return LeRobotDatasetMetadata("somebody/tiny", root=root)


def every_pair(episodes: Episodes, mask=MASK, chunk=CHUNK, stride=1) -> np.ndarray:
    """The definition, as two loops."""
    return np.array(
        [
            actions[t + k * stride].astype(np.float64) - np.where(mask, states[t].astype(np.float64), 0.0)
            for states, actions in episodes
            for t in range(len(actions))
            for k in range(chunk)
            if t + k * stride < len(actions)
        ]
    )


def assert_describes(statistics: FeatureStatistics, samples: np.ndarray) -> None:
    samples = samples.astype(np.float64)
    assert statistics.count == len(samples)
    np.testing.assert_allclose(statistics.mean, samples.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.std, samples.std(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(statistics.min, samples.min(axis=0))
    np.testing.assert_array_equal(statistics.max, samples.max(axis=0))


def relative(meta, **changes) -> Statistics:
    return statistics_from_dataset(
        meta, **{"representation": "relative", "relative_mask": MASK, "chunk_size": CHUNK, "progress": False} | changes
    )


def absolute(meta, **changes) -> Statistics:
    return statistics_from_dataset(
        meta, **{"representation": "absolute", "chunk_size": CHUNK, "progress": False} | changes
    )


def set_one_action(root: Path, row: int, value: float) -> None:
    """Edit the dataset in place: one number of one action."""
    (path,) = root.glob("data/*/*.parquet")
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), dtype=np.float32)
    actions[row, 0] = value
    column = table.schema.get_field_index("action")
    values = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), actions.shape[1])
    pq.write_table(table.set_column(column, table.schema.field("action"), values), path)


# ---------------------------------------------------------------------------------------------------------- arithmetic


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 3.0, 1e4]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_merging_parts_equals_looking_at_everything_at_once(seed, sizes, offset, scale):
    rng = np.random.default_rng(seed)
    parts: list[Any] = [rng.normal(offset, scale, size=(n, 3)) for n in sizes]
    merged = FeatureStatistics.merged([FeatureStatistics.from_samples(part) for part in parts])
    everything = np.concatenate(parts)
    assert merged.count == len(everything)
    np.testing.assert_allclose(merged.mean, everything.mean(axis=0), rtol=1e-12, atol=1e-9 * scale)
    np.testing.assert_allclose(merged.std, everything.std(axis=0), rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(merged.min, everything.min(axis=0))


def test_a_joint_that_hardly_moves_around_a_large_mean_keeps_its_standard_deviation():
    samples = 3.0 + 1e-3 * np.random.default_rng(0).normal(size=(5000, 1))
    float32 = samples.astype(np.float32)
    naive = np.sqrt(max(0.0, float(np.mean(float32**2) - np.mean(float32) ** 2)))
    assert abs(naive - samples.std()) > 1e-4  # what E[x^2] - E[x]^2 makes of it
    assert FeatureStatistics.from_samples(samples).std[0] == pytest.approx(samples.std(), rel=1e-9)


def test_a_constant_dim_has_a_standard_deviation_of_exactly_zero():
    samples = np.full((1001, 1), 0.1)
    merged = FeatureStatistics.merged([FeatureStatistics.from_samples(samples[i : i + 7]) for i in range(0, 1001, 7)])
    assert merged.std[0] == 0.0
    assert merged.mean[0] == 0.1


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    chunk=st.integers(1, 24),
    seed=st.integers(0, 1000),
    mask=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    stride=st.integers(1, 4),
)
def test_relative_statistics_equal_the_two_loops(lengths, chunk, seed, mask, stride):
    episodes = recorded(lengths, seed=seed, offset=2.0)
    run = statistics_module._Run(
        states=np.concatenate([states for states, _ in episodes]).astype(np.float64),
        actions=np.concatenate([actions for _, actions in episodes]).astype(np.float64),
        episode=np.repeat(np.arange(len(lengths)), lengths),
    )
    found = statistics_module._relative_statistics(run, mask, chunk, stride)
    assert_describes(found, every_pair(episodes, mask, chunk, stride))


def test_statistics_survive_json_to_the_last_bit(tmp_path):
    statistics = relative(write_dataset(tmp_path / "data", recorded()))
    assert Statistics.from_json(statistics.to_json()) == statistics
    changed = dataclasses.replace(
        statistics, state=dataclasses.replace(statistics.state, mean=statistics.state.mean * (1 + 2**-52))
    )
    assert Statistics.from_json(changed.to_json()) != statistics


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": 3}', "null"])
def test_json_that_is_not_statistics_is_refused(text):
    with pytest.raises(InternVLAError, match=r"not statistics"):
        Statistics.from_json(text)


def test_statistics_that_contradict_themselves_are_refused():
    feature = FeatureStatistics.from_samples(np.arange(6.0).reshape(3, 2))
    with pytest.raises(InternVLAError) as error:
        Statistics(feature, feature, "absolute", (True,), 5, "test", "")
    assert "relative_mask has 1 entries for 2" in str(error.value)
    assert "chunk_size 5" in str(error.value)
    with pytest.raises(InternVLAError, match="not finite in dims \\[1\\]"):
        FeatureStatistics.from_samples(np.array([[0.0, np.nan]]))


# ------------------------------------------------------------------------------------------------------- from a dataset


def test_relative_statistics_of_a_dataset_count_every_pair_that_training_sees(tmp_path):
    episodes = recorded()
    statistics = relative(write_dataset(tmp_path / "data", episodes))
    assert_describes(statistics.action, every_pair(episodes))
    assert_describes(statistics.state, np.concatenate([states for states, _ in episodes]))
    assert statistics.representation == "relative"
    assert statistics.relative_mask == MASK
    assert statistics.chunk_size == CHUNK
    assert statistics.source == "somebody/tiny (4 episodes, 37 frames)"


def test_the_pairs_are_those_that_lerobot_does_not_mark_as_padding(tmp_path):
    """Asked of LeRobot itself: the samples of its data loader, minus those flagged ``action_is_pad``."""
    meta = write_dataset(tmp_path / "data", recorded())
    dataset = LeRobotDataset(
        meta.repo_id, root=meta.root, delta_timestamps={"action": [k / meta.fps for k in range(CHUNK)]}
    )
    pairs = []
    for i in range(len(dataset)):
        item: Any = dataset[i]
        window = item["action"].double().numpy() - np.where(MASK, item["observation.state"].double().numpy(), 0.0)
        pairs.append(window[~item["action_is_pad"].numpy()])
    assert_describes(relative(meta).action, np.concatenate(pairs))


def test_where_lerobot_skips_no_window_its_relative_statistics_agree(tmp_path):
    """LeRobot uses only windows that lie wholly inside an episode: with episodes of one chunk, one window each.
    Cutting ours to these windows gives LeRobot's numbers; keeping the padded ones, as training does, does not."""
    episodes = recorded((CHUNK,) * 8)
    meta = write_dataset(tmp_path / "data", episodes)
    dataset = LeRobotDataset(meta.repo_id, root=meta.root)
    theirs = compute_relative_action_stats(dataset.hf_dataset, meta.features, CHUNK, exclude_joints=["gripper"])
    full = np.concatenate([actions - np.where(MASK, states[0], 0) for states, actions in episodes])
    np.testing.assert_allclose(theirs["mean"], full.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(theirs["std"], full.std(axis=0), rtol=1e-4)
    ours = relative(meta)
    assert ours.action.count == 8 * CHUNK * (CHUNK + 1) // 2 > theirs["count"][0]
    assert not np.allclose(ours.action.std, theirs["std"], rtol=1e-2)

    meta = write_dataset(tmp_path / "steps", recorded())
    dataset = LeRobotDataset(meta.repo_id, root=meta.root)
    theirs = compute_relative_action_stats(dataset.hf_dataset, meta.features, 1, exclude_joints=["gripper"])
    ours = relative(meta, chunk_size=1).action  # a chunk of one step has no partial windows
    assert ours.count == theirs["count"][0]
    np.testing.assert_allclose(ours.mean, theirs["mean"], rtol=1e-4)
    np.testing.assert_allclose(ours.std, theirs["std"], rtol=1e-3)


def test_absolute_statistics_are_lerobots_own_and_agree_with_the_data(tmp_path):
    episodes = recorded()
    meta = write_dataset(tmp_path / "data", episodes)
    statistics = absolute(meta)
    np.testing.assert_array_equal(statistics.action.mean, meta.stats["action"]["mean"])
    np.testing.assert_array_equal(statistics.state.std, meta.stats["observation.state"]["std"])
    assert not cache_directory().exists()  # no file was read for this
    meta.stats = None
    recomputed = absolute(meta)
    assert_describes(recomputed.action, np.concatenate([actions for _, actions in episodes]))
    for name in ("state", "action"):
        stored, exact = getattr(statistics, name), getattr(recomputed, name)
        assert stored.count == exact.count
        np.testing.assert_allclose(stored.mean, exact.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stored.std, exact.std, rtol=1e-4)


def test_relative_numbers_in_stats_json_are_not_taken_for_absolute_ones(tmp_path, caplog):
    """``lerobot-edit-dataset recompute_stats --relative_action true`` overwrites the entry "action"."""
    episodes = recorded((9, 23))
    meta = write_dataset(tmp_path / "data", episodes)
    recompute_stats(LeRobotDataset(meta.repo_id, root=meta.root), relative_action=True, chunk_size=CHUNK)
    meta = LeRobotDatasetMetadata(meta.repo_id, root=meta.root)
    with caplog.at_level(logging.INFO):
        statistics = absolute(meta)
    assert "action counts 132 samples, the dataset has 32 frames" in caplog.text
    assert_describes(statistics.action, np.concatenate([actions for _, actions in episodes]))


def test_lerobots_float32_statistics_of_a_joint_that_hardly_moves_are_replaced(tmp_path, caplog):
    episodes = recorded((200,), offset=300.0, scale=1e-3)
    meta = write_dataset(tmp_path / "data", episodes)
    with caplog.at_level(logging.INFO):
        statistics = absolute(meta)
    assert "move too little for float32" in caplog.text
    exact = episodes[0][1].astype(np.float64).std(axis=0)
    assert not np.allclose(meta.stats["action"]["std"], exact, rtol=0.1)
    np.testing.assert_allclose(statistics.action.std, exact, rtol=1e-9)


def test_impossible_stored_statistics_are_replaced(tmp_path, caplog):
    meta = write_dataset(tmp_path / "data", recorded())
    meta.stats["action"]["std"] = meta.stats["action"]["std"] * 50
    with caplog.at_level(logging.INFO):
        statistics = absolute(meta)
    assert "std above half their range" in caplog.text
    assert (statistics.action.std < meta.stats["action"]["std"] / 2).all()


def test_lerobots_dictionary_must_be_complete():
    with pytest.raises(InternVLAError, match=r"lack observation.state/mean.*action/count.*recompute_stats"):
        statistics_from_lerobot_stats({"action": {"mean": [0.0]}}, source="a test")


def test_only_the_asked_episodes_count(tmp_path):
    episodes = recorded()
    meta = write_dataset(tmp_path / "data", episodes)
    chosen = [episodes[1], episodes[3]]
    assert_describes(relative(meta, episodes=[3, 1]).action, every_pair(chosen))
    assert_describes(absolute(meta, episodes=[1, 3]).action, np.concatenate([actions for _, actions in chosen]))
    with pytest.raises(InternVLAError, match=r"has 4 episodes; it does not have \[7\]"):
        relative(meta, episodes=[1, 7])


def test_reading_in_small_pieces_and_several_files_changes_nothing(tmp_path, monkeypatch):
    episodes = recorded()
    whole = relative(write_dataset(tmp_path / "one", episodes), cache=False)
    split = write_dataset(tmp_path / "many", episodes, data_files_size_in_mb=1e-6)
    assert len(list(split.root.glob("data/*/*.parquet"))) > 1
    monkeypatch.setattr(statistics_module, "ROWS_PER_READ", 2)
    for statistics in (relative(split, cache=False), relative(write_dataset(tmp_path / "two", episodes), cache=False)):
        np.testing.assert_allclose(statistics.action.std, whole.action.std, rtol=1e-12)
        np.testing.assert_allclose(statistics.action.mean, whole.action.mean, rtol=1e-12)
        assert statistics.action.count == whole.action.count


def test_vectors_of_one_are_read_too(tmp_path):
    """LeRobot stores a feature of shape (1,) as plain numbers, not as lists."""
    episodes = recorded(dim=1)
    meta = write_dataset(tmp_path / "data", episodes)
    assert_describes(relative(meta, relative_mask=(True,)).action, every_pair(episodes, mask=(True,)))


def test_a_state_longer_than_the_action_is_read_by_its_leading_dims(tmp_path):
    episodes = [(np.concatenate([states, states * 7], axis=1), actions) for states, actions in recorded()]
    root = tmp_path / "data"
    dataset = LeRobotDataset.create(
        "somebody/tiny",
        fps=10,
        root=root,
        use_videos=False,
        features={
            "observation.state": {"dtype": "float32", "shape": (6,), "names": list("abcdef")},
            "action": {"dtype": "float32", "shape": (3,), "names": list("abc")},
        },
    )
    for states, actions in episodes:
        for state, action in zip(states, actions, strict=True):
            dataset.add_frame({"observation.state": state, "action": action, "task": "push"})
        dataset.save_episode()
    dataset.finalize()
    statistics = relative(LeRobotDatasetMetadata("somebody/tiny", root=root))
    assert_describes(statistics.action, every_pair([(states[:, :3], actions) for states, actions in episodes]))
    assert statistics.state.dim == 6


# -------------------------------------------------------------------------------------------------------------- caching


def count_computations(monkeypatch) -> list[str]:
    calls: list[str] = []
    compute = statistics_module._compute

    def counted(*args, **kwargs):
        calls.append(kwargs["name"])
        return compute(*args, **kwargs)

    monkeypatch.setattr(statistics_module, "_compute", counted)
    return calls


def test_the_second_time_is_read_from_the_cache(tmp_path, monkeypatch):
    calls = count_computations(monkeypatch)
    meta = write_dataset(tmp_path / "data", recorded())
    first, second = relative(meta), relative(meta)
    assert first == second
    assert len(calls) == 1
    copied = LeRobotDatasetMetadata("elsewhere/copy", root=meta.root)
    assert relative(copied).source.startswith("elsewhere/copy")  # same content, honest about where it was read
    assert len(calls) == 1
    relative(meta, cache=False)
    assert len(calls) == 2


def test_processes_that_start_together_compute_once(tmp_path, monkeypatch):
    """Every rank of a training run asks; a file lock lets one of them answer."""
    calls = count_computations(monkeypatch)
    meta = write_dataset(tmp_path / "data", recorded())
    with ThreadPoolExecutor(4) as pool:
        answers = [future.result() for future in [pool.submit(relative, meta) for _ in range(4)]]
    assert len(calls) == 1
    assert all(answer == answers[0] for answer in answers)


def test_another_question_is_not_answered_from_the_cache(tmp_path, monkeypatch):
    calls = count_computations(monkeypatch)
    meta = write_dataset(tmp_path / "data", recorded())
    meta.stats = None
    answers = [
        relative(meta),
        relative(meta, chunk_size=CHUNK + 1),
        relative(meta, relative_mask=(True, True, True)),
        relative(meta, episodes=[1]),
        absolute(meta),
    ]
    assert len(calls) == len({answer.fingerprint for answer in answers}) == 5
    absolute(meta, chunk_size=CHUNK + 1)  # absolute statistics do not depend on the chunk
    assert len(calls) == 5


def test_a_changed_dataset_is_noticed(tmp_path):
    episodes = recorded()
    meta = write_dataset(tmp_path / "data", episodes)
    set_one_action(meta.root, row=3, value=float(episodes[1][1][2, 0]))  # the same number, in the edited file's layout
    before = relative(meta)
    inside = episodes[1][1][:, 0].mean()  # neither the minimum nor the maximum moves: nothing but content tells
    set_one_action(meta.root, row=3, value=float(inside))
    episodes[1][1][2, 0] = inside  # row 3 is frame 2 of episode 1
    after = relative(LeRobotDatasetMetadata(meta.repo_id, root=meta.root))
    assert after.fingerprint != before.fingerprint
    assert_describes(after.action, every_pair(episodes))


@pytest.mark.parametrize("damage", ["cut", "not json", "one digit", "swapped"])
def test_a_damaged_cache_file_is_replaced(tmp_path, monkeypatch, caplog, damage):
    calls = count_computations(monkeypatch)
    meta = write_dataset(tmp_path / "data", recorded())
    good = relative(meta)
    (path,) = cache_directory().glob("*.json")
    text = path.read_text()
    if damage == "swapped":
        relative(meta, chunk_size=CHUNK + 1)
        (other,) = (file for file in cache_directory().glob("*.json") if file != path)
        path.write_text(other.read_text())
    else:
        digit = text.index("37,") if damage == "one digit" else 0
        path.write_text(
            {
                "cut": text[:100],
                "not json": "\x00\x01",
                "one digit": text[:digit] + "38," + text[digit + 3 :],
            }[damage]
        )
    calls.clear()
    assert relative(meta) == good
    assert len(calls) == 1
    assert "damaged statistics cache" in caplog.text
    assert path.read_text() == text
    assert json.loads(path.read_text())  # whole again


def test_a_cache_that_cannot_be_written_loses_nothing(tmp_path, caplog):
    Path(constants.HF_HOME).write_text("a file where a folder should be")
    episodes = recorded()
    assert_describes(relative(write_dataset(tmp_path / "data", episodes)).action, every_pair(episodes))
    assert "not kept for next time" in caplog.text


# ----------------------------------------------------------------------------------------------------------- bad input


def test_every_contradiction_in_the_arguments_is_named_at_once(tmp_path):
    meta = write_dataset(tmp_path / "data", recorded())
    with pytest.raises(InternVLAError) as error:
        relative(meta, relative_mask=(True,) * 4, chunk_size=0, episodes=[])
    for problem in (
        "relative_mask has 4 entries for 3 action dims",
        "action dims [3] are relative, but the state has only 3 dims",
        "chunk_size is 0",
        "list of episodes is empty",
    ):
        assert problem in str(error.value)
    with pytest.raises(InternVLAError, match="names no relative dim"):
        relative(meta, relative_mask=(False,) * 3)
    with pytest.raises(InternVLAError, match="together with relative dims"):
        absolute(meta, relative_mask=MASK)


def test_a_dataset_without_states_is_named(tmp_path):
    meta = write_dataset(tmp_path / "data", recorded())
    with pytest.raises(InternVLAError, match=r"no feature 'observation.qpos' \(it has observation.state, action"):
        relative(meta, state_key="observation.qpos")


def test_nan_in_the_data_is_found_before_training_does(tmp_path):
    meta = write_dataset(tmp_path / "data", recorded())
    set_one_action(meta.root, row=12, value=float("nan"))
    with pytest.raises(InternVLAError, match=r"NaN.*action, first in episode 2, dims \[0\]"):
        relative(meta)


def test_data_files_that_lost_frames_are_found(tmp_path):
    meta = write_dataset(tmp_path / "data", recorded())
    (path,) = meta.root.glob("data/*/*.parquet")
    pq.write_table(pq.read_table(path).slice(0, 30), path)
    with pytest.raises(InternVLAError, match="episode 3 with 16 frames instead of 23"):
        relative(meta)


def test_missing_data_files_are_fetched_through_lerobot_without_videos(tmp_path, monkeypatch):
    """Streaming leaves the data files on the Hub."""
    episodes = recorded()
    meta = write_dataset(tmp_path / "data", episodes)
    (path,) = meta.root.glob("data/*/*.parquet")
    elsewhere = tmp_path / "hub" / path.name
    elsewhere.parent.mkdir()
    path.rename(elsewhere)
    asked = {}

    class Hub:
        def __init__(self, repo_id, **kwargs):
            asked.update(kwargs, repo_id=repo_id)
            elsewhere.rename(path)
            self.root = meta.root

    monkeypatch.setattr("lerobot.datasets.LeRobotDataset", Hub)
    assert_describes(relative(meta).action, every_pair(episodes))
    assert asked["repo_id"] == meta.repo_id
    assert asked["root"] == meta.root
    assert asked["download_videos"] is False


def test_missing_data_files_that_cannot_be_fetched_are_an_error_that_says_so(tmp_path):
    meta = write_dataset(tmp_path / "data", recorded())
    (path,) = meta.root.glob("data/*/*.parquet")
    path.unlink()
    with pytest.raises(InternVLAError, match=r"somebody/tiny.*not on disk and could not be fetched.*--dataset.root"):
        relative(meta)


# ------------------------------------------------------------------------------------------- robots of several features


def test_a_state_of_several_features_is_their_concatenation(tmp_path):
    """InternData-A1 stores joints and grippers apart; the model sees one vector, in the order that the robot names."""
    joints = {"dtype": "float32", "shape": (2,), "names": ["a", "b"]}
    gripper = {"dtype": "float32", "shape": (1,), "names": ["gripper"]}
    features = {"states.joint": joints, "states.gripper": gripper, "actions.joint": joints, "actions.gripper": gripper}
    dataset = LeRobotDataset.create(
        "somebody/parts", fps=10, root=tmp_path / "data", features=features, use_videos=False
    )
    episodes = recorded()
    for states, actions in episodes:
        for state, action in zip(states, actions, strict=True):
            parts = {"states.joint": state[:2], "states.gripper": state[2:]}
            parts |= {"actions.joint": action[:2], "actions.gripper": action[2:]}
            dataset.add_frame({**parts, "task": "push"})
        dataset.save_episode()
    dataset.finalize()
    meta: Any = LeRobotDatasetMetadata("somebody/parts", root=tmp_path / "data")
    keys: Any = {"state_key": ("states.joint", "states.gripper"), "action_key": ("actions.joint", "actions.gripper")}
    mask = (True, True, False)
    found = statistics_from_dataset(
        meta, representation="relative", relative_mask=mask, chunk_size=4, frame_stride=2, **keys
    )
    assert_describes(found.action, every_pair(episodes, mask, 4, 2))
    assert_describes(found.state, np.concatenate([states for states, _ in episodes]))

    turned: Any = {**keys, "state_key": ("states.gripper", "states.joint")}
    absolute = statistics_from_dataset(meta, representation="absolute", chunk_size=4, **turned)
    np.testing.assert_allclose(absolute.state.mean, found.state.mean[[2, 0, 1]], rtol=1e-5, atol=1e-6)
