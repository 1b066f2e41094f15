"""How good foresight is, in numbers: PSNR per camera beside two baselines, as a table, as sentences and as JSON.

A camera's PSNR is that of the mean squared error over all its frames. (A mean of decibels would be ruled by frames in
which nothing moves: copying them is exact, and infinitely many decibels drown every other frame.)
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.foresight.psnr import psnr_db
from lerobot_internvla.foresight.samples import ForesightSample


@dataclass(frozen=True)
class CameraSummary:
    """One camera over all moments that count. Mean squared errors of images in [0, 1]; nan when no moment counts."""

    camera: str
    frames: int
    """Frames that entered: camera present, future inside the episode."""
    frames_better_than_copy: int
    prediction_mse: float
    copy_of_now_mse: float
    reconstruction_mse: float

    @property
    def prediction_db(self) -> float:
        return psnr_db(self.prediction_mse)

    @property
    def copy_of_now_db(self) -> float:
        return psnr_db(self.copy_of_now_mse)

    @property
    def reconstruction_db(self) -> float:
        return psnr_db(self.reconstruction_mse)

    @property
    def verdict(self) -> str:
        """One plain sentence: does the policy foresee more than a copy of the current frame would?"""
        if self.frames == 0:
            return f"{self.camera}: no frame to compare with."
        frames = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        counted = f"{self.prediction_db:.1f} against {self.copy_of_now_db:.1f} dB, {frames}"
        if self.prediction_mse == self.copy_of_now_mse:
            return f"{self.camera}: the prediction is exactly as good as copying the current frame ({counted})."
        word = "BETTER" if self.prediction_mse < self.copy_of_now_mse else "WORSE"
        return f"{self.camera}: the prediction is {word} than copying the current frame ({counted})."


@dataclass(frozen=True)
class ForesightSummary:
    """What a set of moments says about a policy's foresight."""

    interval_s: float
    cameras: tuple[CameraSummary, ...]

    @property
    def verdicts(self) -> list[str]:
        return [camera.verdict for camera in self.cameras]

    def as_dict(self) -> dict[str, Any]:
        """For JSON. PSNR is null where it is infinite (error 0) or where no frame counts (error null)."""
        return {
            "interval_s": self.interval_s,
            "psnr": "10 log10(1 / mean squared error over all frames), images in [0, 1], letterbox bars excluded",
            "cameras": {
                camera.camera: {
                    "frames": camera.frames,
                    "frames_better_than_copy": camera.frames_better_than_copy,
                    **{
                        method: squared_error_and_psnr(mse)
                        for method, mse in (
                            ("prediction", camera.prediction_mse),
                            ("copy_of_now", camera.copy_of_now_mse),
                            ("reconstruction", camera.reconstruction_mse),
                        )
                    },
                    "verdict": camera.verdict,
                }
                for camera in self.cameras
            },
        }

    def as_table(self, title: str) -> Table:
        """For the terminal, PSNR in dB."""
        table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
        table.add_column("camera", no_wrap=True)
        for heading in ("prediction", "copy of now", "reconstruction", "frames", "beats copy"):
            table.add_column(heading, justify="right", overflow="fold")
        for camera in self.cameras:
            style = "green" if camera.prediction_mse < camera.copy_of_now_mse else "red"
            table.add_row(
                camera.camera,
                f"[{style}]{_shown(camera.prediction_db)}[/]",
                _shown(camera.copy_of_now_db),
                _shown(camera.reconstruction_db),
                str(camera.frames),
                str(camera.frames_better_than_copy),
            )
        table.caption = f"PSNR in dB of the frame {self.interval_s:g} s ahead; higher is better."
        return table


def squared_error_and_psnr(mean_squared_error: float) -> dict[str, float | None]:
    """For JSON, which knows neither infinity nor nan: both are null."""
    values = {"psnr_db": psnr_db(mean_squared_error), "mean_squared_error": mean_squared_error}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _shown(decibels: float) -> str:
    if math.isnan(decibels):
        return "-"
    return "> 100" if decibels > 100 else f"{decibels:.2f}"


class ForesightScores:
    """Collects errors while samples pass by, so that a long episode need not stay in memory."""

    def __init__(self) -> None:
        self._interval_s: float | None = None
        self._slots: tuple[str, ...] = ()
        self._rows: list[torch.Tensor] = []

    def add(self, sample: ForesightSample) -> ForesightSample:
        """Take note of a sample and hand it on."""
        if self._rows and (sample.camera_slots, sample.interval_s) != (self._slots, self._interval_s):
            raise InternVLAError(
                f"These samples do not belong together: cameras {self._slots} at {self._interval_s} s, then "
                f"{sample.camera_slots} at {sample.interval_s} s. Summarise each policy by itself."
            )
        self._slots, self._interval_s = sample.camera_slots, sample.interval_s
        errors = sample.errors
        self._rows.append(torch.stack([errors.prediction, errors.copy_of_now, errors.reconstruction]).double())
        return sample

    def summary(self) -> ForesightSummary:
        """The summary so far.

        Raises:
            InternVLAError: nothing was added.
        """
        if self._interval_s is None:
            raise InternVLAError("There are no foresight samples to summarise.")
        table = torch.stack(self._rows)
        cameras: list[CameraSummary] = []
        for view, slot in enumerate(self._slots):
            rows = table[:, :, view]
            rows = rows[~rows[:, 0].isnan()]
            prediction, copy, reconstruction = rows.mean(dim=0).tolist()
            better = int((rows[:, 0] < rows[:, 1]).sum())
            cameras.append(CameraSummary(slot, len(rows), better, prediction, copy, reconstruction))
        return ForesightSummary(self._interval_s, tuple(cameras))


def summarize(samples: Iterable[ForesightSample]) -> ForesightSummary:
    """PSNR per camera over ``samples``.

    Raises:
        InternVLAError: no samples, or samples of different policies.
    """
    scores = ForesightScores()
    for sample in samples:
        scores.add(sample)
    return scores.summary()
