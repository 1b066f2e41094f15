"""An embodiment is a YAML file: it reads back as it was, and a wrong one is refused with every line."""

import json
import pickle
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from lerobot_internvla.embodiments.spec import Dim, Embodiment, Part, load_embodiment
from lerobot_internvla.errors import InternVLAError

ARM = Embodiment(
    name="my_arm",
    title="My arm",
    robot_types=("my_arm_follower",),
    state=(
        Part("states.joint", (Dim("shoulder", "deg"), Dim("elbow", "deg"))),
        Part("states.gripper", (Dim("gripper", "0..1"),)),
    ),
    action=(
        Part("actions.joint", (Dim("shoulder", "deg", True), Dim("elbow", "deg", True))),
        Part("actions.gripper", (Dim("gripper", "0..1", False),)),
    ),
    cameras={"head": ("top", "front"), "left_wrist": ("wrist",)},
    gripper="0 is closed, 1 is open",
    fps=30.0,
    source="datasheet",
)

FILE = """\
# A comment.
name: my_arm
title: My arm
robot_types: [my_arm_follower]
fps: 30
cameras:
  head: [top, front]
  left_wrist: [wrist]
gripper: 0 is closed, 1 is open
source: datasheet
state:
  - key: states.joint
    dims:
      - {name: shoulder, unit: deg}
      - {name: elbow, unit: deg}
  - key: states.gripper
    dims:
      - {name: gripper, unit: 0..1}
action:
  - key: actions.joint
    dims:
      - {name: shoulder, unit: deg, relative: true}
      - {name: elbow, unit: deg, relative: true}
  - key: actions.gripper
    dims:
      - {name: gripper, unit: 0..1, relative: false}
"""


def load(tmp_path: Path, text: str) -> Embodiment:
    path = tmp_path / "my_arm.yaml"
    path.write_text(text)
    return load_embodiment(path)


def test_a_file_reads_as_the_values(tmp_path: Path):
    assert load(tmp_path, FILE) == ARM


def test_widths_names_and_mask_follow_the_order_of_parts_and_dims():
    assert ARM.state_names == ARM.action_names == ("shoulder", "elbow", "gripper")
    assert (ARM.state_dim, ARM.action_dim) == (3, 3)
    assert ARM.relative_mask == (True, True, False)


def test_it_survives_json_and_pickle_and_can_be_a_key():
    assert Embodiment.from_dict(json.loads(json.dumps(ARM.to_dict()))) == ARM
    other = replace(ARM, fps=None, names_are_checked=False)
    assert Embodiment.from_dict(json.loads(json.dumps(other.to_dict()))) == other != ARM
    assert pickle.loads(pickle.dumps(ARM)) == ARM
    assert len({ARM, replace(ARM), other}) == 2


def test_every_problem_of_a_file_is_listed_with_its_line(tmp_path: Path):
    broken = textwrap.dedent("""\
        name: My Arm
        titel: My arm
        robot_types: my_arm
        fps: 0
        cameras:
          front: [top]
          left_wrist: wrist
          right_wrist: [hand, hand]
        gripper: ""
        source: datasheet
        source: another
        names_are_checked: maybe
        state:
          - key: states.joint
            dims:
              - {name: shoulder, unit: degree}
              - {name: elbow}
          - {key: states.joint, dims: []}
        action:
          - key: actions.joint
            dims:
              - {name: shoulder, unit: deg}
              - {name: elbow, unit: deg, relative: 1}
              - {name: elbow, unit: deg, relative: true}
              - {name: 3, unit: deg, relative: true, limit: 5}
        """)
    with pytest.raises(InternVLAError) as raised:
        load(tmp_path, broken)
    message = str(raised.value)
    for expected in (
        "line 1: the file: 'title' is missing",
        "line 1: name: expected lower case letters, digits and underscores, such as my_robot; got 'My Arm'",
        "line 2: the file: unknown key 'titel' (did you mean 'title'?)",
        "line 3: robot_types: expected a list of texts",
        "line 4: fps: expected frames per second above 0, or null; got 0",
        "line 5: cameras: there is no head camera, which the model requires",
        "line 6: cameras.front: there is no such slot; there are head, left_wrist, right_wrist",
        "line 7: cameras.left_wrist: expected a list of feature keys or short names, best first; got 'wrist'",
        "line 8: cameras.right_wrist: camera 'hand' is already under right_wrist",
        "line 9: gripper: expected a text, got ''",
        "line 11: the key 'source' is already on line 10",
        "line 12: names_are_checked: expected true or false, got 'maybe'",
        "line 16: state[0].dims[0]: unknown unit 'degree'",
        "line 17: state[0].dims[1]: 'unit' is missing",
        "line 18: state[1].key: 'states.joint' is already listed",
        "line 18: state[1].dims: expected a list of dims, got []",
        "line 22: action[0].dims[0]: 'relative' is missing",
        "line 23: action[0].dims[1]: expected true or false for relative, got 1",
        "line 24: action[0].dims[2]: the name 'elbow' is already taken",
        "line 25: action[0].dims[3].limit: unknown key; known: name, unit, relative",
    ):
        assert expected in message, f"{expected!r} is not in:\n{message}"
    lines = [int(line.split(":")[0].split()[-1]) for line in message.splitlines()[1:]]
    assert lines == sorted(lines)


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "just text\n"])
def test_something_else_than_a_mapping_is_refused(tmp_path: Path, text: str):
    with pytest.raises(InternVLAError, match="expected a mapping with the keys name, title"):
        load(tmp_path, text)


