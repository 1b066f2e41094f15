"""How large a model is and where its parameters sit: the figures of the paper's Table 1, and the ones it leaves out.

Everything is counted on the meta device, so summarising the 3b takes no memory for weights and a few seconds.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer

from .architecture import CAMERA_SLOTS, Architecture
from .internvla_a1 import InternVLAA1

CHUNK_SIZE = 50
"""Action steps per chunk in the paper."""


@dataclass(frozen=True)
class ExpertSummary:
    """One transformer of the mixture. Heads are shared by all experts and stand in ``ModelSummary``."""

    name: str
    layers: int
    hidden: int
    mlp: int
    parameters: int
    """Everything under the expert's name in the paper: for understanding, vision tower and embeddings included."""


@dataclass(frozen=True)
class ModelSummary:
    """Counts of one architecture. Parameters are numbers, not bytes; tokens are per sample."""

    variant: str
    experts: tuple[ExpertSummary, ...]
    query_heads: int
    key_value_heads: int
    head_width: int
    understanding_parts: dict[str, int]
    """Parameters of the understanding expert by part; they add up to its total."""
    foresight_head: int
    action_head: int
    image_tokenizer_kind: str
    image_tokenizer: int
    """Frozen, and saved in a folder of its own."""
    dead: dict[str, int]
    """Parameters that no output depends on, by part: kept for export, frozen, never computed."""
    tokens: dict[str, int]
    """Per block, with all camera slots in use and a chunk of ``CHUNK_SIZE`` steps."""

    @property
    def model(self) -> int:
        """Parameters of the policy's model, without the image tokenizer."""
        return sum(expert.parameters for expert in self.experts) + self.foresight_head + self.action_head

    @property
    def total(self) -> int:
        """Parameters of a whole reference checkpoint."""
        return self.model + self.image_tokenizer

    def gigabytes(self, dtype: torch.dtype) -> float:
        """Memory of all weights in ``dtype``, in units of 1e9 bytes. Weights only: no activations, no optimizer."""
        return self.total * dtype.itemsize / 1e9

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **dataclasses.asdict(self),
            "model": self.model,
            "total": self.total,
            "total_dead": sum(self.dead.values()),
            "total_tokens": sum(self.tokens.values()),
            "weights_gb": {"float32": self.gigabytes(torch.float32), "bfloat16": self.gigabytes(torch.bfloat16)},
        }


def _count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def summarize(architecture: Architecture) -> ModelSummary:
    """Count parameters and tokens of ``architecture`` with all three experts."""
    with torch.device("meta"):
        model = InternVLAA1(architecture)
        image_tokenizer = build_image_tokenizer(architecture.image_tokenizer)
    experts: list[ExpertSummary] = []
    parts: dict[str, int] = {}
    for name, final_norm in model.mixture.final_norms.items():
        width = architecture.understanding if name == "understanding" else architecture.expert
        stack = [layer.experts[name] for layer in model.mixture.layers]
        parameters = _count(*stack, final_norm)
        if name == "understanding":
            parts = {child: _count(module) for child, module in model.vision_language.named_children()}
            parts = {**parts, "layers": _count(*stack), "final_norm": _count(final_norm)}
            parameters = sum(parts.values())
        experts.append(ExpertSummary(name, architecture.layers, width.hidden, width.mlp, parameters))
    dead: dict[str, int] = {}
    for name, parameter in model.dead_parameters():
        part = _dead_part(name)
        dead[part] = dead.get(part, 0) + parameter.numel()
    assert model.foresight_head is not None
    return ModelSummary(
        variant=architecture.name,
        experts=tuple(experts),
        query_heads=architecture.query_heads,
        key_value_heads=architecture.key_value_heads,
        head_width=architecture.head_width,
        understanding_parts=parts,
        foresight_head=_count(model.foresight_head),
        action_head=_count(model.action_head),
        image_tokenizer_kind=architecture.image_tokenizer.kind,
        image_tokenizer=_count(image_tokenizer),
        dead=dead,
        tokens={
            "understanding": len(CAMERA_SLOTS) * architecture.view_tokens + architecture.prompt_tokens,
            "foresight": len(CAMERA_SLOTS) * 2 * architecture.foresight_tokens_per_frame,
            "state": 1,
            "actions": CHUNK_SIZE,
        },
    )


def _dead_part(name: str) -> str:
    """A readable group for a parameter's name."""
    if name.startswith("vision_language."):
        return "deepstack mergers" if "deepstack" in name else name.split(".")[1]
    return "understanding final norm" if "final_norms" in name else "last understanding layer after its keys and values"
