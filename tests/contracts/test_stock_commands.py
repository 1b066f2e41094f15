"""``lerobot-train``, ``lerobot-eval``, ``lerobot-rollout`` as a user types them, offline, on a dataset of 37 frames."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors import safe_open
from torch import Tensor

from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.testing import tiny_dataset, tiny_policy
from stock_commands import last_checkpoint, lerobot_eval, lerobot_rollout, lerobot_train, training_flags
from wandering_robot import WanderingRobot

RELATIVE = ("--policy.action_representation=relative", '--policy.absolute_joint_names=["grip"]')


@contextmanager
def training_steps() -> Iterator[list[tuple[list[int], dict[str, float]]]]:
    """Of every training step: which frames of the dataset it saw, and its metrics."""
    steps: list[tuple[list[int], dict[str, float]]] = []
    stock = InternVLAA1Policy.forward

    def spy(self: InternVLAA1Policy, batch: dict[str, Any], **kwargs: Any) -> Any:
        loss, metrics = stock(self, batch, **kwargs)
        steps.append((batch["index"].tolist(), metrics))
        return loss, metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InternVLAA1Policy, "forward", spy)
        yield steps


@pytest.fixture(scope="module")
def straight(dataset: LeRobotDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """Output of three steps with relative actions, a checkpoint after the second; and the frames of each step."""
    output = tmp_path_factory.mktemp("relative") / "run"
    with training_steps() as steps:
        lerobot_train(*training_flags(dataset.root, output, steps=3), "--save_freq=2", "--seed=7", *RELATIVE)
    return output, [frames for frames, _ in steps]


@pytest.fixture(scope="module")
def trained(straight: tuple[Path, list[list[int]]]) -> Path:
    return straight[0]


def weights(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


# ------------------------------------------------------------------------------------------------------- lerobot-train


def test_training_writes_a_whole_checkpoint(trained: Path):
    folder = last_checkpoint(trained)
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "train_config.json",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
        "text_tokenizer",
        "image_tokenizer",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["type"] == "internvla_a1"
    assert config["fps"] == 10
    assert config["action_feature_names"] == config["state_feature_names"]
    assert config["robot_type"] == "tiny", "action limits of the policy server are looked up by it"
    assert config["camera_slots"] is None
    InternVLAA1Policy.from_pretrained(folder)


def test_the_checkpoint_holds_statistics_of_relative_actions(trained: Path, dataset: LeRobotDataset):
    """Against two naive loops: every window that training uses, grippers absolute, padding left out."""
    rows = dataset.hf_dataset.with_format("numpy")
    state, action, episode = (np.stack(rows[key]) for key in ("observation.state", "action", "episode_index"))
    names = dataset.meta.features["action"]["names"]
    is_relative = np.array(["grip" not in name for name in names])
    assert is_relative.any() and not is_relative.all()
    samples = [
        action[t + k] - is_relative * state[t]
        for t in range(len(action))
        for k in range(10)
        if t + k < len(action) and episode[t + k] == episode[t]
    ]
    saved = weights(last_checkpoint(trained))
    dims = len(names)
    expected = {
        "action_mean": np.mean(samples, axis=0),
        "action_std": np.std(np.float64(samples), axis=0),
        "state_mean": state.mean(axis=0),
        "state_std": np.float64(state).std(axis=0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(saved[f"action_space.{name}"][:dims], value, rtol=1e-4, atol=1e-5)
    assert saved["action_space.action_is_relative"][:dims].tolist() == is_relative.tolist()


def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    straight: tuple[Path, list[list[int]]], tmp_path: Path
):
    """Step 3 sees the same frames, noise and times: every tensor is equal to the last bit."""
    output, steps = straight
    copy = tmp_path / "copy"
    shutil.copytree(output, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / "000003")
    config = copy / "checkpoints" / "000002" / "pretrained_model" / "train_config.json"
    earlier = weights(config.parent)
    with training_steps() as resumed:
        lerobot_train(f"--config_path={config}", "--resume=true", f"--output_dir={copy}")
    assert [frames for frames, _ in resumed] == steps[2:]
    uninterrupted, result = weights(last_checkpoint(output)), weights(last_checkpoint(copy))
    assert result.keys() == uninterrupted.keys()
    assert [name for name, tensor in result.items() if not torch.equal(tensor, uninterrupted[name])] == []
    moved = {name for name, tensor in result.items() if not torch.equal(tensor, earlier[name])}
    assert len(moved) > 100 and not [name for name in moved if name.startswith("action_space")]
    assert result["noise_seeds.num_batches_tracked"] == 3


def test_fine_tune_on_another_robot(trained: Path, tmp_path: Path):
    """Other cameras, dims and rate; the weights come from the checkpoint, the statistics from the new dataset."""
    other = tiny_dataset(
        tmp_path / "other",
        cameras={"top": (48, 64), "wrist": (40, 40)},
        joint_names=[f"joint_{i}" for i in range(6)] + ["gripper"],
        fps=30,
        episode_lengths=(14, 11),
        video=False,
    )
    lerobot_train(
        f"--policy.path={last_checkpoint(trained)}",
        "--policy.input_features=null",
        '--policy.absolute_joint_names=["gripper"]',
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/other",
        f"--dataset.root={other.root}",
        f"--output_dir={tmp_path / 'run'}",
        *("--policy.lr_schedule=constant", "--policy.optimizer_lr=0"),
        *("--steps=1", "--batch_size=2", "--num_workers=0", "--env_eval_freq=0", "--log_freq=1"),
    )
    policy = InternVLAA1Policy.from_pretrained(last_checkpoint(tmp_path / "run"))
    assert policy.camera_slots == {"head": "observation.images.top", "left_wrist": "observation.images.wrist"}
    assert policy.config.fps == 30
    assert (policy.action_space.state_dim, policy.action_space.action_dim) == (7, 7)
    assert policy.action_space.relative_mask == (True,) * 6 + (False,)
    mean = torch.tensor(other.meta.stats["observation.state"]["mean"], dtype=torch.float32)
    torch.testing.assert_close(policy.action_space.state_mean[:7], mean, rtol=1e-4, atol=1e-5)
    before = weights(last_checkpoint(trained))
    for name, tensor in policy.model.state_dict().items():  # learning rate 0: exactly the checkpoint's
        assert torch.equal(tensor, before[f"model.{name}"]), name


def test_training_goes_with_held_out_episodes_bfloat16_and_checkpointing(dataset: LeRobotDataset, tmp_path: Path):
    lerobot_train(
        *training_flags(dataset.root, tmp_path / "run", steps=2),
        "--policy.dtype=bfloat16",
        "--policy.gradient_checkpointing=true",
        "--policy.train_expert_only=true",
        "--dataset.eval_split=0.4",
        "--eval_steps=1",
    )
    saved = weights(last_checkpoint(tmp_path / "run"))
    assert all(tensor.dtype == torch.float32 for tensor in saved.values() if tensor.is_floating_point())


def test_cameras_are_renamed_with_their_masks(trained: Path, dataset: LeRobotDataset, tmp_path: Path):
    """LeRobot 0.6.1 renames a camera but not its mask; frames beyond the end of the episode must still not count."""
    names = {"head": "one", "left_wrist": "two", "right_wrist": "three"}
    joints = dataset.meta.features["action"]["names"]
    other = tiny_dataset(tmp_path / "other", cameras=list(names.values()), joint_names=joints, episode_lengths=(6,))
    rename = {f"observation.images.{theirs}": f"observation.images.{ours}" for ours, theirs in names.items()}
    with training_steps() as steps:
        lerobot_train(
            f"--policy.path={last_checkpoint(trained)}",
            "--policy.push_to_hub=false",
            f"--rename_map={json.dumps(rename)}",
            "--dataset.repo_id=local/other",
            f"--dataset.root={other.root}",
            f"--output_dir={tmp_path / 'run'}",
            *("--steps=1", "--batch_size=6", "--num_workers=0", "--env_eval_freq=0"),
        )
    # All 6 frames of the episode; 3 of them have their future inside it. 3 cameras, 48 channels, 16 x 16 cells.
    assert steps[0][1]["valid_foresight_elements"] == 3 * 3 * 48 * 16 * 16


def test_the_ablation_trains_and_is_evaluated_while_training(dataset: LeRobotDataset, tmp_path: Path):
    lerobot_train(
        *training_flags(dataset.root, tmp_path / "run", steps=1),
        "--policy.use_foresight=false",
        *("--env.type=conveyor", "--env.episode_length=4", "--env_eval_freq=1"),
        *("--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false"),
    )
    assert not [name for name in weights(last_checkpoint(tmp_path / "run")) if "foresight" in name]
    assert list((tmp_path / "run" / "eval").rglob("*.mp4"))


def test_lora_training_and_reloading(trained: Path, dataset: LeRobotDataset, tmp_path: Path):
    """``--peft.*`` on a checkpoint, resumed once, then loaded as lerobot-eval does."""
    pytest.importorskip("peft")
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import make_policy

    lerobot_train(
        f"--policy.path={last_checkpoint(trained)}",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={dataset.root}",
        f"--output_dir={tmp_path / 'run'}",
        *("--peft.method_type=LORA", "--peft.r=2"),
        *("--steps=1", "--batch_size=2", "--num_workers=0", "--env_eval_freq=0", "--log_freq=1"),
    )
    folder = last_checkpoint(tmp_path / "run")
    assert not (folder / "model.safetensors").exists()
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = make_policy(config, ds_meta=dataset.meta)
    saved = weights(last_checkpoint(trained))
    for name in ("action_mean", "action_std", "action_is_relative"):
        assert torch.equal(getattr(policy.action_space, name), saved[f"action_space.{name}"])


# ---------------------------------------------------------------------------------------- scripted worlds and plans


def plan(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let the model "sample" known normalised actions, as in tests/test_modeling.py."""
    chunks: list[Tensor] = []

    def sample(self: InternVLAA1, prefill: Any, noise: Tensor, num_steps: int) -> Tensor:
        chunk = 0.3 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(len(chunks)))
        chunks.append(chunk)
        return chunk

    monkeypatch.setattr(InternVLAA1, "sample_actions", sample)
    return chunks


