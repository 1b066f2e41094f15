"""The key table is closed, one-to-one and invertible, and names exactly the tensors of our models."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion.reference_files import FAMILIES, key_list, stored_shapes
from lerobot_internvla.conversion.key_table import KEY_TABLES, Shape, collapse_indices, key_table
from lerobot_internvla.conversion.reference_layout import expected_shapes
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import VARIANTS

VARIANT_NAMES = list(FAMILIES)
TOTALS = {"3b": 3_222_760_208, "2b": 1_835_996_688}


def elements(shapes: dict[str, Shape]) -> int:
    return sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_every_reference_name_has_exactly_one_rule(variant: str):
    recorded, table = key_list(variant, "full"), key_table(FAMILIES[variant])
    for name in [*recorded["tensors"], *recorded["scripted"]]:
        rules = sum(row.to_ours(name) is not None for row in table.renames)
        assert rules + (name in table.aliases) + (name in table.constants) == 1, name


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_the_full_key_list_maps_one_to_one_and_back(variant: str):
    names = set(key_list(variant, "full")["tensors"])
    table = key_table(FAMILIES[variant])
    ours = table.to_ours(names)
    assert len(ours) == len(names)
    back = table.to_reference(ours.policy, ours.image_tokenizer)
    assert back.stored | set(back.aliases) == names
    assert set(back.aliases) == set(key_list(variant, "full")["tied"])


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_the_released_layout_with_its_script_buffers_maps_one_to_one_and_back(variant: str):
    recorded = key_list(variant, "tiny")
    table = key_table(FAMILIES[variant])
    ours = table.to_ours(recorded["tensors"])
    assert len(ours) == len(recorded["tensors"])
    assert sum(constant.only_if_scripted for constant in ours.constants) == 4
    assert all(constant.reason for constant in ours.constants)
    back = table.to_reference(ours.policy, ours.image_tokenizer, scripted=True)
    assert back.stored == set(recorded["tensors"])
    assert back.aliases == (recorded["metadata"] or {})


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_full_size_models_have_exactly_the_reference_names_shapes_and_parameter_count(variant: str):
    policy, image_tokenizer = expected_shapes(VARIANTS[variant])
    reference = stored_shapes(variant)
    ours = key_table(FAMILIES[variant]).match(reference, policy, image_tokenizer)
    assert ours.policy.keys() == policy.keys()
    assert ours.image_tokenizer.keys() == image_tokenizer.keys()
    assert elements(policy) + elements(image_tokenizer) == TOTALS[variant]
    assert key_list(variant, "full")["n_params"]["total"] == TOTALS[variant]


@st.composite
def names_of_one_rule(draw: st.DrawFn) -> tuple[str, str]:
    """A family and any name that one of its rules covers, whatever the layer numbers."""
    table = draw(st.sampled_from(list(KEY_TABLES.values())))
    pattern = draw(st.sampled_from(table.renames)).reference

    def fill(match: re.Match[str]) -> str:
        return str(draw(st.integers(0, 200))) if match[1] == "#" else draw(st.sampled_from(match[1].split("|")))

    return table.family, re.sub(r"\{([^}]*)\}", fill, pattern)


@given(names_of_one_rule())
def test_every_rule_can_be_inverted(case: tuple[str, str]):
    family, name = case
    table = key_table(family)
    ours = table.to_ours([name])
    back = table.to_reference(ours.policy, ours.image_tokenizer)
    assert {*back.policy, *back.image_tokenizer} == {name}


@pytest.mark.parametrize("family", KEY_TABLES)
def test_no_two_rules_lead_to_the_same_name_of_ours(family: str):
    targets: list[tuple[str, str]] = []
    for row in key_table(family).renames:
        choices = [["0"] if f == "#" else f.split("|") for f in re.findall(r"\{([^}]*)\}", row.reference)]
        targets += [(row.store, row.ours.format(*fields)) for fields in itertools.product(*choices)]
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize(
    "name",
    [
        "model.action_in_proj.scale",
        "model.action_in_proj.weight.extra",
        "action_in_proj.weight",
        "model.qwen3_vl_with_expert.gen_expert.layers.01.input_layernorm.weight",
        "model.qwen3_vl_with_expert.gen_expert.layers.x.input_layernorm.weight",
        "model.qwen3_vl_with_expert.gen_expert.embed_tokens.weight",
    ],
)
def test_the_table_is_closed(name: str):
    with pytest.raises(InternVLAError, match=re.escape(name)):
        key_table("qwen3_vl").to_ours([name])


def test_a_tied_embedding_is_found_under_either_name():
    table = key_table("qwen3_vl")
    (alias, stored), *_ = table.aliases.items()
    assert table.to_ours([stored]).policy == {"vision_language.embed_tokens.weight": stored}
    assert table.to_ours([alias]).policy == {"vision_language.embed_tokens.weight": alias}
    both = table.to_ours([alias, stored])
    assert both.policy == {"vision_language.embed_tokens.weight": stored}
    assert both.duplicates == {alias: stored}


def test_unknown_missing_superfluous_and_misshaped_tensors_are_all_listed_at_once():
    reference = stored_shapes("3b")
    layers = "model.qwen3_vl_with_expert.gen_expert.layers"
    reference["model.mystery.weight"] = (1,)
    reference[f"{layers}.28.input_layernorm.weight"] = (1024,)
    for layer in (3, 4, 5, 9):
        del reference[f"{layers}.{layer}.mlp.up_proj.weight"]
    reference["model.state_proj.weight"] = (1024, 16)
    del reference["model.cosmos._enc_model.quant_conv.bias"]
    with pytest.raises(InternVLAError) as caught:
        key_table("qwen3_vl").match(reference, *expected_shapes(VARIANTS["3b"]))
    message = str(caught.value)
    assert "no rule for (1):\n    model.mystery.weight" in message
    assert f"not part of this model (1):\n    {layers}.28.input_layernorm.weight" in message
    assert "missing (5):" in message
    assert f"{layers}.{{3-5,9}}.mlp.up_proj.weight" in message
    assert "model.cosmos._enc_model.quant_conv.bias" in message
    assert "wrong shape (1):\n    model.state_proj.weight is 1024x16, expected 1024x32" in message


def test_constants_are_required_and_have_a_shape():
    reference = stored_shapes("2b")
    del reference["model.imagenet_mean"]
    reference["model.imagenet_std"] = (3,)
    with pytest.raises(InternVLAError) as caught:
        key_table("internvl3").match(reference, *expected_shapes(VARIANTS["2b"]))
    assert "missing (1):\n    model.imagenet_mean" in str(caught.value)
    assert "model.imagenet_std is 3, expected 1x3x1x1" in str(caught.value)


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_a_file_without_an_image_tokenizer_is_accepted(variant: str):
    halves = ("_enc_model", "_dec_model")
    reference = {n: s for n, s in stored_shapes(variant).items() if not any(half in n for half in halves)}
    ours = key_table(FAMILIES[variant]).match(reference, *expected_shapes(VARIANTS[variant]))
    assert not ours.image_tokenizer
    assert len(ours) == len(reference)


def test_the_wrong_family_is_named():
    with pytest.raises(InternVLAError, match="belong to the internvl3 family"):
        key_table("qwen3_vl").to_ours(key_list("2b", "full")["tensors"])


def test_our_own_names_are_recognised():
    ours = ["model." + name for name in expected_shapes(VARIANTS["3b"])[0]]
    with pytest.raises(InternVLAError, match="from_pretrained"):
        key_table("qwen3_vl").to_ours(ours)


def test_names_that_the_reference_does_not_know_cannot_be_exported():
    with pytest.raises(InternVLAError) as caught:
        key_table("internvl3").to_reference(["mixture.layers.0.mystery"], ["encoder.mystery"])
    assert "mixture.layers.0.mystery" in str(caught.value)
    assert "encoder.mystery" in str(caught.value)


def test_tiny_has_no_reference():
    with pytest.raises(InternVLAError, match=r"'tiny'.*qwen3_vl, internvl3"):
        key_table("tiny")


@given(st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.sampled_from(["w", "x.0.w", "x.1.w"]))))
def test_collapsed_listings_leave_nothing_out(parts: set[tuple[str, int, str]]):
    names = {f"m.{head}.{index}.{tail}" for head, index, tail in parts}
    expanded: set[str] = set()
    for line in collapse_indices(names):
        match = re.search(r"\{(.*)\}", line)
        if match is None:
            expanded.add(line)
            continue
        for run in match[1].split(","):
            first, _, last = run.partition("-")
            for index in range(int(first), int(last or first) + 1):
                expanded.add(line.replace(match[0], str(index)))
    assert expanded == names
