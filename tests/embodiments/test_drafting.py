"""A drafted file loads, its dataset fits it, and what the metadata cannot tell stays unknown."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embodiments.features import Features, camera, numbers, unnamed
from lerobot_internvla.embodiments.drafting import (
    RANGE_MARGIN,
    SPEED_MARGIN,
    Recorded,
    _draft_limits,
    draft_embodiment,
)
from lerobot_internvla.embodiments.matching import match_features
from lerobot_internvla.embodiments.spec import Embodiment, load_embodiment
from lerobot_internvla.errors import InternVLAError

CAMERAS = {"observation.images.top": camera(), "observation.images.wrist": camera()}


def draft(tmp_path: Path, features: Features, robot_type: str | None = "my_robot", **arguments: object) -> Embodiment:
    text = draft_embodiment("mine", features, robot_type=robot_type, fps=30.0, dataset="me/data", **arguments)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    robot = load_embodiment(path)
    match_features(robot, features, needs_actions=bool(robot.action))
    assert {dim.unit for part in (*robot.state, *robot.action) for dim in part.dims} <= {"unknown"}
    return robot


def test_names_cameras_and_relative_dims_come_from_the_dataset(tmp_path: Path):
    names = ("lift.pos", "Gripper.pos", "base.vel", "yes", "3: odd #name")
    robot = draft(tmp_path, {"observation.state": numbers(*names), "action": numbers(*names), **CAMERAS})
    assert robot.state_names == robot.action_names == names
    assert robot.relative_mask == (True, False, False, True, True)
    assert robot.cameras == {"head": ("top",), "left_wrist": ("wrist",)}
    assert robot.robot_types == ("my_robot",) and robot.fps == 30 and robot.names_are_checked
    assert robot.gripper == "unknown" and "not filled in" in robot.source


def test_limits_are_drafted_from_what_was_recorded_and_a_margin(tmp_path: Path):
    features = {"observation.state": unnamed(4), "action": numbers("lift", "still", "grip", "odd"), **CAMERAS}
    recorded = Recorded(
        low=(-98.2, 3.0, 0.0, float("nan")), high=(57.1, 3.0, 1.0, 9.0), fastest=(123.4, 0.0, 20.0, float("nan"))
    )
    lift, still, grip, odd = draft(tmp_path, features, recorded={"action": recorded}).action_dims
    assert lift.range == (-114.0, 73.0) and lift.speed == 186.0
    assert grip.range == (-0.1, 1.1) and grip.speed == 30.0
    assert (still.range, still.speed, odd.range, odd.speed) == (None,) * 4, "what never moved, what is no number"
    text = (tmp_path / "mine.yaml").read_text()
    assert "TODO review: they know no datasheet" in text and "No speed" not in text
    unseen = replace(recorded, fastest=None)
    assert draft(tmp_path, features, recorded={"action": unseen}).action_dims[0].speed is None
    assert "No speed: the recorded numbers are not on this computer" in (tmp_path / "mine.yaml").read_text()
    assert all(dim.range is None for dim in draft(tmp_path, features).action_dims)


@given(low=st.floats(-1e4, 1e4), width=st.floats(1e-3, 1e4))
def test_a_drafted_range_holds_what_was_recorded(low: float, width: float):
    recorded = Recorded(low=(low,), high=(low + width,), fastest=(width,))
    limits = _draft_limits(recorded, 0)
    margin = RANGE_MARGIN * (recorded.high[0] - low)
    assert limits["range"][0] <= low - 0.99 * margin and limits["range"][1] >= low + width + 0.99 * margin
    assert limits["range"][1] - limits["range"][0] <= 1.25 * width + 1e-9, "and not much more"
    assert SPEED_MARGIN * width * 0.999 <= limits["speed"] <= SPEED_MARGIN * width * 1.02


def test_dims_without_names_are_counted_and_never_relative(tmp_path: Path):
    robot = draft(tmp_path, {"observation.state": unnamed(3), "action": unnamed(2), **CAMERAS}, robot_type=None)
    assert robot.state_names == ("dim_0", "dim_1", "dim_2") and robot.relative_mask == (False, False)
    assert not robot.names_are_checked and robot.robot_types == ()


def test_several_features_keep_their_order_and_get_distinct_names(tmp_path: Path):
    features = {
        "action.right": unnamed(2), "action.left": unnamed(2), "observation.state.left": unnamed(2),
        "observation.state.right": unnamed(1), "observation.effort": unnamed(4), **CAMERAS,
    }  # fmt: skip
    robot = draft(tmp_path, features)
    assert [part.key for part in robot.action] == ["action.right", "action.left"]
    assert robot.state_names == ("left.dim_0", "left.dim_1", "right.dim_0")
    assert "not used: observation.effort" in (tmp_path / "mine.yaml").read_text()


def test_joints_at_other_places_are_not_relative(tmp_path: Path):
    features = {"observation.state": numbers("speed", "lift", "turn"), "action": numbers("lift", "turn"), **CAMERAS}
    assert draft(tmp_path, features).relative_mask == (False, False)


def test_a_video_without_a_robot(tmp_path: Path):
    robot = draft(tmp_path, {"observation.images.anything": camera()}, robot_type=None)
    assert (robot.state, robot.action, robot.cameras) == ((), (), {"head": ("anything",)})


def test_cameras_that_cannot_be_told_apart_are_asked_for(tmp_path: Path):
    features = {"action": unnamed(2), "observation.images.a": camera(), "observation.images.b": camera()}
    with pytest.raises(
        InternVLAError, match=r"do not tell which slot.*has observation\.images\.a.*--camera-map"
    ) as raised:
        draft(tmp_path, features)
    assert "--policy." not in str(raised.value)
    with pytest.raises(InternVLAError, match="There is no camera: expected"):
        draft(tmp_path, {"action": unnamed(2)})
    robot = draft(tmp_path, features, camera_map={"head": "b"})
    assert robot.cameras == {"head": ("b",)}
    assert "not used: observation.images.a" in (tmp_path / "mine.yaml").read_text()
