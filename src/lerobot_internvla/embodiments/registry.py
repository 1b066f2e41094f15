"""The robots that are known by name: one YAML file each in ``presets/``, and your own by path."""

from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path

from lerobot_internvla.embodiments.spec import Embodiment, load_embodiment
from lerobot_internvla.errors import InternVLAError

HOW_TO_ADD = (
    "To add a robot: `internvla-embodiments new <dataset> --output my_robot.yaml`, fill in the units, and name that "
    "file where a name was expected (docs/embodiments.md)."
)


@cache
def presets() -> dict[str, Embodiment]:
    """All presets by name, in alphabetical order."""
    folder = resources.files("lerobot_internvla.embodiments") / "presets"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda item: item.name)
    found: dict[str, Embodiment] = {}
    for item in files:
        with resources.as_file(item) as path:
            embodiment = load_embodiment(path)
        found[embodiment.name] = embodiment
    return found


def embodiment_names() -> tuple[str, ...]:
    """Names of all presets, in alphabetical order."""
    return tuple(presets())


def get_embodiment(name_or_path: str | Path) -> Embodiment:
    """A preset by name or by its datasets' ``robot_type``, or your own YAML file.

    Args:
        name_or_path: capitals, spaces, dashes and underscores of a name do not matter; what ends in .yaml or .yml is a
            path.

    Raises:
        InternVLAError: unknown name (suggests the nearest, says how to add one), a robot type that several presets
            share, or a file with problems (all of them, with lines).
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")):
        return load_embodiment(name_or_path)
    for name, embodiment in presets().items():
        if _plain(name) == _plain(text):
            return embodiment
    candidates = embodiments_called(text)
    if not candidates:
        raise unknown_robot(text)
    if len(candidates) > 1:
        names = ", ".join(candidate.name for candidate in candidates)
        raise InternVLAError(f"{text!r} is the robot type of several embodiments: {names}. Pass one of these names.")
    return candidates[0]


def embodiments_called(robot_type: str) -> list[Embodiment]:
    """Presets with this name or ``robot_type``, in any spelling; several presets may share a robot type."""
    wanted = _plain(robot_type)
    return [
        embodiment
        for embodiment in presets().values()
        if wanted in {_plain(known) for known in (embodiment.name, *embodiment.robot_types)}
    ]


def unknown_robot(name: str) -> InternVLAError:
    """The error for a robot that no preset describes."""
    spellings = {
        _plain(known): embodiment.name
        for embodiment in presets().values()
        for known in (embodiment.name, *embodiment.robot_types)
    }
    nearest = get_close_matches(_plain(name), spellings, n=1)
    hint = f" (did you mean {spellings[nearest[0]]!r}?)" if nearest else ""
    return InternVLAError(f"Unknown robot {name!r}{hint}. Known: {', '.join(presets())}. {HOW_TO_ADD}")


def _plain(name: str) -> str:
    return "".join(name.lower().split()).replace("-", "").replace("_", "")
