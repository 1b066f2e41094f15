"""The open-loop report: one page as Markdown and as self-contained HTML, its pictures, and every number as JSON.

report.html  report.md  report.json  errors_by_step.png  episode_<n>.png ...  foresight_<policy>_<n>.png ...
"""

import datetime
import io
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor
from tqdm import tqdm

from lerobot_internvla.evaluation.loading import LoadedPolicy
from lerobot_internvla.evaluation.open_loop import BASELINES, OpenLoopResult, PolicyErrors
from lerobot_internvla.evaluation.page import Block, Heading, Page, Picture, Sentences, TableBlock
from lerobot_internvla.evaluation.plots import draw_episode, draw_errors_by_step
from lerobot_internvla.evaluation.scores import Errors
from lerobot_internvla.foresight.panel import draw_panel
from lerobot_internvla.foresight.report import require_free
from lerobot_internvla.foresight.samples import check_policy_and_dataset, choose_frames, iterate_imagined
from lerobot_internvla.foresight.summary import ForesightScores, ForesightSummary

HTML, MARKDOWN, JSON = "report.html", "report.md", "report.json"
OURS = (HTML, MARKDOWN, JSON, "errors_by_step.png", "episode_*.png", "foresight_*.png")
"""What this module writes, and replaces with ``overwrite``."""


@dataclass(frozen=True)
class Foresight:
    """One policy's foresight on the evaluated episodes."""

    policy: str
    summary: ForesightSummary
    panels: tuple[bytes, ...]
    """A few moments as pictures (PNG)."""


@dataclass(frozen=True)
class WrittenReport:
    """What was written."""

    html: Path
    markdown: Path
    json: Path
    pictures: tuple[Path, ...]

    @property
    def paths(self) -> list[Path]:
        return [self.html, self.markdown, self.json, *self.pictures]


