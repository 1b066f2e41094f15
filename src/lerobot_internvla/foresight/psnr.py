"""How far an imagined frame is from the true one: squared error over the scene, and PSNR in decibels.

    PSNR = 10 log10(1 / mean squared error), images in [0, 1]

Letterbox bars are the same black in every frame. Counting them would flatter every method alike, so errors are taken
inside ``scene_box`` only.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lerobot_internvla.images import Box, content_box


def scene_box(height: int, width: int, view_size: tuple[int, int], image_size: tuple[int, int]) -> Box:
    """Where a camera frame of ``height`` x ``width`` lies in the picture that the image tokenizer sees.

    The frame is letterboxed to ``view_size`` and the view is resized (bilinear) to ``image_size``. Pixels that mix
    scene and bar are left out.

    Returns:
        (top, left, bottom, right) in pixels of ``image_size``, bottom and right exclusive.
    """
    top, left, bottom, right = content_box(height, width, view_size)
    rows = _whole_pixels(top, bottom, view_size[0], image_size[0])
    columns = _whole_pixels(left, right, view_size[1], image_size[1])
    return rows[0], columns[0], rows[1], columns[1]


def _whole_pixels(start: int, stop: int, view: int, image: int) -> tuple[int, int]:
    """First and last-plus-one of ``image`` pixels that are mixed from [start, stop) of ``view`` pixels only."""
    whole: list[int] = []
    for pixel in range(image):
        # Half-pixel centres, as a fraction of integers: (pixel + 1/2) * view / image - 1/2, clamped at 0.
        position, denominator = max(0, (2 * pixel + 1) * view - image), 2 * image
        first = position // denominator
        last = min(first + (position % denominator > 0), view - 1)
        if first >= start and last < stop:
            whole.append(pixel)
    # A scene thinner than a pixel of the picture never fills one; then its nearest pixel has to do.
    return (whole[0], whole[-1] + 1) if whole else _nearest_pixel(start, stop, view, image)


def _nearest_pixel(start: int, stop: int, view: int, image: int) -> tuple[int, int]:
    pixel = min((start + stop) * image // (2 * view), image - 1)
    return pixel, pixel + 1


def crop(images: Float[Tensor, "*any height width"], box: Box) -> Float[Tensor, "*any rows columns"]:
    """The part of ``images`` inside ``box``."""
    top, left, bottom, right = box
    return images[..., top:bottom, left:right]


def squared_error(
    images: Float[Tensor, "*batch view 3 height width"],
    true: Float[Tensor, "*batch view 3 height width"],
    boxes: tuple[Box, ...],
) -> Float[Tensor, "*batch view"]:
    """Mean squared error per image over the pixels and colours inside its camera's box; one box per view."""
    errors = [
        (crop(images.select(-4, view), box) - crop(true.select(-4, view), box)).double().square().mean(dim=(-3, -2, -1))
        for view, box in enumerate(boxes)
    ]
    return torch.stack(errors, dim=-1).float()


def psnr_db(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; infinite for equal images, nan for nan."""
    if mean_squared_error == 0:
        return math.inf
    return -10 * math.log10(mean_squared_error)
