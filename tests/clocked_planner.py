"""A denoiser that knows where it wants to go, and remembers what every chunk was made from; for the clocked world.

``Planner`` replaces the denoiser of the tiny model: whatever the noise, a few Euler steps lead to a plan that is
different for every chunk. What leaves the policy is then known by hand (``targets``), and what the model was shown is
read off the pictures, which tell their tick (clocked_world.py).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clocked_world import state_at
from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.model.internvla_a1 import InternVLAA1

INTERVAL, CHUNK, EXECUTED, HORIZON = 15, 24, 10, 14
"""Frames between past and now; actions predicted, and executed in sync; RTC's execution horizon."""
LAYOUT = [
    f"--policy.chunk_size={CHUNK}",
    f"--policy.n_action_steps={EXECUTED}",
    f"--policy.foresight_interval={INTERVAL}",
    "--policy.num_inference_steps=4",
]
REPRESENTATIONS = {
    "absolute": [],
    "relative": ["--policy.action_representation=relative", '--policy.absolute_joint_names=["grip"]'],
}
RTC_FLAGS = (
    "--inference.type=rtc",
    f"--inference.rtc.execution_horizon={HORIZON}",
    f"--inference.queue_threshold={CHUNK - 6}",
)


@dataclass
class Chunk:
    """One prediction: what the model saw, where it wanted to go, and what left the policy."""

    past: int
    """The tick that the past frames are of; ``now`` likewise."""
    now: int
    anchor: int
    """The tick that the state is of."""
    plan: Tensor
    """[K, max_action_dim], normalised."""
    actions: np.ndarray
    """[K, A], absolute."""
    left_over: np.ndarray
    """[S, A]: RTC: what was left of the chunk before, cut to the horizon; empty without guidance."""
    delay: int
    """RTC: how many of these the robot was expected to execute meanwhile."""


@dataclass
class Planner:
    """Stands in for the denoiser from ``install`` on."""

    chunks: list[Chunk] = field(default_factory=list)
    _seen: tuple[int, int] = (0, 0)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        prefill, sample = InternVLAA1.prefill, InternVLAA1Policy._sample
        planner = self

        def see(self: InternVLAA1, observation: Any, **kwargs: Any) -> Any:
            ticks = (observation.images[0, :, :, 0, 0, 0] * 255).round().long()
            ticks = ticks[observation.camera_is_present[0]]
            assert (ticks == ticks[:1]).all(), "all cameras show the same two moments"
            planner._seen = (int(ticks[0, 0]), int(ticks[0, 1]))
            return prefill(self, observation, **kwargs)

        def denoise_step(self: InternVLAA1, prefill: Any, actions: Tensor, time: Tensor) -> Tensor:
            return (actions - planner.plan(actions.shape)) / time[:, None, None]

        def remember(
            self: InternVLAA1Policy,
            batch: Any,
            prefill: Any,
            noise: Any,
            left_over: Tensor | None = None,
            inference_delay: int = 0,
        ) -> Tensor:
            (past, now), plan = planner._seen, planner.plan((1, CHUNK, 32))[0]
            anchor = tick_of(self._state(batch)[0].numpy())
            actions = sample(self, batch, prefill, noise, left_over, inference_delay)
            left = np.empty((0, actions.shape[2])) if left_over is None else left_over[0].numpy().copy()
            planner.chunks.append(Chunk(past, now, anchor, plan, actions[0].numpy().copy(), left, inference_delay))
            return actions

        patch.setattr(InternVLAA1, "prefill", see)
        patch.setattr(InternVLAA1, "denoise_step", denoise_step)
        patch.setattr(InternVLAA1Policy, "_sample", remember)

    def plan(self, shape: Any) -> Tensor:
        generator = torch.Generator().manual_seed(len(self.chunks))
        return 0.3 * torch.randn(tuple(shape[1:]), generator=generator).expand(shape)


def tick_of(state: np.ndarray) -> int:
    """The tick at which the joints were there."""
    return next(tick for tick in range(256) if np.allclose(state, state_at(tick)[: len(state)], atol=1e-6))


def targets(checkpoint: Path, chunk: Chunk, robot: str | None = None) -> np.ndarray:
    """[K, A], worked out by hand: un-normalise, add the state of the tick that the chunk was planned at.

    Args:
        checkpoint: its folder; an adapter brings statistics of its own.
        robot: of a checkpoint of several.
    """
    adapter = checkpoint / "adapter_model.safetensors"
    prefix = "action_space." + (f"robots.{robot}." if robot else "")
    dims = chunk.actions.shape[1]
    with safe_open(adapter if adapter.is_file() else checkpoint / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
        mean, std, is_relative = (
            file.get_tensor(next(key for key in names if key.endswith(f"{prefix}action_{name}")))[:dims]
            for name in ("mean", "std", "is_relative")
        )
    anchor = torch.tensor(state_at(chunk.anchor))[:dims] * is_relative
    return (chunk.plan[:, :dims] * (std + 1e-6) + mean + anchor).numpy()


def check_targets(chunk: Chunk, expected: np.ndarray) -> None:
    """Exact, but for steps that RTC blends with what was left: they lie between the two, the first ones near it."""
    blended = len(chunk.left_over)
    assert blended <= HORIZON
    np.testing.assert_allclose(chunk.actions[blended:], expected[blended:], rtol=1e-5, atol=1e-5)
    from_left_over = np.abs(chunk.actions[:blended] - chunk.left_over)
    from_plan = np.abs(expected[:blended] - chunk.left_over)
    assert (from_left_over <= from_plan + 1e-5).all()
    assert (from_left_over[: chunk.delay] <= 0.25 * from_plan[: chunk.delay] + 1e-5).all()


def check_guidance(chunks: list[Chunk], expected: Callable[[Chunk], np.ndarray]) -> None:
    """RTC is on: a chunk is led by what was left, which is what the one before said, in the units of the robot."""
    guided = [(before, chunk) for before, chunk in itertools.pairwise(chunks) if len(chunk.left_over)]
    assert len(guided) >= 2 and len(guided) >= len(chunks) - 2, "the queue may run dry, but not as a rule"
    for before, chunk in guided:
        start = np.flatnonzero((before.actions == chunk.left_over[0]).all(axis=1))
        assert len(start) == 1, "what was left is a part of the chunk before, in robot units"
        np.testing.assert_array_equal(chunk.left_over, before.actions[start[0] :][: len(chunk.left_over)])
        unguided = np.abs(expected(chunk)[0] - chunk.left_over[0])
        assert (np.abs(chunk.actions[0] - chunk.left_over[0]) < 0.5 * unguided).all(), "the first step is pulled most"
