"""What a robot is sent when something breaks: nothing that nobody meant. In LeRobot's own commands.

A camera that delivers nothing, a joint that is no number, a policy that stalls, a server that goes away, Ctrl-C: the
command ends or waits with a message, and what was recorded so far is kept.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from clocked_runs import (
    TASK,
    free_port,
    import_async_inference,
    recording,
    rollout_flags,
    running_client,
    start_server,
    stop_at,
    wait_until,
)
from clocked_world import FPS, JOINTS, ClockedRobot, ClockedRobotConfig, Diary
from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.serving import rtc_engine
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_rollout, lerobot_train, training_flags

RTC = ("--inference.type=rtc", "--inference.queue_threshold=8")
SYNC = ("--inference.type=sync",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    tiny_dataset(root / "data", joint_names=JOINTS, fps=FPS, episode_lengths=(13, 12), video=False)
    lerobot_train(*training_flags(root / "data", root / "run", steps=1))
    return last_checkpoint(root / "run")


def warnings_of(logger: logging.Logger, patch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of. (LeRobot's commands set up logging anew, and pytest's own capture is gone with that.)"""
    messages: list[str] = []
    patch.setattr(logger, "warning", lambda text, *values: messages.append(text % values))
    return messages


def break_at(tick: int, **changes: Any) -> Any:
    return lambda now, observation: {**observation, **changes} if now >= tick else observation


@pytest.mark.parametrize(
    ("change", "message"),
    [({"left_wrist": None}, "'left_wrist'.*no frame"), ({"elbow.pos": math.nan}, "'elbow.pos' is at nan")],
    ids=["no frame", "NaN state"],
)
@pytest.mark.parametrize("inference", [SYNC, RTC], ids=["sync", "rtc"])
def test_a_rollout_stops_at_an_unusable_observation_and_keeps_the_recording(
    change: dict[str, Any], message: str, inference: tuple[str, ...], checkpoint: Path, tmp_path: Path, diary: Diary
):
    flags = rollout_flags(checkpoint)
    diary.before_tick, diary.changes = None, break_at(25, **change)
    root = tmp_path / "recorded"
    with pytest.raises(InternVLAError, match=message):
        lerobot_rollout(*flags, *inference, *recording(root))
    assert max(tick for tick, _ in diary.commands) < 25, "no command after the fault"
    assert all(np.isfinite(command).all() for _, command in diary.commands)
    kept = LeRobotDataset("local/rollout_clocked", root=next(tmp_path.glob("recorded*")))
    assert kept.num_episodes == 1 and len(kept) == len(diary.commands)


def test_sync_stops_at_a_state_that_is_no_number(checkpoint: Path, diary: Diary):
    flags = rollout_flags(checkpoint)
    diary.before_tick, diary.changes = None, break_at(8, **{"elbow.pos": math.nan})
    with pytest.raises(InternVLAError, match="elbow"):
        lerobot_rollout(*flags, *SYNC, "--strategy.type=base")
    assert [tick for tick, _ in diary.commands] == list(range(1, 8))


@pytest.mark.parametrize("inference", [SYNC, RTC], ids=["sync", "rtc"])
def test_ctrl_c_keeps_the_recording(inference: tuple[str, ...], checkpoint: Path, tmp_path: Path, diary: Diary):
    flags = rollout_flags(checkpoint)
    diary.before_tick = stop_at(20)
    lerobot_rollout(*flags, *inference, *recording(tmp_path / "recorded", episodes=3))
    kept = LeRobotDataset("local/rollout_clocked", root=next(tmp_path.glob("recorded*")))
    assert kept.num_episodes == 1 and len(kept) == len(diary.commands) >= 10  # RTC needs a moment for its first chunk


