"""Pictures of the 2-D conveyor: three cameras for a policy, one composed frame for people. Needs OpenCV.

All shapes are given in world units (see ``world``) and drawn with sub-pixel vertices onto a canvas that is larger than
the picture, which is then averaged down. So a parcel that moves by a third of a pixel changes the picture, at any size.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.people import INK, Colour, Picture, compose
from lerobot_internvla.envs.conveyor.planar.world import (
    BELT_HALF_WIDTH,
    BIN_CENTRES,
    BIN_HALF_SIZE,
    FPS,
    PARCEL_SIZE,
    Gripper,
    Parcel,
    PlanarWorld,
)
from lerobot_internvla.envs.conveyor.task import CAMERAS, SIDES, Side

Point = tuple[float, float]

HEAD_SPAN = 1.0
"""Edge of the square that the head camera sees, in belt lengths."""
WRIST_SPAN = 0.45
"""Edge of the square around its gripper that a wrist camera sees."""

FLOOR: Colour = (226, 228, 224)
FLOOR_LINE: Colour = (210, 213, 208)
BELT: Colour = (62, 66, 72)
BELT_STRIPE: Colour = (84, 89, 96)
BELT_RAIL: Colour = (150, 154, 160)
BIN_INSIDE: Colour = (120, 108, 96)
BIN_RIM: Colour = (178, 160, 138)
SHADOW: Colour = (44, 47, 51)
ARM_COLOURS: dict[Side, Colour] = {"left": (242, 143, 59), "right": (138, 92, 196)}
"""Orange and violet: no parcel has them, so that an arm is never mistaken for one."""
PARCEL_COLOURS: dict[str, Colour] = {"red": (222, 50, 56), "blue": (36, 108, 232), "yellow": (250, 206, 38)}
TAPE: Colour = (250, 246, 236)

STRIPE_PERIOD = 0.25
"""Longer than the way of a parcel in half a second at training speeds, so that the texture's motion is unambiguous."""
ARM_BASES: dict[Side, tuple[float, float]] = {"left": (0.46, 0.56), "right": (0.46, -0.56)}
LINK_LENGTH = 0.36
MAX_BEND = 0.14
OPEN_GAP, HOLDING_GAP, CLOSED_GAP = 0.062, 0.050, 0.016
"""Half the distance between the fingers: open (more than half a parcel), around a parcel, closed on nothing."""

_SHIFT = 6  # OpenCV's fixed-point bits below one pixel


