"""Checkpoint folders that are whole or refused: files appear together, config.json last.

    with whole_folder(folder) as draft:     # folder/.unfinished, on the same disk
        write(draft / "model.safetensors")
        write(draft / "config.json")

A process that dies while writing leaves ``folder`` as it was. One that dies in the few milliseconds in which the files
move into place leaves it without config.json, which every reader refuses. LeRobot's own part of the bargain is that
``checkpoints/last`` points to a step only after everything of it was written.

The draft lies inside ``folder``, because LeRobot makes the folder first and adds files of its own to it afterwards; a
folder that is ours alone is replaced as a whole (staging.py).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CONFIG_FILE = "config.json"
_DRAFT = ".unfinished"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder; what is in it afterwards replaces the entries of the same names in ``folder``.

    Files are flushed to the disk before they move, so that a power cut does not leave names without contents. An
    exception discards the draft. In a group of processes each has a draft of its own, and one that was given no
    config.json (a rank that is not to save) changes nothing.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    draft = folder / (f"{_DRAFT}-{rank}" if rank else _DRAFT)
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir(parents=True)
    try:
        yield draft
        if (draft / CONFIG_FILE).is_file():
            _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path) -> None:
    for path in draft.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # from here until the last line the folder is refused
    for path in sorted(draft.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        target = folder / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        path.replace(target)


def why_not_whole(folder: Path) -> str | None:
    """A sentence if ``folder`` was being written by a process that was stopped; None if it looks whole."""
    if (folder / CONFIG_FILE).is_file():
        return None
    if any(folder.glob(f"{_DRAFT}*")):
        return f"{str(folder)!r} is a checkpoint that was being written when its process was stopped."
    return None


def whole_steps(checkpoints: Path) -> list[str]:
    """Names of the steps in a ``checkpoints`` folder of lerobot-train that are whole, training state included."""
    if not checkpoints.is_dir():
        return []
    return sorted(
        step.name
        for step in checkpoints.iterdir()
        if step.name.isdigit()
        and (step / "pretrained_model" / CONFIG_FILE).is_file()
        and (step / "training_state" / "training_step.json").is_file()
    )
