"""Frames that come late: a camera that stalls, LeRobot's camera that gives up waiting, a loop that is too slow.

What LeRobot 0.6.1 does with a late frame: its cameras read in a thread of their own, and a robot takes the newest
picture they have, the same one again while there is no other; after half a second without a new one the camera raises
``TimeoutError``. That ends ``lerobot-rollout``; ``robot_client`` logs it and tries again on the next tick.

The world is that of test_execution_paths.py: pictures tell their tick, joints are elsewhere on every tick.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lerobot.cameras.opencv import OpenCVCamera, OpenCVCameraConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from clocked_planner import CHUNK, EXECUTED, INTERVAL, LAYOUT, RTC_FLAGS, Chunk, Planner, check_targets, targets
from clocked_runs import (
    free_port,
    import_async_inference,
    recording,
    rollout_flags,
    running_client,
    start_server,
    stop_at,
    wait_until,
)
from clocked_world import CAMERAS, FPS, JOINTS, SIZE, Diary, World, frame_at
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_rollout, lerobot_train, training_flags

SYNC = ("--inference.type=sync",)
STALLS, GOES_ON = 20, 31
"""The cameras show tick 20 until tick 31."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("late")
    tiny_dataset(root / "data", joint_names=JOINTS, fps=FPS, episode_lengths=(24, 23), video=False)
    relative = ("--policy.action_representation=relative", '--policy.absolute_joint_names=["grip"]')
    lerobot_train(*training_flags(root / "data", root / "run", steps=1), *LAYOUT, *relative)
    return last_checkpoint(root / "run")


def check_sent(chunks: list[Chunk], checkpoint: Path, diary: Diary) -> None:
    """Whatever the pictures showed: targets are exact and the robot is sent nothing else."""
    for chunk in chunks:
        check_targets(chunk, targets(checkpoint, chunk))
    planned = np.concatenate([chunk.actions for chunk in chunks])
    assert len(diary.commands) > EXECUTED
    for _, command in diary.commands:
        assert (planned == command).all(axis=1).any()


# ---------------------------------------------------------------------------------------------------- the same again


def shown(tick: int) -> int:
    return STALLS if STALLS <= tick < GOES_ON else tick


def stall(tick: int, observation: dict[str, Any]) -> dict[str, Any]:
    return {**observation, **dict.fromkeys(CAMERAS, frame_at(shown(tick)))}


@pytest.mark.parametrize("inference", [SYNC, RTC_FLAGS], ids=["sync", "rtc"])
def test_a_frame_that_is_shown_again_is_the_past_of_the_tick_at_which_it_was_shown(
    inference: tuple[str, ...], checkpoint: Path, planner: Planner, diary: Diary
):
    """Joints are read afresh meanwhile, so targets stay anchored where the arm is."""
    flags = rollout_flags(checkpoint)
    diary.changes = stall
    lerobot_rollout(*flags, *inference, "--strategy.type=base")
    for chunk in planner.chunks:
        assert (chunk.now, chunk.past) == (shown(chunk.anchor), shown(max(chunk.anchor - INTERVAL, 1)))
    assert any(chunk.now < chunk.anchor for chunk in planner.chunks), "planned while the cameras stalled"
    assert any(chunk.past < chunk.anchor - INTERVAL for chunk in planner.chunks)
    check_sent(planner.chunks, checkpoint, diary)


def test_a_frame_that_is_shown_again_to_the_client(checkpoint: Path, tmp_path: Path, planner: Planner, diary: Diary):
    import_async_inference(tmp_path)
    diary.changes = stall
    port = free_port()
    server = start_server(port)
    with running_client(checkpoint, port, CHUNK):
        wait_until(lambda: len(diary.seen_at) > GOES_ON + 2 * INTERVAL)
    server.stop(None).wait()
    for chunk in planner.chunks:
        assert chunk.now == shown(chunk.anchor)
        wanted = max(diary.seen_at[chunk.anchor] - INTERVAL / FPS, diary.seen_at[0])
        step = max([1 / FPS, *np.diff(diary.seen_at[: chunk.anchor + 1])])
        near = [tick for tick in range(chunk.anchor + 1) if abs(diary.seen_at[tick] - wanted) <= step]
        assert chunk.past in {shown(tick) for tick in near}
    check_sent(planner.chunks, checkpoint, diary)


# ---------------------------------------------------------------------------------------------- LeRobot's own camera


