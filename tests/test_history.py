"""Histories answer as a plain list of everything would, and cost as little memory as promised."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.history import FrameHistory, TimedFrameHistory


def frame(number: int, batch: int = 1) -> torch.Tensor:
    """Frames that differ per tick and per environment."""
    return torch.full((batch, 2, 3, 1, 2), number % 256, dtype=torch.uint8) + torch.arange(
        batch, dtype=torch.uint8
    ).reshape(-1, 1, 1, 1, 1)


# One push per tick


@given(
    interval=st.integers(1, 7),
    batch=st.integers(1, 3),
    episodes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
)
def test_past_is_the_frame_of_interval_ticks_ago(interval: int, batch: int, episodes: list[int]) -> None:
    history: FrameHistory[torch.Tensor] = FrameHistory(interval)
    number = 0
    for ticks in episodes:
        history.reset()
        seen: list[torch.Tensor] = []
        for _ in range(ticks):
            seen.append(frame(number, batch))
            history.push(seen[-1])
            # The clamp of training: indices before the episode are its first frame.
            assert torch.equal(history.past(), seen[max(0, len(seen) - 1 - interval)])
            number += 1
        one = seen[0].numel()
        assert history.memory_bytes == one * min(ticks, interval + 1)


def test_cameras_may_differ_in_size() -> None:
    history: FrameHistory[dict[str, torch.Tensor]] = FrameHistory(1)
    for number in range(3):
        history.push({"head": torch.full((2, 3, 4, 5), number / 255), "left_wrist": frame(10 * number, batch=2)})
    assert torch.equal(history.past()["head"], torch.ones(2, 3, 4, 5, dtype=torch.uint8))
    assert torch.equal(history.past()["left_wrist"], frame(10, batch=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_8_bit_value_survives_the_way_through_float(dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    history: FrameHistory[torch.Tensor] = FrameHistory(1)
    history.push(values.to(torch.float32).to(dtype) / 255)
    assert torch.equal(history.past(), values)
    # And back again to what an environment's frames are, to the last bit.
    assert torch.equal(history.past().to(torch.float32) / 255, values.to(torch.float32) / 255)


def test_frames_are_rounded_to_the_nearest_8_bit_value() -> None:
    history: FrameHistory[torch.Tensor] = FrameHistory(1)
    history.push(torch.tensor([[0.0, 0.4 / 255, 0.6 / 255, 1.0005]]))
    assert history.past().tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize("levels", ["all 8-bit values", "halves of them", "anything between"])
@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_the_fast_way_to_bytes_gives_the_bytes_of_the_plain_one(levels: str, lowest: float) -> None:
    """Pictures in [0, 1] go through OpenCV; its rounding, at halves too, is torch's. Negative values go another way."""
    frames = {
        "all 8-bit values": torch.arange(256) / 255,
        "halves of them": torch.arange(511) / 2 / 255,
        "anything between": torch.rand(100_000, generator=torch.Generator().manual_seed(0)),
    }[levels].expand(2, 3, 2, -1)
    frames = torch.cat([frames, torch.full((2, 3, 2, 1), lowest)], dim=3)
    history: FrameHistory[torch.Tensor] = FrameHistory(1)
    history.push(torch.zeros_like(frames))
    plain = (frames * 255).round().clamp(0, 255).to(torch.uint8)
    for form in (frames, frames.transpose(2, 3).contiguous().transpose(2, 3), frames[:, :, ::2].repeat(1, 1, 2, 1)):
        history.push(form)
        history.push(form)
        assert torch.equal(history.past(), plain)


def test_float_frames_of_the_caller_are_left_alone() -> None:
    """The conversion works in place, on a copy of its own."""
    history: FrameHistory[torch.Tensor] = FrameHistory(1)
    history.push(torch.zeros(1, 5))
    frames = torch.tensor([[-0.5, 0.3, 0.4 / 255, 0.5 / 255, 1.7]])
    before = frames.clone()
    history.push(frames)
    history.push(frames)
    assert torch.equal(frames, before)
    assert history.past().tolist() == [[0, 76, 0, 0, 255]], "out of range: clamped, also after the check of the first"


