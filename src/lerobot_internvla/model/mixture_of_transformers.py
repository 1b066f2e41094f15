"""Joint attention over expert streams (Mixture-of-Transformers).

Every expert owns its weights; all experts share one attention (paper section "Architecture"). The decoder layers of
stock transformers are parameter containers, so that names and shapes equal the released checkpoint; the loop is ours.
One ``JointLayer`` is one ``nn.Module`` called through ``__call__``: the unit of FSDP, of checkpointing and of compile.

The training pass gives all blocks at once; inference gives the first three (prefill), keeps their keys and values, then
gives the action block alone, once per Euler step. Both run the same ``JointLayer.forward``.
Axes: B batch, S tokens of a block, T tokens seen so far, N query heads, M key/value heads, H head width, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # partly typed by torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention, Qwen3VLTextDecoderLayer

from .architecture import Architecture, ExpertWidth
from .token_blocks import Block

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [B, M, T, H]; keys after normalisation and rotation."""
LayerOutput = tuple[list[Tensor], KeysValues]
"""Hidden states per block [B, S, D], and the keys and values of everything seen so far."""
DecoderLayer = Qwen3VLTextDecoderLayer | Qwen2DecoderLayer
"""The parameters of one expert in one layer. Its parts are called one by one, so LoRA may stand in for a projection."""


@dataclass(frozen=True)
class BlockTables:
    """What every layer needs to know of one block; computed once per pass, not once per layer."""

    expert: str
    cos: Tensor
    """[B, 1, S, H] float32, broadcast over heads."""
    sin: Tensor
    """[B, 1, S, H] float32, negative in the first half (see ``rotate``)."""
    key_bias: Tensor
    """[B, 1, 1, T] in the dtype of the queries: 0 where a key is visible, the lowest finite number where it is not.

    Finite, so that a row without any visible key would be uniform rather than NaN."""

    @classmethod
    def of(cls, block: Block, dtype: torch.dtype) -> "BlockTables":
        """Tables of ``block`` for queries of ``dtype``."""
        cos, sin = block.cos.transpose(1, 2), block.sin.transpose(1, 2)
        # SDPA turns a boolean mask into these numbers by itself, three operations on every call.
        hidden = ~block.visible_keys
        bias = torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
        return cls(block.expert, torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1), bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm that multiplies by its gain in float32 and casts afterwards.

    The stock Qwen norms cast first; the released checkpoint was trained this way (model facts, "transformers patch").
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def build_decoder_layer(architecture: Architecture, width: ExpertWidth) -> DecoderLayer:
    """One stock decoder layer (Qwen3-VL text or Qwen2 geometry) with our norms."""
    settings: dict[str, Any] = {
        "hidden_size": width.hidden,
        "intermediate_size": width.mlp,
        "num_attention_heads": architecture.query_heads,
        "num_key_value_heads": architecture.key_value_heads,
        "num_hidden_layers": 1,
        "head_dim": architecture.head_width,
        "rms_norm_eps": architecture.rms_norm_eps,
    }
    if architecture.qk_norm:
        settings["attention_bias"] = architecture.qkv_bias
        layer = Qwen3VLTextDecoderLayer(Qwen3VLTextConfig(**settings), layer_idx=0)
        for name in ("q_norm", "k_norm"):
            setattr(layer.self_attn, name, RMSNorm(architecture.head_width, architecture.rms_norm_eps))
    else:
        layer = Qwen2DecoderLayer(Qwen2Config(**settings), layer_idx=0)
    for name in ("input_layernorm", "post_attention_layernorm"):
        setattr(layer, name, RMSNorm(width.hidden, architecture.rms_norm_eps))
    return layer


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``x`` [B, heads, S, H]; angles and result are float32 in every precision mode.

    The two halves of a head are the two coordinates that turn, so swapping them is a roll by half the width, and the
    sign of the second term sits in ``sin``.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def attend(query: Tensor, key: Tensor, value: Tensor, key_bias: Tensor) -> Tensor:
    """Grouped-query attention of one block.

    The mask depends on the key alone, so the query heads that share a key/value head are laid along the sequence: one
    plain SDPA call on every backend, no repeated keys, no mask of size S x T.

    Args:
        query: [B, N, S, H]. key, value: [B, M, T, H]. key_bias: [B, 1, 1, T], see ``BlockTables``.

    Returns:
        [B, S, N * H].
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    folded = query.reshape(batch, groups, heads // groups * length, width)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=key_bias)
    # Back into tokens with one copy, whatever layout the backend chose for its result.
    return torch.unflatten(out, 2, (-1, length)).permute(0, 3, 1, 2, 4).flatten(2)


class JointLayer(nn.Module):
    """One layer of all experts: own projections and MLPs, one attention."""

    def __init__(self, architecture: Architecture, experts: Sequence[str]) -> None:
        super().__init__()
        self.head_width = architecture.head_width
        self.qk_norm = architecture.qk_norm
        self.experts = nn.ModuleDict(
            {
                name: build_decoder_layer(
                    architecture, architecture.understanding if name == "understanding" else architecture.expert
                )
                for name in experts
            }
        )

    def expert(self, name: str) -> DecoderLayer:
        """The parameters of one expert."""
        return cast(DecoderLayer, self.experts[name])

    def _project(
        self, expert: DecoderLayer, hidden: Tensor, tables: BlockTables, needs_query: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Queries [B, N, S, H] (None when nobody asks) and keys and values [B, M, S, H] of one block."""
        attention = expert.self_attn
        normed = expert.input_layernorm(hidden)
        heads = (-1, self.head_width)
        key = attention.k_proj(normed).unflatten(-1, heads)
        value = attention.v_proj(normed).unflatten(-1, heads)
        query = attention.q_proj(normed).unflatten(-1, heads) if needs_query else None
        if self.qk_norm:
            assert isinstance(attention, Qwen3VLTextAttention)
            key = attention.k_norm(key.float())
            query = attention.q_norm(query.float()) if query is not None else None
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if query is None:
            return None, rotate(key, tables.cos, tables.sin).to(value.dtype), value
        # Queries and keys turn by the same angles: one rotation for both.
        query = query.transpose(1, 2)
        # Rounded here, once: not before the rotation, and not at every Euler step that reads the cached keys.
        turned = rotate(torch.cat([query, key], dim=1), tables.cos, tables.sin).to(value.dtype)
        query, key = torch.split(turned, [query.shape[1], key.shape[1]], dim=1)
        return query, key, value

    def forward(
        self,
        hidden: Sequence[Tensor],
        blocks: Sequence[BlockTables],
        past: KeysValues | None,
        needs_output: Sequence[bool],
    ) -> LayerOutput:
        """Run every block through this layer.

        Args:
            hidden: per block [B, S, D of its expert].
            blocks: per block, its rotary angles and what it may see. In order of attention.
            past: keys and values of blocks that came before, or None.
            needs_output: per block; False leaves ``hidden`` as it is and computes keys and values only.

        Returns:
            new hidden states and the keys and values of everything seen so far.
        """
        projected = [
            self._project(self.expert(block.expert), h, block, wanted)
            for h, block, wanted in zip(hidden, blocks, needs_output, strict=True)
        ]
        keys = ([past[0]] if past is not None else []) + [key for _, key, _ in projected]
        values = ([past[1]] if past is not None else []) + [value for _, _, value in projected]
        key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)
        out: list[Tensor] = []
        for h, block, (query, _, _) in zip(hidden, blocks, projected, strict=True):
            if query is None:
                out.append(h)
                continue
            expert = self.expert(block.expert)
            seen = block.key_bias.shape[-1]
            mixed = attend(query, key[:, :, :seen], value[:, :, :seen], block.key_bias)
            h = h + expert.self_attn.o_proj(mixed)
            out.append(h + expert.mlp(expert.post_attention_layernorm(h)))
        return out, (key, value)


