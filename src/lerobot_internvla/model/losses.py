"""What training minimises: action + lambda x foresight (paper section "Training objective"), over real elements only.

The reference averages over padded steps, padded dims, clamped future frames and letterbox bars as well; for a 14-joint
robot 56 % of its action loss is padding. ``reference=True`` reproduces that for parity; the default counts what is
real.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from .inputs import Prediction, Targets


@dataclass(frozen=True)
class LossTerm:
    """One squared error before any mean: what is needed to take it over a batch, over ranks, or over some samples."""

    sums: Tensor
    """[B]: sum over a sample's valid elements."""
    counts: Tensor
    """[B] float32: how many there are; 0 for a sample that says nothing about this term."""

    @property
    def mean(self) -> Tensor:
        """Scalar: mean over all valid elements; 0 where there are none."""
        return self.sums.sum() / self.counts.sum().clamp(min=1)

    @property
    def mean_per_sample(self) -> Tensor:
        """[B]: mean over each sample's valid elements; 0 where there are none."""
        return self.sums / self.counts.clamp(min=1)


@dataclass(frozen=True)
class LossBreakdown:
    """Scalars of one batch; ``*_per_sample`` are [B]. A term without valid elements is 0 and its count is 0."""

    total: Tensor
    total_per_sample: Tensor
    action: Tensor
    foresight: Tensor
    action_term: LossTerm
    foresight_term: LossTerm

    @property
    def action_elements(self) -> Tensor:
        """Number of action elements that counted."""
        return self.action_term.counts.sum()

    @property
    def foresight_elements(self) -> Tensor:
        """Number of latent elements that counted."""
        return self.foresight_term.counts.sum()

    def scalars(self) -> dict[str, Tensor]:
        """What is worth logging, under the same names on every step and every rank; still on the device."""
        return {
            "loss_action": self.action.detach(),
            "loss_foresight": self.foresight.detach(),
            "valid_action_elements": self.action_elements,
            "valid_foresight_elements": self.foresight_elements,
        }

    def as_floats(self) -> dict[str, float]:
        """``scalars`` as Python floats."""
        return read_floats(self.scalars())


def read_floats(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars on a device -> Python floats, with one host read for all of them."""
    values: list[float] = torch.stack([value.float() for value in scalars.values()]).tolist()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]  # torch types tolist() loosely
    return dict(zip(scalars, values, strict=True))


def _term(error: Tensor, valid: Tensor) -> LossTerm:
    valid = valid.expand_as(error)
    # where, not multiplication: a masked element may hold anything, and 0 * inf is nan.
    kept = torch.where(valid, error, 0.0)
    return LossTerm(kept.flatten(1).sum(1), valid.flatten(1).sum(1).float())


def _means_across_ranks(terms: list[LossTerm]) -> list[Tensor]:
    """Each term's mean over the valid elements of *all* ranks, such that averaging it over ranks gives that mean.

    Data-parallel training averages the ranks' gradients. If each rank divided by its own count, a rank with few valid
    elements (padded chunks, action-free video) would weigh as much as one with many. One collective of a few numbers;
    every rank takes part at every step, whatever its batch holds.
    """
    totals = torch.stack([term.counts.sum() for term in terms])
    torch.distributed.all_reduce(totals)  # pyright: ignore[reportUnknownMemberType]  # torch types its group loosely
    world = torch.distributed.get_world_size()
    return [world * term.sums.sum() / total.clamp(min=1) for term, total in zip(terms, totals, strict=True)]


def compute_losses(
    prediction: Prediction,
    targets: Targets,
    camera_is_present: Tensor,
    *,
    lambda_gen: float,
    reference: bool = False,
    across_ranks: bool = False,
) -> LossBreakdown:
    """Squared errors of velocities and future latents, averaged over what is real.

    Args:
        prediction: of the training pass.
        targets: with masks.
        camera_is_present: [B, V] bool.
        lambda_gen: weight of the foresight term (0.01 in the paper).
        reference: average as the reference does: all chunk steps and dims, every present camera (parity only).
        across_ranks: take both means over the batches of all ranks together (``_means_across_ranks``). Every rank must
            then call this; without an initialised process group it changes nothing.
    """
    action_error = (prediction.target_velocity - prediction.velocity).float().square()
    action_valid = torch.ones_like(targets.action_is_valid) if reference else targets.action_is_valid
    # Several draws of noise and time per sample are averaged: the mask is the same for all of them.
    action_error = torch.unflatten(action_error, 0, (action_valid.shape[0], -1)).mean(dim=1)
    action = _term(action_error, action_valid)

    if prediction.future_latents is None or prediction.target_future_latents is None:
        nothing = torch.zeros_like(action.counts)
        foresight = LossTerm(nothing, nothing)
    else:
        error = (prediction.future_latents.float() - prediction.target_future_latents.float()).square()
        valid = camera_is_present[:, :, None, None, None]
        if not reference:
            assert targets.future_is_valid is not None and targets.latent_is_content is not None
            valid = valid & targets.future_is_valid[:, :, None, None, None] & targets.latent_is_content[:, :, None]
        foresight = _term(error, valid)

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if across_ranks and distributed and torch.distributed.get_world_size() > 1:
        action_mean, foresight_mean = _means_across_ranks([action, foresight])
    else:
        action_mean, foresight_mean = action.mean, foresight.mean
    return LossBreakdown(
        total=action_mean + lambda_gen * foresight_mean,
        total_per_sample=action.mean_per_sample + lambda_gen * foresight.mean_per_sample,
        action=action_mean,
        foresight=foresight_mean,
        action_term=action,
        foresight_term=foresight,
    )
