"""How evenly LeRobot's control loops run: sync, real-time chunking, policy server; and what the live view costs.

    python benchmarks/rollout_paths.py --output benchmarks/results/<name>
    python benchmarks/rollout_paths.py --robots conveyor --paths rtc --latencies_ms 0 150 --ticks 100
    python benchmarks/rollout_paths.py live --output benchmarks/results/<name>       # needs lerobot[viz]

``control_loops.py`` says what is run and what a stand-in is, ``rollout.py`` what a tick between chunks consists of.
Every row is run ``--rounds`` times, in turn with all others, so that a busy moment of the machine hits all alike; its
ticks are pooled. Left out of each run is everything before the second chunk: the first one warms up.

    period             from the beginning of one tick to that of the next
    late               a period more than 10 % longer than asked
    dry                a tick without an action: the robot holds its last target
    chunk              until its actions are in the queue, pre- and postprocessing included; of the policy server from
                       the observation on, transport and waiting included
    age                of the observation when the first action that was computed from it goes to the robot
    tick               what the control thread does in a tick, sleep left out. "while predicting": of ticks during which
                       a chunk is computed; in sync that is the waiting, under rtc what a second thread costs the first
"""

import argparse
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from control_loops import ROBOTS, Case, StandIn, Trace, run
from measure import Table, describe_machine, measure_roofline, write_report
from rollout import percentiles

PATHS = ("sync", "rtc", "async")
DISPLAYS = ("none", "cameras", "cameras and foresight")
COLOURS = {"sync": "tab:red", "rtc": "tab:blue"}
FIGURE_LATENCY_MS = 150.0


def is_warm(trace: Trace, n_action_steps: int) -> int:
    """The tick from which on a run counts: so many after the first action.

    Raises:
        RuntimeError: the run ended before, or never got an action.
    """
    if True not in trace.has_action or (start := trace.has_action.index(True) + n_action_steps) >= len(trace.begun_s):
        raise RuntimeError("The run is over before its second chunk. Raise --ticks.")
    return start


def summarise(case: Case, traces: Iterable[Trace], n_action_steps: int) -> dict[str, Any]:
    """One row of the report: the runs of one case, pooled."""
    pooled: dict[str, list[np.ndarray]] = {}

    def pool(name: str, values: Iterable[float] | np.ndarray) -> None:
        pooled.setdefault(name, []).append(np.asarray(values, dtype=float))

    for trace in traces:
        first = is_warm(trace, n_action_steps)
        begun, done = np.array(trace.begun_s[first:]), np.array(trace.done_s[first:])
        pool("period", 1e3 * np.diff(begun))
        pool("dry", ~np.array(trace.has_action[first:]))
        computing = np.zeros(len(begun), dtype=bool)
        for chunk in trace.chunks:
            computing |= (begun < chunk.done_s) & (chunk.begun_s < done)
        pool("tick", 1e3 * (done - begun)[~computing])
        pool("tick while predicting", 1e3 * (done - begun)[computing])
        pool("notify", trace.notify_ms[first:])
        pool("imagined", [when for when in trace.imagined_s if when >= begun[0]])
        chunks = [chunk for chunk in trace.chunks if chunk.begun_s >= begun[0]]
        pool("chunk", [1e3 * (chunk.done_s - chunk.begun_s) for chunk in chunks])
        pool("age", [1e3 * (chunk.used_s - chunk.seen_s) for chunk in chunks if chunk.used_s is not None])
    values = {name: np.concatenate(arrays) for name, arrays in pooled.items()}
    periods = values["period"]
    return {
        **asdict(case),
        "policy_name": str(case.policy),
        "fps": case.fps,
        "ticks": len(periods),
        "rate_hz": float(1e3 / periods.mean()),
        "late_ticks": int((periods > 1.1 * 1e3 / case.fps).sum()),
        "dry_ticks": int(values["dry"].sum()),
        "chunks": len(values["chunk"]),
        "imagined": len(values["imagined"]),
        **{f"{n}_ms": percentiles(v) if len(v) else None for n, v in values.items() if n not in ("dry", "imagined")},
    }


# ---------------------------------------------------------------------------------------------------------- tables


def cells(found: dict[str, float] | None, *names: str, digits: int = 1) -> list[str]:
    return [f"{found[name]:.{digits}f}" if found else "-" for name in names]


def loop_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "Control loop",
        ["robot", "policy", "path", "asked Hz", "got Hz", "period p50 ms", "p95", "max", "late ticks", "dry ticks"],
    )
    for row in rows:
        table.add(
            row["robot"], row["policy_name"], row["path"], row["fps"], f"{row['rate_hz']:.2f}",
            *cells(row["period_ms"], "p50", "p95", "max"),
            *(f"{row[name]} of {row['ticks']}" for name in ("late_ticks", "dry_ticks")),
        )  # fmt: skip
    table.note = (
        "period: from one tick to the next. late: more than 10 % over the asked period. dry: no action was there and "
        "the robot held its last target; in sync there is always one, because the robot waits for it."
    )
    return table


