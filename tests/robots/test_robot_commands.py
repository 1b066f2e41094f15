"""Record, replay, train, roll out: simulated robots in LeRobot's own commands, as typed, offline, without a display."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.pretrained import PreTrainedPolicy

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.envs.conveyor.task import CAMERAS
from mujoco_here import skip_unless_it_draws
from stock_commands import (
    last_checkpoint,
    lerobot_eval,
    lerobot_record,
    lerobot_replay,
    lerobot_rollout,
    lerobot_train,
    training_flags,
)

pytestmark = pytest.mark.slow

TASK = "blue parcel, right arm to right bin"


@pytest.fixture(scope="module", params=["conveyor", "conveyor_mujoco"])
def robot(request: pytest.FixtureRequest) -> str:
    if request.param == "conveyor_mujoco":
        skip_unless_it_draws()
    return request.param


def robot_flags(robot: str) -> list[str]:
    return [f"--robot.type={robot}", f"--robot.instruction={TASK}", "--robot.task=fast", "--robot.image_size=64"]


def dataset_flags(robot: str, root: Path, name: str) -> list[str]:
    return [
        f"--dataset.repo_id=local/{name}",
        f"--dataset.root={root}",
        f"--dataset.fps={BACKENDS[robot].fps}",
        f"--dataset.single_task={TASK}",
        "--dataset.num_episodes=2",
        "--dataset.reset_time_s=0",
        "--dataset.push_to_hub=false",
        "--dataset.streaming_encoding=true",
        "--dataset.rgb_encoder.vcodec=h264",
        "--play_sounds=false",
    ]


@pytest.fixture(scope="module")
def recorded(robot: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(robot) / "recorded"
    lerobot_record(*robot_flags(robot), "--teleop.type=conveyor_expert", *dataset_flags(robot, root, "recorded"))
    return root


@pytest.fixture(scope="module")
def trained(recorded: Path) -> Path:
    output = recorded.parent / "run"
    lerobot_train(*training_flags(recorded, output, steps=1))
    return last_checkpoint(output)


class Log(logging.Handler):
    """What the simulated robot says. LeRobot's commands replace the handlers that pytest's caplog relies on."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"

    @property
    def endings(self) -> list[str]:
        """How episodes ended, in order."""
        return re.findall(r"Episode \d+ \(.*?\): ([a-z ]+) after", self.text)


@pytest.fixture
def log() -> Iterator[Log]:
    handler, logger = Log(), logging.getLogger("lerobot_internvla.robots")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_a_recording_has_whole_episodes_with_the_joints_of_the_robot(robot: str, recorded: Path):
    dataset = LeRobotDataset("local/recorded", root=recorded, video_backend="pyav")
    backend = BACKENDS[robot]
    assert dataset.num_episodes == 2 and dataset.fps == backend.fps and dataset.meta.robot_type == robot
    names = [f"{name}.pos" for name in backend.action_names]
    assert dataset.features["action"]["names"] == dataset.features["observation.state"]["names"] == names
    assert set(dataset.meta.video_keys) == {f"observation.images.{camera}" for camera in CAMERAS}
    lengths = [int(episode["length"]) for episode in dataset.meta.episodes]
    assert all(backend.fps < length < backend.episode_steps for length in lengths)
    assert dataset[0]["task"] == TASK and dataset[0]["observation.images.head"].shape == (3, 64, 64)
    gripper = dataset.features["action"]["names"].index("right_gripper.pos")
    for start in (0, lengths[0]):  # each begins with open fingers and closes them once
        closed = np.array([float(dataset[start + i]["action"][gripper]) for i in range(lengths[start > 0])]) < 0.5
        assert not closed[0] and np.abs(np.diff(closed.astype(int))).sum() == 2


def test_a_replayed_episode_succeeds_again(robot: str, recorded: Path, log: Log):
    lerobot_replay(
        *robot_flags(robot),
        "--robot.first_episode=1",
        "--dataset.repo_id=local/recorded",
        f"--dataset.root={recorded}",
        "--dataset.episode=1",
        "--play_sounds=false",
    )
    assert log.endings == ["success"]


@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_a_policy_that_was_trained_on_the_recording_rolls_out(robot: str, trained: Path, log: Log, inference: str):
    if inference == "rtc" and InternVLAA1Policy.supports_rtc is PreTrainedPolicy.supports_rtc:
        pytest.skip("the policy does not support real-time chunking")
    lerobot_rollout(
        f"--policy.path={trained}",
        *robot_flags(robot),
        f"--task={TASK}",
        f"--fps={BACKENDS[robot].fps}",
        f"--inference.type={inference}",
        "--duration=3",
        "--return_to_initial_position=false",
        "--device=cpu",
    )
    assert f"{robot} is connected" in log.text


def test_the_same_policy_is_evaluated_in_the_environment_of_the_same_name(robot: str, trained: Path, tmp_path: Path):
    lerobot_eval(
        f"--policy.path={trained}",
        f"--env.type={robot}",
        "--env.image_size=64",
        "--env.episode_length=6",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'eval'}",
    )
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2 and len(info["overall"]["video_paths"]) > 0


def test_episodes_of_a_policy_are_recorded_whole(robot: str, trained: Path, tmp_path: Path, log: Log):
    """``--strategy.type=episodic``: an untrained policy fails, and its failures are kept."""
    root = tmp_path / "rollout"
    lerobot_rollout(
        f"--policy.path={trained}",
        *robot_flags(robot),
        f"--fps={BACKENDS[robot].fps}",
        "--strategy.type=episodic",
        "--return_to_initial_position=false",
        "--device=cpu",
        *dataset_flags(robot, root, "rollout_untrained"),
    )
    assert len(log.endings) == 2
    dataset = LeRobotDataset("local/rollout_untrained", root=root)
    assert dataset.num_episodes == 2
    assert all(int(episode["length"]) > BACKENDS[robot].fps for episode in dataset.meta.episodes)
