"""05: LoRA fine-tuning on an SO-101, from another robot's checkpoint, with LeRobot's own command.

Records a toy dataset with the joints and cameras of an SO-101 arm (motions and pictures are made up), and makes a
small checkpoint of another robot: 14 joints, three cameras, absolute actions. One `lerobot-train --peft.*` adapts it:
the base stays as it is, adapters and heads are trained, statistics come from the new dataset. Then the adapter is
merged. With the name of your dataset (and of a converted checkpoint) the page prints the command for a real run.

Run:    python examples/05_lora_finetune_so101.py
        python examples/05_lora_finetune_so101.py <owner>/<dataset> [<checkpoint>]      # only print the command
Takes:  about half a minute on one CPU core, most of it imports. No network.
Prints (numbers vary):

    recorded 37 frames: shoulder_pan, shoulder_lift, elbow_flex, wrist_flex, wrist_roll, gripper; cameras top, wrist
    $ lerobot-train --policy.path=
    the base is as it was, to the last bit; the adapter has 2.4 MB, the base 4.6 MB
    merged: actions of adapter and merged policy differ by at most 1.2e-06

Next: internvla-bundle <adapter> <folder> makes it ready for a robot computer without internet (docs/offline_robot.md).
Memory of the real size: docs/memory.md.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

ARM = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
JOINTS = [f"{joint}.pos" for joint in ARM]

# input_features=null takes cameras and dims of the dataset; the gripper stays absolute by its name.
TRAIN = """lerobot-train --policy.path={base} --policy.input_features=null --policy.push_to_hub=false
    --policy.action_representation=relative --policy.foresight_interval_s=0.5 --policy.fps={fps}
    --peft.method_type=LORA --peft.r={rank} --dataset.repo_id={repo_id} --output_dir={output} --steps={steps}
    --batch_size={batch} {more}"""
REAL = """--policy.dtype=bfloat16 --policy.weights_dtype=bfloat16 --policy.gradient_checkpointing=true
    --policy.optimizer_lr=1e-4"""
TOY = """--policy.device=cpu --dataset.root={root} --num_workers=0 --log_freq=1 --env_eval_freq=0
    --policy.optimizer_lr=1e-3 --policy.scheduler_warmup_steps=0"""


def main() -> None:
    if len(sys.argv) > 1:
        base = sys.argv[2] if len(sys.argv) > 2 else "<converted checkpoint>"
        yours = {"base": base, "repo_id": sys.argv[1], "output": "outputs/so101_lora"}
        print("$", line(TRAIN, **yours, fps=30, rank=16, steps=30_000, batch=8, more=REAL))
        return

    with tempfile.TemporaryDirectory() as folder:
        base, output = Path(folder, "base"), Path(folder, "so101_lora")
        root = record_dataset(Path(folder, "dataset"))
        make_other_robots_checkpoint(base)
        before = digest(base)
        toy = {"base": base, "repo_id": "local/so101", "output": output, "more": TOY.format(root=root)}
        command = line(TRAIN, **toy, fps=10, rank=4, steps=3, batch=4)
        print("$", command, flush=True)
        program, *flags = command.split()
        subprocess.run([Path(sys.executable).parent / program, *flags], check=True)
        adapter = output / "checkpoints" / "last" / "pretrained_model"
        assert digest(base) == before
        sizes = [(adapter / "adapter_model.safetensors"), (base / "model.safetensors")]
        megabytes = [f"{file.stat().st_size / 1e6:.1f} MB" for file in sizes]
        print(f"the base is as it was, to the last bit; the adapter has {megabytes[0]}, the base {megabytes[1]}")
        compare_with_merged(adapter)


def line(command: str, **values: object) -> str:
    """A command on one line."""
    return " ".join(command.format(**values).split())


def record_dataset(root: Path) -> Path:
    from lerobot_internvla.testing import tiny_dataset

    cameras = {"top": (48, 64), "wrist": (48, 64)}
    dataset = tiny_dataset(root, repo_id="local/so101", cameras=cameras, joint_names=JOINTS, fps=10)
    print(f"recorded {len(dataset)} frames: {', '.join(ARM)}; cameras {', '.join(cameras)}")
    return Path(dataset.root)


def make_other_robots_checkpoint(folder: Path) -> None:
    """What internvla-convert would give you, in small and with random weights."""
    from lerobot.policies import make_pre_post_processors

    from lerobot_internvla.testing import tiny_policy

    policy = tiny_policy(state_dim=14, action_dim=14)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config):
        processor.save_pretrained(folder)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def compare_with_merged(adapter: Path) -> None:
    import torch

    from lerobot_internvla.checkpoints.adapters import load_with_adapter, merge_adapter
    from lerobot_internvla.testing import tiny_batch

    separate, merged = load_with_adapter(adapter), merge_adapter(adapter)
    batch = tiny_batch(merged.config, moment="tick")
    noise = torch.randn(2, merged.config.chunk_size, 32)
    first, second = (policy.predict_action_chunk(batch, noise=noise) for policy in (separate, merged))
    print(f"merged: actions of adapter and merged policy differ by at most {(first - second).abs().max():.1e}")


if __name__ == "__main__":
    main()
