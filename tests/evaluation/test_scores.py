"""Sums of errors: the same numbers as over all chunks at once, whatever was summed in which order."""

import math

import pytest
import torch

from lerobot_internvla.evaluation.scores import Errors


@pytest.fixture
def differences():
    values = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0))
    values[4, 2:] = torch.nan  # an episode ended
    values[:, :, 2] = torch.nan  # a joint that nothing is said about
    return values


def test_sums_in_parts_are_the_mean_over_everything(differences):
    parts = Errors.none(5, 3) + Errors.of(differences[:3]) + Errors.of(differences[3:])
    counted = differences[:, :, :2]
    torch.testing.assert_close(parts.mae()[:2], counted.double().abs().nanmean(dim=(0, 1)))
    torch.testing.assert_close(parts.mse()[:2], counted.double().square().nanmean(dim=(0, 1)))
    torch.testing.assert_close(parts.mae_by_step()[:, :2], counted.double().abs().nanmean(dim=0))
    assert parts.mean_absolute_error() == pytest.approx(float(counted.abs().nanmean()))
    assert parts.mean_squared_error() == pytest.approx(float(counted.square().nanmean()))


def test_what_was_not_counted_is_nan(differences):
    assert math.isnan(Errors.of(differences).mae()[2])
    assert Errors.of(differences).count[:, 0].tolist() == [7, 7, 6, 6, 6]


def test_the_first_steps_are_counted_alone(differences):
    first = Errors.of(differences).first(2)
    torch.testing.assert_close(first.mae()[:2], differences[:, :2, :2].double().abs().mean(dim=(0, 1)))


def test_units_do_not_matter_to_the_relative_error():
    differences = torch.tensor([[[0.1, 0.2, 5.0]]])
    spread = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)  # the third joint never moved
    assert Errors.of(differences).relative_error(spread) == pytest.approx(0.15)
    in_millimetres = Errors.of(differences * torch.tensor([1000.0, 1, 1]))
    assert in_millimetres.relative_error(spread * torch.tensor([1000.0, 1, 1])) == pytest.approx(0.15)
    assert math.isnan(Errors.of(differences).relative_error(torch.zeros(3, dtype=torch.float64)))
