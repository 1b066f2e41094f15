"""Strict loading of our own checkpoints: every problem at once, before a single weight is replaced."""

import logging
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lerobot_internvla.errors import InternVLAError

logger = logging.getLogger(__name__)


def load_weights(
    policy: nn.Module, file: Path, *, keep_ours: Iterable[str] = (), drop_theirs: Iterable[str] = ()
) -> None:
    """Copy the tensors of ``file`` into ``policy``, cast to the dtype of each parameter.

    Args:
        policy: with its final shapes.
        file: model.safetensors; memory-mapped.
        keep_ours: name prefixes that stay as they are (statistics of a new dataset).
        drop_theirs: parts of names that the file may hold without a place in ``policy`` (an ablated expert).

    Raises:
        InternVLAError: no file; truncated or corrupted file; missing, unexpected or misshapen tensors, all listed.
    """
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in file.parent.iterdir())) if file.parent.is_dir() else "no such folder"
        raise InternVLAError(
            f"There is no {file.name} in {str(file.parent)!r} (found: {found}). Pass the folder that holds config.json "
            f"and {file.name}; a checkpoint of lerobot-train has it in <output_dir>/checkpoints/last/pretrained_model."
        )
    ours, keep, drop = policy.state_dict(), tuple(keep_ours), tuple(drop_theirs)
    theirs: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as handle:
            names = list(handle.keys())
            shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in names}
            dropped = [n for n in names if n not in ours and any(part in n for part in drop)]
            wanted = {name for name in ours if not name.startswith(keep)} if keep else set(ours)
            unexpected = [n for n in names if n not in ours and n not in dropped]
            missing = sorted(wanted - set(names))
            misshapen = [n for n in names if n in wanted and shapes[n] != tuple(ours[n].shape)]
            problems = [f"missing: {n} {tuple(ours[n].shape)}" for n in missing]
            problems += [f"unexpected: {n} {shapes[n]}" for n in unexpected]
            problems += [f"wrong shape: {n} is {shapes[n]}, expected {tuple(ours[n].shape)}" for n in misshapen]
            if problems:
                raise InternVLAError(_explain(file, problems, unexpected))
            theirs = {name: handle.get_tensor(name) for name in names if name in wanted}
    except (SafetensorError, OSError) as error:
        raise InternVLAError(
            f"{str(file)!r} ({file.stat().st_size:,} bytes) cannot be read as safetensors: {error}. It is truncated or "
            "not a checkpoint; copy or download it again."
        ) from error
    if dropped:
        logger.info("Not loaded, because this policy has no such part: %d tensors (e.g. %s).", len(dropped), dropped[0])
    policy.load_state_dict(theirs, strict=False)


def _explain(file: Path, problems: list[str], unexpected: list[str]) -> str:
    shown = "\n  - ".join(problems[:40])
    rest = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
    foreign = any("qwen3_vl_with_expert" in n or "internvl_with_expert" in n for n in unexpected)
    hint = (
        "These are the names of the reference implementation; such a file must be converted first."
        if foreign
        else "Check that config.json (variant, architecture_overrides, use_foresight) belongs to these weights."
    )
    return f"The weights in {str(file)!r} do not fit this policy ({len(problems)} problems):\n  - {shown}{rest}\n{hint}"
