"""Guidance by the chunk before, single frames with a time, and compiled sampling."""

import logging
from typing import Any

import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.context import _wrap_predict_action_chunk_with_torch_compile
from lerobot.rollout.inference.rtc import supports_rtc_inference
from torch import Tensor

from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.batch_keys import CONTROL_TICK
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.serving.realtime import make_rtc_processor, without_padding
from lerobot_internvla.testing import tiny_batch, tiny_policy

HORIZON = 6


def rtc_policy(**changes: Any) -> InternVLAA1Policy:
    """Under RTC as ``lerobot-rollout`` sets it up: full weight on the first ``HORIZON`` steps, none afterwards."""
    fields = {"num_inference_steps": 10, "chunk_size": 12, "noise_scale": 0.5, **changes}
    policy = tiny_policy(**fields)
    policy.config.rtc_config = RTCConfig(  # pyright: ignore[reportAttributeAccessIssue]  # as LeRobot does
        execution_horizon=HORIZON, prefix_attention_schedule=RTCAttentionSchedule.ONES
    )
    policy.init_rtc_processor()
    return policy


def tick(policy: InternVLAA1Policy) -> dict[str, Any]:
    return tiny_batch(policy.config, 1, moment="tick")


def noise_of(policy: InternVLAA1Policy, seed: int = 0) -> Tensor:
    return torch.randn(1, policy.config.chunk_size, 32, generator=torch.Generator().manual_seed(seed))


def left_over_of(steps: int, seed: int = 3) -> Tensor:
    return torch.randn(steps, 4, generator=torch.Generator().manual_seed(seed))


def test_lerobot_accepts_the_policy_for_rtc():
    assert supports_rtc_inference(tiny_policy())


def test_the_chunk_begins_where_the_one_before_leads():
    policy, left_over = rtc_policy(), left_over_of(HORIZON)
    free = policy.predict_action_chunk(tick(policy), noise_of(policy))[0]
    guided = policy.predict_action_chunk(tick(policy), noise_of(policy), prev_chunk_left_over=left_over)[0]
    before, after = ((chunk[:HORIZON] - left_over).abs().max() for chunk in (free, guided))
    assert before > 0.5
    assert after < 0.1 * before


@pytest.mark.parametrize("representation", ["absolute", "relative"])
def test_what_is_left_is_meant_in_robot_units_wherever_the_robot_stands_now(representation: str):
    """The chunk before was relative to another state: only its absolute targets count."""
    changes = {"action_representation": representation} | (
        {"absolute_joint_indices": [3]} if representation == "relative" else {}
    )
    policy, left_over = rtc_policy(**changes), left_over_of(HORIZON)
    for place in (0.0, 5.0):
        batch = tick(policy) | {"observation.state": torch.full((1, 4), place)}
        guided = policy.predict_action_chunk(batch, noise_of(policy), prev_chunk_left_over=left_over)[0]
        assert (guided[:HORIZON] - left_over).abs().max() < 0.6, place  # 10 % of the largest distance


def test_rows_of_padding_guide_nothing():
    """LeRobot fills up with zeros, which would be commands to the zero position."""
    policy, left_over = rtc_policy(), left_over_of(2)
    padded = torch.cat([left_over, torch.zeros(HORIZON - 2, 4)])
    short, filled = (
        policy.predict_action_chunk(tick(policy), noise_of(policy), prev_chunk_left_over=rows)
        for rows in (left_over, padded)
    )
    assert torch.equal(short, filled)
    assert torch.equal(without_padding(padded), left_over)
    assert without_padding(torch.zeros(3, 4)).shape == (0, 4)
    free = policy.predict_action_chunk(tick(policy), noise_of(policy))
    nothing = policy.predict_action_chunk(tick(policy), noise_of(policy), prev_chunk_left_over=torch.zeros(HORIZON, 4))
    assert torch.equal(free, nothing)


