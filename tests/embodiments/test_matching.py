"""A dataset fits its robot, or everything that does not is said in one message; nobody guesses."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from embodiments.features import Features, camera, dataset_of, numbers, unnamed
from lerobot_internvla.embodiments.matching import examine, infer_embodiment, match_features, unit_doubts
from lerobot_internvla.embodiments.registry import embodiment_names, get_embodiment
from lerobot_internvla.errors import InternVLAError

SO101 = get_embodiment("so101")
JOINTS = SO101.action_names
TOP, WRIST = "observation.images.top", "observation.images.wrist"


def cameras_of(name: str, keys: Sequence[str], **arguments: object) -> dict[str, str]:
    robot = get_embodiment(name)
    return dict(match_features(robot, dataset_of(robot, keys), needs_actions=bool(robot.action), **arguments).cameras)


def problems_of(features: Features, name: str = "so101", **arguments: object) -> str:
    with pytest.raises(InternVLAError) as raised:
        match_features(get_embodiment(name), features, **arguments)
    return str(raised.value)


# ------------------------------------------------------------------------------------------------- state and action


@pytest.mark.parametrize("name", [name for name in embodiment_names() if name != "human_video"])
def test_a_dataset_of_the_robot_fits_with_keys_in_order(name: str):
    robot = get_embodiment(name)
    keys = match_features(robot, dict(reversed(dataset_of(robot).items())))
    assert keys.state_keys == tuple(part.key for part in robot.state)
    assert keys.action_keys == tuple(part.key for part in robot.action)
    assert keys.cameras == {"head": TOP}


def test_all_problems_come_at_once():
    features = {"observation.state": unnamed(7), "actoin": numbers(*JOINTS), "observation.images.side": camera(),
                "observation.images.back": camera()}  # fmt: skip
    message = problems_of(features)
    assert "observation.state: expected 6 dims (shoulder_pan.pos, " in message and "the dataset has 7" in message
    assert "action feature 'action' (6 dims) is not in the dataset (did you mean 'actoin'?)" in message
    assert "there is no head camera, which the model requires" in message and "observation.images.side" in message
    assert "internvla-embodiments check" in message and "internvla-embodiments new" in message
    assert message.count("\n  - ") == 3


def test_the_same_joints_in_another_order_are_refused_by_name():
    features = {**dataset_of(SO101), "action": numbers(*reversed(JOINTS))}
    message = problems_of(features)
    assert "action: the same dims in another order" in message
    assert "Dataset: gripper.pos, wrist_roll.pos" in message
    robot = get_embodiment("aloha")  # names are not checked there, but these are its own
    swapped = robot.action_names[7:] + robot.action_names[:7]
    assert "another order" in problems_of({**dataset_of(robot), "action": numbers(*swapped)}, "aloha")


def test_other_names_are_refused_where_names_are_known():
    features = {**dataset_of(SO101), "observation.state": numbers("x", "y", "z", "roll", "pitch", "gripper.pos")}
    message = problems_of(features)
    assert "observation.state: other names, dim 0 is 'shoulder_pan.pos' here and 'x' in the dataset" in message
    assert "dim 5" not in message
    loose = replace(SO101, names_are_checked=False)
    assert match_features(loose, features).state_keys == ("observation.state",)
    assert examine(loose, features).parts[0].names == "not compared"


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        ([name.removesuffix(".pos").upper() for name in JOINTS], "the same"),
        ([f"main_{name.removesuffix('.pos')}" for name in JOINTS], "the same"),
        ({"motors": list(JOINTS)}, "the same"),
        ([list(JOINTS)], "the same"),
        ([f"motor_{i}" for i in range(6)], "not named"),
        ([f"motor_{i}" for i in range(1, 7)], "not named"),
        (["state"], "not named"),
        (None, "not named"),
    ],
)
def test_spellings_of_names(names: object, verdict: str):
    features = {**dataset_of(SO101), "action": {"dtype": "float32", "shape": (6,), "names": names}}
    match_features(SO101, features)
    assert examine(SO101, features).parts[1].names == verdict


def test_numbered_names_in_another_order_are_names():
    names = [f"motor_{i}" for i in (0, 1, 2, 3, 5, 4)]
    assert "other names" in problems_of({**dataset_of(SO101), "action": numbers(*names)})


def test_a_picture_is_not_a_state():
    assert "expected numbers of shape (6,), got video of shape (48, 64, 3)" in problems_of(
        {**dataset_of(SO101), "observation.state": camera()}
    )


def test_a_source_without_actions_trains_foresight_only():
    video = {"observation.images.camera": camera()}
    message = problems_of(video, "human_video")
    assert "'human_video' has no actions" in message and "supervision: foresight" in message
    keys = match_features(get_embodiment("human_video"), video, needs_actions=False)
    assert (keys.state_keys, keys.action_keys, keys.cameras) == ((), (), {"head": "observation.images.camera"})
    # A robot's dataset may have lost its actions, or hold anything under these keys: nobody looks.
    keys = match_features(SO101, {**video, "action": unnamed(3)}, needs_actions=False, needs_state=False)
    assert (keys.state_keys, keys.action_keys) == ((), ())


# ---------------------------------------------------------------------------------------------------------- cameras


@pytest.mark.parametrize(
    ("robot", "keys", "slots"),
    [
        ("so101", [WRIST, TOP], {"head": TOP, "left_wrist": WRIST}),
        # Best first: "top" before "front", which then is nothing, for it cannot be a wrist.
        ("so101", ["observation.images.front", TOP], {"head": TOP}),
        # A name that the preset does not have and everybody knows.
        ("so101", ["observation.images.agentview", "observation.images.eye_in_hand"],
         {"head": "observation.images.agentview", "left_wrist": "observation.images.eye_in_hand"}),
        # The only camera, whatever its name: the model requires a head.
        ("so101", ["observation.images.nobody_knows"], {"head": "observation.images.nobody_knows"}),
        ("so101", ["observation.image"], {"head": "observation.image"}),
        # The robot has no right wrist, so the third camera cannot be it.
        ("so101", [TOP, WRIST, "observation.images.right_wrist"], {"head": TOP, "left_wrist": WRIST}),
        # The preset's word wins over the generic one: "gripper" alone would be a wrist, "image" a head.
        ("libero_panda", ["observation.images.image2", "observation.images.image"],
         {"head": "observation.images.image", "left_wrist": "observation.images.image2"}),
        # InternData's spelling, and LeRobot's of the same cameras.
        ("genie1", ["images.rgb.hand_right", "images.rgb.hand_left", "images.rgb.head"],
         {"head": "images.rgb.head", "left_wrist": "images.rgb.hand_left", "right_wrist": "images.rgb.hand_right"}),
        ("genie1", ["observation.images.head", "observation.images.hand_right"],
         {"head": "observation.images.head", "right_wrist": "observation.images.hand_right"}),
        ("aloha", [f"observation.images.cam_{name}" for name in ("low", "right_wrist", "left_wrist", "high")],
         {"head": "observation.images.cam_high", "left_wrist": "observation.images.cam_left_wrist",
          "right_wrist": "observation.images.cam_right_wrist"}),
    ],
)  # fmt: skip
def test_cameras_find_their_slots(robot: str, keys: list[str], slots: dict[str, str]):
    assert cameras_of(robot, keys) == slots
    assert list(cameras_of(robot, keys)) == [slot for slot in ("head", "left_wrist", "right_wrist") if slot in slots]


def test_a_camera_that_could_be_a_missing_one_is_not_dropped_in_silence():
    message = problems_of(dataset_of(SO101, [TOP, "observation.images.side"]))
    assert "the name observation.images.side does not tell whether it is left_wrist" in message
    assert f"cameras: {{head: {TOP}, left_wrist: <camera>}}" in message


def test_two_cameras_of_one_short_name_are_refused():
    message = problems_of(dataset_of(SO101, [TOP, "images.rgb.top"]))
    assert f"camera head: {TOP} and images.rgb.top are both 'top'" in message


def test_the_users_map_is_taken_as_it_is():
    keys = [TOP, WRIST, "observation.images.side"]
    assert cameras_of("so101", keys, camera_map={"head": "side"}) == {"head": "observation.images.side"}
    assert cameras_of("so101", keys, camera_map={"head": "top", "right_wrist": WRIST})["right_wrist"] == WRIST
    message = problems_of(dataset_of(SO101, keys), camera_map={"head": "topp", "hand": "wrist"})
    assert "there is no camera 'topp'" in message and "there is no slot 'hand'" in message
    assert f"The dataset has {', '.join(keys)}" in message and "--policy." not in message


def test_no_camera_and_depth_maps():
    assert "there is no camera" in problems_of(dataset_of(SO101, []))
    features = dataset_of(SO101, [TOP, "observation.images.top_depth", "observation.images.wrist"])
    features["observation.images.top_depth"]["shape"] = (48, 64, 1)
    features["observation.images.wrist"]["info"] = {"is_depth_map": True}
    found = examine(SO101, features)
    assert found.features.cameras == {"head": TOP} and not found.unused_cameras


# --------------------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize(
    ("robot_type", "name"),
    [("so101_follower", "so101"), ("SO-100", "so100"), ("koch_follower", "koch"), ("ARX Lift-2", "arx_lift2"),
     ("AgileX Split Aloha", "split_aloha"), ("AgiBot_A2D", "a2d"), ("conveyor", "conveyor")],
)  # fmt: skip
def test_a_robot_type_tells_the_robot(robot_type: str, name: str):
    assert infer_embodiment(robot_type, dataset_of(get_embodiment(name))).name == name


def test_features_decide_between_robots_of_one_type():
    for name in ("panda", "libero_panda"):
        assert infer_embodiment("panda", dataset_of(get_embodiment(name))).name == name


def test_two_robots_that_fit_are_not_guessed_between():
    with pytest.raises(
        InternVLAError, match=r"'so_follower' can be 'so100' or 'so101'.*nothing in it tells which"
    ) as raised:
        infer_embodiment("so_follower", dataset_of(SO101))
    assert "embodiment: so100" in str(raised.value)


def test_a_known_type_that_fits_none_of_its_robots_says_why():
    with pytest.raises(InternVLAError, match="fits none") as raised:
        infer_embodiment("panda", {"observation.state": unnamed(9), "action": unnamed(9)})
    message = str(raised.value)
    assert "not 'panda'" in message and "not 'libero_panda'" in message and "the dataset has 9" in message
    assert "internvla-embodiments new" in message


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_no_robot_type(nothing: str | None):
    with pytest.raises(InternVLAError, match=r"does not say which robot recorded it.*internvla-embodiments new"):
        infer_embodiment(nothing, dataset_of(SO101))


def test_an_unknown_robot_is_refused_with_the_way_to_add_it():
    with pytest.raises(InternVLAError, match=r"'so102_follower' \(did you mean 'so10.'\?\).*internvla-embodiments new"):
        infer_embodiment("so102_follower", dataset_of(SO101))
    with pytest.raises(InternVLAError, match=r"Unknown robot 'zzz'\. Known: a2d, aloha"):
        infer_embodiment("zzz", {})


# ------------------------------------------------------------------------------------------------------------- units


def doubts(name: str, low: Sequence[float], high: Sequence[float]) -> list[str]:
    return unit_doubts(get_embodiment(name), {"action": {"min": low, "max": high}})


def test_numbers_that_cannot_have_their_unit_are_doubted():
    assert doubts("so101", [-90] * 5 + [0], [90] * 5 + [100]) == []
    assert doubts("so101", [-1.5] * 5 + [0], [1.5] * 5 + [100]) == [
        "action: no joint goes beyond 1.5 degrees. Radians?"
    ]
    (doubt,) = doubts("koch", [-150] + [-90] * 4 + [0], [90] * 5 + [102])
    assert doubt == "action: shoulder_pan.pos runs from -150 to 90, which is not '-100..100'"
    assert len(doubts("so101", [-90] * 5 + [-20], [90] * 4 + [800, 100])) == 2
    rad = replace(
        SO101, action=tuple(replace(p, dims=tuple(replace(d, unit="rad") for d in p.dims)) for p in SO101.action)
    )
    assert len(unit_doubts(rad, {"action": {"min": [-90] * 6, "max": [90] * 6}})) == 6
    assert unit_doubts(SO101, None) == doubts("so101", [0], [1]) == []
