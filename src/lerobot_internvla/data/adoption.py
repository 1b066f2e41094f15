"""What a policy takes over from the data that it is trained on.

    dataset or mixture -> joint names, frame rates, robots   into the configuration, which is saved with the weights
                       -> an action space for each robot     without statistics yet
                       -> statistics for each robot          for these action spaces

A checkpoint of several robots that goes on with the data of one keeps what it knows of the others.
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import logging
from collections.abc import Mapping
from typing import Any, cast

from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_internvla.action_space import ActionSpace, joint_names, relative_mask_for
from lerobot_internvla.action_spaces import ActionSpaces
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.embodiments.limits import describe_robot
from lerobot_internvla.embodiments.matching import dim_names
from lerobot_internvla.embodiments.rows import Row, build_action_spaces, read_rows, row_of_dataset
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.source_log import SourceLog
from lerobot_internvla.statistics import (
    Representation,
    Statistics,
    statistics_from_dataset,
    statistics_from_lerobot_stats,
)

from .sources import Mixture

logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------- into the configuration


def adopt_metadata(config: InternVLAA1Config, dataset_meta: Any, camera_slots: Mapping[str, str]) -> None:
    """Joint names, robot type and frame rate of one dataset into ``config``; of several robots, its robot too.

    Args:
        dataset_meta: LeRobot's metadata of the dataset.
        camera_slots: slot -> feature key.

    Raises:
        InternVLAError: a frame rate that would change the foresight interval; a robot that is not told, or another one
            than the checkpoint knows under that name, or than ``config.embodiment`` names.
    """
    for field, key in (("action_feature_names", ACTION), ("state_feature_names", OBS_STATE)):
        names = joint_names(dataset_meta.features.get(key))
        setattr(config, field, None if names is None else list(names))
    config.robot_type = getattr(dataset_meta, "robot_type", None)
    dataset_fps = float(dataset_meta.fps)
    expected_fps = config.fps
    if expected_fps is None and config.foresight_interval_s is not None:  # several robots, each with its own rate
        expected_fps = config.embodiments.get(config.embodiment or "", {}).get("fps") or 0.0
    if expected_fps is not None and abs(expected_fps - dataset_fps) > 1e-6:
        if config.foresight_interval_s is not None:
            raise InternVLAError(
                f"policy.fps is {expected_fps or None}, but the dataset runs at {dataset_fps:g} fps; the foresight "
                f"interval of {config.foresight_interval_s} s would be wrong. Pass --policy.fps={dataset_fps:g}."
            )
        logger.info("The dataset runs at %g fps; the checkpoint was trained at %s fps.", dataset_fps, config.fps)
    config.fps = dataset_fps
    if config.use_foresight:
        frames = config.interval_frames
        logger.info("Foresight interval: %d frames = %.3f s at %g fps.", frames, frames / config.fps, config.fps)
    if config.embodiments:
        _add_robot(config, dataset_meta, camera_slots)
        config.fps = None  # its row has it: the other robots have their own rates
    else:
        action = dataset_meta.features[ACTION]
        describe_robot(config, dim_names(action), int(action["shape"][0]), str(dataset_meta.repo_id))


def _add_robot(config: InternVLAA1Config, dataset_meta: Any, camera_slots: Mapping[str, str]) -> None:
    """A plain dataset given to a policy of several robots: the one that ``embodiment`` names, new or known."""
    if config.embodiment is None:
        raise InternVLAError(
            f"This checkpoint knows several robots ({', '.join(config.embodiments)}), each with its own joints and "
            f"statistics. Whose are those of dataset {dataset_meta.repo_id!r}? Pass --policy.embodiment=<name>: "
            "one of these, or a new name, which adds a robot and leaves the others as they are."
        )
    row = row_of_dataset(
        config.embodiment,
        dataset_meta,
        camera_slots,
        state_key=OBS_STATE,
        action_key=ACTION,
        representation=_representation(config),
        absolute_names=config.absolute_joint_names,
        absolute_indices=config.absolute_joint_indices,
    )
    known = config.embodiments.get(config.embodiment)
    if known is not None:
        before = read_rows({config.embodiment: known})[config.embodiment].embodiment
        found = row.embodiment
        if (before.state_dim, before.action_dim) != (found.state_dim, found.action_dim):
            raise InternVLAError(
                f"policy.embodiment={config.embodiment!r} has state {before.state_dim} and action "
                f"{before.action_dim} in this checkpoint, and dataset {dataset_meta.repo_id!r} has "
                f"{found.state_dim} and {found.action_dim}: another robot. Give it a name of its own."
            )
        row = Row(before, row.fps)
    config.embodiments = {**config.embodiments, config.embodiment: row.to_dict()}


def adopt_mixture(config: InternVLAA1Config, mixture: Mixture) -> None:
    """The mixture's robots into ``config``; those of the checkpoint stay."""
    rates: dict[str, set[float]] = {}
    for source in mixture.sources:
        rates.setdefault(source.embodiment.name, set()).add(source.fps)
    # Samples name their robot by its place among the mixture's: these come first.
    new = {
        robot.name: Row(robot, next(iter(rates[robot.name])) if len(rates[robot.name]) == 1 else None).to_dict()
        for robot in mixture.embodiments
    }
    config.embodiments = {**new, **{n: row for n, row in config.embodiments.items() if n not in new}}
    config.foresight_interval_s = mixture.foresight_interval_s
    config.fps = config.action_feature_names = config.state_feature_names = config.robot_type = None


