"""07: two robots and a video in one training, and one checkpoint that drives both robots.

Records three small datasets: the 2-D conveyor (two point grippers, 6 dims, 10 Hz), the MuJoCo conveyor (two 6-joint
arms, 14 dims, 20 Hz) and a video without actions. A mixture file gives each its share; `internvla-mixture show` says
what two ranks would read; stock `lerobot-train` reads it; stock `lerobot-eval` drives each robot from the same
checkpoint.

Needs:  pip install "lerobot_policy_internvla_a1[mujoco]"
Run:    python examples/07_mixture.py
        python examples/07_mixture.py --episodes=300 --steps=3000 --trials=50      to see both robots work
Takes:  a minute or two of one CPU core, in which nothing is learnt; the second about an hour of two. No network.
Prints (numbers vary):

    $ internvla-conveyor record --episodes=2 --root=planar --image_size=64
    $ internvla-mixture show mixture.yaml --world-size=2 --output=report
    $ lerobot-train --policy.type=internvla_a1
    last in the log: loss_action/planar 1.02 loss_action/arms 1.11
    conveyor: 0 of 1 episodes
    conveyor_mujoco: 0 of 1 episodes

Next: your own datasets (docs/mixtures.md), your own robot (06, docs/embodiments.md).
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

MIXTURE = """\
foresight_interval_s: 0.5
sources:
  planar: {root: planar, embodiment: conveyor, weight: 0.45}
  arms: {root: arms, embodiment: conveyor_mujoco, weight: 0.45}
  video: {root: video, embodiment: human_video, supervision: foresight, cameras: {head: head}, weight: 0.1}
"""
POLICY = """--policy.type=internvla_a1 --policy.variant=tiny --policy.device=cpu --policy.push_to_hub=false
    --policy.chunk_size=6 --policy.n_action_steps=3 --policy.action_representation=relative --policy.flow_draws=2
    --policy.lambda_gen=1.0 --policy.noise_scale=0.0 --policy.cache_frames_gb=2 --policy.optimizer_lr=1e-3
    --policy.scheduler_decay_lr=1e-5 --policy.scheduler_warmup_steps=100"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("two_robots"), help="folder to create")
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--trials", type=int, default=1, help="evaluation episodes per robot")
    wanted = parser.parse_args()
    folder = wanted.output
    folder.mkdir(parents=True)
    (folder / "mixture.yaml").write_text(MIXTURE)

    record = f"internvla-conveyor record --episodes={wanted.episodes}"
    run(folder, f"{record} --root=planar --image_size=64")
    run(folder, f"{record} --root=arms --image_size=64 --env=conveyor_mujoco")
    run(folder, f"{record} --root=video --image_size=48 --task=fast --seed=5000")
    run(folder, "internvla-mixture show mixture.yaml --world-size=2 --output=report")
    log = run(
        folder,
        f"""lerobot-train {POLICY} --policy.scheduler_decay_steps={wanted.steps} --dataset.repo_id=two_robots
        --dataset.root=mixture.yaml --batch_size={min(32, 4 * wanted.steps)} --steps={wanted.steps}
        --save_freq={wanted.steps} --log_freq={max(1, wanted.steps // 10)} --env_eval_freq=0 --num_workers=1
        --seed=1 --output_dir=train""",
    )
    last = [line for line in log.splitlines() if "share_distance:" in line][-1]
    shown = re.findall(r"((?:loss_action|loss_foresight|share)/\w+):(\S+)", last)
    print("last in the log: " + " ".join(f"{name} {float(value):.2f}" for name, value in shown))
    for robot, size in (("conveyor", 64), ("conveyor_mujoco", 64)):
        run(
            folder,
            f"""lerobot-eval --policy.path=train/checkpoints/last/pretrained_model --policy.device=cpu
            --policy.embodiment={robot} --env.type={robot} --env.image_size={size} --eval.n_episodes={wanted.trials}
            --eval.batch_size={min(10, wanted.trials)} --eval.use_async_envs=false --seed=1000
            --output_dir=eval_{robot}""",
        )
        overall = json.loads((folder / f"eval_{robot}" / "eval_info.json").read_text())["overall"]
        successes = round(overall["pc_success"] / 100 * wanted.trials)
        print(f"{robot}: {successes} of {wanted.trials} episodes")


def run(folder: Path, command: str) -> str:
    """Print and run a command of this environment in ``folder``; its output, or an end with its last lines."""
    words = shlex.split(command)
    print("$", shlex.join(words), flush=True)
    program = Path(sys.executable).parent / words[0]
    done = subprocess.run([program, *words[1:]], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit("\n".join((done.stdout + done.stderr).splitlines()[-20:]))
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