def test_padded_dims_run_as_without_guidance(monkeypatch: pytest.MonkeyPatch):
    """Were they pulled to zero, the model would see dims in a place where training never put them."""
    policy = rtc_policy()
    shown: list[Tensor] = []

    def drift(self: InternVLAA1, prefill: Any, actions: Tensor, time: Tensor) -> Tensor:
        shown.append(actions.clone())
        return torch.ones_like(actions)

    monkeypatch.setattr(InternVLAA1, "denoise_step", drift)
    noise = noise_of(policy)
    policy.predict_action_chunk(tick(policy), noise, prev_chunk_left_over=left_over_of(HORIZON))
    assert len(shown) == 10
    for step, actions in enumerate(shown):
        torch.testing.assert_close(actions[..., 4:], noise[..., 4:] - step / 10)
    assert (shown[-1][0, :HORIZON, :4] - (noise[0, :HORIZON, :4] - 0.9)).abs().max() > 0.1


def test_few_euler_steps_do_not_overshoot(caplog: pytest.LogCaptureFixture):
    """LeRobot's largest weight is 10: a sampler of two steps would go five times too far."""
    with caplog.at_level(logging.INFO):
        policy = rtc_policy(num_inference_steps=2)
    assert "max_guidance_weight 10 is lowered to 2" in caplog.text
    left_over = left_over_of(HORIZON)
    guided = policy.predict_action_chunk(tick(policy), noise_of(policy), prev_chunk_left_over=left_over)[0]
    free = policy.predict_action_chunk(tick(policy), noise_of(policy))[0]
    assert (guided[:HORIZON] - left_over).abs().max() < 0.5 * (free[:HORIZON] - left_over).abs().max()
    assert make_rtc_processor(RTCConfig(enabled=False), 10) is None


def test_a_horizon_of_no_step_is_refused_before_the_robot_connects():
    """LeRobot would run, guide nothing, and say nothing of it."""
    with pytest.raises(InternVLAError, match=r"execution_horizon=0: expected control ticks, at least 1"):
        make_rtc_processor(RTCConfig(execution_horizon=0), 10)


def test_guidance_works_inside_inference_mode_and_leaves_no_graph():
    policy, left_over = rtc_policy(), left_over_of(HORIZON)
    outside = policy.predict_action_chunk(tick(policy), noise_of(policy), prev_chunk_left_over=left_over)
    with torch.inference_mode():
        inside = policy.predict_action_chunk(tick(policy), noise_of(policy), prev_chunk_left_over=left_over)
    assert torch.equal(inside, outside)
    assert not outside.requires_grad


def test_append_mode_and_missing_set_up():
    policy = tiny_policy()
    with pytest.raises(InternVLAError, match="init_rtc_processor"):
        policy.predict_action_chunk(tick(policy), prev_chunk_left_over=left_over_of(3))
    policy.config.rtc_config = RTCConfig(enabled=False)  # pyright: ignore[reportAttributeAccessIssue]
    policy.init_rtc_processor()
    chunks = [
        policy.predict_action_chunk(tick(policy), noise_of(policy), prev_chunk_left_over=rows)
        for rows in (None, left_over_of(3))
    ]
    assert torch.equal(*chunks), "appending guides nothing"


def test_inference_slower_than_the_horizon_is_told(caplog: pytest.LogCaptureFixture):
    policy = rtc_policy()
    for _ in range(2):
        policy.predict_action_chunk(tick(policy), inference_delay=HORIZON, prev_chunk_left_over=left_over_of(HORIZON))
    assert len([r for r in caplog.records if "execution_horizon=12" in r.message]) == 1


# ------------------------------------------------------------------------------------------- single frames with a time


def frames_at(policy: InternVLAA1Policy, value: int) -> dict[str, Any]:
    batch = tick(policy)
    return {**batch, **{key: torch.full_like(batch[key], value / 255) for key in policy.config.image_features}}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """(past, now) of every prefill, as the pixel values of the first camera."""
    shown: list[list[int]] = []
    stock = InternVLAA1.prefill

    def spy(self: InternVLAA1, observation: Any, **kwargs: Any) -> Any:
        shown.append((observation.images[0, 0, :, 0, 0, 0] * 255).round().long().tolist())
        return stock(self, observation, **kwargs)

    monkeypatch.setattr(InternVLAA1, "prefill", spy)
    return shown


