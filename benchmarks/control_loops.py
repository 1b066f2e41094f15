"""LeRobot's control loops with a clock beside them: synchronous, real-time chunking, policy server and robot client.

Each function here runs one loop for so many ticks and returns a ``Trace``. What runs is what the commands run:

    sync, rtc   ``build_rollout_context``, ``create_strategy``, its ``setup``, ``run`` and ``teardown``
    async       ``internvla-policy-server``'s server in a process of its own, LeRobot's ``RobotClient`` in this one

Watched are methods of single objects, by wrapping them; no loop is copied. The policy is "tiny" with random weights, or
a stand-in for a slower one:

    idle host   its sampler sleeps until so many milliseconds have passed: the accelerator works, the processor is free
    busy host   its sampler repeats itself until then: Python issues small operations all the time, as it does for an
                accelerator without compilation. What that costs the control loop in the same process is seen here only
"""

import contextlib
import functools
import logging
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, Literal
from unittest.mock import patch

import lerobot.rollout.inference.rtc as lerobot_rtc
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.robots import RobotConfig, make_robot_from_config
from lerobot.rollout import RolloutConfig, build_rollout_context, create_strategy
from lerobot.rollout.inference.factory import RTCInferenceConfig, SyncInferenceConfig
from rollout import HISTORY_S, TASK, CameraRobot

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.processor_internvla_a1 import make_internvla_a1_pre_post_processors
from lerobot_internvla.robots.config_conveyor import ConveyorMujocoRobotConfig, ConveyorRobotConfig
from lerobot_internvla.testing import tiny_config, tiny_policy

CHUNK_SIZE = 50
Display = Literal["none", "cameras", "cameras and foresight"]


@RobotConfig.register_subclass("benchmark_cameras")
@dataclass
class CamerasConfig(RobotConfig):
    """Three 480 x 640 cameras at 30 Hz: a real robot's size."""


class Cameras(CameraRobot):
    """LeRobot finds it by the name of its configuration."""

    def __init__(self, config: CamerasConfig) -> None:
        super().__init__()


ROBOTS: dict[str, tuple[int, Callable[[], RobotConfig]]] = {
    "conveyor": (10, lambda: ConveyorRobotConfig(clock="real", press_keys=False)),
    "conveyor_mujoco": (20, lambda: ConveyorMujocoRobotConfig(clock="real", press_keys=False)),
    "cameras": (30, CamerasConfig),
}
"""Name -> control rate in Hz, configuration. Simulated worlds do not wait for commands."""


