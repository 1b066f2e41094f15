"""How much GPU memory training takes at its peak, by arithmetic: nothing is allocated and nothing is measured.

    weights        every parameter in the precision in which it is kept; heads that LoRA trains in full exist twice
    gradients      one number per trained parameter, in its own precision
    optimizer      AdamW: two numbers per trained parameter, in its own precision
    casts          autocast keeps a bfloat16 copy of every trained float32 matrix until the forward pass ends; without
                   checkpointing also of every frozen one that gradients pass through
    activations    what the forward pass keeps for the backward pass, per sample; formulas below
    step           AdamW's foreach implementation makes one temporary number per trained parameter

    peak = weights + optimizer + max(casts + activations, gradients + step)

The first is the end of the forward pass, the second the optimizer step. In between, gradients grow while casts and
activations go, both about evenly, so neither end is exceeded.

Activations per token of a decoder layer of width h, MLP m, Q and K numbers in its queries and keys, and s bytes per
number of its residual stream (4 with float32 weights, 2 with bfloat16), computed in bfloat16:

    2hs  stream before attention and before MLP     10Q  float32 and rotated queries, attention, its result by token
    4h   normed, twice                              10K  float32, rotated and joined keys; joined values
    8m   gate, up, SiLU, product

A patch in a block of the vision tower: 2hs + 18h + 4m. With gradient checkpointing a layer keeps its inputs alone (hs),
and one layer at a time is computed again.

A frozen expert's layers keep theirs too: all blocks share one joined tensor of keys, so autograd goes through every
block once anything in the layer is trained. A frozen vision tower comes before all layers and keeps nothing.

Not in it: the CUDA context (``CONTEXT_GB`` is added to the peak), fragmentation, and what the data loader pins.
Parameters are exact. The per-token numbers agree with what PyTorch keeps on a CPU to a third (tests/model/
test_memory.py); with checkpointing they are a small part of the whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import nn

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer

from .architecture import CAMERA_SLOTS, Architecture
from .internvla_a1 import InternVLAA1
from .summary import owner_and_part

EXPERTS = ("understanding", "foresight", "action")
CONTEXT_GB = 0.8
"""CUDA context, cuBLAS and cuDNN workspaces: an allowance, and the one number here that is a guess."""


@dataclass(frozen=True)
class TrainingPlan:
    """What decides the memory of a run; field for field the flags of the policy and of LeRobot."""

    batch_size: int = 8
    trained: Sequence[str] = EXPERTS
    """Experts, with their heads, that are trained; with LoRA, that are adapted."""
    freeze_vision_encoder: bool = False
    lora_rank: int | None = None
    """None trains the experts in full."""
    use_foresight: bool = True
    weights_bytes: int = 4
    """4: float32 master weights. 2: bfloat16 (weights_dtype)."""
    gradient_checkpointing: bool = True
    chunk_size: int = 50
    views: int = len(CAMERA_SLOTS)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. ``trained`` and ``frozen`` are numbers of parameters, the image tokenizer not among them."""

    trained: int
    frozen: int
    weights: int
    gradients: int
    optimizer: int
    casts: int
    activations: int
    step: int

    @property
    def peak_gb(self) -> float:
        """The largest of forward, backward and optimizer step, with the CUDA context; 1e9 bytes."""
        moment = max(self.casts + self.activations, self.gradients + self.step)
        return (self.weights + self.optimizer + moment) / 1e9 + CONTEXT_GB

    def __str__(self) -> str:
        parts = ", ".join(
            f"{field.name} {getattr(self, field.name) / 1e9:.2f}"
            for field in fields(self)
            if field.name not in ("trained", "frozen")
        )
        return f"{self.peak_gb:.1f} GB at the peak ({parts}, CUDA {CONTEXT_GB}; {self.trained / 1e6:.1f} M trained)"


