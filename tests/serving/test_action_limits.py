"""The limiter: whatever a policy asks for, what is sent is within the range and a step from the command before."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_internvla import InternVLAError
from lerobot_internvla.embodiments.limits import ActionLimits, JointLimit
from lerobot_internvla.serving import action_limits
from lerobot_internvla.serving.action_limits import TOLD_AT_MOST, ActionLimiter

ARM = ActionLimits(
    (
        JointLimit("lift.pos", "deg", low=-100.0, high=100.0, speed=300.0),
        JointLimit("grip.pos", "0..100", low=0.0, high=100.0),
        JointLimit("base.vel", "m/s", speed=0.6),
        JointLimit("free.pos", "rad"),
    ),
    "preset arm",
)
NUMBERS = st.floats(-1e4, 1e4, width=32)
COMMANDS = st.lists(st.lists(NUMBERS, min_size=4, max_size=4), min_size=1, max_size=6)


def arm() -> ActionLimiter:
    return ActionLimiter(ARM, rate_hz=30.0)


def start(limiter: ActionLimiter, *positions: float) -> ActionLimiter:
    limiter.start_from(dict(zip(limiter.names, positions, strict=True)))
    return limiter


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=action_limits.logger.name)
    return caplog


@settings(deadline=None)
@given(COMMANDS, st.lists(st.floats(0, 90, width=32), min_size=4, max_size=4))
def test_what_is_sent_is_in_range_and_a_step_from_the_command_before(commands: list[list[float]], at: list[float]):
    limiter, before = start(arm(), *at), np.array(at)
    for asked in commands:
        sent = limiter.limit(torch.tensor(asked)).double().numpy()
        assert -100 <= sent[0] <= 100 and 0 <= sent[1] <= 100
        assert abs(sent[0] - before[0]) <= 10 + 1e-4, "300 degrees a second are 10 in a tick"
        assert abs(sent[2] - before[2]) <= 0.02 + 1e-4
        assert sent[3] == np.float32(asked[3]), "no limit, no change"
        before = sent


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(0, 100, width=32), NUMBERS), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_what_is_within_the_limits_is_sent_bit_for_bit(commands: list[tuple[float, float, float]], dtype: torch.dtype):
    limiter, lift = start(arm(), 0.0, 0.0, 0.5, 0.0), 0.0
    for change, grip, free in commands:
        lift = min(max(lift + change, -100.0), 100.0)
        asked = torch.tensor([lift, grip, 0.5, free], dtype=dtype)
        lift = float(asked[0])
        assert limiter.limit(asked) is asked


def test_a_joint_outside_its_range_is_led_back_and_never_further_out():
    limiter = start(arm(), 130.0, 50.0, 0.0, 0.0)
    for asked, expected in ((140.0, 120.0), (0.0, 110.0), (99.0, 100.0), (95.0, 95.0)):
        assert float(limiter.limit(torch.tensor([asked, 50.0, 0.0, 0.0]))[0]) == expected


def test_the_first_command_is_compared_with_where_the_joint_is_and_a_new_episode_with_where_it_is_then():
    limiter = arm()
    assert limiter.needs_start
    start(limiter, 40.0, 0.0, 0.0, 0.0)
    assert float(limiter.limit(torch.tensor([0.0, 0.0, 0.0, 0.0]))[0]) == 30.0
    limiter.end_episode()
    assert limiter.needs_start
    start(limiter, -50.0, 0.0, 0.0, 0.0)
    assert float(limiter.limit(torch.zeros(4))[0]) == -40.0


def test_a_joint_whose_position_is_unknown_is_limited_from_its_second_command_on():
    limiter = arm()
    limiter.start_from({"grip.pos": 0.0})
    assert float(limiter.limit(torch.tensor([90.0, 0.0, 0.0, 0.0]))[0]) == 90.0
    assert float(limiter.limit(torch.zeros(4))[0]) == 80.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_passes(value: float):
    limiter = start(arm(), 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(InternVLAError, match=r"dim 1 \(grip.pos\)"):
        limiter.limit(torch.tensor([0.0, value, 0.0, 0.0]))
    with pytest.raises(InternVLAError, match=r"dim 0 \(lift.pos\)"):
        arm().start_from({"lift.pos": value})


def test_the_first_cut_of_a_joint_is_told_and_all_are_summed_up(told: pytest.LogCaptureFixture):
    limiter = start(arm(), 95.0, 50.0, 0.0, 0.0)
    for lift in (104.0, 120.0, 99.0):
        limiter.limit(torch.tensor([lift, 100.4, 0.0, 0.0]))
    limiter.limit(torch.tensor([50.0, 50.0, 0.0, 0.0]))
    limiter.end_episode()
    warnings = [record.getMessage() for record in told.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2, "0.4 percent beyond is cut and counted, not warned of"
    assert "lift.pos was to go to 104 deg, which is beyond its range -100..100 (preset arm): 100 is sent" in warnings[0]
    assert "lift.pos was to go to 50 deg, which is too far from 99 for one tick at 300 deg/s" in warnings[1]
    assert "89 is sent" in warnings[1]
    assert told.records[-1].getMessage() == (
        "Action limits: of 4 commands lift.pos 2 times beyond its range (by up to 20 deg); lift.pos 1 times too fast "
        "(by up to 39 deg); grip.pos 3 times beyond its range (by up to 0.4)."
    )
    told.clear()
    limiter.end_episode()
    assert not told.records, "no command, no summary"
    start(limiter, 0.0, 0.0, 0.0, 0.0).limit(torch.zeros(4))
    limiter.end_episode()
    assert told.records[-1].getMessage() == "Action limits: of 1 commands none was cut."


def test_warnings_come_to_an_end(told: pytest.LogCaptureFixture):
    limiter = arm()
    for _ in range(2 * TOLD_AT_MOST):
        start(limiter, 100.0, 0.0, 0.0, 0.0).limit(torch.tensor([150.0, 0.0, 0.0, 0.0]))
        limiter.end_episode()
    warnings = [record.getMessage() for record in told.records if record.levelno == logging.WARNING]
    assert len(warnings) == TOLD_AT_MOST and "the last warning" in warnings[-1]
