"""What each dataset of a mixture contributes: its losses and its share of the samples, for LeRobot's log and W&B.

LeRobot logs plain numbers under names that must be the same on every rank and step, so every dataset reports at every
step. A batch holds only some of them: losses are running means over the samples seen, old ones fading with a half-life
of ``HALF_LIFE`` steps; not a number until a dataset was drawn. Shares count all samples since the run (or its
resumption) began.
"""

from collections.abc import Collection, Mapping

import torch
import torch.distributed
from torch import Tensor

from lerobot_internvla.model.losses import LossBreakdown

HALF_LIFE = 50
"""Steps after which a loss counts half in a running mean."""
MOST_SOURCES = 32
"""LeRobot prints every metric in one line; of more datasets than this only ``share_distance`` is logged."""


class SourceLog:
    """Running losses and shares by source, over all ranks.

    Args:
        weights: name -> requested share, in the order of the mixture; a sample's index is a position in it.
        reported: "loss_action" and "loss_foresight" -> names of the sources that train it.
    """

    def __init__(self, weights: Mapping[str, float], reported: Mapping[str, Collection[str]]) -> None:
        self.names = tuple(weights)
        self._reported = {**reported, "share": self.names}
        self._weights = torch.tensor(list(weights.values()), dtype=torch.float64)
        self._sums: Tensor | None = None  # [5, sources]: action sum and count, foresight sum and count, samples
        self._samples: Tensor | None = None  # [sources] float64: since the start

    def update(self, losses: LossBreakdown, source: Tensor) -> dict[str, Tensor]:
        """Take in a batch, of all ranks if there are several, and say how things stand.

        Args:
            losses: of the batch.
            source: [B] int64.

        Returns:
            name -> scalar on the batch's device; the same names every time. ``share_distance`` is half the sum of
            absolute differences between shares drawn and requested (total variation), 0 to 1.
        """
        terms = (losses.action_term, losses.foresight_term)
        rows = [value.detach().float() for term in terms for value in (term.sums, term.counts)]
        rows.append(torch.ones_like(rows[0]))
        batch = torch.zeros(len(rows), len(self.names), device=source.device)
        batch.index_add_(1, source, torch.stack(rows))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(batch)
        fading = 0.5 ** (1 / HALF_LIFE)
        sums = self._sums = batch if self._sums is None else fading * self._sums.to(batch.device) + batch
        drawn = batch[4].double()
        samples = self._samples = drawn if self._samples is None else self._samples.to(drawn.device) + drawn
        share = samples / samples.sum()
        self._weights = self._weights.to(share.device)
        distance = {"share_distance": (share - self._weights).abs().sum() / 2}
        if len(self.names) > MOST_SOURCES:
            return distance
        action, foresight = sums[0] / sums[1], sums[2] / sums[3]  # 0 / 0 is nan, on purpose
        each = {"loss_action": action, "loss_foresight": foresight, "share": share}
        return distance | {
            f"{what}/{name}": values[index]
            for what, values in each.items()
            for index, name in enumerate(self.names)
            if name in self._reported[what]
        }
