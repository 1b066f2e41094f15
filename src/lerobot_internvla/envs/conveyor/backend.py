"""What a simulator has to offer to run the conveyor task, and the table of simulators.

Gymnasium environment, recording and evaluation are written against these protocols only. A new simulator is one row of
``BACKENDS`` and one module with four functions; its environment type, dataset and success definition come for free.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.mujoco import arm as mujoco_arm
from lerobot_internvla.envs.conveyor.planar import world as planar_world
from lerobot_internvla.envs.conveyor.task import NO_DISTURBANCES, ConveyorTask, Disturbances, Ending, Instruction
from lerobot_internvla.errors import InternVLAError


@runtime_checkable
class World(Protocol):
    """One episode at a time, a pure function of the generator given to ``reset`` and of the actions."""

    instruction: Instruction
    belt_speed: float
    """Belt lengths per second, drawn per episode."""
    steps: int
    """Ticks since ``reset``."""

    @property
    def ending(self) -> Ending | None:
        """How the episode ended; None while it goes on."""
        ...

    def reset(self, rng: np.random.Generator) -> None: ...

    def state(self) -> NDArray[np.float32]:
        """Where the joints or grippers are, in the order of ``Backend.action_names``."""
        ...

    def step(self, action: NDArray[np.floating[Any]]) -> None:
        """Advance one tick towards absolute targets in the order of ``Backend.action_names``."""
        ...


@runtime_checkable
class Expert(Protocol):
    """A scripted expert. Without memory: the action is a function of the present world."""

    def act(self, world: Any) -> NDArray[np.float32]: ...


@runtime_checkable
class _Module(Protocol):
    """The functions that a simulator's module provides."""

    def make_world(self, task: ConveyorTask, *, disturbances: Disturbances) -> World: ...
    def make_expert(self) -> Expert: ...
    def draw_cameras(self, world: World, size: int) -> dict[str, NDArray[np.uint8]]: ...
    def draw_for_people(self, world: World, height: int) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Backend:
    """A simulator: its numbers, and the module that is imported when a world is first made."""

    name: str
    """The LeRobot environment type and the dataset's ``robot_type``."""
    fps: int
    episode_steps: int
    action_names: tuple[str, ...]
    """Of state and action alike: actions are absolute targets for what the state reports."""
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    image_size: int
    """Pixels per edge of the camera pictures unless one is asked for."""
    module: str
    needs: str
    """What to install when importing ``module`` fails."""

    def make_world(self, task: ConveyorTask, *, disturbances: Disturbances = NO_DISTURBANCES) -> World:
        """A world that draws its episodes from ``task``, in which nothing goes wrong unless the caller asks for it."""
        return self._load().make_world(task, disturbances=disturbances)

    def make_expert(self) -> Expert:
        return self._load().make_expert()

    def draw_cameras(self, world: World, size: int) -> dict[str, NDArray[np.uint8]]:
        """RGB (size, size, 3) per camera name of ``task.CAMERAS``."""
        return self._load().draw_cameras(world, size)

    def draw_for_people(self, world: World, height: int) -> NDArray[np.uint8]:
        """One RGB frame with everything a viewer wants to see; both edges are even."""
        return self._load().draw_for_people(world, height)

    def _load(self) -> _Module:
        try:
            return cast(_Module, importlib.import_module(self.module))
        except ImportError as error:
            raise InternVLAError(
                f"The simulator {self.name} could not be imported ({error}). "
                f'Install what it needs and try again: pip install "{self.needs}"'
            ) from error


BACKENDS: dict[str, Backend] = {
    "conveyor": Backend(
        name="conveyor",
        fps=planar_world.FPS,
        episode_steps=planar_world.EPISODE_STEPS,
        action_names=planar_world.ACTION_NAMES,
        action_low=tuple(planar_world.ACTION_LOW.tolist()),
        action_high=tuple(planar_world.ACTION_HIGH.tolist()),
        image_size=64,
        module="lerobot_internvla.envs.conveyor.planar.simulator",
        needs="opencv-python-headless",
    ),
    "conveyor_mujoco": Backend(
        name="conveyor_mujoco",
        fps=mujoco_arm.FPS,
        episode_steps=mujoco_arm.EPISODE_STEPS,
        action_names=mujoco_arm.ACTION_NAMES,
        action_low=tuple(mujoco_arm.ACTION_LOW.tolist()),
        action_high=tuple(mujoco_arm.ACTION_HIGH.tolist()),
        image_size=128,
        module="lerobot_internvla.envs.conveyor.mujoco.simulator",
        needs="lerobot_policy_internvla_a1[mujoco]",
    ),
}


def resolve_backend(name: str) -> Backend:
    """Look up a simulator by name.

    Raises:
        InternVLAError: unknown name.
    """
    if name not in BACKENDS:
        raise InternVLAError(f"Unknown conveyor simulator {name!r}. Known: {', '.join(BACKENDS)}.")
    return BACKENDS[name]


def episode_rng(seed: int) -> np.random.Generator:
    """The generator that drives the episode of ``env.reset(seed=seed)``.

    ``lerobot-eval`` gives its i-th episode the seed ``--seed`` + i; whoever uses this generator sees the same episodes.
    """
    return np.random.default_rng(seed)
