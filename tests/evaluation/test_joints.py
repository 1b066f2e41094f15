"""Names and units of actions: known, agreed on, or honestly unknown."""

import pytest

from lerobot_internvla.embodiments.registry import get_embodiment
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.evaluation.joints import describe_joints


def features(names, state_names=None):
    state_names = names if state_names is None else state_names
    return {
        "action": {"dtype": "float32", "shape": (len(names),), "names": list(names)},
        "observation.state": {"dtype": "float32", "shape": (len(state_names),), "names": list(state_names)},
    }


SO101 = get_embodiment("so101").action_names


def test_units_come_from_the_robot_type():
    found = describe_joints(features(get_embodiment("conveyor").action_names), robot_type="conveyor")
    assert [joint.unit for joint in found] == ["scene", "scene", "0..1"] * 2
    assert found.notes == ("Units are those of embodiment conveyor.",)


def test_robots_that_share_a_type_are_not_told_apart_where_they_agree():
    """LeRobot 0.6.1 records SO-100 and SO-101 alike."""
    found = describe_joints(features(SO101), robot_type="so_follower")
    assert [joint.unit for joint in found] == ["deg"] * 5 + ["0..100"]
    assert found.notes == ("Units are those of embodiment so100 or so101.",)


@pytest.mark.parametrize("robot_type", [None, "nobodys_robot", "conveyor"])
def test_units_of_other_robots_are_unknown_and_said_to_be(robot_type):
    found = describe_joints(features(SO101), robot_type=robot_type)
    assert {joint.unit for joint in found} == {"unknown"}
    assert found.notes[0].startswith("Units are unknown")


def test_numbers_that_cannot_have_the_unit_are_noted():
    stats = {"action": {"min": [-99.0] * 6, "max": [99.0] * 5 + [140.0]}}
    found = describe_joints(features(SO101), robot_type="so101", stats=stats)
    assert any(note.startswith("Doubtful") and "gripper.pos" in note for note in found.notes)


def test_a_named_embodiment_must_fit():
    assert describe_joints(features(SO101), robot_type=None, embodiment="so101").joints[0].unit == "deg"
    with pytest.raises(InternVLAError, match="not those of embodiment 'conveyor'"):
        describe_joints(features(SO101), robot_type=None, embodiment="conveyor")


def test_the_state_of_a_joint_is_found_by_name_and_never_guessed():
    found = describe_joints(features(["b", "a", "c"], state_names=["a", "b", "x", "y"]), robot_type=None)
    assert [joint.state_dim for joint in found] == [1, 0, None]
    assert "no c" in found.notes[-1]


def test_without_names_positions_are_compared_and_that_is_said():
    unnamed = features(["a", "b"])
    for feature in unnamed.values():
        feature["names"] = None
    found = describe_joints(unnamed, robot_type=None)
    assert [(joint.name, joint.state_dim) for joint in found] == [("dim_0", 0), ("dim_1", 1)]
    assert any("does not name" in note for note in found.notes) and "dim i" in found.notes[-1]


def test_a_dataset_without_actions_is_refused():
    with pytest.raises(InternVLAError, match="no feature 'action'"):
        describe_joints({"observation.state": features("a")["observation.state"]}, robot_type=None)
