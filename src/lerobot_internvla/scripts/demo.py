"""``internvla-demo`` (``make demo``): record, train, evaluate and look at an imagined future, offline, on a laptop.

Every step is one of the commands that a user would type, printed before it runs. Steps whose result exists are skipped,
so a stopped demo continues where it was; ``--fresh`` starts over.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DATASET = "local/conveyor"
EVAL_SEED = 1000


@dataclass(frozen=True)
class Budget:
    """How much the demo does. ``steps`` decide almost all of its time."""

    episodes: int
    steps: int
    batch_size: int
    eval_episodes: int


BUDGETS = {
    "demo": Budget(episodes=300, steps=1600, batch_size=32, eval_episodes=50),
    # Enough to see that everything runs; learns nothing.
    "smoke": Budget(episodes=4, steps=4, batch_size=4, eval_episodes=2),
    # Three times the observations of "demo", from twice the episodes. See benchmarks/results/.
    "long": Budget(episodes=600, steps=5000, batch_size=32, eval_episodes=200),
}

# The demo has minutes: short chunks, small batches, two draws of noise and time per observation, one deterministic
# answer. Frames are 5 ticks (0.5 s at 10 Hz) apart. Unscaled Haar latents give small errors, so their loss weighs more.
# Relative actions: the wrist cameras see the way from gripper to parcel as it is.
POLICY_FLAGS = (
    "--policy.type=internvla_a1",
    "--policy.variant=tiny",
    "--policy.device=cpu",
    "--policy.push_to_hub=false",
    "--policy.chunk_size=6",
    "--policy.n_action_steps=3",
    "--policy.foresight_interval=5",
    "--policy.action_representation=relative",
    "--policy.flow_draws=2",
    "--policy.lambda_gen=1.0",
    "--policy.noise_scale=0.0",
    "--policy.cache_frames_gb=2",
    "--policy.optimizer_lr=1e-3",
    "--policy.scheduler_decay_lr=1e-5",
    "--policy.scheduler_warmup_steps=100",
)


class StepFailed(RuntimeError):
    """A command of the demo exited with an error; the message names it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="internvla-demo", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--budget", choices=BUDGETS, default="demo", help="11 or about 40 minutes on 2 cores")
    parser.add_argument("--fresh", action="store_true", help="delete output_dir first")
    arguments = parser.parse_args()
    root: Path = arguments.output_dir
    if arguments.fresh and root.exists():
        shutil.rmtree(root)
    try:
        _run_demo(root, BUDGETS[arguments.budget])
    except StepFailed as error:
        print(f"\ninternvla-demo: {error}", file=sys.stderr)
        return 1
    return 0


