"""Synthetic datasets that benchmarks read: panning views of textures, recorded with LeRobot. Nothing is downloaded."""

import contextlib
import importlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import torch
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray

CAMERAS = ("head", "left_wrist", "right_wrist")
JOINTS = tuple(f"joint_{index}" for index in range(14))


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def textured(root: Path, size: tuple[int, int], encoder: RGBEncoderConfig | None, seconds: int = 10) -> None:
    """Two episodes at 30 frames per second: every camera pans over a texture, with the noise of a sensor.

    Args:
        root: folder to create.
        size: height and width in pixels.
        encoder: None takes LeRobot's default, AV1 with a keyframe every second frame.
        seconds: length of an episode.
    """
    height, width = size
    images = {"dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]}
    recording = LeRobotDataset.create(
        repo_id="local/textured",
        fps=30,
        root=root,
        features={f"observation.images.{camera}": images for camera in CAMERAS}
        | {key: {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)} for key in (OBS_STATE, ACTION)},
        rgb_encoder=encoder,
        streaming_encoding=True,
        encoder_queue_maxsize=30 * seconds + 1,
        video_backend="pyav",
    )
    generator = np.random.default_rng(0)
    textures = [_texture(generator, 2 * height, 2 * width) for _ in CAMERAS]
    noise = generator.normal(0, 2, (8, height, width, 3)).astype(np.int16)
    for _ in range(2):
        phase = generator.uniform(0, 2 * np.pi)
        for frame in range(30 * seconds):
            angle = phase + 2 * np.pi * frame / 90
            top, left = round((1 + np.sin(angle)) / 2 * height), round((1 + np.cos(angle)) / 2 * width)
            values: dict[str, Any] = {"task": "look around"}
            values |= {key: generator.normal(size=len(JOINTS)).astype(np.float32) for key in (OBS_STATE, ACTION)}
            for camera, texture in zip(CAMERAS, textures, strict=True):
                view = texture[top : top + height, left : left + width] + noise[generator.integers(len(noise))]
                values[f"observation.images.{camera}"] = view.clip(0, 255).astype(np.uint8)
            recording.add_frame(values)
        recording.save_episode()
    recording.finalize()


def _texture(generator: np.random.Generator, height: int, width: int) -> NDArray[np.int16]:
    """Random colours at several scales, in 0 to 255."""
    picture = np.zeros((height, width, 3), np.float32)
    for cell in (64, 16, 4):
        coarse = torch.from_numpy(generator.normal(0, cell, (1, 3, height // cell + 2, width // cell + 2)))
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        picture += smooth.permute(1, 2, 0).float().numpy()
    return (127 + 2 * picture).clip(0, 255).astype(np.int16)


def why_not(backend: str) -> str | None:
    """Why a backend cannot be used here; None where it can."""
    if backend == "pyav":
        return None
    try:
        importlib.import_module(backend)
    except (ImportError, OSError, RuntimeError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"{backend} cannot be loaded: {first.rstrip('.')}"
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no messages of encoders."""
    datasets.disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        av.logging.set_libav_level(av.logging.INFO)
        datasets.enable_progress_bars()
