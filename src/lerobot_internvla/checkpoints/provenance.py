"""Where a converted checkpoint came from: provenance.json for programs, README.md (the model card) for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError

PROVENANCE = "provenance.json"
_FORMAT = 1
_LICENCE_NAMES = {"cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0 (not for commercial use, share alike)"}


def write_provenance(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` as provenance.json. It holds no paths of this computer and no time: same input, same file."""
    text = json.dumps({"format": _FORMAT, **record}, indent=2, ensure_ascii=False)
    (folder / PROVENANCE).write_text(text + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """The record of a converted folder; None if there is none (a policy that was trained here).

    Raises:
        InternVLAError: it is damaged, or from a newer version.
    """
    file = folder / PROVENANCE
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        known = record["format"] == _FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise InternVLAError(f"{str(file)!r} cannot be read: {error!r}. Convert the checkpoint again.") from error
    if not known:
        raise InternVLAError(f"{str(file)!r} has format {record['format']!r}; this version knows {_FORMAT}. Upgrade.")
    return record


def write_card(
    folder: Path,
    config: InternVLAA1Config,
    record: Mapping[str, Any],
    state_names: Sequence[str],
    action_names: Sequence[str],
) -> None:
    """A short model card: what is known for certain about a converted checkpoint, and nothing else."""
    source, licence = record["source"], record["licence"]
    origin = (
        f"[{source['name']}](https://huggingface.co/{source['name']})" if source["from"] == "hub" else source["name"]
    )
    at = f" at revision `{source['revision']}`" if source["revision"] else ""
    actions = (
        "offsets from the state at the chunk's start" if config.action_representation == "relative" else "absolute"
    )
    ready = "" if record["statistics"] else "\n**It has no normalisation statistics: fine-tune it before use.**\n"
    fields: dict[str, Any] = {
        "license": licence,
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "lerobot", "internvla_a1", "vision-language-action"],
    }
    if source["from"] == "hub":
        fields["base_model"] = source["name"]
    data = ModelCardData(**fields)
    cameras = "\n".join(f"- {slot}" for slot in record["decisions"] if slot.startswith("cameras: "))
    text = f"""---
{data.to_yaml()}
---

# InternVLA-A1 ({config.variant}), converted for LeRobot

Converted from {origin}{at} by {record["tool"]} with `internvla-convert`. The weights are those of the source, byte for
byte, under other names; `{PROVENANCE}` has the checksums. Nothing was trained or evaluated by the conversion.
{ready}
```
pip install lerobot_policy_internvla_a1
lerobot-eval --policy.path=<this folder> --env.type=<environment>
```

## Robot

- embodiment: {record["embodiment"]}
- state, {len(state_names)} dims: {", ".join(state_names)}
- action, {len(action_names)} dims: {", ".join(action_names)}
- the model predicts {actions}; absolute actions, in the units of the training data, leave the policy
- chunks of {config.chunk_size} actions, of which {config.n_action_steps} are executed
- foresight interval: {config.foresight_interval} frames at the rate of the training data
{cameras}

## Licences

- policy weights: {_LICENCE_NAMES.get(licence, licence)}; the licence of the source holds for what is derived from it
- `image_tokenizer/` (Cosmos CI8x8): NVIDIA Open Model License
- `text_tokenizer/`: that of the base vision-language model

## Limits

A policy moves a robot. Before the first run on hardware compare its actions with recorded ones, keep a hand on the
stop, and expect nothing outside of the robots, cameras and tasks that the source was trained on.
"""
    ModelCard(text).save(folder / "README.md")