@dataclass(frozen=True)
class StandIn:
    """How slow the policy is made."""

    latency_ms: float = 0.0
    """Of its sampler, at least; 0: tiny as it is."""
    is_host_busy: bool = False

    def __str__(self) -> str:
        if not self.latency_ms:
            return "tiny"
        return f"stand-in, {self.latency_ms:g} ms, {'busy' if self.is_host_busy else 'idle'} host"

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Every policy in this process is so slow."""
        sample = InternVLAA1Policy._sample

        def slow(policy: InternVLAA1Policy, *args: Any, **kwargs: Any) -> torch.Tensor:
            end = time.perf_counter() + self.latency_ms / 1e3
            actions = sample(policy, *args, **kwargs)
            while self.is_host_busy and time.perf_counter() < end:
                sample(policy, *args, **kwargs)
            time.sleep(max(0.0, end - time.perf_counter()))
            return actions

        with patch.object(InternVLAA1Policy, "_sample", slow):
            yield


@dataclass(frozen=True)
class Case:
    """What is run."""

    robot: str
    path: Literal["sync", "rtc", "async"]
    policy: StandIn = StandIn()
    display: Display = "none"

    @property
    def fps(self) -> int:
        return ROBOTS[self.robot][0]


@dataclass
class Chunk:
    """One prediction, in seconds of ``time.perf_counter``."""

    seen_s: float
    """The observation was there."""
    begun_s: float
    """Its computation began; async: the observation was sent."""
    done_s: float
    """Its actions were in the queue."""
    used_s: float | None = None
    """Its first action went to the robot; None: never."""


@dataclass
class Trace:
    """One run, tick by tick, in seconds of ``time.perf_counter``. Sleep is what lies between end and next beginning."""

    begun_s: list[float] = field(default_factory=list)
    seen_s: list[float] = field(default_factory=list)
    """Async: not on every tick."""
    done_s: list[float] = field(default_factory=list)
    has_action: list[bool] = field(default_factory=list)
    notify_ms: list[float] = field(default_factory=list)
    """rtc: what ``notify_observation`` took, of which checks and the history of frames are ours."""
    chunks: list[Chunk] = field(default_factory=list)
    imagined_s: list[float] = field(default_factory=list)
    """When the live view had imagined what comes."""

    def begin(self) -> None:
        self.begun_s.append(time.perf_counter())
        self.done_s.append(self.begun_s[-1])
        self.has_action.append(False)

    def end(self) -> None:
        self.done_s[-1] = time.perf_counter()


def after[**P, R](function: Callable[P, R], note: Callable[[R], None]) -> Callable[P, R]:
    """``function``, after which ``note`` is told the result."""

    @functools.wraps(function)
    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        result = function(*args, **kwargs)
        note(result)
        return result

    return noted


def run(case: Case, ticks: int, n_action_steps: int) -> Trace:
    """The loop of ``case`` for ``ticks`` ticks, on a new robot with a new policy.

    Args:
        n_action_steps: executed actions after which the next chunk is asked for; async asks all the time.

    Raises:
        InternVLAError: the simulator is not installed, or cannot draw on this machine.
    """
    with TemporaryDirectory() as name, contextlib.chdir(name):  # LeRobot's client writes its log where it runs
        checkpoint = Path(name) / "policy"
        save_policy(case, n_action_steps, checkpoint)
        if case.path == "async":
            return run_client(case, ticks, checkpoint)
        with case.policy.installed(), showing(case.display):
            return run_rollout(case, ticks, n_action_steps, checkpoint)


def save_policy(case: Case, n_action_steps: int, folder: Path) -> None:
    """A checkpoint of the tiny policy with random weights, for the robot's joints and cameras."""
    robot = make_robot_from_config(ROBOTS[case.robot][1]())
    pictures = {name: shape for name, shape in robot.observation_features.items() if isinstance(shape, tuple)}
    height, width, _ = next(iter(pictures.values()))
    config = tiny_config(
        cameras=list(pictures),
        image_size=(height, width),
        state_dim=len(robot.action_features),
        action_dim=len(robot.action_features),
        chunk_size=CHUNK_SIZE,
        n_action_steps=n_action_steps,
        num_inference_steps=10,
        foresight_interval=round(HISTORY_S * case.fps),
        fps=float(case.fps),
        live_foresight=case.display == "cameras and foresight",
    )
    tiny_policy(config).save_pretrained(folder)
    for pipeline in make_internvla_a1_pre_post_processors(config):
        pipeline.save_pretrained(folder)


# ----------------------------------------------------------------------------------------------------- lerobot-rollout


def run_rollout(case: Case, ticks: int, n_action_steps: int, checkpoint: Path) -> Trace:
    """``lerobot-rollout --strategy.type=base`` with ``--inference.type=sync`` or ``rtc``."""
    policy_config = PreTrainedConfig.from_pretrained(checkpoint)
    policy_config.pretrained_path = checkpoint
    threshold = CHUNK_SIZE - n_action_steps
    rtc = RTCInferenceConfig(RTCConfig(execution_horizon=n_action_steps), queue_threshold=threshold)
    settings = RolloutConfig(
        robot=ROBOTS[case.robot][1](),
        policy=policy_config,
        inference=rtc if case.path == "rtc" else SyncInferenceConfig(),
        fps=case.fps,
        device="cpu",
        task=TASK,
        display_data=case.display != "none",
        return_to_initial_position=False,
    )
    over, trace = Event(), Trace()
    context = build_rollout_context(settings, over)
    policy: Any = context.policy.policy
    policy.predict_foresight = after(policy.predict_foresight, lambda _: trace.imagined_s.append(time.perf_counter()))
    strategy = create_strategy(settings.strategy)
    try:
        strategy.setup(context)
        watch_rollout(context, strategy, trace, ticks)
        watch_engine = watch_rtc_engine if case.path == "rtc" else watch_sync_engine
        with watch_engine(context.policy.inference, policy, trace):
            strategy.run(context)
    finally:
        strategy.teardown(context)
        if policy._live_foresight is not None:
            policy._live_foresight.close()
    return trace


