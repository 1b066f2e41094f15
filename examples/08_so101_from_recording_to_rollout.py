"""08: an SO-101 from the first recording to the policy that moves it, with three stock LeRobot commands.

Prints the commands for your arm (ports, ids, cameras and task are flags), then runs the same three, record, train and
roll out, on the simulated conveyor robot with the tiny policy, so that you have seen them before a motor moves. Four
training steps teach nothing: the simulated arms wave at the parcel. ``--simulate=no`` only prints.

Run:    python examples/08_so101_from_recording_to_rollout.py
        python examples/08_so101_from_recording_to_rollout.py --follower=/dev/ttyACM1 --task="Put the pen into the cup"
Takes:  about a minute of one CPU core, half of it the imports of three programs. No network, nothing is uploaded.
Prints (numbers vary):

    $ lerobot-record --robot.type=so101_follower --robot.port=/dev/ttyACM1 --robot.id=my_follower
    $ lerobot-train --config_path=configs/posttrain/3b_lora_24gb.yaml
    $ internvla-check --policy.path=outputs/so101/checkpoints/last/pretrained_model
    $ lerobot-rollout --policy.path=outputs/so101/checkpoints/last/pretrained_model
    simulated: recorded 2 episodes, 45 frames of a 'conveyor'
    simulated: trained 4 steps
    simulated: 3 s of lerobot-rollout, ended without an error

Before the first command:
- Motors and calibration, once per arm: `lerobot-setup-motors`, then `lerobot-calibrate`, follower and leader, with the
  type, port and id of below. The id names the calibration file: another id is an uncalibrated arm.
  `lerobot-find-port` finds ports. Steps with pictures: LeRobot's documentation of the SO-101.
- Cameras: one that sees the whole workspace, on a stand fixed to the table; one on the wrist that sees both fingertips
  and what is between. Call them head and left_wrist (a single arm's wrist is the left one). `lerobot-find-cameras`
  finds their numbers. Fix focus, exposure and white balance: the policy compares pictures half a second apart. Do not
  move a camera between recording and rollout.
- Record moving objects at every speed at which they shall be picked, and at every place. Relative actions (what the
  preset trains) need leader and follower in one unit: degrees, LeRobot 0.6.1's default for both.
- On the robot, commands are kept within the range and speed of an SO arm's joints; for tighter ones, of your table,
  write a file and add --policy.embodiment=<file>.yaml (docs/robots.md, "Action limits").
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

CAMERA = "{{type: opencv, index_or_path: {}, width: 640, height: 480, fps: 30}}"
RECORD = """lerobot-record {robot} --teleop.type=so101_leader --teleop.port={leader} --teleop.id={leader_id}
    --dataset.repo_id={repo_id} --dataset.single_task={task} --dataset.fps=30 --dataset.num_episodes=50
    --dataset.episode_time_s=30 --dataset.reset_time_s=10 --dataset.streaming_encoding=true
    --dataset.push_to_hub=false"""
# The preset: docs/memory.md says what fits which GPU. fps and seconds: half a second of past at any rate.
TRAIN = """lerobot-train --config_path=configs/posttrain/3b_lora_24gb.yaml --policy.pretrained_path={base}
    --policy.fps=30 --policy.foresight_interval_s=0.5 --policy.push_to_hub=false --dataset.repo_id={repo_id}
    --output_dir=outputs/so101"""
CHECK = "internvla-check --policy.path=outputs/so101/checkpoints/last/pretrained_model {robot} --fps=30"
ROLLOUT = """lerobot-rollout --policy.path=outputs/so101/checkpoints/last/pretrained_model {robot}
    --robot.max_relative_target=10.0 --task={task} --fps=30 --duration=60"""

SIMULATED_TASK = "red parcel, left arm to left bin"
SIMULATED = {
    "record": """lerobot-record --robot.type=conveyor --teleop.type=conveyor_expert --dataset.repo_id=local/parcels
    --dataset.root=data --dataset.single_task={task} --dataset.fps=10 --dataset.num_episodes=2 --dataset.reset_time_s=0
    --dataset.streaming_encoding=true --dataset.rgb_encoder.vcodec=h264 --dataset.push_to_hub=false
    --play_sounds=false""",
    "train": """lerobot-train --policy.type=internvla_a1 --policy.variant=tiny --policy.device=cpu
    --policy.push_to_hub=false --policy.fps=10 --policy.foresight_interval_s=0.5 --policy.chunk_size=10
    --policy.n_action_steps=5 --policy.action_representation=relative --dataset.repo_id=local/parcels
    --dataset.root=data --output_dir=run --steps=4 --batch_size=4 --num_workers=0 --env_eval_freq=0""",
    "rollout": """lerobot-rollout --policy.path=run/checkpoints/last/pretrained_model --robot.type=conveyor
    --task={task} --fps=10 --duration=3 --device=cpu --return_to_initial_position=false""",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--follower", default="/dev/ttyACM1", help="port; lerobot-find-port finds it")
    parser.add_argument("--leader", default="/dev/ttyACM0")
    parser.add_argument("--follower-id", default="my_follower", help="as in lerobot-calibrate")
    parser.add_argument("--leader-id", default="my_leader")
    parser.add_argument("--cameras", type=int, nargs=2, default=(0, 2), help="head and wrist; lerobot-find-cameras")
    parser.add_argument("--task", default="Put the parcel into the bin")
    parser.add_argument("--repo-id", default="me/so101_parcels")
    parser.add_argument("--base", default="checkpoint", help="converted checkpoint, docs/checkpoints.md")
    parser.add_argument("--simulate", choices=("yes", "no"), default="yes")
    wanted = vars(parser.parse_args())
    head, wrist = (CAMERA.format(number) for number in wanted["cameras"])
    quoted = {name: shlex.quote(str(value)) for name, value in wanted.items()}
    robot = f"--robot.type=so101_follower --robot.port={quoted['follower']} --robot.id={quoted['follower_id']}"
    quoted["robot"] = f"{robot} --robot.cameras={shlex.quote(f'{{head: {head}, left_wrist: {wrist}}}')}"
    for command in (RECORD, TRAIN, CHECK, ROLLOUT):
        print("$", " ".join(command.format(**quoted).split()), flush=True)
    if wanted["simulate"] == "yes":
        with tempfile.TemporaryDirectory() as folder:
            simulate(Path(folder))


def simulate(folder: Path) -> None:
    run(folder, "record")
    info = json.loads((folder / "data" / "meta" / "info.json").read_text())
    episodes, frames = info["total_episodes"], info["total_frames"]
    print(f"simulated: recorded {episodes} episodes, {frames} frames of a {info['robot_type']!r}", flush=True)
    run(folder, "train")
    print(f"simulated: trained {int((folder / 'run/checkpoints/last').resolve().name)} steps", flush=True)
    run(folder, "rollout")
    print("simulated: 3 s of lerobot-rollout, ended without an error")


def run(folder: Path, name: str) -> None:
    program, *flags = shlex.split(SIMULATED[name].format(task=shlex.quote(SIMULATED_TASK)))
    print("$", shlex.join([program, *flags]), flush=True)
    words = [Path(sys.executable).parent / program, *flags]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit("\n".join((done.stdout + done.stderr).splitlines()[-20:]))


if __name__ == "__main__":
    main()