def log_of_sources(mixture: Mixture, *, use_foresight: bool) -> SourceLog:
    """Shares and losses of the mixture's datasets, for LeRobot's log."""
    weights = {source.name: source.weight for source in mixture.sources}
    acting = [source.name for source in mixture.sources if source.trains_actions]
    imagining = list(weights) if use_foresight else []
    return SourceLog(weights, {"loss_action": acting, "loss_foresight": imagining})


# ------------------------------------------------------------------------------------------------------ action spaces


def build_action_space(config: InternVLAA1Config, rows: Mapping[str, Row]) -> ActionSpace | ActionSpaces:
    """Of the robot that ``config``'s features describe, or of all robots in ``rows``; without statistics yet.

    Raises:
        InternVLAError: more dims than the model takes; relative actions whose joints cannot be told.
    """
    architecture = config.architecture
    limits = {"max_state_dim": architecture.max_state_dim, "max_action_dim": architecture.max_action_dim}
    if rows:
        return build_action_spaces(rows, _representation(config), **limits)
    state, action = config.robot_state_feature, config.action_feature
    assert state is not None and action is not None, "validate_features has seen both"
    return ActionSpace(
        state_dim=state.shape[0],
        action_dim=action.shape[0],
        representation=_representation(config),
        relative_mask=_relative_mask(config, state.shape[0], action.shape[0]),
        **limits,
    )


def _representation(config: InternVLAA1Config) -> Representation:
    return cast(Representation, config.action_representation)  # one of its words: the configuration checks


def _relative_mask(config: InternVLAA1Config, state_dim: int, action_dim: int) -> tuple[bool, ...]:
    if config.action_representation == "absolute":
        return ()
    try:
        return relative_mask_for(
            config.action_feature_names,
            config.state_feature_names,
            config.absolute_joint_names,
            absolute_indices=config.absolute_joint_indices,
            action_dim=action_dim,
            state_dim=state_dim,
        )
    except InternVLAError as error:
        raise InternVLAError(
            f"{error} Flags: --policy.absolute_joint_names='[...]', --policy.absolute_joint_indices='[...]', "
            "--policy.action_representation=absolute."
        ) from None


# --------------------------------------------------------------------------------------------------------- statistics


def statistics_of_dataset(
    space: ActionSpace,
    chunk_size: int,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None,
    dataset_meta: Any | None,
) -> Statistics | None:
    """Normalisation for ``space`` from one dataset; None where nothing was given.

    Args:
        dataset_stats: LeRobot's statistics (absolute actions); used only without ``dataset_meta``.
        dataset_meta: LeRobot's metadata of the dataset.

    Raises:
        InternVLAError: relative actions without ``dataset_meta``; a dataset that cannot be read.
    """
    if dataset_meta is not None:
        return statistics_from_dataset(
            dataset_meta,
            representation=space.representation,
            relative_mask=space.relative_mask,
            chunk_size=chunk_size,
        )
    if not dataset_stats:
        return None
    if space.representation != "absolute":
        raise InternVLAError(
            "Relative actions need statistics of relative actions, and dataset_stats hold absolute ones. Pass "
            "dataset_meta (LeRobotDataset.meta) as lerobot-train does, or set "
            "policy.action_space.set_statistics(...)."
        )
    return statistics_from_lerobot_stats(dataset_stats, source="dataset_stats")
