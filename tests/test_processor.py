"""The pipelines: stock steps under the names that LeRobot's commands override, and nothing that changes numbers."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors

from lerobot_internvla import InternVLAA1Config
from lerobot_internvla.testing import tiny_batch, tiny_config

STATISTICS = {
    key: {"mean": torch.full((4,), 5.0), "std": torch.full((4,), 3.0), "min": torch.zeros(4), "max": torch.ones(4)}
    for key in ("observation.state", "action")
}


def step_names(folder: Path, pipeline: str) -> list[str]:
    return [s["registry_name"] for s in json.loads((folder / f"{pipeline}.json").read_text())["steps"]]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for pipeline in make_pre_post_processors(tiny_config(), dataset_stats=STATISTICS):
        pipeline.save_pretrained(tmp_path)
    return tmp_path


def test_the_steps_that_lerobots_commands_override_are_there(saved: Path):
    assert step_names(saved, "policy_preprocessor") == [
        "rename_observations_processor",
        "to_batch_processor",
        "device_processor",
        "normalizer_processor",
    ]
    assert step_names(saved, "policy_postprocessor") == ["unnormalizer_processor", "device_processor"]


def test_a_training_batch_comes_out_as_it_went_in():
    """State, actions, masks, presence of cameras and tasks: the policy normalises, the pipeline must not."""
    preprocessor, _ = make_pre_post_processors(tiny_config(), dataset_stats=STATISTICS)
    batch = tiny_batch(tiny_config())
    batch["observation.camera_is_present"] = torch.ones(2, 3, dtype=torch.bool)
    original = deepcopy(batch)
    out = preprocessor(batch)
    for key, value in original.items():
        assert torch.equal(out[key], value) if isinstance(value, torch.Tensor) else out[key] == value, key


def test_actions_leave_as_they_are():
    _, postprocessor = make_pre_post_processors(tiny_config(), dataset_stats=STATISTICS)
    actions = torch.randn(2, 4)
    assert torch.equal(postprocessor(actions), actions)


def test_a_single_observation_gets_a_batch_axis_and_its_task():
    preprocessor, _ = make_pre_post_processors(tiny_config())
    tick = {k: v[0] for k, v in tiny_batch(tiny_config(), moment="tick").items()}
    out = preprocessor(tick)
    assert out["observation.state"].shape == (1, 4)
    assert out["observation.images.head"].shape == (1, 3, 64, 64)
    assert out["task"] == [tick["task"]]


def test_pipelines_load_with_the_overrides_of_train_eval_and_rollout(saved: Path):
    config = tiny_config()
    fine_tune = {
        "device_processor": {"device": "cpu"},
        "normalizer_processor": {
            "features": {**config.input_features, **config.output_features},
            "norm_map": config.normalization_mapping,
            "stats": STATISTICS,
        },
        "rename_observations_processor": {"rename_map": {"observation.images.top": "observation.images.head"}},
    }
    preprocessor, postprocessor = make_pre_post_processors(
        config,
        pretrained_path=str(saved),
        preprocessor_overrides=fine_tune,
        postprocessor_overrides={
            "unnormalizer_processor": {
                "features": config.output_features,
                "norm_map": config.normalization_mapping,
                "stats": STATISTICS,
            }
        },
    )
    batch = tiny_batch(config)
    batch["observation.images.top"] = batch.pop("observation.images.head")
    out = preprocessor(batch)
    assert torch.equal(out["observation.images.head"], batch["observation.images.top"])
    assert torch.equal(out["observation.state"], batch["observation.state"])
    actions = torch.randn(2, 4)
    assert torch.equal(postprocessor(actions), actions)


def test_a_configuration_without_features_is_accepted():
    """LeRobot builds processors before it knows the features."""
    config = InternVLAA1Config(device="cpu", variant="tiny", input_features=None, output_features=None)
    preprocessor, _ = make_pre_post_processors(config, None)
    assert preprocessor(tiny_batch(tiny_config()))["task"]
