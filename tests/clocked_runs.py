"""How the clocked world is run: flags of ``lerobot-rollout``, and LeRobot's client against our policy server."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clocked_world import FPS, STEPS, ClockedRobotConfig, World

TASK = "move the square to the left"


def stop_at(tick: int) -> Callable[[int], None]:
    """Ctrl-C when this tick begins: a number of ticks, however busy the computer."""
    return lambda now: signal.raise_signal(signal.SIGINT) if now == tick else None


def rollout_flags(checkpoint: Path) -> list[str]:
    """Of a run that is stopped after ``STEPS + 15`` ticks."""
    World.diary.before_tick = stop_at(STEPS + 15)
    return [
        f"--policy.path={checkpoint}",
        "--robot.type=clocked",
        f"--task={TASK}",
        f"--fps={FPS}",
        "--duration=60",
        "--device=cpu",
        "--return_to_initial_position=false",
    ]


def recording(root: Path, episodes: int = 1) -> list[str]:
    """``--strategy.type=episodic`` into a folder that LeRobot puts a time behind."""
    return [
        "--strategy.type=episodic",
        "--strategy.reset_to_initial_position=false",
        "--dataset.repo_id=local/rollout_clocked",
        f"--dataset.root={root}",
        f"--dataset.num_episodes={episodes}",
        "--dataset.episode_time_s=60",
        "--dataset.push_to_hub=false",
        "--dataset.video=false",
        f"--dataset.fps={FPS}",
        f"--dataset.single_task={TASK}",
        "--play_sounds=false",
    ]


def wait_until(condition: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def import_async_inference(folder: Path) -> None:
    """LeRobot makes a folder for logs where its server and client are imported first; or skip, without grpc."""
    pytest.importorskip("grpc", reason="the policy server needs grpc: the extra 'async'")
    with contextlib.chdir(folder):
        import lerobot.async_inference.policy_server
        import lerobot.async_inference.robot_client  # noqa: F401


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_server(port: int, **settings: Any) -> Any:
    """Our policy server in threads of this process; ``.stop(None).wait()`` ends it.

    Args:
        settings: of its configuration, beside port and rate.
    """
    from concurrent import futures

    import grpc
    from lerobot.transport import services_pb2_grpc

    from lerobot_internvla.serving.policy_server import InternVLAPolicyServer, InternVLAPolicyServerConfig

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    service = InternVLAPolicyServer(InternVLAPolicyServerConfig(port=port, fps=FPS, **settings))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(service, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server


@contextlib.contextmanager
def running_client(checkpoint: Path, port: int, actions_per_chunk: int, **settings: Any) -> Iterator[None]:
    """LeRobot's client as it is, acting until the block ends."""
    from lerobot.async_inference.configs import RobotClientConfig
    from lerobot.async_inference.robot_client import RobotClient

    plain: dict[str, Any] = {
        "policy_type": "internvla_a1",
        "pretrained_name_or_path": str(checkpoint),
        "robot": ClockedRobotConfig(),
        "actions_per_chunk": actions_per_chunk,
        "task": TASK,
        "server_address": f"127.0.0.1:{port}",
        "chunk_size_threshold": 1.0,
        "fps": FPS,
        "aggregate_fn_name": "latest_only",
    }
    client = RobotClient(RobotClientConfig(**plain | settings))
    assert client.start()
    receiver = threading.Thread(target=client.receive_actions, daemon=True)
    control = threading.Thread(target=client.control_loop, args=(TASK,), daemon=True)
    receiver.start(), control.start()
    try:
        yield
    finally:
        client.shutdown_event.set()
        control.join(10)
        client.stop()
