"""internvla-convert on the golden models in the released layout: whole folders in, whole folders out, and back."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from conversion.released_files import robot_statistics, write_released
from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.conversion import convert as convert_module
from lerobot_internvla.conversion import parity
from lerobot_internvla.conversion.convert import convert
from lerobot_internvla.modeling_internvla_a1 import IMAGE_TOKENIZER_FOLDER, TEXT_TOKENIZER_FOLDER
from lerobot_internvla.scripts.convert import main


def test_the_folder_is_complete(converted: Path, released: Path):
    assert {path.name for path in converted.iterdir()} == {
        "config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json", "README.md",
        "provenance.json", "reference", TEXT_TOKENIZER_FOLDER, IMAGE_TOKENIZER_FOLDER,
    }  # fmt: skip
    assert not list(converted.parent.glob(".*"))
    config = json.loads((converted / "config.json").read_text())
    assert config["type"] == "internvla_a1"
    assert config["device"] == "cuda"  # of the computer that loads it: LeRobot takes what there is
    assert config["action_representation"] == "relative"
    assert config["image_tokenizer_dtype"] == "bfloat16"
    assert config["action_feature_names"][6] == "left_gripper"
    for kept in ("config.json", "stats.json"):
        assert (converted / "reference" / kept).read_bytes() == (released / kept).read_bytes()
    assert (convert_module.TEXT_TOKENIZER_FOLDER, convert_module.IMAGE_TOKENIZER_FOLDER) == (
        TEXT_TOKENIZER_FOLDER,
        IMAGE_TOKENIZER_FOLDER,
    )


def test_statistics_are_the_files_own(converted: Path, released: Path):
    weights = load_file(converted / "model.safetensors")
    numbers = json.loads((released / "stats.json").read_text())["aloha"]
    for name, key in (("state", "observation.state"), ("action", "action")):
        for which in ("mean", "std"):
            stored = weights[f"action_space.{name}_{which}"][:14]
            assert torch.equal(stored, torch.tensor(numbers[key][which])), (name, which)
    relative = weights["action_space.action_is_relative"][:14]
    assert relative.tolist() == [i not in (6, 13) for i in range(14)]


def test_the_goldens_are_reproduced(golden_model: Path, words: Path, tmp_path: Path):
    """float32 weights through the converter, the folder through our loader, the golden inputs through the model."""
    source = write_released(golden_model, tmp_path / "source", released_dtypes=False)
    convert(source, tmp_path / "policy", text_tokenizer=words)
    policy = InternVLAA1Policy.from_pretrained(tmp_path / "policy")
    inputs, golden = (load_file(golden_model / f"{name}.safetensors") for name in ("inputs", "outputs"))
    observation, _ = parity.golden_observation(policy.config.architecture, inputs)
    with torch.no_grad():
        prefill = policy.model.prefill(observation, reference_positions=True)
        actions = policy.model.sample_actions(prefill, inputs["noise"], 10)
    error = (actions - golden["sample_actions_10"]).abs().max() / golden["sample_actions_10"].abs().max()
    assert error < parity.SAMPLED
    latents = policy.model.encode_frames(observation.images)
    error = (latents - golden["cosmos_features_past_now"]).abs().max() / golden["cosmos_features_past_now"].abs().max()
    assert error < parity.INTERMEDIATE


def test_it_goes_back_bit_for_bit(converted: Path, released: Path, tmp_path: Path):
    assert main([str(converted), str(tmp_path / "back"), "--export-reference"]) == 0
    for name in ("model.safetensors", "config.json", "stats.json"):
        assert (tmp_path / "back" / name).read_bytes() == (released / name).read_bytes(), name


def test_provenance_and_card(converted: Path, released: Path):
    import hashlib

    from huggingface_hub import ModelCard

    record = json.loads((converted / "provenance.json").read_text())
    for name in ("model.safetensors", "config.json", "stats.json"):
        assert record["source"]["files"][name]["sha256"] == hashlib.sha256((released / name).read_bytes()).hexdigest()
    assert record["image_tokenizer"] == {"from": "the policy file"}
    assert record["text_tokenizer"]["files"]["tokenizer.json"]["sha256"]
    assert record["tool"].startswith("lerobot_internvla ")
    assert any("wavelets" in name for name in record["dropped"])
    assert str(released) not in json.dumps(record)
    card = ModelCard.load(converted / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.library_name == "lerobot"
    assert "left_joint_0" in card.text


def statistics_file(folder: Path, entries: dict[str, Any]) -> Path:
    file = folder / "other_stats.json"
    file.write_text(json.dumps(entries))
    return file


def test_another_robot_other_cameras_other_licence(released: Path, words: Path, tmp_path: Path):
    genie = {
        f"{kind}.{part}.position": dim
        for kind in ("states", "actions")
        for part, dim in (("left_joint", 7), ("right_joint", 7), ("left_gripper", 1), ("right_gripper", 1))
    }
    entries = {"Genie-1": robot_statistics(genie, relative=False), "aloha": robot_statistics({"observation.state": 14})}
    code = main(
        [
            *(str(released), str(tmp_path / "policy"), "--text-tokenizer", str(words)),
            *("--statistics", str(statistics_file(tmp_path, entries)), "--embodiment", "genie1"),
            *("--camera", "head=observation.images.desk", "--camera", "left_wrist=observation.images.hand"),
            *("--licence", "mit"),
        ]
    )
    assert code == 0
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert config["action_representation"] == "absolute"  # the numbers leave no doubt
    assert config["output_features"]["action"]["shape"] == [16]
    assert config["camera_slots"] == {"head": "observation.images.desk", "left_wrist": "observation.images.hand"}
    assert config["license"] == "mit"
    assert InternVLAA1Policy.from_pretrained(tmp_path / "policy").camera_slots == config["camera_slots"]


def test_for_fine_tuning_only(released: Path, words: Path, tmp_path: Path):
    done = convert(
        released, tmp_path / "policy", text_tokenizer=words, without_statistics=True, embodiment="franka",
        actions="relative",
    )  # fmt: skip
    assert done.robot.state is None
    assert done.config.robot_state_feature is not None
    assert done.config.robot_state_feature.shape == (8,)
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    assert not bool(weights["action_space.statistics_are_set"])
