"""Commands within the limits of the robot's joints, wherever they leave for a robot, and nowhere else.

``lerobot-rollout`` with ``--inference.type=sync`` and ``rtc`` on the simulated conveyor, and the policy server with
LeRobot's client: a policy that asks for too much and too fast; what the robot gets is within the limits of an
embodiment file, and the log says which joint. ``lerobot-eval`` of the same checkpoint is not limited.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clocked_runs import free_port, import_async_inference, running_client, start_server, wait_until
from clocked_world import FPS, JOINTS, Diary
from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.embodiments.spec import load_embodiment
from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.robots.conveyor import ConveyorRobot
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_eval, lerobot_rollout, lerobot_train, training_flags

RATE = BACKENDS["conveyor"].fps
NAMES = [f"{name}.pos" for name in BACKENDS["conveyor"].action_names]
X, GRIPPER = NAMES.index("left_x.pos"), NAMES.index("left_gripper.pos")
STEP = 0.6 / RATE
ENGINES = {
    "sync": ["--inference.type=sync"],
    "rtc": ["--inference.type=rtc", "--inference.queue_threshold=3"],
}


class Log(logging.Handler):
    """LeRobot's commands replace the handlers that pytest's caplog relies on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")

    def find(self, *parts: str) -> list[str]:
        return [line for line in self.lines if all(part in line for part in parts)]


@pytest.fixture
def log() -> Iterator[Log]:
    handler, logger = Log(), logging.getLogger("lerobot_internvla.serving")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("limits")
    tiny_dataset(root / "data", joint_names=NAMES, fps=RATE, episode_lengths=(13, 12), video=False)
    lerobot_train(*training_flags(root / "data", root / "run", steps=1))
    return last_checkpoint(root / "run")


@pytest.fixture(scope="module")
def conveyor_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conveyor's preset with a speed for ``left_x``, which the preset has not: see its comment."""
    path = tmp_path_factory.mktemp("embodiment") / "slow.yaml"
    text = "\n".join(
        line.replace("range: [0, 1]}", "range: [0, 1], speed: 0.6}") if "left_x" in line else line
        for line in preset_text("conveyor").splitlines()
    )
    path.write_text(text.replace("name: conveyor\n", "name: slow_conveyor\n"))
    assert next(dim for dim in load_embodiment(path).action_dims if dim.name == "left_x").speed == 0.6
    return path


