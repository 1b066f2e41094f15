"""The robots that one policy knows: rows in its configuration, one action space each, and which of them it drives now.

A policy that was trained on a mixture knows several robots. ``config.embodiments`` holds one row per robot, as plain
data in config.json: what its numbers mean (``Embodiment``) and at which rate it acts. Training samples say which robot
they are of; a robot, an environment or a notebook does not, so the policy must be told, or must be able to tell by the
widths of state and action. It never guesses between two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from lerobot_internvla.action_space import ActionSpace, joint_names, relative_mask_for
from lerobot_internvla.action_spaces import ActionSpaces
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.statistics import Representation

from .spec import Dim, Embodiment, Part


@dataclass(frozen=True)
class Row:
    """One robot of a policy."""

    embodiment: Embodiment
    fps: float | None
    """Rate of its chunks and of its foresight interval; None where its datasets have several."""

    def to_dict(self) -> dict[str, Any]:
        return {"embodiment": self.embodiment.to_dict(), "fps": self.fps}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Row":
        return cls(Embodiment.from_dict(data["embodiment"]), data["fps"])

    def representation(self, wanted: Representation) -> Representation:
        """Relative actions need a dim that may be relative; a robot without one stays absolute."""
        return wanted if any(self.embodiment.relative_mask) else "absolute"


def read_rows(embodiments: Mapping[str, Any]) -> dict[str, Row]:
    """``config.embodiments`` as values.

    Raises:
        InternVLAError: a row that this version cannot read.
    """
    rows: dict[str, Row] = {}
    for name, data in embodiments.items():
        try:
            rows[name] = Row.from_dict(data)
        except (KeyError, TypeError, ValueError, InternVLAError) as error:
            raise InternVLAError(
                f"policy.embodiments[{name!r}] cannot be read: {error!r}. The program writes it; take config.json from "
                "an untouched copy of the checkpoint."
            ) from error
    return rows


def build_action_spaces(
    rows: Mapping[str, Row], representation: Representation, *, max_state_dim: int, max_action_dim: int
) -> ActionSpaces:
    """One action space per robot that acts, without statistics yet.

    Raises:
        InternVLAError: a robot with more dims than the model takes.
    """
    spaces: dict[str, ActionSpace] = {}
    for name, row in rows.items():
        robot = row.embodiment
        if not robot.action_dim:
            continue
        own = row.representation(representation)
        try:
            spaces[name] = ActionSpace(
                state_dim=robot.state_dim,
                action_dim=robot.action_dim,
                max_state_dim=max_state_dim,
                max_action_dim=max_action_dim,
                representation=own,
                relative_mask=robot.relative_mask if own == "relative" else (),
            )
        except InternVLAError as error:
            raise InternVLAError(f"Robot {name!r}: {error}") from None
    return ActionSpaces(list(rows), spaces, max_state_dim=max_state_dim, max_action_dim=max_action_dim)


def choose_robot(
    rows: Mapping[str, Row], wanted: str | None, *, state_dim: int | None = None, action_dim: int | None = None
) -> str:
    """Which robot the policy drives: the one named, or the only one that fits.

    Args:
        wanted: ``config.embodiment``.
        state_dim, action_dim: widths of the robot at hand; None where unknown.

    Raises:
        InternVLAError: unknown name, no robot fits, or several do; the candidates are listed.
    """
    acting = {name: row.embodiment for name, row in rows.items() if row.embodiment.action_dim}
    listed = "; ".join(f"{n} ({e.title}: state {e.state_dim}, action {e.action_dim})" for n, e in acting.items())
    if wanted is not None:
        if wanted not in acting:
            raise InternVLAError(
                f"policy.embodiment={wanted!r}: this policy was not trained on such a robot's actions. It knows: "
                f"{listed}. To add a robot, fine-tune on its dataset with --policy.embodiment={wanted}."
            )
        return wanted
    fitting = [
        name
        for name, robot in acting.items()
        if state_dim in (None, robot.state_dim) and action_dim in (None, robot.action_dim)
    ]
    if len(fitting) != 1:
        dims = f"state {'?' if state_dim is None else state_dim}, action {'?' if action_dim is None else action_dim}"
        if not fitting:
            raise InternVLAError(
                f"None of the robots that this policy knows has the dims of the one at hand ({dims}). It knows: "
                f"{listed}. Use one of these, or fine-tune on a dataset of yours with --policy.embodiment=<a new name>."
            )
        raise InternVLAError(
            f"Several of the robots that this policy knows have the dims of the one at hand ({dims}): "
            f"{', '.join(fitting)}. Each has its own joints and statistics, so say which one it is: "
            f"--policy.embodiment={fitting[0]}. It knows: {listed}."
        )
    return fitting[0]


def row_of_dataset(
    name: str,
    dataset_meta: Any,
    camera_slots: Mapping[str, str],
    *,
    state_key: str,
    action_key: str,
    representation: Representation,
    absolute_names: list[str],
    absolute_indices: list[int] | None,
) -> Row:
    """A new row for the robot of a plain LeRobot dataset, with joint names and widths as the dataset has them.

    Raises:
        InternVLAError: relative actions whose joints cannot be told (see ``relative_mask_for``).
    """
    state, action = (dataset_meta.features[key] for key in (state_key, action_key))
    names = {key: joint_names(dataset_meta.features[key]) for key in (state_key, action_key)}
    widths = {state_key: int(state["shape"][0]), action_key: int(action["shape"][0])}
    mask = (False,) * widths[action_key]
    if representation == "relative":
        mask = relative_mask_for(
            names[action_key],
            names[state_key],
            absolute_names,
            absolute_indices=absolute_indices,
            action_dim=widths[action_key],
            state_dim=widths[state_key],
        )

    def part(key: str, relative: tuple[bool, ...]) -> tuple[Part, ...]:
        labels = names[key] or tuple(f"dim_{i}" for i in range(widths[key]))
        dims = tuple(Dim(label, "unknown", r) for label, r in zip(labels, relative, strict=True))
        return (Part(key, dims),)

    robot_type = cast(str | None, getattr(dataset_meta, "robot_type", None))
    embodiment = Embodiment(
        name=name,
        title=robot_type or name,
        robot_types=(robot_type,) if robot_type else (),
        state=part(state_key, (False,) * widths[state_key]),
        action=part(action_key, mask),
        cameras={slot: (key,) for slot, key in camera_slots.items()},
        gripper="unknown",
        fps=float(dataset_meta.fps),
        source=f"dataset {dataset_meta.repo_id}",
    )
    return Row(embodiment, float(dataset_meta.fps))
