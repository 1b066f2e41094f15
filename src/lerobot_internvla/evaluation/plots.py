"""Pictures of open-loop results as PNG: chunks over the demonstration, and errors along the horizon.

Colours are told apart with any kind of colour vision (Okabe and Ito); demonstrations are black, baselines grey.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lerobot_internvla.evaluation.joints import Joint
from lerobot_internvla.evaluation.open_loop import HOLD, REPEAT, OpenLoopResult, PlottedEpisode
from lerobot_internvla.evaluation.scores import Errors

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, GREY, LINE = "#1b1f24", "#66707b", "#c9d1d9"
BASELINE_STYLES = {HOLD: (0, (4, 2)), REPEAT: (0, (1, 1.5))}
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
}
_WIDTH, _ROW, _DPI = 11.0, 1.75, 110


def colour_of(result: OpenLoopResult) -> dict[str, str]:
    """Policy name -> colour, the same in every picture."""
    return {policy.name: COLOURS[i % len(COLOURS)] for i, policy in enumerate(result.policies)}


def draw_episode(result: OpenLoopResult, plotted: PlottedEpisode) -> bytes:
    """Every predicted chunk over the demonstration, one panel per joint; executed steps are drawn thick."""
    colours, fps = colour_of(result), result.fps
    executed = {policy.name: policy.n_action_steps for policy in result.policies}
    with matplotlib.rc_context(_STYLE):
        figure, panels = _grid(len(result.joints), columns=2)
        time = np.arange(len(plotted.recorded)) / fps
        for dim, (axes, joint) in enumerate(zip(panels, result.joints, strict=True)):
            low, high = _limits(plotted, dim, float(result.spread[dim]))
            axes.plot(time, plotted.recorded[:, dim], color=INK, linewidth=2.4, alpha=0.8, label="demonstration")
            for name, chunks in plotted.chunks.items():
                for number, chunk in enumerate(chunks):
                    when = (chunk.start + np.arange(len(chunk.actions))) / fps
                    line, kept = chunk.actions[:, dim], executed[name]
                    axes.plot(when, line, color=colours[name], linewidth=0.7, alpha=0.45)
                    label = name if number == 0 else None
                    axes.plot(when[:kept], line[:kept], color=colours[name], linewidth=1.8, label=label)
                    axes.plot(when[:1], line[:1], ".", color=colours[name], markersize=4)
            axes.set_title(_title(joint), color=INK)
            axes.set_ylim(low, high)
            axes.set_xlim(0, time[-1] if len(time) > 1 else 1)
        _share_time_label(panels, 2, "seconds into the episode")
        return _finish(figure, panels[0])


def draw_errors_by_step(result: OpenLoopResult) -> bytes:
    """Mean absolute error along the horizon, one panel per joint, policies and baselines."""
    colours, fps = colour_of(result), result.fps
    horizon = max(policy.chunk_size for policy in result.policies)
    with matplotlib.rc_context(_STYLE):
        figure, panels = _grid(len(result.joints), columns=3)
        for dim, (axes, joint) in enumerate(zip(panels, result.joints, strict=True)):
            for name in result.baselines:
                baseline = _by_step(result.baseline(name, horizon), dim)
                axes.plot(*_steps(baseline, fps), color=GREY, linestyle=BASELINE_STYLES[name], label=name)
            for policy in result.policies:
                line = _by_step(policy.errors, dim)
                axes.plot(*_steps(line, fps), color=colours[policy.name], linewidth=1.8, label=policy.name, marker=".")
                # A little later than the last executed step, so that this step lies to its left.
                end = (policy.n_action_steps - 0.5) / fps
                axes.axvline(end, color=colours[policy.name], linewidth=0.8, alpha=0.6)
            axes.set_title(_title(joint), color=INK)
            axes.set_ylim(bottom=0)
        _share_time_label(panels, 3, "seconds after the observation")
        return _finish(figure, panels[0])


def _by_step(errors: Errors, dim: int) -> np.ndarray:
    return errors.mae_by_step()[:, dim].numpy()


def _steps(line: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(line)) / fps, line


def _title(joint: Joint) -> str:
    return f"{joint.name}  [{joint.unit}]"


def _limits(plotted: PlottedEpisode, dim: int, spread: float) -> tuple[float, float]:
    """Around everything that is drawn, and at least one spread: a joint that rests shall look at rest."""
    values = [plotted.recorded[:, dim], *(c.actions[:, dim] for chunks in plotted.chunks.values() for c in chunks)]
    seen = torch.cat(values)
    seen = seen[seen.isfinite()]
    low, high = float(seen.min()), float(seen.max())
    least = spread if spread > 0 else 1e-3
    margin = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


def _grid(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, _ROW * rows + 0.7), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _share_time_label(panels: Sequence[Axes], columns: int, text: str) -> None:
    for axes in panels[-min(columns, len(panels)) :]:
        axes.set_xlabel(text)


def _finish(figure: Figure, first: Axes) -> bytes:
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)))
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", metadata={"Software": None})
    return file.getvalue()