def test_the_conversion_of_a_tick_makes_no_float_copy() -> None:
    """At 480 x 640 new tensors of floats, and torch's cast of them, were most of a tick between chunks."""
    made: list[int] = []

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            inputs = {t.data_ptr() for t in args if isinstance(t, torch.Tensor)}
            if isinstance(out, torch.Tensor) and out.is_floating_point() and out.data_ptr() not in inputs:
                made.append(out.numel())
            return out

    history: FrameHistory[torch.Tensor] = FrameHistory(1)
    history.push(torch.zeros(1, 3, 8, 8))
    with Allocations():
        history.push(torch.rand(1, 3, 8, 8).mul_(0.5))
    assert made.count(192) == 1, "torch.rand's own"


def test_the_callers_buffer_may_be_reused() -> None:
    history: FrameHistory[torch.Tensor] = FrameHistory(2)
    buffer = frame(7)
    history.push(buffer)
    buffer.zero_()
    assert torch.equal(history.past(), frame(7))


def test_the_batch_may_change_only_after_a_reset() -> None:
    history: FrameHistory[torch.Tensor] = FrameHistory(2)
    history.push(frame(0, batch=2))
    with pytest.raises(InternVLAError, match=r"reset"):
        history.push(frame(1, batch=3))
    assert torch.equal(history.past(), frame(0, batch=2)), "the refused frames were stored"
    history.reset()
    history.push(frame(1, batch=3))
    assert torch.equal(history.past(), frame(1, batch=3))


def test_cameras_may_not_come_and_go() -> None:
    history: FrameHistory[dict[str, torch.Tensor]] = FrameHistory(2)
    history.push({"head": frame(0)})
    with pytest.raises(InternVLAError, match="left_wrist"):
        history.push({"head": frame(1), "left_wrist": frame(1)})


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.full((1, 3, 2, 2), 128.0), "from 128 to 128"),
        (torch.full((1, 3, 2, 2), -1.0), "from -1 to -1"),
        (torch.full((1, 3, 2, 2), float("nan")), "nan"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.int64), "dtype torch.int64"),
    ],
)
@pytest.mark.parametrize("timed", [False, True])
def test_values_that_are_no_images_are_refused(frames: torch.Tensor, message: str, timed: bool) -> None:
    with pytest.raises(InternVLAError, match=message):
        TimedFrameHistory(0.5).push(0.0, frames) if timed else FrameHistory(2).push(frames)


def test_an_empty_history_says_so() -> None:
    with pytest.raises(InternVLAError, match="empty"):
        FrameHistory(2).past()
    with pytest.raises(InternVLAError, match="empty"):
        TimedFrameHistory(0.5).past(0.0)


def test_an_interval_below_one_tick_is_refused() -> None:
    with pytest.raises(InternVLAError, match="0 ticks"):
        FrameHistory(0)


def test_a_policy_that_holds_histories_can_be_copied() -> None:
    dense: FrameHistory[torch.Tensor] = FrameHistory(2)
    sparse: TimedFrameHistory[torch.Tensor] = TimedFrameHistory(0.5)
    dense.push(frame(3))
    sparse.push(0.0, frame(4))
    for copied_dense, copied_sparse in (copy.deepcopy((dense, sparse)), pickle.loads(pickle.dumps((dense, sparse)))):
        assert torch.equal(copied_dense.past(), frame(3))
        assert torch.equal(copied_sparse.past(1.0), frame(4))


# Pushes at any time


@st.composite
def arrivals(draw: st.DrawFn) -> list[float]:
    """Milliseconds between frames, as integers, so that sums and ties are exact."""
    gaps = draw(st.lists(st.integers(20, 2000), min_size=0, max_size=40))
    start = draw(st.integers(0, 100_000))
    times = [start]
    for gap in gaps:
        times.append(times[-1] + gap)
    return [float(time) for time in times]


