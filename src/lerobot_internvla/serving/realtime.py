"""Real-time chunking: a new chunk that agrees with what the robot is executing meanwhile (arXiv 2506.07339).

    left over [S, A]   what the robot has not executed yet of the last chunk, absolute, robot units
      -> encoded relative to the state *now* (the action space's business), padding cut off
      -> every Euler step, LeRobot's stock ``RTCProcessor`` pulls the chunk's first steps towards it:
         fully for the steps that run out during inference, less and less up to the execution horizon

Time runs from 1 (noise) to 0 (data) and velocity = noise - actions, here as in LeRobot's processor, so nothing is
converted. LeRobot 0.6.1 evaluates the denoiser before it asks for gradients: its correction is the error itself, not a
vector-Jacobian product. Later versions may ask for one; the denoiser given to it is differentiable where asked.
"""

import dataclasses
import logging
from typing import Any

import torch
from lerobot.policies.rtc import RTCProcessor
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.flow import euler_times
from lerobot_internvla.model.internvla_a1 import InternVLAA1, Prefill

logger = logging.getLogger(__name__)


def make_rtc_processor(rtc_config: RTCConfig | None, num_steps: int) -> RTCProcessor | None:
    """LeRobot's guidance for a sampler of ``num_steps`` Euler steps; None where RTC is off.

    One Euler step moves the actions by weight / num_steps of their error, so a weight above num_steps would overshoot
    the target. ``max_guidance_weight`` is lowered to num_steps, and a log line says so.

    Raises:
        InternVLAError: an execution horizon of no step: nothing would be guided, and nobody told.
    """
    if rtc_config is None or not rtc_config.enabled:
        return None
    if rtc_config.execution_horizon < 1:
        raise InternVLAError(
            f"--inference.rtc.execution_horizon={rtc_config.execution_horizon}: expected control ticks, at least 1 and "
            "more than inference takes (`internvla-check --policy.path=...` measures that). To queue chunks without "
            "guidance: --inference.rtc.enabled=false."
        )
    if rtc_config.max_guidance_weight > num_steps:
        logger.info(
            "RTC: max_guidance_weight %g is lowered to %d, the number of Euler steps; more would overshoot.",
            rtc_config.max_guidance_weight,
            num_steps,
        )
        rtc_config = dataclasses.replace(rtc_config, max_guidance_weight=float(num_steps))
    return RTCProcessor(rtc_config)


def without_padding(left_over: Tensor) -> Tensor:
    """The steps [S', A] of a left-over chunk [S, A] or [1, S, A] that are really left.

    LeRobot's engine fills up with rows of zeros to the execution horizon. In robot units these are commands to the zero
    position, so they must be gone before anything is normalised. A real last step of exactly zero in every joint would
    go with them, which merely leaves that step unguided.
    """
    steps = left_over.reshape(-1, left_over.shape[-1])
    real = (steps != 0).any(dim=1).nonzero()
    return steps[: int(real[-1]) + 1 if len(real) else 0]


def sample_guided(
    model: InternVLAA1,
    prefill: Prefill,
    noise: Tensor,
    num_steps: int,
    *,
    processor: RTCProcessor,
    left_over: Tensor,
    action_dim: int,
    inference_delay: int,
) -> Tensor:
    """``InternVLAA1.sample_actions`` under guidance: normalised actions [B, K, max_action_dim].

    Args:
        model, prefill: the prefill was made without gradients.
        noise: [B, K, max_action_dim].
        num_steps: Euler steps.
        processor: of ``make_rtc_processor``.
        left_over: [B, S, max_action_dim], normalised as the model's output; S at least 1, at most K.
        action_dim: the robot's. Padded dims run freely: the model never learned to steer them.
        inference_delay: steps that the robot will have executed of ``left_over`` when the chunk arrives.
    """
    actions = noise.float()
    target = left_over[..., :action_dim].float()
    # A graph cannot be built in inference mode, which some callers are in; nothing of the prefill needs one.
    with torch.inference_mode(False):
        actions = actions.clone()
        for step, time in enumerate(euler_times(num_steps, actions.device)):
            padding = actions[..., action_dim:]
            whole: list[Tensor] = []

            def velocity(own: Tensor, time: Tensor = time, padding: Tensor = padding, whole: Any = whole) -> Tensor:
                with torch.set_grad_enabled(own.requires_grad):
                    v = model.denoise_step(prefill, torch.cat([own, padding], dim=-1), time.expand(own.shape[0]))
                whole.append(v.detach())
                return v[..., :action_dim]

            guided = processor.denoise_step(
                x_t=actions[..., :action_dim],
                prev_chunk_left_over=target,
                inference_delay=inference_delay,
                time=1.0 - step / num_steps,  # for the weights, on the host: no copy from the device
                original_denoise_step_partial=velocity,
            )
            update = torch.cat([guided.detach(), whole[0][..., action_dim:]], dim=-1)
            actions = actions + (-1.0 / num_steps) * update
    return actions
