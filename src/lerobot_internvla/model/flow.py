"""Flow matching: the noisy sample, the target velocity, the times of the Euler steps, and the draws of training.

Time runs from 1 (noise) to 0 (data), the convention of LeRobot's stock sampler: x = t * noise + (1 - t) * actions and
velocity = noise - actions. The paper writes tau = 1 - t. Times are drawn as 0.999 * Beta(1.5, 1) + 0.001, dense near
noise (released checkpoint; the paper's formula read literally would be the mirror image).
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import hashlib
from typing import Any

import torch
from lerobot.policies.common.flow_matching import (
    sample_noise,  # pyright: ignore[reportUnknownVariableType]  # untyped
    sample_time_beta,  # pyright: ignore[reportUnknownVariableType]  # untyped
)
from torch import Tensor, nn


def noisy_actions(actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Point on the straight path at flow time ``time`` [B]; actions and noise are [B, K, A]."""
    at = time[:, None, None]
    return at * noise + (1 - at) * actions


def target_velocity(actions: Tensor, noise: Tensor) -> Tensor:
    """Constant velocity of the straight path."""
    return noise - actions


def euler_times(num_steps: int, device: torch.device) -> list[Tensor]:
    """Flow time of every Euler step, scalar float32 tensors on ``device``, made there (no host copy).

    Accumulated in float32 rather than ``1 - k / n``: the shortest period of the time embedding is 4e-3, so the rounding
    is visible in the actions (1.8e-4 at ten steps) and the released model was evaluated with it. LeRobot's
    ``euler_integrate`` computes exact times and copies each from the host, hence this one.
    """
    step = -1.0 / num_steps
    times = [torch.ones((), dtype=torch.float32, device=device)]
    while len(times) < num_steps:
        times.append(times[-1] + step)
    return times


def draw_noise_and_time(
    shape: tuple[int, int, int], *, alpha: float, beta: float, scale: float, offset: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Noise [B, K, A] and flow times [B] on the CPU: a function of ``seed`` (see ``NoiseSeeds``).

    The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]  # partly typed by torch
        torch.default_generator.manual_seed(seed)
        cpu = torch.device("cpu")
        noise = sample_noise(shape, cpu)
        time = sample_time_beta(shape[0], cpu, alpha=alpha, beta=beta, scale=scale, offset=offset)
    return noise, time


class NoiseSeeds(nn.Module):
    """The seed of every training batch's noise: different on every rank, the same whether or not a run was interrupted.

    LeRobot seeds all ranks alike and restores rank 0's generator on all of them, so the global generator would give
    every GPU the same noise; and a resumed run's generator is one number ahead, because PyTorch's data loader takes one
    when it starts. So the seed depends on three things alone: the run's seed, the rank, and how many batches have been
    trained on. The last is saved with the weights, as batch normalisation does under the same name.
    """

    num_batches_tracked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
        self._count = 0  # the same on the host, so that no accelerator is waited for

    def forward(self) -> int:
        """Seed of the next training batch."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        origin = f"{torch.initial_seed()} {rank} {self._count}"
        self._count += 1
        self.num_batches_tracked += 1
        return int.from_bytes(hashlib.blake2b(origin.encode(), digest_size=8).digest())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # pyright: ignore[reportUnknownMemberType]  # partly typed by torch
        self._count = int(state_dict.get(f"{prefix}num_batches_tracked", self._count))
