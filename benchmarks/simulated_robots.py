"""How fast the simulated robots are: physics, pictures, and the robot's side of a control loop. Headless, no GPU.

    python benchmarks/simulated_robots.py

Prints a table in Markdown. Every row takes the fastest of several rounds, which other processes disturb least; the CPU
time beside it counts all threads of the process (Mesa's software renderer uses several).
"""

import logging
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version

from lerobot_internvla.envs.conveyor.backend import BACKENDS, Backend, World, episode_rng
from lerobot_internvla.envs.conveyor.task import TASKS
from lerobot_internvla.robots.simulation import Simulation

ROUNDS = 12
PICTURE_SIZES = (64, 128, 240)


def main() -> None:
    logging.disable(logging.WARNING)  # that this loop is faster than real time is the point
    versions = ", ".join(f"{name} {version(name)}" for name in ("mujoco", "opencv-python-headless"))
    print(f"{os.cpu_count()} cores ({platform.machine()}), {versions}, load average {os.getloadavg()[0]:.1f}\n")
    print("| simulator | what | ms | CPU ms | per second | times real time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for backend in BACKENDS.values():
        measure(backend)
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}.")


def measure(backend: Backend) -> None:
    """Print the rows of one simulator."""
    world = backend.make_world(TASKS["train"])
    row(backend, "one tick of physics", ticks(backend, world), 20)
    for size in PICTURE_SIZES:
        row(backend, f"three cameras at {size} px", lambda size=size: backend.draw_cameras(world, size), 5)
    simulation = Simulation(backend, TASKS["train"], image_size=backend.image_size)
    row(backend, f"robot and expert: observe at {backend.image_size} px, act", lambda: control(simulation), 10)


def row(backend: Backend, what: str, work: Callable[[], object], repeats: int) -> None:
    """Run ``work`` in rounds and print one line."""
    work()
    rounds: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            work()
        rounds.append(((time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats))
    seconds, cpu = min(rounds)[0], min(cpu for _, cpu in rounds)
    speed = 1 / seconds / backend.fps
    print(f"| {backend.name} | {what} | {1e3 * seconds:.2f} | {1e3 * cpu:.2f} | {1 / seconds:.0f} | {speed:.1f} |")


def ticks(backend: Backend, world: World) -> Callable[[], object]:
    """One tick of an episode in which nothing is done; begins anew after the last."""

    def tick() -> None:
        if world.ending is not None or world.steps >= backend.episode_steps:
            world.reset(episode_rng(0))
        world.step(world.state())

    return tick


def control(simulation: Simulation) -> None:
    """What a control loop asks of the robot and its expert in one tick."""
    simulation.observe()
    simulation.act(simulation.expert_action())


if __name__ == "__main__":
    main()