def test_a_policy_that_stalls_lets_the_robot_hold_and_says_so(
    checkpoint: Path, diary: Diary, monkeypatch: pytest.MonkeyPatch
):
    """The third chunk takes two seconds: the queue runs dry, nothing is sent, and nothing of the gap is made up for."""
    calls: list[float] = []
    stock = InternVLAA1.prefill

    def slow(self: InternVLAA1, observation: Any, **kwargs: Any) -> Any:
        calls.append(time.monotonic())
        time.sleep(2.0 * (len(calls) == 3))
        return stock(self, observation, **kwargs)

    monkeypatch.setattr(InternVLAA1, "prefill", slow)
    flags = rollout_flags(checkpoint)
    diary.before_tick = stop_at(140)
    messages = warnings_of(rtc_engine.logger, monkeypatch)
    lerobot_rollout(*flags, *RTC, "--strategy.type=base")
    gaps = np.diff([tick for tick, _ in diary.commands])
    assert gaps.max() > 10, "the robot was sent nothing for a while"
    assert any("The policy is late" in message for message in messages)
    assert any("The policy is back after" in message for message in messages)


@pytest.mark.parametrize("engine", [SYNC, RTC], ids=["sync", "rtc"])
def test_joints_in_another_order_never_move(checkpoint: Path, diary: Diary, engine: tuple[str, ...]):
    """LeRobot goes by position: the elbow would get what was meant for the shoulder."""
    swapped = f"--robot.joints={json.dumps([JOINTS[1], JOINTS[0], *JOINTS[2:]])}"
    with pytest.raises(InternVLAError, match=f"another order.*{JOINTS[1]}, {JOINTS[0]}.*{JOINTS[0]}, {JOINTS[1]}"):
        lerobot_rollout(*rollout_flags(checkpoint), *engine, swapped)
    assert not diary.commands


def test_a_server_that_goes_away_and_one_that_was_restarted(
    checkpoint: Path, tmp_path: Path, diary: Diary, monkeypatch: pytest.MonkeyPatch
):
    """The client executes what it has, then the robot holds; the new server tells why it sends nothing."""
    import_async_inference(tmp_path)
    from lerobot_internvla.serving import policy_server

    messages = warnings_of(policy_server.logger, monkeypatch)
    port = free_port()
    server = start_server(port)
    with running_client(checkpoint, port, 10):
        wait_until(lambda: len(diary.commands) > 15)
        server.stop(None).wait()

        def holds() -> bool:
            before = len(diary.commands)
            time.sleep(1.0)
            return len(diary.commands) == before

        wait_until(holds)  # what it had is executed, and nothing comes after that
        sent = len(diary.commands)
        server = start_server(port)
        wait_until(lambda: any("Start the client again" in message for message in messages))
        assert len(diary.commands) == sent
    server.stop(None).wait()


def test_the_server_survives_faults_of_an_observation(checkpoint: Path, tmp_path: Path, diary: Diary):
    """A frame that is missing once is skipped; LeRobot's server would let the robot stand for good."""
    import_async_inference(tmp_path)
    from lerobot.async_inference.helpers import TimedObservation, map_robot_keys_to_lerobot_features
    from lerobot.policies import make_pre_post_processors

    from lerobot_internvla.serving.policy_server import InternVLAPolicyServer, InternVLAPolicyServerConfig
    from lerobot_internvla.serving.robot_view import RobotView

    server = InternVLAPolicyServer(InternVLAPolicyServerConfig(fps=FPS))
    server.policy = InternVLAA1Policy.from_pretrained(checkpoint)
    server.policy_type, server.actions_per_chunk = "internvla_a1", 10
    server.preprocessor, server.postprocessor = make_pre_post_processors(
        server.policy.config, pretrained_path=str(checkpoint)
    )
    robot = ClockedRobot(ClockedRobotConfig())
    server.lerobot_features = map_robot_keys_to_lerobot_features(robot)
    server._view = RobotView(server.lerobot_features, {}, server.policy.config.image_features)

    def send(step: int, **changes: Any) -> bool:
        observation = {**robot.get_observation(), "task": TASK, **changes}
        return server._enqueue_observation(TimedObservation(step / FPS, step, observation))

    assert not send(0, head=None)
    assert not send(1, **{"grip.pos": math.inf})
    assert send(2)
    assert len(server._predict_action_chunk(server.observation_queue.get())) == 10
    assert server.policy.memory.newest_tick == pytest.approx(2)
    assert send(0), "the clock was set back: the memory begins anew"
    assert server.policy.memory.newest_tick == 0
