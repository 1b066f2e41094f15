"""What the model reads and writes: frozen values, shapes in the annotations.

Axes: B batch, V camera views (1 to 3, always in the order head, left_wrist, right_wrist), T frames (0 past, 1 now),
C latent channels, h x w latent cells, P prompt tokens, K chunk steps, S state width, A action width (padded).
Annotations are checked under pytest only (``--jaxtyping-packages``), so they cost nothing at run time.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """One policy input. Images are RGB in [0, 1], already letterboxed to ``Architecture.view_size``."""

    images: Float[Tensor, "batch view time 3 height width"]
    """time: past (one foresight interval ago), now. Only now (time = 1) with ``use_foresight=False``, or where the
    latents are at hand already."""
    camera_is_present: Bool[Tensor, "batch view"]
    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_is_valid: Bool[Tensor, "batch prompt"]
    """True for real text, False for right padding."""
    state: Float[Tensor, "batch state"]
    """Normalised and zero-padded to ``Architecture.max_state_dim``."""


@dataclass(frozen=True)
class Targets:
    """What training compares with. Masks are True where the value is real and counts."""

    actions: Float[Tensor, "batch chunk action"]
    """Normalised and zero-padded to ``Architecture.max_action_dim``; any finite value where masked."""
    action_is_valid: Bool[Tensor, "batch chunk action"]
    """False for padded steps, padded dims and samples without actions."""
    future_images: Float[Tensor, "batch view 3 height width"] | None
    """Frame one interval ahead, [0, 1]; None without foresight, or where the latents are at hand already."""
    future_is_valid: Bool[Tensor, "batch view"] | None
    """False for missing cameras and for frames clamped at the end of the episode."""
    latent_is_content: Bool[Tensor, "batch view latent_height latent_width"] | None
    """False for latent cells that lie wholly inside letterbox bars."""


@dataclass(frozen=True)
class Prediction:
    """The training forward pass, before any loss. ``draw`` is batch x (noise and time draws per sample)."""

    velocity: Float[Tensor, "draw chunk action"]
    target_velocity: Float[Tensor, "draw chunk action"]
    """noise - actions: time runs from 1 (noise) to 0 (data)."""
    future_latents: Float[Tensor, "batch view channel latent_height latent_width"] | None
    target_future_latents: Float[Tensor, "batch view channel latent_height latent_width"] | None
