"""Errors of predicted chunks, kept as sums per horizon step and joint: memory does not grow with the dataset.

Axes: S horizon steps (0 is the moment of the observation), J joints (dims of the action).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Sums over chunks, in the dataset's units. A joint that a method says nothing about has count 0."""

    count: Float[Tensor, "step joint"]
    """Pairs of predicted and recorded actions; steps beyond an episode's end are not among them."""
    absolute: Float[Tensor, "step joint"]
    squared: Float[Tensor, "step joint"]

    @classmethod
    def none(cls, steps: int, joints: int) -> "Errors":
        """Nothing counted yet."""
        return cls(*(torch.zeros(steps, joints, dtype=torch.float64) for _ in range(3)))

    @classmethod
    def of(cls, differences: Float[Tensor, "chunk step joint"]) -> "Errors":
        """Of predicted minus recorded actions; nan where there is nothing to compare."""
        counts = ~differences.isnan()
        differences = differences.double().nan_to_num()
        return cls(counts.double().sum(dim=0), differences.abs().sum(dim=0), differences.square().sum(dim=0))

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(self.count + other.count, self.absolute + other.absolute, self.squared + other.squared)

    @property
    def steps(self) -> int:
        return self.count.shape[0]

    def first(self, steps: int) -> "Errors":
        """The first ``steps`` steps of every chunk only."""
        return Errors(self.count[:steps], self.absolute[:steps], self.squared[:steps])

    def mae_by_step(self) -> Float[Tensor, "step joint"]:
        """Mean absolute error; nan where nothing was counted."""
        return self.absolute / self.count

    def mae(self) -> Float[Tensor, " joint"]:
        """Mean absolute error over all steps; nan where nothing was counted."""
        return self.absolute.sum(dim=0) / self.count.sum(dim=0)

    def mse(self) -> Float[Tensor, " joint"]:
        """Mean squared error over all steps; nan where nothing was counted."""
        return self.squared.sum(dim=0) / self.count.sum(dim=0)

    def mean_absolute_error(self) -> float:
        """One number over all steps and joints. Joints of different units weigh as their numbers do."""
        return float(self.absolute.sum() / self.count.sum())

    def mean_squared_error(self) -> float:
        """As ``mean_absolute_error``; what papers print."""
        return float(self.squared.sum() / self.count.sum())

    def relative_error(self, spread: Float[Tensor, " joint"]) -> float:
        """Mean over joints of the mean absolute error in units of ``spread``, so that units do not matter.

        Args:
            spread: standard deviation of each joint's recorded actions; joints without (0 or nan) are left out.

        Returns:
            nan when no joint can be counted.
        """
        in_spreads = self.mae() / spread
        usable = (spread > 0) & ~in_spreads.isnan()
        return float(in_spreads[usable].mean()) if bool(usable.any()) else float("nan")
