"""InternVLAA1Config survives config.json and the command line, refuses what cannot work, asks for the right frames."""

import json
from pathlib import Path

import draccus
import pytest
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim.schedulers import ConstantWithWarmupSchedulerConfig, CosineDecayWithWarmupSchedulerConfig

from lerobot_internvla import InternVLAA1Config, InternVLAError
from lerobot_internvla.testing import tiny_config


def parse(*arguments: str) -> InternVLAA1Config:
    """What ``lerobot-train --policy.<arguments>`` makes of its flags."""
    return draccus.parse(InternVLAA1Config, args=["--device=cpu", *arguments])


def refusal(**changes: object) -> str:
    """The message with which a configuration is refused."""
    with pytest.raises(InternVLAError) as caught:
        tiny_config(**changes)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------- plain data


def test_config_json_restores_every_field(tmp_path: Path):
    config = tiny_config(
        cameras=["top", "wrist"],
        architecture_overrides={"layers": 2, "vision": {"depth": 1, "image_size": [32, 32]}},
        camera_slots={"head": "top", "left_wrist": "wrist"},
        action_representation="relative",
        absolute_joint_names=["gripper", "thumb"],
        absolute_joint_indices=[3],
        action_feature_names=["a", "b", "c", "d"],
        foresight_interval_s=0.5,
        fps=30.0,
        optimizer_betas=(0.8, 0.9),
        peft_experts=["action"],
        gradient_checkpointing=True,
        base_model=None,
    )
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["type"] == "internvla_a1"
    loaded = PreTrainedConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, InternVLAA1Config)
    assert loaded == config
    assert loaded.architecture == config.architecture
    assert loaded.architecture.vision.image_size == (32, 32)
    assert loaded.optimizer_betas == (0.8, 0.9)


def test_command_line_values_override_config_json(tmp_path: Path):
    tiny_config().save_pretrained(tmp_path)
    flags = ["--n_action_steps=2", '--camera_slots={"head": "observation.images.head"}', "--input_features=null"]
    loaded = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=flags)
    assert loaded.n_action_steps == 2
    assert loaded.camera_slots == {"head": "observation.images.head"}
    assert loaded.input_features is None
    assert loaded.chunk_size == 10


def test_every_kind_of_flag_can_be_written_on_the_command_line():
    config = parse(
        "--variant=tiny",
        '--architecture_overrides={"layers": 2}',
        "--use_foresight=false",
        "--foresight_interval_s=0.5",
        "--fps=30",
        '--absolute_joint_names=["gripper", "hand"]',
        "--absolute_joint_indices=[]",
        "--base_model=null",
        "--optimizer_betas=[0.8,0.9]",
        "--lr_schedule=constant",
    )
    assert (config.architecture.layers, config.use_foresight, config.interval_frames) == (2, False, 15)
    assert config.absolute_joint_names == ["gripper", "hand"]
    assert config.absolute_joint_indices == []
    assert config.base_model is None
    assert tuple(config.optimizer_betas) == (0.8, 0.9)


def test_the_default_is_the_released_model():
    config = InternVLAA1Config(device="cpu")
    assert config.variant == "3b"
    assert (config.chunk_size, config.num_inference_steps, config.foresight_interval) == (50, 10, 15)
    assert config.lambda_gen == 0.01
    assert config.architecture.name == "3b"
    assert InternVLAA1Config(device="cpu", variant="2b").architecture.name == "2b"
    assert config.type == "internvla_a1"


# ------------------------------------------------------------------------------------------------- the LeRobot contract


def test_frames_that_lerobot_is_asked_for():
    config = tiny_config(foresight_interval=15)
    assert config.image_observation_delta_indices == [-15, 0, 15]
    assert config.observation_delta_indices == [-15, 0, 15]
    assert config.state_observation_delta_indices == [0]
    assert config.action_delta_indices == list(range(10))
    assert config.reward_delta_indices is None
    assert tiny_config(use_foresight=False).observation_delta_indices == [0]


def test_an_interval_in_seconds_becomes_frames_at_the_given_rate():
    assert tiny_config(foresight_interval_s=0.5, fps=30.0).observation_delta_indices == [-15, 0, 15]
    assert tiny_config(foresight_interval_s=0.5, fps=10.0).observation_delta_indices == [-5, 0, 5]
    assert tiny_config(foresight_interval_s=0.1, fps=29.97 / 2.997).interval_frames == 1


def test_optimizer_preset_is_table_2_of_the_paper():
    preset = tiny_config().get_optimizer_preset()
    assert preset.type == "adamw"
    assert (preset.lr, preset.betas, preset.weight_decay, preset.grad_clip_norm) == (5e-5, (0.9, 0.95), 0.01, 1.0)
    schedule = tiny_config().get_scheduler_preset()
    assert isinstance(schedule, CosineDecayWithWarmupSchedulerConfig)
    assert (schedule.num_warmup_steps, schedule.num_decay_steps) == (2000, 60_000)
    assert (schedule.peak_lr, schedule.decay_lr) == (5e-5, 5e-6)
    assert isinstance(tiny_config(lr_schedule="constant").get_scheduler_preset(), ConstantWithWarmupSchedulerConfig)


