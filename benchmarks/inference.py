"""Work and latency of one action chunk: InternVLA-A1 beside LeRobot's pi0, pi05 and smolvla, random weights.

    python benchmarks/inference.py                                  every case that fits into memory
    python benchmarks/inference.py --cases tiny --peers             seconds
    python benchmarks/inference.py --count-only                     work counters alone, exact on any machine
    python benchmarks/inference.py --output benchmarks/results/x    also writes x.json and x.md

What is reported, and how, is described in docs/performance.md. Nothing is downloaded.
"""

import argparse
import contextlib
import gc
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cases import EULER_STEPS, OURS, PEERS, Case, Recipe
from measure import (
    Clock,
    Table,
    Work,
    available_memory_gb,
    count_work,
    describe_machine,
    interleave,
    measure_roofline,
    peak_memory,
    pretend_accelerator,
    reset_peak_memory,
    write_report,
)
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

REFERENCE = {
    # (patches along a side, threads): seconds per chunk of 10 steps, (median of undisturbed rounds, minimum).
    (14, 1): (1.1240, 0.8987),
    (14, 2): (0.5378, 0.4729),
    (16, 1): (1.1707, 1.0075),
    (16, 2): (0.6076, 0.5395),
}
"""The reference implementation at the medium configuration, float32, as measured by others at another time on another
machine (2 cores of a shared Intel Xeon, torch 2.13): an order of magnitude, not a base for a ratio."""
REFERENCE_GEMM_GFLOPS = 254.0
"""Matrix products in float32 with 2 threads on a machine of that kind."""
REFERENCE_WORK = {"non_view_ops": 22_704, "host_syncs": 68}
"""The reference at 3b, one chunk, counted by others in the same way (CPU dispatch)."""


def count_case(recipe: Recipe, device: str) -> dict[str, Any]:
    """Work of a chunk and of its stages on the dispatch of ``device``, without memory for weights where possible."""
    try:
        return _count(recipe, device, pretend_accelerator(device))
    except (DataDependentOutputException, DynamicOutputShapeException):
        if device != "cpu" or available_memory_gb() < recipe.memory_gb:
            raise
        return _count(recipe, device, contextlib.nullcontext())  # it reads values back, so it needs real ones


def _count(recipe: Recipe, device: str, surroundings: contextlib.AbstractContextManager[Any]) -> dict[str, Any]:
    with torch.no_grad(), surroundings:
        case = recipe.build(device=device)
        chunk = count_work(case.chunk, case.weights)
        report: dict[str, Any] = {"chunk": chunk.as_dict()}
        unread = [w for i, w in enumerate(case.weights) if i not in chunk.parameters_read]
        report["parameters"] = sum(w.numel() for w in case.weights)
        report["parameters_never_read"] = sum(w.numel() for w in unread)
        report["dead_parameters"] = case.dead_parameters
        report["description"] = case.description
        stages: dict[str, Work] = {name: count_work(stage, case.weights) for name, stage in case.stages.items()}
        report["stages"] = {name: work.as_dict() for name, work in stages.items()}
        if case.flop is not None:
            counted = {name: work.flop for name, work in stages.items()} | {"chunk": chunk.flop}
            report["flop_by_formula"] = {
                name: {
                    "gflop": round(flop / 1e9, 4),
                    "counted_gflop": round(counted[name] / 1e9, 4),
                    "difference_percent": round(100 * (counted[name] / flop - 1), 3),
                }
                for name, flop in case.flop.items()
            }
    return report


def graph_of(case: Case) -> dict[str, Any]:
    """Graphs and graph breaks of the whole chunk, and whether ``fullgraph=True`` accepts it."""
    torch.compiler.reset()
    with torch.no_grad():
        explained = torch._dynamo.explain(case.chunk)()
    torch.compiler.reset()
    return {
        "graphs": explained.graph_count,
        "graph_breaks": explained.graph_break_count,
        "fullgraph": explained.graph_count == 1 and explained.graph_break_count == 0,
    }


def time_case(case: Case, threads: Sequence[int], rounds: int) -> dict[int, dict[str, Clock]]:
    """Clocks of the stages and of the chunk, per thread count."""
    stages: dict[str, Callable[[], Any]] = {**case.stages, "chunk": case.chunk}
    clocks: dict[int, dict[str, Clock]] = {}
    for count in threads:
        torch.set_num_threads(count)
        with torch.no_grad():
            clocks[count] = interleave(stages, rounds=rounds)
    return clocks


