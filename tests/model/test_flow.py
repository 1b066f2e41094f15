"""Flow matching: the path between noise and actions, the times of the Euler steps, the draws of training."""

import pytest
import torch
from safetensors.torch import load_file

from lerobot_internvla.model.flow import draw_noise_and_time, euler_times, noisy_actions, target_velocity

SHAPE = (6, 5, 3)
BETA = {"alpha": 1.5, "beta": 1.0, "scale": 0.999, "offset": 0.001}


def draw(rank: int, seed: int | None = None, shape: tuple[int, int, int] = SHAPE):
    if seed is not None:
        torch.manual_seed(seed)
    return draw_noise_and_time(shape, **BETA, rank=rank)


def test_the_path_runs_from_actions_to_noise_at_constant_velocity():
    actions, noise = torch.randn(2, 4, 3, 2)
    at = lambda time: noisy_actions(actions, noise, torch.full((4,), time))
    assert torch.equal(at(0.0), actions)
    assert torch.equal(at(1.0), noise)
    slope = (at(0.75) - at(0.25)) / 0.5
    torch.testing.assert_close(slope, target_velocity(actions, noise))


def test_every_sample_has_its_own_time():
    actions, noise = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    assert noisy_actions(actions, noise, torch.tensor([0.25, 1.0])).flatten().tolist() == [0.25, 1.0]


def test_euler_times_are_the_accumulated_ones_of_the_released_model(goldens):
    recorded = load_file(goldens / "schedule" / "euler_times.safetensors")
    assert len(recorded) == 15
    for name, expected in recorded.items():
        steps = int(name.split(".")[1])
        times = torch.stack(euler_times(steps, torch.device("cpu")))
        assert len(times) == steps
        assert torch.equal(times, expected.to(times.dtype))


def test_ranks_draw_different_noise_and_time_from_the_same_state():
    drawn = [draw(rank, seed=3) for rank in range(4)]
    for i, (noise, time) in enumerate(drawn):
        for other_noise, other_time in drawn[i + 1 :]:
            assert (noise != other_noise).all()
            assert (time != other_time).any()


def test_all_ranks_take_the_same_from_the_global_generator():
    """Otherwise shuffling and augmentation would run apart on the ranks after the first step."""
    states = []
    for rank in (0, 1, 7):
        draw(rank, seed=5)
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)
    draw(0, seed=5)
    draw(0)
    assert not torch.equal(torch.get_rng_state(), states[0]), "a step must move the generator on"


def test_restoring_the_global_generator_repeats_the_draw():
    draw(1, seed=9)
    state = torch.get_rng_state()
    first = draw(1)
    draw(1)
    torch.set_rng_state(state)
    again = draw(1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_steps_differ():
    first, second = draw(0, seed=1), draw(0)
    assert (first[0] != second[0]).all() and (first[1] != second[1]).all()


def test_noise_is_standard_normal_and_time_is_dense_near_noise():
    noise, time = draw(0, seed=0, shape=(20_000, 1, 1))
    assert noise.dtype == time.dtype == torch.float32
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert time.min() >= 0.001 and time.max() <= 1.0
    # Beta(1.5, 1): mean 0.6, and P(t < x) = x^1.5.
    assert time.mean() == pytest.approx(0.999 * 0.6 + 0.001, abs=0.01)
    assert (time < 0.5).float().mean() == pytest.approx(0.5**1.5, abs=0.02)
