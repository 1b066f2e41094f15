"""Where a dataset keeps what an embodiment describes: its features against the robot's, every difference at once.

    embodiment = infer_embodiment(meta.robot_type, meta.features)     # or registry.get_embodiment("so101")
    keys = match_features(embodiment, meta.features)                  # SourceFeatures, or one message with all problems

``examine`` is the same comparison for people: what was found, key by key, whether it fits or not.

Names of dims are compared in lower case, without LeRobot's ending ".pos" and the beginning "main_" of its older
datasets. Where a dataset does not name its dims, or only numbers them ("motor_0", "motor_1"), widths are compared.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from lerobot_internvla.action_space import joint_names
from lerobot_internvla.camera_slots import SLOT_OF_NAME, resolve_camera_slots, short_name
from lerobot_internvla.embodiments.registry import HOW_TO_ADD, embodiments_called, unknown_robot
from lerobot_internvla.embodiments.spec import Embodiment, Part
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import CAMERA_SLOTS
from lerobot_internvla.yaml_lines import did_you_mean

Features = Mapping[str, Mapping[str, Any]]
"""LeRobot's ``meta.features``: key -> dtype, shape, names."""


@dataclass(frozen=True)
class SourceFeatures:
    """Feature keys of one dataset, in the embodiment's order."""

    state_keys: tuple[str, ...]
    action_keys: tuple[str, ...]
    cameras: Mapping[str, str] = field(hash=False)
    """Slot -> feature key, in the order head, left_wrist, right_wrist. A slot without a camera is absent."""


@dataclass(frozen=True)
class PartFinding:
    """One state or action feature of the robot, looked up in a dataset."""

    kind: Literal["state", "action"]
    part: Part
    width: int | None
    """Numbers that the dataset has under this key; None if it has no such key."""
    names: str
    """"the same", "not named", "not compared", "differ" or "-"."""
    problems: tuple[str, ...]


@dataclass(frozen=True)
class CameraFinding:
    """One camera slot."""

    slot: str
    key: str | None
    """Feature key; None: the slot stays empty."""
    why: str
    """How it was chosen, or why it stays empty."""


@dataclass(frozen=True)
class Examination:
    """An embodiment held against a dataset's features."""

    parts: tuple[PartFinding, ...]
    cameras: tuple[CameraFinding, ...]
    unused_cameras: tuple[str, ...]
    problems: tuple[str, ...]
    """Empty: the dataset fits."""
    features: SourceFeatures
    """Meaningful only without problems."""


def match_features(
    embodiment: Embodiment,
    features: Features,
    *,
    camera_map: Mapping[str, str] | None = None,
    needs_actions: bool = True,
    needs_state: bool = True,
) -> SourceFeatures:
    """Find the embodiment's state, actions and cameras in a dataset.

    Args:
        features: LeRobot's ``meta.features``.
        camera_map: slot -> feature key or short name. It replaces the embodiment's cameras as a whole: a slot that it
            does not list stays empty.
        needs_actions: False for a source that trains foresight only: its actions are not looked at, ``action_keys`` is
            empty.
        needs_state: the same for the state.

    Raises:
        InternVLAError: all problems at once: a missing key, another width, dims named otherwise or in another order, no
            actions although they are needed, a camera that is missing or cannot be told from others.
    """
    found = examine(embodiment, features, camera_map=camera_map, needs_actions=needs_actions, needs_state=needs_state)
    if found.problems:
        listed = "".join(f"\n  - {problem}" for problem in found.problems)
        raise InternVLAError(
            f"The dataset does not fit embodiment {embodiment.name!r} ({embodiment.title}):{listed}\n"
            "Look at both with `internvla-embodiments check <dataset>`. If it is another robot: " + HOW_TO_ADD
        )
    return found.features


def examine(
    embodiment: Embodiment,
    features: Features,
    *,
    camera_map: Mapping[str, str] | None = None,
    needs_actions: bool = True,
    needs_state: bool = True,
) -> Examination:
    """Compare without raising; arguments as for ``match_features``."""
    parts: list[PartFinding] = []
    problems: list[str] = []
    if needs_state:
        parts += [_find_part("state", part, embodiment, features) for part in embodiment.state]
    if needs_actions:
        parts += [_find_part("action", part, embodiment, features) for part in embodiment.action]
        if not embodiment.action:
            problems.append(
                f"{embodiment.name!r} has no actions, so nothing can be learnt about actions here; in a mixture write "
                "'supervision: foresight'"
            )
    problems += [problem for part in parts for problem in part.problems]
    cameras, unused, camera_problems = _find_cameras(embodiment, camera_keys(features), camera_map)
    return Examination(
        parts=tuple(parts),
        cameras=tuple(cameras),
        unused_cameras=tuple(unused),
        problems=(*problems, *camera_problems),
        features=SourceFeatures(
            state_keys=tuple(found.part.key for found in parts if found.kind == "state"),
            action_keys=tuple(found.part.key for found in parts if found.kind == "action"),
            cameras={found.slot: found.key for found in cameras if found.key is not None},
        ),
    )


