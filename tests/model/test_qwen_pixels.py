"""The vision tower's input equals the reference, and the installed transformers image processor bit for bit.

Against the stored tensors a few float32 roundings are allowed, because another CPU may order a sum differently (they
are bit-identical too on the machine where this was written). Against the processor of the same machine none is.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

from lerobot_internvla.images import letterbox
from lerobot_internvla.model.architecture import VARIANTS
from lerobot_internvla.model.qwen_pixels import qwen_patches, qwen_pixels

RELEASED_PIXELS = {"shortest_edge": 65536, "longest_edge": 16777216}


def tower_size(height: int, width: int, patch_size: int, limits: dict[str, int]) -> tuple[int, int]:
    return smart_resize(height, width, 2 * patch_size, limits["shortest_edge"], limits["longest_edge"])


def test_pixel_values_equal_the_reference(goldens: Path) -> None:
    tensors = load_file(goldens / "preprocess" / "image_processor.safetensors")
    cases = json.loads((goldens / "preprocess" / "config.json").read_text())["image_processor"]["cases"]
    assert cases
    for case in cases:
        name, patch_size = case["name"], case["settings"]["patch_size"]
        height, width = case["input"][-2:]
        images = (tensors[f"{name}.input_u8"].float() / 255).reshape(-1, 3, height, width)
        size = tower_size(height, width, patch_size, case["settings"]["size"])
        assert list(size) == case["smart_resize"]

        patches = qwen_patches(qwen_pixels(images, size), patch_size)

        assert list(patches.shape) == case["pixel_values_shape"]
        if f"{name}.pixel_values" in tensors:
            torch.testing.assert_close(patches, tensors[f"{name}.pixel_values"], rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(patches[::7], tensors[f"{name}.pixel_values.rows_strided7"], rtol=0, atol=1e-6)
        grid = tensors[f"{name}.image_grid_thw"][0].tolist()
        assert grid == [1, size[0] // patch_size, size[1] // patch_size]


def test_pixel_values_of_the_whole_preprocessing_chain_equal_the_reference(goldens: Path) -> None:
    tensors = load_file(goldens / "preprocess" / "pipeline_3b.safetensors")
    now = torch.stack([tensors[f"in.images.rgb.{camera}_u8"][1] for camera in ("head", "hand")])
    patches = qwen_patches(qwen_pixels(letterbox(now, (64, 64)), (64, 64)), patch_size=16)
    # The third camera is missing: the reference repeats the second one there, under a mask.
    torch.testing.assert_close(patches, tensors["out.observation.pixel_values"][: len(patches)], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("height", "width", "patch_size", "limits"),
    [
        (224, 224, 16, RELEASED_PIXELS),
        (64, 96, 16, RELEASED_PIXELS),
        (300, 77, 16, RELEASED_PIXELS),
        (256, 256, 16, RELEASED_PIXELS),
        (240, 320, 16, {"shortest_edge": 4096, "longest_edge": 40000}),
        (84, 112, 14, {"shortest_edge": 1, "longest_edge": 1000000000}),
    ],
)
def test_pixel_values_equal_the_installed_image_processor_bit_for_bit(
    height: int, width: int, patch_size: int, limits: dict[str, int]
) -> None:
    half = [0.5, 0.5, 0.5]
    processor = Qwen2VLImageProcessor(
        size=limits, patch_size=patch_size, merge_size=2, temporal_patch_size=2, image_mean=half, image_std=half
    )
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = processor(list(images), do_rescale=False, return_tensors="pt")["pixel_values"]
    size = tower_size(height, width, patch_size, limits)
    assert torch.equal(qwen_patches(qwen_pixels(images, size), patch_size), expected)


def test_the_3b_tower_sees_what_the_released_settings_make_of_a_view() -> None:
    sizes = VARIANTS["3b"]
    height, width = sizes.view_size
    assert tower_size(height, width, sizes.vision.patch_size, RELEASED_PIXELS) == sizes.vision.image_size
    assert sizes.image_tokens == 64


def test_neighbouring_patches_are_merged_together() -> None:
    # Every pixel holds the number of its merged cell, so each group of four patches must be constant.
    cells = torch.arange(6.0).reshape(2, 3).repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)
    patches = qwen_patches(cells.expand(1, 3, 16, 24), patch_size=4)
    assert patches.shape == (24, 3 * 2 * 4 * 4)
    assert torch.equal(patches[:, 0], torch.arange(6.0).repeat_interleave(4))
    assert torch.equal(patches, patches[:, :1].expand_as(patches))


def test_bicubic_overshoot_is_kept() -> None:
    edge = torch.zeros(1, 3, 224, 224)
    edge[..., 112:] = 1
    pixels = qwen_pixels(edge, (256, 256))
    assert pixels.max() > 1
    assert pixels.min() < -1
