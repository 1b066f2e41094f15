"""A folder appears whole or not at all.

Everything is written into a hidden sibling of the destination and renamed at the end. An old folder at the destination
moves aside first and is removed last, so at every moment one whole folder exists under a name that the next run knows;
that run also sweeps up what a killed one left behind.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lerobot_internvla.errors import InternVLAError

_SPARE_BYTES = 64 * 2**20
"""Left free on the disk: metadata, and whatever else is being written."""


def check_destination(destination: Path, *, overwrite: bool, sources: tuple[Path, ...] = ()) -> None:
    """Refuse a destination that would destroy something.

    Args:
        overwrite: an existing checkpoint folder may be replaced; nothing else ever is.
        sources: folders that are read; the destination may be none of them, lie in none and contain none.

    Raises:
        InternVLAError: what stands in the way.
    """
    place = destination.resolve()
    for source in sources:
        other = source.resolve()
        if place == other or place in other.parents or other in place.parents:
            raise InternVLAError(
                f"The destination {str(destination)!r} and the source {str(source)!r} overlap. Name a new folder."
            )
    _restore(destination)
    if not destination.exists():
        return
    if not destination.is_dir():
        raise InternVLAError(f"{str(destination)!r} is a file. Name a new folder.")
    contents = sorted(path.name for path in destination.iterdir())
    if not contents:
        return
    if "config.json" not in contents:
        raise InternVLAError(
            f"{str(destination)!r} exists and is no checkpoint (it holds {', '.join(contents[:5])}): it is left alone. "
            "Name a new folder."
        )
    if not overwrite:
        raise InternVLAError(f"{str(destination)!r} exists. Pass --overwrite to replace it, or name a new folder.")


def check_disk(destination: Path, needed_bytes: int) -> None:
    """Refuse to start what cannot end.

    Raises:
        InternVLAError: the disk of ``destination`` has less than ``needed_bytes`` (and a little more) free.
    """
    existing = next(path for path in (destination, *destination.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes + _SPARE_BYTES:
        raise InternVLAError(
            f"The result needs {needed_bytes / 1e9:.2f} GB, but the disk of {str(destination)!r} has "
            f"{free / 1e9:.2f} GB free. Nothing was written. Free some space, or name a folder on another disk."
        )


@contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """A new hidden folder beside ``destination`` that becomes ``destination`` when the block ends well.

    On any exception, an interrupt included, it is removed and ``destination`` is as it was.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    _restore(destination)
    for leftover in _siblings(destination, "unfinished"):
        shutil.rmtree(leftover, ignore_errors=True)
    staged = destination.parent / f".{destination.name}.unfinished-{os.getpid()}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        replaced = destination.parent / f".{destination.name}.replaced-{os.getpid()}"
        if destination.exists():
            destination.rename(replaced)
        staged.rename(destination)
    finally:
        _restore(destination)
        shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _siblings(destination: Path, kind: str) -> list[Path]:
    """Hidden folders that belong to ``destination`` and to no running process."""
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.{kind}-(\d+)")
    found = [(path, pattern.fullmatch(path.name)) for path in destination.parent.glob(f".*.{kind}-*")]
    return [path for path, match in found if match and not _is_running(int(match[1]))]


def _restore(destination: Path) -> None:
    """Put back the old folder if a run was killed between its two renames."""
    if not destination.parent.is_dir():
        return
    own = destination.parent / f".{destination.name}.replaced-{os.getpid()}"
    for old in (own, *_siblings(destination, "replaced")):
        if old.is_dir() and not destination.exists():
            old.rename(destination)
        elif old.is_dir() and old != own:
            shutil.rmtree(old, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
