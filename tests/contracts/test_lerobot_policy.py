"""What LeRobot's own ``tests/policies/test_policies.py`` asks of every policy, asked of ours.

Its bodies written anew for the type ``internvla_a1``, on a dataset and an environment that need no download.
"""

import inspect
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs import make_env, preprocess_observation
from lerobot.optim.factory import make_optimizer_and_scheduler
from lerobot.policies import PreTrainedPolicy, make_policy, make_pre_post_processors
from lerobot.policies.factory import get_policy_class, make_policy_config
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch.utils.data import DataLoader

from lerobot_internvla import InternVLAError
from lerobot_internvla.envs import ConveyorEnvConfig

NAME = "internvla_a1"
TINY: dict[str, Any] = {
    "variant": "tiny",
    "device": "cpu",
    "push_to_hub": False,
    "chunk_size": 10,
    "n_action_steps": 5,
    "num_inference_steps": 2,
    "foresight_interval": 3,
}


def tiny(dataset: LeRobotDataset, **changes: Any) -> PreTrainedConfig:
    """A configuration as ``make_policy`` completes it from a dataset."""
    config = make_policy_config(NAME, **{**TINY, **changes})
    features = dataset_to_policy_features(dataset.meta.features)
    config.output_features = {key: f for key, f in features.items() if f.type is FeatureType.ACTION}
    config.input_features = {key: f for key, f in features.items() if key not in config.output_features}
    return config


def unchanged(batch: dict[str, Any], copy: dict[str, Any]) -> bool:
    return set(batch) == set(copy) and all(
        torch.equal(value, copy[key]) if isinstance(value, torch.Tensor) else value == copy[key]
        for key, value in batch.items()
    )


def test_policy_and_configuration_classes_belong_together():
    policy_class, config = get_policy_class(NAME), make_policy_config(NAME, **TINY)
    assert policy_class.name == NAME
    assert issubclass(type(config), inspect.signature(policy_class.__init__).parameters["config"].annotation)
    assert config.type == NAME


def test_the_policy_is_built_from_its_configuration_alone(dataset: LeRobotDataset):
    policy = get_policy_class(NAME)(tiny(dataset))
    assert isinstance(policy, PreTrainedPolicy)


def train_config(dataset: LeRobotDataset, **changes: Any) -> TrainPipelineConfig:
    config = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=dataset.repo_id, root=str(dataset.root), episodes=[0]),
        policy=make_policy_config(NAME, **{**TINY, **changes}),
        env=ConveyorEnvConfig(),
        output_dir=Path(dataset.root).parent / "never_written",
    )
    config.validate()
    return config


@pytest.fixture(scope="module")
def batch(dataset: LeRobotDataset) -> dict[str, Any]:
    """What ``lerobot-train`` would read, before any preprocessing: the first frames, which have a future to imagine."""
    return next(iter(DataLoader(make_dataset(train_config(dataset)), batch_size=2, num_workers=0)))


def test_forward_and_select_action_leave_their_batch_alone(dataset: LeRobotDataset, batch: dict[str, Any]):
    """Raw observations of an environment, without a task and without a preprocessor, are accepted too."""
    config = train_config(dataset)
    preprocessor, _ = make_pre_post_processors(config.policy, None)
    assert preprocessor is not None
    policy = make_policy(config.policy, ds_meta=dataset.meta)
    assert isinstance(policy, PreTrainedPolicy)

    copy = deepcopy(batch)
    loss, _ = policy.forward(batch)
    assert torch.isfinite(loss)
    assert unchanged(batch, copy)

    environment = make_env(config.env, n_envs=2)["conveyor"][0]
    policy.reset()
    observation, _ = environment.reset(seed=0)
    observation = preprocess_observation(observation)
    assert "task" not in observation and observation["observation.images.head"].ndim == 4
    copy = deepcopy(observation)
    with torch.inference_mode():
        action = policy.select_action(observation).cpu().numpy()
    assert unchanged(observation, copy)
    environment.step(action)
    environment.close()


def test_an_optimizer_step_moves_what_the_optimizer_was_given(dataset: LeRobotDataset, batch: dict[str, Any]):
    """And every parameter that it was given has a gradient: DDP would do without looking for unused ones."""
    config = train_config(dataset)
    policy = make_policy(config.policy, ds_meta=dataset.meta)
    optimizer, scheduler = make_optimizer_and_scheduler(config, policy)
    assert scheduler is not None
    given = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in policy.parameters() if p.requires_grad}
    before = [p.detach().clone() for p in given]
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    policy.train()
    policy.forward(batch)[0].backward()
    assert all(p.grad is not None for p in given)
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(given, before, strict=True))


def test_save_and_load(dataset: LeRobotDataset, tmp_path: Path):
    policy = get_policy_class(NAME)(tiny(dataset), dataset_meta=dataset.meta)
    policy.save_pretrained(tmp_path)
    loaded = get_policy_class(NAME).from_pretrained(tmp_path, config=policy.config)
    assert list(loaded.state_dict()) == list(policy.state_dict())
    for a, b in zip(policy.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_save_with_a_gathered_state_dict(dataset: LeRobotDataset, tmp_path: Path):
    """Under FSDP the trainer gathers the weights and passes them."""
    policy = get_policy_class(NAME)(tiny(dataset), dataset_meta=dataset.meta)
    gathered = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in policy.state_dict().items()
    }
    policy.save_pretrained(tmp_path, state_dict=gathered)
    loaded = get_policy_class(NAME).from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, gathered[name]), name


def test_statistics_of_the_dataset_are_adopted(dataset: LeRobotDataset):
    policy = make_policy(make_policy_config(NAME, **TINY), ds_meta=dataset.meta)
    for key, name in (("observation.state", "state"), ("action", "action")):
        mean = torch.tensor(dataset.meta.stats[key]["mean"], dtype=torch.float32)
        ours = policy.action_space.get_buffer(f"{name}_mean")
        torch.testing.assert_close(ours[: len(mean)], mean, rtol=1e-5, atol=1e-6)
        assert not ours[len(mean) :].any()
    assert policy.config.fps == dataset.fps
    assert policy.config.action_feature_names == dataset.meta.features["action"]["names"]


def test_a_policy_from_the_environment_alone_says_that_it_has_no_statistics():
    policy = make_policy(make_policy_config(NAME, **TINY), env_cfg=ConveyorEnvConfig())
    observation = {
        "observation.state": torch.zeros(1, policy.action_space.state_dim),
        **{key: torch.zeros(1, 3, 64, 64) for key in policy.config.image_features},
    }
    with pytest.raises(InternVLAError, match="no statistics"):
        policy.select_action(observation)
