"""A short training that learns: two conveyors with other cameras, rates and dims, and one known from video alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import one_arm_conveyor
from contracts.mixture_rank import watched
from lerobot_internvla.envs.conveyor.recording import record_expert_episodes
from stock_commands import last_checkpoint, lerobot_eval, lerobot_train

STEPS, BATCH = 140, 8
WEIGHTS = {"conveyor": 0.5, "one_arm": 0.3, "video": 0.2}

MIXTURE = """
foresight_interval_s: 0.4
sources:
  conveyor: {root: conveyor, weight: 0.5}
  one_arm: {root: one_arm, embodiment: one_arm.yaml, weight: 0.3}
  video: {root: video, weight: 0.2, supervision: foresight, cameras: {head: head}}
"""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learning")
    for name, seed in (("conveyor", 0), ("video", 1)):
        record_expert_episodes(root / name, f"local/{name}", 3, seed, image_size=48, video=None, progress=False)
    one_arm_conveyor.record(root / "one_arm", 4, seed=2)
    (root / "one_arm.yaml").write_text(one_arm_conveyor.EMBODIMENT)
    (root / "mixture.yaml").write_text(MIXTURE)
    return root / "mixture.yaml"


@pytest.fixture(scope="module")
def trained(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """The checkpoint, and the metrics of every step."""
    output = tmp_path_factory.mktemp("trained") / "run"
    with watched() as seen:
        lerobot_train(
            *("--policy.type=internvla_a1", "--policy.variant=tiny", "--policy.device=cpu"),
            *("--policy.push_to_hub=false", "--policy.chunk_size=8", "--policy.n_action_steps=4"),
            *("--policy.num_inference_steps=3", "--policy.action_representation=relative"),
            *("--policy.optimizer_lr=1e-3", "--policy.lr_schedule=constant", "--policy.scheduler_warmup_steps=10"),
            "--policy.flow_draws=4",
            *("--dataset.repo_id=local/conveyors", f"--dataset.root={mixture}", f"--output_dir={output}"),
            *(f"--steps={STEPS}", f"--batch_size={BATCH}", f"--save_freq={STEPS}", "--log_freq=40"),
            *("--num_workers=0", "--env_eval_freq=0", "--wandb.enable=false"),
        )
    return last_checkpoint(output), seen["metrics"]


@pytest.mark.slow
def test_the_loss_falls_for_each_source_and_shares_are_realised(trained: tuple[Path, list[dict[str, float]]]):
    """Running means over the samples of a source: of the first ten steps against those of the last fifty or so."""
    early, late = trained[1][9], trained[1][-1]
    losses = [name for name in late if name.startswith(("loss_action/", "loss_foresight/"))]
    assert sorted(losses) == [
        *("loss_action/conveyor", "loss_action/one_arm"),
        *("loss_foresight/conveyor", "loss_foresight/one_arm", "loss_foresight/video"),
    ]
    fall = {name: late[name] / early[name] for name in losses}
    print({name: f"{early[name]:.4f} -> {late[name]:.4f}" for name in losses})
    assert all(ratio < (0.75 if "action" in name else 0.25) for name, ratio in fall.items()), fall
    for name, weight in WEIGHTS.items():
        assert late[f"share/{name}"] == pytest.approx(weight, abs=2 / (STEPS * BATCH))
    assert late["share_distance"] < 3 / (STEPS * BATCH)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "robot", "flags"),
    [
        ("conveyor", "conveyor", ("--env.image_size=48",)),
        ("one_arm_conveyor", "one_arm", ('--rename_map={"observation.images.above": "observation.images.head"}',)),
    ],
)
def test_both_robots_are_evaluated_from_one_checkpoint(
    trained: tuple[Path, list[dict[str, float]]],
    environment: str,
    robot: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from lerobot_internvla import InternVLAA1Policy

    actions: list[np.ndarray] = []
    stock = InternVLAA1Policy.select_action

    def seen(self: InternVLAA1Policy, batch: dict[str, Any], **kwargs: Any) -> Any:
        action = stock(self, batch, **kwargs)
        actions.append(action.numpy())
        assert self.robot == robot and self._history_ticks() == {"conveyor": 4, "one_arm": 2}[robot]
        return action

    monkeypatch.setattr(InternVLAA1Policy, "select_action", seen)
    lerobot_eval(
        f"--policy.path={trained[0]}",
        f"--policy.embodiment={robot}",
        f"--env.type={environment}",
        *("--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false"),
        f"--output_dir={tmp_path / 'eval'}",
        *flags,
    )
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 1
    width = {"conveyor": 6, "one_arm": 3}[robot]
    assert actions[0].shape == (1, width)
    # Robot units, near the scene: one belt length, half of one, and grippers between 0 and 1.
    assert np.abs(np.concatenate(actions)).max() < 3
