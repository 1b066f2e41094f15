"""Every path on which LeRobot executes a policy, held against one truth.

``lerobot-eval``, the evaluation inside ``lerobot-train``, ``lerobot-rollout`` with ``--inference.type=sync`` and with
``rtc``, and the policy server with LeRobot's ``robot_client`` drive a world whose frames tell the tick at which they
were taken and whose joints are elsewhere on every tick (clocked_world.py). On each of them, with absolute and with
relative actions:

- the model compares now with 15 ticks ago (0.5 s at 30 fps), or with the first frame while the episode is younger;
- what it plans becomes the absolute target that follows from the state of the very tick that the plan was made at;
- the robot is sent these targets and nothing else: one after the other, cut where the path cuts, replaced as RTC asks.

The model is a tiny one whose denoiser is replaced by one that knows where it wants to go (clocked_planner.py).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clocked_planner import (
    CHUNK,
    EXECUTED,
    INTERVAL,
    LAYOUT,
    REPRESENTATIONS,
    RTC_FLAGS,
    Chunk,
    Planner,
    check_guidance,
    check_targets,
    targets,
)
from clocked_runs import free_port, import_async_inference, rollout_flags, running_client, start_server, wait_until
from clocked_world import FPS, JOINTS, STEPS, Diary, World
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_eval, lerobot_rollout, lerobot_train, training_flags


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clocked") / "data"
    tiny_dataset(root, joint_names=JOINTS, fps=FPS, episode_lengths=(24, 23), video=False)
    return root


@pytest.fixture(scope="module", params=list(REPRESENTATIONS))
def flags(request: pytest.FixtureRequest) -> list[str]:
    """Of training: absolute, then relative actions."""
    return [*LAYOUT, *REPRESENTATIONS[request.param]]


@pytest.fixture(scope="module")
def checkpoint(data: Path, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a policy that was trained for one step."""
    output = tmp_path_factory.mktemp("clocked") / "run"
    lerobot_train(*training_flags(data, output, steps=1), *flags)
    return last_checkpoint(output)


# ------------------------------------------------------------------------------------------------------------ the paths


@dataclass
class Path_:
    """One way of execution: how to run it, and what is particular to it."""

    run: Callable[..., None]
    first_tick: int
    """The first tick of the episode: ``lerobot-rollout`` looks at the robot once before."""
    is_timed: bool = False
    """Frames are looked up by time: the age is right within one control tick."""
    is_dense: bool = True
    """A chunk on every ``EXECUTED`` ticks, all of whose actions are sent in turn."""


def run_eval(checkpoint: Path, tmp_path: Path, **_: Any) -> None:
    lerobot_eval(
        f"--policy.path={checkpoint}",
        "--env.type=clocked",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'eval'}",
    )


def run_eval_in_training(data: Path, flags: list[str], tmp_path: Path, **_: Any) -> None:
    shorter = [flag for flag in training_flags(data, tmp_path / "run", steps=1) if "env_eval_freq" not in flag]
    lerobot_train(
        *shorter,
        *flags,
        "--env.type=clocked",
        "--env_eval_freq=1",
        "--save_freq=1",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
    )


def run_sync(checkpoint: Path, **_: Any) -> None:
    lerobot_rollout(*rollout_flags(checkpoint), "--inference.type=sync", "--strategy.type=base")


def run_rtc(checkpoint: Path, **_: Any) -> None:
    lerobot_rollout(*rollout_flags(checkpoint), *RTC_FLAGS, "--strategy.type=base")


def run_async(checkpoint: Path, tmp_path: Path, **_: Any) -> None:
    """LeRobot's client against our server, both as they are, in threads of this process."""
    import_async_inference(tmp_path)
    port = free_port()
    server = start_server(port)
    with running_client(checkpoint, port, CHUNK):
        wait_until(lambda: len(World.diary.seen_at) >= STEPS + 30)
    server.stop(None).wait()


PATHS = {
    "lerobot-eval": Path_(run_eval, first_tick=0),
    "evaluation in lerobot-train": Path_(run_eval_in_training, first_tick=0),
    "lerobot-rollout sync": Path_(run_sync, first_tick=1),
    "lerobot-rollout rtc": Path_(run_rtc, first_tick=1, is_dense=False),
    "policy server and robot_client": Path_(run_async, first_tick=0, is_timed=True, is_dense=False),
}


# --------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("path", list(PATHS.values()), ids=list(PATHS))
def test_history_targets_and_queue(
    path: Path_, data: Path, flags: list[str], checkpoint: Path, tmp_path: Path, planner: Planner, diary: Diary
):
    path.run(data=data, flags=flags, checkpoint=checkpoint, tmp_path=tmp_path)
    chunks = planner.chunks
    assert len(chunks) >= 3 and any(chunk.now > INTERVAL + path.first_tick for chunk in chunks)

    for chunk in chunks:
        assert chunk.anchor == chunk.now, "pictures and joints of the same tick"
        check_age(chunk, path, diary)
        check_targets(chunk, targets(checkpoint, chunk))
    if path.run is run_rtc:
        check_guidance(chunks, lambda chunk: targets(checkpoint, chunk))
    check_commands(chunks, path, diary)


