"""Cameras find their slots by an explicit map, alone, or by a known name; never by a guess."""

import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_internvla.camera_slots import KNOWN_NAMES, SLOT_OF_NAME, resolve_camera_slots, short_name
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import CAMERA_SLOTS


def features(*names: str) -> list[str]:
    return [f"observation.images.{name}" for name in names]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (features("cam_high", "cam_left_wrist", "cam_right_wrist"), ["head", "left_wrist", "right_wrist"]),  # ALOHA
        (["images.rgb.head", "images.rgb.hand_left", "images.rgb.hand_right"], ["head", "left_wrist", "right_wrist"]),
        (features("head", "hand_left", "hand_right"), ["head", "left_wrist", "right_wrist"]),  # A2D
        (["images.rgb.head", "images.rgb.hand"], ["head", "left_wrist"]),  # Franka
        (features("image", "image2"), ["head", "left_wrist"]),  # LIBERO
        (features("head_rgb", "left_wrist_rgb", "right_wrist_rgb"), ["head", "left_wrist", "right_wrist"]),  # R1 Lite
        (["observation.image"], ["head"]),  # PushT
        (features("head_camera", "left_camera", "right_camera"), ["head", "left_wrist", "right_wrist"]),  # RoboTwin
        (features("top", "wrist"), ["head", "left_wrist"]),
        (features("Front", "wrist"), ["head", "left_wrist"]),
    ],
)
def test_known_robots_need_no_map(keys: list[str], expected: list[str]) -> None:
    slots = resolve_camera_slots(keys)
    assert slots == dict(zip(expected, keys, strict=True))
    shuffled = random.Random(0).sample(keys, len(keys))
    assert list(resolve_camera_slots(shuffled).items()) == list(slots.items()), "order of the features mattered"


def test_the_slots_themselves_are_known_names_and_no_name_means_two_slots() -> None:
    assert all(SLOT_OF_NAME[slot] == slot for slot in CAMERA_SLOTS)
    assert len(SLOT_OF_NAME) == sum(len(names) for names in KNOWN_NAMES.values())
    assert all(name == name.lower() for name in SLOT_OF_NAME)


@pytest.mark.parametrize("name", ["webcam", "wrist", "camera1"])
def test_a_lone_camera_is_the_head(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert resolve_camera_slots(features(name)) == {"head": f"observation.images.{name}"}
    assert f"head = observation.images.{name}" in caplog.text


def test_an_explicit_map_takes_full_and_short_names() -> None:
    keys = features("webcam", "left", "right")
    explicit = {"right_wrist": "right", "head": "observation.images.webcam"}
    slots = resolve_camera_slots(keys, explicit)
    assert list(slots.items()) == [("head", keys[0]), ("right_wrist", keys[2])]


def test_an_explicit_map_outranks_names_and_loneliness() -> None:
    keys = features("top", "wrist")
    assert resolve_camera_slots(keys, {"head": "wrist"}) == {"head": keys[1]}
    with pytest.raises(InternVLAError, match="no 'head'"):
        resolve_camera_slots(keys[:1], {"left_wrist": "top"})


def test_an_empty_map_is_no_map() -> None:
    assert resolve_camera_slots(features("top"), {}) == resolve_camera_slots(features("top"), None)


def test_unused_cameras_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        resolve_camera_slots(features("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"))
    assert "Not used: observation.images.cam_low." in caplog.text


def test_two_claimants_are_refused_whatever_their_order() -> None:
    for keys in (features("laptop", "phone", "wrist"), features("phone", "laptop", "wrist")):
        with pytest.raises(InternVLAError, match=f"{keys[0]} and {keys[1]} could each be 'head'") as caught:
            resolve_camera_slots(keys)
        # The suggested flag decides the wrist, which is clear, and leaves the head to the reader.
        assert '{"head": "observation.images.<...>", "left_wrist": "observation.images.wrist"}' in str(caught.value)


def test_an_unknown_name_is_refused_while_it_could_fill_a_free_slot() -> None:
    with pytest.raises(InternVLAError, match=r"names observation.images.left, observation.images.right do not tell"):
        resolve_camera_slots(features("top", "left", "right"))


def test_the_message_lists_both_sides_and_the_flag() -> None:
    with pytest.raises(InternVLAError) as caught:
        resolve_camera_slots(features("eye", "nose"))
    message = str(caught.value)
    assert "Cameras: observation.images.eye, observation.images.nose." in message
    assert "Slots: head, left_wrist, right_wrist" in message
    assert """--policy.camera_slots='{"head": "observation.images.<...>"}'""" in message


def test_the_message_keeps_what_is_already_clear() -> None:
    with pytest.raises(InternVLAError) as caught:
        resolve_camera_slots(features("top", "wrist", "side"))
    flag = """--policy.camera_slots='{"head": "observation.images.top", "left_wrist": "observation.images.wrist"}'"""
    assert flag in str(caught.value)


def test_wrists_without_a_head_are_refused() -> None:
    with pytest.raises(InternVLAError, match="no camera for slot 'head'"):
        resolve_camera_slots(features("left_wrist", "right_wrist"))


def test_every_mistake_in_a_map_is_reported_at_once() -> None:
    keys = features("top", "wrist")
    explicit = {"left_wirst": "wrist", "right_wrist": "topp", "left_wrist": "top", "head": "top"}
    with pytest.raises(InternVLAError) as caught:
        resolve_camera_slots(keys, explicit)
    message = str(caught.value)
    assert "there is no slot 'left_wirst' (did you mean 'left_wrist'?)" in message
    assert "there is no camera 'topp' (did you mean 'top'?)" in message
    assert "camera 'observation.images.top' is given to both 'left_wrist' and 'head'" in message


def test_a_short_name_of_two_cameras_is_refused() -> None:
    keys = ["observation.images.top", "images.rgb.top"]
    with pytest.raises(InternVLAError, match=r"'top' can be observation.images.top or images.rgb.top"):
        resolve_camera_slots(keys, {"head": "top"})
    assert resolve_camera_slots(keys, {"head": "images.rgb.top"}) == {"head": "images.rgb.top"}


def test_no_camera_is_refused() -> None:
    with pytest.raises(InternVLAError, match="There is no camera"):
        resolve_camera_slots([])


@given(st.lists(st.sampled_from([*SLOT_OF_NAME, "cam_low", "side", "camera1"]), min_size=1, max_size=5, unique=True))
def test_whatever_is_assigned_was_known(names: list[str]) -> None:
    try:
        slots = resolve_camera_slots(features(*names))
    except InternVLAError:
        return
    assert 1 <= len(slots) <= 3
    assert "head" in slots
    assert len(set(slots.values())) == len(slots)
    if len(names) > 1:
        assert all(SLOT_OF_NAME[short_name(key)] == slot for slot, key in slots.items())
        known = {name for name in names if name in SLOT_OF_NAME}
        assert known == {short_name(key) for key in slots.values()}, "a known camera was dropped"
