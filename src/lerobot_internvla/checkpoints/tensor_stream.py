"""Copy tensors from one safetensors file to another under new names, in little memory.

A safetensors file is a JSON header (name -> dtype, shape, byte range) and then the bytes. Converting a checkpoint
renames tensors and changes none, so it is a copy of byte ranges: one pass over the source, a few megabytes at a time,
which yields the source's SHA-256 along the way. Nothing is mapped, so nothing is resident.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

CHUNK_BYTES = 16 * 2**20
_MAX_HEADER_BYTES = 100 * 2**20
"""The limit of the safetensors library itself."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of the types that a checkpoint may meet."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Progress = Callable[[int], object]
"""Called with the number of bytes that were just done."""


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a file's header; ``start`` and ``end`` are byte offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Names, dtypes, shapes and places of the tensors of a safetensors file. No tensor is read.

    Raises:
        InternVLAError: no safetensors file, or truncated.
    """
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length:,} bytes")
            header: dict[str, Any] = json.loads(handle.read(length))
        size, begin = file.stat().st_size, 8 + length
        entries: dict[str, StoredTensor] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (begin + offset for offset in entry["data_offsets"])
                shape = tuple(entry["shape"])
                if not begin <= start <= end <= size or end - start != prod(shape) * DTYPES[entry["dtype"]].itemsize:
                    raise ValueError(f"the bytes of {name} are not all there")
                entries[name] = StoredTensor(entry["dtype"], shape, start, end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InternVLAError(
            f"{str(file)!r} cannot be read as safetensors: {error}. It is truncated or not a checkpoint; copy or "
            "download it again."
        ) from error
    return entries


def copy_tensors(
    source: Path,
    destination: Path,
    names: Mapping[str, str],
    added: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str],
    progress: Progress = lambda done: None,
) -> str:
    """Write a new safetensors file with tensors of ``source`` under other names, and further small tensors.

    Args:
        source: safetensors file; read once, in order.
        destination: new file, flushed to the disk before this returns.
        names: new name -> name in ``source``. Tensors that are not named are read (for the checksum) and left out.
        added: new name -> tensor, written beside them.
        metadata: the new file's.
        progress: called with the number of bytes read from ``source``.

    Returns:
        the SHA-256 of ``source``.

    Raises:
        InternVLAError: ``source`` cannot be read.
        OSError: ``destination`` cannot be written; it is then incomplete.
    """
    stored = read_header(source)
    entries = {
        ours: (stored[theirs].dtype, stored[theirs].shape, stored[theirs].bytes) for ours, theirs in names.items()
    }
    entries |= {name: (_NAMES[t.dtype], tuple(t.shape), t.numel() * t.element_size()) for name, t in added.items()}
    # Widest elements first, as the library writes them: every tensor then starts at a multiple of its element size.
    order = sorted(entries, key=lambda name: (-DTYPES[entries[name][0]].itemsize, name))
    places: dict[str, int] = {}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        dtype, shape, size = entries[name]
        places[name] = end
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    begin = 8 + len(encoded)
    wanted = {theirs: begin + places[ours] for ours, theirs in names.items()}

    with source.open("rb") as read, destination.open("wb") as write:
        write.write(struct.pack("<Q", len(encoded)) + encoded)
        write.truncate(begin + end)
        for name, tensor in added.items():
            write.seek(begin + places[name])
            write.write(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
        checksum = hashlib.sha256()
        for name, entry in sorted(stored.items(), key=lambda item: item[1].start):
            _advance(read, entry.start - read.tell(), checksum.update, progress)  # header, and gaps if there are any
            if name in wanted:
                write.seek(wanted[name])
                _advance(read, entry.bytes, lambda piece: (checksum.update(piece), write.write(piece)), progress)
            else:
                _advance(read, entry.bytes, checksum.update, progress)
        _advance(read, os.fstat(read.fileno()).st_size - read.tell(), checksum.update, progress)
        write.flush()
        os.fsync(write.fileno())
    return checksum.hexdigest()


def _advance(read: BinaryIO, count: int, use: Callable[[bytes], object], progress: Progress) -> None:
    while count > 0:
        piece = read.read(min(count, CHUNK_BYTES))
        if not piece:
            raise InternVLAError(f"{read.name!r} became shorter while it was read. Copy or download it again.")
        use(piece)
        progress(len(piece))
        count -= len(piece)


def file_checksum(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
