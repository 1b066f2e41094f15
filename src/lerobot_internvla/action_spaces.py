"""Several robots in one policy: one ``ActionSpace`` each, and their statistics as tables for mixed batches.

    training    state [B, S], actions [B, K, A], zero-padded, robot units, and which robot every sample is [B]
                -> each sample by its own robot's mean, std, mask and relative dims, without a loop or a host read
    acting      ``spaces.of("so101")`` is a plain ``ActionSpace``, with that robot's own dims

Rows are saved by name (``action_space.robots.<name>.*``): a fine-tune on another robot adds one and leaves the others
as they are. A robot of which only videos exist has no row: its state is all padding, its actions are never valid.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lerobot_internvla.action_space import ActionSpace, mean_std_normalize
from lerobot_internvla.errors import InternVLAError


class ActionSpaces(nn.Module):
    """Robot units <-> the model's numbers, for several robots. Parameter-free; the statistics are buffers of the rows.

    Args:
        order: names of all robots; a sample's ``robot`` is an index into it.
        spaces: name -> its action space. A robot of ``order`` that is absent here has neither state nor actions.
        max_state_dim, max_action_dim: the model's.

    Raises:
        InternVLAError: a space whose name is not in ``order``, or of other padded dims.
    """

    def __init__(
        self,
        order: Sequence[str],
        spaces: Mapping[str, ActionSpace],
        *,
        max_state_dim: int,
        max_action_dim: int,
    ) -> None:
        super().__init__()
        strangers = sorted(set(spaces) - set(order))
        widths = {
            name
            for name, space in spaces.items()
            if (space.max_state_dim, space.max_action_dim) != (max_state_dim, max_action_dim)
        }
        if strangers or widths:
            raise InternVLAError(
                f"These action spaces do not fit together: not in the list of robots: {strangers}; padded to other "
                f"dims than {max_state_dim} and {max_action_dim}: {sorted(widths)}."
            )
        self.order = tuple(order)
        self.max_state_dim = max_state_dim
        self.max_action_dim = max_action_dim
        self.robots = nn.ModuleDict(dict(spaces))

    def of(self, name: str) -> ActionSpace:
        """The action space of one robot.

        Raises:
            InternVLAError: there is no such robot, or it has neither state nor actions.
        """
        if name not in self.robots:
            why = "is known from videos only: it has no state and no actions" if name in self.order else "is unknown"
            raise InternVLAError(
                f"Robot {name!r} {why}. Robots with actions in this policy: {', '.join(self.robots) or 'none'}."
            )
        return cast(ActionSpace, self.robots[name])

    def rows(self) -> Iterator[tuple[str, ActionSpace]]:
        """(name, action space) of the robots that have one."""
        for name in self.robots:
            yield name, self.of(name)

    # ------------------------------------------------------------------------------------------------------ hot path

    def normalize_state(
        self, state: Float[Tensor, "batch max_state"], robot: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch max_state"]:
        """States in robot units, zero-padded -> the model's input, padded with zeros after normalisation."""
        self._check("state", state, self.max_state_dim)
        normalised = mean_std_normalize(
            state.float(), self._rows("state_mean", robot, 0.0), self._rows("state_std", robot, 1.0)
        )
        return torch.where(self._rows("state_dim_is_valid", robot, False), normalised, 0.0)

    def encode_actions(
        self,
        actions: Float[Tensor, "batch chunk max_action"],
        state: Float[Tensor, "batch max_state"],
        robot: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch chunk max_action"]:
        """Absolute actions and the state at the chunk's start, zero-padded -> what the model learns to produce."""
        self._check("actions", actions, self.max_action_dim)
        self._check("state", state, self.max_state_dim)
        width = self.max_action_dim
        anchor = torch.nn.functional.pad(state.float(), (0, max(0, width - self.max_state_dim)))[:, :width]
        anchor = torch.where(self._rows("action_is_relative", robot, False), anchor, 0.0)
        mean, std = self._rows("action_mean", robot, 0.0), self._rows("action_std", robot, 1.0)
        normalised = mean_std_normalize(actions.float() - anchor[:, None], mean[:, None], std[:, None])
        return torch.where(self.action_dim_is_valid(robot)[:, None], normalised, 0.0)

    def action_dim_is_valid(self, robot: Int[Tensor, " batch"]) -> Bool[Tensor, "batch max_action"]:
        """Which dims are the robot's own."""
        return self._rows("action_dim_is_valid", robot, False)

    def _rows(self, buffer: str, robot: Tensor, absent: float | bool) -> Tensor:
        """[B, width]: the named buffer of every sample's robot. The table is stacked anew: it is a few kilobytes."""
        known = {name: space.get_buffer(buffer) for name, space in self.rows()}
        blank = torch.full_like(next(iter(known.values())), absent) if known else self._blank(buffer, robot, absent)
        return torch.stack([known.get(name, blank) for name in self.order])[robot]

    def _blank(self, buffer: str, robot: Tensor, absent: float | bool) -> Tensor:
        width = self.max_state_dim if buffer.startswith("state") else self.max_action_dim
        return torch.full((width,), absent, device=robot.device)

    def _check(self, name: str, tensor: Tensor, width: int) -> None:
        for _, space in self.rows():
            space.require_statistics()
        if tensor.shape[-1] != width:
            raise InternVLAError(
                f"The {name} of a mixed batch have {tensor.shape[-1]} dims, expected {width}: every robot's, padded "
                "with zeros. data/canonical.py makes such samples."
            )
