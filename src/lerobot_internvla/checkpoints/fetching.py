"""Files of a folder or of a Hub repository, with what is needed to say later where they came from."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot_internvla.checkpoints.tensor_stream import file_checksum
from lerobot_internvla.errors import InternVLAError


@dataclass(frozen=True)
class Fetched:
    """A folder with the wanted files."""

    folder: Path
    name: str
    """Hub id, or the bare name of a local folder: a whole path would tell of someone's computer."""
    revision: str | None
    """Commit on the Hub; None for a local folder."""
    on_hub: bool

    def record(self, files: Sequence[str], checksums: dict[str, str] | None = None) -> dict[str, Any]:
        """For the provenance record: name, revision, and SHA-256 and size of ``files`` (paths in the folder).

        Args:
            checksums: those that are known already.
        """
        known = checksums or {}
        return {
            "name": self.name,
            "revision": self.revision,
            "from": "hub" if self.on_hub else "folder",
            "files": {
                file: {
                    "sha256": known.get(file) or file_checksum(self.folder / file),
                    "bytes": (self.folder / file).stat().st_size,
                }
                for file in files
            },
        }


def fetch(source: str | Path, patterns: Sequence[str], *, what: str, revision: str | None = None) -> Fetched:
    """A local folder as it is, or a Hub repository's files from the cache or the network.

    Args:
        patterns: names of the files wanted from a Hub repository.
        what: "checkpoint", "text tokenizer": for messages.
        revision: branch, tag or commit on the Hub.

    Raises:
        InternVLAError: neither a folder nor a repository that can be reached; a disk too small for the download.
    """
    name = str(source)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InternVLAError(f"{name!r} is a folder; --revision {revision} is for Hub repositories.")
        return Fetched(folder, folder.resolve().name, None, on_hub=False)
    if folder.exists():
        raise InternVLAError(f"{name!r} is a file. Pass the folder that it lies in: {str(folder.parent)!r}.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise InternVLAError(
            f"There is no {what} folder {name!r}. Pass a folder, or a Hub id owner/name (with --revision if needed)."
        )
    from huggingface_hub import constants, snapshot_download

    wanted = list(patterns)
    try:
        planned: Any = snapshot_download(name, revision=revision, allow_patterns=wanted, dry_run=True)
        missing = sum(file.file_size or 0 for file in planned if file.will_download)
    except (OSError, ValueError):  # no network: what the cache holds may still be enough, else the download says why
        missing = 0
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(path for path in (cache, *cache.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if missing > free:
        raise InternVLAError(
            f"Downloading the {what} {name!r} needs {missing / 1e9:.2f} GB, but the Hub cache's disk has "
            f"{free / 1e9:.2f} GB free. Free some space, or move the cache: HF_HUB_CACHE=<folder on another disk>."
        )
    try:
        snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # no such repository or revision, no access, no network, hub switched off
        at = "" if revision is None else f" at revision {revision!r}"
        raise InternVLAError(
            f"The {what} {name!r}{at} is not a local folder, and cannot be had from the Hub: {error}"
        ) from error
    return Fetched(snapshot, name, snapshot.name, on_hub=True)