def preset_text(name: str) -> str:
    from importlib import resources

    return (resources.files("lerobot_internvla.embodiments") / "presets" / f"{name}.yaml").read_text()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], None]:
    """Replace what the policy predicts by a function of the chunk's ticks, [K] -> [K, A]."""

    def replace(plan: Callable[[Tensor], Tensor]) -> None:
        def sample(self: InternVLAA1Policy, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
            return plan(torch.arange(self.config.chunk_size, dtype=torch.float32))[None]

        monkeypatch.setattr(InternVLAA1Policy, "_sample", sample)

    return replace


def wild(ticks: Tensor) -> Tensor:
    """To and fro between far outside and the other end, the gripper beyond its range; the others hold."""
    actions = torch.zeros(len(ticks), len(NAMES))
    actions[:, X] = torch.where(ticks % 4 < 2, 5.0, 0.0)
    actions[:, GRIPPER] = 1.5
    return actions


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What the robot is sent, and where its joints were before."""
    commands: list[np.ndarray] = []
    stock = ConveyorRobot.send_action

    def send(self: ConveyorRobot, action: dict[str, Any]) -> dict[str, Any]:
        commands.append(np.array([action[name] for name in NAMES], dtype=np.float32))
        if len(commands) == 1:
            commands.insert(0, self.simulation.world.state())
        return stock(self, action)

    monkeypatch.setattr(ConveyorRobot, "send_action", send)
    return commands


def roll_out(checkpoint: Path, engine: str, *flags: str) -> None:
    lerobot_rollout(
        f"--policy.path={checkpoint}",
        "--robot.type=conveyor",
        "--robot.image_size=64",
        "--task=anything",
        f"--fps={RATE}",
        "--duration=2.5",
        "--device=cpu",
        "--return_to_initial_position=false",
        "--strategy.type=base",
        *ENGINES[engine],
        *flags,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_the_robot_gets_commands_within_the_limits_of_its_joints(
    engine: str, checkpoint: Path, conveyor_file: Path, asked: Any, received: list[np.ndarray], log: Log
):
    asked(wild)
    roll_out(checkpoint, engine, f"--policy.embodiment={conveyor_file}")
    way = np.array(received)
    assert len(way) > 8
    assert way[1:, X].max() <= 1 and way[1:, X].min() >= 0 and (way[1:, GRIPPER] == 1).all()
    steps = np.abs(np.diff(way[:, X]))
    assert steps.max() == pytest.approx(STEP, abs=1e-6), "as fast as it may, from where the joint stood"
    assert (way[1:, [1, 3, 4, 5]] == 0).all(), "what is within the limits is sent as it is"
    assert log.find("INFO", "Action limits at 10 Hz, of embodiment slow_conveyor", "left_x.pos 0..1 scene, 0.6 scene/s")
    assert log.find("WARNING", "left_x.pos was to go to 5 scene, which is beyond its range 0..1")
    assert log.find("WARNING", "left_x.pos was to go to", "which is too far from", "for one tick at 0.6 scene/s")
    assert log.find("WARNING", "left_gripper.pos was to go to 1.5")
    assert len(log.find("WARNING", "left_x.pos was to go")) == 2, "once per episode and kind"
    assert log.find("INFO", f"Action limits: of {len(way) - 1} commands", "left_gripper.pos", "times beyond its range")


@pytest.mark.parametrize("engine", ENGINES)
def test_switched_off_they_are_sent_as_they_are(
    engine: str, checkpoint: Path, conveyor_file: Path, asked: Any, received: list[np.ndarray], log: Log
):
    asked(wild)
    roll_out(checkpoint, engine, f"--policy.embodiment={conveyor_file}", "--policy.limit_actions=false")
    sent = {tuple(command.tolist()) for command in received[1:]}
    assert sent == {tuple(command) for command in wild(torch.arange(10)).tolist()}
    assert log.find("INFO", "Commands are not limited: switched off by policy.limit_actions=false")


def test_without_a_word_the_presets_of_the_robots_type_limit_it(
    checkpoint: Path, asked: Any, received: list[np.ndarray], log: Log
):
    """The conveyor's preset has ranges. Nothing was said in training or rollout."""
    asked(wild)
    roll_out(checkpoint, "sync")
    assert np.array(received)[1:, X].max() == 1 and log.find("INFO", "Action limits at 10 Hz, of preset conveyor")


def test_a_file_given_in_training_travels_with_the_checkpoint(
    checkpoint: Path, conveyor_file: Path, asked: Any, received: list[np.ndarray], tmp_path: Path, log: Log
):
    """Where the robot is, nobody has the file."""
    data, mine = checkpoint.parents[3] / "data", tmp_path / "mine.yaml"
    mine.write_text(conveyor_file.read_text())
    lerobot_train(*training_flags(data, tmp_path / "run", steps=1), f"--policy.embodiment={mine}")
    mine.unlink()
    trained = last_checkpoint(tmp_path / "run")
    assert str(tmp_path) not in (trained / "config.json").read_text()
    asked(wild)
    roll_out(trained, "sync", "--duration=1")
    assert np.abs(np.diff(np.array(received)[:, X])).max() == pytest.approx(STEP, abs=1e-6)
    assert log.find("INFO", "of embodiment slow_conveyor", "left_x.pos 0..1 scene, 0.6 scene/s")


@pytest.mark.parametrize(
    ("named", "message"),
    [("so101", "is a robot with the actions shoulder_pan.pos"), ("no_such_robot", "Unknown robot 'no_such_robot'")],
)
def test_a_robot_that_is_not_the_datasets_is_refused_in_training(
    named: str, message: str, checkpoint: Path, tmp_path: Path
):
    data = checkpoint.parents[3] / "data"
    with pytest.raises(InternVLAError, match=message):
        lerobot_train(*training_flags(data, tmp_path / "run", steps=1), f"--policy.embodiment={named}")


def test_another_rate_than_that_of_training_is_told_in_sync_too(checkpoint: Path, asked: Any, log: Log):
    asked(wild)
    roll_out(checkpoint, "sync", "--fps=20", "--duration=0.5")
    assert log.find("WARNING", "The robot runs at 20 Hz and the policy was trained at 10 Hz", "--fps=10")


def test_evaluation_in_simulation_is_not_limited(
    checkpoint: Path, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
):
    from lerobot_internvla.envs.conveyor.planar.world import PlanarWorld as Conveyor

    stepped: list[float] = []
    stock = Conveyor.step

    def step(self: Conveyor, action: np.ndarray) -> None:
        stepped.append(float(action[X]))
        stock(self, action)

    monkeypatch.setattr(Conveyor, "step", step)
    asked(wild)
    lerobot_eval(
        f"--policy.path={checkpoint}",
        "--policy.device=cpu",
        "--env.type=conveyor",
        "--env.image_size=64",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path}",
    )
    assert set(stepped) == {5.0, 0.0} and not log.lines


# ----------------------------------------------------------------------------------------------------- policy server

CLOCKED = """\
name: clocked
title: the clocked robot of the tests
robot_types: [clocked]
fps: 30
cameras: {head: [head], left_wrist: [left_wrist], right_wrist: [right_wrist]}
gripper: "0 is closed"
source: tests/clocked_world.py
state:
  - key: observation.state
    dims: [{name: shoulder.pos, unit: rad}, {name: elbow.pos, unit: rad}, {name: grip.pos, unit: 0..1}]
action:
  - key: action
    dims:
      - {name: shoulder.pos, unit: rad, relative: true, range: [-0.5, 0.5]}
      - {name: elbow.pos, unit: rad, relative: true, speed: 3}
      - {name: grip.pos, unit: 0..1, relative: false}
"""


