"""06: a new robot from zero: a dataset of a robot that nobody has described, its YAML file, a first training.

A toy robot with two joints on a rail records a few episodes. `internvla-embodiments check` refuses to guess what its
numbers mean, `new` writes a file from the dataset's metadata, and you fill in what no metadata says: units, the ends of
the gripper. The file then goes into a mixture of one source, which a stock `lerobot-train` reads, and the checkpoint
carries it on. With your own dataset do the same by hand; the commands are printed.

Run:    python examples/06_new_embodiment.py
Takes:  about half a minute of one CPU core, most of it imports. No network.
Prints (numbers vary):

    recorded 37 frames of a 'rail_picker'
    $ internvla-embodiments check data
    internvla-embodiments: Unknown robot 'rail_picker'
    $ internvla-embodiments new data --output rail_picker.yaml
    rail_picker.yaml: state 4, action 4, cameras head, left_wrist
    filled in: - {name: rail.pos, unit: m, relative: true, range: [-1.2, 1.2], speed: 4.55}
    $ internvla-embodiments check data --embodiment rail_picker.yaml
    FITS
    $ lerobot-train --dataset.repo_id=rail_picker --dataset.root=mixture.yaml
    in the checkpoint: rail_picker, dims rail.pos, shoulder.pos, elbow.pos, gripper.pos, gripper stays absolute

Next: more sources in the same mixture (docs/mixtures.md); every field of the file (docs/embodiments.md).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

JOINTS = ("rail.pos", "shoulder.pos", "elbow.pos", "gripper.pos")
FILLED_IN = {  # what you would look up in the robot's datasheet and in the program that recorded
    "name: rail.pos, unit: unknown": "name: rail.pos, unit: m",
    "name: shoulder.pos, unit: unknown": "name: shoulder.pos, unit: rad",
    "name: elbow.pos, unit: unknown": "name: elbow.pos, unit: rad",
    "name: gripper.pos, unit: unknown": "name: gripper.pos, unit: -1..1",
    "gripper: unknown  # TODO what both ends of its range mean": "gripper: -1 is closed, 1 is open  # measured",
}
MIXTURE = """\
sources:
  rail:
    root: data
    embodiment: rail_picker.yaml
    weight: 1
"""
TRAIN = """lerobot-train --dataset.repo_id=rail_picker --dataset.root=mixture.yaml --policy.type=internvla_a1
    --policy.variant=tiny --policy.device=cpu --policy.push_to_hub=false --policy.action_representation=relative
    --policy.chunk_size=10 --policy.n_action_steps=5 --output_dir=train --steps=2 --batch_size=4 --num_workers=0
    --log_freq=1 --env_eval_freq=0"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        record("data", robot_type="rail_picker")
        refusal = run("internvla-embodiments check data")
        assert refusal.returncode == 2, "an unknown robot must be refused"

        assert run("internvla-embodiments new data --output rail_picker.yaml").returncode == 0
        fill_in(Path("rail_picker.yaml"))
        assert run("internvla-embodiments check data --embodiment rail_picker.yaml").returncode == 0

        Path("mixture.yaml").write_text(MIXTURE)
        assert run(" ".join(TRAIN.split()), show=False).returncode == 0
        config = json.loads(Path("train/checkpoints/last/pretrained_model/config.json").read_text())
        for name, row in config["embodiments"].items():
            dims = [dim for part in row["embodiment"]["action"] for dim in part["dims"]]
            absolute = [dim["name"].removesuffix(".pos") for dim in dims if not dim["relative"]]
            print(f"in the checkpoint: {name}, dims {', '.join(dim['name'] for dim in dims)}, ", end="")
            print(f"{', '.join(absolute)} stays absolute")
        os.chdir("/")


def record(root: str, *, robot_type: str) -> None:
    """A LeRobotDataset as your recording program would write it; motions and pictures are made up."""
    from lerobot_internvla.testing import tiny_dataset

    dataset = tiny_dataset(root, cameras={"top": (48, 64), "wrist": (48, 64)}, joint_names=JOINTS, fps=10)
    info = Path(root, "meta", "info.json")
    info.write_text(json.dumps({**json.loads(info.read_text()), "robot_type": robot_type}))
    print(f"recorded {len(dataset)} frames of a {robot_type!r}")


def fill_in(path: Path) -> None:
    text = path.read_text()
    for unknown, known in FILLED_IN.items():
        assert unknown in text
        text = text.replace(unknown, known)
    path.write_text(text)
    print("filled in:", next(line.strip() for line in text.splitlines() if "rail.pos" in line and "relative" in line))


def run(command: str, *, show: bool = True) -> subprocess.CompletedProcess[str]:
    """Print a command, run it, and print what it says."""
    print("$", command, flush=True)
    program, *arguments = command.split()
    pipe = subprocess.PIPE if show else None
    finished = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments], stdout=pipe, stderr=pipe, text=True
    )
    if show:
        print(f"{finished.stdout}{finished.stderr}", end="", flush=True)
    return finished


if __name__ == "__main__":
    main()
