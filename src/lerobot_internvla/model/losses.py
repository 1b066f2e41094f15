"""What training minimises: action + lambda x foresight (paper section "Training objective"), over real elements only.

The reference averages over padded steps, padded dims, clamped future frames and letterbox bars as well; for a 14-joint
robot 56 % of its action loss is padding. ``reference=True`` reproduces that for parity; the default counts what is
real.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .inputs import Prediction, Targets


@dataclass(frozen=True)
class LossBreakdown:
    """Scalars of one batch; ``*_per_sample`` are [B]. A term without valid elements is 0 and its count is 0."""

    total: Tensor
    total_per_sample: Tensor
    action: Tensor
    foresight: Tensor
    action_elements: Tensor
    """Number of action elements that counted."""
    foresight_elements: Tensor
    """Number of latent elements that counted."""

    def as_floats(self) -> dict[str, float]:
        """The same keys on every step and every rank, as Python floats (one host read)."""
        names = ("loss_action", "loss_foresight", "valid_action_elements", "valid_foresight_elements")
        scalars = [self.action, self.foresight, self.action_elements.float(), self.foresight_elements.float()]
        values: list[float] = torch.stack(scalars).detach().tolist()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return dict(zip(names, values, strict=True))


def _masked_mean(error: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over valid elements: pooled, per sample [B], and the number of elements. 0 where there are none."""
    valid = valid.expand_as(error)
    # where, not multiplication: a masked element may hold anything, and 0 * inf is nan.
    kept = torch.where(valid, error, 0.0)
    per_sample, count = kept.flatten(1).sum(1), valid.flatten(1).sum(1)
    return kept.sum() / count.sum().clamp(min=1), per_sample / count.clamp(min=1), count.sum()


def compute_losses(
    prediction: Prediction, targets: Targets, camera_is_present: Tensor, *, lambda_gen: float, reference: bool = False
) -> LossBreakdown:
    """Squared errors of velocities and future latents, averaged over what is real.

    Args:
        prediction: of the training pass.
        targets: with masks.
        camera_is_present: [B, V] bool.
        lambda_gen: weight of the foresight term (0.01 in the paper).
        reference: average as the reference does: all chunk steps and dims, every present camera (parity only).
    """
    action_error = (prediction.target_velocity - prediction.velocity).float().square()
    action_valid = torch.ones_like(targets.action_is_valid) if reference else targets.action_is_valid
    # Several draws of noise and time per sample are averaged: the mask is the same for all of them.
    action_error = torch.unflatten(action_error, 0, (action_valid.shape[0], -1)).mean(dim=1)
    action, action_each, action_elements = _masked_mean(action_error, action_valid)

    if prediction.future_latents is None or prediction.target_future_latents is None:
        foresight = foresight_elements = action.new_zeros(())
        foresight_each = torch.zeros_like(action_each)
    else:
        error = (prediction.future_latents.float() - prediction.target_future_latents.float()).square()
        valid = camera_is_present[:, :, None, None, None]
        if not reference:
            assert targets.future_is_valid is not None and targets.latent_is_content is not None
            valid = valid & targets.future_is_valid[:, :, None, None, None] & targets.latent_is_content[:, :, None]
        foresight, foresight_each, foresight_elements = _masked_mean(error, valid)

    return LossBreakdown(
        total=action + lambda_gen * foresight,
        total_per_sample=action_each + lambda_gen * foresight_each,
        action=action,
        foresight=foresight,
        action_elements=action_elements,
        foresight_elements=foresight_elements,
    )
