"""Where we enter ``lerobot-rollout --inference.type=rtc``: the policy sees the frames of every control tick.

LeRobot's RTC engine asks for a chunk every twenty ticks or so and shows the policy the newest observation alone, while
the model compares it with the frame of half a second before. Its ``notify_observation``, called on every tick by the
control loop, is therefore wrapped at run time, when a policy of ours is told to run under RTC:

    control loop, every tick    observation -> checked -> frames to ``policy.observe`` with its time in control ticks
                                            -> the engine, with that time as ``observation.control_tick``
    inference thread            observation -> processors -> ``predict_action_chunk``: past = that time - interval

A control tick is a frame of the training data: 1 / 30 s of the clock on the wall at 30 fps. So the past is half a
second ago also where the loop cannot keep its rate. In a simulation that waits for commands (``--robot.clock=ticks``)
time passes with the ticks and not on the wall, so there every observation is one tick.

Engines with other policies fall through to the original. Two more things of the engine are mended for ours: after a
reset it would predict once more from the last observation of the episode before, and it says nothing when the policy is
so late that no action is left.
"""

import functools
import logging
import time
from typing import Any

import numpy as np

from lerobot_internvla.batch_keys import CONTROL_TICK

from .robot_view import RobotView, refuse_missing_cameras, rename_map_of, warn_of_other_rate

logger = logging.getLogger(__name__)

_TICK_NAME = "internvla_control_tick"


def waits_for_commands(robot: Any) -> bool:
    """Whether a robot's world stands still between commands, as a simulated one's may (``--robot.clock=ticks``)."""
    return getattr(getattr(robot, "config", None), "clock", None) == "ticks"


class _Feed:
    """What one engine needs to feed its policy, and to notice that it runs dry."""

    def __init__(self, engine: Any) -> None:
        self.view = RobotView(
            engine._hw_features, rename_map_of(engine._preprocessor), engine._policy.config.image_features
        )
        commands = [name for name in engine._robot.action_features if name.endswith((".pos", ".vel"))]
        engine._policy.recognise(len(self.view.joints), len(commands))
        refuse_missing_cameras(
            self.view, engine._policy, 'pass --rename_map=\'{{"observation.images.<theirs>": "{}"}}\'.'
        )
        # A copy: the dictionary is shared with the rest of the rollout, which must not record the number.
        engine._hw_features = {
            **engine._hw_features,
            CONTROL_TICK: {"dtype": "float32", "shape": (1,), "names": [_TICK_NAME]},
        }
        fps = engine._policy.control_rate_hz
        warn_of_other_rate(fps, float(engine._fps))
        self._counts_ticks = waits_for_commands(getattr(engine._robot, "inner", engine._robot))
        self._rate_hz = fps or engine._fps
        self._begun_s = time.perf_counter()
        self.tick = 0.0
        self.dry_ticks = 0

    def observe(self, engine: Any, observation: dict[str, Any]) -> dict[str, Any]:
        passed = (time.perf_counter() - self._begun_s) * self._rate_hz
        self.view.check(observation)
        # LeRobot hands the number on as float32: what is remembered and what is asked for must be the same.
        self.tick = float(np.float32(self.tick + 1 if self._counts_ticks else passed))
        engine._policy.observe(self.view.frames(observation), self.tick)
        self._tell_if_dry(engine)
        return {**observation, _TICK_NAME: self.tick}  # within a tick for six days at 30 Hz

    def _tell_if_dry(self, engine: Any) -> None:
        queue = engine.action_queue
        if queue is None or queue.queue is None or not engine._policy_active.is_set():
            self.dry_ticks = 0
        elif queue.empty():
            self.dry_ticks += 1
            if self.dry_ticks == 1:
                logger.warning(
                    "The policy is late: no action is left, nothing is sent and the robot holds its last target. "
                    "Lower num_inference_steps, use a faster device, or raise --inference.queue_threshold."
                )
        elif self.dry_ticks:
            logger.warning("The policy is back after %d ticks without an action.", self.dry_ticks)
            self.dry_ticks = 0


def enter_rtc_engine() -> None:
    """Wrap LeRobot's RTC engine, once per process."""
    from lerobot.rollout.inference.rtc import RTCInferenceEngine

    if hasattr(RTCInferenceEngine, "_internvla_feed"):
        return
    notify_observation, reset = RTCInferenceEngine.notify_observation, RTCInferenceEngine.reset

    def is_ours(engine: Any) -> bool:
        return engine._policy.config.type == "internvla_a1"  # through PEFT's wrapper too

    @functools.wraps(notify_observation)
    def notify(self: Any, obs: dict[str, Any]) -> None:
        if is_ours(self):
            if self._internvla_feed is None:
                self._internvla_feed = _Feed(self)
            obs = self._internvla_feed.observe(self, obs)
        notify_observation(self, obs)

    @functools.wraps(reset)
    def forget(self: Any) -> None:
        if is_ours(self):
            with self._obs_lock:
                self._obs_holder["obs"] = None
        reset(self)

    RTCInferenceEngine._internvla_feed = None  # pyright: ignore[reportAttributeAccessIssue]  # ours, on its class
    RTCInferenceEngine.notify_observation = notify
    RTCInferenceEngine.reset = forget
