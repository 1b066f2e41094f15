"""Where we enter ``lerobot-rollout``: what stands between a policy of ours and a robot.

The function that makes LeRobot's inference engine knows the robot, the rate and the names of the joints. It is wrapped
at run time, when a configuration of ours is made in a process that has loaded LeRobot's rollout; other policies get the
engine as it is. For ours:

    before anything moves   the robot's joints stand in the order of the recordings, or there is no engine; another rate
                            than that of the recordings is told
    every observation       whole, or the run ends (sync; RTC's engine is entered in rtc_engine.py, which feeds it too)
    every command           strategy -> engine.get_action(frame) -> ActionLimiter -> interpolation -> robot

``select_action`` cannot tell a robot from a simulator that is being scored, so commands are limited where they leave
for a robot: after the postprocessor, in robot units. Number i of a command goes to joint i of LeRobot's
``ordered_action_keys``, whichever engine made it, so these are the names that limits are looked up by. ``reset``,
``pause`` and ``stop`` end an episode: the next command is compared with where the joints are then.
"""

import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_internvla.errors import InternVLAError

from .action_limits import ActionLimiter, make_limiter
from .faults import refuse_joints_in_another_order
from .robot_view import RobotView, rename_map_of, warn_of_other_rate

logger = logging.getLogger(__name__)

_NEEDED = ("policy", "robot_wrapper", "dataset_features", "ordered_action_keys", "fps")


def enter_rollout() -> None:
    """Wrap LeRobot's ``create_inference_engine``, where its rollout is loaded; asking again changes nothing."""
    context: Any = sys.modules.get("lerobot.rollout.context")
    if context is None:
        return
    original = getattr(context, "create_inference_engine", None)
    if original is None:
        _warn_unlimited("this LeRobot makes its inference engines elsewhere than version 0.6.1 does")
    elif not hasattr(original, "__wrapped__"):
        context.create_inference_engine = _with_ours_guarded(original)


def _with_ours_guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def create_inference_engine(*args: Any, **kwargs: Any) -> Any:
        from lerobot.rollout.inference import SyncInferenceEngine

        engine = original(*args, **kwargs)
        policy = kwargs.get("policy")
        if getattr(getattr(policy, "config", None), "type", None) != "internvla_a1":  # through PEFT's wrapper too
            return engine
        if isinstance(engine, SyncInferenceEngine):  # under RTC the policy is fed as well: rtc_engine.py
            check_every_observation(engine)
        if missing := [name for name in _NEEDED if name not in kwargs]:
            _warn_unlimited(f"this LeRobot makes its inference engine without {', '.join(missing)}")
            return engine
        _guard(engine, **{**{name: kwargs[name] for name in _NEEDED}, "fps": float(kwargs["fps"])})
        return engine

    return create_inference_engine


@functools.cache  # once per reason: configurations are made many times
def _warn_unlimited(why: str) -> None:
    logger.warning(
        "ACTION LIMITS DO NOT ACT: %s. Commands of the policy reach the robot as they are. Use LeRobot 0.6.1, or limit "
        "the robot itself (--robot.max_relative_target).",
        why,
    )


def _guard(
    engine: Any,
    *,
    policy: Any,
    robot_wrapper: Any,
    dataset_features: Mapping[str, Any],
    ordered_action_keys: Sequence[str],
    fps: float,
) -> None:
    """Compare the robot with the recordings, then limit ``engine`` in place, and say how."""
    from lerobot.rollout.inference import RTCInferenceEngine

    names = list(ordered_action_keys)
    joints: list[str] = list(dataset_features.get(OBS_STATE, {}).get("names") or [])
    with suppress(InternVLAError):  # which the policy raises at its first observation, with the robot in hand
        policy.recognise(len(joints), len(names))
    refuse_joints_in_another_order(policy, joints, dataset_features.get(ACTION, {}).get("names"))
    if not isinstance(engine, RTCInferenceEngine):  # where rtc_engine.py does it
        warn_of_other_rate(policy.control_rate_hz, fps)
    limiter = make_limiter(
        policy.config, names, rate_hz=fps, robot=policy.robot, robot_type=getattr(robot_wrapper, "robot_type", None)
    )
    if limiter is not None:
        _attach(engine, limiter, joints)


def check_every_observation(engine: Any) -> None:
    """From now on LeRobot's synchronous ``engine`` refuses observations that lack a frame or a joint, by name.

    Its ``notify_observation``, called on every tick before anything is computed, does nothing in LeRobot, which goes on
    to fail at a missing frame with a TypeError that does not say whose it was.
    """
    view = RobotView(
        engine._dataset_features, rename_map_of(engine._preprocessor), engine._policy.config.image_features
    )
    stock = engine.notify_observation

    @functools.wraps(stock)
    def notify(obs: dict[str, Any]) -> None:
        view.check(obs)
        stock(obs)

    engine.notify_observation = notify


def _attach(engine: Any, limiter: ActionLimiter, joints: Sequence[str]) -> None:
    """Put the limiter behind this engine's ``get_action``."""
    get_action = engine.get_action

    def limited(obs_frame: dict[str, Any] | None) -> Any:
        action = get_action(obs_frame)
        if action is None:
            return None
        if action.shape[-1] != len(limiter.names):
            return action  # LeRobot refuses it a moment later, and says why
        if limiter.needs_start:
            state = (obs_frame or {}).get(OBS_STATE, ())
            limiter.start_from({name: float(value) for name, value in zip(joints, state, strict=False)})
        return limiter.limit(action)

    def ending(original: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(original)
        def end() -> None:
            original()
            limiter.end_episode()

        return end

    engine.get_action = limited
    for name in ("reset", "pause", "stop"):
        setattr(engine, name, ending(getattr(engine, name)))
