"""How the benchmarks measure: work counters that no other process can disturb, and interleaved clocks that one can.

Counters (``count_work``) run a function once under a dispatch mode and are exact: the same on a busy and on an idle
machine. Clocks (``interleave``) take the stages in turn, round after round, and record beside every wall time the
process's own CPU time and how many cores other processes used meanwhile.
"""

import ctypes
import functools
import gc
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop_count

aten = torch.ops.aten

VIEWS_WITHOUT_ALIAS = {"_unsafe_view", "_reshape_alias"}
"""Views that their schema does not declare as such. Every other view is recognised by its schema."""
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Neither views nor work: memory without contents."""
HOST_SYNCS = {
    "_local_scalar_dense": "scalar read",
    "nonzero": "nonzero",
    "is_nonzero": "scalar read",
    "masked_select": "nonzero",
    "equal": "scalar read",
    "_unique2": "unique",
    "repeat_interleave": "tensor repeats",
}
"""Operations that make the host wait for an accelerator, because a value or a shape depends on the result."""


@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu)
def _cpu_attention_flop(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """torch's own formula, for the CPU kernel that its registry leaves out."""
    return sdpa_flop_count(query, key, value)


@dataclass
class Work:
    """What one call did."""

    ops: Counter[str] = field(default_factory=Counter)
    """Tensor operations by name, without views and allocations."""
    views: int = 0
    host_syncs: Counter[str] = field(default_factory=Counter)
    host_copies: int = 0
    """Copies between CPU and accelerator (seen on real or pretended accelerators only)."""
    attention_calls: int = 0
    """SDPA calls, and softmaxes where attention is written out."""
    flop: int = 0
    """Of matrix products, convolutions and attention (torch.utils.flop_counter's formulas)."""
    weight_bytes: int = 0
    """Bytes of parameters that operations read, once per read; of embeddings only the rows that were looked up."""
    parameters_read: set[int] = field(default_factory=set, repr=False)

    @property
    def non_view_ops(self) -> int:
        return sum(self.ops.values())

    def as_dict(self, kinds: int = 12) -> dict[str, Any]:
        """Plain data; ``kinds`` of operations by name, most frequent first, and the rest in one number."""
        most = self.ops.most_common(kinds)
        rest = self.non_view_ops - sum(count for _, count in most)
        return {
            "non_view_ops": self.non_view_ops,
            "views": self.views,
            "host_syncs": sum(self.host_syncs.values()),
            "host_syncs_by_kind": dict(self.host_syncs),
            "host_copies": self.host_copies,
            "attention_calls": self.attention_calls,
            "gflop": round(self.flop / 1e9, 4),
            "weight_mb_read": round(self.weight_bytes / 1e6, 3),
            "ops_by_kind": dict(most) | ({"others": rest} if rest else {}),
        }


class _HostReads(TorchFunctionMode):
    """Reads that never reach the dispatcher on the CPU, but wait for an accelerator: tolist, numpy, cpu."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu):
            self.work.host_syncs[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class _Counter(TorchDispatchMode):
    def __init__(self, work: Work, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.work = work
        self.storages = {p.untyped_storage()._cdata: i for i, p in enumerate(parameters)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        namespace, name = func._schema.name.split("::")
        if namespace == "prim" or name in ALLOCATIONS:
            return out
        work = self.work
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self._count_syncs(func, name, args, inputs)
        aliases = [r.alias_info for r in func._schema.returns]
        if name in VIEWS_WITHOUT_ALIAS or any(alias is not None and not alias.is_write for alias in aliases):
            work.views += 1
            return out
        work.ops[name] += 1
        work.attention_calls += name.startswith("_scaled_dot_product") or name in ("_softmax", "_safe_softmax")
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            work.flop += formula(*args, **kwargs, out_val=out)
        for tensor in inputs:
            index = self.storages.get(tensor.untyped_storage()._cdata)
            if index is not None:
                work.parameters_read.add(index)
                work.weight_bytes += (out if name == "embedding" else tensor).nbytes
        if name in ("_to_copy", "copy_") and out.numel():
            ends = {inputs[-1].device.type, out.device.type}
            work.host_copies += len(ends) == 2 and "cpu" in ends
        return out

    def _count_syncs(self, func: Any, name: str, args: Any, inputs: list[Tensor]) -> None:
        if name == "repeat_interleave" and func._overloadname != "Tensor":
            return
        if name in HOST_SYNCS:
            self.work.host_syncs[HOST_SYNCS[name]] += 1
        elif name in ("index", "index_put", "index_put_") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            self.work.host_syncs["nonzero"] += 1


def count_work(function: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> Work:
    """Run ``function`` once and count. Backward passes inside it count too.

    Args:
        function: what to count; its result is dropped.
        parameters: tensors whose reading is counted in bytes.
    """
    work = Work()
    with _HostReads(work), _Counter(work, parameters):
        function()
    return work


class _OneAttention(TorchFunctionMode):
    """Every SDPA call is one operation, as on a GPU; a CPU build of torch would write it out for pretended GPUs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3]
        mask = kwargs.get("attn_mask")
        if kwargs.get("enable_gqa"):
            key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
        if mask is None:
            return aten._scaled_dot_product_flash_attention(query, key, value)[0]
        if mask.dtype == torch.bool:  # what SDPA does with a boolean mask
            mask = torch.where(mask, 0.0, float("-inf")).to(query.dtype)
        mask = mask.expand(*query.shape[:-1], key.shape[-2])
        return aten._scaled_dot_product_efficient_attention(query, key, value, mask, torch.is_grad_enabled())[0]


