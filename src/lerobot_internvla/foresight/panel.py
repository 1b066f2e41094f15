"""Pictures of foresight: past | now | predicted | true | error, one row per camera, as PNG and as a video.

Tiles show the scene without letterbox bars, magnified by a whole number of pixels (nearest neighbour): what is seen is
what was predicted, not what an interpolation made of it. Sizes, colours and the error scale are constants, so that any
two panels can be compared.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from lerobot.utils.io_utils import write_video
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.foresight.psnr import crop
from lerobot_internvla.foresight.samples import ForesightSample

TILE_PIXELS = 160
"""Tiles are magnified until they are at least this wide."""
ERROR_SCALE = 0.3
"""Absolute error, as a fraction of full brightness, at which the error map saturates."""

INK, GREY, LINE, FAINT, PAPER = "#1b1f24", "#66707b", "#c9d1d9", "#eceff2", "#ffffff"
BETTER, WORSE = "#1a7f37", "#c4320a"

_MARGIN, _GAP, _LABEL_WIDTH, _BAR_WIDTH, _BAR_TEXT_WIDTH = 20, 10, 186, 12, 46
_TITLE_HEIGHT, _HEADER_HEIGHT = 34, 38
_LINE = 20


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # DejaVu comes with matplotlib, so panels look the same on every machine.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


@cache
def _colours() -> np.ndarray:
    """[256, 3] uint8 from black (no error) to pale yellow."""
    colours = (matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    colours[0] = 0
    return colours


def error_map(
    predicted: Float[Tensor, "3 height width"], true: Float[Tensor, "3 height width"]
) -> Float[Tensor, "height width"]:
    """Absolute error per pixel, the mean over the three colours; 0 to 1."""
    return (predicted - true).abs().mean(dim=0)


def _heat(errors: Float[Tensor, "height width"]) -> np.ndarray:
    """[height, width, 3] uint8."""
    return _colours()[(errors / ERROR_SCALE * 255).round().clamp(0, 255).to(torch.uint8).numpy()]


def _rgb(image: Float[Tensor, "3 height width"]) -> np.ndarray:
    return (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _decibels(value: float) -> str:
    if np.isnan(value):
        return "-"
    return "> 100 dB" if value > 100 else f"{value:.1f} dB"


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def draw_panel(sample: ForesightSample) -> Image.Image:
    """One moment as a picture, RGB.

    Columns: past, now, predicted, true, error; rows: cameras. Left of each row, the PSNR of the prediction (green where
    it beats copying the current frame, red where it does not), of that copy, and of the true frame after the image
    tokenizer. Where the episode ends before the future frame, or a camera is missing, the tile says so.
    """
    sizes = [(box[2] - box[0], box[3] - box[1]) for box in sample.scene]
    column = max(width for _, width in sizes)
    factor = max(1, -(-TILE_PIXELS // column))
    column *= factor
    # A row has room for its four lines of text, however flat the camera's picture is.
    rows = [max(height * factor, 5 * _LINE) for height, _ in sizes]
    left = _MARGIN + _LABEL_WIDTH
    right = left + 5 * column + 4 * _GAP
    width = right + _GAP + _BAR_WIDTH + _BAR_TEXT_WIDTH + _MARGIN
    height = _MARGIN + _TITLE_HEIGHT + _HEADER_HEIGHT + sum(rows) + (len(rows) - 1) * _GAP + _MARGIN
    # Video encoders want even sides.
    panel = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    draw = ImageDraw.Draw(panel)

    _draw_title(draw, sample, right + _GAP + _BAR_WIDTH + _BAR_TEXT_WIDTH)
    tops = [left + i * (column + _GAP) for i in range(5)]
    _draw_headers(draw, sample, tops)
    top = _MARGIN + _TITLE_HEIGHT + _HEADER_HEIGHT
    for view, (row_height, (scene_height, scene_width)) in enumerate(zip(rows, sizes, strict=True)):
        _draw_label(draw, sample, view, top)
        size = (scene_width * factor, scene_height * factor)
        for x, tile in zip(tops, _tiles(sample, view), strict=True):
            place = (x + (column - size[0]) // 2, top + (row_height - size[1]) // 2)
            # A bright scene on white paper needs an edge; it lies outside the picture.
            draw.rectangle((place[0] - 1, place[1] - 1, place[0] + size[0], place[1] + size[1]), outline=LINE)
            if isinstance(tile, str):
                draw.rectangle((*place, place[0] + size[0] - 1, place[1] + size[1] - 1), fill=FAINT)
                centre = (place[0] + size[0] / 2, place[1] + size[1] / 2)
                draw.multiline_text(centre, tile, GREY, _font(13), anchor="mm", align="center", spacing=5)
            else:
                panel.paste(Image.fromarray(tile).resize(size, Image.Resampling.NEAREST), place)
        _draw_scale(panel, right + _GAP, top + (row_height - size[1]) // 2, size[1])
        top += row_height + _GAP
    return panel


def _tiles(sample: ForesightSample, view: int) -> list[np.ndarray | str]:
    """The five pictures of one camera, uint8, or why there is none."""
    if not sample.camera_is_present[view]:
        return ["no camera"] * 5
    box = sample.scene[view]
    past, now, predicted, true = (
        crop(pictures[view], box) for pictures in (sample.past, sample.now, sample.predicted, sample.true)
    )
    tiles: list[np.ndarray | str] = [_rgb(past), _rgb(now), _rgb(predicted)]
    if sample.future_is_valid[view]:
        return [*tiles, _rgb(true), _heat(error_map(predicted, true))]
    return [*tiles, "the episode\nends before", "nothing to\ncompare with"]


def _draw_title(draw: ImageDraw.ImageDraw, sample: ForesightSample, right: int) -> None:
    moment = sample.moment
    where = f"episode {moment.episode}   frame {moment.frame}   {moment.time_s:.2f} s"
    draw.text((right, _MARGIN), where, GREY, _font(15), anchor="ra")
    room = right - _MARGIN - _font(15).getlength(where) - 40
    draw.text((_MARGIN, _MARGIN), _shortened(moment.task, _font(17, bold=True), room), INK, _font(17, bold=True))


def _draw_headers(draw: ImageDraw.ImageDraw, sample: ForesightSample, lefts: list[int]) -> None:
    ahead = f"{sample.interval_s:.2f} s"
    past = f"−{ahead}" if bool(sample.past_is_valid.all()) else "first frame"
    titles = (
        ("past", past),
        ("now", ""),
        ("predicted", f"+{ahead}"),
        ("true", f"+{ahead}"),
        ("error", "|predicted − true|"),
    )
    baseline = _MARGIN + _TITLE_HEIGHT + _HEADER_HEIGHT - 12
    draw.text((_MARGIN + _LABEL_WIDTH - 20, baseline), "PSNR", GREY, _font(13), anchor="rs")
    for x, (name, detail) in zip(lefts, titles, strict=True):
        draw.text((x, baseline), name, INK, _font(15, bold=True), anchor="ls")
        draw.text((x + _font(15, bold=True).getlength(name) + 8, baseline), detail, GREY, _font(13), anchor="ls")


def _draw_label(draw: ImageDraw.ImageDraw, sample: ForesightSample, view: int, top: int) -> None:
    draw.text((_MARGIN, top), sample.camera_slots[view].replace("_", " "), INK, _font(15, bold=True))
    if torch.isnan(sample.errors.prediction[view]):
        return
    prediction, copy, bound = (
        sample.errors.psnr_db(method, view) for method in ("prediction", "copy_of_now", "reconstruction")
    )
    lines = (
        ("prediction", prediction, BETTER if prediction > copy else WORSE),
        ("copy of now", copy, INK),
        ("reconstruction", bound, INK),
    )
    for i, (name, value, colour) in enumerate(lines):
        y = top + 28 + i * _LINE
        draw.text((_MARGIN, y), name, GREY, _font(13))
        draw.text((_MARGIN + _LABEL_WIDTH - 20, y), _decibels(value), colour, _font(13, bold=i == 0), anchor="ra")


def _draw_scale(panel: Image.Image, left: int, top: int, height: int) -> None:
    """The colour bar of the error map, 0 at the bottom."""
    ramp = _colours()[np.linspace(255, 0, height).round().astype(np.uint8)]
    panel.paste(Image.fromarray(np.repeat(ramp[:, None], _BAR_WIDTH, axis=1)), (left, top))
    draw = ImageDraw.Draw(panel)
    for value, anchor in ((0.0, "ls"), (ERROR_SCALE / 2, "lm"), (ERROR_SCALE, "la")):
        y = top + height * (1 - value / ERROR_SCALE)
        text = f"{value:g}" if value < ERROR_SCALE else f"≥ {value:g}"
        draw.text((left + _BAR_WIDTH + 5, y), text, GREY, _font(11), anchor=anchor)


# -------------------------------------------------------------------------------------------------------------- video


class _Frames:
    """Panels one at a time, for LeRobot's ``write_video``, which looks at the first frame and then goes through all."""

    def __init__(self, samples: Iterable[ForesightSample]) -> None:
        self._panels: Iterator[np.ndarray] = (np.asarray(draw_panel(sample)) for sample in samples)
        self._first = next(self._panels, None)
        if self._first is None:
            raise InternVLAError("A video needs at least one moment; there is none.")

    def __getitem__(self, position: Literal[0]) -> np.ndarray:
        assert position == 0 and self._first is not None
        return self._first

    def __iter__(self) -> Iterator[np.ndarray]:
        return chain([self[0]], self._panels)


def draw_video(samples: Iterable[ForesightSample], path: str | Path, fps: float | int) -> None:
    """Moments as an mp4 (H.264, LeRobot's own writer), one panel per frame.

    Args:
        samples: in the order of the video, for example from ``iterate_imagined``; only one is held in memory.
        path: file to write; its folder is made.
        fps: frames per second. For every k-th frame of a dataset, its fps / k plays in real time.

    Raises:
        InternVLAError: there are no samples.
    """
    frames: Any = _Frames(samples)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, Fraction(fps).limit_denominator(1000))  # pyright: ignore[reportArgumentType]
