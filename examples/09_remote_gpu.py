"""09: the robot must not wait for the policy: real-time chunking, and a GPU in another room.

A chunk takes time to compute. `lerobot-rollout` as it is lets the arm stand still meanwhile. Two ways out:

    GPU in the robot's computer       real-time chunking (RTC): the next chunk is guided towards the running one
    GPU in another computer           a policy server there, LeRobot's robot_client at the robot. Overlapping chunks
                                      are averaged, not guided, and the network's delay comes on top
    inference shorter than a tick     neither is needed: lerobot-rollout with a smaller --policy.n_action_steps

Prints the commands of both ways, then runs server and client on this computer for eight seconds, with the simulated
robot and an untrained tiny policy: frames go to the server, chunks come back, the simulated arms move.

Run:    python examples/09_remote_gpu.py
        python examples/09_remote_gpu.py --gpu=me@gpu-box --policy=/data/so101/pretrained_model
Takes:  about a minute of one CPU core, most of it the imports of two programs. No network but this computer's own.
Prints (numbers vary):

    with a GPU at the robot:
    $ lerobot-rollout --policy.path=checkpoint --inference.type=rtc --inference.rtc.execution_horizon=20
    with a GPU elsewhere:
    gpu$ internvla-policy-server --port=8080
    robot$ ssh -N -L 8080:127.0.0.1:8080 user@gpu-computer
    robot$ python -m lerobot.async_inference.robot_client --server_address=127.0.0.1:8080 --policy_type=internvla_a1
    server and client on this computer:

and where grpc is installed (elsewhere it says what to install):

    server: 39 chunks of 10 actions, half of them within 145 ms
    robot: 76 actions executed in 8 s at 10 Hz, by an untrained policy

`internvla-check --policy.path=...` measures how long a chunk takes; execution_horizon is in control ticks and must be
longer. The server listens on 127.0.0.1 only: LeRobot's protocol lets whoever connects run programs (docs/robots.md).
"""

import argparse
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median

ROBOT = "--robot.type=so101_follower --robot.port=/dev/ttyACM1 --robot.id=my_follower --robot.cameras='<as in 08>'"
RTC = """lerobot-rollout --policy.path={policy} --inference.type=rtc --inference.rtc.execution_horizon=20
    --inference.queue_threshold=30 --fps={fps} --task="{task}" {robot}"""
SERVER, TUNNEL = "internvla-policy-server --port={port}", "ssh -N -L {port}:127.0.0.1:{port} {gpu}"
# chunk_size_threshold=1.0: the client sends a frame on every tick, so that the server has that of half a second ago.
CLIENT = """python -m lerobot.async_inference.robot_client --server_address=127.0.0.1:{port} --policy_type=internvla_a1
    --pretrained_name_or_path={policy} --policy_device={device} --actions_per_chunk={actions} --chunk_size_threshold=1.0
    --fps={fps} --task="{task}" {robot}"""
SECONDS = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpu", default="user@gpu-computer", help="as for ssh")
    parser.add_argument("--policy", default="checkpoint", help="folder on the computer with the GPU, or a Hub id")
    real = {**vars(parser.parse_args()), "port": 8080, "device": "cuda", "actions": 50, "fps": 30, "robot": ROBOT}
    real["task"] = "Put the parcel into the bin"
    print(f"with a GPU at the robot:\n$ {one_line(RTC, real)}")
    print(f"with a GPU elsewhere:\ngpu$ {one_line(SERVER, real)}")
    print(f"robot$ {one_line(TUNNEL, real)}\nrobot$ {one_line(CLIENT, real)}\nserver and client on this computer:")
    if find_spec("grpc") is None:
        return print("not run: grpc is missing. pip install 'lerobot_policy_internvla_a1[async]', on both computers")
    with tempfile.TemporaryDirectory() as folder:
        talk_to_myself(Path(folder))


def one_line(command: str, values: dict[str, object]) -> str:
    return " ".join(command.format(**values).split())


def talk_to_myself(folder: Path) -> None:
    from lerobot_internvla.testing import tiny_policy

    # For the simulated robot: three cameras, two arms of x, y and gripper, 10 Hz.
    tiny_policy(state_dim=6, action_dim=6, fps=10.0, foresight_interval_s=0.5).save_pretrained(folder / "checkpoint")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    toy = {"policy": folder / "checkpoint", "port": port, "device": "cpu", "actions": 10, "fps": 10}
    toy |= {"task": "red parcel, left arm to left bin", "robot": "--robot.type=conveyor"}
    log = folder / "server.log"
    server = start(one_line(SERVER, toy) + " --fps=10", log, until="Policy server listens")
    try:
        client = start(one_line(CLIENT, toy), folder / "client.log", until="Control loop thread starting")
        time.sleep(SECONDS)
        stop(client)
    finally:
        stop(server)
    times = [float(ms) for ms in re.findall(r"Action chunk #\d+ generated \| Total time: ([\d.]+)ms", log.read_text())]
    ticks = [int(tick) for tick in re.findall(r"Running inference for observation #(\d+)", log.read_text())]
    assert times, f"No chunk was computed:\n{log.read_text()[-3000:]}"
    print(f"server: {len(times)} chunks of 10 actions, half of them within {median(times):.0f} ms")
    print(f"robot: {max(ticks)} actions executed in {SECONDS} s at 10 Hz, by an untrained policy")


def start(command: str, log: Path, *, until: str) -> "subprocess.Popen[bytes]":
    program, *flags = shlex.split(command)
    words = [Path(sys.executable).parent / program, *flags]
    process = subprocess.Popen(words, cwd=log.parent, stdout=log.open("wb"), stderr=subprocess.STDOUT)
    while until not in log.read_text():
        if process.poll() is not None:
            sys.exit(f"{program} ended:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)
    return process


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()  # Ctrl-C would wait for the call that is under way
    process.wait()


if __name__ == "__main__":
    main()
