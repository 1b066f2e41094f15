"""One checkpoint of several robots on a robot: the right one drives, in sync, under RTC and behind the policy server.

Two of its robots have the same three joints and differ in statistics and rate, so that only a name tells them apart; a
third has two joints and one camera, and is told by them. Half a second is another number of frames for each. The world
is that of test_execution_paths.py: pictures tell their tick, joints are elsewhere on every tick.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from clocked_planner import CHUNK, EXECUTED, RTC_FLAGS, Chunk, Planner, check_guidance, check_targets, targets
from clocked_runs import (
    free_port,
    import_async_inference,
    rollout_flags,
    running_client,
    start_server,
    stop_at,
    wait_until,
)
from clocked_world import CAMERAS, JOINTS, ClockedRobotConfig, Diary
from lerobot_internvla import InternVLAError
from lerobot_internvla.embodiments.spec import Dim, Embodiment, Part
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_rollout, lerobot_train

SYNC = ("--inference.type=sync",)


@dataclass(frozen=True)
class Arm:
    """A robot of the checkpoint: its rate, its part of the world, and how the policy is told that it is this one."""

    name: str
    fps: int
    joints: tuple[str, ...]
    views: tuple[str, ...]
    is_named: bool

    @property
    def interval(self) -> int:
        return self.fps // 2

    @property
    def flags(self) -> list[str]:
        return [
            f"--fps={self.fps}",
            *([f"--policy.embodiment={self.name}"] if self.is_named else []),
            f"--robot.joints={list(self.joints)}",
            f"--robot.views={list(self.views)}",
        ]

    @property
    def config(self) -> ClockedRobotConfig:
        return ClockedRobotConfig(joints=list(self.joints), views=list(self.views))


ARM = Arm("arm", 30, tuple(JOINTS), tuple(CAMERAS), is_named=True)
TWIN = Arm("twin", 20, tuple(JOINTS), tuple(CAMERAS), is_named=True)
SLIDER = Arm("slider", 10, tuple(JOINTS[:2]), ("head",), is_named=False)
TOLD = [TWIN, SLIDER]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a policy that was trained for one step on datasets of the three."""
    root = tmp_path_factory.mktemp("several")
    sources: dict[str, dict[str, object]] = {}
    for seed, arm in enumerate((ARM, TWIN, SLIDER)):
        data = {"joint_names": arm.joints, "cameras": arm.views, "fps": arm.fps, "seed": seed}
        tiny_dataset(root / arm.name, repo_id=f"local/{arm.name}", episode_lengths=(32, 31), video=False, **data)
        dims = tuple(Dim(joint, "-1..1", relative="grip" not in joint) for joint in arm.joints)
        embodiment = Embodiment(
            name=arm.name,
            title=arm.name,
            robot_types=(arm.name,),
            state=(Part("observation.state", tuple(Dim(joint, "-1..1") for joint in arm.joints)),),
            action=(Part("action", dims),),
            cameras={view: (view,) for view in arm.views},
            gripper="-1 and 1 are the ends of a sine" if len(arm.joints) == 3 else "none",
            fps=float(arm.fps),
            source="this test",
        )
        (root / f"{arm.name}.yaml").write_text(yaml.safe_dump(embodiment.to_dict(), sort_keys=False))
        sources[arm.name] = {"root": arm.name, "embodiment": f"{arm.name}.yaml", "weight": 1.0}
    (root / "mixture.yaml").write_text(yaml.safe_dump({"foresight_interval_s": 0.5, "sources": sources}))
    lerobot_train(
        *("--policy.type=internvla_a1", "--policy.variant=tiny", "--policy.device=cpu", "--policy.push_to_hub=false"),
        *(f"--policy.chunk_size={CHUNK}", f"--policy.n_action_steps={EXECUTED}", "--policy.num_inference_steps=4"),
        "--policy.action_representation=relative",
        *("--dataset.repo_id=local/mixture", f"--dataset.root={root / 'mixture.yaml'}"),
        *(f"--output_dir={root / 'run'}", "--steps=1", "--batch_size=2", "--num_workers=0", "--log_freq=1"),
        *("--env_eval_freq=0", "--wandb.enable=false"),
    )
    return last_checkpoint(root / "run")


def ticks_of(arm: Arm) -> int:
    """Enough to see a past that is not the first frame, and three chunks."""
    return 2 * arm.interval + EXECUTED + 15


