"""How well the scripted expert does, and how well doing nothing does: the frame around a trained policy's number.

Episode ``i`` is the one that ``lerobot-eval --env.type=conveyor --seed=<seed>`` plays as its ``i``-th, so a trained
policy and these two can be compared on the very same episodes.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import trange

from lerobot_internvla.envs.conveyor.backend import Backend, World, episode_rng, resolve_backend
from lerobot_internvla.envs.conveyor.task import SPEED_BANDS, ConveyorTask, resolve_task, speed_band
from lerobot_internvla.errors import InternVLAError

ScriptedPolicy = Literal["expert", "idle"]
"""``idle`` holds every joint where it was at the start."""

DEFAULT_SEED = 1000
"""As of ``lerobot-eval``."""


@dataclass(frozen=True)
class Successes:
    """Some episodes and how many of them succeeded."""

    episodes: int
    successes: int

    @property
    def rate(self) -> float:
        """In [0, 1]; nan without episodes."""
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the rate; (0, 1) without episodes."""
        if not self.episodes:
            return 0.0, 1.0
        n, z = self.episodes, 1.96
        middle = (self.rate + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(self.rate * (1 - self.rate) / n + z**2 / (4 * n**2))
        return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class EvaluationSummary:
    """Outcome of ``evaluate_scripted``."""

    policy: str
    environment: str
    task: str
    seed: int
    overall: Successes
    by_speed: dict[str, Successes]
    """Keys of ``SPEED_BANDS``; only bands that occurred."""
    endings: dict[str, int]
    """How many episodes ended how: the words of ``task.Ending`` and "out of time"."""
    mean_duration_s: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, rates included."""

        def row(successes: Successes) -> dict[str, Any]:
            return {**asdict(successes), "rate": successes.rate, "interval_95": list(successes.interval)}

        return {
            **asdict(self),
            "overall": row(self.overall),
            "by_speed": {band: row(successes) for band, successes in self.by_speed.items()},
        }


def evaluate_scripted(
    policy: ScriptedPolicy,
    task: str = "train",
    n_episodes: int = 200,
    seed: int = DEFAULT_SEED,
    *,
    backend: str = "conveyor",
    parcels: int | None = None,
    belt_speed: tuple[float, float] | None = None,
    progress: bool = False,
) -> EvaluationSummary:
    """Play ``n_episodes`` with a scripted policy, without drawing anything.

    Args:
        policy: "expert", or "idle".
        task, parcels, belt_speed: as in ``resolve_task``.
        n_episodes: at least 1.
        seed: of the first episode; the next ones count up from it.
        backend: which simulator.
        progress: show a progress bar.

    Raises:
        InternVLAError: unknown policy, task or backend, or no episodes.
    """
    if policy not in ("expert", "idle"):
        raise InternVLAError(f"Unknown scripted policy {policy!r}. Known: expert, idle.")
    if n_episodes < 1:
        raise InternVLAError(f"Cannot evaluate {n_episodes} episodes; ask for at least 1.")
    simulator = resolve_backend(backend)
    conveyor_task = resolve_task(task, parcels=parcels, belt_speed=belt_speed)

    endings: Counter[str] = Counter()
    played: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    steps = 0
    for i in trange(n_episodes, desc=f"{policy}, {task}", disable=not progress):
        world = _play(simulator, conveyor_task, policy, episode_rng(seed + i))
        band = speed_band(world.belt_speed)
        played[band] += 1
        succeeded[band] += world.ending == "success"
        endings[world.ending or "out of time"] += 1
        steps += world.steps
    return EvaluationSummary(
        policy=policy,
        environment=backend,
        task=task,
        seed=seed,
        overall=Successes(n_episodes, sum(succeeded.values())),
        by_speed={band: Successes(played[band], succeeded[band]) for band, *_ in SPEED_BANDS if played[band]},
        endings=dict(endings),
        mean_duration_s=steps / n_episodes / simulator.fps,
    )


def belt_speed_of_episode(
    seed: int,
    task: str = "train",
    *,
    backend: str = "conveyor",
    parcels: int | None = None,
    belt_speed: tuple[float, float] | None = None,
) -> float:
    """The belt speed of the episode that ``lerobot-eval`` reports with this ``seed`` in ``eval_info.json``.

    With it, a trained policy's successes can be sorted by ``speed_band`` without changing the stock command.
    """
    world = resolve_backend(backend).make_world(resolve_task(task, parcels=parcels, belt_speed=belt_speed))
    world.reset(episode_rng(seed))
    return world.belt_speed


def film_expert(
    path: str | Path,
    seed: int = DEFAULT_SEED,
    *,
    height: int = 528,
    task: str = "train",
    backend: str = "conveyor",
    parcels: int | None = None,
    belt_speed: tuple[float, float] | None = None,
) -> str:
    """Write one episode of the expert as an MP4 for people, with a second of stillness at its end.

    Args:
        path: file to write; its folder is made.
        seed: of the episode, as in ``evaluate_scripted``.
        height: of the picture in pixels.

    Returns:
        How the episode ended.
    """
    from lerobot.utils.io_utils import write_video

    simulator = resolve_backend(backend)
    world = simulator.make_world(resolve_task(task, parcels=parcels, belt_speed=belt_speed))
    world.reset(episode_rng(seed))
    expert = simulator.make_expert()
    frames = [simulator.draw_for_people(world, height)]
    while world.ending is None and world.steps < simulator.episode_steps:
        world.step(expert.act(world))
        frames.append(simulator.draw_for_people(world, height))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames + frames[-1:] * simulator.fps, simulator.fps)
    return world.ending or "out of time"


def _play(simulator: Backend, task: ConveyorTask, policy: ScriptedPolicy, rng: np.random.Generator) -> World:
    world = simulator.make_world(task)
    world.reset(rng)
    expert = simulator.make_expert()
    rest: NDArray[np.float32] = world.state()
    while world.ending is None and world.steps < simulator.episode_steps:
        world.step(expert.act(world) if policy == "expert" else rest)
    return world