def test_single_frames_with_ticks_have_a_past(seen: list[list[int]], caplog: pytest.LogCaptureFixture):
    """The interval is 3 ticks; calls come at odd moments, and frames between them through ``observe``."""
    policy = tiny_policy()
    for moment in (0.0, 1.2, 2.1, 3.4):
        policy.predict_action_chunk(frames_at(policy, round(10 * moment)), tick=moment)
    assert seen == [[0, 0], [0, 12], [0, 21], [0, 34]]
    for moment in (4.0, 5.1, 6.2):
        observed = frames_at(policy, round(10 * moment))
        policy.observe({key: observed[key] for key in policy.config.image_features}, moment)
    policy.predict_action_chunk(frames_at(policy, 72), tick=7.2)
    assert seen[-1] == [40, 72]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    policy.predict_action_chunk(frames_at(policy, 120), tick=12.0)
    assert seen[-1] == [72, 120]
    assert "too rarely" in caplog.records[-1].message and "1.8 ticks" in caplog.records[-1].message
    policy.reset()
    policy.predict_action_chunk(frames_at(policy, 5), tick=1.0)
    assert seen[-1] == [5, 5], "a new episode, and its clock may start anew"


def test_a_chunk_of_an_episode_that_is_over_is_dropped(monkeypatch: pytest.MonkeyPatch):
    """Under RTC another thread resets while a chunk is computed; LeRobot would send it to the robot."""
    policy = tiny_policy()
    stock = InternVLAA1.prefill
    monkeypatch.setattr(InternVLAA1, "prefill", lambda self, o, **k: policy.reset() or stock(self, o, **k))
    with pytest.raises(InternVLAError, match="episode ended"):
        policy.predict_action_chunk(tick(policy))


def test_an_observation_of_an_episode_that_is_over_is_not_predicted_from(seen: list[list[int]]):
    """LeRobot's thread holds one while the control loop resets: it must not become the new episode's first frame."""
    policy = tiny_policy()

    def notify(moment: int) -> dict[str, Any]:
        batch = frames_at(policy, moment)
        policy.observe({key: batch[key] for key in policy.config.image_features}, float(moment))
        return {**batch, CONTROL_TICK: torch.tensor([[float(moment)]])}

    old = notify(5)
    policy.predict_action_chunk(old)
    policy.reset()
    with pytest.raises(InternVLAError, match="episode ended"):
        policy.predict_action_chunk(old)
    new = notify(6)
    with pytest.raises(InternVLAError, match="episode ended"):
        policy.predict_action_chunk(old)
    policy.predict_action_chunk(new)
    assert seen == [[5, 5], [6, 6]]


# -------------------------------------------------------------------------------------------------------- compilation


def test_use_torch_compile_compiles_the_sampler_and_nothing_around_it(monkeypatch: pytest.MonkeyPatch):
    """``lerobot-rollout --use_torch_compile`` sets ``compile_model`` and wraps ``predict_action_chunk`` besides.

    The wrapper would trace tokenizers, dictionaries and clocks; it runs the method as it is, and what is compiled
    inside stays compiled. (That the real sampler is one whole graph is tested in tests/model.)
    """
    torch.compiler.reset()
    graphs: list[Any] = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    policy = tiny_policy()
    sampler = torch.compile(lambda prefill, noise, num_steps: 2 * noise, backend=backend, fullgraph=True)
    monkeypatch.setattr(policy.model, "sample_actions", sampler)
    assert _wrap_predict_action_chunk_with_torch_compile(policy, backend="eager", mode="default")
    for _ in range(2):
        noise = noise_of(policy)
        torch.testing.assert_close(policy.predict_action_chunk(tick(policy), noise), 2 * noise[..., :4])
    assert len(graphs) == 1, "one graph, compiled once"
    torch.compiler.reset()