def _run_demo(root: Path, budget: Budget) -> None:
    started = time.monotonic()
    dataset, training, foresight = root / "dataset", root / "training", root / "foresight"
    root.mkdir(parents=True, exist_ok=True)

    _step(
        "Record expert episodes (LeRobotDataset v3, H.264 video)",
        ["internvla-conveyor", "record", f"--root={dataset}", f"--repo_id={DATASET}", f"--episodes={budget.episodes}"],
        done=(dataset / "meta" / "info.json").is_file(),
        partial=dataset,
    )
    checkpoint = training / "checkpoints" / f"{budget.steps:06d}" / "pretrained_model"
    _step(
        "Train the tiny InternVLA-A1 with stock lerobot-train",
        [
            "lerobot-train",
            *POLICY_FLAGS,
            f"--policy.scheduler_decay_steps={budget.steps}",
            f"--dataset.repo_id={DATASET}",
            f"--dataset.root={dataset}",
            "--dataset.use_imagenet_stats=false",
            f"--batch_size={budget.batch_size}",
            f"--steps={budget.steps}",
            f"--save_freq={budget.steps}",
            f"--log_freq={max(1, min(100, budget.steps // 4))}",
            "--env_eval_freq=0",
            "--num_workers=1",
            "--seed=1",
            f"--output_dir={training}",
        ],
        done=(checkpoint / "model.safetensors").is_file(),
        partial=training,
    )
    scores: list[tuple[str, Any]] = []
    for name, label in (("expert", "scripted expert"), ("idle", "do nothing")):
        file = root / f"{name}.json"
        command = ["internvla-conveyor", "evaluate", f"--policy={name}", f"--episodes={budget.eval_episodes}"]
        command += [f"--seed={EVAL_SEED}", f"--json={file}"]
        _step(f"Evaluate: {label}", command, done=file.is_file())
        overall = json.loads(file.read_text())["overall"]
        scores.append((label, (overall["successes"], overall["episodes"])))
    for name, label, extra in (
        ("eval", "trained policy", []),
        ("eval_other_frames", "trained policy, frames of another episode", ["--env.camera_feed=other_episode"]),
    ):
        out = root / name
        command = [
            "lerobot-eval",
            f"--policy.path={checkpoint}",
            "--policy.device=cpu",
            "--env.type=conveyor",
            *extra,
            f"--eval.n_episodes={budget.eval_episodes}",
            f"--eval.batch_size={min(25, budget.eval_episodes)}",
            "--eval.use_async_envs=false",
            f"--seed={EVAL_SEED}",
            f"--output_dir={out}",
        ]
        _step(f"Evaluate: {label} (stock lerobot-eval)", command, done=(out / "eval_info.json").is_file(), partial=out)
        scores.append((label, _eval_score(out / "eval_info.json")))
    _step(
        "Look at the imagined future",
        [
            "internvla-foresight",
            f"--policy.path={checkpoint}",
            f"--dataset.repo_id={DATASET}",
            f"--dataset.root={dataset}",
            f"--output_dir={foresight}",
            "--device=cpu",
        ],
        done=(foresight / "summary.json").is_file(),
        partial=foresight,
    )
    _report(root, budget, scores, time.monotonic() - started)


def _step(title: str, command: list[str], *, done: bool, partial: Path | None = None) -> None:
    """Print and run one command; ``partial`` is removed first, because LeRobot refuses folders that exist."""
    print(f"\n=== {title}\n$ {shlex.join(command)}", flush=True)
    if done:
        print("(done before; --fresh starts over)", flush=True)
        return
    if partial is not None and partial.exists():
        shutil.rmtree(partial)
    program = Path(sys.executable).parent / command[0]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    begun = time.monotonic()
    result = subprocess.run([str(program), *command[1:]], env=environment, check=False)
    if result.returncode != 0:
        raise StepFailed(
            f"the step {title!r} failed (exit {result.returncode}); its messages are above. Run the printed command by "
            "itself to look closer, or start over with --fresh."
        )
    print(f"({time.monotonic() - begun:.0f} s)", flush=True)


def _eval_score(file: Path) -> tuple[int, int]:
    """Successes and episodes of a stock ``lerobot-eval``."""
    overall = json.loads(file.read_text())["overall"]
    episodes = int(overall["n_episodes"])
    return round(overall["pc_success"] / 100 * episodes), episodes


def _report(root: Path, budget: Budget, scores: list[tuple[str, tuple[int, int]]], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Conveyor, belt speeds as in training, episodes of seed {EVAL_SEED}")
    table.add_column("policy")
    table.add_column("success", justify="right")
    table.add_column("episodes", justify="right")
    for label, (successes, episodes) in scores:
        table.add_row(label, f"{100 * successes / episodes:.0f} %", f"{successes} of {episodes}")
    console = Console(width=100)
    console.print()
    console.print(table)
    (root / "scores.json").write_text(
        json.dumps({"budget": asdict(budget), "scores": [[label, *score] for label, score in scores]}, indent=2)
    )
    pictures = sorted(p for p in root.rglob("*") if p.suffix in (".png", ".mp4") and "dataset" not in p.parts)
    print("Pictures and videos:")
    for path in [p for p in pictures if p.suffix == ".png"][:6] + [p for p in pictures if p.suffix == ".mp4"][:6]:
        print(f"  {path}")
    print(
        f"Took {seconds / 60:.1f} minutes. For a better policy: internvla-demo --budget=long --output_dir=outputs/long"
    )


if __name__ == "__main__":
    raise SystemExit(main())
