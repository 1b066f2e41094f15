"""Commands within the limits of a robot's joints: cut to the range, then to the speed, and told.

    limiter = ActionLimiter(limits, rate_hz=30)
    limiter.start_from(positions)               the first command of an episode is compared with where the joints are
    sent = limiter.limit(asked)                 every further one with the command before
    limiter.end_episode()                       a line that sums up; the next episode starts anew

A command inside the limits comes back as it went in, bit for bit. One beyond the range is moved to its end; one that
is further from the last command than the joint's speed allows in a tick is moved towards it as far as it may. A joint
that stands outside its range is led back at that speed, never sent further out.

What this does not do: know forces, the table or other joints, slow down what a tick apart is allowed, or replace the
emergency stop.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lerobot_internvla.embodiments.limits import ActionLimits, find_limits, in_unit
from lerobot_internvla.embodiments.matching import plain_joint

from .faults import refuse_unusable_actions, refuse_unusable_state

logger = logging.getLogger(__name__)

Values = NDArray[np.float64]
TOLD_FROM = 0.02
"""Share of the range, or of a tick's step, that a command must be beyond to be warned of at once: a trained policy asks
for 100.4 percent of a gripper all the time. Smaller ones are cut and counted like all others."""
ROUNDING = 1e-6
"""What is cut by less than this, relative to the command, is not counted: a command at its limit is float32, too."""
TOLD_AT_MOST = 20
"""Warnings of one limiter; after that the summaries tell."""


def cut(asked: Values, reference: Values, low: Values, high: Values, step: Values) -> tuple[Values, Values]:
    """One command within its limits.

    Args:
        asked: [A] finite.
        reference: [A] the command before; NaN where there is none, which bounds no speed.
        low, high: [A] range; infinite where there is no bound.
        step: [A] largest change from ``reference``.

    Returns:
        [A] within the range, and [A] within the range and a step from the reference. Where the reference itself is
        outside the range, the second is between it and the range.
    """
    in_range = np.clip(asked, low, high)
    near = np.clip(in_range, reference - step, reference + step)
    return in_range, np.where(np.isnan(reference), in_range, near)


@dataclass
class _Cuts:
    """What was cut from one joint in one episode."""

    count: int = 0
    most: float = 0.0


class ActionLimiter:
    """Limits one robot's commands, one after the other, and tells what it cut. For one thread.

    Args:
        limits: of the joints, in the order of the commands.
        rate_hz: commands per second.
    """

    def __init__(self, limits: ActionLimits, rate_hz: float) -> None:
        self.limits = limits
        self._low = np.array([joint.low for joint in limits.joints])
        self._high = np.array([joint.high for joint in limits.joints])
        self._step = np.array([joint.speed for joint in limits.joints]) / rate_hz
        self._reference: Values | None = None
        self._commands = 0
        self._cuts: dict[tuple[int, str], _Cuts] = {}
        self._told = 0

    @property
    def names(self) -> list[str]:
        return [joint.name for joint in self.limits.joints]

    @property
    def needs_start(self) -> bool:
        """Whether an episode begins: ``start_from`` comes before the next command."""
        return self._reference is None

    def start_from(self, positions: Mapping[str, float]) -> None:
        """Where the joints are, by name, in robot units; a joint that is missing may go anywhere in its first command.

        Raises:
            InternVLAError: positions that are not finite.
        """
        refuse_unusable_state(torch.tensor([list(positions.values())]), list(positions))
        found = {plain_joint(name): position for name, position in positions.items()}
        self._reference = np.array([found.get(plain_joint(name), math.nan) for name in self.names])

    def follow(self, command: Tensor) -> None:
        """Take ``command`` [A] as the one that was sent last."""
        self._reference = command.detach().cpu().double().numpy().copy()

    def limit(self, action: Tensor) -> Tensor:
        """The command to send instead of ``action`` [A], robot units; the same tensor where nothing is to be cut.

        Raises:
            InternVLAError: it is not finite.
        """
        refuse_unusable_actions(action[None, None], self.names)
        asked = action.detach().cpu().double().numpy()
        reference = np.full_like(asked, math.nan) if self._reference is None else self._reference
        in_range, sent = cut(asked, reference, self._low, self._high, self._step)
        rounding = ROUNDING * np.maximum(1.0, np.abs(asked))
        self._commands += 1
        for kind, excess in (("range", np.abs(asked - in_range)), ("speed", np.abs(in_range - sent))):
            for index in np.flatnonzero(excess > rounding).tolist():
                if self._count(index, kind, float(excess[index])):
                    self._tell(index, kind, float(asked[index]), float(sent[index]), float(reference[index]))
        is_cut = torch.from_numpy(sent != asked)
        if bool(is_cut.any()):
            values = torch.from_numpy(sent).to(action.device, action.dtype)
            action = torch.where(is_cut.to(action.device), values, action)
        self.follow(action)
        return action

    def end_episode(self) -> None:
        """Sum up what was cut since the episode began, and begin another one."""
        if self._commands:
            logger.info("Action limits: of %d commands %s.", self._commands, self._summary())
        self._reference, self._commands, self._cuts = None, 0, {}

    def _summary(self) -> str:
        """ "elbow.pos 12 times beyond its range (by up to 3.1 deg)"."""
        parts: list[str] = []
        for (index, kind), cuts in sorted(self._cuts.items()):
            joint = self.limits.joints[index]
            what = "beyond its range" if kind == "range" else "too fast"
            parts.append(f"{joint.name} {cuts.count} times {what} (by up to {in_unit(f'{cuts.most:.3g}', joint.unit)})")
        return "; ".join(parts) or "none was cut"

    def _count(self, index: int, kind: str, excess: float) -> bool:
        """Count a cut; whether it is a joint's first in this episode that is worth a warning, and there is one left."""
        cuts = self._cuts.setdefault((index, kind), _Cuts())
        is_first = cuts.most < self._worth_telling(index, kind) <= excess
        cuts.count, cuts.most = cuts.count + 1, max(cuts.most, excess)
        return is_first and self._told < TOLD_AT_MOST

    def _worth_telling(self, index: int, kind: str) -> float:
        width = float(self._high[index] - self._low[index] if kind == "range" else self._step[index])
        return max(TOLD_FROM * width, 1e-9) if math.isfinite(width) else 1e-9

    def _tell(self, index: int, kind: str, asked: float, sent: float, reference: float) -> None:
        self._told += 1
        joint = self.limits.joints[index]
        why = f"beyond its range {joint.low:g}..{joint.high:g}"
        if kind == "speed":
            allowed = in_unit(f"{joint.speed:g}", joint.unit)
            why = f"too far from {reference:.4g} for one tick at {allowed}/s"
        logger.warning(
            "Joint %s was to go to %s, which is %s (%s): %s is sent. %s",
            joint.name,
            in_unit(f"{asked:.4g}", joint.unit),
            why,
            self.limits.source,
            f"{sent:.4g}",
            "Further ones of this episode are counted."
            if self._told < TOLD_AT_MOST
            else "This was the last warning of its kind; the summary of each episode goes on.",
        )


def make_limiter(
    config: Any, names: Sequence[str], *, rate_hz: float, robot: str | None = None, robot_type: str | None = None
) -> ActionLimiter | None:
    """The limiter of a robot's commands, announced in the log; None where nothing is limited, which the log says too.

    Args:
        config, names, robot, robot_type: as for ``find_limits``.
        rate_hz: commands per second.

    Raises:
        InternVLAError: ``config.embodiment`` names no embodiment, or one with other joints.
    """
    found = find_limits(config, names, robot=robot, robot_type=robot_type)
    if found.limits is not None:
        logger.info("Action limits at %g Hz, of %s. limit_actions=false switches them off.", rate_hz, found.text)
        return ActionLimiter(found.limits, rate_hz)
    if found.advice:
        logger.warning("Commands are not limited: %s. To limit them, %s.", found.text, found.advice)
    else:
        logger.info("Commands are not limited: %s.", found.text)
    return None
