"""Haar: the reference's numbers, an exact inverse, and a scale that fits images in [-1, 1]."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from image_tokenizer.golden_cosmos import RELATIVE_TO_MAX, inputs, outputs, relative_error
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.haar import HaarImageTokenizer, haar, inverse_haar
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer, require_images, require_latents


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_two_levels_are_the_reference_patcher():
    assert relative_error(haar(inputs()["image_a"], 2), outputs()["haar.image_a"]) < RELATIVE_TO_MAX


def test_one_block_gives_the_four_sums_of_the_formula():
    a, b, c, d = 1.0, 0.5, -0.25, 0.125
    block = torch.tensor([[a, b], [c, d]]).reshape(1, 1, 2, 2)
    expected = [(a + b + c + d) / 4, (a + b - c - d) / 4, (a - b + c - d) / 4, (a - b - c + d) / 4]
    assert haar(block, 1).flatten().tolist() == expected


def test_bands_come_one_after_the_other_each_over_all_colours():
    images = random_images(2, 3, 4, 6)
    rows, columns = torch.tensor([1.0, -1.0] * 2)[:, None], torch.tensor([1.0, -1.0] * 3)
    bands = haar(images, 1).split(3, dim=1)
    for band, sign in zip(bands, (torch.ones(1), rows, columns, rows * columns), strict=True):
        torch.testing.assert_close(band, F.avg_pool2d(images * sign, 2))


@given(
    levels=st.integers(1, 4),
    count=st.integers(0, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_the_inverse_is_bit_exact_for_eight_bit_pixels(levels: int, count: int, rows: int, columns: int, seed: int):
    tokenizer = HaarImageTokenizer(levels)
    size = (count, 3, rows * tokenizer.compression, columns * tokenizer.compression)
    images = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(seed)) / 128 - 1
    latents = tokenizer.encode(images)
    assert latents.shape == (count, tokenizer.latent_channels, rows, columns)
    assert torch.equal(tokenizer.decode(latents), images)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 0.02)]
)
def test_the_inverse_is_exact_up_to_rounding_and_keeps_the_dtype(dtype: torch.dtype, tolerance: float):
    images = random_images(2, 3, 32, 16).to(dtype)
    decoded = HaarImageTokenizer(2).decode(HaarImageTokenizer(2).encode(images))
    assert decoded.dtype == dtype
    assert (decoded - images).abs().max() <= tolerance


def test_decoding_then_encoding_loses_nothing_either():
    latents = random_images(2, 48, 3, 5)
    torch.testing.assert_close(haar(inverse_haar(latents, 2), 2), latents)


def test_latents_of_images_within_one_stay_within_one():
    extremes = torch.where(random_images(4, 3, 16, 16) > 0, 1.0, -1.0)
    tokenizer = HaarImageTokenizer(2)
    assert tokenizer.encode(extremes).abs().max() <= 1
    assert tokenizer.encode(torch.ones(1, 3, 8, 8))[:, :3].eq(1).all()  # the mean of white is white


def test_it_is_an_image_tokenizer_without_parameters():
    tokenizer = HaarImageTokenizer(2)
    assert isinstance(tokenizer, ImageTokenizer)
    assert (tokenizer.latent_channels, tokenizer.compression) == (48, 4)
    assert not list(tokenizer.parameters())
    assert not tokenizer.state_dict()


def test_a_saved_folder_is_read_back(tmp_path: Path):
    HaarImageTokenizer(3).save_pretrained(tmp_path / "image_tokenizer")
    assert HaarImageTokenizer.from_pretrained(tmp_path / "image_tokenizer").levels == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"levels": 2}', '{"_class_name": "HaarImageTokenizer"}'])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InternVLAError, match=r"config\.json"):
        HaarImageTokenizer.from_pretrained(tmp_path)


def test_the_config_is_plain_json(tmp_path: Path):
    HaarImageTokenizer(2).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"_class_name": "HaarImageTokenizer", "levels": 2}


def test_bad_images_and_latents_are_named():
    tokenizer = HaarImageTokenizer(2)
    with pytest.raises(InternVLAError, match=r"height 30 .* multiple of 4.*width 6 .* multiple of 4"):
        tokenizer.encode(torch.zeros(1, 3, 30, 6))
    with pytest.raises(InternVLAError, match=r"expected \[n, 48, h, w\]"):
        tokenizer.decode(torch.zeros(1, 16, 8, 8))
    # Outside of tests nothing checks the annotations, so the messages are ours.
    with pytest.raises(InternVLAError, match=r"uint8 is not floating point: convert to .*flatten view and time"):
        require_images(torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8), 4)
    with pytest.raises(InternVLAError, match=r"int64 is not floating point.*expected \[n, 48, h, w\]"):
        require_latents(torch.zeros(48, 8, 8, dtype=torch.int64), 48)
    with pytest.raises(InternVLAError, match="at least one level"):
        HaarImageTokenizer(0)
