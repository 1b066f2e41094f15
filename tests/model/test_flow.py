"""Flow matching: the path between noise and actions, the times of the Euler steps, the draws of training."""

import pytest
import torch
from safetensors.torch import load_file

from lerobot_internvla.model.flow import NoiseSeeds, draw_noise_and_time, euler_times, noisy_actions, target_velocity

SHAPE = (6, 5, 3)
BETA = {"alpha": 1.5, "beta": 1.0, "scale": 0.999, "offset": 0.001}


def draw(seed: int, shape: tuple[int, int, int] = SHAPE):
    return draw_noise_and_time(shape, **BETA, seed=seed)


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


def batches(monkeypatch: pytest.MonkeyPatch, rank: int, count: int, seeds: NoiseSeeds | None = None) -> list[int]:
    """Seeds of the next ``count`` training batches on ``rank``."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    seeds = seeds or NoiseSeeds()
    return [seeds() for _ in range(count)]


def test_every_rank_and_every_batch_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(3)
    drawn = [seed for rank in range(4) for seed in batches(monkeypatch, rank, count=50)]
    assert len(set(drawn)) == 200
    (noise, time), (other_noise, other_time) = draw(drawn[0]), draw(drawn[1])
    assert (noise != other_noise).all() and (time != other_time).all()


def test_the_run_s_seed_decides(monkeypatch: pytest.MonkeyPatch):
    first, again, other = (torch.manual_seed(seed) and batches(monkeypatch, 0, count=3) for seed in (3, 3, 4))
    assert first == again
    assert not set(first) & set(other)


def test_a_restored_count_goes_on_whatever_else_took_random_numbers(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(5)
    seeds = NoiseSeeds()
    batches(monkeypatch, 1, count=2, seeds=seeds)
    saved = {name: tensor.clone() for name, tensor in seeds.state_dict().items()}
    expected = batches(monkeypatch, 1, count=3, seeds=seeds)
    torch.rand(7)
    resumed = NoiseSeeds()
    resumed.load_state_dict(saved)
    assert batches(monkeypatch, 1, count=3, seeds=resumed) == expected


def test_a_draw_leaves_the_global_generator_alone():
    """Otherwise shuffling and augmentation would run apart on the ranks after the first step."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again = draw(11), draw(11)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_noise_is_standard_normal_and_time_is_dense_near_noise():
    noise, time = draw(0, shape=(20_000, 1, 1))
    assert noise.dtype == time.dtype == torch.float32
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert time.min() >= 0.001 and time.max() <= 1.0
    # Beta(1.5, 1): mean 0.6, and P(t < x) = x^1.5.
    assert time.mean() == pytest.approx(0.999 * 0.6 + 0.001, abs=0.01)
    assert (time < 0.5).float().mean() == pytest.approx(0.5**1.5, abs=0.02)
