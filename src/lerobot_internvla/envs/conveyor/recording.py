"""Expert episodes of the conveyor as a LeRobotDataset v3, through LeRobot's own recording API.

One function, ``record_expert_episodes``. Feature names, joint names and frame rate agree with the environment type, so
``lerobot-train`` on the dataset and ``lerobot-eval`` on the environment need no rename.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lerobot_internvla.envs.conveyor.backend import Backend, Expert, World, resolve_backend
from lerobot_internvla.envs.conveyor.task import CAMERAS, Disturbances, resolve_task
from lerobot_internvla.errors import InternVLAError

RECORDING_DISTURBANCES = Disturbances(bumps_per_second=3.0, slip_probability=0.1)
"""Undisturbed, a gripper that follows a parcel is always over it, and a policy learns to copy the gripper's position
instead of watching the parcel; so the recorded arm is pushed often."""

MAX_TRIES_PER_EPISODE = 5
"""Give up when the expert fails four times out of five: then the task is at fault, not chance."""


@dataclass(frozen=True)
class VideoSettings:
    """How the cameras are stored. The defaults suit random access by LeRobot's PyAV reader at small picture sizes."""

    codec: str = "h264"
    keyframe_interval: int = 2
    """Frames; short, because every random access decodes from the keyframe before it."""
    quality: int = 18
    """Constant rate factor: lower is better and larger."""
    file_size_mb: int = 1
    """A new video file starts beyond this size. Small, because the reader opens the file anew for every sample and the
    cost of opening grows with the number of frames in it."""


@dataclass(frozen=True)
class RecordingSummary:
    """Outcome of ``record_expert_episodes``."""

    root: Path
    repo_id: str
    n_episodes: int
    n_frames: int
    n_attempts: int
    """Attempts that did not succeed are not in the dataset; ``endings`` says how they ended."""
    endings: dict[str, int]
    seconds: float


def record_expert_episodes(
    root: str | Path,
    repo_id: str,
    n_episodes: int,
    seed: int = 0,
    *,
    image_size: int | None = None,
    task: str = "train",
    parcels: int | None = None,
    belt_speed: tuple[float, float] | None = None,
    disturbances: Disturbances = RECORDING_DISTURBANCES,
    backend: str = "conveyor",
    video: VideoSettings | None = VideoSettings(),
    progress: bool = True,
) -> RecordingSummary:
    """Let the scripted expert play until ``n_episodes`` have succeeded, and keep those.

    Args:
        root: folder to create; must not exist.
        repo_id: name of the dataset, ``<owner>/<name>``; nothing is uploaded.
        n_episodes: episodes in the finished dataset.
        seed: the dataset is a pure function of it. Its episodes are never those of an evaluation, whatever the seed.
        image_size: pixels per edge of the three square cameras, even; None is the simulator's own choice.
        task, parcels, belt_speed: as in ``resolve_task``.
        disturbances: bumps and slips, so that the episodes also show recoveries; an evaluation has none.
        backend: which simulator.
        video: how the cameras are encoded; None stores every picture as PNG inside the data files instead.
        progress: show a progress bar.

    Raises:
        InternVLAError: ``root`` exists, impossible settings (all at once), or the expert keeps failing.
    """
    root = Path(root)
    simulator = resolve_backend(backend)
    image_size = simulator.image_size if image_size is None else image_size
    conveyor_task = resolve_task(task, parcels=parcels, belt_speed=belt_speed)
    problems: list[str] = []
    if root.exists():
        problems.append(f"{root} exists already; choose another folder or remove it yourself")
    if n_episodes < 1:
        problems.append(f"{n_episodes} episodes, expected at least 1")
    if image_size < 16 or image_size % 2:
        problems.append(
            f"image_size {image_size} px, expected an even number from 16 (video codecs halve the colour planes)"
        )
    if "/" not in repo_id:
        problems.append(f"repo_id {repo_id!r}, expected <owner>/<name>, for example local/conveyor")
    if problems:
        raise InternVLAError(f"Nothing was recorded: {'; '.join(problems)}.")

    started = time.perf_counter()
    dataset = _create_dataset(root, repo_id, simulator, image_size, video)
    world = simulator.make_world(conveyor_task, disturbances=disturbances)
    expert = simulator.make_expert()
    endings: Counter[str] = Counter()
    n_attempts = n_frames = 0
    try:
        with (
            _quiet_libraries(),
            tqdm(total=n_episodes, desc=f"recording {repo_id}", unit="episode", disable=not progress) as bar,
        ):
            while endings["success"] < n_episodes:
                if n_attempts >= MAX_TRIES_PER_EPISODE * n_episodes:
                    raise InternVLAError(
                        f"The expert succeeded in {endings['success']} of {n_attempts} attempts at task {task!r} "
                        f"({dict(endings)}); {n_episodes} were asked for. Use a slower belt or fewer bumps. "
                        f"What was recorded is in {root}."
                    )
                # A pair of numbers, which no seed of an evaluation is.
                world.reset(np.random.default_rng([seed, n_attempts]))
                frames = _play(simulator, world, expert, image_size)
                n_attempts += 1
                endings[world.ending or "out of time"] += 1
                if world.ending != "success":
                    continue
                for frame in frames:
                    dataset.add_frame(frame)
                dataset.save_episode()
                n_frames += len(frames)
                bar.update()
    finally:
        dataset.finalize()
        # LeRobot leaves the folder that its temporary pictures were in.
        if not any((root / "images").rglob("*.*")):
            shutil.rmtree(root / "images", ignore_errors=True)
    return RecordingSummary(
        root=root,
        repo_id=repo_id,
        n_episodes=n_episodes,
        n_frames=n_frames,
        n_attempts=n_attempts,
        endings=dict(endings),
        seconds=time.perf_counter() - started,
    )


