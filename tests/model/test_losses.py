"""Losses, against means worked out by hand: what is padded, missing or made up does not count."""

import pytest
import torch

from lerobot_internvla.model.inputs import Prediction, Targets
from lerobot_internvla.model.losses import LossBreakdown, compute_losses

KEYS = {"loss_action", "loss_foresight", "valid_action_elements", "valid_foresight_elements"}


def case() -> tuple[Prediction, Targets, torch.Tensor]:
    """Two samples, two steps, two dims; two views of 2 channels x 1 x 2 cells. Errors are small whole numbers."""
    error = torch.tensor([[[1.0, 2.0], [3.0, 100.0]], [[4.0, 100.0], [100.0, 100.0]]])
    action_is_valid = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])
    future_error = torch.zeros(2, 2, 2, 1, 2)
    future_error[0, 0, :, 0, 0] = torch.tensor([1.0, 3.0])  # sample 0, view 0: the cell that shows content
    future_error[0, 0, :, 0, 1] = 100.0  # letterbox bar
    future_error[0, 1] = 100.0  # missing camera
    future_error[1, 0] = 100.0  # frame clamped at the end of the episode
    future_error[1, 1, :, 0, 0] = torch.tensor([2.0, 2.0])
    future_error[1, 1, :, 0, 1] = torch.tensor([0.0, 4.0])
    content = torch.ones(2, 2, 1, 2, dtype=torch.bool)
    content[0, 0, 0, 1] = False
    prediction = Prediction(
        velocity=torch.zeros_like(error),
        target_velocity=error,
        future_latents=torch.zeros_like(future_error),
        target_future_latents=future_error,
    )
    targets = Targets(
        actions=torch.zeros(2, 2, 2),
        action_is_valid=action_is_valid,
        future_images=torch.zeros(2, 2, 3, 1, 1),
        future_is_valid=torch.tensor([[True, True], [False, True]]),
        latent_is_content=content,
    )
    camera_is_present = torch.tensor([[True, False], [True, True]])
    return prediction, targets, camera_is_present


def test_only_real_elements_count():
    losses = compute_losses(*case(), lambda_gen=0.5)
    action = (1 + 4 + 9 + 16) / 4
    foresight = (1 + 9 + 4 + 4 + 0 + 16) / 6
    assert losses.action.item() == pytest.approx(action)
    assert losses.foresight.item() == pytest.approx(foresight)
    assert losses.total.item() == pytest.approx(action + 0.5 * foresight)
    assert losses.as_floats() == {
        "loss_action": pytest.approx(action),
        "loss_foresight": pytest.approx(foresight),
        "valid_action_elements": 4.0,
        "valid_foresight_elements": 6.0,
    }


def test_each_sample_is_averaged_over_its_own_elements():
    losses = compute_losses(*case(), lambda_gen=0.5)
    expected = [(1 + 4 + 9) / 3 + 0.5 * (1 + 9) / 2, 16 + 0.5 * (4 + 4 + 0 + 16) / 4]
    assert losses.total_per_sample.tolist() == pytest.approx(expected)


def test_the_reference_averages_over_padding_but_not_over_missing_cameras():
    prediction, targets, present = case()
    losses = compute_losses(prediction, targets, present, lambda_gen=1.0, reference=True)
    assert losses.action.item() == pytest.approx(prediction.target_velocity.square().mean().item())
    kept = prediction.target_future_latents[present]
    assert losses.foresight.item() == pytest.approx(kept.square().mean().item())


def test_masked_elements_may_hold_anything_finite():
    """Even a value whose square overflows changes nothing, and gets no gradient."""
    prediction, targets, present = case()
    error = prediction.target_velocity.masked_fill(~targets.action_is_valid, 1e30).requires_grad_()
    dirty = Prediction(prediction.velocity, error, prediction.future_latents, prediction.target_future_latents)
    losses = compute_losses(dirty, targets, present, lambda_gen=0.5)
    assert losses.action.item() == pytest.approx(7.5)
    losses.total.backward()
    assert torch.equal(error.grad != 0, targets.action_is_valid)


def without_actions(targets: Targets) -> Targets:
    nothing = torch.zeros_like(targets.action_is_valid)
    return Targets(targets.actions, nothing, targets.future_images, targets.future_is_valid, targets.latent_is_content)


def test_a_batch_without_actions_has_a_finite_loss_and_the_same_keys():
    prediction, targets, present = case()
    losses = compute_losses(prediction, without_actions(targets), present, lambda_gen=0.5)
    assert losses.action.item() == 0.0
    assert losses.total.item() == pytest.approx(0.5 * losses.foresight.item())
    assert losses.as_floats().keys() == KEYS
    assert losses.as_floats()["valid_action_elements"] == 0.0


def test_a_policy_without_foresight_has_the_same_keys():
    prediction, targets, present = case()
    bare = Prediction(prediction.velocity, prediction.target_velocity, None, None)
    losses = compute_losses(bare, targets, present, lambda_gen=0.5)
    assert losses.total.item() == pytest.approx(7.5)
    assert losses.as_floats().keys() == KEYS
    assert losses.as_floats()["loss_foresight"] == 0.0


def test_nothing_valid_at_all_is_zero_not_nan():
    prediction, targets, present = case()
    losses: LossBreakdown = compute_losses(
        prediction, without_actions(targets), torch.zeros_like(present), lambda_gen=0.5
    )
    assert losses.total.item() == 0.0
    assert losses.total_per_sample.tolist() == [0.0, 0.0]


def test_several_draws_of_one_sample_are_averaged():
    """The draws of one sample follow each other; two draws with errors 0 and e average to e^2 / 2."""
    prediction, targets, present = case()
    doubled = Prediction(
        velocity=torch.zeros(4, 2, 2),
        target_velocity=torch.stack([prediction.target_velocity, torch.zeros(2, 2, 2)], dim=1).flatten(0, 1),
        future_latents=prediction.future_latents,
        target_future_latents=prediction.target_future_latents,
    )
    losses = compute_losses(doubled, targets, present, lambda_gen=0.5)
    assert losses.action.item() == pytest.approx(7.5 / 2)
    assert losses.total_per_sample.shape == (2,)
    assert losses.as_floats()["valid_action_elements"] == 4.0