def chunk_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "Chunks, and how old the observation is when the first action computed from it reaches the robot",
        ["robot", "policy", "path", "chunks", "chunk p50 ms", "p95", "age p50 ms", "p95", "max", "age p50 in ticks"],
    )
    for row in rows:
        ticks = f"{row['age_ms']['p50'] * row['fps'] / 1e3:.1f}" if row["age_ms"] else "-"
        table.add(
            row["robot"], row["policy_name"], row["path"], row["chunks"], *cells(row["chunk_ms"], "p50", "p95"),
            *cells(row["age_ms"], "p50", "p95", "max"), ticks,
        )  # fmt: skip
    table.note = (
        "chunk: pre- and postprocessing included. async: from the observation until its actions are in the client's "
        "queue; transport, waiting for the chunk before and LeRobot's padding to 33 ms included. rtc and async drop "
        "actions whose time has passed, so an old observation does not make the robot lag; sync executes them late."
    )
    return table


def thread_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "What the control thread does in a tick, ms (sleep left out)",
        ["robot", "policy", "path", "tick p50", "p95", "while predicting p50", "p95", "max", "notify p50", "p95"],
    )
    for row in rows:
        notify = row["notify_ms"] if row["path"] == "rtc" else None
        table.add(
            row["robot"], row["policy_name"], row["path"], *cells(row["tick_ms"], "p50", "p95", digits=2),
            *cells(row["tick while predicting_ms"], "p50", "p95", "max", digits=2),
            *cells(notify, "p50", "p95", digits=2),
        )  # fmt: skip
    table.note = (
        "while predicting: ticks during which a chunk is computed: by the same thread (sync), by another thread of the "
        "process (rtc), by another process (async). notify: what rtc adds to a tick: the observation is checked, its "
        "frames are remembered. The robot's own time, drawing included where it is simulated, is part of the tick; so "
        "is the sending of an observation in async."
    )
    return table


def live_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "Live view: the control loop without display, with LeRobot's, and with imagined frames beside the cameras",
        ["robot", "policy", "path", "display", "chunks", "imagined", "got Hz", "period p95 ms", "max", "late ticks",
         "tick p50 ms", "p95", "while predicting p50", "p95", "chunk p50", "age p50"],
    )  # fmt: skip
    for row in rows:
        table.add(
            row["robot"], row["policy_name"], row["path"], row["display"], row["chunks"], row["imagined"],
            f"{row['rate_hz']:.2f}",
            *cells(row["period_ms"], "p95", "max"), f"{row['late_ticks']} of {row['ticks']}",
            *cells(row["tick_ms"], "p50", "p95", digits=2),
            *cells(row["tick while predicting_ms"], "p50", "p95", digits=2), *cells(row["chunk_ms"], "p50"),
            *cells(row["age_ms"], "p50"),
        )  # fmt: skip
    table.note = (
        "Displayed data go to a file, as rerun's SDK would send them to its viewer; the viewer, another process, is "
        "not running. imagined: how often the future was. The third row of three less the second is what that costs."
    )
    return table


# ---------------------------------------------------------------------------------------------------------- figure


