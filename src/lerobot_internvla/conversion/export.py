"""A policy folder of ours -> the reference's layout, so that its own tools can run what was trained here.

Weights keep their dtypes: a converted checkpoint comes back bit for bit, a policy that was trained here comes as
float32. Files of the reference that a conversion kept (config.json, stats.json) are written back as they were; for
other policies they are made from the configuration and the statistics inside the weights.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lerobot_internvla.checkpoints.policy_config import read_policy_config
from lerobot_internvla.checkpoints.staging import check_destination, check_disk, staged_folder
from lerobot_internvla.checkpoints.tensor_stream import StoredTensor, copy_tensors, read_header
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.conversion.convert import (
    IMAGE_TOKENIZER_FOLDER,
    REFERENCE_FOLDER,
    SETTINGS,
    progress_bar,
)
from lerobot_internvla.conversion.key_table import key_table
from lerobot_internvla.conversion.provenance import read_provenance
from lerobot_internvla.conversion.reference_layout import (
    CONFIG,
    WEIGHTS,
    constant_tensor,
    expected_shapes,
    reference_config,
)
from lerobot_internvla.conversion.released_statistics import STATISTICS
from lerobot_internvla.embodiments.released import Parts, require_embodiment
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.factory import WEIGHTS_NAME

_OURS = "model."


def export_reference(
    folder: Path,
    destination: Path,
    *,
    embodiment: str | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> list[str]:
    """Write model.safetensors, config.json and stats.json as the reference has them.

    Args:
        folder: a policy of type ``internvla_a1``, variant 3b or 2b.
        destination: folder to make.
        embodiment: robot type of stats.json; needed for policies that were trained here.
        overwrite: replace an existing checkpoint folder, once the new one is whole.

    Returns:
        what was written, line by line.

    Raises:
        InternVLAError: not such a policy; a model without a counterpart; ``destination`` is then as it was.
    """
    destination = destination.expanduser()
    check_destination(destination, overwrite=overwrite, sources=(folder,))
    config = read_policy_config(folder)
    if config.use_peft:
        raise InternVLAError(f"{str(folder)!r} is an adapter. Merge it into its base policy first, then export that.")
    architecture = config.architecture
    table = key_table(architecture.family)
    record = read_provenance(folder)
    stored = read_header(folder / WEIGHTS)
    pixels_file = folder / IMAGE_TOKENIZER_FOLDER / WEIGHTS_NAME
    if not pixels_file.is_file():
        raise InternVLAError(
            f"{str(folder)!r} has no image tokenizer, which the reference's file must hold. A policy trained with "
            "use_foresight=false has no counterpart in the reference."
        )
    pixels = load_file(pixels_file)
    policy = {name.removeprefix(_OURS): entry for name, entry in stored.items() if name.startswith(_OURS)}
    # As the reference's own writer does, unless the file that this came from did otherwise.
    scripted = record is None or any("coder.patcher" in n or "unpatcher" in n for n in record["dropped"])
    inside = record is None or record["image_tokenizer"] == {"from": "the policy file"}
    names = table.to_reference(policy, pixels if inside else (), scripted=scripted and inside)
    dtype = next(iter(pixels.values())).dtype
    added = {theirs: pixels[ours] for theirs, ours in names.image_tokenizer.items()}
    added |= {constant.reference: constant_tensor(constant, dtype) for constant in names.constants}
    shapes = {theirs: policy[ours].shape for theirs, ours in names.policy.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in added.items()}
    table.match(shapes, *expected_shapes(architecture))
    their_config = None if record is not None else reference_config(architecture, _settings(config))
    statistics = None if record is not None else _statistics(folder, stored, embodiment)
    check_disk(destination, sum(entry.bytes for entry in policy.values()) + pixels_file.stat().st_size)

    metadata = names.aliases if record is None else record["source_metadata"] or {}
    with staged_folder(destination) as staged:
        with progress_bar(show_progress, (folder / WEIGHTS).stat().st_size) as advance:
            renamed = {theirs: _OURS + ours for theirs, ours in names.policy.items()}
            copy_tensors(folder / WEIGHTS, staged / WEIGHTS, renamed, added, metadata=dict(metadata), progress=advance)
        if record is not None:
            for file in (CONFIG, STATISTICS):
                if (folder / REFERENCE_FOLDER / file).is_file():
                    shutil.copyfile(folder / REFERENCE_FOLDER / file, staged / file)
        else:
            (staged / CONFIG).write_text(json.dumps(their_config, indent=2) + "\n", encoding="utf-8")
            if statistics is not None:
                (staged / STATISTICS).write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
        written = sorted(path.name for path in staged.iterdir())
    dtypes = sorted({entry.dtype for entry in policy.values()})
    return [f"exported: {destination} ({', '.join(written)}; {', '.join(dtypes)})"]


def _settings(config: InternVLAA1Config) -> dict[str, Any]:
    problems: list[str] = []
    if config.interval_frames != 15:
        problems.append(f"the foresight interval is {config.interval_frames} frames, the reference knows only 15")
    if problems:
        raise InternVLAError(f"This policy has no counterpart in the reference: {'; '.join(problems)}.")
    return {"dtype": "float32", **{name: getattr(config, name) for name in SETTINGS}}


def _statistics(folder: Path, stored: dict[str, StoredTensor], embodiment: str | None) -> dict[str, Any] | None:
    """stats.json from the buffers inside the weights; mean and std only, which is all that the reference uses."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        buffers = {n: file.get_tensor(n) for n in stored if n.startswith("action_space.")}
    if not bool(buffers["action_space.statistics_are_set"]):
        return None
    if embodiment is None:
        raise InternVLAError(
            "The reference's stats.json sorts its numbers by robot type: pass --embodiment, such as aloha."
        )
    row = require_embodiment(embodiment)
    entry: dict[str, Any] = {}
    for name, parts in (("state", row.state), ("action", row.action)):
        valid = buffers[f"action_space.{name}_dim_is_valid"]
        mean, std = (buffers[f"action_space.{name}_{which}"][valid] for which in ("mean", "std"))
        for (key, _), size in zip(parts, _sizes(parts, int(valid.sum()), row.name), strict=True):
            entry[key] = {"mean": mean[:size].tolist(), "std": std[:size].tolist()}
            mean, std = mean[size:], std[size:]
    return {row.name: entry}


def _sizes(parts: Parts, dims: int, robot: str) -> list[int]:
    sizes = [dim for _, dim in parts]
    if len(sizes) == 1 and sizes[0] is None:
        return [dims]
    known = [size for size in sizes if size is not None]
    if len(known) != len(sizes) or sum(known) != dims:
        raise InternVLAError(
            f"The policy has {dims} dims, the embodiment {robot!r} {parts}. Pass another --embodiment."
        )
    return known