@pytest.fixture
def clocked_file(tmp_path: Path) -> Path:
    path = tmp_path / "clocked.yaml"
    path.write_text(CLOCKED)
    return path


@pytest.fixture(scope="module")
def clocked_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clocked")
    tiny_dataset(root / "data", joint_names=JOINTS, fps=FPS, episode_lengths=(13, 12), video=False)
    lerobot_train(*training_flags(root / "data", root / "run", steps=1))
    return last_checkpoint(root / "run")


def ramp(ticks: Tensor) -> Tensor:
    """The shoulder far out, the elbow from 0 on by 0.5 a tick, five times what it may, the gripper as it is."""
    return torch.stack([torch.full_like(ticks, -4.0), 0.5 * ticks, torch.full_like(ticks, 0.25)], dim=1)


@pytest.mark.parametrize("limit", [True, False], ids=["limited", "switched off"])
def test_what_the_policy_server_sends_is_limited_and_the_client_is_lerobots(
    limit: bool, clocked_checkpoint: Path, clocked_file: Path, asked: Any, tmp_path: Path, diary: Diary, log: Log
):
    import_async_inference(tmp_path)
    asked(ramp)
    port = free_port()
    server = start_server(port, embodiment=str(clocked_file), limit_actions=limit)
    with running_client(clocked_checkpoint, port, 10):
        wait_until(lambda: len(diary.commands) > 20)
    server.stop(None).wait()
    commands = np.array([command for _, command in diary.commands])
    assert set(commands[:, 0].tolist()) == ({-0.5} if limit else {-4.0}) and (commands[:, 2] == 0.25).all()
    if limit:
        assert log.find("INFO", "Action limits at 30 Hz, of embodiment clocked: shoulder.pos -0.5..0.5 rad")
        assert log.find("WARNING", "shoulder.pos was to go to -4 rad") and log.find("WARNING", "elbow.pos", "too far")
    else:
        assert log.find("INFO", "Commands are not limited: switched off")


def test_a_chunk_of_the_server_follows_the_one_before_or_the_joints(
    clocked_checkpoint: Path, clocked_file: Path, asked: Any, tmp_path: Path, diary: Diary
):
    import_async_inference(tmp_path)
    from lerobot.async_inference.helpers import TimedObservation, map_robot_keys_to_lerobot_features
    from lerobot.policies import make_pre_post_processors

    from clocked_world import ClockedRobot, ClockedRobotConfig
    from lerobot_internvla.serving.policy_server import InternVLAPolicyServer, InternVLAPolicyServerConfig
    from lerobot_internvla.serving.robot_view import RobotView

    asked(ramp)
    server = InternVLAPolicyServer(InternVLAPolicyServerConfig(fps=FPS, embodiment=str(clocked_file)))
    server.policy = InternVLAA1Policy.from_pretrained(clocked_checkpoint)
    server.policy_type, server.actions_per_chunk = "internvla_a1", 10
    server.preprocessor, server.postprocessor = make_pre_post_processors(
        server.policy.config, pretrained_path=str(clocked_checkpoint)
    )
    robot = ClockedRobot(ClockedRobotConfig())
    server.lerobot_features = map_robot_keys_to_lerobot_features(robot)
    server._view = RobotView(server.lerobot_features, {}, server.policy.config.image_features)

    def elbows(step: int) -> tuple[float, np.ndarray]:
        observation = {**robot.get_observation(), "task": "anything"}
        assert server._enqueue_observation(TimedObservation(step / FPS, step, observation))
        chunk = server._predict_action_chunk(server.observation_queue.get())
        return float(observation["elbow.pos"]), np.array([float(timed.get_action()[1]) for timed in chunk])

    def towards(start: float) -> np.ndarray:
        """The ramp, followed at 0.1 a tick."""
        way = [start]
        for target in 0.5 * np.arange(10):
            way.append(float(np.clip(target, way[-1] - 0.1, way[-1] + 0.1)))
        return np.array(way[1:])

    elbow, first = elbows(0)
    assert first == pytest.approx(towards(elbow), abs=1e-5), "from where the joint stands"
    _, second = elbows(4)
    assert second == pytest.approx(towards(first[3]), abs=1e-5), "from what the robot was sent for tick 3"
    elbow, third = elbows(100)
    assert third == pytest.approx(towards(elbow), abs=1e-5), "nothing is known of tick 99"
    server.Ready(None, type("Peer", (), {"peer": lambda self: "test"})())
    elbow, fourth = elbows(101)
    assert fourth == pytest.approx(towards(elbow), abs=1e-5), "another client: another episode"
