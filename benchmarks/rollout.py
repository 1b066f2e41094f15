"""What a control loop costs between chunks and at a chunk: rate, jitter, milliseconds per tick, memory of the history.

    python benchmarks/rollout.py --output benchmarks/results/<name>
    python benchmarks/rollout.py --robots conveyor --latencies_ms 0 --ticks 60

LeRobot's own synchronous rollout, in this process: ``BaseStrategy`` runs its loop, ``SyncInferenceEngine`` asks the
policy, robot and policy pass through LeRobot's default processors. Stopwatches sit around what the loop calls; nothing
else is changed. The policy is "tiny" with random weights. A latency above 0 makes it a stand-in: its sampler sleeps
until so many milliseconds have passed. Robots:

    conveyor, conveyor_mujoco   the simulated robots, at their own rate and picture size
    cameras                     three 480 x 640 cameras at 30 Hz that always show the same noise: a real robot's size

A tick *between* chunks takes its action from the queue; a tick *at* a chunk predicts one. Policy time is measured
twice: ``select_action`` alone, and with the policy's pre- and postprocessor. The bound, 2 ms between chunks, is on the
latter. LeRobot's conversion of pictures to floating point belongs to neither, and stands in a column of its own.

A last table (moment_latents.py) has what a chunk costs when the latents of its past are known already.
"""

import argparse
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import lerobot.rollout.inference.sync as lerobot_sync
import moment_latents
import numpy as np
import torch
from lerobot.datasets import aggregate_pipeline_dataset_features, create_initial_features
from lerobot.processor import make_default_processors
from lerobot.rollout.configs import BaseStrategyConfig
from lerobot.rollout.context import (
    DatasetContext,
    HardwareContext,
    PolicyContext,
    ProcessorContext,
    RolloutContext,
    RuntimeContext,
)
from lerobot.rollout.inference.sync import SyncInferenceEngine
from lerobot.rollout.robot_wrapper import ThreadSafeRobot
from lerobot.rollout.strategies.base import BaseStrategy
from lerobot.utils.feature_utils import combine_feature_dicts
from measure import Table, describe_machine, measure_roofline, write_report

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.model.architecture import CAMERA_SLOTS
from lerobot_internvla.processor_internvla_a1 import make_internvla_a1_pre_post_processors
from lerobot_internvla.robots.config_conveyor import ConveyorMujocoRobotConfig, ConveyorRobotConfig
from lerobot_internvla.robots.conveyor import ConveyorMujocoRobot, ConveyorRobot
from lerobot_internvla.testing import tiny_config, tiny_policy

TICK_BOUND_MS = 2.0
"""What a tick between chunks may cost, of policy time."""
HISTORY_S = 0.5
TASK = "put the red parcel into the left bin"


class CameraRobot:
    """Three cameras of a real robot's size in front of noise; the arm is where it was told to be."""

    name = robot_type = "cameras"
    fps = 30
    is_connected = True

    def __init__(self, height: int = 480, width: int = 640, joints: int = 7) -> None:
        rng = np.random.default_rng(0)
        self._pictures = {name: rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for name in CAMERA_SLOTS}
        self._joints = {f"joint{i}.pos": 0.0 for i in range(joints)}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(self._joints, float)

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        return {**self.action_features, **{name: picture.shape for name, picture in self._pictures.items()}}

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return {**self._joints, **self._pictures}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._joints = {key: float(action[key]) for key in self._joints}
        return action


def simulated(simulator: str) -> Any:
    """A simulated robot whose world waits for no command longer than the loop lets it."""
    if simulator == "conveyor":
        return ConveyorRobot(ConveyorRobotConfig(clock="real"))
    return ConveyorMujocoRobot(ConveyorMujocoRobotConfig(clock="real"))


ROBOTS: dict[str, Callable[[], Any]] = {
    "conveyor": lambda: simulated("conveyor"),
    "conveyor_mujoco": lambda: simulated("conveyor_mujoco"),
    "cameras": CameraRobot,
}


