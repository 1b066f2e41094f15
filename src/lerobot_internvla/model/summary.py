"""How large a model is and where its parameters sit: the figures of the paper's Table 1, and the ones it leaves out.

Everything is counted on the meta device, so summarising the 3b takes no memory for weights and a few seconds.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer

from .architecture import CAMERA_SLOTS, Architecture
from .internvla_a1 import InternVLAA1


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
    """Per block, with all camera slots in use and the default chunk."""

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


def _sum_by(group: Callable[[str], str], parameters: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Elements per group of names, in order of appearance."""
    counts: dict[str, int] = {}
    for name, parameter in parameters:
        counts[group(name)] = counts.get(group(name), 0) + parameter.numel()
    return counts


def owner_and_part(name: str) -> tuple[str, str]:
    """(expert or head, part of it) that a parameter of ``InternVLAA1`` belongs to, by its name."""
    module, *rest = name.split(".")
    if module == "vision_language":
        return "understanding", rest[0]
    if module == "mixture":
        return (rest[3], "layers") if rest[0] == "layers" else (rest[1], "final_norm")
    return module, module


def summarize(architecture: Architecture) -> ModelSummary:
    """Count parameters and tokens of ``architecture`` with all three experts."""
    with torch.device("meta"):
        model = InternVLAA1(architecture)
        image_tokenizer = build_image_tokenizer(architecture.image_tokenizer)
    owners = _sum_by(lambda name: owner_and_part(name)[0], model.named_parameters())
    understanding = ((name, p) for name, p in model.named_parameters() if owner_and_part(name)[0] == "understanding")
    widths = {
        "understanding": architecture.understanding,
        "foresight": architecture.expert,
        "action": architecture.expert,
    }
    frozen = image_tokenizer.named_parameters() if isinstance(image_tokenizer, nn.Module) else ()
    return ModelSummary(
        variant=architecture.name,
        experts=tuple(
            ExpertSummary(name, architecture.layers, width.hidden, width.mlp, owners[name])
            for name, width in widths.items()
        ),
        query_heads=architecture.query_heads,
        key_value_heads=architecture.key_value_heads,
        head_width=architecture.head_width,
        understanding_parts=_sum_by(lambda name: owner_and_part(name)[1], understanding),
        foresight_head=owners["foresight_head"],
        action_head=owners["action_head"],
        image_tokenizer_kind=architecture.image_tokenizer.kind,
        image_tokenizer=sum(parameter.numel() for _, parameter in frozen),
        dead=_sum_by(_dead_part, model.dead_parameters()),
        tokens={
            "understanding": len(CAMERA_SLOTS) * architecture.view_tokens + architecture.prompt_tokens,
            "foresight": len(CAMERA_SLOTS) * 2 * architecture.foresight_tokens_per_frame,
            "state": 1,
            "actions": model.chunk_size,
        },
    )


def _dead_part(name: str) -> str:
    """A readable group for a parameter's name."""
    if name.startswith("vision_language."):
        return "deepstack_mergers" if "deepstack" in name else name.split(".")[1]
    # The last layer's keys and values are read by the other experts; nothing reads what comes after them.
    return "final_norm" if "final_norms" in name else "last_layer_outputs"
