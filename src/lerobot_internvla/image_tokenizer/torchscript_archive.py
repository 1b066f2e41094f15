"""Tensors out of a TorchScript archive (``.jit``) without running anything that the archive says.

A ``.jit`` file is a program: ``torch.jit.load`` compiles its code, and Python's ``pickle`` would call what its records
name. Here neither happens. The archive is a zip of raw storages plus ``data.pkl``, a list of stack instructions that
hang tensors into a tree of objects. ``_Tree`` follows those instructions by a closed set of rules: a name in the file
is only compared with the names we know, never looked up, imported or called. Whatever has no rule is refused.
"""

import math
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

_STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TYPED_LISTS = {"build_boollist", "build_doublelist", "build_intlist", "build_tensorlist"}
_MAX_TREE_BYTES = 64 * 2**20
"""Far above any real model (CI8x8 needs tens of kilobytes); keeps a hostile file from filling the memory."""


class _Unreadable(Exception):
    """The archive asks for something that has no rule."""


@dataclass(frozen=True)
class _Name:
    """A global of the file: two strings, never resolved."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class _Object:
    """An instance of a class of the archive: its attributes, no behaviour."""

    attributes: dict[Any, Any] = field(default_factory=dict[Any, Any])


def read_torchscript_tensors(path: str | Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, named as by ``torch.jit.load(path).state_dict()``.

    Tensors come on the CPU and in their stored dtype; storages that tensors shared stay shared.

    Raises:
        InternVLAError: not an archive, damaged, or holding something else than objects, plain values and dense tensors.
            Nothing of the file has been executed.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            root = _find_root(archive)
            instructions = _read_stored(archive, f"{root}/data.pkl", _MAX_TREE_BYTES)
            module = _expect(_Tree(_Storages(archive, root)).build(instructions), _Object)
        tensors = dict(_named_tensors(module, "", set()))
        if not tensors:
            raise _Unreadable("it holds no tensors outside of its code (a frozen module?)")
        return tensors
    # Besides our own refusals: what the standard library and torch raise on damaged instructions.
    except (_Unreadable, zipfile.BadZipFile, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise InternVLAError(
            f"Cannot read the weights in {path} without running the file: {error or type(error).__name__}. Nothing in "
            "it was executed. Use a safetensors copy of these weights. Only if you trust whoever made the file, write "
            f'that copy yourself: torch.jit.load("{path.name}", map_location="cpu").state_dict(), then '
            "safetensors.torch.save_file."
        ) from error


def _find_root(archive: zipfile.ZipFile) -> str:
    roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    if len(roots) != 1:
        raise _Unreadable(f"expected one <name>/data.pkl in the archive, found {len(roots)}")
    root = roots[0]
    if f"{root}/byteorder" in archive.namelist() and _read_stored(archive, f"{root}/byteorder", 16) != b"little":
        raise _Unreadable("its numbers are stored in big-endian order")
    return root


def _read_stored(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise _Unreadable(f"{name} is compressed, which torch never does")
    if info.file_size > max_bytes:
        raise _Unreadable(f"{name} has {info.file_size} bytes, more than the {max_bytes} that were expected")
    return archive.read(info)


class _Storages:
    """Raw storages by key, read once."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._read: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, reference: Any) -> Tensor:
        """The flat tensor behind ('storage', type, key, location, count). The location is ignored: always the CPU."""
        kind, storage_type, key, _, count = reference
        if kind != "storage" or not isinstance(storage_type, _Name) or storage_type.module != "torch":
            raise _Unreadable(f"it refers to {reference!r}, which is not a storage")
        if storage_type.name not in _STORAGE_DTYPES:
            raise _Unreadable(f"it stores {storage_type}; known: {', '.join(_STORAGE_DTYPES)}")
        if not (isinstance(key, str) and key.isdecimal() and isinstance(count, int)):
            raise _Unreadable(f"it refers to {reference!r}, which is not a storage")
        dtype = _STORAGE_DTYPES[storage_type.name]
        if (key, dtype) not in self._read:
            expected = count * dtype.itemsize
            raw = _read_stored(self._archive, f"{self._root}/data/{key}", expected)
            if len(raw) != expected:
                raise _Unreadable(f"storage {key} has {len(raw)} bytes instead of {expected}")
            self._read[key, dtype] = (
                torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            )
        return self._read[key, dtype]


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2, with bounds checked: a view that stays inside of its storage."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise _Unreadable("a tensor is described by something else than a storage and natural numbers")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    elements = math.prod(size)
    # The second condition refuses strides of zero, which would let a small file ask for any amount of memory.
    if elements and (last >= storage.numel() or elements > storage.numel()):
        raise _Unreadable("a tensor reaches outside of its storage")
    return torch.as_strided(storage, size, stride, offset)


class _Tree:
    """The stack machine of ``data.pkl``, cut down to what TorchScript writes."""

    def __init__(self, storages: _Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def build(self, instructions: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(instructions):
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS":
                items = self._since_mark()
                _list(stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _dict(stack[-1])[key] = value
            case "SETITEMS":
                items = self._since_mark()
                _dict(stack[-1]).update(zip(items[0::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_Name(*argument.split(" ", 1)))
            case "BINPERSID":
                stack.append(self._storages.get(stack.pop()))
            case "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                if not _is_archive_class(name) or arguments != ():
                    raise _Unreadable(f"it creates an object of {name}")
                stack.append(_Object())
            case "BUILD":
                state = stack.pop()
                # A class with its own __setstate__ stores something else than a dictionary: refused here.
                _expect(stack[-1], _Object).attributes = _dict(state)
            case "REDUCE":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_reduce(name, _tuple(arguments)))
            case _:
                raise _Unreadable(f"it uses the pickle instruction {opcode}, which TorchScript does not write")


def _expect[T](value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise _Unreadable(f"expected {kind.__name__.lstrip('_')}, found {type(value).__name__.lstrip('_')}")
    return value


def _list(value: Any) -> list[Any]:
    return cast(list[Any], _expect(value, list))


def _dict(value: Any) -> dict[Any, Any]:
    return cast(dict[Any, Any], _expect(value, dict))


def _tuple(value: Any) -> tuple[Any, ...]:
    return cast(tuple[Any, ...], _expect(value, tuple))


def _is_archive_class(name: Any) -> bool:
    return isinstance(name, _Name) and name.module.split(".")[0] == "__torch__"


def _reduce(name: Any, arguments: tuple[Any, ...]) -> Any:
    """What the file wants to call, done by us for the few known names."""
    match name:
        case _Name("torch._utils", "_rebuild_tensor_v2"):
            return _strided(*arguments)
        case _Name("collections", "OrderedDict") if arguments == ():  # the (empty) hooks of a tensor
            return {}
        case _Name("torch.jit._pickle", "restore_type_tag"):  # (value, type in words)
            return arguments[0]
        case _Name("torch.jit._pickle", function) if function in _TYPED_LISTS:
            return arguments[0]
        case _:
            raise _Unreadable(f"it wants to call {name}")


def _named_tensors(module: _Object, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    # Nothing that we import shares modules; refusing it also ends trees that contain themselves.
    if id(module) in seen:
        raise _Unreadable(f"{prefix.removesuffix('.') or 'its root'} is one module under two names")
    seen.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Object):
            yield from _named_tensors(value, f"{prefix}{name}.", seen)