def pretend_accelerator(device: str = "cuda") -> ExitStack:
    """A context in which tensors have shapes and devices but no memory: full-size models and GPUs, on any machine.

    What is counted inside is the dispatch of ``device``: which operations are issued, not how long they take.
    """
    stack = ExitStack()
    stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
    if device != "cpu":
        stack.enter_context(_OneAttention())
    return stack


# ---------------------------------------------------------------------------------------------------------- clocks


@dataclass
class Clock:
    """Times of one stage in seconds, one entry per round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Of this process, all threads."""
    other_cores: list[float] = field(default_factory=list)
    """Cores that other processes used meanwhile; nan where /proc/stat cannot be read."""

    def extend(self, other: "Clock") -> None:
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s
        self.other_cores += other.other_cores

    def as_dict(self, threads: int) -> dict[str, Any]:
        free = (os.cpu_count() or 1) - threads + 0.2
        return {
            "wall_min_s": min(self.wall_s),
            "wall_median_s": statistics.median(self.wall_s),
            "wall_max_s": max(self.wall_s),
            "cpu_min_s": min(self.cpu_s),
            "cpu_median_s": statistics.median(self.cpu_s),
            "rounds": len(self.wall_s),
            "undisturbed_rounds": sum(cores <= free for cores in self.other_cores),
            "wall_all_s": [round(t, 5) for t in self.wall_s],
            "other_cores": [round(c, 2) for c in self.other_cores],
        }


def _busy_seconds() -> float:
    """CPU seconds that all processes have used since boot."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq = (int(f) for f in fields[:7])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return float("nan")


def time_once(function: Callable[[], Any]) -> Clock:
    """Time one call."""
    busy, cpu, wall = _busy_seconds(), time.process_time(), time.perf_counter()
    function()
    wall, cpu, busy = time.perf_counter() - wall, time.process_time() - cpu, _busy_seconds() - busy
    return Clock([wall], [cpu], [max(0.0, busy - cpu) / wall])


def interleave(stages: dict[str, Callable[[], Any]], *, rounds: int, warmup: int = 1) -> dict[str, Clock]:
    """Time every stage once per round, in turn, so that a busy moment hits all of them alike."""
    clocks = {name: Clock() for name in stages}
    for turn in range(warmup + rounds):
        for name, function in stages.items():
            clock = time_once(function)
            if turn >= warmup:
                clocks[name].extend(clock)
    return clocks


# ---------------------------------------------------------------------------------------------------------- memory


def reset_peak_memory() -> float:
    """Free what can be freed, forget the high-water mark and return the resident memory in MB (Linux; else nan)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass
    return _status("VmRSS")


def peak_memory() -> float:
    """Highest resident memory in MB since ``reset_peak_memory``."""
    return _status("VmHWM")


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key))
    except (OSError, StopIteration):
        return float("nan")