def check(chunks: list[Chunk], arm: Arm, checkpoint: Path, diary: Diary, *, first_tick: int) -> None:
    assert len(chunks) >= 2 and any(chunk.now > arm.interval + first_tick for chunk in chunks)
    for chunk in chunks:
        assert chunk.actions.shape == (CHUNK, len(arm.joints)) and chunk.anchor == chunk.now
        check_targets(chunk, targets(checkpoint, chunk, arm.name))
    planned = np.concatenate([chunk.actions for chunk in chunks])
    for _, command in diary.commands:
        assert (planned == command).all(axis=1).any(), "the robot is sent what was planned"


@pytest.mark.parametrize("inference", [SYNC, RTC_FLAGS], ids=["sync", "rtc"])
@pytest.mark.parametrize("arm", TOLD, ids=["told by name", "told by its dims"])
def test_rollout_drives_the_right_robot(
    arm: Arm, inference: tuple[str, ...], checkpoint: Path, planner: Planner, diary: Diary
):
    flags = [flag for flag in rollout_flags(checkpoint) if not flag.startswith("--fps")]
    diary.before_tick = stop_at(ticks_of(arm))
    lerobot_rollout(*flags, *arm.flags, *inference, "--strategy.type=base")
    check(planner.chunks, arm, checkpoint, diary, first_tick=1)
    assert [chunk.past for chunk in planner.chunks] == [max(chunk.now - arm.interval, 1) for chunk in planner.chunks]
    if inference is RTC_FLAGS:
        check_guidance(planner.chunks, lambda chunk: targets(checkpoint, chunk, arm.name))


@pytest.mark.parametrize("arm", TOLD, ids=["told by name", "told by its dims"])
def test_the_server_drives_the_right_robot(arm: Arm, checkpoint: Path, tmp_path: Path, planner: Planner, diary: Diary):
    import_async_inference(tmp_path)
    port = free_port()
    server = start_server(port, embodiment=arm.name if arm.is_named else None)
    with running_client(checkpoint, port, CHUNK, robot=arm.config, fps=arm.fps):
        wait_until(lambda: len(diary.seen_at) > ticks_of(arm))
    server.stop(None).wait()
    check(planner.chunks, arm, checkpoint, diary, first_tick=0)
    for chunk in planner.chunks:
        wanted = max(diary.seen_at[chunk.now] - 0.5, diary.seen_at[0])
        around = diary.seen_at[max(chunk.past - 1, 0) : min(chunk.past + 1, chunk.now) + 1]
        assert abs(diary.seen_at[chunk.past] - wanted) <= max([1 / arm.fps, *np.diff(around)])


def test_a_name_that_is_none_of_them_ends_the_command_before_a_robot_is_connected(checkpoint: Path, diary: Diary):
    with pytest.raises(InternVLAError, match=r"policy.embodiment='twim'.*It knows: arm.*slider.*twin"):
        lerobot_rollout(*rollout_flags(checkpoint), *SYNC, "--strategy.type=base", "--policy.embodiment=twim")
    assert diary.connections == 0


@pytest.mark.parametrize("inference", [SYNC, RTC_FLAGS], ids=["sync", "rtc"])
def test_dims_of_two_robots_do_not_tell_which_one_it_is(inference: tuple[str, ...], checkpoint: Path, diary: Diary):
    with pytest.raises(InternVLAError, match=r"arm, twin.*say which one it is: --policy.embodiment="):
        lerobot_rollout(*rollout_flags(checkpoint), *inference, "--strategy.type=base")
    assert not diary.commands


def test_a_camera_of_the_robot_that_drives_must_be_there(checkpoint: Path, diary: Diary):
    """LeRobot lets a robot pass that has some of the policy's cameras: another of its robots may have no others."""
    with pytest.raises(InternVLAError, match=r"policy also needs observation.images.right_wrist.*--rename_map="):
        lerobot_rollout(
            *rollout_flags(checkpoint),
            *RTC_FLAGS,
            "--strategy.type=base",
            "--policy.embodiment=twin",
            f"--robot.views={CAMERAS[:2]}",
        )
    assert not diary.commands


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "say which one it is"), ({"embodiment": "twim"}, "policy.embodiment='twim'")],
    ids=["not told", "wrong name"],
)
def test_the_server_refuses_to_guess(
    settings: dict[str, str], message: str, checkpoint: Path, tmp_path: Path, diary: Diary
):
    """LeRobot's client prints what the server says, and does not start."""
    import_async_inference(tmp_path)
    from lerobot.async_inference.robot_client import RobotClient

    told: list[str] = []
    port = free_port()
    server = start_server(port, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RobotClient.logger, "error", told.append)
        with pytest.raises(AssertionError), running_client(checkpoint, port, CHUNK):
            pass
    server.stop(None).wait()
    assert len(told) == 1 and message in told[0] and "--embodiment=" in told[0]
    assert not diary.commands
