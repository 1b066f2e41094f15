"""Where LeRobot's inference engine is entered: which ones, when an episode begins, and what another LeRobot is told."""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import lerobot.rollout  # noqa: F401  # the real one, before one of its modules is replaced
import pytest
import torch

from lerobot_internvla.embodiments.registry import get_embodiment
from lerobot_internvla.embodiments.rows import Row, choose_robot
from lerobot_internvla.serving import rollout
from lerobot_internvla.serving.rollout import enter_rollout
from lerobot_internvla.testing import tiny_config

NAMES = [f"{name}.pos" for name in get_embodiment("conveyor").action_names]
X = NAMES.index("left_x.pos")


class Engine:
    """Says the same every time, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def get_action(self, obs_frame: Any) -> torch.Tensor | None:
        return None if obs_frame is None else torch.full((len(NAMES),), 5.0)

    def reset(self) -> None:
        self.told.append("reset")

    def pause(self) -> None:
        self.told.append("pause")

    def stop(self) -> None:
        self.told.append("stop")


class Policy:
    """The part of our policy that is asked."""

    robot: str | None = None

    def __init__(self, config: Any, rows: dict[str, Row] | None = None) -> None:
        self.config, self.rows = config, rows or {}

    def recognise(self, state_dim: int, action_dim: int) -> None:
        if self.rows:
            self.robot = choose_robot(self.rows, None, state_dim=state_dim, action_dim=action_dim)

    def driven_joints(self) -> tuple[list[str] | None, list[str] | None]:
        return None, None

    @property
    def control_rate_hz(self) -> float | None:
        return self.config.fps if self.robot is None else self.rows[self.robot].fps


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """LeRobot's module, as far as it is of interest."""
    fake = SimpleNamespace(create_inference_engine=lambda config, **arguments: Engine())
    monkeypatch.setitem(rollout.sys.modules, "lerobot.rollout.context", fake)
    rollout._warn_unlimited.cache_clear()
    return fake


def engine(context: Any, **changes: Any) -> Any:
    arguments = {
        "policy": Policy(tiny_config(fps=10.0)),
        "robot_wrapper": SimpleNamespace(robot_type="conveyor"),
        "dataset_features": {"observation.state": {"names": NAMES}},
        "ordered_action_keys": NAMES,
        "fps": 10,
        **changes,
    }
    return context.create_inference_engine(None, **{k: v for k, v in arguments.items() if v is not None})


def test_a_configuration_of_ours_is_what_enters_whatever_was_imported_first(context: SimpleNamespace):
    original = context.create_inference_engine
    tiny_config()
    entered = context.create_inference_engine
    assert entered is not original and entered.__wrapped__ is original
    tiny_config()
    assert context.create_inference_engine is entered, "once"
    assert engine(context).get_action({})[X] == 1


def test_other_policies_get_their_engine_as_it_is(context: SimpleNamespace):
    enter_rollout()
    theirs = engine(context, policy=SimpleNamespace(config=SimpleNamespace(type="act")))
    assert theirs.get_action({})[X] == 5 and "get_action" not in vars(theirs)


@pytest.mark.parametrize("ending", ["reset", "pause", "stop"])
def test_an_episode_begins_where_the_joints_are(ending: str, context: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    enter_rollout()
    started: list[dict[str, float]] = []
    stock = rollout.ActionLimiter.start_from
    monkeypatch.setattr(rollout.ActionLimiter, "start_from", lambda self, at: (started.append(at), stock(self, at))[1])
    ours = engine(context)

    def act(x: float) -> None:
        assert ours.get_action({"observation.state": torch.full((len(NAMES),), x)})[X] == 1

    assert ours.get_action(None) is None and not started, "no command, no beginning"
    act(0.1), act(0.2)
    getattr(ours, ending)()
    act(0.3), act(0.4)
    assert ours.told == [ending] and [at["left_x.pos"] for at in started] == pytest.approx([0.1, 0.3])


def test_another_lerobot_is_told_loudly_and_once(context: SimpleNamespace, caplog: pytest.LogCaptureFixture):
    enter_rollout()
    assert engine(context, ordered_action_keys=None).get_action({})[X] == 5
    assert "ACTION LIMITS DO NOT ACT" in caplog.text and "without ordered_action_keys" in caplog.text
    caplog.clear()
    del context.create_inference_engine
    tiny_config(), tiny_config()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "makes its inference engines elsewhere" in warnings[0].getMessage()


def test_the_joints_own_limits_are_those_of_the_robot_that_a_policy_of_several_drives(
    context: SimpleNamespace, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="lerobot_internvla.serving")
    rows = {name: Row(get_embodiment(name), 20.0) for name in ("aloha", "conveyor")}
    config = tiny_config(fps=None, foresight_interval_s=0.5, embodiments={n: row.to_dict() for n, row in rows.items()})
    tiny_config()
    ours = engine(context, policy=Policy(config, rows))
    assert ours.get_action({})[X] == 1 and "of robot conveyor of the policy" in caplog.text
    assert "The robot runs at 10 Hz and the policy was trained at 20 Hz" in caplog.text
    # Two of one kind: the policy itself refuses at its first observation, where LeRobot stops the robot in good order.
    rows = {name: Row(replace(get_embodiment("conveyor"), name=name), 10.0) for name in ("one", "other")}
    config = tiny_config(fps=None, foresight_interval_s=0.5, embodiments={n: row.to_dict() for n, row in rows.items()})
    assert engine(context, policy=Policy(config, rows)).get_action({})[X] == 1, "the preset of the robot's type"
