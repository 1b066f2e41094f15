"""The processor pipelines: LeRobot's stock steps, nothing of ours.

Prompt ids, letterboxing, frame history, normalisation and relative actions belong to the policy (docs/architecture.md),
so that ``lerobot-eval``, ``lerobot-rollout`` and a notebook get the same numbers whatever is overridden here. The
normaliser steps are present because LeRobot's commands override them by name; their mode is IDENTITY.
"""

from typing import Any

from lerobot.lerobot_types import PolicyAction
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.factory import make_default_policy_processor_steps, make_policy_processor_pipelines

from .configuration_internvla_a1 import InternVLAA1Config


def make_internvla_a1_pre_post_processors(
    config: InternVLAA1Config, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """Pre- and post-processors, found by LeRobot's factory through the name of this function."""
    config.input_features = config.input_features or {}
    config.output_features = config.output_features or {}
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        [steps.rename_observations, steps.add_batch_dim, steps.to_device, steps.normalize],
        [steps.unnormalize, steps.to_cpu],
    )