def check_age(chunk: Chunk, path: Path_, diary: Diary) -> None:
    if not path.is_timed:
        assert chunk.past == max(chunk.now - INTERVAL, path.first_tick)
        return
    wanted = max(diary.seen_at[chunk.now] - INTERVAL / FPS, diary.seen_at[path.first_tick])
    ticks = [diary.seen_at[tick] for tick in (chunk.past - 1, chunk.past, chunk.past + 1) if 0 <= tick <= chunk.now]
    tolerance = max([1 / FPS, *np.diff(ticks)])  # a busy computer's ticks are longer
    assert abs(diary.seen_at[chunk.past] - wanted) <= tolerance


def check_commands(chunks: list[Chunk], path: Path_, diary: Diary) -> None:
    """Every command is the next action of a chunk, and never one of an older chunk than the command before."""
    assert len(diary.commands) > EXECUTED
    if path.is_dense:
        for count, (tick, command) in enumerate(diary.commands):
            assert tick == count + path.first_tick, "one command per tick"
            np.testing.assert_array_equal(command, chunks[count // EXECUTED].actions[count % EXECUTED])
        assert len(diary.commands) == STEPS or path.run is run_sync
        return
    places = [place_of(command, chunks) for _, command in diary.commands]
    for (chunk, step), (next_chunk, next_step) in itertools.pairwise(places):
        assert next_chunk >= chunk, "a chunk that was replaced does not come back"
        if next_chunk == chunk:
            assert next_step == step + 1, "no step is left out or repeated"
    assert len({chunk for chunk, _ in places}) >= 3


def place_of(command: np.ndarray, chunks: list[Chunk]) -> tuple[int, int]:
    for index, chunk in enumerate(chunks):
        same = np.flatnonzero((chunk.actions == command).all(axis=1))
        if len(same):
            return index, int(same[0])
    raise AssertionError(f"The robot was sent {command}, which is in no chunk.")


# ----------------------------------------------------------------------------------------------------- blended commands


@dataclass
class Arrival:
    """A chunk as it reached LeRobot's client."""

    first_step: int
    actions: np.ndarray
    """[K, A]"""
    sent_before: int
    """Commands that the robot had got when the client began to blend the chunk in; ``sent_after`` when it was done."""
    sent_after: int


def test_the_client_blends_overlapping_chunks_as_it_is_told(
    checkpoint: Path, tmp_path: Path, planner: Planner, diary: Diary, monkeypatch: pytest.MonkeyPatch
):
    """``--aggregate_fn_name=weighted_average``: 0.3 of what it had for a step and 0.7 of what it gets, chunk by chunk.

    Both are absolute targets in robot units, whatever the network predicts: of differences to the states of two ticks
    no average would mean anything.
    """
    import_async_inference(tmp_path)
    from lerobot.async_inference.robot_client import RobotClient

    arrivals: list[Arrival] = []
    stock = RobotClient._aggregate_action_queues

    def watched(self: RobotClient, incoming_actions: list[Any], *args: Any) -> None:
        before, actions = len(diary.commands), [action.get_action().numpy().copy() for action in incoming_actions]
        stock(self, incoming_actions, *args)
        arrivals.append(Arrival(incoming_actions[0].get_timestep(), np.stack(actions), before, len(diary.commands)))

    monkeypatch.setattr(RobotClient, "_aggregate_action_queues", watched)
    port = free_port()
    server = start_server(port)
    with running_client(checkpoint, port, CHUNK, aggregate_fn_name="weighted_average"):
        wait_until(lambda: len(diary.commands) > 2 * CHUNK)
    server.stop(None).wait()

    assert len(arrivals) >= 3
    for arrival, chunk in zip(arrivals, planner.chunks, strict=False):
        np.testing.assert_array_equal(arrival.actions, chunk.actions)
        check_targets(chunk, targets(checkpoint, chunk))
    blends = [place_among_blends(command, index, arrivals) for index, (_, command) in enumerate(diary.commands)]
    steps, depths = (list(values) for values in zip(*blends, strict=True))
    assert all(later >= step for step, later in itertools.pairwise(steps)), "one step after the other"
    assert sum(depth > 1 for depth in depths) > len(depths) / 2, "most steps are blends of several chunks"


def place_among_blends(command: np.ndarray, index: int, arrivals: list[Arrival]) -> tuple[int, int]:
    """The step that the ``index``-th command is for, and of how many chunks it is a blend: all that were there by then.

    LeRobot's client takes a command off its queue in one thread and blends in another. So the command that is on its
    way while a chunk arrives is of the queue before or after, or once more of the chunk alone.
    """
    queue: dict[int, tuple[np.ndarray, int]] = {}
    found: set[tuple[int, int]] = set()
    for arrival, following in itertools.zip_longest(arrivals, arrivals[1:]):
        steps = dict(enumerate(arrival.actions, arrival.first_step))
        queue = {
            step: (0.3 * queue[step][0] + 0.7 * action, queue[step][1] + 1) if step in queue else (action, 1)
            for step, action in steps.items()
        }
        candidates: list[tuple[int, np.ndarray, int]] = []
        if arrival.sent_before <= index and (following is None or index <= following.sent_after):
            candidates += [(step, target, depth) for step, (target, depth) in queue.items()]
        if arrival.sent_before <= index <= arrival.sent_after + 1:
            candidates += [(step, action, 1) for step, action in steps.items()]
        found |= {(step, depth) for step, target, depth in candidates if np.array_equal(target, command)}
    assert len(found) == 1, f"command {index} is no blend of the chunks that the client had by then: {found}"
    return found.pop()
