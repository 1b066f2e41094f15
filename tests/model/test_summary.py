"""The summary counts what the reference's key lists and the paper's Table 1 count."""

from functools import cache

import pytest
import torch

from conversion.reference_files import key_list
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer
from lerobot_internvla.model.architecture import VARIANTS
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.model.summary import ModelSummary, summarize


@cache
def summary_of(variant: str) -> ModelSummary:
    return summarize(VARIANTS[variant])


@pytest.mark.parametrize("variant", ["3b", "2b"])
def test_counts_equal_the_reference(variant: str):
    recorded = key_list(variant, "full")["n_params"]
    summary = summary_of(variant)
    assert {expert.name: expert.parameters for expert in summary.experts} == {
        "understanding": recorded["und_expert"],
        "foresight": recorded["gen_expert"],
        "action": recorded["act_expert"],
    }
    assert summary.image_tokenizer == recorded["cosmos"]
    assert summary.total == recorded["total"]


@pytest.mark.parametrize(("variant", "billions"), [("3b", [2.13, 0.44, 0.44]), ("2b", [0.94, 0.36, 0.36])])
def test_experts_are_as_large_as_in_the_papers_table(variant: str, billions: list[float]):
    assert [round(expert.parameters / 1e9, 2) for expert in summary_of(variant).experts] == billions


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_left_out_or_counted_twice(variant: str):
    summary = summary_of(variant)
    with torch.device("meta"):
        model = InternVLAA1(VARIANTS[variant])
        image_tokenizer = build_image_tokenizer(VARIANTS[variant].image_tokenizer)
    assert summary.model == sum(p.numel() for p in model.parameters())
    assert isinstance(image_tokenizer, torch.nn.Module)
    assert summary.total - summary.model == sum(p.numel() for p in image_tokenizer.parameters())
    assert sum(summary.understanding_parts.values()) == summary.experts[0].parameters
    assert sum(summary.dead.values()) == sum(p.numel() for _, p in model.dead_parameters())


def test_dead_parameters_of_the_3b():
    summary = summary_of("3b")
    merger = 2 * 4096 + (4096 * 4096 + 4096) + (4096 * 2048 + 2048)
    last_layer = 2 * 2048 * 2048 + 128 + 3 * 2048 * 6144 + 2048  # q, o, q_norm, MLP, norm before it
    assert summary.dead == {
        "deepstack_mergers": 3 * merger,
        "last_layer_outputs": last_layer,
        "final_norm": 2048,
    }


@pytest.mark.parametrize(("variant", "tokens"), [("3b", [246, 96, 1, 50]), ("2b", [816, 96, 1, 50])])
def test_tokens_per_block(variant: str, tokens: list[int]):
    assert list(summary_of(variant).tokens.values()) == tokens


def test_memory_is_that_of_all_weights():
    summary = summary_of("3b")
    assert summary.gigabytes(torch.float32) == pytest.approx(12.891, abs=1e-3)
    assert summary.gigabytes(torch.bfloat16) == pytest.approx(6.4455, abs=1e-3)
