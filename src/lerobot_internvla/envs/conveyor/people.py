"""A frame for people, whichever simulator drew its pictures: one large view, small ones beside it, a caption below."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.backend import World

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
View = Callable[[int], Picture]
"""Draws a square RGB picture with this many pixels per edge."""

INK: Colour = (40, 42, 46)
RIGHT: Colour = (46, 160, 67)
WRONG: Colour = (207, 34, 46)


def compose(world: World, fps: int, height: int, large: View, small: Sequence[tuple[View, Colour]]) -> Picture:
    """The frame, with the instruction, the belt speed and the time; a coloured border once the episode has ended.

    Args:
        world: whose instruction, speed, time and ending are shown.
        fps: ticks per second of ``world``.
        height: of the frame in pixels.
        large: the view on the left.
        small: the views beside it, top to bottom, each with the colour of its edge.

    Returns:
        RGB; both edges are even, so that every video codec takes it.
    """
    caption = 2 * round(height / 22)
    big = height - caption
    little = big // (2 * len(small)) * 2
    frame = np.full((height, big + little, 3), 250, dtype=np.uint8)
    frame[:big, :big] = large(big)
    for row, (view, colour) in enumerate(small):
        frame[row * little : (row + 1) * little, big:] = view(little)
        corners = (big, row * little), (big + little - 1, (row + 1) * little - 1)
        cv2.rectangle(frame, *corners, colour, max(height // 160, 1))
    text = f"{world.instruction.text}    belt {world.belt_speed:.2f} lengths/s    {world.steps / fps:.1f} s"
    corner = (caption // 3, height - caption // 3)
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, height / 800, 1)
    scale = height / 800 * min(1.0, (frame.shape[1] - 2 * corner[0]) / width)
    cv2.putText(frame, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
    if world.ending is not None:
        mark = RIGHT if world.ending == "success" else WRONG
        cv2.rectangle(frame, (0, 0), (big + little - 1, big - 1), mark, max(height // 60, 2))
    return frame