def infer_embodiment(robot_type: str | None, features: Features) -> Embodiment:
    """The preset whose datasets carry this ``robot_type``.

    Several presets may share one (LeRobot 0.6.1 writes "so_follower" for an SO-100 and for an SO-101): then state and
    action features decide, and if they cannot, nobody guesses.

    Raises:
        InternVLAError: no robot type, an unknown one, or several presets; it lists the candidates and says how to add a
            robot.
    """
    if not (robot_type or "").strip():
        raise InternVLAError(
            "The dataset does not say which robot recorded it (no robot_type in meta/info.json). Name the embodiment: "
            "`embodiment: <name>` in a mixture file, `--embodiment <name>` on a command line; "
            "`internvla-embodiments list` has all names. " + HOW_TO_ADD
        )
    assert robot_type is not None
    candidates = embodiments_called(robot_type)
    if not candidates:
        raise unknown_robot(robot_type)
    if len(candidates) == 1:
        return candidates[0]
    misfits = {
        candidate.name: [
            problem
            for kind, parts in (("state", candidate.state), ("action", candidate.action))
            for part in parts
            for problem in _find_part(kind, part, candidate, features).problems
        ]
        for candidate in candidates
    }
    fitting = [candidate for candidate in candidates if not misfits[candidate.name]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " or ".join(repr(candidate.name) for candidate in fitting)
        raise InternVLAError(
            f"Robot type {robot_type!r} can be {names}, and the dataset fits all of them: nothing in it tells which. "
            f"Write `embodiment: {fitting[0].name}` in the mixture file, or `--embodiment {fitting[0].name}`."
        )
    listed = "".join(
        f"\n  - not {name!r} ({candidate.title}): {'; '.join(misfits[name])}"
        for name, candidate in ((candidate.name, candidate) for candidate in candidates)
    )
    raise InternVLAError(
        f"Robot type {robot_type!r} is known, but this dataset fits none of its embodiments:{listed}\n{HOW_TO_ADD}"
    )


def camera_keys(features: Features) -> tuple[str, ...]:
    """Keys of colour cameras; depth maps are left out."""
    return tuple(
        key
        for key, feature in features.items()
        if feature.get("dtype") in ("image", "video") and not _is_depth(feature)
    )


def unit_doubts(embodiment: Embodiment, stats: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    """Sentences about numbers that cannot have the unit which the embodiment gives them.

    The metadata of a dataset names no units: an SO-101 recorded with ``use_degrees=false`` looks like any other. Its
    smallest and largest numbers may tell. Nothing here is proof, so nothing is raised; a dataset without doubts may
    still be wrong (degrees that stay within -100..100).

    Args:
        stats: LeRobot's ``meta.stats``: key -> min, max per dim. None: nothing is known, no doubts.
    """
    doubts: list[str] = []
    for part in dict.fromkeys((*embodiment.state, *embodiment.action)):
        ranges = recorded_ranges((stats or {}).get(part.key), len(part.dims))
        for dim, (low, high) in zip(part.dims, ranges, strict=False):
            largest = max(abs(low), abs(high))
            bounds = re.fullmatch(r"(-?\d+)\.\.(\d+)", dim.unit)
            span = f"{part.key}: {dim.name} runs from {low:.4g} to {high:.4g}"
            if bounds:
                bottom, top = float(bounds[1]), float(bounds[2])
                slack = 0.05 * (top - bottom)
                if low < bottom - slack or high > top + slack:
                    doubts.append(f"{span}, which is not {dim.unit!r}")
            elif dim.unit == "rad" and largest > 4 * 3.1416:
                doubts.append(f"{span}: more than two turns, if these were radians. Degrees?")
            elif dim.unit == "deg" and largest > 720:
                doubts.append(f"{span}: more than two turns, if these were degrees")
        degrees = [
            max(abs(low), abs(high)) for dim, (low, high) in zip(part.dims, ranges, strict=False) if dim.unit == "deg"
        ]
        if degrees and max(degrees) < 6.5:
            doubts.append(f"{part.key}: no joint goes beyond {max(degrees):.3g} degrees. Radians?")
    return doubts


# ---------------------------------------------------------------------------------------------- state and action


def _find_part(kind: Any, part: Part, embodiment: Embodiment, features: Features) -> PartFinding:
    feature = features.get(part.key)
    if feature is None:
        numeric = [key for key, other in features.items() if _is_vector(other) and key not in _BOOKKEEPING]
        hint = did_you_mean(part.key, numeric)
        known = "" if hint else f"; it has {', '.join(numeric) or 'none'}"
        problem = f"{kind} feature {part.key!r} ({len(part.dims)} dims) is not in the dataset{hint}{known}"
        return PartFinding(kind, part, None, "-", (problem,))
    if not _is_vector(feature):
        problem = f"{part.key}: expected numbers of shape ({len(part.dims)},), got {_describe(feature)}"
        return PartFinding(kind, part, None, "-", (problem,))
    width = int(feature["shape"][0])
    expected = [dim.name for dim in part.dims]
    found = dim_names(feature)
    if width != len(expected):
        given = f" ({', '.join(found)})" if found else ""
        problem = f"{part.key}: expected {len(expected)} dims ({', '.join(expected)}), the dataset has {width}{given}"
        return PartFinding(kind, part, width, "-", (problem,))
    if found is None:
        return PartFinding(kind, part, width, "not named", ())
    ours, theirs = [plain_joint(name) for name in expected], [plain_joint(name) for name in found]
    if ours == theirs:
        return PartFinding(kind, part, width, "the same", ())
    if sorted(ours) == sorted(theirs):
        problem = (
            f"{part.key}: the same dims in another order. Embodiment: {', '.join(expected)}. "
            f"Dataset: {', '.join(found)}"
        )
        return PartFinding(kind, part, width, "differ", (problem,))
    if not embodiment.names_are_checked:
        return PartFinding(kind, part, width, "not compared", ())
    differing = ", ".join(
        f"dim {i} is {mine!r} here and {theirs_!r} in the dataset"
        for i, (mine, theirs_) in enumerate(zip(expected, found, strict=True))
        if plain_joint(mine) != plain_joint(theirs_)
    )
    return PartFinding(kind, part, width, "differ", (f"{part.key}: other names, {differing}",))


_BOOKKEEPING = frozenset(
    {"timestamp", "frame_index", "episode_index", "index", "task_index", "next.reward", "next.done", "next.success"}
)


def vector_keys(features: Features) -> tuple[str, ...]:
    """Keys of features that are a row of numbers, without LeRobot's own bookkeeping."""
    return tuple(key for key, feature in features.items() if _is_vector(feature) and key not in _BOOKKEEPING)


def dim_names(feature: Mapping[str, Any]) -> tuple[str, ...] | None:
    """One name per dim; None where a dataset has none, or none that says more than a position ("motor_0", ...)."""
    names: Any = feature.get("names")
    if isinstance(names, list) and [type(name) for name in cast("list[Any]", names)] == [list]:
        feature = {**feature, "names": names[0]}  # as datasets of LeRobot's format 2.0 have it
    found = joint_names(feature)
    return None if found is None or _only_numbered(found) else found


def _is_vector(feature: Mapping[str, Any]) -> bool:
    shape: Sequence[Any] = feature.get("shape") or ()
    return len(shape) == 1 and str(feature.get("dtype")).startswith(("float", "int", "uint", "bool"))


def _describe(feature: Mapping[str, Any]) -> str:
    return f"{feature.get('dtype')} of shape {tuple(feature.get('shape') or ())}"


def plain_joint(name: str) -> str:
    """A joint's name without what LeRobot's robots and older datasets add to it."""
    return name.lower().removeprefix("main_").removesuffix(".pos")


def in_another_order(names: Sequence[str] | None, others: Sequence[str] | None) -> bool:
    """Whether both name the same joints, one or more of them in another place."""
    if not names or not others:
        return False
    mine, theirs = [plain_joint(name) for name in names], [plain_joint(name) for name in others]
    return mine != theirs and sorted(mine) == sorted(theirs)


def _only_numbered(names: Sequence[str]) -> bool:
    """Names that say nothing but a position: "motor_0", "motor_1", ... or "1", "2", ..."""
    stems = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    found = [(stem[1], int(stem[2])) for stem in stems if stem is not None]
    return (
        len(names) > 1
        and len(found) == len(names)
        and all(found[i] == (found[0][0], found[0][1] + i) for i in range(len(found)))
    )


def recorded_ranges(stats: Mapping[str, Any] | None, width: int) -> list[tuple[float, float]]:
    """(lowest, highest) of each dim of a feature, from LeRobot's statistics of it; empty where these do not tell."""
    if stats is None or "min" not in stats or "max" not in stats:
        return []
    low, high = ([float(value) for value in stats[side]] for side in ("min", "max"))
    return list(zip(low, high, strict=False)) if len(low) == len(high) == width else []


# ----------------------------------------------------------------------------------------------------- cameras


def _find_cameras(
    embodiment: Embodiment, keys: tuple[str, ...], camera_map: Mapping[str, str] | None
) -> tuple[list[CameraFinding], list[str], list[str]]:
    """What each slot gets, the cameras that are left over, and the problems."""
    if not keys:
        return [], [], ["there is no camera: expected image or video features such as 'observation.images.top'"]
    if camera_map:
        try:
            slots = resolve_camera_slots(keys, camera_map)
        except InternVLAError as error:
            return [], [], [camera_problem(error, keys)]
        findings = [
            CameraFinding(slot, slots.get(slot), "as given" if slot in slots else "left out") for slot in CAMERA_SLOTS
        ]
        return findings, [key for key in keys if key not in slots.values()], []

    problems: list[str] = []
    chosen: dict[str, tuple[str, str]] = {}
    for slot, names in embodiment.cameras.items():
        for name in names:
            matches = [key for key in keys if key == name] or [
                key for key in keys if short_name(key).lower() == short_name(name).lower()
            ]
            if len(matches) > 1:
                problems.append(f"camera {slot}: {' and '.join(matches)} are both {short_name(name)!r}")
            if matches:
                chosen[slot] = (matches[0], f"{embodiment.name}'s {short_name(name)!r}")
                break
    if len(keys) == 1 and "head" not in chosen:
        # No guess is involved: the model requires a head view, and there is one view.
        chosen = {"head": (keys[0], "the only camera")}
    for slot in embodiment.cameras:
        if slot not in chosen:
            left = [key for key in keys if key not in {key for key, _ in chosen.values()}]
            generic = [key for key in left if SLOT_OF_NAME.get(short_name(key).lower()) == slot]
            if len(generic) > 1:
                problems.append(f"camera {slot}: {' and '.join(generic)} could each be it")
            if len(generic) == 1:
                chosen[slot] = (generic[0], "a name known everywhere")

    unused = [key for key in keys if key not in {key for key, _ in chosen.values()}]
    ours = {short_name(name).lower() for names in embodiment.cameras.values() for name in names}
    unclear = [
        key for key in unused if short_name(key).lower() not in ours and short_name(key).lower() not in SLOT_OF_NAME
    ]
    free = [slot for slot in embodiment.cameras if slot not in chosen]
    if "head" in free:
        problems.append(
            "there is no head camera, which the model requires: expected one of "
            f"{', '.join(embodiment.cameras['head'])}; the dataset has {', '.join(keys)}"
        )
    elif free and unclear:
        problems.append(
            f"the name{'s' if len(unclear) > 1 else ''} {', '.join(unclear)} "
            f"{'do' if len(unclear) > 1 else 'does'} not tell whether it is {' or '.join(free)}"
        )
    if problems:
        example = ", ".join(f"{slot}: {chosen.get(slot, ('<camera>',))[0]}" for slot in embodiment.cameras)
        problems[-1] += (
            f". Say which is which, in a mixture file `cameras: {{{example}}}`; a slot that you leave out stays empty"
        )
    findings = [
        CameraFinding(slot, *chosen[slot])
        if slot in chosen
        else CameraFinding(slot, None, "not in this dataset" if slot in embodiment.cameras else "this robot has none")
        for slot in CAMERA_SLOTS
    ]
    return findings, unused, problems


def camera_problem(error: InternVLAError, keys: Sequence[str]) -> str:
    """What ``resolve_camera_slots`` found wrong, without its advice, which is for a policy's command line."""
    return f"{str(error).partition('. Cameras: ')[0].rstrip('.')}. The dataset has {', '.join(keys)}"


def _is_depth(feature: Mapping[str, Any]) -> bool:
    """As LeRobot's ``depth_keys``; one channel counts as depth too, for the model sees colour."""
    infos: Iterable[Mapping[str, Any]] = (feature.get("info") or {}, feature.get("video_info") or {})
    if any(info.get("is_depth_map") or info.get("video.is_depth_map") for info in infos):
        return True
    shape: Sequence[Any] = feature.get("shape") or ()
    return len(shape) == 3 and 3 not in (shape[0], shape[-1])