def dataset_features(backend: Backend, image_size: int, *, as_video: bool) -> dict[str, dict[str, Any]]:
    """The dataset's feature table: state and action with joint names, one square picture per camera."""
    joints = {"dtype": "float32", "shape": (len(backend.action_names),), "names": list(backend.action_names)}
    picture = {
        "dtype": "video" if as_video else "image",
        "shape": (image_size, image_size, 3),
        "names": ["height", "width", "channels"],
    }
    return {
        "observation.state": dict(joints),
        "action": dict(joints),
        **{f"observation.images.{camera}": dict(picture) for camera in CAMERAS},
    }


def _play(simulator: Backend, world: World, expert: Expert, image_size: int) -> list[dict[str, Any]]:
    """One episode as dataset frames: what is seen before each action, and the action."""
    frames: list[dict[str, Any]] = []
    while world.ending is None and world.steps < simulator.episode_steps:
        pictures = simulator.draw_cameras(world, image_size)
        action = expert.act(world)
        frames.append(
            {
                "observation.state": world.state(),
                "action": action,
                "task": world.instruction.text,
                **{f"observation.images.{camera}": picture for camera, picture in pictures.items()},
            }
        )
        world.step(action)
    return frames


def _create_dataset(root: Path, repo_id: str, simulator: Backend, image_size: int, video: VideoSettings | None) -> Any:
    # Imported here: whoever only evaluates does not wait for LeRobot's dataset stack.
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    encoding: dict[str, Any] = {}
    if video is not None:
        encoding = {
            "rgb_encoder": RGBEncoderConfig(
                vcodec=video.codec,
                g=video.keyframe_interval,
                crf=video.quality,
                preset="veryfast" if video.codec == "h264" else None,
            ),
            # Frames go straight to one encoder thread per camera instead of through PNG files. The queue holds a whole
            # episode: LeRobot drops frames, with a warning only, when it is full.
            "streaming_encoding": True,
            "encoder_queue_maxsize": simulator.episode_steps + 1,
            "encoder_threads": 1,
            "video_files_size_in_mb": video.file_size_mb,
        }
    return LeRobotDataset.create(
        repo_id=repo_id,
        fps=simulator.fps,
        features=dataset_features(simulator, image_size, as_video=video is not None),
        root=root,
        robot_type=simulator.name,
        use_videos=video is not None,
        video_backend="pyav",
        **encoding,
    )


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence what LeRobot's writer lets through per episode: x264's statistics, a progress bar per data table."""
    import av.logging
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.utils.logging import is_progress_bar_enabled

    had_bars = is_progress_bar_enabled()
    disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)
    try:
        yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)
        if had_bars:
            enable_progress_bars()
