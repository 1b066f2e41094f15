"""Numbers that are none and frames that are missing never become a command."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from lerobot_internvla import InternVLAError
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.serving.faults import refuse_unusable_observation
from lerobot_internvla.testing import tiny_batch, tiny_policy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("act", ["select_action", "predict_action_chunk"])
def test_a_state_that_is_no_number_is_refused_by_joint(act: str, value: float):
    policy = tiny_policy(state_feature_names=["base", "elbow", "wrist", "grip"])
    batch = tiny_batch(policy.config, 1, moment="tick")
    batch["observation.state"] = batch["observation.state"].clone()
    batch["observation.state"][0, 1] = value
    with pytest.raises(InternVLAError, match=r"dim 1 \(elbow\)"):
        getattr(policy, act)(batch)


def test_a_state_that_fails_within_a_chunk_is_refused_too():
    policy = tiny_policy()
    batch = tiny_batch(policy.config, 1, moment="tick")
    policy.select_action(batch)
    batch["observation.state"] = torch.full_like(batch["observation.state"], math.nan)
    with pytest.raises(InternVLAError, match="not a number in dim 0, dim 1"):
        policy.select_action(batch)


@pytest.mark.parametrize("act", ["select_action", "predict_action_chunk"])
def test_actions_that_are_no_numbers_do_not_leave_the_policy(act: str, monkeypatch: pytest.MonkeyPatch):
    policy = tiny_policy()

    def diverged(self: InternVLAA1, prefill: Any, noise: torch.Tensor, num_steps: int) -> torch.Tensor:
        actions = noise.clone()
        actions[:, 3, 2] = math.nan
        return actions

    monkeypatch.setattr(InternVLAA1, "sample_actions", diverged)
    with pytest.raises(InternVLAError, match="none of this chunk is executed"):
        getattr(policy, act)(tiny_batch(policy.config, 1, moment="tick"))
    assert not policy._action_queue


def test_every_fault_of_an_observation_is_told_at_once():
    picture = np.zeros((4, 4, 3), np.uint8)
    cameras = {"top": "observation.images.head", "wrist": "observation.images.left_wrist", "side": "x"}
    observation = {"top": None, "side": picture[0], "wrist": picture, "a.pos": 1.0, "b.pos": math.nan}
    with pytest.raises(InternVLAError) as told:
        refuse_unusable_observation(observation, cameras, ["a.pos", "b.pos", "c.pos"])
    for part in ("'top'", "no frame", "'side' delivered (4, 3)", "'b.pos' is at nan", "'c.pos' has no position"):
        assert part in str(told.value)
    assert "'wrist'" not in str(told.value) and "'a.pos'" not in str(told.value)
    refuse_unusable_observation({"top": picture, "a.pos": 0.5}, {"top": "x"}, ["a.pos"])
