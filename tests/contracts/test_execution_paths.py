"""Every path on which LeRobot executes a policy, held against one truth.

``lerobot-eval``, the evaluation inside ``lerobot-train``, ``lerobot-rollout`` with ``--inference.type=sync`` and with
``rtc``, and the policy server with LeRobot's ``robot_client`` drive a world whose frames tell the tick at which they
were taken and whose joints are elsewhere on every tick (clocked_world.py). On each of them, with absolute and with
relative actions:

- the model compares now with 15 ticks ago (0.5 s at 30 fps), or with the first frame while the episode is younger;
- what it plans becomes the absolute target that follows from the state of the very tick that the plan was made at;
- the robot is sent these targets and nothing else: one after the other, cut where the path cuts, replaced as RTC asks.

The model is a tiny one whose denoiser is replaced by one that knows where it wants to go (``Planner``).
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clocked_runs import free_port, import_async_inference, rollout_flags, running_client, start_server, wait_until
from clocked_world import FPS, JOINTS, STEPS, Diary, World, state_at
from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_eval, lerobot_rollout, lerobot_train, training_flags

INTERVAL, CHUNK, EXECUTED, HORIZON = 15, 24, 10, 14
LAYOUT = [
    f"--policy.chunk_size={CHUNK}",
    f"--policy.n_action_steps={EXECUTED}",
    f"--policy.foresight_interval={INTERVAL}",
    "--policy.num_inference_steps=4",
]
REPRESENTATIONS = {
    "absolute": [],
    "relative": ["--policy.action_representation=relative", '--policy.absolute_joint_names=["grip"]'],
}


# ---------------------------------------------------------------------------------------------------------- the planner


@dataclass
class Chunk:
    """One prediction: what the model saw, where it wanted to go, and what left the policy."""

    past: int
    now: int
    plan: Tensor
    """[K, max_action_dim], normalised."""
    actions: np.ndarray
    """[K, A], absolute."""
    left_over: np.ndarray
    """[S, A]: RTC: what was left of the chunk before, cut to the horizon; empty without guidance."""
    delay: int
    """RTC: how many of these the robot was expected to execute meanwhile."""


@dataclass
class Planner:
    """Replaces the denoiser: whatever the noise, four Euler steps lead to a plan that is different for every chunk."""

    chunks: list[Chunk] = field(default_factory=list)
    _seen: tuple[int, int] = (0, 0)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        prefill, sample = InternVLAA1.prefill, InternVLAA1Policy._sample
        planner = self

        def see(self: InternVLAA1, observation: Any, **kwargs: Any) -> Any:
            ticks = (observation.images[0, :, :, 0, 0, 0] * 255).round().long()
            assert (ticks == ticks[:1]).all(), "all cameras show the same two moments"
            planner._seen = (int(ticks[0, 0]), int(ticks[0, 1]))
            return prefill(self, observation, **kwargs)

        def denoise_step(self: InternVLAA1, prefill: Any, actions: Tensor, time: Tensor) -> Tensor:
            return (actions - planner.plan(actions.shape)) / time[:, None, None]

        def remember(
            self: InternVLAA1Policy,
            batch: Any,
            prefill: Any,
            noise: Any,
            left_over: Tensor | None = None,
            inference_delay: int = 0,
        ) -> Tensor:
            (past, now), plan = planner._seen, planner.plan((1, CHUNK, 32))[0]
            actions = sample(self, batch, prefill, noise, left_over, inference_delay)
            left = np.empty((0, len(JOINTS))) if left_over is None else left_over[0].numpy().copy()
            planner.chunks.append(Chunk(past, now, plan, actions[0].numpy().copy(), left, inference_delay))
            return actions

        patch.setattr(InternVLAA1, "prefill", see)
        patch.setattr(InternVLAA1, "denoise_step", denoise_step)
        patch.setattr(InternVLAA1Policy, "_sample", remember)

    def plan(self, shape: Any) -> Tensor:
        generator = torch.Generator().manual_seed(len(self.chunks))
        return 0.3 * torch.randn(tuple(shape[1:]), generator=generator).expand(shape)


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    planner = Planner()
    planner.install(monkeypatch)
    return planner


@pytest.fixture
def diary() -> Iterator[Diary]:
    yield World.begin()
    World.begin()


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


def targets(checkpoint: Path, chunk: Chunk) -> np.ndarray:
    """[K, A], worked out by hand: un-normalise, add the state of the tick that the chunk was planned at."""
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        mean, std, is_relative = (
            file.get_tensor(f"action_space.action_{name}")[: len(JOINTS)] for name in ("mean", "std", "is_relative")
        )
    anchor = torch.tensor(state_at(chunk.now)) * is_relative
    return (chunk.plan[:, : len(JOINTS)] * (std + 1e-6) + mean + anchor).numpy()


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
    lerobot_rollout(
        *rollout_flags(checkpoint),
        "--inference.type=rtc",
        f"--inference.rtc.execution_horizon={HORIZON}",
        f"--inference.queue_threshold={CHUNK - 6}",
        "--strategy.type=base",
    )


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
        check_age(chunk, path, diary)
        check_targets(chunk, targets(checkpoint, chunk))
    check_commands(chunks, path, diary)


def check_age(chunk: Chunk, path: Path_, diary: Diary) -> None:
    if not path.is_timed:
        assert chunk.past == max(chunk.now - INTERVAL, path.first_tick)
        return
    wanted = max(diary.seen_at[chunk.now] - INTERVAL / FPS, diary.seen_at[path.first_tick])
    ticks = [diary.seen_at[tick] for tick in (chunk.past - 1, chunk.past, chunk.past + 1) if 0 <= tick <= chunk.now]
    tolerance = max([1 / FPS, *np.diff(ticks)])  # a busy computer's ticks are longer
    assert abs(diary.seen_at[chunk.past] - wanted) <= tolerance


def check_targets(chunk: Chunk, expected: np.ndarray) -> None:
    """Exact, but for steps that RTC blends with what was left: they lie between the two, the first ones near it."""
    blended = len(chunk.left_over)
    assert blended <= HORIZON
    np.testing.assert_allclose(chunk.actions[blended:], expected[blended:], rtol=1e-5, atol=1e-5)
    from_left_over = np.abs(chunk.actions[:blended] - chunk.left_over)
    from_plan = np.abs(expected[:blended] - chunk.left_over)
    assert (from_left_over <= from_plan + 1e-5).all()
    assert (from_left_over[: chunk.delay] <= 0.25 * from_plan[: chunk.delay] + 1e-5).all()


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
