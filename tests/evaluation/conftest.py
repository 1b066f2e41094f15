"""One small dataset, a checkpoint of ours and one of LeRobot's ACT on it, and what was recorded."""

from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.testing import tiny_config, tiny_dataset
from scripted_policy import CAMERAS, INTERVAL, JOINTS, LENGTHS


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    folder = tmp_path_factory.mktemp("evaluation") / "dataset"
    return tiny_dataset(folder, cameras=CAMERAS, joint_names=JOINTS, episode_lengths=LENGTHS, fps=10, video=False)


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory, dataset: LeRobotDataset) -> Path:
    """Relative actions and real statistics, so that a chunk that is not decoded would be far off."""
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    folder = tmp_path_factory.mktemp("evaluation") / "ours"
    config = tiny_config(cameras=list(CAMERAS), foresight_interval=INTERVAL, fps=10.0, action_representation="relative")
    torch.manual_seed(0)
    policy = make_policy(config, ds_meta=dataset.meta)
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=dataset.meta.stats):
        pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def act(tmp_path_factory: pytest.TempPathFactory, dataset: LeRobotDataset) -> Path:
    """LeRobot's ACT with random weights, as lerobot-train would save it."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    folder = tmp_path_factory.mktemp("evaluation") / "act"
    config = ACTConfig(
        **{"device": "cpu", "push_to_hub": False, "chunk_size": 8, "n_action_steps": 4, "dim_model": 32},
        **{"dim_feedforward": 64, "n_heads": 2, "n_encoder_layers": 1, "n_vae_encoder_layers": 1, "latent_dim": 8},
        pretrained_backbone_weights=None,
    )
    torch.manual_seed(0)
    policy = make_policy(config, ds_meta=dataset.meta)
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=dataset.meta.stats):
        pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def recorded(dataset: LeRobotDataset) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(states, actions) of every episode, straight from the parquet files."""
    rows = dataset.hf_dataset.with_format("torch")
    states, actions = torch.stack(list(rows["observation.state"])), torch.stack(list(rows["action"]))
    return list(zip(states.split(LENGTHS), actions.split(LENGTHS), strict=True))
