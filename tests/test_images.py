"""Letterboxing equals the reference; the content mask says exactly which latent cells a frame reaches."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.images import content_box, content_mask, letterbox
from lerobot_internvla.model.architecture import VARIANTS


def test_letterbox_equals_the_reference(goldens: Path) -> None:
    tensors = load_file(goldens / "preprocess" / "resize_with_pad.safetensors")
    cases = json.loads((goldens / "preprocess" / "config.json").read_text())["resize_with_pad"]["cases"]
    checked = 0
    for index, case in enumerate(cases):
        if f"{index}.input_u8" not in tensors:
            continue  # the copy in the repository is a subset
        frames, target = tensors[f"{index}.input_u8"], tuple(case["target"])
        ours = letterbox(frames, target)
        stride = 1 if f"{index}.output" in tensors else 3
        expected = tensors[f"{index}.output" if stride == 1 else f"{index}.output_strided3"]

        torch.testing.assert_close(ours[..., ::stride, ::stride], expected, rtol=0, atol=1e-6)
        assert ours.double().sum().item() == pytest.approx(case["sum_f64"], rel=1e-6)
        assert torch.equal(letterbox(frames.float() / 255, target), ours), "uint8 and float frames differ"
        top, left, bottom, right = content_box(frames.shape[-2], frames.shape[-1], target)
        assert [bottom - top, right - left] == case["resized"]
        checked += 1
    assert checked >= 5


def test_the_images_of_the_whole_preprocessing_chain_equal_the_reference(goldens: Path) -> None:
    tensors = load_file(goldens / "preprocess" / "pipeline_3b.safetensors")
    ours = letterbox(tensors["in.images.rgb.hand_u8"], (64, 64))
    torch.testing.assert_close(ours, tensors["out.observation.images.image1"], rtol=0, atol=1e-6)


def test_leading_axes_are_independent() -> None:
    frames = torch.rand(2, 3, 2, 3, 30, 41)
    together = letterbox(frames, (64, 48))
    assert together.shape == (2, 3, 2, 3, 64, 48)
    torch.testing.assert_close(together[1, 2, 0], letterbox(frames[1, 2, 0], (64, 48)), rtol=0, atol=1e-6)


def test_frames_of_the_right_size_are_returned_as_they_are() -> None:
    frames = torch.rand(2, 3, 64, 64)
    assert letterbox(frames, (64, 64)) is frames
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert torch.equal(letterbox(pixels, (64, 64)), pixels.float() / 255)


@given(
    height=st.integers(1, 900), width=st.integers(1, 900), size=st.tuples(st.integers(16, 448), st.integers(16, 448))
)
def test_the_content_box_is_centred_and_touches_two_sides(height: int, width: int, size: tuple[int, int]) -> None:
    top, left, bottom, right = content_box(height, width, size)
    assert 0 <= top < bottom <= size[0]
    assert 0 <= left < right <= size[1]
    assert (top, bottom) == (0, size[0]) or (left, right) == (0, size[1])
    # An odd rest goes to the bottom and to the right.
    assert (size[0] - bottom) - top in (0, 1)
    assert (size[1] - right) - left in (0, 1)


def test_sizes_are_rounded_half_to_even() -> None:
    # 5 x 448 -> 2.5 rows; rounding half up would make 3.
    assert content_box(5, 448, (224, 224)) == (111, 0, 113, 224)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 200),
    width=st.integers(8, 200),
    view=st.tuples(st.integers(20, 120), st.integers(20, 120)),
    cells=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    pixels_per_cell=st.sampled_from([4, 8]),
)
def test_a_cell_is_masked_exactly_when_no_content_reaches_it(
    height: int, width: int, view: tuple[int, int], cells: tuple[int, int], pixels_per_cell: int
) -> None:
    image = (cells[0] * pixels_per_cell, cells[1] * pixels_per_cell)
    white_in_view = letterbox(torch.ones(1, 3, height, width), view)
    white_in_image = F.interpolate(white_in_view, size=image, mode="bilinear", align_corners=False)[0, 0]
    reached = F.max_pool2d(white_in_image[None, None], pixels_per_cell)[0, 0] > 1e-4

    mask = content_mask(content_box(height, width, view), view, image, cells)

    assert torch.equal(mask, reached)


def test_the_mask_of_a_4_to_3_camera_at_the_released_sizes() -> None:
    # 480 x 640 -> 168 x 224 of 224 x 224: bars of 28 rows, which are 32 rows = 4 cells of the 256 x 256 image. Content
    # bleeds by half a pixel into the fourth of them.
    sizes = VARIANTS["3b"]
    tokenizer = sizes.image_tokenizer
    box = content_box(480, 640, sizes.view_size)
    assert box == (28, 0, 196, 224)
    mask = content_mask(box, sizes.view_size, tokenizer.image_size, tokenizer.latent_size)
    assert mask.shape == (32, 32)
    assert mask.all(dim=1).tolist() == [False] * 3 + [True] * 26 + [False] * 3


def test_without_resize_the_mask_is_the_box() -> None:
    mask = content_mask((16, 0, 48, 64), (64, 64), (64, 64), (16, 16))
    assert mask.all(dim=1).tolist() == [False] * 4 + [True] * 8 + [False] * 4


def test_a_square_camera_masks_nothing() -> None:
    sizes = VARIANTS["3b"]
    box = content_box(480, 480, sizes.view_size)
    assert content_mask(box, sizes.view_size, sizes.image_tokenizer.image_size, sizes.image_tokenizer.latent_size).all()


def test_letterbox_compiles_without_a_graph_break() -> None:
    frames = torch.rand(2, 3, 30, 41)
    compiled = torch.compile(_plain(letterbox), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(frames, (64, 64)), letterbox(frames, (64, 64)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(30, 40, 3), r"shape \(30, 40, 3\).*movedim"),
        (torch.zeros(1, 30, 40), "RGB"),
        (torch.zeros(3, 30, 40, dtype=torch.int64), "dtype torch.int64"),
    ],
)
def test_frames_that_are_no_images_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(InternVLAError, match=message):
        letterbox(images, (64, 64))


def test_cells_that_do_not_divide_the_image_are_refused() -> None:
    with pytest.raises(InternVLAError, match="not a multiple"):
        content_mask((0, 0, 64, 64), (64, 64), (64, 64), (15, 16))


def test_gradients_and_precision_survive() -> None:
    frames = torch.rand(3, 30, 40, dtype=torch.float64, requires_grad=True)
    view = letterbox(frames, (64, 64))
    assert view.dtype == torch.float64
    view.sum().backward()
    assert frames.grad is not None
    assert math.isfinite(frames.grad.sum().item())


def _plain(function):  # type: ignore[no-untyped-def]
    """The function without the shape checks that pytest switches on: dynamo cannot trace them."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
