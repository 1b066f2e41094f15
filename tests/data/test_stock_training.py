"""Where we enter stock training: once, for our policy only, and with --dataset.eval_split too."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import factory
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.scripts import lerobot_train

from lerobot_internvla import InternVLAA1Config
from lerobot_internvla.data import stock_training
from lerobot_internvla.data.frame_cache import FrameCachingReader
from lerobot_internvla.data.video_reader import SparseVideoReader
from lerobot_internvla.testing import tiny_config, tiny_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_dataset(tmp_path_factory.mktemp("stock") / "dataset", cameras=["head"]).root)


def training(policy: Any, root: Path, **dataset: Any) -> Any:
    """What lerobot-train hands to its dataset factory."""
    source = DatasetConfig("local/tiny", root=str(root), video_backend="pyav", use_imagenet_stats=False, **dataset)
    return TrainPipelineConfig(dataset=source, policy=policy)


@pytest.fixture
def unwrapped(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """LeRobot's factory as LeRobot made it; put back afterwards as other tests need it."""
    for name in ("make_dataset", "make_train_eval_datasets"):
        stock = getattr(factory, name)
        while hasattr(stock, "__wrapped__"):
            stock = stock.__wrapped__
        for module in (factory, lerobot_train, __import__("lerobot.datasets").datasets):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stock)
    return factory


def test_the_factory_is_wrapped_once_and_everywhere(unwrapped: Any):
    stock = unwrapped.make_train_eval_datasets
    stock_training.install()
    wrapped = unwrapped.make_dataset, unwrapped.make_train_eval_datasets
    assert wrapped[1].__wrapped__ is stock
    assert lerobot_train.make_train_eval_datasets is wrapped[1], "imported by name before the plugin was"
    stock_training.install()
    assert (unwrapped.make_dataset, unwrapped.make_train_eval_datasets) == wrapped


def test_other_policies_get_exactly_what_lerobot_made(unwrapped: Any, root: Path, monkeypatch: pytest.MonkeyPatch):
    stock_training.install()
    policy = ACTConfig(push_to_hub=False)
    assert type(unwrapped.make_dataset(training(policy, root)).reader) is DatasetReader
    for dataset in lerobot_train.make_train_eval_datasets(training(policy, root, eval_split=0.3)):
        assert type(dataset.reader) is DatasetReader
    anything = object()
    monkeypatch.setattr(unwrapped, "make_dataset", lambda cfg: anything)
    stock_training.install()
    assert unwrapped.make_dataset(object()) is anything


@pytest.mark.parametrize(("cache_frames_gb", "reader"), [(0.0, SparseVideoReader), (0.5, FrameCachingReader)])
def test_our_policy_gets_the_reader_it_asks_for(unwrapped: Any, root: Path, cache_frames_gb: float, reader: type):
    stock_training.install()
    policy = tiny_config(cache_frames_gb=cache_frames_gb)
    assert isinstance(policy, InternVLAA1Config)
    dataset, nothing = lerobot_train.make_train_eval_datasets(training(policy, root))
    assert type(dataset.reader) is reader and nothing is None
    stock = unwrapped.make_dataset.__wrapped__(training(policy, root))
    assert type(stock.reader) is DatasetReader
    for index in (0, 14, len(stock) - 1):
        ours, theirs = dataset[index], stock[index]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours if key != "task")


def test_a_split_keeps_its_readers_and_caches_the_training_part(unwrapped: Any, root: Path):
    stock_training.install()
    cfg = training(tiny_config(cache_frames_gb=0.5), root, eval_split=0.3)
    train, held_out = lerobot_train.make_train_eval_datasets(cfg)
    assert type(train.reader) is FrameCachingReader
    assert type(held_out.reader) is SparseVideoReader
    train[0], held_out[0]
    assert train.reader.cached_bytes > 0


def test_a_command_that_does_not_train_is_left_alone(unwrapped: Any, monkeypatch: pytest.MonkeyPatch):
    stock = unwrapped.make_dataset
    monkeypatch.delitem(sys.modules, "lerobot.datasets.factory")
    stock_training.install()
    assert unwrapped.make_dataset is stock


def test_importing_us_before_lerobots_training_changes_nothing():
    """As in a notebook that calls lerobot_train.main() in its last cell; the import itself stays light."""
    script = """
import sys
import lerobot_internvla
assert "lerobot.datasets.factory" not in sys.modules
from lerobot.scripts import lerobot_train
assert not hasattr(lerobot_train.make_train_eval_datasets, "__wrapped__")
lerobot_internvla.InternVLAA1Config(variant="tiny", device="cpu", push_to_hub=False)
assert lerobot_train.make_train_eval_datasets.__wrapped__
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
