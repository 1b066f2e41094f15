"""The commands that the pages about robots print are those of LeRobot 0.6.1: they are read by its own parsers."""

import shlex
import subprocess
import sys
from pathlib import Path

import draccus
import pytest
from lerobot.configs import parser
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.robots.so_follower import SO101FollowerConfig
from lerobot.rollout.configs import RolloutConfig
from lerobot.rollout.inference import RTCInferenceConfig
from lerobot.scripts.lerobot_record import RecordConfig
from lerobot.scripts.lerobot_replay import ReplayConfig
from lerobot.teleoperators.so_leader import SO101LeaderConfig

from lerobot_internvla.scripts.check import CheckArguments
from lerobot_internvla.testing import tiny_policy

ROOT = Path(__file__).parents[1]
WITHOUT_GRPC = """
import importlib.util, runpy, sys
stock = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "grpc" else stock(name, *rest)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def printed(page: str, *flags: str, program: tuple[str, ...] = ()) -> list[str]:
    """Lines of a page."""
    command = [sys.executable, *program, str(ROOT / "examples" / page), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout.splitlines()


def flags_of(line: str) -> list[str]:
    return shlex.split(line.partition("$ ")[2])[1:]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_policy().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("task", ["Put the pen into the cup", "Don't drop it"])
def test_the_commands_for_an_so101_are_lerobots(task: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    given = ("--simulate=no", "--follower=/dev/arm", "--cameras", "4", "6", f"--task={task}")
    record, train, check, rollout = printed("08_so101_from_recording_to_rollout.py", *given)

    recording = draccus.parse(RecordConfig, args=flags_of(record))
    assert isinstance(recording.robot, SO101FollowerConfig) and isinstance(recording.teleop, SO101LeaderConfig)
    assert recording.robot.use_degrees and recording.teleop.use_degrees
    assert recording.robot.port == "/dev/arm" and recording.dataset.single_task == task
    assert {name: camera.index_or_path for name, camera in recording.robot.cameras.items()} == {
        "head": 4,
        "left_wrist": 6,
    }

    given_config = parser.parse_arg("config_path", flags_of(train))
    assert given_config is not None and (ROOT / given_config).exists()
    others = [flag for flag in flags_of(train) if not flag.startswith("--config_path")]
    training = draccus.parse(TrainPipelineConfig, config_path=ROOT / given_config, args=others)
    assert training.peft is not None and training.dataset.repo_id == recording.dataset.repo_id
    assert training.policy is not None and training.policy.observation_delta_indices is not None
    assert 15 in training.policy.observation_delta_indices  # half a second at the rate of the recording

    path = f"--policy.path={checkpoint}"
    rest = [flag for flag in flags_of(rollout) if not flag.startswith("--policy.path")]
    monkeypatch.setattr(sys, "argv", ["lerobot-rollout", path, *rest])
    rolling = draccus.parse(RolloutConfig, args=rest)
    assert rolling.task == task and rolling.fps == recording.dataset.fps
    assert isinstance(rolling.robot, SO101FollowerConfig)
    assert isinstance(rolling.robot.max_relative_target, float)  # LeRobot refuses an int, while the arm moves
    assert rolling.robot.cameras == recording.robot.cameras and "internvla-check" in check


def test_the_commands_for_rtc_are_lerobots(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    lines = printed("09_remote_gpu.py", "--gpu=me@box", program=("-c", WITHOUT_GRPC))
    assert "robot$ ssh -N -L 8080:127.0.0.1:8080 me@box" in lines
    assert lines[-1].startswith("not run: grpc is missing. pip install 'lerobot_policy_internvla_a1[async]'")
    rtc = next(line for line in lines if "rtc" in line)
    rest = [flag for flag in flags_of(rtc) if not flag.startswith(("--policy.path", "--robot.cameras"))]
    monkeypatch.setattr(sys, "argv", ["lerobot-rollout", f"--policy.path={checkpoint}", *rest])
    rolling = draccus.parse(RolloutConfig, args=rest)
    assert isinstance(rolling.inference, RTCInferenceConfig) and rolling.inference.rtc.execution_horizon == 20


@pytest.mark.slow
def test_a_server_and_a_client_on_this_computer_move_the_simulated_arms():
    pytest.importorskip("grpc")
    server, robot = printed("09_remote_gpu.py")[-2:]
    assert server.startswith("server: ") and "chunks of 10 actions" in server
    assert int(robot.split()[1]) > 20


COMMANDS = {
    "lerobot-record": RecordConfig,
    "lerobot-replay": ReplayConfig,
    "lerobot-train": TrainPipelineConfig,
    "lerobot-rollout": RolloutConfig,
    "lerobot-eval": EvalPipelineConfig,
    "internvla-check": CheckArguments,
}


def commands_of(page: str) -> list[list[str]]:
    """Commands in the page's blocks of code, those with gaps to fill in left out."""
    text = (ROOT / page).read_text()
    lines = [line for block in text.split("```")[1::2] for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if "<" not in line and "..." not in line]
    return [line for line in words if line and line[0] in COMMANDS and "--help" not in line]


@pytest.mark.parametrize(
    ("page", "at_least"), [("docs/simulated_robots.md", 8), ("README.md", 4), ("docs/evaluation.md", 1)]
)
def test_the_commands_of_a_page_are_known_to_the_programs(
    page: str, at_least: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every flag, and every value that is checked before anything happens."""
    tried = 0
    for program, *flags in commands_of(page):
        config = next((ROOT / flag.partition("=")[2] for flag in flags if flag.startswith("--config_path=")), None)
        if config is not None and not config.exists():  # of a training that the reader has run
            continue
        path = [f"--policy.path={checkpoint}"] if any(f.startswith("--policy.path") for f in flags) else []
        rest = [flag for flag in flags if not flag.startswith(("--policy.path", "--config_path"))]
        overrides = [flag for flag in rest if path and flag.startswith("--policy.")]
        monkeypatch.setattr(sys, "argv", [program, *path, *overrides])
        draccus.parse(COMMANDS[program], config, args=[flag for flag in rest if flag not in overrides])
        tried += 1
    assert tried >= at_least