def absolute_targets(folder: Path, chunks: list[Tensor], states: list[np.ndarray]) -> np.ndarray:
    """[T, B, A], worked out by hand: un-normalise, add the state at the start of each chunk of 5 to relative dims."""
    saved = {name.removeprefix("action_space."): t for name, t in weights(folder).items() if "action_space" in name}
    dims = states[0].shape[-1]
    mean, std = saved["action_mean"][:dims], saved["action_std"][:dims]
    targets = []
    for tick in range(len(states)):
        anchor = torch.tensor(states[tick - tick % 5]) * saved["action_is_relative"][:dims]
        targets.append(chunks[tick // 5][:, tick % 5, :dims] * (std + 1e-6) + mean + anchor)
    return torch.stack(targets).numpy()


# -------------------------------------------------------------------------------------------------------- lerobot-eval


class Wandering(gym.Wrapper):
    """The conveyor, whose arms are then pushed about: the state at the start of a chunk is not that of later ticks."""

    seen: list[np.ndarray] = []
    done: list[np.ndarray] = []

    def _observe(self, observation: dict[str, Any]) -> dict[str, Any]:
        size = observation["agent_pos"].shape
        state = np.random.default_rng(len(self.seen)).normal(size=size).astype(np.float32)
        self.seen.append(state)
        return {**observation, "agent_pos": state}

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._observe(observation), info

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        self.done.append(action.copy())
        observation, reward, _, truncated, info = self.env.step(action)
        return self._observe(observation), reward, False, truncated, info


@pytest.fixture
def wandering(monkeypatch: pytest.MonkeyPatch) -> type[Wandering]:
    from lerobot_internvla.envs.conveyor import gym_env

    spec = gym.registry["lerobot_internvla/Conveyor-v0"]
    monkeypatch.setattr(spec, "entry_point", lambda **kwargs: Wandering(gym_env.ConveyorEnv(**kwargs)))
    Wandering.seen, Wandering.done = [], []
    return Wandering


def test_eval_executes_exact_absolute_targets_of_relative_actions(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandering: type[Wandering]
):
    """n_action_steps = 5 while the state moves on every tick; stock relative steps get this wrong without a word."""
    chunks = plan(monkeypatch)
    lerobot_eval(
        f"--policy.path={last_checkpoint(trained)}",
        "--env.type=conveyor",
        "--env.episode_length=12",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
        "--policy.n_action_steps=5",
        "--policy.save_predicted_video=true",
        f"--output_dir={tmp_path / 'eval'}",
    )
    assert len(wandering.done) == 12 and len(chunks) == 3
    expected = absolute_targets(last_checkpoint(trained), chunks, [s[None] for s in wandering.seen[:12]])[:, 0]
    np.testing.assert_allclose(np.stack(wandering.done), expected, rtol=1e-5, atol=1e-5)
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert len(info["overall"]["video_paths"]) == 1
    assert len(info["overall"]["predicted_video_paths"]) == 1
    assert all(Path(path).stat().st_size > 0 for path in info["overall"]["predicted_video_paths"])


def test_eval_runs_a_policy_that_was_saved_from_a_notebook(tmp_path: Path):
    """``policy.save_pretrained`` alone; processors that somebody wrote there before are left as they are."""
    names = BACKENDS["conveyor"].action_names
    policy = tiny_policy(state_dim=len(names), action_dim=len(names))
    policy.save_pretrained(tmp_path / "policy")
    lerobot_eval(
        f"--policy.path={tmp_path / 'policy'}",
        *("--env.type=conveyor", "--env.episode_length=2", f"--output_dir={tmp_path / 'eval'}"),
        *("--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false"),
    )
    (tmp_path / "policy" / "policy_preprocessor.json").write_text("somebody's own")
    policy.save_pretrained(tmp_path / "policy")
    assert (tmp_path / "policy" / "policy_preprocessor.json").read_text() == "somebody's own"


def test_eval_in_two_environments_at_once(trained: Path, tmp_path: Path):
    lerobot_eval(
        f"--policy.path={last_checkpoint(trained)}",
        "--env.type=conveyor",
        "--env.episode_length=6",
        "--eval.n_episodes=3",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'eval'}",
    )
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 3


def test_parallel_tasks_on_one_policy_fail_loudly(trained: Path):
    """Threads that share a policy would share its queue and history: an error instead of a wrong success rate."""
    from lerobot.envs import make_env
    from lerobot.policies import make_pre_post_processors
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.scripts.lerobot_eval import eval_policy_all

    from lerobot_internvla.envs import ConveyorEnvConfig

    policy = InternVLAA1Policy.from_pretrained(last_checkpoint(trained))
    pre, post = make_pre_post_processors(policy.config, pretrained_path=str(last_checkpoint(trained)))
    environments = {
        "conveyor": {i: make_env(ConveyorEnvConfig(episode_length=40), n_envs=1)["conveyor"][0] for i in range(2)}
    }
    with pytest.raises(InternVLAError, match="max_parallel_tasks=1"):
        eval_policy_all(
            environments,
            policy,
            PolicyProcessorPipeline(steps=[]),
            PolicyProcessorPipeline(steps=[]),
            pre,
            post,
            n_episodes=1,
            max_parallel_tasks=2,
        )


# ------------------------------------------------------------------------------------------------------ lerobot-rollout


@pytest.fixture(scope="module")
def robot_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A policy trained on a robot whose joints are called as LeRobot's robots call them."""
    root = tmp_path_factory.mktemp("robot")
    joints = ["shoulder.pos", "elbow.pos", "grip.pos"]
    data = tiny_dataset(root / "data", joint_names=joints, fps=10, episode_lengths=(13, 12), video=False)
    lerobot_train(*training_flags(data.root, root / "run", steps=1), *RELATIVE)
    return root / "run", joints


def test_rollout_sends_exact_absolute_targets_of_relative_actions(
    robot_run: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
):
    """``--inference.type=sync``; with LeRobot's own relative steps the command refuses to start."""
    output, joints = robot_run
    chunks = plan(monkeypatch)
    WanderingRobot.seen.clear(), WanderingRobot.sent.clear()
    lerobot_rollout(
        f"--policy.path={last_checkpoint(output)}",
        "--robot.type=wandering",
        f"--robot.joints={json.dumps(joints)}",
        "--inference.type=sync",
        "--strategy.type=base",
        "--task=move the square to the left",
        "--fps=10",
        "--duration=1.6",
        "--device=cpu",
    )
    sent = [(action.pop("observations"), action) for action in WanderingRobot.sent]
    ticks = [(after, action) for after, action in sent if after > 1][:12]
    assert len(ticks) >= 8 and len(chunks) >= 2
    states = [WanderingRobot.seen[after - 1][None] for after, _ in ticks]
    expected = absolute_targets(last_checkpoint(output), chunks, states)[:, 0]
    taken = np.array([[action[joint] for joint in joints] for _, action in ticks])
    np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-5)
