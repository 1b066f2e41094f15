"""What a run that starts from a checkpoint keeps of it and what it replaces, in a few lines for the log."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config

from .safe_loading import LoadReport

COMPARED = (
    "chunk_size",
    "n_action_steps",
    "use_foresight",
    "foresight_interval",
    "foresight_interval_s",
    "fps",
    "action_representation",
    "absolute_joint_names",
    "absolute_joint_indices",
    "text_tokenizer",
    "image_tokenizer",
)
"""Fields that change what the numbers mean; precision, optimizer and the like are the run's own business."""


def describe_inheritance(
    folder: Path,
    config: InternVLAA1Config,
    camera_slots: Mapping[str, str],
    report: LoadReport,
    *,
    new_statistics: bool,
) -> list[str]:
    """Lines that say where weights and statistics come from and which settings differ.

    Args:
        folder: the checkpoint; its config.json is what is compared with.
        config: of the new policy, as it was built.
        camera_slots: slot -> camera of the new policy.
        report: what loading the weights came to.
        new_statistics: normalisation comes from the dataset.
    """
    before = _saved_settings(folder)
    left_out = f", {len(report.dropped)} dropped (no such part here)" if report.dropped else ""
    random = f"{len(report.not_loaded)} tensors, listed above" if report.not_loaded else "nothing"
    lines = [
        f"Starting from {folder}:",
        f"  weights: {len(report.loaded)} tensors kept{left_out}; re-initialised: {random}",
        "  normalisation: statistics of the given dataset replace those of the checkpoint"
        if new_statistics
        else "  normalisation: statistics of the checkpoint are kept (statistics=checkpoint)",
    ]
    changes: list[str] = []
    untrained: list[str] = []
    for key, name, kind in ((OBS_STATE, "state", "input_features"), (ACTION, "action", "output_features")):
        then, now = _dims((before.get(kind) or {}).get(key)), _dims((getattr(config, kind) or {}).get(key))
        if then is not None and now is not None and then != now:
            changes.append(f"{name} {then} -> {now} dims")
            if now > then:
                untrained.append(f"{name} dims {then}..{now - 1}" if now > then + 1 else f"{name} dim {then}")
    cameras = [key for key, feature in (before.get("input_features") or {}).items() if feature.get("type") == "VISUAL"]
    if before and sorted(cameras) != sorted(camera_slots.values()):
        now_used = ", ".join(f"{slot}={camera.split('.')[-1]}" for slot, camera in camera_slots.items())
        changes.append(f"cameras {', '.join(camera.split('.')[-1] for camera in cameras)} -> {now_used}")
    for name in COMPARED:
        value = getattr(config, name)
        if name in before and before[name] != value:
            changes.append(f"{name} {before[name]} -> {value}")
    if before:
        lines.append(f"  settings: {'; '.join(changes) if changes else 'as in the checkpoint'}")
    if untrained:
        lines.append(
            f"  {' and '.join(untrained)} were padding there: their input and output weights are kept, but no data has "
            "trained them yet"
        )
    return lines


def untrained_setting(folder: Path, config: InternVLAA1Config) -> str | None:
    """A sentence about a chunk of another length than the checkpoint's, for a run that trains nothing; else None.

    Actions of a chunk attend to one another, so another number of them is something that no training has seen.
    """
    then = _saved_settings(folder).get("chunk_size", config.chunk_size)
    if then == config.chunk_size:
        return None
    return (
        f"policy.chunk_size={config.chunk_size}, but the checkpoint was trained with chunks of {then} actions, and "
        "this run trains nothing: expect worse actions. To execute fewer of them, leave chunk_size and pass "
        "--policy.n_action_steps."
    )


def _saved_settings(folder: Path) -> dict[str, Any]:
    """Of config.json; empty where the configuration came from elsewhere, but the weights did load."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _dims(feature: Any) -> int | None:
    """Width of a feature, from config.json or from a configuration."""
    shape = feature.get("shape") if isinstance(feature, Mapping) else getattr(feature, "shape", None)
    return int(shape[0]) if shape else None
