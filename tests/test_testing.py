"""The public test helpers keep their promises: complete, deterministic, readable by LeRobot."""

from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla import InternVLAError
from lerobot_internvla.data.sources import load_mixture
from lerobot_internvla.testing import (
    SMALL,
    small_config,
    tiny_batch,
    tiny_config,
    tiny_dataset,
    tiny_mixture,
    tiny_policy,
)


def test_a_batch_has_what_the_configuration_asks_for():
    config = tiny_config(cameras=["top"], image_size=(48, 64), state_dim=7, action_dim=3)
    training, tick = tiny_batch(config, 5), tiny_batch(config, 5, moment="tick")
    assert training["observation.images.top"].shape == (5, 3, 3, 48, 64)
    assert training["observation.state"].shape == (5, 3, 7)
    assert training["action"].shape == (5, 10, 3)
    assert training["observation.images.top_is_pad"].shape == (5, 3)
    assert tick["observation.images.top"].shape == (5, 3, 48, 64) and tick["observation.state"].shape == (5, 7)
    assert len(training["task"]) == len(tick["task"]) == 5
    assert tiny_batch(tiny_config(use_foresight=False))["observation.images.head"].shape[1] == 1


def test_the_same_seed_gives_the_same_thing_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first, second, other = tiny_policy(), tiny_policy(), tiny_policy(seed=1)
    batches = [tiny_batch(first.config, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    weights = [policy.model.action_head.state_proj.weight for policy in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(batches[0]["action"], batches[1]["action"])
    assert not torch.equal(batches[0]["action"], batches[2]["action"])


@pytest.mark.parametrize("variant", list(SMALL))
def test_every_variant_is_built_small_and_offline(variant: str):
    policy = tiny_policy(small_config(variant))
    assert policy.config.variant == variant
    assert sum(p.numel() for p in policy.parameters()) < 3_000_000
    assert torch.isfinite(policy.forward(tiny_batch(policy.config, 1))[0])


def test_a_configuration_and_changes_to_it_exclude_each_other():
    with pytest.raises(InternVLAError, match="chunk_size"):
        tiny_policy(tiny_config(), chunk_size=3)


@pytest.mark.parametrize("video", [True, False])
def test_a_dataset_is_a_real_one_with_the_names_that_were_asked_for(tmp_path: Path, video: bool):
    made = tiny_dataset(
        tmp_path / "data",
        cameras={"top": (32, 48), "wrist": (40, 40)},
        joint_names=["a", "b", "grip"],
        state_names=["a", "b", "grip", "speed"],
        fps=15,
        episode_lengths=(5, 7),
        video=video,
    )
    opened = LeRobotDataset("local/tiny", root=tmp_path / "data", video_backend="pyav")
    assert (len(opened), opened.num_episodes, opened.fps) == (12, 2, 15)
    assert opened.meta.features["action"]["names"] == ["a", "b", "grip"]
    assert opened.meta.features["observation.state"]["shape"] == (4,)
    assert opened.meta.features["observation.images.top"]["dtype"] == ("video" if video else "image")
    first, second = opened[0], opened[1]
    assert first["observation.images.top"].shape == (3, 32, 48)
    assert torch.equal(first["action"], second["observation.state"][:3]), "the action is where the robot goes next"
    assert first["task"] != opened[5]["task"]
    assert made.meta.stats is not None


def test_pictures_show_where_the_joints_are(tmp_path: Path):
    data = tiny_dataset(tmp_path / "data", cameras=["top"], episode_lengths=(20,), video=False)
    for index in (0, 9, 19):
        frame = data[index]
        bright = (frame["observation.images.top"][0] > 0.8).nonzero().float().mean(dim=0)
        row, column = ((bright + 0.5 - 8) / (64 - 16) * 2 - 1).tolist()
        assert column == pytest.approx(frame["observation.state"][0].item(), abs=0.05)
        assert row == pytest.approx(frame["observation.state"][1].item(), abs=0.05)


def test_no_folder_is_overwritten(tmp_path: Path):
    with pytest.raises(InternVLAError, match="exists already"):
        tiny_dataset(tmp_path)


def test_the_mixture_is_three_robots_in_four_datasets(mixture_file: Path):
    mixture = load_mixture(mixture_file)
    assert [robot.name for robot in mixture.embodiments] == ["tiny_arm", "tiny_slider", "tiny_people"]
    found = {source.name: (source.weight, source.fps, source.interval_frames) for source in mixture.sources}
    assert found == {
        "arm": (pytest.approx(0.4), 30, 15),
        "slider": (pytest.approx(0.3), 10, 5),
        "fast_slider": (pytest.approx(0.1), 10, 10),
        "people": (pytest.approx(0.2), 10, 5),
    }
    assert [source.trains_actions for source in mixture.sources] == [True, True, True, False]
    assert [robot.relative_mask for robot in mixture.embodiments] == [(True,) * 3 + (False,), (True, True, False), ()]
    with pytest.raises(InternVLAError, match="exists already"):
        tiny_mixture(mixture_file.parent)