def draw(case: Case, sync: Trace, rtc: Trace, n_action_steps: int, path: Path) -> None:
    """Left: the period of every tick. Right: how far each loop is behind the clock."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), width_ratios=(1.6, 1), layout="constrained")
    asked = 1e3 / case.fps
    count = min(len(trace.begun_s) - is_warm(trace, n_action_steps) for trace in (sync, rtc)) - 1
    ticks = np.arange(count + 1)
    labels = {"sync": "synchronous", "rtc": "real-time chunking"}
    longest = 0.0
    for line, (name, trace) in enumerate((("sync", sync), ("rtc", rtc))):
        first = is_warm(trace, n_action_steps)
        begun = 1e3 * np.array(trace.begun_s[first : first + count + 1])
        periods, behind = np.diff(begun), (begun - begun[0] - asked * ticks) / 1e3
        left.plot(periods, color=COLOURS[name], linewidth=1.4, marker="o", markersize=2.6, label=labels[name], zorder=2)
        right.plot(behind, color=COLOURS[name], linewidth=1.8)
        text = f"{labels[name]}: {behind[-1]:.2f} s behind after {count} ticks"
        right.text(0.04, 0.93 - 0.08 * line, text, color=COLOURS[name], transform=right.transAxes, fontsize=9.5)
        if name == "sync":
            longest, where = float(periods.max()), int(periods.argmax())
            left.annotate(
                "the arm waits for its next chunk", (where, longest), (0, 5), textcoords="offset points",
                ha="left" if where < 0.7 * count else "right", va="bottom", color=COLOURS[name], fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            )  # fmt: skip
        else:
            longest = max(longest, float(periods.max()))
            for chunk in trace.chunks:
                span = np.interp([1e3 * chunk.begun_s, 1e3 * chunk.done_s], begun, ticks)
                if span[1] > span[0]:
                    left.axvspan(*span, color=COLOURS[name], alpha=0.13, linewidth=0, zorder=0)
    left.axvspan(-9, -8, color=COLOURS["rtc"], alpha=0.13, linewidth=0, label="its next chunk is computed meanwhile")
    left.axhline(asked, color="black", linestyle=":", linewidth=1, label=f"asked: {asked:.3g} ms", zorder=1)
    left.set(xlabel="tick", ylabel="milliseconds", ylim=(0, 1.4 * longest), xlim=(-1.5, count))
    left.set_title("From one tick to the next", fontsize=11)
    left.legend(fontsize=9, loc="upper left", ncols=2, framealpha=1)
    right.axhline(0, color="black", linestyle=":", linewidth=1)
    low, high = right.get_ylim()
    right.set(xlabel="tick", ylabel="seconds behind the clock", xlim=(0, count), ylim=(low, low + 1.3 * (high - low)))
    right.set_title("What that adds up to", fontsize=11)
    latency = f"{case.policy.latency_ms:g} ms per chunk"
    figure.suptitle(f"{case.robot} at {case.fps} Hz, a chunk after {n_action_steps} actions; {latency}", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"Written: {path}")


# ------------------------------------------------------------------------------------------------------------ main


def paths_cases(arguments: argparse.Namespace) -> list[Case]:
    cases: list[Case] = []
    for robot in arguments.robots:
        for latency in arguments.latencies_ms:
            cases += [Case(robot, path, StandIn(latency)) for path in arguments.paths]
            if latency and "rtc" in arguments.paths:
                cases.append(Case(robot, "rtc", StandIn(latency, is_host_busy=True)))
    return cases


def live_cases(arguments: argparse.Namespace) -> list[Case]:
    return [
        Case(robot, path, StandIn(latency), display)
        for robot in arguments.robots
        for latency in arguments.latencies_ms
        for path in arguments.paths
        if path != "async"  # the policy server shows nothing
        for display in DISPLAYS
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point; returns what it writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", nargs="?", choices=("paths", "live"), default="paths")
    parser.add_argument("--robots", nargs="+", choices=list(ROBOTS), default=list(ROBOTS))
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument(
        "--latencies_ms", nargs="+", type=float, help="0: tiny as it is; default: 0 50 150 300; live: 0"
    )
    parser.add_argument("--ticks", type=int, default=150, help="per run, the first chunk's among them")
    parser.add_argument(
        "--n_action_steps", type=int, default=20, help="actions after which the next chunk is asked for"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    parser.add_argument("--output", type=Path, help="write <output>.json, <output>.md and, with sync and rtc, .png")
    arguments = parser.parse_args(argv)
    is_live = arguments.what == "live"
    arguments.latencies_ms = arguments.latencies_ms or ([0.0] if is_live else [0.0, 50.0, 150.0, 300.0])
    if arguments.ticks < 3 * arguments.n_action_steps:
        parser.error("--ticks must hold three chunks or more")
    output = None if arguments.output is None else arguments.output.absolute()
    logging.disable(logging.WARNING)  # LeRobot warns of every late tick, the policy of dry ones: the table counts them
    described = describe_machine()
    measure_roofline(described, [arguments.threads])  # leaves torch with that many threads
    machine = described.as_dict()
    cases = live_cases(arguments) if is_live else paths_cases(arguments)
    traces: dict[Case, list[Trace]] = {case: [] for case in cases}
    for number in range(arguments.rounds):
        for case in cases:
            what = f"round {number + 1}: {case.robot}, {case.policy}, {case.path}, display {case.display}"
            print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)
            traces[case].append(run(case, arguments.ticks, arguments.n_action_steps))
    machine["load_average_at_end"] = [round(load, 2) for load in os.getloadavg()]
    rows = [summarise(case, found, arguments.n_action_steps) for case, found in traces.items()]
    given = sys.argv[1:] if argv is None else argv
    report = {
        "command": "python " + shlex.join(["benchmarks/rollout_paths.py", *given]),
        "machine": machine,
        "threads": arguments.threads,
        "n_action_steps": arguments.n_action_steps,
        "rows": rows,
    }
    title = "Live view and the control loop" if is_live else "Control loops on every path"
    tables = [live_table(rows)] if is_live else [loop_table(rows), chunk_table(rows), thread_table(rows)]
    write_report(title, report, tables, output)
    if output is not None and not is_live:
        draw_first(traces, arguments.n_action_steps, output.with_suffix(".png"))
    return report


def draw_first(traces: dict[Case, list[Trace]], n_action_steps: int, path: Path) -> None:
    """The figure of one robot, the MuJoCo one if it was run; nothing if sync, rtc or the latency were not."""
    policy = StandIn(FIGURE_LATENCY_MS)
    for robot in sorted(ROBOTS, key=lambda name: name != "conveyor_mujoco"):
        sync, rtc = (traces.get(Case(robot, name, policy)) for name in ("sync", "rtc"))
        if sync and rtc:
            draw(Case(robot, "rtc", policy), sync[-1], rtc[-1], n_action_steps, path)
            return


if __name__ == "__main__":
    main()
