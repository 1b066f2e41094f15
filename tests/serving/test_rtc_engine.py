"""Where we enter LeRobot's RTC engine: for policies of ours, and for nobody else."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lerobot.processor import RenameObservationsProcessorStep
from lerobot.rollout.inference.rtc import RTCInferenceEngine
from lerobot.rollout.inference.sync import SyncInferenceEngine
from lerobot.utils.feature_utils import hw_to_dataset_features

from lerobot_internvla import InternVLAError
from lerobot_internvla.serving import robot_view, rollout
from lerobot_internvla.serving.rtc_engine import enter_rtc_engine
from lerobot_internvla.testing import tiny_policy

JOINTS = ("a.pos", "b.pos", "c.pos", "grip.pos")
ROBOT = {**dict.fromkeys(JOINTS, float), **dict.fromkeys(("head", "left_wrist", "right_wrist"), (48, 64, 3))}


@pytest.fixture(autouse=True)
def entered() -> None:
    enter_rtc_engine()


def engine_of(policy: Any, fps: float = 30.0) -> Any:
    """LeRobot's engine without its threads."""
    engine: Any = object.__new__(RTCInferenceEngine)
    pipeline = SimpleNamespace(steps=[RenameObservationsProcessorStep()], reset=lambda: None)
    engine._policy, engine._preprocessor, engine._postprocessor = policy, pipeline, pipeline
    engine._robot = SimpleNamespace(action_features=dict.fromkeys(JOINTS, float))
    engine._hw_features, engine._fps = hw_to_dataset_features(ROBOT, "observation"), fps
    engine._obs_lock, engine._obs_holder, engine._action_queue = threading.Lock(), {}, None
    return engine


def observation(value: int = 0) -> dict[str, Any]:
    picture = np.full((48, 64, 3), value, np.uint8)
    return {**dict.fromkeys(JOINTS, 0.5), **dict.fromkeys(("head", "left_wrist", "right_wrist"), picture)}


def remembered_by(policy: Any, patch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """(value of the head camera's pixels, moment) of everything that the policy is given to remember."""
    seen: list[tuple[int, float]] = []
    patch.setattr(
        policy, "observe", lambda frames, tick: seen.append((int(frames["observation.images.head"].max()), tick))
    )
    return seen


def test_the_policy_sees_every_tick_and_the_recording_stays_as_it_was(monkeypatch: pytest.MonkeyPatch):
    policy = tiny_policy()
    seen, engine = remembered_by(policy, monkeypatch), engine_of(policy)
    given = [observation(value) for value in range(6)]
    for one in given:
        engine.notify_observation(one)
        newest = engine._obs_holder["obs"]
        assert {key: newest[key] for key in one} == one and len(newest) == len(one) + 1
    assert [value for value, _ in seen] == list(range(6))
    moments = [moment for _, moment in seen]
    assert moments == sorted(set(moments)), "each later than the one before"
    assert all("internvla" not in key for one in given for key in one)


def test_after_an_episode_nothing_is_predicted_from_its_last_observation():
    engine = engine_of(tiny_policy())
    engine.notify_observation(observation())
    engine.reset()
    assert engine._obs_holder["obs"] is None


def test_other_policies_fall_through_to_the_original():
    calls: list[str] = []
    other = SimpleNamespace(config=SimpleNamespace(type="act"), reset=lambda: calls.append("reset"))
    engine, seen = engine_of(other), {"head": None, "a.pos": float("nan")}
    engine.notify_observation(seen)
    assert engine._obs_holder["obs"] is seen
    engine.reset()
    assert engine._obs_holder["obs"] is seen and calls == ["reset"]


def test_an_unusable_observation_reaches_neither_memory_nor_engine(monkeypatch: pytest.MonkeyPatch):
    policy = tiny_policy()
    seen, engine = remembered_by(policy, monkeypatch), engine_of(policy)
    with pytest.raises(InternVLAError, match=r"'b\.pos' is at nan"):
        engine.notify_observation({**observation(), "b.pos": float("nan")})
    assert not seen and not engine._obs_holder


@pytest.mark.parametrize(
    ("change", "message"), [({"head": None}, "'head'.*no frame"), ({"b.pos": float("nan")}, r"'b\.pos' is at nan")]
)
def test_the_synchronous_engine_refuses_them_too(change: dict[str, Any], message: str):
    engine: Any = object.__new__(SyncInferenceEngine)
    engine._policy, engine._dataset_features = tiny_policy(), hw_to_dataset_features(ROBOT, "observation")
    engine._preprocessor = SimpleNamespace(steps=[RenameObservationsProcessorStep()])
    rollout.check_every_observation(engine)
    engine.notify_observation(observation())
    with pytest.raises(InternVLAError, match=message):
        engine.notify_observation({**observation(), **change})


@pytest.mark.parametrize(("fps", "warnings"), [(30.0, 1), (10.0, 0)])
def test_another_rate_than_that_of_the_training_data_is_told_once(
    fps: float, warnings: int, monkeypatch: pytest.MonkeyPatch
):
    told: list[str] = []
    monkeypatch.setattr(robot_view.logger, "warning", lambda text, *values: told.append(text % values))
    engine = engine_of(tiny_policy(fps=10.0), fps)
    for _ in range(3):
        engine.notify_observation(observation())
    assert len(told) == warnings
    assert all("robot runs at 30 Hz" in text and "--fps=10" in text for text in told)
