"""Squared error and PSNR by hand; letterbox bars stay outside."""

import math

import pytest
import torch
import torch.nn.functional as F

from lerobot_internvla.foresight import psnr_db, scene_box, squared_error
from lerobot_internvla.images import letterbox


@pytest.mark.parametrize(("error", "decibels"), [(1.0, 0.0), (0.01, 20.0), (0.0001, 40.0), (0.25, 6.0206)])
def test_psnr_of_a_known_error(error, decibels):
    assert psnr_db(error) == pytest.approx(decibels, abs=1e-4)


def test_equal_images_have_infinite_psnr_and_unknown_ones_none():
    assert psnr_db(0.0) == math.inf
    assert math.isnan(psnr_db(math.nan))


def test_squared_error_by_hand():
    true = torch.zeros(2, 1, 3, 4, 4)
    image = true.clone()
    image[0] += 0.1  # every pixel off by 0.1: 0.01
    image[1, 0, 0, 1, 2] = 0.6  # one colour of one of 48 values off by 0.6: 0.36 / 48
    torch.testing.assert_close(squared_error(image, true, ((0, 0, 4, 4),)), torch.tensor([[0.01], [0.0075]]))


def test_bars_do_not_count():
    true = torch.rand(1, 2, 3, 8, 8)
    image = true.clone()
    image[:, 0, :, :2] = 1 - image[:, 0, :, :2]  # wrong in the bar of the first view only
    image[:, 1] += 0.2
    error = squared_error(image, true, ((2, 0, 6, 8), (0, 0, 8, 8)))
    assert error[0, 0] == 0
    assert error[0, 1] == pytest.approx(0.04, rel=1e-5)


def test_each_view_has_its_own_box():
    true = torch.zeros(2, 3, 4, 4)
    image = true.clone()
    image[:, :, 0] = 1.0
    error = squared_error(image, true, ((0, 0, 4, 4), (1, 0, 4, 4)))
    assert error.tolist() == [0.25, 0.0]


@pytest.mark.parametrize(
    ("frame", "view", "image"),
    [
        ((48, 64), (64, 64), (64, 64)),
        ((480, 640), (224, 224), (256, 256)),  # the released 3B: 224 pixels are resized to 256
        ((720, 1280), (224, 224), (256, 256)),
        ((640, 480), (448, 448), (256, 256)),  # upright; the 2B shrinks
        ((101, 333), (224, 224), (256, 256)),
        ((64, 64), (64, 64), (64, 64)),
    ],
)
def test_the_box_holds_every_pixel_that_shows_nothing_but_the_scene(frame, view, image):
    white = letterbox(torch.ones(1, 3, *frame), view)
    shown = F.interpolate(white, size=image, mode="bilinear", align_corners=False)[0, 0]
    top, left, bottom, right = scene_box(*frame, view, image)
    inside = torch.zeros_like(shown, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert torch.equal(inside, shown > 1 - 1e-6)


def test_a_scene_thinner_than_a_pixel_keeps_one_row():
    top, left, bottom, right = scene_box(1, 4000, (448, 448), (64, 64))
    assert (bottom - top, right - left) == (1, 64)
    assert 30 <= top <= 33
