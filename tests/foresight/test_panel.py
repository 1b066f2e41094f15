"""Panels and videos show the right pictures in the right places."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import ImageColor

from foresight.flat_samples import NOW, PAST, PREDICTED, TRUE, a_sample, flat
from lerobot_internvla import InternVLAError
from lerobot_internvla.foresight import SquaredErrors, draw_panel, draw_video
from lerobot_internvla.foresight.panel import BETTER, ERROR_SCALE, WORSE

BAR = (255, 0, 255)


def tiles(panel, colour):
    """[(top, left, height, width)] of the rectangles of exactly this colour, from top to bottom."""
    mask = (panel == np.array(colour)).all(axis=2)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.any(axis=1), [False]]).astype(int)))
    found = []
    for top, bottom in zip(edges[::2], edges[1::2], strict=True):
        columns = np.flatnonzero(mask[top:bottom].any(axis=0))
        left, right = columns[0], columns[-1] + 1
        assert mask[top:bottom, left:right].all(), "not one rectangle"
        found.append((int(top), int(left), int(bottom - top), int(right - left)))
    return found


def test_five_tiles_per_camera_in_reading_order():
    panel = np.asarray(draw_panel(a_sample(views=3)))
    rows = [tiles(panel, colour) for colour in (PAST, NOW, PREDICTED, TRUE)]
    assert all(len(row) == 3 for row in rows), "one tile per camera and column"
    lefts = [row[0][1] for row in rows]
    assert lefts == sorted(lefts)
    step = lefts[1] - lefts[0]
    assert np.diff(lefts).tolist() == [step] * 3
    for view in range(3):
        assert len({row[view][0] for row in rows}) == 1, "one row per camera"
        assert len({row[view][1] for row in rows}) == 4
    # The error map follows the true frame, one step to the right.
    expected = np.abs(np.array(PREDICTED) - np.array(TRUE)).mean() / 255
    top, left, height, width = rows[3][0]
    shown = panel[top : top + height, left + step : left + step + width]
    assert (shown == shown[0, 0]).all()
    assert 0 < expected < ERROR_SCALE
    assert shown[0, 0].max() > 0, "some error is not black"


@pytest.mark.parametrize(("size", "factor"), [((64, 64), 3), ((256, 256), 1), ((48, 128), 2)])
def test_small_pictures_are_magnified_by_a_whole_number(size, factor):
    panel = np.asarray(draw_panel(a_sample(size=size)))
    assert tiles(panel, NOW)[0][2:] == (size[0] * factor, size[1] * factor)
    assert size[1] * factor >= 128


def test_tiles_are_pixel_exact_enlargements():
    sample = a_sample()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, 64, 64), generator=generator).float() / 255
    sample = replace(sample, now=noise)
    panel = np.asarray(draw_panel(sample))
    top, left, _, _ = tiles(panel, PAST)[0]
    step = tiles(panel, PREDICTED)[0][1] - left
    shown = panel[top : top + 192 : 3, left + step // 2 : left + step // 2 + 192 : 3]
    assert torch.equal(torch.from_numpy(shown.copy()), (noise[0] * 255).round().to(torch.uint8).permute(1, 2, 0))


def test_letterbox_bars_are_cut_off():
    sample = a_sample(views=1)
    for name in ("past", "now", "predicted", "true"):
        getattr(sample, name)[:, :, :8] = flat(BAR, 1, (8, 64))
        getattr(sample, name)[:, :, 56:] = flat(BAR, 1, (8, 64))
    panel = np.asarray(draw_panel(replace(sample, scene=((8, 0, 56, 64),))))
    assert not (panel == np.array(BAR)).all(axis=2).any()
    assert tiles(panel, TRUE)[0][2:] == (48 * 3, 64 * 3)


def test_the_error_map_is_black_where_prediction_and_truth_agree():
    sample = a_sample(views=1)
    sample.true[:, :, :, 32:] = sample.predicted[:, :, :, 32:]
    panel = np.asarray(draw_panel(sample))
    top, left, _, _ = tiles(panel, NOW)[0]
    step = left - tiles(panel, PAST)[0][1]
    error = panel[top : top + 192, left + 3 * step : left + 3 * step + 192]
    assert (error[:, 96:] == 0).all()
    assert error[:, :96].max(axis=2).min() > 0


def test_the_error_map_saturates_at_its_scale():
    sample = a_sample(views=1)
    sample.true[:] = sample.predicted - ERROR_SCALE
    sample.true[:, :, :, 32:] = sample.predicted[:, :, :, 32:] - 2 * ERROR_SCALE
    panel = np.asarray(draw_panel(sample))
    top, left, _, _ = tiles(panel, NOW)[0]
    step = left - tiles(panel, PAST)[0][1]
    error = panel[top : top + 192, left + 3 * step : left + 3 * step + 192]
    assert (error == error[0, 0]).all()


@pytest.mark.parametrize(("prediction", "colour", "other"), [(0.01, BETTER, WORSE), (0.03, WORSE, BETTER)])
def test_the_label_says_whether_copying_would_be_better(prediction, colour, other):
    panel = np.asarray(draw_panel(a_sample(prediction=prediction)))
    label = panel[:, : tiles(panel, PAST)[0][1] - 2]
    assert (label == np.array(ImageColor.getrgb(colour))).all(axis=2).any()
    assert not (label == np.array(ImageColor.getrgb(other))).all(axis=2).any()


def test_what_is_not_there_is_not_shown():
    sample = a_sample()
    no = torch.zeros(2, dtype=torch.bool)
    unknown = SquaredErrors(*(torch.full((2,), torch.nan) for _ in range(3)))
    ended = np.asarray(draw_panel(replace(sample, future_is_valid=no, errors=unknown)))
    assert tiles(ended, PREDICTED)
    assert not tiles(ended, TRUE)
    missing = replace(sample, camera_is_present=torch.tensor([True, False]), errors=unknown)
    assert len(tiles(np.asarray(draw_panel(missing)), PREDICTED)) == 1


def test_text_reaches_the_picture():
    one, other = (np.asarray(draw_panel(a_sample(frame=frame))) for frame in (40, 41))
    assert one.shape == other.shape
    assert (one != other).any(), "the moment is written on the panel"
    head = replace(a_sample(), camera_slots=("right_wrist", "left_wrist"))
    assert (np.asarray(draw_panel(head)) != one).any(), "the camera is written on the panel"


def test_a_long_task_stays_inside():
    sample = a_sample()
    long = replace(sample, moment=replace(sample.moment, task="put the parcel down " * 40))
    assert draw_panel(long).size == draw_panel(sample).size


def test_panels_are_reproducible():
    assert draw_panel(a_sample()).tobytes() == draw_panel(a_sample()).tobytes()


def test_a_video_holds_one_panel_per_moment(tmp_path):
    samples = [a_sample(frame=frame) for frame in range(5)]
    samples[2].now[:] = flat((250, 250, 0), 2, (64, 64))
    path = tmp_path / "deep" / "episode.mp4"
    draw_video(iter(samples), path, fps=7.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate) == 7.5
    assert len(frames) == 5
    for frame, sample in zip(frames, samples, strict=True):
        drawn = np.asarray(draw_panel(sample)).astype(float)
        assert frame.shape == drawn.shape
        assert np.abs(frame - drawn).mean() < 4, "up to the codec"
    assert np.abs(frames[2].astype(float) - frames[1]).mean() > 4


def test_a_video_of_nothing_is_refused(tmp_path):
    with pytest.raises(InternVLAError, match="at least one moment"):
        draw_video([], tmp_path / "none.mp4", fps=10)
    assert not (tmp_path / "none.mp4").exists()
