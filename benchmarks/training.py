"""Work, speed and memory of one training step of InternVLA-A1 with random weights and random data.

    python benchmarks/training.py                                    tiny and medium timed, 3b counted
    python benchmarks/training.py --cases tiny --counted             seconds
    python benchmarks/training.py --output benchmarks/results/x      also writes x.json and x.md

A step is forward (image tokenizer included, as without cached latents), backward and AdamW, with the one host read of
the metrics that the policy makes. Gradient checkpointing off and on and 1 and 4 draws of noise and time per sample take
turns within a round. How to read the numbers: docs/performance.md.
"""

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import CHUNK, medium, random_model, random_observation
from measure import (
    Clock,
    Table,
    Work,
    available_memory_gb,
    count_work,
    describe_machine,
    measure_roofline,
    peak_memory,
    pretend_accelerator,
    reset_peak_memory,
    time_once,
    write_report,
)
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from lerobot_internvla.model.architecture import Architecture, build_architecture
from lerobot_internvla.model.inputs import Targets
from lerobot_internvla.model.losses import LossBreakdown, LossTerm

TIMED: dict[str, tuple[str, dict[str, Any], int]] = {
    # name: (variant, overrides, default batch)
    "tiny": ("tiny", {}, 16),
    "medium_grid14": ("3b", medium(14), 2),
    "medium_grid16": ("3b", medium(16), 2),
}
COUNTED: dict[str, tuple[str, dict[str, Any], int]] = {"3b": ("3b", {}, 1)}
"""Too large to train here: operations are counted, without memory for weights."""
REFERENCE = {
    # (patches along a side, threads): seconds of forward and backward at batch 2, (median of undisturbed, minimum).
    (14, 1): (3.0446, 2.7705),
    (14, 2): (1.6204, 1.4125),
    (16, 1): (3.0692, 2.7090),
    (16, 2): (1.7777, 1.7153),
}
"""The reference at the medium configuration, float32: other machine, other time (see benchmarks/inference.py)."""
REFERENCE_WORK = {"forward": 5_990, "backward": 9_393, "host_syncs": 60}
"""The reference at 3b, batch 1, counted by others in the same way (CPU dispatch)."""


@dataclass(frozen=True)
class Setting:
    """How a step is run."""

    checkpointing: bool
    draws: int

    def __str__(self) -> str:
        return f"{'checkpointed' if self.checkpointing else 'plain'}, {self.draws} draw{'s' * (self.draws > 1)}"


