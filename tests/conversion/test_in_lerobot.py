"""Converted checkpoints, 3B and 2B, under LeRobot's own commands: evaluated, trained on, exported again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from safetensors.torch import load_file

import two_arms_env
from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.conversion.reference_layout import read_reference
from lerobot_internvla.scripts.convert import main
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_eval, lerobot_train
from two_arms_env import TwoArms

SLOTS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
RENAME = {
    f"observation.images.{theirs}": f"observation.images.{ours}"
    for theirs, ours in zip(two_arms_env.CAMERAS, SLOTS, strict=True)
}
JOINT_NAMES = [
    f"{side}_{joint}" for side in ("left", "right") for joint in (*(f"joint_{i}" for i in range(6)), "gripper")
]


def test_lerobot_eval_runs_it(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the robot is told is what the policy says to the same observations, loaded and asked by hand."""
    monkeypatch.setattr(TwoArms, "seen", [])
    monkeypatch.setattr(TwoArms, "done", [])
    lerobot_eval(
        f"--policy.path={converted}",
        "--env.type=two_arms",
        f"--rename_map={json.dumps(RENAME)}",
        *("--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false"),
        *("--policy.n_action_steps=3", "--policy.num_inference_steps=2", "--policy.noise_scale=0"),
        f"--output_dir={tmp_path / 'eval'}",
    )
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 1
    assert len(TwoArms.done) == two_arms_env.STEPS

    settings = ["--n_action_steps=3", "--num_inference_steps=2", "--noise_scale=0"]
    config = PreTrainedConfig.from_pretrained(converted, cli_overrides=settings)
    policy = InternVLAA1Policy.from_pretrained(converted, config=config)  # pyright: ignore[reportArgumentType]
    by_hand: list[np.ndarray] = []
    for observation in TwoArms.seen[: two_arms_env.STEPS]:
        pictures = {
            RENAME[f"observation.images.{name}"]: torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
            for name, picture in observation["pixels"].items()
        }
        state = torch.from_numpy(observation["agent_pos"])[None]
        action = policy.select_action({**pictures, "observation.state": state, "task": [two_arms_env.INSTRUCTION]})
        by_hand.append(action[0].numpy())
    np.testing.assert_allclose(np.stack(TwoArms.done), np.stack(by_hand), rtol=1e-5, atol=1e-5)


def test_lerobot_train_goes_on_from_it_and_the_result_is_exported(converted: Path, tmp_path: Path):
    """One step with the robot's own dataset; the way back to the reference's layout is open for what was trained."""
    dataset = tiny_dataset(
        tmp_path / "data", cameras=dict.fromkeys(SLOTS, (48, 64)), joint_names=JOINT_NAMES, fps=30,
        episode_lengths=(90,), video=False,
    )  # fmt: skip
    lerobot_train(
        f"--policy.path={converted}",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={dataset.root}",
        f"--output_dir={tmp_path / 'run'}",
        *("--policy.lr_schedule=constant", "--policy.optimizer_lr=1e-3", "--policy.scheduler_warmup_steps=0"),
        *("--steps=1", "--batch_size=2", "--num_workers=0", "--env_eval_freq=0", "--log_freq=1"),
    )
    trained = last_checkpoint(tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (converted, trained))
    assert after.keys() == before.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor.float(), before[name].float())}
    assert any("experts.foresight" in name for name in moved)
    assert any("experts.understanding" in name for name in moved)
    assert any("action_head" in name for name in moved)
    state = torch.tensor(dataset.meta.stats["observation.state"]["mean"], dtype=torch.float32)
    torch.testing.assert_close(after["action_space.state_mean"][:14], state, rtol=1e-4, atol=1e-5)
    assert torch.equal(after["action_space.action_is_relative"], before["action_space.action_is_relative"])

    assert main([str(trained), str(tmp_path / "back"), "--export-reference", "--embodiment", "aloha"]) == 0
    back = read_reference(tmp_path / "back").policy_state
    assert all(torch.equal(tensor, after[f"model.{name}"]) for name, tensor in back.items())
