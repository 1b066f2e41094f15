"""TorchScript archives are read like data: the same tensors as torch.jit.load, and nothing in them ever runs."""

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.torchscript_archive import read_torchscript_tensors

MARKER = "an instruction of the archive was executed"


class Small(nn.Module):
    """A bit of everything: nested modules, buffers, a parameter that nothing touches, a constant in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
        self.register_buffer("filter", torch.tensor([0.5, 0.25]))
        self.register_buffer("index", torch.arange(2), persistent=False)
        self.unused = nn.Parameter(torch.randn(2, 3).t())  # not contiguous

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor]]:
        return self.layers(x) * self.get_buffer("filter")[0], (torch.zeros(1),)


def traced(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    module = Small().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constants in the trace, on purpose
        torch.jit.trace(module, torch.randn(1, 3, 8, 8, dtype=dtype)).save(str(path))  # pyright: ignore
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of an archive with some of its records changed."""
    copy = path.with_name(f"changed_{path.name}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w", compression) as target:
        for record in source.namelist():
            content = change(record, source.read(record))
            if content is not None:
                target.writestr(record, content)
    return copy


def with_tree(path: Path, instructions: bytes) -> Path:
    return rewritten(path, lambda name, content: instructions if name.endswith("/data.pkl") else content)


class Exploit:
    """Pickled, this asks the reader to call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tensors_are_those_of_torch_jit_load(tmp_path: Path, dtype: torch.dtype):
    path = traced(tmp_path / "small.jit", dtype)
    expected = torch.jit.load(path).state_dict()
    ours = read_torchscript_tensors(path)
    assert ours.keys() == expected.keys()
    assert {"layers.0.weight", "filter", "index", "unused"} <= ours.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_scripted_modules_with_typed_attributes_are_read_too(tmp_path: Path):
    class Typed(nn.Module):
        sizes: list[int]

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.sizes = [1, 2, 300, 70_000]
            self.rate = 0.5
            self.name = "typed"
            self.table: dict[str, int] = {"a": 1}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.sizes[0] * self.table["a"]

    torch.jit.script(Typed()).save(str(tmp_path / "typed.jit"))  # pyright: ignore
    assert list(read_torchscript_tensors(tmp_path / "typed.jit")) == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize("record", ["data.pkl", "constants.pkl"])
@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_record_does_not_run(tmp_path: Path, record: str, protocol: int):
    path, marker = traced(tmp_path / "small.jit"), tmp_path / "marker"
    attack = pickle.dumps(Exploit(exec, f"open({str(marker)!r}, 'w').write({MARKER!r})"), protocol)
    path = rewritten(path, lambda name, content: attack if name.endswith(f"/{record}") else content)
    if record == "data.pkl":
        with pytest.raises(InternVLAError, match=r"without running the file.*Nothing in it was executed"):
            read_torchscript_tensors(path)
    else:
        read_torchscript_tensors(path)  # constants.pkl holds constants of the code: not even opened
    assert not marker.exists()
    pickle.loads(attack)  # the attack is a real one
    assert marker.read_text() == MARKER


def test_malicious_code_in_the_archive_does_not_run(tmp_path: Path):
    path = traced(tmp_path / "small.jit")
    path = rewritten(path, lambda name, content: b"raise SystemExit" if name.endswith(".py") else content)
    assert "layers.0.weight" in read_torchscript_tensors(path)


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        (Exploit(getattr, nn.Linear, "forward"), r"wants to call __builtin__\.getattr"),
        (Exploit(torch.load, "somewhere"), r"wants to call torch\.serialization\.load"),
        (Exploit(OrderedDict, [("a", 1)]), r"wants to call collections\.OrderedDict"),
        (Exploit(torch.jit.load, "somewhere"), r"wants to call torch\.jit\._serialization\.load"),
        ({"weight": Exploit(bytearray, 10)}, r"wants to call __builtin__\.bytearray"),
        (nn.Linear, "expected Object, found Name"),
    ],
    ids=["getattr", "torch.load", "OrderedDict", "torch.jit.load", "nested", "class"],
)
def test_only_names_on_the_list_mean_anything(tmp_path: Path, victim: Any, message: str):
    path = with_tree(traced(tmp_path / "small.jit"), pickle.dumps(victim, 2))
    with pytest.raises(InternVLAError, match=message):
        read_torchscript_tensors(path)


class Pickled(io.BytesIO):
    """Writes the few pickle instructions that these tests need by hand."""

    def storage(self, kind: str, count: int, key: str = "0") -> "Pickled":
        self.write(b"(X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"\n")
        self.write(b"X" + len(key).to_bytes(4, "little") + key.encode())
        self.write(b"X\x03\x00\x00\x00cpuJ" + count.to_bytes(4, "little", signed=True) + b"tQ")
        return self

    @classmethod
    def module_with(cls, *, kind: str, count: int, offset: int, size: int, stride: int, key: str = "0") -> bytes:
        tree = cls()
        tree.write(b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(")
        tree.storage(kind, count, key)
        tree.write(b"".join(b"J" + number.to_bytes(4, "little", signed=True) for number in (offset, size)))
        tree.write(b"\x85J" + stride.to_bytes(4, "little", signed=True) + b"\x85\x89}tRsb.")
        return tree.getvalue()


# One storage of Small is the convolution's weight: 108 numbers, 432 bytes.
FIRST: dict[str, Any] = {"kind": "FloatStorage", "count": 108, "offset": 0, "size": 108, "stride": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 1}, "outside of its storage"),
        ({"size": 55, "stride": 2}, "outside of its storage"),
        ({"size": 2_000_000_000, "stride": 0}, "outside of its storage"),
        ({"offset": -4}, "natural numbers"),
        ({"stride": -1}, "natural numbers"),
        ({"count": 1_000_000}, "432 bytes instead of 4000000"),
        ({"count": 10}, "432 bytes, more than the 40"),
        ({"kind": "ComplexFloatStorage"}, r"torch\.ComplexFloatStorage; known: BFloat16Storage"),
        ({"key": "../version"}, "not a storage"),
        ({"key": "999"}, "data/999"),
    ],
)
def test_a_tensor_stays_within_its_storage(tmp_path: Path, change: dict[str, Any], message: str):
    path = traced(tmp_path / "small.jit")
    records = zipfile.ZipFile(path).infolist()
    by_size = {record.file_size: record.filename for record in records if "/data/" in record.filename}
    first: dict[str, Any] = {**FIRST, "key": by_size[432].rpartition("/")[2]}
    assert list(read_torchscript_tensors(with_tree(path, Pickled.module_with(**first)))) == ["w"]
    with pytest.raises(InternVLAError, match=message):
        read_torchscript_tensors(with_tree(path, Pickled.module_with(**{**first, **change})))


def test_a_tree_that_contains_itself_ends(tmp_path: Path):
    itself = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x02\x00\x00\x00meh\x00sb."
    with pytest.raises(InternVLAError, match="one module under two names"):
        read_torchscript_tensors(with_tree(traced(tmp_path / "small.jit"), itself))


@pytest.mark.parametrize(
    "instructions", [b"", b".", b"\x80\x02t.", b"\x80\x02h\x07.", b"\x80\x02}u.", b"\xff", b"\x80\x02X\xff"]
)
def test_damaged_instructions_are_reported(tmp_path: Path, instructions: bytes):
    with pytest.raises(InternVLAError, match=r"small\.jit without running the file"):
        read_torchscript_tensors(with_tree(traced(tmp_path / "small.jit"), instructions))


def test_other_files_are_reported(tmp_path: Path):
    path = traced(tmp_path / "small.jit")
    cases = {
        "not a zip": tmp_path / "text.jit",
        "cut": tmp_path / "cut.jit",
        "compressed": rewritten(path, lambda _, content: content, zipfile.ZIP_DEFLATED),
    }
    cases["not a zip"].write_text("version https://git-lfs.github.com/spec/v1")
    cases["cut"].write_bytes(path.read_bytes()[:-2000])
    for case, file in cases.items():
        with pytest.raises(InternVLAError, match="Use a safetensors copy"):
            read_torchscript_tensors(file)
        assert case


def test_big_endian_and_frozen_archives_say_why(tmp_path: Path):
    path = traced(tmp_path / "small.jit")
    big = rewritten(path, lambda name, content: b"big" if name.endswith("/byteorder") else content)
    with pytest.raises(InternVLAError, match="big-endian"):
        read_torchscript_tensors(big)
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(2, 2).eval()))
    frozen.save(str(tmp_path / "frozen.jit"))
    with pytest.raises(InternVLAError, match=r"no tensors outside of its code.*torch\.jit\.load"):
        read_torchscript_tensors(tmp_path / "frozen.jit")
