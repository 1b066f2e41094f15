"""Nothing of an episode is seen in the next, on any path: after a reset the past is the new episode's first frame.

Two episodes each, in LeRobot's own commands, in the world whose frames tell their tick (clocked_world.py). What one
episode alone must look like is in test_execution_paths.py.
"""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clocked_runs import TASK, import_async_inference, rollout_flags, wait_until
from clocked_world import FPS, JOINTS, World, frame_at
from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_eval, lerobot_rollout, lerobot_train, training_flags

INTERVAL = 15


@dataclass
class Watch:
    """When episodes began, and what the model was shown."""

    starts: list[int] = field(default_factory=list)
    """First tick after each reset of the policy."""
    shown: list[tuple[int, int]] = field(default_factory=list)
    """(past, now) of every chunk, in ticks."""

    def start_of(self, tick: int) -> int:
        """Of the episode that a tick belongs to."""
        return self.starts[bisect.bisect_right(self.starts, tick) - 1]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    World.begin()
    watch, prefill, reset = Watch(), InternVLAA1.prefill, InternVLAA1Policy.reset

    def see(self: InternVLAA1, observation: Any, **kwargs: Any) -> Any:
        past, now = (observation.images[0, 0, :, 0, 0, 0] * 255).round().long().tolist()
        watch.shown.append((past, now))
        return prefill(self, observation, **kwargs)

    def note(self: InternVLAA1Policy) -> None:
        watch.starts.append(len(World.diary.seen_at))
        reset(self)

    monkeypatch.setattr(InternVLAA1, "prefill", see)
    monkeypatch.setattr(InternVLAA1Policy, "reset", note)
    yield watch
    World.begin()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("boundaries")
    tiny_dataset(root / "data", joint_names=JOINTS, fps=FPS, episode_lengths=(24, 23), video=False)
    short = (f"--policy.foresight_interval={INTERVAL}", "--policy.n_action_steps=4")
    lerobot_train(*training_flags(root / "data", root / "run", steps=1), *short)
    return last_checkpoint(root / "run")


def evaluate(checkpoint: Path, tmp_path: Path, watch: Watch) -> None:
    lerobot_eval(
        f"--policy.path={checkpoint}",
        "--env.type=clocked",
        "--eval.n_episodes=2",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'eval'}",
    )


def wait_for_a_chunk(watch: Watch) -> Callable[[int], None]:
    """The inference thread gets to see every episode while it is young, however busy the computer."""

    def before_tick(now: int) -> None:
        if now == watch.starts[-1] + 5:
            wait_until(lambda: any(seen >= watch.starts[-1] for _, seen in watch.shown))

    return before_tick


def roll_out(*inference: str) -> Callable[[Path, Path, Watch], None]:
    def run(checkpoint: Path, tmp_path: Path, watch: Watch) -> None:
        flags = rollout_flags(checkpoint)
        World.diary.before_tick = wait_for_a_chunk(watch) if "--inference.type=rtc" in inference else None
        lerobot_rollout(
            *flags,
            *inference,
            "--strategy.type=episodic",
            "--strategy.reset_to_initial_position=false",
            "--dataset.repo_id=local/rollout_boundaries",
            f"--dataset.root={tmp_path / 'recorded'}",
            "--dataset.num_episodes=2",
            "--dataset.episode_time_s=1.5",
            "--dataset.reset_time_s=0",
            "--dataset.push_to_hub=false",
            "--dataset.video=false",
            f"--dataset.fps={FPS}",
            f"--dataset.single_task={TASK}",
            "--play_sounds=false",
        )

    return run


RTC = ("--inference.type=rtc", "--inference.queue_threshold=6", "--inference.rtc.execution_horizon=8")
PATHS = {
    "lerobot-eval": evaluate,
    "lerobot-rollout sync": roll_out("--inference.type=sync"),
    "lerobot-rollout rtc": roll_out(*RTC),
}


@pytest.mark.parametrize("run", list(PATHS.values()), ids=list(PATHS))
def test_the_second_episode_begins_with_its_own_first_frame(
    run: Callable[[Path, Path, Watch], None], checkpoint: Path, tmp_path: Path, watch: Watch
):
    run(checkpoint, tmp_path, watch)
    second = watch.starts[-1] if watch.starts[-1] <= watch.shown[-1][1] else watch.start_of(watch.shown[-1][1])
    young = [(past, now) for past, now in watch.shown if second <= now < second + INTERVAL]
    assert any(past < second for past, _ in watch.shown), "there was an episode before"
    assert young, "the second episode was acted in while it was young"
    assert all(past == second for past, _ in young), (second, young)


def test_a_client_that_connects_begins_an_episode(checkpoint: Path, tmp_path: Path):
    """LeRobot's server keeps policy and observation of the connection before."""
    import_async_inference(tmp_path)
    from lerobot.async_inference.helpers import TimedObservation

    from lerobot_internvla.serving.policy_server import InternVLAPolicyServer, InternVLAPolicyServerConfig

    server = InternVLAPolicyServer(InternVLAPolicyServerConfig(fps=FPS))
    server.policy = InternVLAA1Policy.from_pretrained(checkpoint)
    frames = {key: torch.from_numpy(frame_at(7)).permute(2, 0, 1)[None] for key in server.policy.config.image_features}
    server.policy.observe(frames, 1000.0)
    server.last_processed_obs = TimedObservation(0.0, 0, {})
    server.Ready(None, SimpleNamespace(peer=lambda: "a robot"))
    assert server.last_processed_obs is None
    server.policy.observe(frames, 1.0)  # another clock; with the old memory this would be a step back in time
