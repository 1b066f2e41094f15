"""Success rates over many tasks: the eval_info.json files of ``lerobot-eval`` -> one table, Markdown or CSV.

Benchmarks of many tasks (RoboTwin, LIBERO, Meta-World) are evaluated task by task; papers print the mean over tasks. A
column is one way of evaluating: a setting (easy, hard), a checkpoint, a policy. Works for any LeRobot policy.

    table = SuccessTable({"easy": read_folder(Path("outputs/easy")), "hard": read_folder(Path("outputs/hard"))})
    print(table.markdown())
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.publishing.model_card import wilson_interval

EVAL_INFO = "eval_info.json"
ABSENT = "–"


@dataclass(frozen=True)
class Successes:
    """How many episodes of a task succeeded."""

    successes: int
    episodes: int

    @property
    def percent(self) -> float:
        """In [0, 100]."""
        return 100 * self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of ``percent``. It knows of episodes only, not of other seeds of a training."""
        return wilson_interval(self.successes / self.episodes, self.episodes)


@dataclass(frozen=True)
class Average:
    """Over the tasks of one column."""

    percent: float
    """Mean of the tasks' rates, each task weighing the same, as benchmarks define it."""
    interval: tuple[float, float] | None
    """Wilson's over all episodes together: somewhat too wide where tasks differ. None where tasks have different
    numbers of episodes, for then that is another mean."""
    tasks: int
    episodes: int


def read_eval_info(path: Path) -> dict[str, Successes]:
    """Task -> successes, from one file of ``lerobot-eval``.

    Args:
        path: eval_info.json, or its folder.

    Returns:
        By the name of LeRobot's task group where that holds one task (RoboTwin: its task), else "<group>/<number>".

    Raises:
        InternVLAError: no such file, not JSON, no episodes by task, or outcomes that are neither true nor false.
    """
    file = path / EVAL_INFO if path.is_dir() else path
    try:
        info: Any = json.loads(file.read_text())
        tasks = [
            (str(task["task_group"]), int(task["task_id"]), list[Any](task["metrics"]["successes"]))
            for task in info["per_task"]
        ]
    except OSError as error:
        raise InternVLAError(f"No results: {error}. Pass lerobot-eval's output_dir, or the file in it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InternVLAError(
            f"{str(file)!r} is no eval_info.json of lerobot-eval: {type(error).__name__} {error}. Expected "
            "per_task[*].metrics.successes. If the evaluation was cut off, run it again."
        ) from error
    groups = [group for group, _, _ in tasks]
    found: dict[str, Successes] = {}
    for group, number, outcomes in tasks:
        name = group if groups.count(group) == 1 else f"{group}/{number}"
        if not outcomes or not all(outcome in (True, False) for outcome in outcomes):
            raise InternVLAError(
                f"{str(file)!r} has the outcomes {outcomes[:5]} for {name!r}; expected true or false for at least one "
                "episode. Run this evaluation again."
            )
        found[name] = Successes(sum(map(bool, outcomes)), len(outcomes))
    if not found:
        raise InternVLAError(f"{str(file)!r} has no tasks. Run this evaluation again.")
    return found


def read_folder(folder: Path) -> dict[str, Successes]:
    """Task -> successes, from every eval_info.json in ``folder``, at any depth; one output_dir per task, say.

    Raises:
        InternVLAError: none there, a task in two files, or a file that ``read_eval_info`` refuses; all at once.
    """
    files = sorted(folder.rglob(EVAL_INFO))
    if not files:
        raise InternVLAError(
            f"{str(folder)!r} holds no {EVAL_INFO}. Pass a folder that has lerobot-eval's output_dirs."
        )
    found: dict[str, Successes] = {}
    origin: dict[str, Path] = {}
    problems: list[str] = []
    for file in files:
        try:
            results = read_eval_info(file)
        except InternVLAError as error:
            problems.append(str(error))
            continue
        for task in sorted(results.keys() & found.keys()):
            problems.append(
                f"{task!r} is in {str(origin[task])!r} and in {str(file)!r}; keep one, or make two columns."
            )
        found |= results
        origin |= dict.fromkeys(results, file)
    if problems:
        raise InternVLAError(" ".join(problems))
    return found


@dataclass(frozen=True)
class SuccessTable:
    """Tasks by columns.

    Raises:
        InternVLAError: no column.
    """

    columns: Mapping[str, Mapping[str, Successes]]
    """Column -> task -> successes."""
    expected: Sequence[str] = ()
    """All tasks of the benchmark, in its order: those without a result are shown as missing. Empty: what there is."""

    def __post_init__(self) -> None:
        if not self.columns:
            raise InternVLAError("A table of successes needs at least one column. Pass {name: read_folder(...)}.")

    @property
    def tasks(self) -> list[str]:
        """Rows: the expected ones, then others by name."""
        others = {task for column in self.columns.values() for task in column} - set(self.expected)
        return [*self.expected, *sorted(others)]

    def missing(self, column: str) -> list[str]:
        """Rows without a result in this column."""
        return [task for task in self.tasks if task not in self.columns[column]]

    def average(self, column: str) -> Average | None:
        """Over the tasks that this column has; None without any."""
        results = list(self.columns[column].values())
        if not results:
            return None
        episodes = sum(r.episodes for r in results)
        alike = len({r.episodes for r in results}) == 1
        pooled = wilson_interval(sum(r.successes for r in results) / episodes, episodes) if alike else None
        return Average(sum(r.percent for r in results) / len(results), pooled, len(results), episodes)

    def markdown(self) -> str:
        """The table, the average in its last row, and a line that says what the numbers are."""
        names = list(self.columns)
        lines = [_row(["task", *names]), _row(["---", *["---:"] * len(names)])]
        lines += [_row([task, *(_cell(self.columns[name].get(task)) for name in names)]) for task in self.tasks]
        averages = [self.average(name) for name in names]
        lines.append(_row(["**mean over tasks**", *(_average_cell(a, len(self.tasks)) for a in averages)]))
        episodes = sorted({r.episodes for column in self.columns.values() for r in column.values()})
        per_task = " or ".join(map(str, episodes)) if len(episodes) < 4 else f"{episodes[0]} to {episodes[-1]}"
        lines += ["", f"Success in %, 95 % Wilson interval; {per_task} episodes per task."]
        return "\n".join(lines)

    def csv(self) -> str:
        """One line per task and column: column,task,successes,episodes,percent,low,high. No averages."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["column", "task", "successes", "episodes", "percent", "low", "high"])
        for name, column in self.columns.items():
            for task in (task for task in self.tasks if task in column):
                r = column[task]
                numbers = (f"{value:.2f}" for value in (r.percent, *r.interval))
                writer.writerow([name, task, r.successes, r.episodes, *numbers])
        return out.getvalue()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(result: Successes | None) -> str:
    if result is None:
        return ABSENT
    return f"{result.percent:.1f} ({result.interval[0]:.1f} to {result.interval[1]:.1f})"


def _average_cell(average: Average | None, tasks: int) -> str:
    if average is None:
        return ABSENT
    interval = f" ({average.interval[0]:.1f} to {average.interval[1]:.1f})" if average.interval else ""
    partial = f", {average.tasks} of {tasks} tasks" if average.tasks < tasks else ""
    return f"**{average.percent:.2f}**{interval}{partial}"