@dataclass
class Stopwatch:
    """Milliseconds by what was called, one entry per call."""

    times_ms: dict[str, list[float]] = field(default_factory=dict)
    starts_s: list[float] = field(default_factory=list)
    """When each tick began."""

    def around[**P, R](self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        entries = self.times_ms.setdefault(name, [])

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                entries.append(1e3 * (time.perf_counter() - start))

        return timed


class TimedRobot(ThreadSafeRobot):
    """LeRobot's wrapper with stopwatches; ends the rollout after so many ticks."""

    def __init__(self, robot: Any, watch: Stopwatch, ticks: int, over: Event) -> None:
        super().__init__(robot)
        self._watch, self._ticks, self._over = watch, ticks, over
        self._observe = watch.around("observe", robot.get_observation)
        self._act = watch.around("send", robot.send_action)

    def get_observation(self) -> dict[str, Any]:
        self._watch.starts_s.append(time.perf_counter())
        if len(self._watch.starts_s) == self._ticks:
            self._over.set()  # the loop looks at it after this tick
        return self._observe()

    def send_action(self, action: Any) -> Any:
        return self._act(action)


def policy_for(robot: Any, fps: int, chunk_size: int, n_action_steps: int) -> InternVLAA1Policy:
    """The tiny policy with random weights, for the robot's joints and cameras."""
    pictures = {name: shape for name, shape in robot.observation_features.items() if isinstance(shape, tuple)}
    joints = len(robot.action_features)
    height, width, _ = next(iter(pictures.values()))
    config = tiny_config(
        cameras=list(pictures),
        image_size=(height, width),
        state_dim=joints,
        action_dim=joints,
        chunk_size=chunk_size,
        n_action_steps=n_action_steps,
        num_inference_steps=10,
        foresight_interval=round(HISTORY_S * fps),
        fps=float(fps),
    )
    return tiny_policy(config)


def sleep_in_sampler(policy: InternVLAA1Policy, latency_ms: float) -> None:
    """Make the sampler of ``policy`` take at least so long."""
    sample = policy.model.sample_actions

    def slow(*args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.perf_counter()
        actions = sample(*args, **kwargs)
        time.sleep(max(0.0, latency_ms / 1e3 - (time.perf_counter() - start)))
        return actions

    policy.model.sample_actions = slow


def roll_out(
    name: str, latency_ms: float, ticks: int, *, chunk_size: int = 50, n_action_steps: int = 10
) -> dict[str, Any]:
    """LeRobot's loop for ``ticks`` ticks on one robot; returns the report of one row.

    Raises:
        InternVLAError: the simulator is not installed, or cannot draw on this machine.
    """
    robot = ROBOTS[name]()
    robot.connect()
    try:
        fps = robot.fps if isinstance(robot, CameraRobot) else robot.simulation.backend.fps
        policy = policy_for(robot, fps, chunk_size, n_action_steps)
        if latency_ms:
            sleep_in_sampler(policy, latency_ms)
        watch = Stopwatch()
        run_loop(robot, policy, fps, ticks, watch)
    finally:
        robot.disconnect()
    return {
        "robot": name,
        "latency_ms": latency_ms,
        "fps": fps,
        "cameras": {n: list(s) for n, s in robot.observation_features.items() if isinstance(s, tuple)},
        "history_frames": len(policy.memory.moments),
        "history_bytes": policy.memory.frame_bytes,
        **summarise(watch, fps, n_action_steps),
    }


def run_loop(robot: Any, policy: InternVLAA1Policy, fps: int, ticks: int, watch: Stopwatch) -> None:
    """What ``lerobot-rollout --inference.type=sync --strategy.type=base`` assembles and runs."""
    teleop_processor, action_processor, observation_processor = make_default_processors()
    features = combine_feature_dicts(
        aggregate_pipeline_dataset_features(
            teleop_processor, create_initial_features(action=robot.action_features), use_videos=True
        ),
        aggregate_pipeline_dataset_features(
            observation_processor, create_initial_features(observation=robot.observation_features), use_videos=True
        ),
    )
    keys = list(robot.action_features)
    preprocessor, postprocessor = make_internvla_a1_pre_post_processors(policy.config)
    policy.select_action = watch.around("select_action", policy.select_action)
    engine = SyncInferenceEngine(policy, preprocessor, postprocessor, features, keys, TASK, "cpu", robot.name)
    engine._preprocessor = TimedPipeline(preprocessor, watch.around("preprocess", preprocessor))
    engine._postprocessor = TimedPipeline(postprocessor, watch.around("postprocess", postprocessor))
    engine.get_action = watch.around("engine", engine.get_action)
    over = Event()
    wrapped = TimedRobot(robot, watch, ticks, over)
    settings: Any = SimpleNamespace(
        fps=fps, duration=0, interpolation_multiplier=1, use_torch_compile=False, display_data=False
    )
    context = RolloutContext(
        runtime=RuntimeContext(settings, over),
        hardware=HardwareContext(wrapped, None),
        policy=PolicyContext(policy, preprocessor, postprocessor, engine),
        processors=ProcessorContext(teleop_processor, action_processor, observation_processor),
        data=DatasetContext(None, features, {}, keys),
    )
    strategy = BaseStrategy(BaseStrategyConfig())
    strategy.setup(context)
    convert = watch.around("convert", lerobot_sync.prepare_observation_for_inference)
    with patch.object(lerobot_sync, "prepare_observation_for_inference", convert):
        strategy.run(context)


class TimedPipeline:
    """A processor pipeline with a stopwatch."""

    def __init__(self, pipeline: Any, timed: Callable[[Any], Any]) -> None:
        self._timed = timed
        self.reset = pipeline.reset

    def __call__(self, data: Any) -> Any:
        return self._timed(data)


def summarise(watch: Stopwatch, fps: int, n_action_steps: int) -> dict[str, Any]:
    """Percentiles of periods and times; the first chunk and its ticks warm up and are left out."""
    times = {name: np.array(entries) for name, entries in watch.times_ms.items()}
    count = len(times["select_action"])
    if any(len(entries) != count for entries in times.values()):
        raise RuntimeError(f"calls per tick differ: { {name: len(entries) for name, entries in times.items()} }")
    times["with processors"] = times["preprocess"] + times["select_action"] + times["postprocess"]
    tick = np.arange(count)
    is_warm, is_chunk = tick >= n_action_steps, tick % n_action_steps == 0
    periods = 1e3 * np.diff(watch.starts_s)[n_action_steps:]
    shown = ("select_action", "with processors", "convert", "engine", "observe", "send")
    return {
        "ticks": int(is_warm.sum()),
        "chunks": int((is_warm & is_chunk).sum()),
        "rate_hz": float(1e3 / periods.mean()),
        "period_ms": percentiles(periods),
        "late_ticks": int((periods > 1.1 * 1e3 / fps).sum()),
        "between_chunks_ms": {name: percentiles(times[name][is_warm & ~is_chunk]) for name in shown},
        "at_chunk_ms": {name: percentiles(times[name][is_warm & is_chunk]) for name in shown},
    }


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Median, 95th percentile and extremes, rounded to microseconds."""
    p50, p95 = np.quantile(values, (0.5, 0.95))
    named = {"min": values.min(), "p50": p50, "p95": p95, "max": values.max()}
    return {name: round(float(value), 3) for name, value in named.items()}


# ---------------------------------------------------------------------------------------------------------- tables


def within(row: dict[str, Any], quantile: str) -> bool:
    """Whether ticks between chunks keep the bound, pre- and postprocessing included."""
    return row["between_chunks_ms"]["with processors"][quantile] < TICK_BOUND_MS


def policy_name(row: dict[str, Any]) -> str:
    return f"stand-in, {row['latency_ms']:g} ms" if row["latency_ms"] else "tiny"


def loop_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "Control loop",
        ["robot", "policy", "asked Hz", "got Hz", "period p50 ms", "p95", "max", "late ticks", "chunk p50 ms", "p95"],
    )
    for row in rows:
        period, chunk = row["period_ms"], row["at_chunk_ms"]["with processors"]
        table.add(
            row["robot"], policy_name(row), row["fps"], f"{row['rate_hz']:.2f}",
            *(f"{period[name]:.1f}" for name in ("p50", "p95", "max")), f"{row['late_ticks']} of {row['ticks']}",
            *(f"{chunk[name]:.1f}" for name in ("p50", "p95")),
        )  # fmt: skip
    table.note = (
        "period: from one observation to the next. late: more than 10 % over the asked period. chunk: the policy's "
        "time of a tick that predicts one, pre- and postprocessing included."
    )
    return table


def tick_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        f"A tick between chunks, ms (bound: {TICK_BOUND_MS:g} ms of policy time)",
        ["robot", "policy", "ticks", "select_action p50", "p95", "with processors p50", "p95", "bound",
         "to float (LeRobot) p50", "whole engine p50", "p95", "observe p50", "send p50"],
    )  # fmt: skip
    for row in rows:
        times = row["between_chunks_ms"]
        kept = "kept" if within(row, "p95") else "kept by the median" if within(row, "p50") else "MISSED"
        table.add(
            row["robot"], policy_name(row), row["ticks"] - row["chunks"],
            *(f"{times[name][q]:.2f}" for name in ("select_action", "with processors") for q in ("p50", "p95")), kept,
            f"{times['convert']['p50']:.2f}", *(f"{times['engine'][q]:.2f}" for q in ("p50", "p95")),
            f"{times['observe']['p50']:.2f}", f"{times['send']['p50']:.2f}",
        )  # fmt: skip
    table.note = (
        "with processors: preprocessor, select_action, postprocessor. to float: prepare_observation_for_inference, "
        "which makes float32 of uint8 pictures. whole engine: all of these, and reordering of actions."
    )
    return table


def memory_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "Frame history as the policy holds it (uint8)", ["robot", "cameras", "frames kept", "bytes", "MB (1e6 bytes)"]
    )
    for row in {row["robot"]: row for row in rows}.values():
        shapes = {"x".join(map(str, shape[:2])) for shape in row["cameras"].values()}
        cameras = f"{len(row['cameras'])} of {', '.join(sorted(shapes))} px"
        table.add(
            row["robot"],
            cameras,
            row["history_frames"],
            f"{row['history_bytes']:,}",
            f"{row['history_bytes'] / 1e6:.2f}",
        )
    table.note = (
        "Interval + 1 frames per camera, as the cameras made them: the size of the model does not matter, so the last "
        "line is also what 3b holds with three 480 x 640 cameras and 15 ticks."
        if any(row["robot"] == "cameras" for row in rows)
        else "Interval + 1 frames per camera, as the cameras made them: the size of the model does not matter."
    )
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point; returns what it writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--robots", nargs="+", choices=list(ROBOTS), default=list(ROBOTS))
    parser.add_argument("--latencies_ms", nargs="+", type=float, default=[0, 50, 150], help="0: tiny as it is")
    parser.add_argument("--ticks", type=int, default=120, help="per row, of which the first chunk's warm up")
    parser.add_argument("--n_action_steps", type=int, default=10, help="ticks per chunk")
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    parser.add_argument("--latents", nargs="*", choices=moment_latents.MODELS, default=list(moment_latents.MODELS))
    parser.add_argument("--pairs", type=int, default=20, help="of chunks with and without known latents, per model")
    parser.add_argument("--output", type=Path, help="write <output>.json and <output>.md")
    arguments = parser.parse_args(argv)
    if arguments.n_action_steps < 2 or arguments.ticks < 3 * arguments.n_action_steps:
        parser.error("--ticks must hold three chunks or more, --n_action_steps two ticks or more")
    logging.disable(logging.WARNING)  # LeRobot warns of every tick that is late: the table counts them
    described = describe_machine()
    measure_roofline(described, [arguments.threads])  # leaves torch with that many threads
    machine = described.as_dict()
    rows: list[dict[str, Any]] = []
    for robot in arguments.robots:
        for latency_ms in arguments.latencies_ms:
            print(f"[{time.strftime('%H:%M:%S')}] {robot}, {latency_ms:g} ms", file=sys.stderr, flush=True)
            rows.append(roll_out(robot, latency_ms, arguments.ticks, n_action_steps=arguments.n_action_steps))
    latents = moment_latents.measure(arguments.latents, arguments.pairs)
    machine["load_average_at_end"] = [round(load, 2) for load in os.getloadavg()]
    given = sys.argv[1:] if argv is None else argv
    report = {
        "command": "python " + shlex.join(["benchmarks/rollout.py", *given]),
        "machine": machine,
        "threads": arguments.threads,
        "rows": rows,
        "latents": latents,
    }
    tables = [loop_table(rows), tick_table(rows), memory_table(rows), moment_latents.table_of(latents)]
    write_report("Rollout: the control loop, tick by tick", report, tables, arguments.output)
    return report


if __name__ == "__main__":
    main()
