"""Recording expert episodes: the dataset that comes out is the one that was played."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.envs.conveyor.backend import resolve_backend
from lerobot_internvla.envs.conveyor.recording import (
    RECORDING_DISTURBANCES,
    RecordingSummary,
    VideoSettings,
    record_expert_episodes,
)
from lerobot_internvla.envs.conveyor.task import CAMERAS, TASKS, Disturbances
from lerobot_internvla.errors import InternVLAError

N_EPISODES = 3


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> RecordingSummary:
    root = tmp_path_factory.mktemp("conveyor") / "dataset"
    return record_expert_episodes(root, "local/conveyor", N_EPISODES, seed=4, task="fast", progress=False)


@pytest.fixture(scope="module")
def dataset(recording: RecordingSummary) -> LeRobotDataset:
    deltas = {f"observation.images.{camera}": [-0.5, 0.0, 0.5] for camera in CAMERAS}
    deltas["action"] = [i / 10 for i in range(12)]
    return LeRobotDataset(
        recording.repo_id, root=recording.root, delta_timestamps=deltas, video_backend="pyav", return_uint8=True
    )


def replay() -> tuple[list[dict[str, np.ndarray]], list[np.ndarray], list[np.ndarray], str]:
    """Pictures, states, actions and instruction of the first recorded episode, played again."""
    simulator = resolve_backend("conveyor")
    world = simulator.make_world(TASKS["fast"], disturbances=RECORDING_DISTURBANCES)
    world.reset(np.random.default_rng([4, 0]))
    expert, pictures, states, actions = simulator.make_expert(), [], [], []
    while world.ending is None:
        pictures.append(simulator.draw_cameras(world, 64))
        states.append(world.state())
        actions.append(expert.act(world))
        world.step(actions[-1])
    assert world.ending == "success"
    return pictures, states, actions, world.instruction.text


def test_the_dataset_describes_itself(recording: RecordingSummary, dataset: LeRobotDataset):
    assert dataset.num_episodes == recording.n_episodes == N_EPISODES
    assert dataset.num_frames == recording.n_frames
    assert recording.n_attempts >= N_EPISODES == recording.endings["success"]
    assert dataset.meta.robot_type == "conveyor" and dataset.fps == 10
    names = ["left_x", "left_y", "left_gripper", "right_x", "right_y", "right_gripper"]
    assert dataset.features["action"]["names"] == dataset.features["observation.state"]["names"] == names
    assert set(dataset.meta.video_keys) == {f"observation.images.{camera}" for camera in CAMERAS}
    assert dataset.features["observation.images.head"]["info"]["video.codec"] == "h264"
    for camera in CAMERAS:
        mean = np.asarray(dataset.meta.stats[f"observation.images.{camera}"]["mean"])
        assert mean.shape == (3, 1, 1) and 0.0 < mean.mean() < 1.0


def test_videos_states_and_actions_read_back_are_those_that_were_played(dataset: LeRobotDataset):
    pictures, states, actions, text = replay()
    length = int(dataset.meta.episodes[0]["length"])
    assert length == len(pictures)
    for i in (0, 6, length - 1):
        item = dataset[i]
        assert item["task"] == text
        assert item["observation.state"].numpy() == pytest.approx(states[i])
        wanted = [actions[min(i + k, length - 1)] for k in range(12)]
        assert item["action"].numpy() == pytest.approx(np.array(wanted))
        for camera in CAMERAS:
            frames = item[f"observation.images.{camera}"]
            assert frames.dtype == torch.uint8 and frames.shape == (3, 3, 64, 64)
            for frame, offset in zip(frames, (-5, 0, 5), strict=True):
                true = pictures[min(max(i + offset, 0), length - 1)][camera].astype(int)
                error = np.abs(frame.permute(1, 2, 0).numpy().astype(int) - true)
                # 4:2:0 colour at 64 px: edges of coloured things are off, everything else is close.
                assert error.mean() < 6.0, (camera, i, offset, error.mean())


def test_a_recording_is_a_pure_function_of_its_seed(
    recording: RecordingSummary, dataset: LeRobotDataset, tmp_path: Path
):
    again = record_expert_episodes(tmp_path / "again", "local/x", 1, seed=4, task="fast", video=None, progress=False)
    other = LeRobotDataset("local/x", root=again.root)
    assert other.num_frames == int(dataset.meta.episodes[0]["length"])
    assert torch.equal(other[3]["action"], dataset[3]["action"][0])
    assert other[0]["observation.images.head"].dtype == torch.float32  # pictures inside the data files, as PNG
    pictures, *_ = replay()
    recorded = (other[5]["observation.images.head"].permute(1, 2, 0) * 255).round().numpy()
    assert np.array_equal(recorded, pictures[5]["head"])


def test_nothing_is_overwritten_and_every_problem_is_named(recording: RecordingSummary):
    before = sorted(path.stat().st_mtime_ns for path in recording.root.rglob("*"))
    with pytest.raises(InternVLAError, match=r"exists already.*0 episodes.*image_size 33.*'conveyor'"):
        record_expert_episodes(recording.root, "conveyor", 0, image_size=33, progress=False)
    assert sorted(path.stat().st_mtime_ns for path in recording.root.rglob("*")) == before


def test_an_expert_that_keeps_failing_is_an_error(tmp_path: Path):
    everything_slips = Disturbances(slip_probability=1.0)
    with pytest.raises(InternVLAError, match="in 0 of 5 attempts"):
        record_expert_episodes(
            tmp_path / "d", "local/d", 1, task="fast", disturbances=everything_slips, video=None, progress=False
        )


def test_no_files_are_left_behind_but_the_dataset(recording: RecordingSummary):
    assert {path.name for path in recording.root.iterdir()} == {"data", "meta", "videos"}
    assert VideoSettings().codec == "h264"