def test_a_relative_dim_needs_the_same_joint_at_the_same_place_of_the_state(tmp_path: Path):
    swapped = FILE.replace("- {name: shoulder, unit: deg}\n      - {name: elbow, unit: deg}",
                           "- {name: elbow, unit: deg}\n      - {name: shoulder, unit: deg}")  # fmt: skip
    with pytest.raises(
        InternVLAError, match=r"line 22: action\[0\]\.dims\[0\]: 'shoulder' is relative, but dim 0 .*'elbow'"
    ):
        load(tmp_path, swapped)
    with pytest.raises(InternVLAError, match=r"dim 0 of the state is None"):
        replace(ARM, state=())


def test_range_and_speed_of_a_command_are_optional_and_travel_with_the_robot(tmp_path: Path):
    text = FILE.replace(
        "{name: shoulder, unit: deg, relative: true}",
        "{name: shoulder, unit: deg, relative: true, range: [-90, null], speed: 45}",
    )
    limited = load(tmp_path, text)
    shoulder, elbow, _ = limited.action_dims
    assert (shoulder.range, shoulder.speed, elbow.range, elbow.speed) == ((-90.0, None), 45.0, None, None)
    assert Embodiment.from_dict(json.loads(json.dumps(limited.to_dict()))) == limited != ARM
    dims = ARM.to_dict()["action"][0]["dims"]
    assert all(set(dim) == {"name", "unit", "relative"} for dim in dims), "as before where there are none"


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ("range: [1, 1]", "range: 1 is not below 1"),
        ("range: [2, -2]", "range: 2 is not below -2"),
        ("range: [null, null]", "bounds nothing"),
        ("range: [0, .nan]", "expected [lowest, highest] for range"),
        ("range: [.inf, null]", "expected [lowest, highest] for range"),
        ("range: [0, 1, 2]", "expected [lowest, highest] for range"),
        ("range: 90", "expected [lowest, highest] for range"),
        ("range: [yes, 2]", "expected [lowest, highest] for range"),
        ("speed: 0", "expected a number above 0 for speed"),
        ("speed: .inf", "expected a number above 0 for speed"),
        ("speed: fast", "expected a number above 0 for speed"),
        ("speed: -1, range: [0, 0]", "expected a number above 0 for speed"),
    ],
)
def test_limits_that_make_no_sense_are_refused_with_their_line(tmp_path: Path, limits: str, problem: str):
    text = FILE.replace(
        "{name: elbow, unit: deg, relative: true}", f"{{name: elbow, unit: deg, relative: true, {limits}}}"
    )
    with pytest.raises(InternVLAError) as raised:
        load(tmp_path, text)
    assert "line 23: action[0].dims[1]" in str(raised.value) and problem in str(raised.value)


def test_a_state_has_no_limits(tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"dims\[1\]\.range: unknown key"):
        load(tmp_path, FILE.replace("{name: elbow, unit: deg}", "{name: elbow, unit: deg, range: [0, 1]}"))


def test_values_made_in_python_are_checked_too():
    with pytest.raises(InternVLAError, match=r"state\[0\]\.dims\[0\]\.relative: unknown key"):
        replace(ARM, state=(Part("observation.state", (Dim("shoulder", "deg", relative=True),)),), action=())
    with pytest.raises(InternVLAError, match="'unit' is missing"):
        Embodiment.from_dict({**ARM.to_dict(), "state": [{"key": "x", "dims": [{"name": "a"}]}]})
