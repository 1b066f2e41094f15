"""The numbers: pooled PSNR by hand, honest sentences, JSON without infinities."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from foresight.flat_samples import a_sample
from lerobot_internvla import InternVLAError
from lerobot_internvla.foresight import ForesightScores, SquaredErrors, summarize


def sample_with(prediction, copy, reconstruction=(0.0, 0.0)):
    errors = SquaredErrors(*(torch.tensor(values) for values in (prediction, copy, reconstruction)))
    return replace(a_sample(views=2), errors=errors)


def test_psnr_is_that_of_the_mean_squared_error():
    summary = summarize([sample_with((0.01, 0.1), (0.02, 0.0)), sample_with((0.03, 0.1), (0.06, 0.001))])
    head, wrist = summary.cameras
    assert (head.camera, head.frames) == ("head", 2)
    assert head.prediction_db == pytest.approx(16.9897, abs=1e-3)  # 10 log10(1 / 0.02)
    assert head.copy_of_now_db == pytest.approx(13.9794, abs=1e-3)  # 10 log10(1 / 0.04)
    assert head.frames_better_than_copy == 2
    # One frame that copying gets exactly right does not make its average infinite.
    assert wrist.copy_of_now_db == pytest.approx(33.0103, abs=1e-3)
    assert wrist.frames_better_than_copy == 0


def test_the_summary_says_when_prediction_is_worse_than_copying():
    summary = summarize([sample_with((0.01, 0.1), (0.02, 0.01))])
    assert summary.verdicts == [
        "head: the prediction is BETTER than copying the current frame (20.0 against 17.0 dB, 1 frame).",
        "left_wrist: the prediction is WORSE than copying the current frame (10.0 against 20.0 dB, 1 frame).",
    ]
    assert "exactly as good" in summarize([sample_with((0.01, 0.1), (0.01, 0.1))]).verdicts[0]


def test_frames_without_a_future_or_a_camera_do_not_count():
    nan = float("nan")
    summary = summarize([sample_with((0.01, nan), (0.02, nan)), sample_with((nan, nan), (nan, nan))])
    assert [camera.frames for camera in summary.cameras] == [1, 0]
    assert summary.cameras[0].prediction_db == pytest.approx(20.0, abs=1e-4)
    assert summary.verdicts[1] == "left_wrist: no frame to compare with."


def test_json_has_no_infinity_and_no_nan():
    nan = float("nan")
    document = summarize([sample_with((0.0, nan), (0.01, nan))]).as_dict()
    head, wrist = (json.loads(json.dumps(document, allow_nan=False))["cameras"][c] for c in ("head", "left_wrist"))
    assert head["prediction"] == {"psnr_db": None, "mean_squared_error": 0.0}
    assert head["copy_of_now"]["psnr_db"] == pytest.approx(20.0, abs=1e-4)
    assert wrist["prediction"] == {"psnr_db": None, "mean_squared_error": None}
    assert "WORSE" not in head["verdict"]


def test_the_table_shows_all_three_and_the_unit():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summarize([sample_with((0.01, 0.1), (0.02, 0.01), (0.001, 0.0))]).as_table("8 moments"))
    text = console.export_text()
    for word in ("head", "left_wrist", "20.00", "16.99", "30.00", "> 100", "dB", "0.5 s", "frames"):
        assert word in text


def test_policies_are_not_mixed_and_nothing_is_not_summarised():
    scores = ForesightScores()
    with pytest.raises(InternVLAError, match="no foresight samples"):
        scores.summary()
    scores.add(a_sample(views=2))
    with pytest.raises(InternVLAError, match="do not belong together"):
        scores.add(a_sample(views=3))
