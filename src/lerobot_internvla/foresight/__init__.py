"""Foresight made visible: past | now | predicted | true | error, and PSNR against two baselines (docs/foresight.md).

samples = imagine(policy, dataset, frame_indices=[0, 40, 80])
draw_panel(samples[0]).save("panel.png")
for sentence in summarize(samples).verdicts:
    print(sentence)
"""

from .panel import draw_panel, draw_video, error_map
from .psnr import psnr_db, scene_box, squared_error
from .report import ForesightReport, require_free, write_report
from .samples import (
    ForesightSample,
    Moment,
    SquaredErrors,
    check_dataset,
    check_policy_and_dataset,
    choose_frames,
    episode_positions,
    foresight_delta_timestamps,
    imagine,
    interval_in_frames,
    iterate_imagined,
    slots_of_dataset,
)
from .summary import CameraSummary, ForesightScores, ForesightSummary, summarize

__all__ = [
    "CameraSummary",
    "ForesightReport",
    "ForesightSample",
    "ForesightScores",
    "ForesightSummary",
    "Moment",
    "SquaredErrors",
    "check_dataset",
    "check_policy_and_dataset",
    "choose_frames",
    "draw_panel",
    "draw_video",
    "episode_positions",
    "error_map",
    "foresight_delta_timestamps",
    "imagine",
    "interval_in_frames",
    "slots_of_dataset",
    "iterate_imagined",
    "psnr_db",
    "require_free",
    "scene_box",
    "squared_error",
    "summarize",
    "write_report",
]
