"""11: what the robot imagines, while it acts.

Prints the commands for a robot: LeRobot's own viewer (rerun) shows the imagined future beside each camera, with its
age; when the age reaches half a second, picture and camera should look alike. Then, since not every computer has a
screen, a policy plays one episode of the simulated conveyor under stock `lerobot-eval`, which films the scene and what
was imagined at every step, in two videos of equal length. The policy is untrained and imagines noise; give it yours.

Run:    python examples/11_live_foresight.py
        python examples/11_live_foresight.py <checkpoint> conveyor
Takes:  about half a minute of one CPU core. No network, no screen.
Prints (numbers vary):

    on the robot, with a screen:
    pip install "lerobot[viz]"
    lerobot-rollout --policy.path=<checkpoint> --robot.type=so101_follower
    $ lerobot-eval
    the scene: live_foresight/videos/conveyor_0/eval_episode_0.mp4
    imagined: live_foresight/videos/conveyor_0/pred_episode_0.mp4

Next: panels with PSNR on a dataset (03, docs/foresight.md); the cost of the live view (docs/evaluation.md).
"""

import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.testing import tiny_policy

ON_THE_ROBOT = """\
on the robot, with a screen:
    pip install "lerobot[viz]"
    lerobot-rollout --policy.path=<checkpoint> --robot.type=so101_follower --robot.port=<port> --task="<task>" \\
        --display_data=true --policy.live_foresight=true
over the network: start `rerun` on your desk, and add --display_ip=<its address> --display_port=9876
"""


def main() -> None:
    print(ON_THE_ROBOT)
    with TemporaryDirectory() as folder:
        checkpoint, env = sys.argv[1:3] if len(sys.argv) > 2 else (untrained(Path(folder)), "conveyor")
        evaluate(str(checkpoint), env)
    for what, pattern in (("the scene:", "eval_*.mp4"), ("imagined:", "pred_*.mp4")):
        for video in sorted(Path("live_foresight", "videos", f"{env}_0").glob(pattern)):
            print(what, video)


def untrained(folder: Path) -> Path:
    """A policy for the 2-D conveyor with random weights."""
    joints = len(BACKENDS["conveyor"].action_names)
    tiny_policy(state_dim=joints, action_dim=joints, foresight_interval=5).save_pretrained(folder / "policy")
    return folder / "policy"


def evaluate(checkpoint: str, env: str) -> None:
    command = f"""lerobot-eval --policy.path={checkpoint} --policy.device=cpu --policy.save_predicted_video=true
        --env.type={env} --env.episode_length=40 --eval.n_episodes=1 --eval.batch_size=1 --eval.use_async_envs=false
        --output_dir=live_foresight"""
    words = shlex.split(command)
    print("$", shlex.join(words), flush=True)
    done = subprocess.run([Path(sys.executable).parent / words[0], *words[1:]], capture_output=True, text=True)
    if done.returncode:
        sys.exit("\n".join((done.stdout + done.stderr).splitlines()[-20:]))


if __name__ == "__main__":
    main()