def evaluate_foresight(
    policies: Sequence[LoadedPolicy],
    dataset: LeRobotDataset,
    *,
    n_samples: int = 32,
    n_panels: int = 2,
    batch_size: int = 8,
    seed: int = 0,
    rename_map: Mapping[str, str] | None = None,
    show_progress: bool = True,
) -> list[Foresight]:
    """PSNR of the imagined future beside its two baselines, for the policies that imagine one.

    Args:
        n_samples: moments, drawn at random from all that have a future; the same for every policy.
        n_panels: of them, shown as pictures.

    Raises:
        InternVLAError: as ``foresight.imagine``.
    """
    found: list[Foresight] = []
    for loaded in policies:
        if not loaded.imagines or not n_samples:
            continue
        ahead = check_policy_and_dataset(loaded.policy, dataset.meta, rename_map)
        indices = choose_frames(dataset, ahead, n_samples, seed)
        shown = {indices[(2 * i + 1) * len(indices) // (2 * n_panels)] for i in range(n_panels)}
        scores, panels = ForesightScores(), list[bytes]()
        samples = iterate_imagined(loaded.policy, dataset, indices, batch_size, rename_map=rename_map)
        name = f"foresight of {loaded.name}"
        for sample in tqdm(samples, desc=name, total=len(indices), unit="frame", disable=not show_progress):
            scores.add(sample)
            if sample.moment.index in shown:
                file = io.BytesIO()
                draw_panel(sample).save(file, format="PNG")
                panels.append(file.getvalue())
        found.append(Foresight(loaded.name, scores.summary(), tuple(panels)))
    return found


def write_report(
    result: OpenLoopResult,
    foresight: Sequence[Foresight],
    output_dir: str | Path,
    *,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> WrittenReport:
    """Draw, write, and say where.

    Args:
        output_dir: is made. Must be empty unless ``overwrite``, which replaces an earlier report and leaves other files
            alone.
        about: more entries for the JSON.

    Raises:
        InternVLAError: a folder in use.
    """
    output_dir = Path(output_dir)
    require_free(output_dir, overwrite=overwrite, replaced="the report in it")
    page = build_page(result, foresight)
    output_dir.mkdir(parents=True, exist_ok=True)
    for stale in [path for pattern in OURS for path in output_dir.glob(pattern)]:
        stale.unlink()
    for picture in page.pictures:
        (output_dir / picture.name).write_bytes(picture.png)
    document = {**(about or {}), "versions": versions(), **as_dict(result), "foresight": _foresight_dict(foresight)}
    contents = {
        HTML: page.to_html(),
        MARKDOWN: page.to_markdown(),
        JSON: json.dumps(document, indent=1, allow_nan=False) + "\n",
    }
    for name, text in contents.items():
        (output_dir / name).write_text(text, encoding="utf-8")
    return WrittenReport(
        html=output_dir / HTML,
        markdown=output_dir / MARKDOWN,
        json=output_dir / JSON,
        pictures=tuple(output_dir / picture.name for picture in page.pictures),
    )


def versions() -> dict[str, str]:
    """What produced the numbers."""
    names = ("lerobot_policy_internvla_a1", "lerobot", "torch", "transformers")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# ---------------------------------------------------------------------------------------------------------------- page


def build_page(result: OpenLoopResult, foresight: Sequence[Foresight]) -> Page:
    """The report as blocks."""
    *others, last = (policy.name for policy in result.policies)
    names = f"{', '.join(others)} and {last}" if others else last
    blocks: list[Block] = [
        Sentences([result.verdict(policy) for policy in result.policies]),
        Sentences(_setting(result), as_list=True),
        Heading("Error per joint"),
        _joint_table(result),
        Sentences([_reading(result)]),
        Heading("Error along the horizon"),
        Picture(
            "errors_by_step.png",
            draw_errors_by_step(result),
            "Mean absolute error by horizon step, in the unit of each joint. The thin vertical lines end what the "
            "robot executes before the next prediction.",
        ),
        Heading("Summary"),
        _summary_table(result),
    ]
    if result.plotted:
        blocks.append(Heading("Chunks over the demonstration"))
    for plotted in result.plotted:
        caption = f"Episode {plotted.episode}: {plotted.task}. Thick: executed steps. Thin: the rest of each chunk."
        blocks.append(Picture(f"episode_{plotted.episode}.png", draw_episode(result, plotted), caption))
    for entry in foresight:
        blocks += [
            Heading(f"Foresight of {entry.policy}"),
            Sentences(entry.summary.verdicts, as_list=True),
            _foresight_table(entry.summary),
        ]
        for number, png in enumerate(entry.panels):
            name = f"foresight_{re.sub(r'[^A-Za-z0-9]+', '_', entry.policy)}_{number}.png"
            blocks.append(Picture(name, png, f"What {entry.policy} expected to see, and what it saw."))
    blocks += [
        Heading("What this does and does not say"),
        Sentences(
            [
                "At recorded moments the policy predicts a chunk of actions, and nothing moves. Small errors show that "
                "it reproduces demonstrations. They do not show that the robot succeeds: here mistakes never add up, "
                "every observation comes from a demonstration, and another good way of doing the task counts as error.",
                "Baselines: 'hold the state' stays where the joints are now; 'repeat last action' sends the last "
                "command again. A policy that is not better than both has not learnt to use what it sees.",
            ]
        ),
    ]
    return Page(f"Open-loop evaluation: {names} on {result.dataset}", blocks)


def _setting(result: OpenLoopResult) -> list[str]:
    versions_ = ", ".join(f"{name} {version}" for name, version in versions().items())
    sentences = [
        f"Dataset {result.dataset}, {result.fps:g} fps, {len(result.episodes)} episodes ({_ranges(result.episodes)}); "
        f"{result.starts} predictions per policy, one every {result.stride} frames "
        f"({result.stride / result.fps:.3g} s); seed {result.seed}.",
        *(
            f"{policy.name}: chunks of {policy.chunk_size} actions ({policy.chunk_size / result.fps:.3g} s), of which "
            f"the robot executes {policy.n_action_steps}. {held_out(policy, result.episodes)}"
            for policy in result.policies
        ),
        *result.joints.notes,
        f"Made on {datetime.date.today():%Y-%m-%d} with {versions_}.",
    ]
    return sentences


def held_out(policy: PolicyErrors, episodes: Sequence[int]) -> str:
    """Whether training has seen these episodes, in a sentence."""
    if policy.trained_on is None:
        return (
            "Whether training has seen these episodes is not known: train_config.json is missing or names other data."
        )
    seen = len(policy.trained_on)
    if seen == 0:
        return "Training has not seen these episodes (train_config.json)."
    if seen == len(episodes):
        return "NOT HELD OUT: training has seen all of these episodes (train_config.json), so errors look too good."
    return f"NOT HELD OUT: training has seen {seen} of these {len(episodes)} episodes (train_config.json)."


def _joint_table(result: OpenLoopResult) -> TableBlock:
    steps = result.shared_steps
    columns = {policy.name: policy.errors.first(steps).mae() for policy in result.policies}
    columns |= {name: result.baseline(name, steps).mae() for name in BASELINES}
    values = torch.stack(list(columns.values()), dim=1)
    best = values.nan_to_num(nan=math.inf).amin(dim=1, keepdim=True)
    rows = [
        [joint.name, joint.unit, *(number(value) for value in values[i].tolist()), number(float(result.spread[i]))]
        for i, joint in enumerate(result.joints)
    ]
    marked = {(i, 2 + j) for i, j in (values == best).nonzero().tolist()}
    headings = ["joint", "unit", *columns, "spread"]
    return TableBlock(headings, rows, frozenset(marked))


def _reading(result: OpenLoopResult) -> str:
    steps = result.shared_steps
    window = "the first step" if steps == 1 else f"the first {steps} steps"
    shared = " that all of these policies execute" if len(result.policies) > 1 else ""
    return (
        f"Mean absolute error over {window} of each chunk{shared}, in the unit of each joint; the smallest is bold. "
        f"Spread: the standard deviation of the dataset's recorded actions.{_resting(result)}"
    )


def _resting(result: OpenLoopResult) -> str:
    names = [joint.name for joint, rests in zip(result.joints, result.is_resting, strict=True) if rests]
    if not names:
        return ""
    return f" Hardly moving in this dataset, and left out of errors in spreads: {', '.join(names)}."


def _summary_table(result: OpenLoopResult) -> TableBlock:
    rows: list[list[str]] = []

    def add(name: str, window: str, errors: Errors) -> None:
        relative = errors.relative_error(result.yardstick)
        mae, mse = errors.mean_absolute_error(), errors.mean_squared_error()
        rows.append([name, window, number(relative), number(mae), number(mse)])

    for policy in result.policies:
        for what, steps in (("executed", policy.n_action_steps), ("whole chunk", policy.chunk_size)):
            window = f"{what}: {steps} steps"
            add(policy.name, window, policy.errors.first(steps))
            for name in BASELINES:
                add(name, window, result.baseline(name, steps))
    headings = ["", "steps of each chunk", "error in spreads", "MAE, raw numbers", "MSE, raw numbers"]
    # Policies with chunks of the same sizes share their baselines.
    return TableBlock(headings, [list(row) for row in dict.fromkeys(tuple(row) for row in rows)])


def _foresight_table(summary: ForesightSummary) -> TableBlock:
    rows = [
        [
            camera.camera,
            *(_decibels(db) for db in (camera.prediction_db, camera.copy_of_now_db, camera.reconstruction_db)),
            str(camera.frames),
            str(camera.frames_better_than_copy),
        ]
        for camera in summary.cameras
    ]
    headings = [
        f"PSNR in dB, {summary.interval_s:g} s ahead",
        *("prediction", "copy of now", "reconstruction", "frames", "better than the copy"),
    ]
    return TableBlock(headings, rows)


def number(value: float) -> str:
    """Three digits that mean something; a dash for what was not counted."""
    if math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:.2e}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.3g}"


def _decibels(value: float) -> str:
    return "-" if math.isnan(value) else "> 100" if value > 100 else f"{value:.1f}"


def _ranges(numbers: Sequence[int]) -> str:
    """ "0 to 19", or "2, 5, 7", shortened."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    shown = ", ".join(map(str, numbers[:12]))
    return shown if len(numbers) <= 12 else f"{shown}, ..."


# ---------------------------------------------------------------------------------------------------------------- JSON


def as_dict(result: OpenLoopResult) -> dict[str, Any]:
    """Every number of the report; null for what was not counted."""
    horizon = max(policy.chunk_size for policy in result.policies)
    return {
        "dataset": result.dataset,
        "fps": result.fps,
        "episodes": list(result.episodes),
        "stride": result.stride,
        "predictions": result.starts,
        "seed": result.seed,
        "joints": [
            {
                "name": joint.name,
                "unit": joint.unit,
                "spread": _finite(float(result.spread[i])),
                "is_resting": result.is_resting[i],
            }
            for i, joint in enumerate(result.joints)
        ],
        "notes": list(result.joints.notes),
        "policies": [
            {
                "name": policy.name,
                "path": policy.path,
                "chunk_size": policy.chunk_size,
                "n_action_steps": policy.n_action_steps,
                "episodes_seen_in_training": None if policy.trained_on is None else sorted(policy.trained_on),
                "verdict": result.verdict(policy),
                "executed": _errors_dict(policy.executed, result.yardstick),
                "whole_chunk": _errors_dict(policy.errors, result.yardstick),
                "episodes": {
                    str(episode): _errors_dict(errors.first(policy.n_action_steps), result.yardstick, by_step=False)
                    for episode, errors in policy.by_episode.items()
                },
            }
            for policy in result.policies
        ],
        "baselines": {name: _errors_dict(result.baseline(name, horizon), result.yardstick) for name in BASELINES},
    }


def _errors_dict(errors: Errors, spread: Tensor, *, by_step: bool = True) -> dict[str, Any]:
    return {
        "mae": _finite(errors.mean_absolute_error()),
        "mse": _finite(errors.mean_squared_error()),
        "error_in_spreads": _finite(errors.relative_error(spread)),
        "mae_by_joint": _finite(errors.mae().tolist()),
        "mse_by_joint": _finite(errors.mse().tolist()),
        **({"mae_by_step_and_joint": _finite(errors.mae_by_step().tolist())} if by_step else {}),
    }


def _finite(value: Any) -> Any:
    """JSON knows neither nan nor infinity."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None


def _foresight_dict(foresight: Sequence[Foresight]) -> dict[str, Any]:
    return {entry.policy: entry.summary.as_dict() for entry in foresight}
