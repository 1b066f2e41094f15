"""Positions and the table of who attends to whom."""

import dataclasses
import doctest
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lerobot_internvla.model import token_blocks
from lerobot_internvla.model.architecture import VARIANTS, Architecture
from lerobot_internvla.model.token_blocks import (
    explain,
    following_positions,
    rotary_axes,
    rotary_frequencies,
    understanding_positions,
)

POSITION_CASES = ["grid14_text48", "grid16_text48", "grid4x6_text10", "grid6x4_text5_prefix_only"]


def with_grid(rows: int, columns: int) -> Architecture:
    """3b whose vision tower yields ``rows`` x ``columns`` patches (before the 2x2 merge)."""
    vision = dataclasses.replace(VARIANTS["3b"].vision, image_size=(rows * 16, columns * 16))
    return dataclasses.replace(VARIANTS["3b"], vision=vision)


@pytest.mark.parametrize("case", POSITION_CASES)
def test_closed_form_equals_what_the_reference_searches_for(goldens: Path, case: str):
    """Three axes, missing cameras, any prompt length, non-square grids: equal on every token that is attended to."""
    recorded = load_file(goldens / "schedule" / "position_ids_3b.safetensors")
    golden = {name.removeprefix(f"{case}."): value for name, value in recorded.items() if name.startswith(f"{case}.")}
    _, rows, columns = golden["image_grid_thw"][0, 0].tolist()
    architecture = with_grid(rows, columns)
    views = golden["image_grid_thw"].shape[1]
    attended = golden["attention_mask"].bool()
    images = views * architecture.view_tokens
    camera_is_present = attended[:, :images].unflatten(1, (views, -1)).all(dim=2)
    prompt_is_valid = attended[:, images:]

    positions, end = understanding_positions(architecture, camera_is_present, prompt_is_valid)
    full = golden["pad_masks_full"]
    places = [positions]
    if full.shape[1] > images + prompt_is_valid.shape[1]:
        # Foresight tokens of missing cameras are not numbered; state and actions follow, all real.
        rest = full[:, positions.shape[2] :]
        places.append(following_positions(end, rest)[None].expand(3, -1, -1))
    ours = torch.cat(places, dim=2)
    assert ours.shape == golden["position_ids"].shape
    different = (ours != golden["position_ids"]) & full
    assert not different.any(), f"{case}: {int(different.sum())} valid tokens stand elsewhere"
    assert (~camera_is_present).any(), "the case must contain a missing camera to prove anything about it"


def test_every_recorded_position_case_is_used(goldens: Path):
    described = json.loads((goldens / "schedule" / "config.json").read_text())["position_ids_3b"]["cases"]
    assert [case["name"] for case in described] == POSITION_CASES


def test_one_axis_positions_count_valid_tokens():
    """2b and tiny: missing cameras and padding take no position."""
    architecture = VARIANTS["tiny"]
    n = architecture.view_tokens
    present = torch.tensor([[True, False, True]])
    prompt = torch.tensor([[True, True, False]])
    positions, end = understanding_positions(architecture, present, prompt)
    assert positions.shape == (1, 1, 3 * n + 3)
    assert positions[0, 0, :n].tolist() == list(range(n))
    assert positions[0, 0, 2 * n : 3 * n].tolist() == list(range(n, 2 * n))
    assert positions[0, 0, -3:-1].tolist() == [2 * n, 2 * n + 1]
    assert end.tolist() == [2 * n + 2]


def test_following_blocks_go_on_where_the_last_ended():
    valid = torch.tensor([[True, True, True], [True, False, True]])
    start = torch.tensor([10, 20])
    assert following_positions(start, valid).tolist() == [[10, 11, 12], [20, 20, 21]]
    assert following_positions(start, valid, count_padding=True).tolist() == [[10, 11, 12], [20, 21, 22]]


def test_rotary_pairs_interleave_time_height_and_width():
    axes = rotary_axes(VARIANTS["3b"]).tolist()
    assert len(axes) == 64
    assert axes[:6] == [0, 1, 2, 0, 1, 2]
    assert (axes.count(0), axes.count(1), axes.count(2)) == (24, 20, 20)
    assert axes[60:] == [0, 0, 0, 0], "beyond their 20 pairs height and width leave the rest to time"
    assert set(rotary_axes(VARIANTS["2b"]).tolist()) == {0}


def test_frequencies_fall_from_one_to_the_inverse_of_theta():
    for architecture in VARIANTS.values():
        frequencies = rotary_frequencies(architecture)
        assert frequencies[0] == 1.0
        assert frequencies.shape == (architecture.head_width // 2,)
        last = architecture.rope_theta ** -((architecture.head_width - 2) / architecture.head_width)
        assert frequencies[-1].item() == pytest.approx(last, rel=1e-5)


def test_explain_draws_the_blocks_of_the_paper():
    table = {line.split()[0]: line.split()[1:] for line in explain().splitlines()[1:]}
    assert table == {
        "understanding": ["x", ".", ".", "."],
        "foresight": ["x", "x", ".", "."],
        "state": ["x", "x", "x", "."],
        "actions": ["x", "x", "x", "x"],
    }


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(token_blocks)
    assert result.attempted > 0 and result.failed == 0