class Sensor:
    """In place of OpenCV's ``VideoCapture``: shows the newest tick, 60 times per second, until it stalls."""

    def __init__(self) -> None:
        self.runs = threading.Event()
        self.runs.set()

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray]:
        time.sleep(1 / 60)
        self.runs.wait()
        return True, frame_at(max(len(World.diary.seen_at) - 1, 0))

    def release(self) -> None: ...


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenCVCamera]:
    """LeRobot's, reading in its thread from a sensor of ours."""
    monkeypatch.setattr(cv2, "VideoCapture", Sensor)
    camera = OpenCVCamera(OpenCVCameraConfig(index_or_path=0, fps=60, width=SIZE[1], height=SIZE[0]))
    sensor = camera.videocapture = Sensor()
    camera._start_read_thread()
    wait_until(lambda: camera.latest_frame is not None)
    yield camera
    sensor.runs.set()
    camera.disconnect()


@pytest.mark.parametrize("inference", [SYNC, RTC_FLAGS], ids=["sync", "rtc"])
def test_a_camera_that_hangs_ends_the_rollout_and_the_recording_is_kept(
    inference: tuple[str, ...], checkpoint: Path, camera: OpenCVCamera, tmp_path: Path, diary: Diary
):
    flags = rollout_flags(checkpoint)
    diary.before_tick = lambda tick: camera.videocapture.runs.clear() if tick == STALLS else None
    diary.changes = lambda _, observation: {**observation, "left_wrist": camera.read_latest()}
    with pytest.raises(TimeoutError, match=r"OpenCVCamera\(0\) latest frame is too old"):
        lerobot_rollout(*flags, *inference, *recording(tmp_path / "recorded"))
    last = len(diary.seen_at) - 1
    assert last > STALLS + 5, "a late frame is shown again for half a second"
    assert diary.commands and max(tick for tick, _ in diary.commands) < last, "no command after the fault"
    assert all(np.isfinite(command).all() for _, command in diary.commands)
    kept = LeRobotDataset("local/rollout_clocked", root=next(tmp_path.glob("recorded*")))
    assert kept.num_episodes == 1 and len(kept) == len(diary.commands)


def test_a_camera_of_the_client_that_hangs_and_comes_back(
    checkpoint: Path,
    camera: OpenCVCamera,
    tmp_path: Path,
    planner: Planner,
    diary: Diary,
    monkeypatch: pytest.MonkeyPatch,
):
    """The robot finishes its chunk and holds; the log names the camera; afterwards it goes on from where it is."""
    import_async_inference(tmp_path)
    from lerobot.async_inference.robot_client import RobotClient

    told: list[str] = []
    monkeypatch.setattr(RobotClient.logger, "error", told.append)
    diary.changes = lambda _, observation: {**observation, **dict.fromkeys(CAMERAS, camera.read_latest())}
    port = free_port()
    server = start_server(port)
    with running_client(checkpoint, port, CHUNK):
        wait_until(lambda: len(diary.commands) > STALLS)
        camera.videocapture.runs.clear()
        wait_until(lambda: any("latest frame is too old" in message for message in told))
        held = -1
        while held < len(diary.commands):  # until nothing is sent for half a second
            held = len(diary.commands)
            time.sleep(0.5)
        seen, chunks = len(diary.seen_at), len(planner.chunks)
        camera.videocapture.runs.set()
        wait_until(lambda: len(diary.commands) > held + EXECUTED)
    server.stop(None).wait()
    check_sent(planner.chunks, checkpoint, diary)
    assert all(chunk.anchor >= seen - 1 for chunk in planner.chunks[chunks:]), "nothing of the time before is used"


# --------------------------------------------------------------------------------------------------- the loop is late


@pytest.mark.parametrize("late_s", [0.0, 0.07], ids=["on time", "at half the rate"])
def test_under_rtc_the_past_is_half_a_second_ago_on_the_wall(
    late_s: float, checkpoint: Path, planner: Planner, diary: Diary
):
    """A robot that takes 70 ms to observe is asked 14 times per second: half a second are 7 ticks and not 15."""
    flags = rollout_flags(checkpoint)
    diary.before_tick = stop_at(45)
    diary.changes = lambda _, observation: time.sleep(late_s) or observation
    lerobot_rollout(*flags, *RTC_FLAGS, "--strategy.type=base", "--robot.clock=real")
    grown = [chunk for chunk in planner.chunks if chunk.past > 1]
    assert len(grown) >= 2
    tick_s = max([1 / FPS, *np.diff(diary.seen_at[1:])])  # a busy computer's ticks are longer
    for chunk in grown:
        assert abs(diary.seen_at[chunk.now] - diary.seen_at[chunk.past] - 0.5) <= tick_s
    for chunk in planner.chunks:
        if diary.seen_at[chunk.now] - diary.seen_at[1] < 0.5 - tick_s:
            assert chunk.past == 1, "the first frame, in the first half second"
    check_sent(planner.chunks, checkpoint, diary)
