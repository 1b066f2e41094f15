"""Letterboxing: camera frames of any size -> square views, and which latent cells show the scene.

A frame keeps its aspect ratio, is scaled until it touches the view, and sits in the middle of black bars. Semantics of
the released checkpoint, which was trained on exactly these pixels: bilinear without antialias and with half-pixel
centres, sizes rounded half to even, odd rests of the bars at the bottom and right.

``content_box`` and ``content_mask`` say where the bars are, so that the foresight loss does not spend itself on
predicting black. All geometry is Python integers: no tensor is read back, and ``torch.compile`` sees constants.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, bottom and right exclusive."""


def content_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """Where ``letterbox`` puts a frame of ``height`` x ``width`` pixels inside a view of ``size`` (height, width)."""
    view_height, view_width = size
    scale = min(view_height / height, view_width / width)
    # Python's round is half to even, as in the released preprocessing. At least one pixel, however thin the frame.
    scaled_height, scaled_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (view_height - scaled_height) // 2, (view_width - scaled_width) // 2
    return top, left, top + scaled_height, left + scaled_width


def letterbox(
    images: Shaped[Tensor, "*batch channel height width"], size: tuple[int, int]
) -> Float[Tensor, "*batch channel view_height view_width"]:
    """Scale RGB frames into a black view of ``size`` (height, width) without changing their aspect ratio.

    Args:
        images: channels first, with any number of leading axes; uint8 in 0..255, or floating point in [0, 1].
        size: (height, width) of the view in pixels, ``Architecture.view_size``.

    Returns:
        Values in [0, 1]; float32 for uint8 frames, the frames' own dtype otherwise. Floating point frames that already
        have the size are returned as they are.

    Raises:
        InternVLAError: not three channels first, or neither uint8 nor floating point.
    """
    if images.ndim < 3 or images.shape[-3] != 3:
        raise InternVLAError(
            f"Images have shape {tuple(images.shape)}; expected [..., 3, height, width], RGB with channels first. "
            "For [..., height, width, 3] frames call images.movedim(-1, -3)."
        )
    if images.dtype == torch.uint8:
        images = images.to(torch.float32) / 255
    elif not images.is_floating_point():
        raise InternVLAError(f"Images have dtype {images.dtype}; expected uint8 in 0..255 or floating point in [0, 1].")

    height, width = images.shape[-2:]
    if (height, width) == tuple(size):
        return images
    top, left, bottom, right = content_box(height, width, size)
    frames = images.reshape(-1, 3, height, width)
    frames = F.interpolate(frames, size=(bottom - top, right - left), mode="bilinear", align_corners=False)
    frames = F.pad(frames, (left, size[1] - right, top, size[0] - bottom)).clamp(0, 1)
    return frames.reshape(*images.shape[:-2], *size)


def content_mask(
    box: Box, view_size: tuple[int, int], image_size: tuple[int, int], cells: tuple[int, int]
) -> Bool[Tensor, "cell_rows cell_columns"]:
    """Which latent cells show any of the scene: False only for cells that lie wholly inside letterbox bars.

    The image tokenizer does not see the view itself but the view resized (bilinear, no antialias) to its own image
    size. A resized pixel mixes up to two view pixels along each axis, so content bleeds a little into the bars; a cell
    that got any of it counts as content.

    Args:
        box: from ``content_box``, in pixels of the view.
        view_size: (height, width) of the letterboxed view, ``Architecture.view_size``.
        image_size: (height, width) that the image tokenizer encodes, ``ImageTokenizerSpec.image_size``.
        cells: latent (rows, columns), ``ImageTokenizerSpec.latent_size``.

    Returns:
        On the CPU; it depends on the camera's resolution only, so make it once per camera.

    Raises:
        InternVLAError: ``image_size`` is not a multiple of ``cells``.
    """
    if image_size[0] % cells[0] or image_size[1] % cells[1]:
        raise InternVLAError(f"Image size {image_size} is not a multiple of {cells} latent cells along each axis.")
    top, left, bottom, right = box
    rows = _cells_with_content(top, bottom, view_size[0], image_size[0], cells[0])
    columns = _cells_with_content(left, right, view_size[1], image_size[1], cells[1])
    return torch.tensor(rows)[:, None] & torch.tensor(columns)[None, :]


def _cells_with_content(start: int, stop: int, view: int, image: int, cells: int) -> list[bool]:
    """One axis of ``content_mask``: content is [start, stop) of ``view`` pixels, resized to ``image`` pixels."""
    shows_content: list[bool] = []
    for pixel in range(image):
        # Half-pixel centres: this pixel samples the view at (pixel + 1/2) * view / image - 1/2, clamped at 0. The
        # position is kept as a fraction of integers, so that a tap of weight exactly zero is not counted.
        position, denominator = max(0, (2 * pixel + 1) * view - image), 2 * image
        first = position // denominator
        last = min(first + (position % denominator > 0), view - 1)
        shows_content.append(first < stop and last >= start)
    pixels_per_cell = image // cells
    return [any(shows_content[cell * pixels_per_cell : (cell + 1) * pixels_per_cell]) for cell in range(cells)]