class MixtureOfTransformers(nn.Module):
    """The stack of joint layers and the final norm of each expert."""

    def __init__(self, architecture: Architecture, experts: Sequence[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([JointLayer(architecture, experts) for _ in range(architecture.layers)])
        self.final_norms = nn.ModuleDict(
            {
                name: RMSNorm(
                    (architecture.understanding if name == "understanding" else architecture.expert).hidden,
                    architecture.rms_norm_eps,
                )
                for name in experts
            }
        )
        self.gradient_checkpointing = False

    def layer(self, index: int) -> JointLayer:
        """One layer of all experts; negative numbers count from the end."""
        return cast(JointLayer, self.layers[index])

    def layers_of(self, expert: str) -> list[DecoderLayer]:
        """The parameters of one expert, layer by layer."""
        return [self.layer(index).expert(expert) for index in range(len(self.layers))]

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual streams: that of the projections."""
        return self.layer(0).expert("understanding").self_attn.q_proj.weight.dtype

    def dead_modules(self) -> list[nn.Module]:
        """Parts of the understanding expert after its last keys and values: nothing reads what they would compute."""
        expert = self.layer(-1).expert("understanding")
        attention = expert.self_attn
        dead = [attention.q_proj, attention.o_proj, expert.mlp, expert.post_attention_layernorm]
        dead += [attention.q_norm] if isinstance(attention, Qwen3VLTextAttention) else []
        return [*dead, self.final_norms["understanding"]]

    def _query_dtype(self, device: str) -> torch.dtype:
        """What the projections put out: autocast decides where it is on. (The meta device knows no autocast.)"""
        is_autocast = device != "meta" and torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if is_autocast else self.dtype

    def forward(
        self,
        hidden: Sequence[Tensor],
        blocks: Sequence[Block],
        past: Sequence[KeysValues] | None = None,
        needs_output: Sequence[bool] | None = None,
        trace: list[list[Tensor]] | None = None,
    ) -> tuple[list[Tensor], list[KeysValues]]:
        """Run all layers.

        Args:
            hidden: per block [B, S, D].
            blocks: in order of attention.
            past: per layer, the keys and values of earlier blocks.
            needs_output: per block, whether anything reads its last hidden state; the last layer skips the rest.
            trace: receives the hidden states after every layer (parity checks).

        Returns:
            final-normed hidden states per block, and per layer the keys and values of everything seen so far.
        """
        wanted = list(needs_output) if needs_output is not None else [True] * len(blocks)
        streams = [h.to(self.dtype) for h in hidden]
        tables = [BlockTables.of(block, self._query_dtype(streams[0].device.type)) for block in blocks]
        cache: list[KeysValues] = []
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            arguments = (
                streams,
                tables,
                past[index] if past is not None else None,
                wanted if is_last else [True] * len(blocks),
            )
            if self.gradient_checkpointing and torch.is_grad_enabled():
                output = cast(LayerOutput, checkpoint(layer, *arguments, use_reentrant=False))
            else:
                output = cast(LayerOutput, layer(*arguments))
            streams, keys_values = output
            cache.append(keys_values)
            if trace is not None:
                trace.append(list(streams))
        return [self.final_norms[block.expert](h) for h, block in zip(streams, blocks, strict=True)], cache
