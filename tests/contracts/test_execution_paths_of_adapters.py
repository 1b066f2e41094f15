"""A LoRA adapter on a robot, in sync and under RTC: LeRobot's engines then hold PEFT's wrapper instead of the policy.

The adapter is trained on other recordings than its base, so its statistics are others, and targets show whose were
used. The world is that of test_execution_paths.py: pictures tell their tick, joints are elsewhere on every tick.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from clocked_planner import (
    EXECUTED,
    INTERVAL,
    LAYOUT,
    REPRESENTATIONS,
    RTC_FLAGS,
    Planner,
    check_guidance,
    check_targets,
    targets,
)
from clocked_runs import rollout_flags
from clocked_world import FPS, JOINTS, Diary
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_rollout, lerobot_train, training_flags

SYNC = ("--inference.type=sync",)
peft = pytest.importorskip("peft", reason="adapters need peft: the extra 'peft' of lerobot")


@pytest.fixture(scope="module", params=list(REPRESENTATIONS))
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for two steps, on another dataset than the checkpoint below it."""
    root = tmp_path_factory.mktemp("adapter")
    for seed, name in enumerate(("before", "after")):
        data = {"joint_names": JOINTS, "fps": FPS, "episode_lengths": (24, 23), "video": False, "seed": seed}
        tiny_dataset(root / name, repo_id=f"local/{name}", **data)
    flags = [*LAYOUT, *REPRESENTATIONS[request.param]]
    lerobot_train(*training_flags(root / "before", root / "base", steps=1), *flags)
    lerobot_train(
        *(f"--policy.path={last_checkpoint(root / 'base')}", "--policy.push_to_hub=false", "--policy.device=cpu"),
        *("--dataset.repo_id=local/after", f"--dataset.root={root / 'after'}", f"--output_dir={root / 'run'}"),
        *("--peft.method_type=LORA", "--peft.r=2"),
        *("--steps=2", "--batch_size=2", "--num_workers=0", "--log_freq=1", "--env_eval_freq=0"),
        "--wandb.enable=false",
    )
    folder = last_checkpoint(root / "run")
    trained = load_file(folder / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in trained.items() if "lora_B" in name), "it learned something"
    return folder


@pytest.mark.parametrize("inference", [SYNC, RTC_FLAGS], ids=["sync", "rtc"])
def test_history_targets_and_guidance(
    inference: tuple[str, ...], adapter: Path, planner: Planner, diary: Diary, monkeypatch: pytest.MonkeyPatch
):
    policies: list[Any] = []
    stock = peft.PeftModel.from_pretrained.__func__

    def watched(cls: Any, *args: Any, **kwargs: Any) -> Any:
        policies.append(stock(cls, *args, **kwargs))
        return policies[-1]

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", classmethod(watched))
    lerobot_rollout(*rollout_flags(adapter), *inference, "--strategy.type=base")

    assert len(policies) == 1, "LeRobot wraps the policy"
    chunks = planner.chunks
    assert len(chunks) >= 3 and any(chunk.now > INTERVAL + 1 for chunk in chunks)
    for chunk in chunks:
        assert chunk.past == max(chunk.now - INTERVAL, 1) and chunk.anchor == chunk.now
        check_targets(chunk, targets(adapter, chunk))
    if inference is RTC_FLAGS:
        check_guidance(chunks, lambda chunk: targets(adapter, chunk))
        planned = np.concatenate([chunk.actions for chunk in chunks])
        assert len(diary.commands) > EXECUTED
        for _, command in diary.commands:
            assert (planned == command).all(axis=1).any()
        return
    for count, (_, command) in enumerate(diary.commands):
        np.testing.assert_array_equal(command, chunks[count // EXECUTED].actions[count % EXECUTED])
