"""04: from a checkpoint of the reference implementation to actions.

Makes a small checkpoint in the reference's own layout (random weights; the 3B's names, types and files), converts it as
`internvla-convert SOURCE DEST --verify` does, loads the result as LeRobot does, acts for three ticks, and exports it
back, bit for bit. With a real checkpoint, a folder or a Hub id, the same page converts that one:

    python examples/04_convert_and_run.py InternRobotics/InternVLA-A1-3B-RoboTwin robotwin

Run:    python examples/04_convert_and_run.py
Takes:  about 15 seconds of one CPU core, most of them imports. No network.
Prints (numbers vary):

    embodiment aloha: robot type 'aloha' in stats.json
    relative actions: --actions relative
    verified in float32: actions of the converted policy and of the source weights differ by 0.0e+00 of the largest
    policy of type internvla_a1: 14 joints, cameras head, left_wrist, right_wrist
    tick 0: 14 joint targets, left gripper at 0.33
    tick 1: 14 joint targets, left gripper at 0.25
    tick 2: 14 joint targets, left gripper at 0.20
    exported back: the weights are the same, bit for bit

Next: docs/checkpoints.md, or lerobot-train --policy.path=<the converted folder> on your own dataset.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lerobot_internvla.conversion.convert import convert
from lerobot_internvla.conversion.export import export_reference
from lerobot_internvla.conversion.reference_layout import write_reference
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.model.architecture import build_architecture
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.testing import SMALL


def make_reference_checkpoint(folder: Path) -> None:
    """What you would download, in small: model.safetensors, config.json, stats.json."""
    sizes = {
        **SMALL["3b"],
        "vision": {**SMALL["3b"]["vision"], "image_size": [64, 64]},
        "image_tokenizer": {"channels": 32, "channels_mult": [1, 1, 2], "num_res_blocks": 1},
    }
    architecture = build_architecture("3b", sizes)
    pixels = CosmosImageTokenizer.from_spec(architecture.image_tokenizer).bfloat16()
    settings = {"chunk_size": 20, "n_action_steps": 10}
    write_reference(folder, architecture, InternVLAA1(architecture).state_dict(), pixels.state_dict(), settings)
    joints = {"mean": [0.1] * 14, "std": [0.2] * 14, "min": [-0.5] * 14, "max": [0.5] * 14, "count": [1000]}
    statistics = {"aloha": {"observation.state": joints, "action": joints}}
    (folder / "stats.json").write_text(json.dumps(statistics))


def make_text_tokenizer(folder: Path) -> None:
    """The real one is downloaded from the base model when --text-tokenizer is not given."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "pick", "up", "the", "pen"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)


def act(folder: Path) -> None:
    """Load and run the folder as lerobot-eval does; the pictures are noise."""
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    device = {"device_processor": {"device": config.device}}
    before, after = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=device)
    joints = config.output_features["action"].shape[0]
    print(f"policy of type {config.type}: {joints} joints, cameras {', '.join(policy.camera_slots)}")
    for tick in range(3):
        pictures = {camera: torch.rand(3, 48, 64) for camera in config.image_features}
        observation = {**pictures, "observation.state": torch.full((joints,), 0.1), "task": "pick up the pen"}
        action = after(policy.select_action(before(observation)))[0]
        print(f"tick {tick}: {len(action)} joint targets, left gripper at {action[6]:.2f}")


def main() -> None:
    torch.manual_seed(0)
    if len(sys.argv) == 3:
        done = convert(sys.argv[1], sys.argv[2], verify=True, show_progress=True)
        print(*done.notes, done.verification, sep="\n")
        act(done.folder)
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_reference_checkpoint(folder / "source")
        make_text_tokenizer(folder / "words")
        done = convert(
            folder / "source", folder / "policy", text_tokenizer=folder / "words", actions="relative", verify=True
        )
        print(*done.notes[:2], done.verification, sep="\n")
        act(folder / "policy")
        export_reference(folder / "policy", folder / "back")
        same = (folder / "back/model.safetensors").read_bytes() == (folder / "source/model.safetensors").read_bytes()
        print("exported back: the weights are", "the same, bit for bit" if same else "DIFFERENT")


if __name__ == "__main__":
    main()