class Canvas:
    """A square picture of a square piece of the world, y pointing up.

    Points are pairs of plain numbers: a frame has about fifty shapes of four corners, for which numpy's overhead would
    cost several times as much as the drawing.

    Args:
        size: pixels per edge of the finished picture.
        centre: world point in the middle.
        span: world length of an edge.
    """

    def __init__(self, size: int, centre: Point, span: float) -> None:
        self.size = size
        # Small pictures are drawn larger and averaged; large ones are fine with OpenCV's own anti-aliasing.
        self._scale = 2 if size < 192 else 1
        self._pixels = np.empty((size * self._scale, size * self._scale, 3), dtype=np.uint8)
        self._per_unit = size * self._scale / span
        self.left, self.right = centre[0] - span / 2, centre[0] + span / 2
        self.bottom, self.top = centre[1] - span / 2, centre[1] + span / 2

    def fill(self, colour: Colour) -> None:
        self._pixels[:] = colour

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if max(xs) < self.left or min(xs) > self.right or max(ys) < self.bottom or min(ys) > self.top:
            return
        corners = np.array([self._to_pixels(point) for point in points], dtype=np.int32)
        cv2.fillConvexPoly(self._pixels, corners, colour, cv2.LINE_AA, _SHIFT)

    def box(self, centre: Point, half_width: float, half_height: float, colour: Colour) -> None:
        left, right = centre[0] - half_width, centre[0] + half_width
        bottom, top = centre[1] - half_height, centre[1] + half_height
        self.polygon(((left, bottom), (right, bottom), (right, top), (left, top)), colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        radius_px = max(round(radius * self._per_unit * (1 << _SHIFT)), 1)
        cv2.circle(self._pixels, self._to_pixels(centre), radius_px, colour, -1, cv2.LINE_AA, _SHIFT)

    def bar(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """A straight bar with round ends."""
        (x0, y0), (x1, y1) = start, end
        length = max(math.hypot(x1 - x0, y1 - y0), 1e-9)
        dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon(((x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)), colour)
        self.disc(start, width / 2, colour)
        self.disc(end, width / 2, colour)

    def picture(self) -> Picture:
        """RGB, (size, size, 3)."""
        if self._scale == 1:
            return self._pixels
        picture = cv2.resize(self._pixels, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.asarray(picture, dtype=np.uint8)

    def _to_pixels(self, point: Point) -> tuple[int, int]:
        # OpenCV's whole coordinates are the pixels' centres, hence the half pixel.
        x, y = (point[0] - self.left) * self._per_unit - 0.5, (self.top - point[1]) * self._per_unit - 0.5
        return round(x * (1 << _SHIFT)), round(y * (1 << _SHIFT))


def draw_cameras(world: PlanarWorld, size: int) -> dict[str, Picture]:
    """What the policy sees: one RGB picture (size, size, 3) per name in ``CAMERAS``.

    The head camera shows the whole scene; each wrist camera shows the square around its gripper, so that the gripper is
    always in the middle and the world moves.
    """
    return {name: _draw_view(world, size, *_viewpoint(world, name)) for name in CAMERAS}


def draw_for_people(world: PlanarWorld, height: int = 352) -> Picture:
    """A composed frame for videos: head view, the two wrist views beside it, the instruction below.

    Returns:
        RGB, ``height`` x about 1.36 ``height``; both even, so that every video codec takes it.
    """
    return compose(
        world,
        FPS,
        height,
        lambda size: _draw_view(world, size, *_viewpoint(world, "head")),
        [
            (lambda size, name=f"{side}_wrist": _draw_view(world, size, *_viewpoint(world, name)), ARM_COLOURS[side])
            for side in SIDES
        ],
    )


def _viewpoint(world: PlanarWorld, camera: str) -> tuple[Point, float]:
    if camera == "head":
        return (0.5, 0.0), HEAD_SPAN
    return _point(world.grippers["left" if camera == "left_wrist" else "right"].position), WRIST_SPAN


def _draw_view(world: PlanarWorld, size: int, centre: Point, span: float) -> Picture:
    canvas = Canvas(size, centre, span)
    _draw_floor_and_belt(canvas, world.belt_offset)
    for side in SIDES:
        x, y = _point(BIN_CENTRES[side])
        canvas.box((x, y), BIN_HALF_SIZE, BIN_HALF_SIZE, BIN_RIM)
        canvas.box((x, y), BIN_HALF_SIZE - 0.016, BIN_HALF_SIZE - 0.016, BIN_INSIDE)
        # A band in the arm's colour on the far rim: whose bin this is.
        canvas.box((x, y + (0.092 if side == "left" else -0.092)), BIN_HALF_SIZE, 0.008, ARM_COLOURS[side])
    for parcel in world.parcels:
        if parcel.place not in ("left gripper", "right gripper", "gone"):
            _draw_parcel(canvas, parcel)
    for side in SIDES:
        _draw_arm(canvas, world.grippers[side])
    return canvas.picture()


def _draw_floor_and_belt(canvas: Canvas, travelled: float) -> None:
    canvas.fill(FLOOR)
    for x in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.box((x, 0.0), 0.0025, 1.0, FLOOR_LINE)
    for y in (-0.25, 0.25):
        canvas.box((0.5, y), 1.0, 0.0025, FLOOR_LINE)
    canvas.box((0.5, 0.0), 1.0, BELT_HALF_WIDTH + 0.014, BELT_RAIL)
    canvas.box((0.5, 0.0), 1.0, BELT_HALF_WIDTH, BELT)
    # Chevrons that point in the direction of travel.
    phase = travelled % STRIPE_PERIOD
    for i in range(
        math.floor((canvas.left - phase) / STRIPE_PERIOD), math.ceil((canvas.right - phase) / STRIPE_PERIOD)
    ):
        x = phase + i * STRIPE_PERIOD
        for edge in (BELT_HALF_WIDTH, -BELT_HALF_WIDTH):
            canvas.polygon(((x, edge), (x + 0.035, edge), (x + 0.095, 0.0), (x + 0.06, 0.0)), BELT_STRIPE)


def _draw_parcel(canvas: Canvas, parcel: Parcel, lift: float = 0.0) -> None:
    x, y = _point(parcel.position)
    half = PARCEL_SIZE / 2 * (1.0 + lift)
    colour = PARCEL_COLOURS[parcel.colour]
    if parcel.place == "belt" or lift:
        canvas.box((x + 0.008 + 0.03 * lift, y - 0.010 - 0.03 * lift), half, half, SHADOW)
    canvas.box((x, y), half, half, _darker(colour))
    canvas.box((x, y), half - 0.006, half - 0.006, colour)
    canvas.box((x, y), half - 0.006, 0.005, TAPE)


def _draw_arm(canvas: Canvas, gripper: Gripper) -> None:
    """Two links from a base beside the belt, and a hand with two fingers whose gap shows the opening."""
    colour = ARM_COLOURS[gripper.side]
    towards_belt = -1.0 if gripper.side == "left" else 1.0
    x, y = _point(gripper.position)
    wrist = (x, y - 0.085 * towards_belt)
    base = ARM_BASES[gripper.side]
    elbow = _elbow(base, wrist, towards_belt)
    canvas.bar(base, elbow, 0.05, _darker(colour))
    canvas.bar(elbow, wrist, 0.036, colour)
    canvas.disc(elbow, 0.016, INK)
    if gripper.held is not None:
        _draw_parcel(canvas, gripper.held, lift=0.12)
    # The palm lies behind the parcel, the fingers beside it: the hand hides neither the parcel nor the gap.
    gap = CLOSED_GAP + (OPEN_GAP - CLOSED_GAP) * gripper.opening
    if gripper.held is not None:
        gap = max(gap, HOLDING_GAP)
    canvas.bar((x - gap, wrist[1]), (x + gap, wrist[1]), 0.024, INK)
    for sign in (-1.0, 1.0):
        tip = (x + sign * gap, y + 0.022 * towards_belt)
        canvas.bar((x + sign * gap, wrist[1]), tip, 0.018, INK)
        canvas.disc(tip, 0.011, colour)


def _elbow(base: Point, wrist: Point, towards_belt: float) -> Point:
    """Elbow of two equal links that bends upstream; the links stretch where the wrist is out of their reach."""
    dx, dy = wrist[0] - base[0], wrist[1] - base[1]
    distance = max(math.hypot(dx, dy), 1e-9)
    bend = min(math.sqrt(max(LINK_LENGTH**2 - (distance / 2) ** 2, 0.0)), MAX_BEND) * towards_belt / distance
    return base[0] + dx / 2 + dy * bend, base[1] + dy / 2 - dx * bend


def _darker(colour: Colour) -> Colour:
    return colour[0] * 2 // 3, colour[1] * 2 // 3, colour[2] * 2 // 3


def _point(position: NDArray[np.float64]) -> Point:
    return float(position[0]), float(position[1])
