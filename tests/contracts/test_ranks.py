"""Stock ``lerobot-train`` on two ranks: each has noise of its own, all report the same metrics, weights stay equal."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


@pytest.mark.slow
def test_two_ranks_differ_in_noise_and_agree_in_everything_else(dataset: LeRobotDataset, tmp_path: Path):
    from stock_commands import last_checkpoint, training_flags

    flags = training_flags(dataset.root, tmp_path / "run", steps=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    finished = subprocess.run(
        [*torchrun, __file__, str(tmp_path), *flags],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))

    assert len(first["noise"]) == len(second["noise"]) == 2
    for a, b in zip(first["noise"], second["noise"], strict=True):
        assert a != b
    assert first["noise"][0] != first["noise"][1]
    assert first["time"] != second["time"]
    assert first["metrics"] == second["metrics"]
    assert not {i for step in first["frames"] for i in step} & {i for step in second["frames"] for i in step}
    assert first["random_state"] == second["random_state"], "ranks must stay in step for shuffling"
    assert first["weights"] == second["weights"]
    assert (last_checkpoint(tmp_path / "run") / "model.safetensors").is_file()


def train_as_one_rank(report: Path, flags: list[str]) -> None:
    """What runs in each process: the stock command, and a look at what the policy drew and returned."""
    from lerobot_internvla import modeling_internvla_a1 as modeling
    from stock_commands import lerobot_train

    seen: dict[str, list[Any]] = {"noise": [], "time": [], "metrics": [], "frames": []}
    policies: list[modeling.InternVLAA1Policy] = []
    draw, forward = modeling.draw_noise_and_time, modeling.InternVLAA1Policy.forward

    def remember_draw(*args: Any, **kwargs: Any) -> Any:
        noise, time = draw(*args, **kwargs)
        seen["noise"].append(noise.flatten()[:8].tolist())
        seen["time"].append(time.tolist())
        return noise, time

    def remember_forward(self: modeling.InternVLAA1Policy, batch: dict[str, Any], **kwargs: Any) -> Any:
        policies[:] = [self]
        loss, metrics = forward(self, batch, **kwargs)
        seen["metrics"].append(sorted(metrics))
        seen["frames"].append(batch["index"].tolist())
        return loss, metrics

    modeling.draw_noise_and_time = remember_draw
    modeling.InternVLAA1Policy.forward = remember_forward
    lerobot_train(*flags)
    weights = [float(parameter.double().sum()) for parameter in policies[0].parameters()]
    state = torch.get_rng_state().sum().item()
    (report / f"rank{os.environ['RANK']}.json").write_text(
        json.dumps({**seen, "weights": weights, "random_state": state})
    )


if __name__ == "__main__":
    train_as_one_rank(Path(sys.argv[1]), sys.argv[2:])