def time_on_gpu(case: Case, rounds: int) -> dict[str, Any]:
    """Eager, compiled and captured in one CUDA graph: milliseconds per chunk by CUDA events, and peak memory.

    Replays include copying the inputs into the graph's static tensors.
    """
    assert case.observation is not None

    def percentiles(function: Callable[[], Any]) -> dict[str, float]:
        for _ in range(max(3, rounds // 5)):
            function()
        times: list[float] = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        times.sort()
        return {"p50_ms": times[len(times) // 2], "p95_ms": times[int(0.95 * (len(times) - 1))], "rounds": rounds}

    report: dict[str, Any] = {}
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        report["eager"] = percentiles(case.chunk)
        report["stages"] = {name: percentiles(stage) for name, stage in case.stages.items()}
        try:
            static = vars(case.observation)
            fresh = {name: value.clone() for name, value in static.items()}
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                case.chunk()

            def replay() -> None:
                for name, value in static.items():
                    value.copy_(fresh[name])
                graph.replay()

            report["cuda_graph"] = percentiles(replay)
        except Exception as error:  # whatever cannot be captured is a finding, not a crash
            report["cuda_graph"] = f"not captured: {str(error).splitlines()[0]}"
        try:
            report["compiled"] = percentiles(torch.compile(case.chunk, fullgraph=True))
        except Exception as error:
            report["compiled"] = f"not compiled: {str(error).splitlines()[0]}"
    report["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return report


# ---------------------------------------------------------------------------------------------------------- tables


def work_table(results: dict[str, Any]) -> Table:
    table = Table(
        "Work of one chunk (10 Euler steps, batch 1, 3 cameras), counted, the same on every machine",
        ["case", "parameters", "never read", "ops CPU", "ops CUDA", "syncs", "copies", "attention", "GFLOP", "formula",
         "weights read", "graph breaks"],
    )  # fmt: skip
    for name, result in results.items():
        if "work" not in result:
            table.add(name, result.get("skipped", "not counted"))
            continue
        cpu, cuda = (result["work"].get(device) or {} for device in ("cpu", "cuda"))
        chunk = cpu.get("chunk") or cuda["chunk"]
        about = cpu or cuda
        formula = about.get("flop_by_formula", {}).get("chunk")
        table.add(
            name,
            f"{about['parameters'] / 1e6:,.1f} M",
            f"{about['parameters_never_read'] / 1e6:,.1f} M",
            f"{cpu['chunk']['non_view_ops']:,}" if cpu else "",
            f"{cuda['chunk']['non_view_ops']:,}" if cuda else "",
            max(part["chunk"]["host_syncs"] for part in (cpu, cuda) if part),
            cuda["chunk"]["host_copies"] if cuda else "",
            chunk["attention_calls"],
            f"{chunk['gflop']:,.2f}",
            f"{formula['difference_percent']:+.2f} %" if formula else "",
            f"{chunk['weight_mb_read']:,.0f} MB",
            result["graph"]["graph_breaks"] if "graph" in result else "",
        )
    table.note = (
        "ops: tensor operations without views and allocations, on the dispatch of that device (our norm is six on the "
        "CPU, one on CUDA). syncs: the host waits for a result. copies: between host and accelerator. formula: counted "
        f"against computed FLOP. The reference at 3b, counted by others: {REFERENCE_WORK['non_view_ops']:,} ops (CPU), "
        f"{REFERENCE_WORK['host_syncs']} syncs."
    )
    return table


def stage_table(results: dict[str, Any]) -> Table:
    table = Table(
        "Work by stage", ["case", "stage", "ops CPU", "ops CUDA", "GFLOP", "weights read", "most frequent on CUDA"]
    )
    for name, result in results.items():
        work = result.get("work", {})
        for stage, cpu in work.get("cpu", {}).get("stages", {}).items():
            cuda = work["cuda"]["stages"][stage]
            kinds = ", ".join(f"{kind} {count}" for kind, count in list(cuda["ops_by_kind"].items())[:8])
            table.add(
                name, stage, f"{cpu['non_view_ops']:,}", f"{cuda['non_view_ops']:,}", f"{cpu['gflop']:,.3f}",
                f"{cpu['weight_mb_read']:,.0f} MB", kinds,
            )  # fmt: skip
    return table


def latency_table(results: dict[str, Any]) -> Table:
    table = Table(
        "Latency on this machine",
        ["case", "threads", "stage", "min ms", "median ms", "CPU min ms", "chunks/s", "rounds", "undisturbed",
         "peak RSS"],
    )  # fmt: skip
    for name, result in results.items():
        for threads, stages in result.get("latency", {}).items():
            for stage, clock in stages.items():
                table.add(
                    name, threads, stage, f"{1e3 * clock['wall_min_s']:,.1f}", f"{1e3 * clock['wall_median_s']:,.1f}",
                    f"{1e3 * clock['cpu_min_s']:,.1f}",
                    f"{1 / clock['wall_min_s']:.3g}" if stage == "chunk" else "",
                    clock["rounds"], clock["undisturbed_rounds"],
                    f"{result['peak_rss_mb']:,.0f} MB" if stage == "chunk" else "",
                )  # fmt: skip
    table.note = (
        "Stages take turns within a round. chunks/s: of the fastest round. undisturbed: rounds in which other "
        "processes left this one its cores. peak RSS: resident memory, Python and torch included."
    )
    return table


def reference_table(results: dict[str, Any], gemm: dict[str, float]) -> Table:
    table = Table(
        "Medium configuration against the reference's recorded CPU times (other machine, other time)",
        ["grid", "threads", "reference min / median s", "ours min / median s", "min / min", "median / median",
         "at equal GEMM rate"],
    )  # fmt: skip
    mine = gemm.get("float32, 2 threads")
    for (grid, threads), (median, fastest) in REFERENCE.items():
        clock = results.get(f"medium_grid{grid}", {}).get("latency", {}).get(threads, {}).get("chunk")
        if clock is None:
            continue
        raw = fastest / clock["wall_min_s"]
        equal = f"{raw * REFERENCE_GEMM_GFLOPS / mine:.2f}" if mine and threads == 2 else ""
        table.add(
            grid, threads, f"{fastest:.3f} / {median:.3f}", f"{clock['wall_min_s']:.3f} / {clock['wall_median_s']:.3f}",
            f"{raw:.2f}", f"{median / clock['wall_median_s']:.2f}", equal,
        )  # fmt: skip
    table.note = (
        "Not side by side: the reference's numbers were taken elsewhere, so these quotients say something about the "
        "machines too. Equal GEMM rate: both times multiplied by their machine's rate of float32 matrix products "
        f"({REFERENCE_GEMM_GFLOPS:g} GFLOP/s there, measured here in this run)."
    )
    return table


# ------------------------------------------------------------------------------------------------------------- run


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain data for JSON."""
    torch.manual_seed(0)
    machine = describe_machine()
    recipes = {name: OURS[name] for name in arguments.cases} | {name: PEERS[name] for name in arguments.peers}
    results: dict[str, Any] = {name: {} for name in recipes}

    def say(text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    for name, recipe in recipes.items():
        work: dict[str, Any] = {}
        for device in ("cpu", "cuda"):
            say(f"{name}: counting on the {device} dispatch")
            try:
                work[device] = count_case(recipe, device)
            except Exception as error:  # a peer that needs real values, or a package that is not installed
                results[name].setdefault("not_counted", {})[device] = str(error).strip().splitlines()[0]
        if work:
            results[name]["work"] = work

    if not arguments.count_only:
        say("roofline of this machine")
        measure_roofline(machine, arguments.threads)
    collected: dict[str, dict[int, dict[str, Clock]]] = {}
    for turn in range(0 if arguments.count_only else arguments.passes):
        for name, recipe in recipes.items():
            if available_memory_gb() < recipe.memory_gb:
                results[name]["skipped"] = f"not timed: needs {recipe.memory_gb:g} GB of memory"
                continue
            say(f"{name}: pass {turn + 1} of {arguments.passes}")
            before = reset_peak_memory()
            case = recipe.build()
            result = results[name]
            if turn == 0 and name in arguments.graphs:
                result["graph"] = graph_of(case)
            rounds = max(1, arguments.rounds // 4) if recipe.is_large else arguments.rounds
            counts = arguments.threads[-1:] if recipe.is_large else arguments.threads
            for threads, stages in time_case(case, counts, rounds).items():
                for stage, clock in stages.items():
                    collected.setdefault(name, {}).setdefault(threads, {}).setdefault(stage, Clock()).extend(clock)
            result["peak_rss_mb"] = max(result.get("peak_rss_mb", 0.0), peak_memory())
            result["rss_before_mb"] = before
            del case
            gc.collect()
    for name, by_threads in collected.items():
        results[name]["latency"] = {
            threads: {stage: clock.as_dict(threads) for stage, clock in stages.items()}
            for threads, stages in by_threads.items()
        }

    cuda: dict[str, Any] | str = "not run here: no CUDA device"
    if torch.cuda.is_available() and not arguments.count_only:
        measure_roofline(machine, [1], device="cuda")
        cuda = {}
        for name in arguments.cases:
            say(f"{name}: on the GPU")
            cuda[name] = time_on_gpu(OURS[name].build(device="cuda"), max(20, arguments.rounds))
            torch.cuda.empty_cache()
    report = machine.as_dict()
    report["load_average_at_end"] = describe_machine().load_average
    return {
        "command": "python " + shlex.join(["benchmarks/inference.py", *arguments.argv]),
        "machine": report,
        "euler_steps": EULER_STEPS,
        "results": results,
        "cuda": cuda,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point; returns what it writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", nargs="*", choices=list(OURS), default=list(OURS), help="sizes of InternVLA-A1")
    parser.add_argument(
        "--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="LeRobot policies beside them"
    )
    parser.add_argument("--graphs", nargs="*", default=["tiny", "medium_grid16"], help="cases whose graphs are counted")
    parser.add_argument(
        "--threads", nargs="*", type=int, default=[1, 2], help="thread counts to time with; large cases: the last"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per pass; large cases: a quarter")
    parser.add_argument("--passes", type=int, default=2, help="passes over the list of cases: A B C A B C")
    parser.add_argument("--count-only", action="store_true", help="work counters, no clocks")
    parser.add_argument("--output", type=Path, help="write <output>.json and <output>.md")
    arguments = parser.parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    report = run(arguments)
    results = report["results"]
    tables = [work_table(results), stage_table(results)]
    if not arguments.count_only:
        tables += [latency_table(results), reference_table(results, report["machine"]["gemm_gflops"])]
    write_report("Inference: work and latency of one action chunk", report, tables, arguments.output)
    return report


if __name__ == "__main__":
    main()
