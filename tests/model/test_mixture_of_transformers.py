"""Joint attention: who sees whom, one attention for the training pass and the cached pass, norms that round late."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from lerobot_internvla.model.architecture import build_architecture
from lerobot_internvla.model.mixture_of_transformers import MixtureOfTransformers, RMSNorm
from lerobot_internvla.model.token_blocks import BLOCKS, Block, following_positions, rotary_frequencies
from lerobot_internvla.testing import SMALL

EXPERTS = ("understanding", "foresight", "action")


def build(variant: str = "tiny", layers: int = 2) -> MixtureOfTransformers:
    torch.manual_seed(0)
    return MixtureOfTransformers(build_architecture(variant, {**SMALL[variant], "layers": layers}), EXPERTS).eval()


def blocks_for(variant: str, valid: list[Tensor], names: tuple[str, ...] = BLOCKS) -> list[Block]:
    """Blocks with the given key masks (per block [B, S]), numbered one after the other."""
    frequencies = rotary_frequencies(build_architecture(variant, SMALL[variant]))
    start = torch.zeros(valid[0].shape[0], dtype=torch.int64)
    made: list[Block] = []
    for index, (name, mask) in enumerate(zip(names, valid, strict=True)):
        angles = following_positions(start, mask)[:, :, None, None].float() * frequencies
        start = start + mask.sum(dim=1)
        visible = torch.cat(valid[: index + 1], dim=1)[:, None, None]
        made.append(Block(name, angles.cos(), angles.sin(), visible))
    return made


def random_hidden(mixture: MixtureOfTransformers, blocks: list[Block], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = {name: norm.weight.shape[0] for name, norm in mixture.final_norms.items()}
    return [torch.randn(b.cos.shape[0], b.cos.shape[1], widths[b.expert], generator=generator) for b in blocks]


def sizes_of(attention_starts: Tensor) -> list[int]:
    """Tokens per block: the reference marks the first token of a block with 1 (the very first may be 0)."""
    starts = [0, *[i for i in range(1, len(attention_starts)) if attention_starts[i]]]
    return [b - a for a, b in zip(starts, [*starts[1:], len(attention_starts)], strict=True)]


@pytest.fixture
def attention_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Queries per head group of every attention call, as they happen."""
    calls: list[int] = []
    stock = F.scaled_dot_product_attention

    def counted(query: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append(query.shape[2])
        return stock(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return calls


@pytest.mark.parametrize("case", ["a1_full_small", "a1_suffix_only", "a1_middle_only"])
def test_a_token_is_influenced_by_exactly_the_tokens_that_the_reference_lets_it_see(goldens: Path, case: str):
    """One layer of real weights: token k is changed, and the outputs that change are compared with the golden mask."""
    recorded = load_file(goldens / "schedule" / "att_2d_masks.safetensors")
    pad, sees = recorded[f"{case}.pad"], recorded[f"{case}.out"]
    sizes = sizes_of(recorded[f"{case}.att"][0])
    names = {4: BLOCKS, 2: ("state", "actions"), 1: ("foresight",)}[len(sizes)]
    assert len(sizes) == len(names)
    mixture = build(layers=1)
    blocks = blocks_for("tiny", list(pad.split(sizes, dim=1)), names)
    hidden = random_hidden(mixture, blocks)
    with torch.no_grad():
        before = mixture(hidden, blocks)[0]
        for key in range(pad.shape[1]):
            changed = [h.clone() for h in hidden]
            block = next(i for i in range(len(sizes)) if key < sum(sizes[: i + 1]))
            changed[block][:, key - sum(sizes[:block])] += 1.0
            after = mixture(changed, blocks)[0]
            moved = torch.cat([(a != b).any(dim=2) for a, b in zip(after, before, strict=True)], dim=1)
            moved[:, key] = sees[:, key, key]  # a token always keeps itself, by the residual
            real = pad  # rows of padding are nobody's business
            assert torch.equal(moved & real, sees[:, :, key] & real), f"key {key}"


def test_padding_never_makes_anything_infinite():
    """A whole block of padding, and a sample of which only one token is real."""
    mixture = build()
    valid = [torch.zeros(2, n, dtype=torch.bool) for n in (4, 3, 1, 2)]
    valid[0][:, 0] = True
    blocks = blocks_for("tiny", valid)
    hidden = [h.requires_grad_() for h in random_hidden(mixture, blocks)]
    out, _ = mixture(hidden, blocks)
    assert all(torch.isfinite(o).all() for o in out)
    sum(o.square().sum() for o in out).backward()
    assert all(torch.isfinite(h.grad).all() for h in hidden)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in mixture.parameters())


@pytest.mark.parametrize("variant", ["3b", "2b", "tiny"])
def test_the_cached_pass_is_the_training_pass(variant: str):
    """Three blocks, then the actions on their keys and values: the same as all four at once."""
    mixture = build(variant, layers=3)
    valid = [torch.rand(2, n) > 0.3 for n in (6, 4)] + [torch.ones(2, n, dtype=torch.bool) for n in (1, 5)]
    valid[0][:, 0] = True
    blocks = blocks_for(variant, valid)
    hidden = random_hidden(mixture, blocks)
    with torch.no_grad():
        together, keys_values = mixture(hidden, blocks)
        first, cache = mixture(hidden[:3], blocks[:3])
        last, full = mixture(hidden[3:], blocks[3:], past=cache)
    for a, b in zip([*first, *last], together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(full, keys_values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert cache[0][0].shape[2] == 11, "keys of the first three blocks alone"


def test_a_block_whose_output_nobody_needs_is_not_computed(attention_calls: list[int]):
    mixture = build(layers=2)
    blocks = blocks_for("tiny", [torch.ones(1, n, dtype=torch.bool) for n in (3, 2, 1, 4)])
    hidden = random_hidden(mixture, blocks)
    with torch.no_grad():
        everything, cache = mixture(hidden, blocks)
        assert len(attention_calls) == 8
        attention_calls.clear()
        wanted, same_cache = mixture(hidden, blocks, needs_output=[False, True, False, True])
        assert len(attention_calls) == 6, "the last layer computes the wanted blocks alone"
    torch.testing.assert_close(wanted[1], everything[1])
    torch.testing.assert_close(wanted[3], everything[3])
    torch.testing.assert_close(same_cache[-1], cache[-1])


def layer_written_out(layer: nn.Module, hidden: list[Tensor], blocks: list[Block]) -> list[Tensor]:
    """One joint layer in textbook form: repeated keys, a written-out mask, softmax, rotation by halves."""
    queries, keys, values = [], [], []
    for h, block in zip(hidden, blocks, strict=True):
        expert = layer.experts[block.expert]
        attention, normed = expert.self_attn, expert.input_layernorm(h)
        query, key, value = (
            projection(normed).unflatten(-1, (-1, layer.head_width)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        cos, sin = (torch.cat([table, table], dim=-1).transpose(1, 2) for table in (block.cos, block.sin))
        half = layer.head_width // 2
        query, key = (x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin for x in (query, key))
        repeats = query.shape[1] // key.shape[1]
        queries.append(query)
        keys.append(key.repeat_interleave(repeats, dim=1))
        values.append(value.repeat_interleave(repeats, dim=1))
    key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)
    out = []
    for h, block, query in zip(hidden, blocks, queries, strict=True):
        expert = layer.experts[block.expert]
        later = key.shape[2] - block.visible_keys.shape[-1]
        mask = F.pad(block.visible_keys, (0, later), value=False)
        scores = (query @ key.transpose(2, 3) / layer.head_width**0.5).masked_fill(~mask, float("-inf"))
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        h = h + expert.self_attn.o_proj(mixed)
        out.append(h + expert.mlp(expert.post_attention_layernorm(h)))
    return out


@pytest.mark.parametrize("variant", ["3b", "2b", "tiny"])
def test_a_layer_computes_textbook_attention(variant: str):
    mixture = build(variant, layers=1)
    valid = [torch.rand(2, n) > 0.3 for n in (6, 4)] + [torch.ones(2, n, dtype=torch.bool) for n in (1, 5)]
    valid[0][:, 0] = True
    blocks = blocks_for(variant, valid)
    hidden = random_hidden(mixture, blocks)
    with torch.no_grad():
        expected = layer_written_out(mixture.layers[0], hidden, blocks)
        expected = [mixture.final_norms[b.expert](h) for h, b in zip(expected, blocks, strict=True)]
        ours = mixture(hidden, blocks)[0]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_norm_multiplies_before_it_rounds():
    """The released checkpoint was trained this way; stock Qwen norms round to bfloat16 first."""
    torch.manual_seed(0)
    norm = RMSNorm(64, 1e-6)
    norm.weight.data = torch.rand(64) + 0.5
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    wide = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    late, early = (wide * norm.weight).bfloat16(), wide.bfloat16() * norm.weight.bfloat16()
    assert torch.equal(norm(x), late)
    assert not torch.equal(late, early), "the two orders must differ here, or this test proves nothing"
    assert norm(x).dtype == torch.bfloat16


def test_checkpointing_recomputes_every_layer_and_changes_nothing(attention_calls: list[int]):
    mixture = build(layers=3).train()
    blocks = blocks_for("tiny", [torch.ones(2, n, dtype=torch.bool) for n in (3, 2, 1, 4)])
    hidden = random_hidden(mixture, blocks)

    def run() -> tuple[Tensor, list[Tensor]]:
        mixture.zero_grad()
        attention_calls.clear()
        out, _ = mixture(hidden, blocks)
        loss = sum(o.square().mean() for o in out)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in mixture.parameters()]

    loss, gradients = run()
    assert len(attention_calls) == 12
    mixture.gradient_checkpointing = True
    same_loss, same_gradients = run()
    assert len(attention_calls) == 24, "the backward pass must run every layer again"
    assert torch.equal(loss, same_loss)
    for a, b in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(a, b)
    attention_calls.clear()
    with torch.no_grad():
        mixture(hidden, blocks)
    assert len(attention_calls) == 12, "nothing to recompute without gradients"