def available_memory_gb() -> float:
    """Memory that a new allocation could get, in units of 1e9 bytes (Linux; else infinite: try and see)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


# --------------------------------------------------------------------------------------------------------- machine


@dataclass
class Machine:
    """Where and when."""

    date: str
    processor: str
    cores: int
    memory_gb: float
    instructions: list[str]
    accelerator: str
    load_average: list[float]
    versions: dict[str, str]
    gemm_gflops: dict[str, float] = field(default_factory=dict)
    """Measured here: 1024-cubed matrix product, best of several, per "dtype, threads"."""
    copy_gb_per_s: float = 0.0
    """Measured here: bytes read plus bytes written."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe_machine() -> Machine:
    """Hardware and versions, without names of hosts or folders."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    except OSError:
        info = {}
    flags = info.get("flags", "").split()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError):
        memory = float("nan")
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        processor=info.get("model name", platform.processor() or platform.machine()),
        cores=os.cpu_count() or 1,
        memory_gb=round(memory, 1),
        instructions=[flag for flag in wanted if flag in flags],
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        load_average=[round(load, 2) for load in os.getloadavg()],
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "lerobot", "transformers", "diffusers")},
    )


def measure_roofline(machine: Machine, threads: Iterable[int], device: str = "cpu") -> None:
    """Matrix products per second and copied bytes per second, in the same run as what they are compared with."""
    size = 1024 if device == "cpu" else 8192

    def best(function: Callable[[], Any], repeats: int = 5) -> float:
        function()
        times: list[float] = []
        for _ in range(repeats):
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    for count in threads:
        torch.set_num_threads(count)
        for dtype in (torch.float32, torch.bfloat16):
            matrix = torch.randn(size, size, device=device, dtype=dtype)
            where = f"{count} threads" if device == "cpu" else device
            seconds = best(functools.partial(torch.matmul, matrix, matrix))
            machine.gemm_gflops[f"{str(dtype)[6:]}, {where}"] = round(2 * size**3 / seconds / 1e9, 1)
    source = torch.empty(256 * 2**20 if device == "cpu" else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    machine.copy_gb_per_s = round(2 * source.numel() / best(lambda: target.copy_(source)) / 1e9, 2)


# ---------------------------------------------------------------------------------------------------------- report


class Table:
    """Rows of text, shown in a terminal and written as Markdown."""

    def __init__(self, title: str, headings: list[str]) -> None:
        self.title = title
        self.headings = headings
        self.rows: list[list[str]] = []
        self.note = ""

    def add(self, *cells: object) -> None:
        """Append a row; missing cells at the end stay empty."""
        self.rows.append([str(cell) for cell in cells] + [""] * (len(self.headings) - len(cells)))

    def rich(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left", caption=self.note or None, caption_justify="left")
        for index, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        body = "\n".join("| " + " | ".join(row) + " |" for row in lines)
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


def write_report(title: str, report: dict[str, Any], tables: list[Table], output: Path | None) -> None:
    """Print the tables; with ``output`` write <output>.json (everything) and <output>.md (the tables)."""
    tables = [table for table in tables if table.rows]
    console = Console()
    console = console if console.is_terminal else Console(width=170)
    for table in tables:
        console.print(table.rich())
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gemm = ", ".join(f"{where}: {rate:g}" for where, rate in machine["gemm_gflops"].items()) or "not measured"
    head = [
        f"# {title}",
        "",
        f"- command: `{report['command']}`",
        f"- date: {machine['date']}",
        f"- hardware: {machine['cores']} cores of {machine['processor']} ({', '.join(machine['instructions'])}), "
        f"{machine['memory_gb']:g} GB; accelerator: {machine['accelerator']}",
        f"- load average (1, 5, 15 min): {machine['load_average']} at the start, "
        f"{machine['load_average_at_end']} at the end",
        f"- versions: {versions}",
        f"- GFLOP/s of matrix products in this run: {gemm}; copy {machine['copy_gb_per_s']:g} GB/s",
        "",
    ]
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text("\n".join(head) + "\n" + "\n".join(table.markdown() for table in tables))
    console.print(f"Written: {output.with_suffix('.json')}, {output.with_suffix('.md')}")
