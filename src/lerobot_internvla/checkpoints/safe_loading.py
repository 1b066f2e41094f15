"""Strict loading of our own checkpoints: every problem at once, before a single weight is replaced."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lerobot_internvla.checkpoints.tensor_stream import DTYPES
from lerobot_internvla.errors import InternVLAError

logger = logging.getLogger(__name__)

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""A parameter may be stored in any of these and is cast. A buffer (statistics, counters) must be exactly what it is."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file, by name."""

    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    """In the file, without a place in this policy, on purpose (an ablated expert)."""
    not_loaded: tuple[str, ...]
    """One sentence per misfit; never any with ``strict=True``."""


def load_weights(
    policy: nn.Module,
    file: Path,
    *,
    keep_ours: Iterable[str] = (),
    drop_theirs: Iterable[str] = (),
    strict: bool = True,
) -> LoadReport:
    """Copy the tensors of ``file`` into ``policy``, parameters cast to the dtype that they have there.

    Args:
        policy: with its final shapes.
        file: model.safetensors; memory-mapped.
        keep_ours: name prefixes that stay as they are (statistics of a new dataset).
        drop_theirs: parts of names that the file may hold without a place in ``policy`` (an ablated expert).
        strict: False loads what fits, leaves the rest of ``policy`` as it is and warns with the whole list. A file
            that cannot be read is an error all the same.

    Raises:
        InternVLAError: no file; truncated or corrupted file; missing, unexpected or misshapen tensors, tensors of
            another type, NaN or infinite weights: all listed, and ``policy`` is as it was.
    """
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in file.parent.iterdir())) if file.parent.is_dir() else "no such folder"
        raise InternVLAError(
            f"There is no {file.name} in {str(file.parent)!r} (found: {found}). Pass the folder that holds config.json "
            f"and {file.name}; a checkpoint of lerobot-train has it in <output_dir>/checkpoints/last/pretrained_model."
        )
    ours, keep, drop = policy.state_dict(), tuple(keep_ours), tuple(drop_theirs)
    parameters = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    wanted = {name for name in ours if not name.startswith(keep)} if keep else set(ours)
    problems: dict[str, str] = {}
    unexpected: list[str] = []
    theirs: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as handle:
            names = list(handle.keys())
            dropped = [n for n in names if n not in ours and any(part in n for part in drop)]
            for name in sorted(wanted - set(names)):
                problems[name] = f"missing: {name} {tuple(ours[name].shape)}"
            for name in names:
                entry = handle.get_slice(name)
                shape = tuple(entry.get_shape())
                dtype = DTYPES.get(str(entry.get_dtype()), str(entry.get_dtype()))
                if name not in ours and name not in dropped:
                    unexpected.append(name)
                    problems[name] = f"unexpected: {name} {shape}"
                elif name in wanted and shape != tuple(ours[name].shape):
                    problems[name] = f"wrong shape: {name} is {shape}, expected {tuple(ours[name].shape)}"
                elif name in wanted and not _may_become(dtype, ours[name].dtype, is_weight=name in parameters):
                    problems[name] = f"wrong type: {name} is {dtype}, expected {_accepted(name, ours, parameters)}"
            if strict and problems:  # before gigabytes are read
                raise InternVLAError(_explain(file, list(problems.values()), unexpected))
            for name in names:
                if name in wanted and name not in problems:
                    tensor = handle.get_tensor(name)
                    # A sum is finite only if every term is; looking at each value would need a copy of the tensor.
                    if tensor.is_floating_point() and not bool(tensor.sum(dtype=torch.float32).isfinite()):
                        bad = int((~tensor.isfinite()).sum())
                        problems[name] = f"not finite: {name} has {bad} NaN or infinite values of {tensor.numel()}"
                    else:
                        theirs[name] = tensor
    except (SafetensorError, OSError) as error:
        raise InternVLAError(
            f"{str(file)!r} ({file.stat().st_size:,} bytes) cannot be read as safetensors: {error}. It is truncated or "
            "not a checkpoint; copy or download it again."
        ) from error
    if strict and problems:
        raise InternVLAError(_explain(file, list(problems.values()), unexpected))
    _assign(policy, theirs, ours)
    report = LoadReport(tuple(theirs), tuple(dropped), tuple(problems.values()))
    _tell(file, report, theirs, ours)
    return report


def _assign(policy: nn.Module, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Fill weights that have memory, and give memory to those that have none (``init_empty_weights``)."""
    empty = {name for name, tensor in ours.items() if tensor.is_meta}
    policy.load_state_dict({n: t for n, t in theirs.items() if n not in empty}, strict=False)
    # Copies: the file is mapped, and would otherwise have to stay as it is for as long as the policy lives.
    given = {n: theirs[n].to(ours[n].dtype, copy=True) for n in theirs.keys() & empty}
    policy.load_state_dict(given, strict=False, assign=True)


def _may_become(theirs: "torch.dtype | str", ours: torch.dtype, *, is_weight: bool) -> bool:
    return theirs == ours or (is_weight and theirs in WEIGHT_DTYPES and ours in WEIGHT_DTYPES)


def _accepted(name: str, ours: Mapping[str, Tensor], parameters: set[str]) -> str:
    dtypes = WEIGHT_DTYPES if name in parameters and ours[name].dtype in WEIGHT_DTYPES else (ours[name].dtype,)
    return " or ".join(str(dtype) for dtype in dtypes)


def _tell(file: Path, report: LoadReport, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    if report.dropped:
        logger.info(
            "Not loaded, because this policy has no such part: %d tensors (e.g. %s).",
            len(report.dropped),
            report.dropped[0],
        )
    casts: dict[str, int] = {}
    for name, tensor in theirs.items():
        if tensor.dtype != ours[name].dtype:
            cast = f"{tensor.dtype} -> {ours[name].dtype}".replace("torch.", "")
            casts[cast] = casts.get(cast, 0) + 1
    for cast, count in casts.items():
        logger.info("Cast while loading: %d tensors, %s.", count, cast)
    if report.not_loaded:
        logger.warning(
            "strict=False: %d tensors were loaded from %s; these were not, and what this policy has of them is as it "
            "was built (random, if nothing else filled it):\n  - %s",
            len(report.loaded),
            file,
            "\n  - ".join(report.not_loaded),
        )


def _explain(file: Path, problems: list[str], unexpected: list[str]) -> str:
    shown = "\n  - ".join(problems[:40])
    rest = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
    foreign = any("qwen3_vl_with_expert" in n or "internvl_with_expert" in n for n in unexpected)
    if foreign:
        hint = "These are the names of the reference implementation; such a file must be converted first."
    elif all(problem.startswith("not finite") for problem in problems):
        hint = "The training diverged or the file was damaged: take an earlier checkpoint, or copy it again."
    else:
        hint = (
            "Check that config.json (variant, architecture_overrides, use_foresight) belongs to these weights. To load "
            "what fits all the same: InternVLAA1Policy.from_pretrained(..., strict=False)."
        )
    return f"The weights in {str(file)!r} do not fit this policy ({len(problems)} problems):\n  - {shown}{rest}\n{hint}"