def watch_rollout(context: Any, strategy: Any, trace: Trace, ticks: int) -> None:
    """Beginnings and ends of ticks; the loop ends after so many."""
    robot, over = context.hardware.robot_wrapper, context.runtime.shutdown_event
    observe = after(robot.get_observation, lambda _: trace.seen_s.append(time.perf_counter()))

    def get_observation() -> Any:
        trace.begin()
        if len(trace.begun_s) == ticks:
            over.set()  # the loop looks at it after this tick
        return observe()

    show = strategy._log_telemetry  # the last thing that the loop does before it sleeps

    def log_telemetry(observation: Any, action: Any, runtime: Any) -> None:
        show(observation, action, runtime)
        trace.has_action[-1] = action is not None
        trace.end()

    robot.get_observation = get_observation
    strategy._log_telemetry = log_telemetry


@contextlib.contextmanager
def watch_sync_engine(engine: Any, policy: Any, trace: Trace) -> Iterator[None]:
    """A tick that samples predicts a chunk, and executes the first action of it."""
    sampled = Event()
    policy._sample = after(policy._sample, lambda _: sampled.set())
    get_action = engine.get_action

    def get_or_predict(observation: Any) -> Any:
        sampled.clear()
        start = time.perf_counter()
        action = get_action(observation)
        if sampled.is_set():
            now = time.perf_counter()
            trace.chunks.append(Chunk(trace.seen_s[-1], start, now, now))
        return action

    engine.get_action = get_or_predict
    yield


SEEN = "benchmark_seen_s"


@contextlib.contextmanager
def watch_rtc_engine(engine: Any, policy: Any, trace: Trace) -> Iterator[None]:
    """Chunks as the engine's thread computes them, and the tick on which the control loop comes upon a new one.

    Raises:
        RuntimeError: chunks failed; the engine logs why and tries again, which is no loop worth measuring.
    """
    queue = engine.action_queue
    turn = threading.Lock()  # which chunk an action is of must not change while it is taken
    begun, begun_s, seen_s = 0, 0.0, 0.0
    newest: Chunk | None = None
    get_left_over, get, merge = queue.get_left_over, queue.get, queue.merge
    notify, build_frame = engine.notify_observation, lerobot_rtc.build_dataset_frame

    def begin() -> Any:  # the first thing that the thread does for a chunk
        nonlocal begun, begun_s
        begun, begun_s = begun + 1, time.perf_counter()
        return get_left_over()

    def build_dataset_frame(features: Any, observation: dict[str, Any], prefix: str) -> Any:
        nonlocal seen_s
        seen_s = observation[SEEN]
        return build_frame(features, observation, prefix)

    def merge_chunk(*args: Any, **kwargs: Any) -> None:
        nonlocal newest
        with turn:
            merge(*args, **kwargs)
            newest = Chunk(seen_s, begun_s, time.perf_counter())
            trace.chunks.append(newest)

    def get_action() -> Any:
        with turn:
            action = get()
            if action is not None and newest is not None and newest.used_s is None:
                newest.used_s = time.perf_counter()
        return action

    def notify_observation(observation: Any) -> None:
        observation = {**observation, SEEN: trace.seen_s[-1]}  # it goes with the observation to the engine's thread
        start = time.perf_counter()
        notify(observation)
        trace.notify_ms.append(1e3 * (time.perf_counter() - start))

    queue.get_left_over, queue.get, queue.merge = begin, get_action, merge_chunk
    engine.notify_observation = notify_observation
    with patch.object(lerobot_rtc, "build_dataset_frame", build_dataset_frame):
        yield
    if begun > len(trace.chunks) + 1:  # the last one may still be computed
        raise RuntimeError(
            f"{begun - len(trace.chunks)} of {begun} chunks failed under RTC; run lerobot-rollout to see."
        )


@contextlib.contextmanager
def showing(display: Display) -> Iterator[None]:
    """What ``--display_data=true`` opens, with a file in the place of the viewer's window."""
    if display == "none":
        yield
        return
    import rerun
    from lerobot.utils.rerun_visualization import log_rerun_data, shutdown_rerun

    rerun.init("rollout")
    rerun.save("rollout.rrd")
    log_rerun_data.blueprint = None  # as init_rerun does: a new layout
    try:
        yield
    finally:
        shutdown_rerun()


