"""A training run that is killed again and again; run by test_interrupted_training.py in a process of its own.

The process imports once and forks: each child resumes from ``checkpoints/last`` as ``lerobot-train --resume`` does,
takes steps and saves after every one with LeRobot's own functions, until SIGKILL arrives at a random moment. The parent
looks at what is left after every kill. Frames, noise and times of a step depend on the step alone, so there is exactly
one right answer per step: that of a run which nobody disturbed.

Prints one JSON object.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lerobot.common.train_utils import (
    get_step_checkpoint_dir,
    load_training_state,
    save_checkpoint,
    update_last_checkpoint,
)
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies import make_pre_post_processors

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.checkpoints.whole_folder import whole_steps
from lerobot_internvla.testing import tiny_batch, tiny_config, tiny_policy

STEPS = 10**6


def digest(policy: InternVLAA1Policy, optimizer: torch.optim.Optimizer) -> str:
    """Of every tensor of policy and optimizer."""
    sha = hashlib.sha256()
    tensors = {**policy.state_dict()}
    state = optimizer.state_dict()["state"]
    tensors |= {f"{key}/{name}": value for key, entry in state.items() for name, value in entry.items()}
    for name in sorted(tensors):
        sha.update(
            name.encode() + torch.as_tensor(tensors[name]).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return sha.hexdigest()


class Run:
    """Policy, optimizer and schedule; new, or from a step's folder."""

    def __init__(self, folder: Path | None) -> None:
        torch.manual_seed(1)
        if folder is None:
            self.policy = tiny_policy(tiny_config(cameras=["top"]))
        else:
            self.policy = InternVLAA1Policy.from_pretrained(folder / "pretrained_model")
        self.policy.train()
        config = self.policy.config
        self.optimizer = config.get_optimizer_preset().build(self.policy.get_optim_params())
        self.scheduler = config.get_scheduler_preset().build(self.optimizer, 100)
        self.processors = make_pre_post_processors(config)
        self.step = 0
        if folder is not None:
            self.step, _, _ = load_training_state(folder, self.optimizer, self.scheduler)

    def advance(self) -> None:
        self.step += 1
        loss, _ = self.policy.forward(tiny_batch(self.policy.config, seed=self.step))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def save(self, output: Path, config: TrainPipelineConfig) -> None:
        folder = get_step_checkpoint_dir(output, STEPS, self.step)
        pre, post = self.processors
        save_checkpoint(folder, self.step, config, self.policy, self.optimizer, self.scheduler, pre, post)
        output.mkdir(parents=True, exist_ok=True)
        with (output / "recorded").open("a") as file:  # complete; the link has not been moved yet
            file.write(f"{self.step} {digest(self.policy, self.optimizer)}\n")
        update_last_checkpoint(folder)


def train_until_killed(output: Path) -> None:
    last = output / "checkpoints" / "last"
    if not last.exists() and (steps := whole_steps(last.parent)):
        last = last.parent / steps[-1]  # killed between removing the link and making the new one
    run = Run(last if last.exists() else None)
    config = TrainPipelineConfig(dataset=DatasetConfig(repo_id="local/none"), policy=run.policy.config)
    (output / "started").touch()
    while True:
        run.advance()
        run.save(output, config)


def recorded(output: Path) -> dict[int, str]:
    lines = (output / "recorded").read_text().splitlines() if (output / "recorded").exists() else []
    return {int(step): sha for step, sha in (line.split() for line in lines)}


def kill_once(output: Path, delay_s: float) -> None:
    (output / "started").unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        train_until_killed(output)
        os._exit(1)
    while not (output / "started").exists():
        if os.waitpid(child, os.WNOHANG)[0]:
            raise SystemExit("the training run ended by itself")
        time.sleep(0.001)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main() -> None:
    output, kills = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    moments = random.Random(int(sys.argv[3]))
    rehearsal, started = Run(None), time.perf_counter()
    config = TrainPipelineConfig(dataset=DatasetConfig(repo_id="local/none"), policy=rehearsal.policy.config)
    for _ in range(2):
        rehearsal.advance()
        rehearsal.save(output / "rehearsal", config)
    lifetime = 2 * (time.perf_counter() - started)  # about four steps of a machine as busy as this one
    report: dict[str, Any] = {"kills": 0, "missing_link": 0, "half_written": 0, "wrong": [], "steps": []}
    for _ in range(kills):
        kill_once(output, moments.uniform(0.0, lifetime))
        report["kills"] += 1
        complete, last = recorded(output), output / "checkpoints" / "last"
        steps = [path for path in (output / "checkpoints").iterdir() if path.name != "last"] if complete else []
        report["half_written"] += sum(path.name not in whole_steps(last.parent) for path in steps)
        if not last.exists():
            report["missing_link"] += bool(complete)
            continue
        run = Run(last)  # strictly, optimizer included
        report["steps"].append(run.step)
        if complete.get(run.step) != digest(run.policy, run.optimizer):
            report["wrong"].append(f"step {run.step} after kill {report['kills']} is not what was recorded")
        if run.step < max(complete, default=0) - 1:
            report["wrong"].append(f"last is step {run.step}, but {max(complete)} was complete")
    uninterrupted, complete = Run(None), recorded(output)
    for step in range(1, max(complete) + 1):
        uninterrupted.advance()
        if step in complete and complete[step] != digest(uninterrupted.policy, uninterrupted.optimizer):
            report["wrong"].append(f"step {step} differs from an uninterrupted run")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
