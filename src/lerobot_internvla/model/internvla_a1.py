"""InternVLA-A1 as verbs: understand, imagine, act (arXiv 2601.02456).

    observation -> [understanding | foresight | state] -> prefill -> [actions] x Euler steps -> action chunk
                                  |
                                  +-> predict_foresight: latents of the frame one interval ahead

No robot words but state and action, no batch dictionary, no normalisation: those belong to the policy.
Axes: B batch, V views, T frames (past, now), C latent channels, h x w latent cells, K chunk steps, A action width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.encoding import encode_frames
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer

from .action_head import ActionHead
from .architecture import Architecture
from .flow import euler_times, noisy_actions, target_velocity
from .foresight_head import ForesightHead
from .inputs import Observation, Prediction, Targets
from .losses import LossBreakdown, compute_losses
from .mixture_of_transformers import KeysValues, MixtureOfTransformers
from .token_blocks import (
    Block,
    following_positions,
    rotary_axes,
    rotary_frequencies,
    understanding_positions,
)
from .vision_language import build_vision_language


@dataclass(frozen=True)
class Context:
    """The embedded blocks that precede the actions, before any layer."""

    hidden: list[Tensor]
    blocks: list[Block]
    valid: Tensor
    """[B, tokens so far] bool."""
    next_position: Tensor
    """[B]: the position of the first action."""


@dataclass(frozen=True)
class Prefill:
    """One pass over everything that does not depend on the actions; read by every Euler step."""

    cache: list[KeysValues]
    action_block: Block
    foresight_hidden: Tensor | None
    """Last hidden states of the foresight block [B, S, D]; None when they were not asked for."""
    views: int


class InternVLAA1(nn.Module):
    """The model with random weights.

    Args:
        architecture: sizes (see ``architecture.VARIANTS``).
        use_foresight: False builds the ablation without the generation expert.
        chunk_size: action steps per chunk.
        image_tokenizer: frozen pixels <-> latents. Kept outside module registration, so that it is neither a parameter
            nor part of the state dict; it follows the model to its device.
    """

    rotary_axes: Tensor

    def __init__(
        self,
        architecture: Architecture,
        *,
        use_foresight: bool = True,
        chunk_size: int = 50,
        image_tokenizer: ImageTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.use_foresight = use_foresight
        self.chunk_size = chunk_size
        self._frozen: dict[str, ImageTokenizer] = (
            {} if image_tokenizer is None else {"image_tokenizer": image_tokenizer}
        )
        experts = ("understanding", "foresight", "action") if use_foresight else ("understanding", "action")
        self.vision_language = build_vision_language(architecture)
        self.mixture = MixtureOfTransformers(architecture, experts)
        self.foresight_head = ForesightHead(architecture) if use_foresight else None
        self.action_head = ActionHead(architecture)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights and zero biases, as transformers initialises Qwen; heads keep torch's fan-in default."""
        spread = self.architecture.initializer_range
        if spread is None:
            return
        for part in (self.vision_language, self.mixture):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
                    nn.init.normal_(module.weight, std=spread)
                    bias: nn.Parameter | None = getattr(module, "bias", None)
                    if bias is not None:
                        nn.init.zeros_(bias)

    def dead_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that exist in the checkpoint but that no output of training depends on.

        Nothing reads the understanding block after the last layer's keys and values; deepstack mergers (3b) and the
        untied lm_head (2b) are never computed. They are frozen, so that neither the optimizer nor DDP carries them.
        """
        names = {id(p): name for name, p in self.named_parameters()}
        for module in [*self.vision_language.dead_modules(), *self.mixture.dead_modules()]:
            for parameter in module.parameters():
                yield names[id(parameter)], parameter

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """The frozen image tokenizer.

        Raises:
            InternVLAError: the model was built without one.
        """
        if "image_tokenizer" not in self._frozen:
            raise InternVLAError(
                "This model has no image tokenizer, but foresight needs one. Pass image_tokenizer= when building it, "
                "or policy.image_tokenizer=<folder or Hub id> on the command line."
            )
        return self._frozen["image_tokenizer"]

    def _apply(self, fn: Any, recurse: bool = True) -> "InternVLAA1":
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]  # partly typed by torch
        # The tokenizer keeps its own dtype and follows the device only.
        tokenizer = self._frozen.get("image_tokenizer")
        device = self.action_head.state_proj.weight.device
        if isinstance(tokenizer, nn.Module) and device.type != "meta":
            tokenizer.to(device)
        return self

    # ------------------------------------------------------------------ embed

    @torch.no_grad()
    def encode_frames(self, images: Tensor) -> Tensor:
        """Latents [B, V, T, C, h, w] of frames [B, V, T, 3, height, width] in [0, 1]; float32, no gradient."""
        size = self.architecture.image_tokenizer.image_size
        return torch.unflatten(encode_frames(self.image_tokenizer, images.flatten(0, 2), size), 0, images.shape[:3])

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images [B, V, 3, height, width] in [0, 1] of latents [B, V, C, h, w]."""
        images = self.image_tokenizer.decode(latents.flatten(0, 1)).float()
        return torch.unflatten(((images + 1.0) / 2.0).clamp(0.0, 1.0), 0, latents.shape[:2])

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, S, 1, head_width / 2] of positions [axes, B, S] (one axis stands for all three)."""
        device = positions.device
        frequencies = rotary_frequencies(self.architecture).to(device)
        if positions.shape[0] == 1:
            angles = positions[0, :, :, None].float() * frequencies
        else:
            axes = rotary_axes(self.architecture).to(device)
            angles = positions.index_select(0, axes).permute(1, 2, 0).float() * frequencies
        return angles.cos()[:, :, None], angles.sin()[:, :, None]

    def embed(self, observation: Observation, latents: Tensor | None, *, reference_positions: bool = False) -> Context:
        """The blocks before the actions: understanding, foresight (when used), state.

        Args:
            observation: the input.
            latents: [B, V, 2, C, h, w] of past and now; None without foresight.
            reference_positions: number the foresight tokens of missing cameras too, as the reference does at inference.
        """
        views = observation.images.shape[1]
        now = observation.images[:, :, -1]
        hidden = [self.vision_language(now, observation.prompt_ids)]
        present = observation.camera_is_present
        valid = [
            torch.cat([present.repeat_interleave(self.architecture.view_tokens, dim=1), observation.prompt_is_valid], 1)
        ]
        positions, start = understanding_positions(self.architecture, present, observation.prompt_is_valid)
        names, places = ["understanding"], [positions]
        count_padding = reference_positions and self.architecture.rope_sections is not None

        if self.foresight_head is not None:
            assert latents is not None, "foresight needs the latents of past and now"
            tokens = self.foresight_head.embed(latents)
            seen = present.repeat_interleave(tokens.shape[1] // views, dim=1)
            places.append(following_positions(start, seen, count_padding=count_padding)[None])
            start = start + (torch.ones_like(seen) if count_padding else seen).sum(dim=1)
            hidden.append(tokens)
            valid.append(seen)
            names.append("foresight")

        hidden.append(self.action_head.embed_state(observation.state))
        valid.append(torch.ones_like(present[:, :1]))
        places.append(start[None, :, None])
        names.append("state")
        blocks = [
            Block(name, *self._rotary(place), torch.cat(valid[: i + 1], dim=1)[:, None, None])
            for i, (name, place) in enumerate(zip(names, places, strict=True))
        ]
        return Context(hidden, blocks, torch.cat(valid, dim=1), start + 1)

    def _action_block(self, context: Context) -> Block:
        real = torch.ones_like(context.valid[:, :1]).expand(-1, self.chunk_size)
        positions = following_positions(context.next_position, real)
        visible = torch.cat([context.valid, real], dim=1)[:, None, None]
        return Block("actions", *self._rotary(positions[None]), visible)

    # ------------------------------------------------------------------ train

    def predict(
        self,
        observation: Observation,
        targets: Targets,
        noise: Tensor,
        time: Tensor,
        trace: dict[str, Any] | None = None,
        *,
        latents: Tensor | None = None,
    ) -> Prediction:
        """The training pass over all blocks at once.

        Args:
            observation, targets: one batch.
            noise: [B x draws, K, A] standard normal; the draws of one sample follow each other.
            time: [B x draws] flow time in (0, 1].
            trace: receives intermediate tensors by name (parity checks); then every block is computed to the end.
            latents: what ``encode_frames`` gives for past, now and future [B, V, 3, C, h, w], in any floating point
                dtype. None encodes the frames; otherwise no frame but now is needed.
        """
        target_latents = None
        if self.foresight_head is not None:
            if latents is None:
                assert targets.future_images is not None
                latents = self.encode_frames(torch.cat([observation.images, targets.future_images[:, :, None]], dim=2))
            latents, target_latents = latents.float().tensor_split([latents.shape[2] - 1], dim=2)
            target_latents = target_latents[:, :, 0]
        context = self.embed(observation, latents)
        draws = noise.shape[0] // observation.state.shape[0]
        clean = targets.actions.repeat_interleave(draws, dim=0)
        actions = noisy_actions(clean, noise, time)
        action_hidden = self.action_head.embed_actions(actions, time)
        # Only foresight and actions are read out.
        needs_output = [trace is not None or block.name == "foresight" for block in context.blocks]
        layers: list[list[Tensor]] | None = [] if trace is not None else None
        if draws == 1:
            hidden, blocks = [*context.hidden, action_hidden], [*context.blocks, self._action_block(context)]
            out, cache = self.mixture(hidden, blocks, needs_output=[*needs_output, True], trace=layers)
        else:
            # Nothing before the actions depends on them: one pass over the observation serves all draws.
            out, cache = self.mixture(context.hidden, context.blocks, needs_output=needs_output)
            past = [(k.repeat_interleave(draws, dim=0), v.repeat_interleave(draws, dim=0)) for k, v in cache]
            out += self.mixture([action_hidden], [self._action_block(context).repeated(draws)], past=past)[0]
            hidden, blocks = [*context.hidden, action_hidden], [*context.blocks, self._action_block(context)]
        by_name = {block.name: h for block, h in zip(blocks, out, strict=True)}
        future = (
            self.foresight_head.read_out(by_name["foresight"], observation.images.shape[1])
            if self.foresight_head is not None
            else None
        )
        if trace is not None:
            trace |= {
                "latents": latents,
                "hidden": hidden,
                "blocks": blocks,
                "layers": layers,
                "out": out,
                "cache": cache,
            }
            trace |= {"context": context, "noisy_actions": actions}
        return Prediction(
            velocity=self.action_head.read_out(by_name["actions"]),
            target_velocity=target_velocity(clean, noise),
            future_latents=future,
            target_future_latents=target_latents,
        )

    def compute_loss(
        self,
        observation: Observation,
        targets: Targets,
        noise: Tensor,
        time: Tensor,
        *,
        lambda_gen: float,
        reference_loss: bool = False,
        across_ranks: bool = False,
        latents: Tensor | None = None,
    ) -> LossBreakdown:
        """Training pass and losses; see ``predict`` and ``losses.compute_losses``."""
        prediction = self.predict(observation, targets, noise, time, latents=latents)
        return compute_losses(
            prediction,
            targets,
            observation.camera_is_present,
            lambda_gen=lambda_gen,
            reference=reference_loss,
            across_ranks=across_ranks,
        )

    forward = compute_loss

    # ------------------------------------------------------------------ act

    def prefill(
        self,
        observation: Observation,
        *,
        latents: Tensor | None = None,
        with_foresight: bool = False,
        reference_positions: bool = False,
    ) -> Prefill:
        """Run everything that does not depend on the actions, once per chunk.

        Args:
            observation: past and now.
            latents: what ``encode_frames`` gives for past and now [B, V, 2, C, h, w]; None encodes the frames.
            with_foresight: also compute the foresight block to its end, for ``predict_foresight``.
            reference_positions: see ``embed``.
        """
        if self.foresight_head is not None and latents is None:
            latents = self.encode_frames(observation.images)
        context = self.embed(observation, latents, reference_positions=reference_positions)
        needs_output = [with_foresight and block.name == "foresight" for block in context.blocks]
        out, cache = self.mixture(context.hidden, context.blocks, needs_output=needs_output)
        return Prefill(
            cache=cache,
            action_block=self._action_block(context),
            foresight_hidden=out[1] if with_foresight and self.foresight_head is not None else None,
            views=observation.images.shape[1],
        )

    def denoise_step(self, prefill: Prefill, actions: Tensor, time: Tensor) -> Tensor:
        """Velocity [B, K, A] of noisy actions at flow time [B]; differentiable in ``actions``."""
        hidden = self.action_head.embed_actions(actions, time)
        out, _ = self.mixture([hidden], [prefill.action_block], past=prefill.cache)
        return self.action_head.read_out(out[0])

    def sample_actions(self, prefill: Prefill, noise: Tensor, num_steps: int) -> Tensor:
        """Integrate noise [B, K, A] to normalised actions in ``num_steps`` Euler steps.

        Static shapes, no host synchronisation, no data-dependent branch: compiles with ``fullgraph=True``.
        """
        actions = noise.float()
        for time in euler_times(num_steps, noise.device):
            velocity = self.denoise_step(prefill, actions, time.expand(noise.shape[0]))
            actions = actions + (-1.0 / num_steps) * velocity
        return actions

    # ------------------------------------------------------------------ imagine

    def predict_foresight(self, prefill: Prefill) -> Tensor:
        """Latents [B, V, C, h, w] of the frame one interval ahead. Cells of missing cameras are meaningless.

        Raises:
            InternVLAError: the model has no generation expert, or the prefill was made without foresight.
        """
        if self.foresight_head is None:
            raise InternVLAError(
                "This policy was built with use_foresight=false: it has no generation expert and cannot imagine the "
                "future. Use a checkpoint with use_foresight=true."
            )
        if prefill.foresight_hidden is None:
            raise InternVLAError("The prefill holds no foresight. Call prefill(observation, with_foresight=True).")
        return self.foresight_head.read_out(prefill.foresight_hidden, prefill.views)
