"""A resumed ``lerobot-train`` goes on with the frames that an uninterrupted one would see, in every epoch.

LeRobot 0.6.1 sets its sampler to the right epoch and place, but accelerate's data loader counts epochs from zero in
every process and tells the sampler so when it starts: a run resumed in its fourth pass over the data sees the order of
the first once more. Here the sampler remembers where it was put, and takes accelerate's count from there.

A dataset with an order of its own (``InOrder``) is counted through, and always from the beginning of a step: after a
resume with another number of ranks or another batch size, LeRobot's place may lie in the middle of one.
"""

import functools
import sys
from collections.abc import Iterable
from typing import Any


class InOrder(list[int]):
    """Starts of episodes whose positions LeRobot's sampler shall count through instead of shuffling them: the dataset
    has its own order (mixture_dataset.py).

    Args:
        positions_per_step: that all ranks take together in one step.
    """

    def __init__(self, starts: Iterable[int], positions_per_step: int) -> None:
        super().__init__(starts)
        self.positions_per_step = positions_per_step


OFFSET, RESUMED_AT, STEP = "_internvla_epoch_offset", "_internvla_resumed_at", "_internvla_positions_per_step"


def install() -> None:
    """Wrap three methods of LeRobot's sampler, once, if LeRobot's training is what imported us."""
    module = sys.modules.get("lerobot.datasets.sampler")
    sampler_class: Any = getattr(module, "EpisodeAwareSampler", None)
    if sampler_class is None or hasattr(sampler_class, OFFSET):
        return
    stock_init, stock_load, stock_set = (
        sampler_class.__init__,
        sampler_class.load_state_dict,
        sampler_class.set_epoch,
    )

    @functools.wraps(stock_init)
    def init(self: Any, dataset_from_indices: Any, *args: Any, **kwargs: Any) -> None:
        stock_init(self, dataset_from_indices, *args, **kwargs)
        if isinstance(dataset_from_indices, InOrder):
            self.shuffle = False
            setattr(self, STEP, dataset_from_indices.positions_per_step)

    def load_state_dict(self: Any, state: dict[str, int]) -> None:
        step: int = getattr(self, STEP, 1)
        stock_load(self, {**state, "start_index": -(-state["start_index"] // step) * step})
        setattr(self, RESUMED_AT, state["epoch"])

    def set_epoch(self: Any, epoch: int) -> None:
        resumed_at: int | None = getattr(self, RESUMED_AT, None)
        if resumed_at is not None:
            # The first count after a resume stands for the epoch resumed in, whether or not it starts from zero.
            setattr(self, OFFSET, resumed_at - epoch)
            setattr(self, RESUMED_AT, None)
        stock_set(self, epoch + getattr(self, OFFSET))

    setattr(sampler_class, OFFSET, 0)
    sampler_class.__init__, sampler_class.load_state_dict, sampler_class.set_epoch = init, load_state_dict, set_epoch
