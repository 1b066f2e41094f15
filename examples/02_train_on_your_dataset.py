"""02: train on your dataset, go on training, look at what the policy imagines.

Three commands, two of them LeRobot's own. Without arguments this page records a toy dataset (three joints and a
gripper, two cameras, three short episodes) and runs the commands on it for a few steps, printing each so that you can
repeat it by hand. With the name of your dataset it prints the commands for it instead. Nothing is uploaded.

Run:    python examples/02_train_on_your_dataset.py
        python examples/02_train_on_your_dataset.py <owner>/<name>        # only print the commands for your dataset
Takes:  about one minute on one CPU core, most of it the imports of three programs. No network.
Prints (paths vary):

    recorded 37 frames with cameras top, wrist
    $ lerobot-train --policy.type=internvla_a1
    $ lerobot-train --config_path=
    $ internvla-foresight --policy.path=
    done: the checkpoint is in

Cameras called top, wrist, head and the like are recognised; others are mapped with
--policy.camera_slots='{"head": "observation.images.phone"}'. Relative actions: --policy.action_representation=relative.
For the real size on a GPU replace the first command's --policy.* by --config_path=configs/posttrain/3b_full.yaml.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = """lerobot-train --policy.type=internvla_a1 --policy.variant=tiny --policy.device=cpu --policy.push_to_hub=false
    --policy.foresight_interval_s=0.5 --policy.fps={fps} --dataset.repo_id={repo_id} {root}
    --output_dir={output}/train --steps={steps} --batch_size=8 --num_workers=0 --log_freq=1 --env_eval_freq=0"""
RESUME = """lerobot-train --config_path={output}/train/checkpoints/last/pretrained_model/train_config.json --resume=true
    --steps={more_steps}"""
IMAGINE = """internvla-foresight --policy.path={output}/train/checkpoints/last/pretrained_model
    --dataset.repo_id={repo_id} {root} --output_dir={output}/imagined --n_samples=2"""


def main() -> None:
    if len(sys.argv) > 1:
        yours = {"repo_id": sys.argv[1], "root": "", "output": "outputs/my_task", "fps": 30}
        for command in (TRAIN, RESUME, IMAGINE):
            print("$", line(command, steps=20_000, more_steps=40_000, **yours), end="\n\n")
        return

    from lerobot_internvla.testing import tiny_dataset

    with tempfile.TemporaryDirectory() as folder:
        dataset = tiny_dataset(
            Path(folder, "dataset"), repo_id="local/toy", cameras={"top": (48, 64), "wrist": (64, 64)}, fps=10
        )
        print(f"recorded {len(dataset)} frames with cameras top, wrist")
        toy = {"repo_id": "local/toy", "root": f"--dataset.root={dataset.root}", "output": folder, "fps": 10}
        for command in (TRAIN, RESUME, IMAGINE):
            words = line(command, steps=2, more_steps=3, **toy)
            print("$", words, flush=True)
            program, *flags = words.split()
            subprocess.run([Path(sys.executable).parent / program, *flags], check=True)
        print(f"done: the checkpoint is in {folder}/train/checkpoints/last/pretrained_model until this page ends")


def line(command: str, **values: object) -> str:
    """A command on one line."""
    return " ".join(command.format(**values).split())


if __name__ == "__main__":
    main()
