"""A folder that shows a policy's foresight: panels of a few moments, a video over one episode, and the numbers.

panel_00_episode_3_frame_120.png  ...  episode_3.mp4  summary.json
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.pretrained import PreTrainedPolicy
from tqdm import tqdm

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.foresight.panel import draw_panel, draw_video
from lerobot_internvla.foresight.samples import (
    ForesightSample,
    check_policy_and_dataset,
    choose_frames,
    episode_positions,
    iterate_imagined,
)
from lerobot_internvla.foresight.summary import ForesightScores, ForesightSummary, squared_error_and_psnr

SUMMARY_NAME = "summary.json"
_OURS = ("panel_*.png", "episode_*.mp4", SUMMARY_NAME)


@dataclass(frozen=True)
class ForesightReport:
    """What was written, and what it says."""

    moments: ForesightSummary
    """Over the moments that have a panel."""
    episode: ForesightSummary | None
    """Over the frames of the video; None without one."""
    video_episode: int | None
    panels: tuple[Path, ...]
    video: Path | None
    json: Path

    @property
    def paths(self) -> list[Path]:
        return [*self.panels, *([self.video] if self.video else []), self.json]


def require_free(output_dir: Path, *, overwrite: bool, replaced: str = "the panels, videos and summary in it") -> None:
    """Raise InternVLAError when ``output_dir`` is a file, or holds something and may not be overwritten.

    Args:
        replaced: what overwriting would replace, for the message.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise InternVLAError(f"{output_dir} is a file, not a folder. Choose another --output_dir.")
    if not overwrite and output_dir.is_dir() and any(output_dir.iterdir()):
        raise InternVLAError(
            f"{output_dir} exists and is not empty; nothing was written. Choose another --output_dir, or pass "
            f"--overwrite=true to replace {replaced}."
        )


def write_report(
    policy: PreTrainedPolicy,
    dataset: LeRobotDataset,
    output_dir: str | Path,
    *,
    n_samples: int = 8,
    seed: int = 0,
    video: bool = True,
    episode: int | None = None,
    video_every: int = 1,
    batch_size: int = 8,
    rename_map: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> ForesightReport:
    """Imagine, draw and summarise.

    Args:
        policy, dataset, batch_size, rename_map: see ``imagine``.
        output_dir: is made. Must be empty unless ``overwrite``, which replaces earlier panels, videos and summaries and
            leaves other files alone.
        n_samples: moments with a panel, drawn at random from all that have a future.
        seed: of that draw.
        video: also write a video over one episode.
        episode: of the video; None: that of the first panel.
        video_every: one video frame for every so many dataset frames; it plays in real time.
        about: more entries for summary.json (which policy, which dataset).
        show_progress: progress bars on stderr.

    Raises:
        InternVLAError: whatever ``imagine`` refuses; a folder in use; an episode that is not in the dataset.
    """
    output_dir = Path(output_dir)
    problems = [
        f"{name} is {value}" for name, value in (("n_samples", n_samples), ("video_every", video_every)) if value < 1
    ]
    if problems:
        raise InternVLAError(f"{', '.join(problems)}; expected at least 1.")
    require_free(output_dir, overwrite=overwrite)
    fps = float(dataset.meta.fps)
    frames_ahead = check_policy_and_dataset(policy, dataset.meta, rename_map)
    episodes = episode_positions(dataset)
    if episode is not None and episode not in episodes:
        raise InternVLAError(f"Episode {episode} is not among those of the dataset: {_ranges(episodes)}.")
    indices = choose_frames(dataset, frames_ahead, n_samples, seed)

    output_dir.mkdir(parents=True, exist_ok=True)
    for stale in [path for pattern in _OURS for path in output_dir.glob(pattern)]:
        stale.unlink()

    def imagined(indices: list[int], what: str) -> Iterator[ForesightSample]:
        samples = iterate_imagined(policy, dataset, indices, batch_size, rename_map=rename_map)
        return iter(tqdm(samples, desc=what, total=len(indices), unit="frame", disable=not show_progress))

    scores = ForesightScores()
    panels: list[Path] = []
    moments: list[dict[str, Any]] = []
    for number, sample in enumerate(imagined(indices, "panels")):
        scores.add(sample)
        moment = sample.moment
        path = output_dir / f"panel_{number:02d}_episode_{moment.episode}_frame_{moment.frame}.png"
        draw_panel(sample).save(path)
        panels.append(path)
        moments.append(_as_dict(sample) | {"panel": path.name})
        if episode is None:
            episode = moment.episode

    video_path = video_summary = None
    if video and episode is not None:
        video_scores = ForesightScores()
        video_path = output_dir / f"episode_{episode}.mp4"
        shown = list(episodes[episode])[::video_every]
        draw_video(
            (video_scores.add(sample) for sample in imagined(shown, f"video of episode {episode}")),
            video_path,
            fps / video_every,
        )
        video_summary = video_scores.summary()

    summary = scores.summary()
    document = {
        **(about or {}),
        "seed": seed,
        "interval_frames": frames_ahead,
        "dataset_fps": fps,
        "moments": {**summary.as_dict(), "frames": moments},
        "video": None
        if video_summary is None
        else {"episode": episode, "every": video_every, **video_summary.as_dict()},
    }
    json_path = output_dir / SUMMARY_NAME
    json_path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return ForesightReport(
        moments=summary,
        episode=video_summary,
        video_episode=episode if video_summary is not None else None,
        panels=tuple(panels),
        video=video_path,
        json=json_path,
    )


def _as_dict(sample: ForesightSample) -> dict[str, Any]:
    moment = sample.moment
    return {
        "episode": moment.episode,
        "frame": moment.frame,
        "time_s": moment.time_s,
        "task": moment.task,
        "cameras": {
            slot: {
                method: squared_error_and_psnr(float(getattr(sample.errors, method)[view]))
                for method in ("prediction", "copy_of_now", "reconstruction")
            }
            for view, slot in enumerate(sample.camera_slots)
        },
    }


def _ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers for people: "0 to 19", or "2, 5, 7"."""
    known = sorted(numbers)
    if known and known == list(range(known[0], known[-1] + 1)):
        return f"{known[0]} to {known[-1]}"
    return ", ".join(map(str, known))