class Step:
    """One training step in three phases, run in order: forward, backward, optimizer."""

    def __init__(self, architecture: Architecture, batch: int, device: str = "cpu") -> None:
        self.batch = batch
        self.model = random_model(architecture, device=device)
        for _, parameter in self.model.dead_parameters():
            parameter.requires_grad_(False)
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained_parameters = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=5e-5, betas=(0.9, 0.95), weight_decay=0.01)
        self.observation = random_observation(architecture, batch, device=device)
        views = self.observation.images.shape[1]
        actions = torch.randn(batch, CHUNK, architecture.max_action_dim, device=device)
        cells = architecture.image_tokenizer.latent_size
        self.targets = Targets(
            actions=actions,
            action_is_valid=torch.ones_like(actions, dtype=torch.bool),
            future_images=torch.rand(batch, views, 3, *architecture.view_size, device=device),
            future_is_valid=torch.ones(batch, views, dtype=torch.bool, device=device),
            latent_is_content=torch.ones(batch, views, *cells, dtype=torch.bool, device=device),
        )
        self.losses: LossBreakdown | None = None
        self.set(Setting(checkpointing=False, draws=1))

    def set(self, setting: Setting) -> None:
        """Switch checkpointing and the number of draws."""
        self.model.mixture.gradient_checkpointing = setting.checkpointing
        self.model.vision_language.gradient_checkpointing = setting.checkpointing
        actions = self.targets.actions
        self.noise = torch.randn_like(actions.repeat_interleave(setting.draws, dim=0))
        self.time = torch.full((len(self.noise),), 0.5, device=actions.device)

    def forward(self) -> None:
        self.losses = self.model(self.observation, self.targets, self.noise, self.time, lambda_gen=0.01)

    def metrics(self) -> None:
        assert self.losses is not None
        self.losses.as_floats()

    def backward(self) -> None:
        assert self.losses is not None
        self.losses.total.backward()
        self.losses = None

    def optimize(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def phases(self) -> dict[str, Callable[[], None]]:
        return {"forward": self.forward, "metrics": self.metrics, "backward": self.backward, "optimizer": self.optimize}


def saved_megabytes(step: Step) -> float:
    """What the forward pass keeps for the backward pass, weights not counted; every memory block once."""
    weights = {p.untyped_storage()._cdata for p in step.model.parameters()}
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.forward()
    step.losses = None
    return sum(saved.values()) / 1e6


def count_metrics() -> Work:
    """Reading the metrics needs real numbers, which a pretended device does not have. Any will do."""
    with unset_fake_temporarily():
        scalar, term = torch.zeros(()), LossTerm(torch.zeros(1), torch.zeros(1))
        losses = LossBreakdown(scalar, torch.zeros(1), scalar, scalar, term, term)
        return count_work(losses.as_floats)


def count_step(step: Step, settings: Sequence[Setting]) -> dict[str, Any]:
    """Work of every phase, per setting."""
    report: dict[str, Any] = {}
    for setting in settings:
        step.set(setting)
        work = {
            name: count_metrics() if name == "metrics" else count_work(phase, step.model.parameters())
            for name, phase in step.phases().items()
        }
        report[str(setting)] = {
            "phases": {name: phase.as_dict() for name, phase in work.items()},
            "non_view_ops": sum(phase.non_view_ops for phase in work.values()),
            # AdamW's step counters are host tensors on every device: reading them waits for nothing.
            "host_syncs": sum(sum(work[name].host_syncs.values()) for name in work if name != "optimizer"),
            "gflop": round(sum(phase.flop for phase in work.values()) / 1e9, 3),
            "saved_for_backward_mb": round(saved_megabytes(step), 1),
        }
    return report


def time_step(step: Step, settings: Sequence[Setting], rounds: int, threads: int) -> dict[str, Any]:
    """Clocks per phase and per setting; the settings take turns."""
    torch.set_num_threads(threads)
    clocks: dict[Setting, dict[str, Clock]] = {setting: {} for setting in settings}
    peaks: dict[Setting, float] = dict.fromkeys(settings, 0.0)
    for turn in range(1 + rounds):
        for setting in settings:
            step.set(setting)
            reset_peak_memory()
            for name, phase in step.phases().items():
                clock = time_once(phase)
                if turn:  # the first is the warm-up
                    clocks[setting].setdefault(name, Clock()).extend(clock)
            peaks[setting] = max(peaks[setting], peak_memory())
    return {
        str(setting): {
            "phases": {name: clock.as_dict(threads) for name, clock in phases.items()},
            "step": _total(phases).as_dict(threads),
            "samples_per_s": step.batch / min(_total(phases).wall_s),
            "peak_rss_mb": peaks[setting],
        }
        for setting, phases in clocks.items()
    }


def _total(phases: dict[str, Clock]) -> Clock:
    """Whole steps: the phases of one round added up."""
    rounds = list(zip(*(zip(c.wall_s, c.cpu_s, c.other_cores, strict=True) for c in phases.values()), strict=True))
    return Clock(
        wall_s=[sum(wall for wall, _, _ in parts) for parts in rounds],
        cpu_s=[sum(cpu for _, cpu, _ in parts) for parts in rounds],
        other_cores=[max(cores for _, _, cores in parts) for parts in rounds],
    )


# ---------------------------------------------------------------------------------------------------------- tables


def work_table(results: dict[str, Any]) -> Table:
    table = Table(
        "Work of one step, counted, the same on every machine",
        ["case", "batch", "trained", "setting", "ops forward", "backward", "optimizer", "syncs", "GFLOP",
         "kept for backward"],
    )  # fmt: skip
    for name, result in results.items():
        for setting, work in result["work"].items():
            ops = {phase: count["non_view_ops"] for phase, count in work["phases"].items()}
            table.add(
                name, result["batch"], f"{result['trained_parameters'] / 1e6:,.1f} M", setting, f"{ops['forward']:,}",
                f"{ops['backward']:,}", f"{ops['optimizer']:,}", work["host_syncs"], f"{work['gflop']:,.1f}",
                f"{work['saved_for_backward_mb']:,.0f} MB",
            )  # fmt: skip
    table.note = (
        "ops: on the CPU dispatch, without views and allocations; AdamW as torch runs it by default. 3b is float32 "
        f"here. The reference at 3b and batch 1, counted by others: {REFERENCE_WORK['forward']:,} forward, "
        f"{REFERENCE_WORK['backward']:,} backward, {REFERENCE_WORK['host_syncs']} syncs."
    )
    return table


def latency_table(results: dict[str, Any]) -> Table:
    table = Table(
        "Speed on this machine",
        ["case", "batch", "threads", "setting", "forward ms", "backward ms", "optimizer ms", "step min ms",
         "step median ms", "samples/s", "rounds", "undisturbed", "peak RSS"],
    )  # fmt: skip
    for name, result in results.items():
        for threads, settings in result.get("latency", {}).items():
            for setting, timed in settings.items():
                fastest = {phase: f"{1e3 * clock['wall_min_s']:,.1f}" for phase, clock in timed["phases"].items()}
                step = timed["step"]
                table.add(
                    name, result["batch"], threads, setting, fastest["forward"], fastest["backward"],
                    fastest["optimizer"], f"{1e3 * step['wall_min_s']:,.1f}", f"{1e3 * step['wall_median_s']:,.1f}",
                    f"{timed['samples_per_s']:.3g}", step["rounds"], step["undisturbed_rounds"],
                    f"{timed['peak_rss_mb']:,.0f} MB",
                )  # fmt: skip
    table.note = "Phases: of their fastest round. samples/s: of the fastest step. Settings take turns within a round."
    return table


def reference_table(results: dict[str, Any]) -> Table:
    table = Table(
        "Medium configuration, forward and backward at batch 2, against the reference's recorded CPU times",
        ["grid", "threads", "reference min / median s", "ours min / median s", "min / min"],
    )
    for (grid, threads), (median, fastest) in REFERENCE.items():
        result = results.get(f"medium_grid{grid}", {})
        timed = result.get("latency", {}).get(threads, {}).get("plain, 1 draw")
        if timed is None or result["batch"] != 2:
            continue
        parts = [timed["phases"][phase]["wall_all_s"] for phase in ("forward", "backward")]
        sums = sorted(sum(pair) for pair in zip(*parts, strict=True))
        table.add(
            grid, threads, f"{fastest:.3f} / {median:.3f}", f"{sums[0]:.3f} / {sums[len(sums) // 2]:.3f}",
            f"{fastest / sums[0]:.2f}",
        )  # fmt: skip
    table.note = "Not side by side: other machine, other time. The quotient says something about the machines too."
    return table


# ------------------------------------------------------------------------------------------------------------- run


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain data for JSON."""
    torch.manual_seed(0)
    machine = describe_machine()
    settings = [Setting(on, draws) for draws in arguments.draws for on in (False, True)]
    results: dict[str, Any] = {}

    def say(text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    cases = {name: TIMED[name] for name in arguments.cases} | {name: COUNTED[name] for name in arguments.counted}
    for name, (variant, overrides, default_batch) in cases.items():
        batch = arguments.batch or default_batch
        architecture = build_architecture(variant, overrides)
        result: dict[str, Any] = {"batch": batch}
        say(f"{name}: counting on the CPU dispatch")
        with pretend_accelerator("cpu"):
            step = Step(architecture, batch)
            result["trained_parameters"] = step.trained_parameters
            result["work"] = count_step(step, settings)
        results[name] = result
    if arguments.cases:
        say("roofline of this machine")
        measure_roofline(machine, arguments.threads)
    for name in arguments.cases:
        variant, overrides, default_batch = TIMED[name]
        if available_memory_gb() < 5:
            results[name]["skipped"] = "not timed: needs 5 GB of memory"
            continue
        step = Step(build_architecture(variant, overrides), arguments.batch or default_batch)
        results[name]["latency"] = {}
        for threads in arguments.threads:
            say(f"{name}: {threads} threads")
            results[name]["latency"][threads] = time_step(step, settings, arguments.rounds, threads)
        del step
        gc.collect()
    report = machine.as_dict()
    report["load_average_at_end"] = describe_machine().load_average
    return {
        "command": "python " + shlex.join(["benchmarks/training.py", *arguments.argv]),
        "machine": report,
        "results": results,
        "cuda": "not run here: training on a GPU is timed with lerobot-train",
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point; returns what it writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", nargs="*", choices=list(TIMED), default=list(TIMED), help="counted and timed")
    parser.add_argument("--counted", nargs="*", choices=list(COUNTED), default=list(COUNTED), help="counted only")
    parser.add_argument("--batch", type=int, help="samples per step (default: 16 for tiny, 2 for medium, 1 for 3b)")
    parser.add_argument("--draws", nargs="*", type=int, default=[1, 4], help="draws of noise and time per sample")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2], help="thread counts to time with")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; the settings take turns in each")
    parser.add_argument("--output", type=Path, help="write <output>.json and <output>.md")
    arguments = parser.parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    report = run(arguments)
    results = report["results"]
    tables = [work_table(results), latency_table(results), reference_table(results)]
    write_report("Training: work, speed and memory of one step", report, tables, arguments.output)
    return report


if __name__ == "__main__":
    main()