@given(times=arrivals(), lag=st.integers(0, 500), data=st.data())
def test_past_is_the_frame_nearest_to_interval_ago(times: list[float], lag: int, data: st.DataObject) -> None:
    interval = 500.0  # in milliseconds here; the class only needs one unit throughout
    history: TimedFrameHistory[torch.Tensor] = TimedFrameHistory(interval)  # stores frames 8 apart or more: all of them
    for count, time in enumerate(times, start=1):
        history.push(time, frame(count - 1))
        # Ask as late as the caller likes, or up to one interval before the newest frame.
        now = data.draw(st.sampled_from([time, time + lag, time - lag]))
        wanted = now - interval
        nearest = min(range(count), key=lambda i: abs(times[i] - wanted))
        assert torch.equal(history.past(now), frame(nearest))


@given(
    gaps=st.lists(st.floats(0, 0.02), min_size=1, max_size=400),
    max_frames=st.integers(4, 40),
)
def test_memory_stays_bounded_and_time_resolution_is_kept(gaps: list[float], max_frames: int) -> None:
    interval_s = 0.5
    history: TimedFrameHistory[torch.Tensor] = TimedFrameHistory(interval_s, max_frames)
    resolution_s = 2 * interval_s / (max_frames - 2)
    now_s, times = 0.0, []
    for number, gap in enumerate(gaps):
        now_s += gap
        times.append(now_s)
        history.push(now_s, torch.tensor([[number % 256, number // 256]], dtype=torch.uint8))
        low, high = history.past(now_s)[0].tolist()
        chosen = times[low + 256 * high]
        best = min(abs(time - (now_s - interval_s)) for time in times)
        assert abs(chosen - (now_s - interval_s)) <= best + resolution_s + 1e-9
        assert history.memory_bytes <= 2 * max_frames


def test_the_first_frame_stands_in_while_the_episode_is_young() -> None:
    history: TimedFrameHistory[torch.Tensor] = TimedFrameHistory(0.5)
    history.push(100.0, frame(1))
    history.push(100.4, frame(2))
    assert torch.equal(history.past(100.4), frame(1))
    history.reset()
    history.push(3.0, frame(9))  # the clock may start anew after a reset
    assert torch.equal(history.past(3.0), frame(9))


def test_a_clock_that_runs_backwards_is_refused() -> None:
    history: TimedFrameHistory[torch.Tensor] = TimedFrameHistory(0.5)
    history.push(1.0, frame(1))
    for timestamp_s in (0.9, float("nan")):
        with pytest.raises(InternVLAError, match="one clock"):
            history.push(timestamp_s, frame(2))
    history.push(1.0, frame(3))  # the same moment again is no step back


def test_a_moment_whose_frames_are_gone_is_refused() -> None:
    history: TimedFrameHistory[torch.Tensor] = TimedFrameHistory(0.5)
    for tick in range(100):
        history.push(tick / 10, frame(tick))
    assert torch.equal(history.past(9.9), frame(94))
    with pytest.raises(InternVLAError, match="oldest kept"):
        history.past(5.0)


def test_timed_frames_may_not_change_their_shape() -> None:
    history: TimedFrameHistory[torch.Tensor] = TimedFrameHistory(0.5)
    history.push(0.0, frame(0, batch=1))
    with pytest.raises(InternVLAError, match="reset"):
        history.push(0.1, frame(1, batch=2))


@pytest.mark.parametrize(("interval_s", "max_frames"), [(0.0, 10), (float("nan"), 10), (0.5, 3)])
def test_timed_arguments_out_of_range_are_refused(interval_s: float, max_frames: int) -> None:
    with pytest.raises(InternVLAError, match="expected a positive interval"):
        TimedFrameHistory(interval_s, max_frames)
