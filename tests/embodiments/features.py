"""Feature tables of datasets, as LeRobot's ``meta.features`` has them."""

from collections.abc import Sequence
from typing import Any

from lerobot_internvla.embodiments.spec import Embodiment

Features = dict[str, dict[str, Any]]


def numbers(*names: str) -> dict[str, Any]:
    return {"dtype": "float32", "shape": (len(names),), "names": list(names)}


def unnamed(width: int) -> dict[str, Any]:
    return {"dtype": "float32", "shape": (width,), "names": None}


def camera() -> dict[str, Any]:
    return {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}


def dataset_of(embodiment: Embodiment, cameras: Sequence[str] = ("observation.images.top",)) -> Features:
    """A dataset that the robot would record, with these cameras and LeRobot's bookkeeping."""
    bookkeeping = {key: {"dtype": "int64", "shape": (1,), "names": None} for key in ("index", "episode_index")}
    parts = {part.key: numbers(*(dim.name for dim in part.dims)) for part in (*embodiment.state, *embodiment.action)}
    return {**parts, **{key: camera() for key in cameras}, **bookkeeping}
