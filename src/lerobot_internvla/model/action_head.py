"""State and noisy actions into tokens, and velocities out of them (paper section "Action expert")."""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

from typing import Any

import torch.nn.functional as F

# LeRobot has no type stubs.
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding
from torch import Tensor, nn

from .architecture import Architecture

MIN_PERIOD = 4e-3
MAX_PERIOD = 4.0
"""Periods of the time embedding, in units of flow time (released checkpoint)."""


class ActionHead(nn.Module):
    """One state token; one token per chunk step, told its flow time; a velocity per token."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.expert.hidden
        self.width = width
        self.state_proj = nn.Linear(architecture.max_state_dim, width)
        self.action_in_proj = nn.Linear(architecture.max_action_dim, width)
        self.action_out_proj = nn.Linear(width, architecture.max_action_dim)
        self.time_mlp_in = nn.Linear(2 * width, width)
        self.time_mlp_out = nn.Linear(width, width)

    def embed_state(self, state: Tensor) -> Tensor:
        """[B, S] -> [B, 1, D]."""
        return self.state_proj(state.to(self.state_proj.weight.dtype))[:, None]

    def embed_time(self, time: Tensor) -> Tensor:
        """Sinusoids of flow time [B] in (0, 1]: [B, D] float32.

        Time stays float32 in every precision mode: against a shortest period of 4e-3, bf16 time would move the phase by
        a large part of a turn.
        """
        device: Any = time.device  # LeRobot's default of "cpu" makes it look like a string
        return create_sinusoidal_pos_embedding(time.float(), self.width, MIN_PERIOD, MAX_PERIOD, device).float()

    def embed_actions(self, noisy_actions: Tensor, time: Tensor) -> Tensor:
        """[B, K, A] and flow time [B] -> [B, K, D].

        The first layer reads [action; time]; the time half is the same for all K steps and is computed once.
        """
        actions = self.action_in_proj(noisy_actions.to(self.action_in_proj.weight.dtype))
        weight = self.time_mlp_in.weight
        timed = F.linear(self.embed_time(time).to(weight.dtype), weight[:, self.width :], self.time_mlp_in.bias)
        mixed = F.linear(actions, weight[:, : self.width]) + timed[:, None]
        return self.time_mlp_out(F.silu(mixed))

    def read_out(self, hidden: Tensor) -> Tensor:
        """Velocity [B, K, A], float32, of the action block's last hidden states."""
        return self.action_out_proj(hidden.to(self.action_out_proj.weight.dtype)).float()
