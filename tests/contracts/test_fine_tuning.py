"""Fine-tuning by stock flags: what can be kept is kept, and the log says what was replaced."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_pre_post_processors
from safetensors.torch import load_file

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.statistics import statistics_from_dataset
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy
from stock_commands import last_checkpoint, lerobot_train

JOINTS = [f"joint_{i}" for i in range(6)] + ["gripper"]


@pytest.fixture(scope="module")
def other_robot(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    return tiny_dataset(
        tmp_path_factory.mktemp("other") / "data",
        cameras={"top": (48, 64)},
        joint_names=JOINTS,
        fps=30,
        episode_lengths=(14, 11),
        video=False,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Absolute actions of four joints, three cameras, chunks of 10, at 10 frames per second."""
    folder = tmp_path_factory.mktemp("checkpoint")
    policy = tiny_policy(tiny_config(fps=10.0))
    policy.action_space.action_mean[:4] = 5.0
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config):
        pipeline.save_pretrained(folder)
    return folder


def fine_tune(checkpoint: Path, dataset: LeRobotDataset, output: Path, *flags: str) -> InternVLAA1Policy:
    """One step with learning rate 0: what the checkpoint of it holds is what the run started from."""
    lerobot_train(
        f"--policy.path={checkpoint}",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/other",
        f"--dataset.root={dataset.root}",
        f"--output_dir={output}",
        *("--policy.lr_schedule=constant", "--policy.optimizer_lr=0", "--policy.input_features=null"),
        *("--steps=1", "--batch_size=2", "--num_workers=0", "--env_eval_freq=0", "--log_freq=1"),
        *flags,
    )
    return InternVLAA1Policy.from_pretrained(last_checkpoint(output))


@contextmanager
def told() -> Iterator[list[str]]:
    """What this package logs. LeRobot's commands throw away every handler of the root logger, pytest's too."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector, logger = Collector(), logging.getLogger("lerobot_internvla")
    logger.addHandler(collector)
    try:
        yield messages
    finally:
        logger.removeHandler(collector)


def inherited(policy: InternVLAA1Policy, checkpoint: Path) -> bool:
    """Every tensor of the model is the checkpoint's, to the last bit."""
    before = load_file(checkpoint / "model.safetensors")
    return all(torch.equal(tensor, before[f"model.{name}"]) for name, tensor in policy.model.state_dict().items())


def test_another_robot_with_relative_actions_and_longer_chunks(
    checkpoint: Path, other_robot: LeRobotDataset, tmp_path: Path
):
    """Cameras, dims, rate, chunk length and action representation at once; the whole story in the log."""
    flags = ("--policy.action_representation=relative", "--policy.chunk_size=12", "--policy.n_action_steps=6")
    with told() as log:
        policy = fine_tune(checkpoint, other_robot, tmp_path / "run", *flags)
    assert inherited(policy, checkpoint)
    assert policy.config.chunk_size == 12
    assert policy.action_space.relative_mask == (True,) * 6 + (False,), "the gripper stays absolute"
    expected = statistics_from_dataset(
        other_robot.meta, representation="relative", relative_mask=policy.action_space.relative_mask, chunk_size=12
    )
    mean = torch.from_numpy(expected.action.mean).float()
    torch.testing.assert_close(policy.action_space.action_mean[:7], mean)

    start = log.index(f"Starting from {checkpoint}:")
    story = "\n".join(log[start : start + 5])
    for part in (
        "tensors kept; re-initialised: nothing",
        "statistics of the given dataset replace those of the checkpoint",
        "state 4 -> 7 dims",
        "action 4 -> 7 dims",
        "cameras head, left_wrist, right_wrist -> head=top",
        "chunk_size 10 -> 12",
        "fps 10.0 -> 30.0",
        "action_representation absolute -> relative",
        "state dims 4..6 and action dims 4..6 were padding there",
    ):
        assert part in story, story


def test_the_same_robot_keeps_the_statistics_on_request(checkpoint: Path, tmp_path: Path):
    same = tiny_dataset(tmp_path / "data", fps=10, episode_lengths=(8,), video=False)
    with told() as log:
        policy = fine_tune(checkpoint, same, tmp_path / "run", "--policy.statistics=checkpoint")
    assert inherited(policy, checkpoint)
    assert policy.action_space.action_mean[:4].tolist() == [5.0] * 4
    assert "statistics of the checkpoint are kept" in "\n".join(log)
    assert "settings: as in the checkpoint" in "\n".join(log)


def test_the_ablation_from_a_full_checkpoint_says_what_it_drops(
    checkpoint: Path, other_robot: LeRobotDataset, tmp_path: Path
):
    with told() as log:
        policy = fine_tune(checkpoint, other_robot, tmp_path / "run", "--policy.use_foresight=false")
    assert inherited(policy, checkpoint)
    dropped = [name for name in load_file(checkpoint / "model.safetensors") if "foresight" in name]
    assert f"{len(dropped)} dropped (no such part here)" in "\n".join(log)
    assert "use_foresight True -> False" in "\n".join(log)
