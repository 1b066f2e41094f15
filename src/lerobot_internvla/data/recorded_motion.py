"""What the actions of a dataset did: lowest, highest, fastest. For the limits of a drafted embodiment.

Lowest and highest come from the dataset's statistics, the largest change between two frames from its parquet files; a
dataset of which only the metadata is on this computer has none.
"""

# pyarrow ships no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from lerobot_internvla.embodiments.drafting import Recorded

from .dataset_meta import DatasetMeta


def recorded_motion(meta: DatasetMeta) -> dict[str, Recorded]:
    """Features of numbers -> what they did; without those that the dataset has no statistics of."""
    path = meta.root / "meta" / "stats.json"
    stats: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    keys = [key for key, feature in meta.features.items() if key.startswith("action") and len(feature["shape"]) == 1]
    files = sorted(
        {
            meta.root / meta.data_path.format(chunk_index=chunk, file_index=file)
            for chunk, file in meta.files["data"].tolist()
        }
    )
    changes = _largest_changes(files, keys) if all(file.is_file() for file in files) else {}
    return {
        key: Recorded(
            low=tuple(np.ravel(stats[key]["min"]).astype(float).tolist()),
            high=tuple(np.ravel(stats[key]["max"]).astype(float).tolist()),
            fastest=tuple((changes[key] * meta.fps).tolist()) if key in changes else None,
        )
        for key in keys
        if {"min", "max"} <= set(stats.get(key, {}))
    }


def _largest_changes(files: list[Path], keys: list[str]) -> dict[str, Any]:
    """Feature -> [D] largest change from one frame of an episode to the next."""
    largest: dict[str, Any] = {}
    for path in files:
        file: Any = parquet.ParquetFile(path)
        table = file.read(columns=[*keys, "episode_index"])
        episode: Any = table["episode_index"].to_numpy()
        follows = episode[1:] == episode[:-1]
        for key in keys:
            column = np.array(table[key].to_pylist(), dtype=float).reshape(len(episode), -1)
            change = np.abs(np.diff(column, axis=0))[follows].max(axis=0, initial=0.0)
            largest[key] = np.maximum(largest.get(key, 0.0), change)
    return largest
