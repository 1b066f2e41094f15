"""Where a converted checkpoint came from: provenance.json. (``model_card`` says it to people.)"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lerobot_internvla.errors import InternVLAError

PROVENANCE = "provenance.json"
_FORMAT = 1


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