def training_memory(architecture: Architecture, plan: TrainingPlan) -> MemoryEstimate:
    """The peak of one training step on one GPU, without sharding.

    Args:
        architecture: sizes; parameters are counted on the meta device.
        plan: of the run.

    Raises:
        InternVLAError: nothing is trained, or an expert that does not exist.
    """
    experts = EXPERTS if plan.use_foresight else tuple(e for e in EXPERTS if e != "foresight")
    if not plan.trained or set(plan.trained) - set(experts):
        raise InternVLAError(f"trained={list(plan.trained)}: expected some of {', '.join(experts)}.")
    with torch.device("meta"):
        model = InternVLAA1(architecture, use_foresight=plan.use_foresight, chunk_size=plan.chunk_size)
        tokenizer = build_image_tokenizer(architecture.image_tokenizer) if plan.use_foresight else None
    dead = {name for name, _ in model.dead_parameters()}
    kept = _bytes_per_parameter(model, plan.weights_bytes)
    trained = frozen = weights = gradients = casts = 0

    def train(count: int, size: int, is_matrix: bool) -> None:
        nonlocal trained, gradients, casts
        trained += count
        gradients += count * size
        casts += count * 2 if is_matrix and size == 4 else 0

    for name, parameter in model.named_parameters():
        count, size = parameter.numel(), kept[name]
        weights += count * size
        owner, is_head = owner_and_part(name)[0], name.startswith(("action_head.", "foresight_head."))
        expert = owner.removesuffix("_head")
        is_vision = name.startswith("vision_language.vision_tower.")
        chosen = expert in plan.trained and name not in dead and not (is_vision and plan.freeze_vision_encoder)
        if plan.lora_rank is None and chosen:
            train(count, size, parameter.ndim > 1)
            continue
        frozen += count
        if (
            not plan.gradient_checkpointing
            and name not in dead
            and parameter.ndim > 1
            and size == 4
            and name.startswith("mixture.")
        ):
            casts += count * 2
        if plan.lora_rank is not None and is_head and chosen:  # PEFT trains a copy and keeps the original
            weights += count * size
            train(count, size, parameter.ndim > 1)
        elif plan.lora_rank is not None and chosen and _is_projection(name):
            added = plan.lora_rank * sum(parameter.shape)
            weights += 4 * added  # PEFT keeps adapters in float32
            train(added, 4, is_matrix=True)
    if isinstance(tokenizer, nn.Module):
        weights += 2 * sum(parameter.numel() for parameter in tokenizer.parameters())
    return MemoryEstimate(
        trained=trained,
        frozen=frozen,
        weights=weights,
        gradients=gradients,
        optimizer=2 * gradients,
        casts=casts,
        activations=plan.batch_size * _activations_per_sample(architecture, plan),
        step=gradients,
    )


def _is_projection(name: str) -> bool:
    """What ``--peft.*`` adapts by default: attention and MLP of the experts' layers."""
    return name.startswith("mixture.layers.") and name.endswith("_proj.weight")


def _bytes_per_parameter(model: nn.Module, weights_bytes: int) -> dict[str, int]:
    """As ``weights_dtype`` does it: towers and projections are rounded; heads and norms of the experts are not."""
    rounded: set[str] = set()
    for path, module in cast(Iterator[tuple[str, nn.Module]], model.named_modules()):
        if path.startswith("vision_language") or (path.startswith("mixture") and isinstance(module, nn.Linear)):
            rounded |= {f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return {name: weights_bytes if name in rounded else 4 for name, _ in model.named_parameters()}


# ---------------------------------------------------------------------------------------------------------- activations


def layer_bytes_per_token(architecture: Architecture, hidden: int, mlp: int, stream_bytes: int) -> int:
    """What one token leaves behind in one decoder layer that is not checkpointed, computed in bfloat16."""
    queries = architecture.query_heads * architecture.head_width
    keys = architecture.key_value_heads * architecture.head_width
    return 2 * hidden * stream_bytes + 4 * hidden + 10 * queries + 10 * keys + 8 * mlp


def tower_bytes_per_patch(architecture: Architecture, stream_bytes: int) -> int:
    """What one patch leaves behind in one block of the vision tower that is not checkpointed."""
    vision = architecture.vision
    return 2 * vision.hidden * stream_bytes + 18 * vision.hidden + 4 * vision.mlp


def _activations_per_sample(architecture: Architecture, plan: TrainingPlan) -> int:
    stream = plan.weights_bytes
    understanding = plan.views * architecture.view_tokens + architecture.prompt_tokens
    blocks = {
        "understanding": (understanding, architecture.understanding),
        "foresight": (plan.views * 2 * architecture.foresight_tokens_per_frame, architecture.expert),
        "action": (1 + plan.chunk_size, architecture.expert),
    }
    if not plan.use_foresight:
        del blocks["foresight"]
    layer = keep = cache = 0
    keys = architecture.key_value_heads * architecture.head_width
    for tokens, width in blocks.values():
        keep += tokens * width.hidden * stream  # a checkpointed layer keeps all its inputs
        cache += 2 * tokens * keys * 2
        layer += tokens * layer_bytes_per_token(architecture, width.hidden, width.mlp, stream)
    vision, images = architecture.vision, plan.views
    patches = images * vision.grid[0] * vision.grid[1]
    is_tower_trained = plan.lora_rank is None and "understanding" in plan.trained and not plan.freeze_vision_encoder
    block = patches * tower_bytes_per_patch(architecture, stream) * is_tower_trained
    if plan.gradient_checkpointing:
        tower = vision.depth * patches * vision.hidden * stream * is_tower_trained
        # The two largest units are never computed again at the same time.
        return architecture.layers * (keep + cache) + tower + max(layer, block)
    return architecture.layers * (layer + cache) + vision.depth * block
