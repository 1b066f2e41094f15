"""Which of a robot's cameras is head, left_wrist, right_wrist.

The model has three canonical views; datasets name their cameras as they like. Three ways to bring them together, in
this order: an explicit map, a single camera (always head), the table of known names. Everything else is an error that
lists both sides: a guess here would train a policy on swapped wrists without a word.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import CAMERA_SLOTS

logger = logging.getLogger(__name__)

KNOWN_NAMES: dict[str, tuple[str, ...]] = {
    "head": (
        # The checkpoint's own embodiments: Genie-1, A2D, ARX, Piper, Franka (head), R1 Lite, ALOHA, LIBERO, PushT.
        *("head", "head_rgb", "cam_high", "image"),
        # LeRobot tutorials and community datasets; RoboTwin; robosuite; openpi.
        *("head_camera", "cam_head", "top", "cam_top", "top_camera", "overhead", "front", "cam_front", "front_camera"),
        *("laptop", "phone", "base", "base_0_rgb", "agentview", "agentview_image", "agentview_rgb"),
    ),
    "left_wrist": (
        *("left_wrist", "left_wrist_rgb", "cam_left_wrist", "hand_left"),
        *("left_camera", "left_hand", "wrist_left", "left_wrist_camera", "left_wrist_0_rgb"),
        # One arm: its only wrist camera takes the first wrist view, as Franka and LIBERO do in the released checkpoint.
        *("hand", "image2", "wrist", "cam_wrist", "wrist_camera", "wrist_image", "hand_camera", "gripper"),
        *("eye_in_hand", "robot0_eye_in_hand", "robot0_eye_in_hand_image", "eye_in_hand_rgb"),
    ),
    "right_wrist": (
        *("right_wrist", "right_wrist_rgb", "cam_right_wrist", "hand_right"),
        *("right_camera", "right_hand", "wrist_right", "right_wrist_camera", "right_wrist_0_rgb"),
    ),
}
"""Camera names (short, lower case) that mean one slot everywhere we know of.

Bare "left" and "right" are absent on purpose, they are scene views as often as wrist views; so are numbered names
(camera1, cam0), which mean nothing. Sources: the embodiments of the released checkpoint; LeRobot 0.6.1's environments,
examples and tests; the public datasets those name.
"""

SLOT_OF_NAME: dict[str, str] = {name: slot for slot, names in KNOWN_NAMES.items() for name in names}

KEY_PREFIXES = ("observation.images.rgb.", "observation.images.", "images.rgb.", "observation.")


def short_name(camera_key: str) -> str:
    """Without the feature prefix: "observation.images.top" -> "top", "observation.image" -> "image"."""
    for prefix in KEY_PREFIXES:
        if camera_key.startswith(prefix):
            return camera_key.removeprefix(prefix)
    return camera_key


def resolve_camera_slots(camera_keys: Sequence[str], explicit: Mapping[str, str] | None = None) -> dict[str, str]:
    """Assign 1 to 3 cameras to the slots head, left_wrist, right_wrist.

    Args:
        camera_keys: feature keys of all RGB cameras that the dataset, environment or robot offers.
        explicit: slot -> feature key or short name ("top" for "observation.images.top"). None or empty: a lone camera
            becomes head, whatever its name, and several are assigned by ``KNOWN_NAMES``.

    Returns:
        slot -> feature key, in the order of ``CAMERA_SLOTS``; absent slots are missing cameras. Cameras that end up
        unused are named in a log line.

    Raises:
        InternVLAError: the cameras cannot be assigned without guessing (two claim one slot; head has none; a camera of
            unknown name could belong to a slot that is still free), or the explicit map names an unknown slot, an
            absent camera, or one camera twice. All problems in one message.
    """
    keys = list(dict.fromkeys(camera_keys))
    if not keys:
        raise InternVLAError(
            "There is no camera: expected 1 to 3 image features such as 'observation.images.top'. "
            "Record the dataset with a camera, or add them to policy.input_features."
        )
    if explicit:
        slots, problems = _follow_explicit_map(keys, explicit)
    elif len(keys) == 1:
        # No guess is involved: the model requires a head view, and there is one view.
        slots, problems = {"head": keys[0]}, []
    else:
        slots, problems = _match_known_names(keys)
    if "head" not in slots and not problems:
        problems.append("no camera for slot 'head', which the model requires")
    if problems:
        raise InternVLAError(_explain(problems, keys, slots))

    slots = {slot: slots[slot] for slot in CAMERA_SLOTS if slot in slots}
    unused = [key for key in keys if key not in slots.values()]
    logger.info(
        "Camera slots: %s.%s",
        ", ".join(f"{slot} = {key}" for slot, key in slots.items()),
        f" Not used: {', '.join(unused)}." if unused else "",
    )
    return slots


def _follow_explicit_map(keys: list[str], explicit: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    slots: dict[str, str] = {}
    problems: list[str] = []
    for slot, wanted in explicit.items():
        # A full key wins over an equal short name of another camera.
        matches = [key for key in keys if key == wanted] or [key for key in keys if short_name(key) == wanted]
        if slot not in CAMERA_SLOTS:
            problems.append(f"there is no slot {slot!r}{_did_you_mean(slot, CAMERA_SLOTS)}")
        if not matches:
            candidates = [*keys, *(short_name(key) for key in keys)]
            problems.append(f"there is no camera {wanted!r}{_did_you_mean(wanted, candidates)}")
        elif len(matches) > 1:
            problems.append(f"{wanted!r} can be {' or '.join(matches)}; write the full key")
        elif slot in CAMERA_SLOTS:
            taken = [other for other, key in slots.items() if key == matches[0]]
            if taken:
                problems.append(f"camera {matches[0]!r} is given to both {taken[0]!r} and {slot!r}")
            slots[slot] = matches[0]
    if "head" not in explicit:
        problems.append("the map has no 'head', which the model requires")
    return slots, problems


def _match_known_names(keys: list[str]) -> tuple[dict[str, str], list[str]]:
    claims: dict[str, list[str]] = {slot: [] for slot in CAMERA_SLOTS}
    unknown: list[str] = []
    for key in keys:
        slot = SLOT_OF_NAME.get(short_name(key).lower())
        (claims[slot] if slot else unknown).append(key)
    slots = {slot: claimants[0] for slot, claimants in claims.items() if len(claimants) == 1}
    problems = [
        f"{' and '.join(claimants)} could each be {slot!r}" for slot, claimants in claims.items() if len(claimants) > 1
    ]
    free = [slot for slot, claimants in claims.items() if not claimants]
    if unknown and free:
        problems.append(
            f"the name{'s' if len(unknown) > 1 else ''} {', '.join(unknown)} "
            f"{'do' if len(unknown) > 1 else 'does'} not tell which slot is meant ({', '.join(free)} free)"
        )
    return slots, problems


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def _explain(problems: list[str], keys: list[str], slots: dict[str, str]) -> str:
    example = {"head": slots.get("head", "observation.images.<...>"), **slots}
    return (
        f"Cannot assign the cameras: {'; '.join(problems)}. "
        f"Cameras: {', '.join(keys)}. Slots: {', '.join(CAMERA_SLOTS)} (head is required, the others are optional). "
        f"Say which is which, for example --policy.camera_slots='{json.dumps(example)}'; "
        "cameras that you leave out are not used."
    )