def test_presets_follow_the_fields():
    config = tiny_config(optimizer_lr=1e-3, optimizer_grad_clip_norm=10.0, scheduler_decay_lr=1e-4)
    assert config.get_optimizer_preset().lr == 1e-3
    assert config.get_optimizer_preset().grad_clip_norm == 10.0
    assert config.get_scheduler_preset().peak_lr == 1e-3
    assert config.get_scheduler_preset().decay_lr == 1e-4


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variant": "5b"}, ["'5b'", "3b, 2b, tiny"]),
        ({"architecture_overrides": {"depth": 3}}, ["'depth'", "layers"]),
        ({"architecture_overrides": {"vision": {"patches": 3}}}, ["'vision.patches'", "patch_size"]),
        ({"architecture_overrides": {"query_heads": 3}}, ["query_heads 3", "key_value_heads 2"]),
        ({"n_action_steps": 11}, ["n_action_steps=11", "chunk_size=10"]),
        ({"chunk_size": 0, "n_action_steps": 0}, ["chunk_size=0", "n_action_steps=0", "at least 1"]),
        ({"num_inference_steps": 0}, ["num_inference_steps=0"]),
        ({"foresight_interval": 0}, ["foresight_interval=0"]),
        ({"lambda_gen": -1.0}, ["lambda_gen=-1.0"]),
        ({"action_representation": "delta"}, ["'delta'", "absolute, relative"]),
        ({"dtype": "float16"}, ["'float16'", "float32, bfloat16"]),
        ({"weights_dtype": "int8"}, ["weights_dtype='int8'"]),
        ({"statistics": "imagenet"}, ["'imagenet'", "dataset, checkpoint"]),
        ({"lr_schedule": "linear"}, ["'linear'", "cosine, constant"]),
        ({"foresight_interval_s": 0.5}, ["0.5", "--policy.fps"]),
        ({"foresight_interval_s": 0.5, "fps": 15.0}, ["7.500 frames", "15.0 fps", "0.5333 s"]),
        ({"foresight_interval_s": 0.01, "fps": 10.0}, ["0.100 frames", "0.1000 s"]),
        ({"use_foresight": False, "save_predicted_video": True}, ["save_predicted_video", "use_foresight"]),
        ({"use_foresight": False, "freeze_foresight": True}, ["freeze_foresight", "no generation expert"]),
        ({"train_expert_only": True, "train_vlm_only": True}, ["exclude each other"]),
        ({"freeze_understanding": True, "freeze_foresight": True, "freeze_action": True}, ["nothing is left to train"]),
        ({"train_expert_only": True, "freeze_foresight": True, "freeze_action": True}, ["nothing is left to train"]),
        ({"train_vlm_only": True, "freeze_understanding": True}, ["nothing is left to train"]),
        ({"peft_experts": []}, ["peft_experts"]),
        ({"peft_experts": ["vision"]}, ["'vision'", "understanding, foresight, action"]),
        (
            {"normalization_mapping": {"STATE": NormalizationMode.MEAN_STD}},
            ["'STATE': 'MEAN_STD'", "normalises by itself", "IDENTITY"],
        ),
    ],
)
def test_impossible_values_are_refused_with_the_reason(changes: dict, says: list[str]):
    message = refusal(**changes)
    assert all(part in message for part in says), message


def test_all_problems_are_told_at_once():
    message = refusal(n_action_steps=20, dtype="float64", lambda_gen=-1.0)
    assert message.count("\n  - ") == 3


def test_seconds_that_nearly_fit_are_taken():
    """29.97 fps: half a second is 14.985 frames; that is not a whole number, and is not rounded silently."""
    assert "14.985 frames" in refusal(foresight_interval_s=0.5, fps=29.97)
    assert tiny_config(foresight_interval_s=0.5005, fps=29.97).interval_frames == 15


def test_a_foreign_configuration_key_is_refused(tmp_path: Path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lambda_generation": 1}))
    with pytest.raises(draccus.utils.DecodingError, match="lambda_generation"):
        PreTrainedConfig.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------------------- features


def without(config: InternVLAA1Config, key: str) -> InternVLAA1Config:
    config.input_features = {k: f for k, f in config.input_features.items() if k != key}
    return config


def test_features_that_fit_pass():
    tiny_config(state_dim=32, action_dim=32).validate_features()
    tiny_config(cameras=["top"], image_size=(480, 640), state_dim=1, action_dim=7).validate_features()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (lambda: tiny_config(cameras=[]), ["no camera", "observation.state", "1 to 3"]),
        (lambda: tiny_config(state_dim=33), ["'observation.state' has 33 dims", "at most 32"]),
        (lambda: tiny_config(action_dim=40), ["'action' has 40 dims", "at most 32"]),
        (lambda: without(tiny_config(), "observation.state"), ["'observation.state' is missing"]),
        (lambda: tiny_config(output_features={}), ["'action' is missing"]),
        (
            lambda: tiny_config(output_features={"action": PolicyFeature(FeatureType.ACTION, (2, 7))}),
            ["(2, 7)", "one vector"],
        ),
        (lambda: tiny_config(cameras=[], state_dim=33, action_dim=40), ["no camera", "33 dims", "40 dims"]),
    ],
)
def test_features_that_do_not_fit_are_refused(config, says: list[str]):
    with pytest.raises(InternVLAError) as caught:
        config().validate_features()
    assert all(part in str(caught.value) for part in says), caught.value
