"""One simulated conveyor, shared by the robot and the teleoperator of a process: episodes, clock, the expert's action.

Episode ``number`` is a pure function of (seed, number) and of the actions, so a recording can be replayed: the robot of
``lerobot-replay --dataset.episode=7 --robot.first_episode=7`` meets the world of the eighth recorded episode. When an
episode is over (success, failure or step limit) the world stands still; the observation after that shows the next one.

Clocks. ``ticks``: every observation is followed by at most one tick, which the first action after it sets off. The
world waits for the command, however long that takes, so recordings and replays are exact on any machine. ``real``:
ticks pass with the time on the wall, towards the latest action, whether or not the command keeps up, as on hardware.
Latency matters only here.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lerobot_internvla.envs.conveyor.backend import Backend
from lerobot_internvla.envs.conveyor.task import ConveyorTask
from lerobot_internvla.errors import InternVLAError

logger = logging.getLogger(__name__)

ROBOT_EPISODES = 1
"""Third number of every seed here, after seed and episode: neither an evaluation nor a recording without commands uses
such triples."""
PACE_SAMPLE = 20
"""Ticks after which the pace of the command is looked at."""
TOO_FAST = 1.4


class Simulation:
    """A conveyor that runs one episode after another.

    Args:
        backend: which simulator; it is imported here.
        task: what episodes are drawn from.
        image_size: pixels per edge of the camera pictures.
        seed, first_episode: which episodes.
        clock: "ticks" or "real".
        on_end: told at the end of every episode whether it is worth keeping: a demonstration that failed is not.

    Raises:
        InternVLAError: the simulator is not installed, or cannot draw on this machine.
    """

    def __init__(
        self,
        backend: Backend,
        task: ConveyorTask,
        *,
        image_size: int,
        seed: int = 0,
        first_episode: int = 0,
        clock: str = "ticks",
        on_end: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.backend = backend
        self.world = backend.make_world(task)
        self.endings: Counter[str] = Counter()
        self._expert = backend.make_expert()
        self._image_size = image_size
        self._seed = seed
        self._is_real_time = clock == "real"
        self._on_end = on_end
        self._low = np.array(backend.action_low, dtype=np.float32)
        self._high = np.array(backend.action_high, dtype=np.float32)
        self._warned = False
        self._begin(first_episode)
        backend.draw_cameras(self.world, image_size)  # what is missing is said now, not when the robot should move

    def observe(self) -> tuple[NDArray[np.float32], dict[str, NDArray[np.uint8]]]:
        """State and pictures of this moment. Begins the next episode if the last one is over."""
        if self._is_over:
            self._begin(self.number + 1)
        if self._started is None:
            self._started = time.perf_counter()
        self._catch_up()
        self._may_tick = True
        return self.world.state(), self.backend.draw_cameras(self.world, self._image_size)

    def act(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Move towards ``action``; returns it clipped to the limits of ``backend``.

        Raises:
            InternVLAError: a target is not a finite number.
        """
        if not np.all(np.isfinite(action)):
            finite = zip(self.backend.action_names, np.isfinite(action), strict=True)
            names = [name for name, is_finite in finite if not is_finite]
            raise InternVLAError(
                f"The {self.backend.name} robot was sent targets that are not finite numbers: {', '.join(names)}. It "
                "has not moved. Look at the policy's output and at the statistics of its checkpoint."
            )
        self._catch_up()
        self._targets = np.clip(action, self._low, self._high)
        if self._may_tick and not self._is_real_time:
            self._may_tick = False
            self._tick()
            self._look_at_pace()
        return self._targets

    def expert_action(self) -> NDArray[np.float32]:
        """What the scripted expert would do now. An episode that it fails is not worth keeping."""
        self._is_demonstration = True
        return self._expert.act(self.world)

    def _begin(self, number: int) -> None:
        self.number = number
        """Of the present episode."""
        self.world.reset(np.random.default_rng([self._seed, number, ROBOT_EPISODES]))
        self._targets = self.world.state()
        self._is_over = self._is_demonstration = self._may_tick = False
        self._started: float | None = None

    def _catch_up(self) -> None:
        if self._is_real_time and self._started is not None:
            due = (time.perf_counter() - self._started) * self.backend.fps
            while self.world.steps < int(due) and not self._is_over:
                self._tick()

    def _tick(self) -> None:
        if self._is_over:
            return
        self.world.step(self._targets)
        ending = self.world.ending
        if ending is None and self.world.steps < self.backend.episode_steps:
            return
        self._is_over = True
        self.endings[ending or "out of time"] += 1
        logger.info(
            "Episode %d (%s, belt %.2f lengths/s): %s after %.1f s; %d of %d succeeded",
            self.number,
            self.world.instruction.text,
            self.world.belt_speed,
            ending or "out of time",
            self.world.steps / self.backend.fps,
            self.endings["success"],
            self.endings.total(),
        )
        self._on_end(ending == "success" or not self._is_demonstration)

    def _look_at_pace(self) -> None:
        """A command at another rate than the simulator's would record wrong times: say so, once."""
        if self._warned or self._started is None or self.world.steps != PACE_SAMPLE:
            return
        pace = PACE_SAMPLE / (time.perf_counter() - self._started)
        if pace > TOO_FAST * self.backend.fps:
            self._warned = True
            logger.warning(
                "The command runs at about %.0f Hz, but a tick of the %s is 1/%d s: its time would be wrong by that "
                "factor. Pass --dataset.fps=%d to lerobot-record, --fps=%d to lerobot-rollout, or --robot.clock=real.",
                pace,
                *[self.backend.name] + [self.backend.fps] * 3,
            )


_connected: list[Simulation] = []


def connect(simulation: Simulation) -> None:
    """Make ``simulation`` the one that ``connected`` returns.

    Raises:
        InternVLAError: there is one already.
    """
    if _connected:
        raise InternVLAError(
            f"A simulated {_connected[0].backend.name} is connected in this process already, and the expert could not "
            "tell two apart. Disconnect it first."
        )
    _connected.append(simulation)


def disconnect(simulation: Simulation) -> None:
    """The robot of ``simulation`` is gone."""
    if simulation in _connected:
        _connected.remove(simulation)


def connected() -> Simulation:
    """The simulation whose robot is connected.

    Raises:
        InternVLAError: there is none.
    """
    if not _connected:
        raise InternVLAError(
            "The scripted expert has nothing to drive: no simulated conveyor is connected in this process. Use it "
            "together with --robot.type=conveyor or --robot.type=conveyor_mujoco."
        )
    return _connected[0]
