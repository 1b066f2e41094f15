"""Statistics by robot: those of all its datasets in a mixture, merged as if they were one.

Every dataset's statistics are computed in float64 and cached by the content of its columns (statistics.py): a mixture
that gains a source reads only that one. Merging is by the law of total variance and exact: each frame of a robot counts
once, whatever weight its dataset has. Weights say how often a robot is practised, not what its joints do.

Quantiles are not used: a mean and a standard deviation merge exactly, quantiles do not (LeRobot 0.6.1 averages them).
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import logging
import os
from collections.abc import Mapping
from typing import Any

from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

from lerobot_internvla.action_space import ActionSpace
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.statistics import FeatureStatistics, Statistics, statistics_from_dataset

from .sources import Mixture, Source

logger = logging.getLogger(__name__)


def mixture_statistics(mixture: Mixture, spaces: Mapping[str, ActionSpace], chunk_size: int) -> dict[str, Statistics]:
    """Statistics of each robot in ``spaces``, from those of its sources that train actions.

    Args:
        spaces: name of the robot -> its action space, which says whether actions are relative and in which dims.
        chunk_size: steps per chunk.

    Raises:
        InternVLAError: a robot has no source with actions, or a dataset cannot be read.
    """
    sources = [s for s in mixture.sources if s.embodiment.name in spaces and s.trains_actions]
    # Ranks start at different sources: they compute different ones at the same time, and read each other's results.
    start = int(os.environ.get("RANK", 0)) * len(sources) // int(os.environ.get("WORLD_SIZE", 1))
    by_index: dict[int, Statistics] = {}
    for source in [*sources[start:], *sources[:start]]:
        by_index[source.index] = source_statistics(source, spaces[source.embodiment.name], chunk_size)
    merged: dict[str, Statistics] = {}
    for name in spaces:
        parts = [by_index[source.index] for source in sources if source.embodiment.name == name]
        if not parts:
            raise InternVLAError(
                f"No source of the mixture trains the actions of robot {name!r}, so they have no statistics. Set "
                "'supervision: action+foresight' for a dataset of it, or describe it as a robot without actions."
            )
        merged[name] = merge_statistics(name, parts)
        logger.info("Statistics of %s: %s.", name, merged[name].source)
    return merged


def source_statistics(source: Source, space: ActionSpace, chunk_size: int) -> Statistics:
    """Statistics of one source; cached."""
    meta: Any = LeRobotDatasetMetadata(**source.lerobot_arguments)  # its own types are partly wrong
    return statistics_from_dataset(
        meta,
        representation=space.representation,
        relative_mask=space.relative_mask,
        chunk_size=chunk_size,
        episodes=source.episodes,  # named even if these are all: LeRobot's own statistics are float32
        state_key=source.features.state_keys,
        action_key=source.features.action_keys,
        frame_stride=source.frame_stride,
    )


def merge_statistics(name: str, parts: list[Statistics]) -> Statistics:
    """One value from those of several datasets of the same robot.

    Args:
        name: of the robot, for people.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Statistics(
        state=FeatureStatistics.merged([part.state for part in parts]),
        action=FeatureStatistics.merged([part.action for part in parts]),
        representation=first.representation,
        relative_mask=first.relative_mask,
        chunk_size=first.chunk_size,
        source=f"{len(parts)} datasets of {name}: {', '.join(part.source for part in parts)}",
        fingerprint="+".join(part.fingerprint for part in parts),
    )