# ------------------------------------------------------------------------------ internvla-policy-server, robot_client


def serve(port: int, policy: StandIn, threads: int) -> None:
    """The server's process."""
    from lerobot_internvla.serving.policy_server import InternVLAPolicyServerConfig
    from lerobot_internvla.serving.policy_server import serve as serve_policies

    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)  # a line per observation
    with policy.installed():
        serve_policies(InternVLAPolicyServerConfig(port=port))


@contextlib.contextmanager
def serving(policy: StandIn) -> Iterator[str]:
    """The address of a policy server in another process, which listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(port, policy, torch.get_num_threads()), daemon=True
    )
    process.start()
    try:
        while True:
            if not process.is_alive():
                raise RuntimeError(f"the policy server ended with exit code {process.exitcode}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def run_client(case: Case, ticks: int, checkpoint: Path) -> Trace:
    """``python -m lerobot.async_inference.robot_client`` with the flags of docs/robots.md."""
    from lerobot.async_inference.configs import RobotClientConfig

    trace = Trace()
    with serving(case.policy) as address:
        settings = RobotClientConfig(
            policy_type="internvla_a1",
            pretrained_name_or_path=str(checkpoint),
            robot=ROBOTS[case.robot][1](),
            actions_per_chunk=CHUNK_SIZE,
            task=TASK,
            server_address=address,
            chunk_size_threshold=1.0,
            fps=case.fps,
        )
        client = watched_client(settings, trace, ticks)
        if not client.start():
            raise RuntimeError("the policy server does not answer")
        receiver = threading.Thread(target=client.receive_actions, daemon=True)
        receiver.start()
        try:
            client.control_loop(TASK)
        finally:
            receiver.join(10)
            client.stop()
    return trace


def watched_client(settings: Any, trace: Trace, ticks: int) -> Any:
    """LeRobot's client, whose loop ends after so many ticks.

    An action is known again by its tensor. The client makes a new queue of every chunk and, under a lock, puts it in
    the place of the one before: there its actions are noted, before any of them can be taken.
    """
    from lerobot.async_inference.robot_client import RobotClient

    clock = time.time() - time.perf_counter()
    kept: list[Any] = []  # no other tensor gets the identity of a noted one
    chunk_of: dict[int, Chunk] = {}

    class WatchedClient(RobotClient):
        _arriving: Chunk | None = None

        @property
        def action_queue(self) -> Any:
            return self._queue

        @action_queue.setter
        def action_queue(self, queue: Any) -> None:
            if self._arriving is not None:
                for action in queue.queue:
                    kept.append(action.get_action())
                    chunk_of[id(kept[-1])] = self._arriving
            self._queue = queue

        def _aggregate_action_queues(self, incoming_actions: list[Any], aggregate_fn: Any = None) -> None:
            seen_s = incoming_actions[0].get_timestamp() - clock
            self._arriving = chunk = Chunk(seen_s, seen_s, seen_s)
            super()._aggregate_action_queues(incoming_actions, aggregate_fn)
            chunk.done_s = time.perf_counter()
            trace.chunks.append(chunk)

        def actions_available(self) -> bool:  # the first thing in a tick
            trace.begin()
            return super().actions_available()

        def _action_tensor_to_action_dict(self, action_tensor: Any) -> Any:  # and then it is sent
            trace.has_action[-1] = True
            chunk = chunk_of[id(action_tensor)]
            chunk.used_s = chunk.used_s or time.perf_counter()
            return super()._action_tensor_to_action_dict(action_tensor)

        def control_loop_action(self, verbose: bool = False) -> Any:
            action = super().control_loop_action(verbose)
            trace.end()
            return action

        def _ready_to_send_observation(self) -> bool:
            is_ready = super()._ready_to_send_observation()
            trace.end()
            if len(trace.begun_s) == ticks:
                self.shutdown_event.set()
            return is_ready and self.running

        def control_loop_observation(self, task: str, verbose: bool = False) -> Any:
            observation = super().control_loop_observation(task, verbose)
            trace.end()
            return observation

    return WatchedClient(settings)
