"""What a sample of a mixture costs, against stock LeRobot reading the same frames in the same run.

    python benchmarks/mixture.py loader

Readers, each on the same draws, three cameras at three moments and 50 actions per sample:

    stock                   one LeRobotDataset
    stock, sparse decoding  the same, except that it decodes what a mixture decodes: differs from stock with pyav only
    stock, our reader       the same with the plugin's whole reader, as lerobot-train gives it to our policy
    concatenation           torch's ConcatDataset over stock datasets
    mixture                 MixtureDataset: planned, drawn by weight, letterboxed, canonical
"""

import argparse
import functools
import gc
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from lerobot.datasets import video_utils
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from measure import Clock, Table, interleave
from recordings import CAMERAS, JOINTS, quiet, say, textured, why_not
from torch.utils.data import ConcatDataset, DataLoader

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.data.canonical import SampleShape, delta_timestamps
from lerobot_internvla.data.mixture_dataset import MixtureDataset, ReadSettings
from lerobot_internvla.data.sources import Source, load_mixture
from lerobot_internvla.data.video_reader import SparseVideoReader, read_sparsely
from lerobot_internvla.embodiments.spec import Dim, Embodiment, Part

BATCH = 8
SIZE, SECONDS = (240, 320), 4
FRAMES_PER_SAMPLE = 3 * len(CAMERAS)
SAMPLES_BEFORE_MEMORY = 128
RANKS = 8


class SparseDecoding(SparseVideoReader):
    """The decoding of the plugin's reader, and nothing else of it."""

    _query_hf_dataset = DatasetReader._query_hf_dataset
    _get_query_timestamps = DatasetReader._get_query_timestamps


REFERENCES = {"stock": "stock", "decoding": "stock, sparse decoding", "reader": "stock, our reader"}


@dataclass(frozen=True)
class Reader:
    """One way to read; ``open`` makes the dataset, ``indices`` are what a sampler would ask it for, endlessly."""

    name: str
    sources: int
    open: Callable[[], tuple[Any, Iterator[int]]]


def make_sources(folder: Path, count: int) -> Path:
    """``count`` datasets of two short episodes, copies of one recording; returns the folder of the mixture files."""
    joints = tuple(Dim(name, "rad") for name in JOINTS)
    robot = Embodiment(
        name="benchmark_arms",
        title="two arms",
        robot_types=("benchmark_arms",),
        state=(Part(OBS_STATE, joints),),
        action=(Part(ACTION, tuple(Dim(name, "rad", relative=True) for name in JOINTS)),),
        cameras={camera: (camera,) for camera in CAMERAS},
        gripper="none",
        fps=30.0,
        source="benchmark",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "robot.yaml").write_text(yaml.safe_dump(robot.to_dict(), sort_keys=False))
    with quiet():
        textured(folder / "source_000", SIZE, None, seconds=SECONDS)
    for index in range(1, count):
        shutil.copytree(folder / "source_000", folder / f"source_{index:03d}")
    return folder


def write_mixture(folder: Path, count: int) -> Path:
    """A mixture file over the first ``count`` sources, all of one weight."""
    lines = [f"  s{i}: {{root: source_{i:03d}, embodiment: robot.yaml, weight: 1}}" for i in range(count)]
    path = folder / f"mixture_{count}.yaml"
    path.write_text("sources:\n" + "\n".join(lines) + "\n")
    return path


def shape() -> SampleShape:
    return SampleShape.of(InternVLAA1Config(variant="3b", device="cpu", push_to_hub=False))


def open_mixture(file: Path, backend: str, world_size: int = 1) -> MixtureDataset:
    return MixtureDataset(
        load_mixture(file, progress=False),
        shape(),
        repo_id="local/benchmark",
        seed=0,
        batch_size=BATCH,
        world_size=world_size,
        settings=ReadSettings(video_backend=backend),
    )


def readers(folder: Path, backend: str, sizes: list[int]) -> list[Reader]:
    """All ways to read, for mixtures of ``sizes`` sources."""

    def mixture(size: int, world_size: int = 1) -> tuple[Any, Iterator[int]]:
        dataset = open_mixture(folder / f"mixture_{size}.yaml", backend, world_size)
        step = BATCH * world_size  # rank 0 reads the first batch of every step
        return dataset, (start + place for start in range(0, 10**9, step) for place in range(BATCH))

    def stock(size: int, kind: str = "stock") -> tuple[Any, Iterator[int]]:
        ours = open_mixture(folder / f"mixture_{size}.yaml", backend)
        parts = [_stock(source, ours.shape, backend) for source in ours.mixture.sources]
        if kind in ("stock, sparse decoding", "stock, our reader"):
            read_sparsely(parts[0])
        if kind == "stock, sparse decoding":
            parts[0].reader.__class__ = SparseDecoding
        located = (ours.locate(position) for position in range(10**9))
        indices = (source.index * source.num_frames + frame for source, frame in located)  # all are of one length
        return ConcatDataset(parts) if kind == "concatenation" else parts[0], indices

    found = [Reader(kind, 1, functools.partial(stock, 1, kind)) for kind in REFERENCES.values()]
    for size in sizes:
        if size > 1:
            found.append(Reader("concatenation", size, functools.partial(stock, size, "concatenation")))
        found.append(Reader("mixture", size, functools.partial(mixture, size)))
        if size >= RANKS**2:
            found.append(Reader(f"mixture, rank 0 of {RANKS}", size, functools.partial(mixture, size, RANKS)))
    return found


def _stock(source: Source, wanted: SampleShape, backend: str) -> LeRobotDataset:
    return LeRobotDataset(
        source.repo_id,
        root=source.root,
        delta_timestamps=delta_timestamps(source, wanted),
        return_uint8=True,
        video_backend=backend,
    )


def _label(reader: Reader) -> str:
    return f"{reader.name} | {reader.sources}"


# ------------------------------------------------------------------------------------------------- start and memory


def _start(reader: Reader) -> dict[str, float]:
    """In a fresh process: time to the first batch, and memory once all sources have been read from."""
    torch.set_num_threads(1)
    before = _memory()
    cpu, wall = time.process_time(), time.perf_counter()
    dataset, indices = reader.open()
    batches = iter(DataLoader(dataset, batch_size=BATCH, sampler=indices))  # type: ignore[arg-type]
    next(batches)
    result = {"first_batch_s": time.perf_counter() - wall, "first_batch_cpu_s": time.process_time() - cpu}
    for _ in range(SAMPLES_BEFORE_MEMORY // BATCH):
        next(batches)
    after = _memory()
    open_sources = len(dataset.open_sources) if isinstance(dataset, MixtureDataset) else reader.sources
    return result | {"rss_mb": after[0] - before[0], "private_mb": after[1] - before[1], "open_sources": open_sources}


def _memory() -> tuple[float, float]:
    """Resident, and of that not shared with any other process; MB."""
    gc.collect()
    info = psutil.Process().memory_full_info()
    return info.rss / 1e6, info.uss / 1e6


def _in_fresh_process(reader: Reader) -> dict[str, float]:
    context = multiprocessing.get_context("fork")  # nothing is open yet, and imports need not be repeated
    here, there = context.Pipe()
    process = context.Process(target=lambda: there.send(_start(reader)))
    process.start()
    there.close()
    result = here.recv()
    process.join()
    return result


# -------------------------------------------------------------------------------------------------------- throughput


def _stage(reader: Reader, batches: int) -> Callable[[], None]:
    dataset, indices = reader.open()
    if isinstance(dataset, MixtureDataset):
        for piece in dataset.pieces:
            dataset._reader(dataset.mixture.sources[piece.source])
    iterator = iter(DataLoader(dataset, batch_size=BATCH, sampler=indices))  # type: ignore[arg-type]
    decoders = video_utils.VideoDecoderCache()

    def run() -> None:
        # Or one reader would find the files open that another has just read.
        video_utils._default_decoder_cache = decoders
        for _ in range(batches):
            next(iterator)

    return run


def _with_workers(found: list[Reader], workers: int, rounds: int, batches: int) -> dict[str, Clock]:
    """Interleaved rounds of loaders with worker processes; CPU time is that of the workers."""
    ahead = 2 * workers
    clocks = {_label(reader): Clock() for reader in found}
    loaders: dict[str, tuple[Any, list[psutil.Process]]] = {}
    for reader in found:
        dataset, indices = reader.open()
        known = set(psutil.Process().children())
        loader = DataLoader(
            dataset,
            batch_size=BATCH,
            sampler=indices,  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=2,
            multiprocessing_context="fork",
        )
        iterator = iter(loader)
        loaders[_label(reader)] = iterator, [p for p in psutil.Process().children() if p not in known]
        for _ in range(max(2, 2 * reader.sources * workers // BATCH)):  # until every worker has opened every source
            next(iterator)
        _wait_until_idle(loaders[_label(reader)][1])
    for _ in range(rounds):
        for name, (iterator, processes) in loaders.items():
            cpu = _cpu(processes)
            for _ in range(ahead):  # made before this round began
                next(iterator)
            wall = time.perf_counter()
            for _ in range(batches):
                next(iterator)
            clocks[name].wall_s.append(time.perf_counter() - wall)
            _wait_until_idle(processes)  # what was taken is made anew, so as many batches are made as were taken
            clocks[name].cpu_s.append((_cpu(processes) - cpu) * batches / (batches + ahead))
            clocks[name].other_cores.append(float("nan"))
    return clocks


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _wait_until_idle(processes: list[psutil.Process], quiet_s: float = 0.6) -> None:
    before, since = -1.0, time.perf_counter()
    while time.perf_counter() - since < quiet_s:
        time.sleep(0.1)
        now = _cpu(processes)
        if now != before:
            before, since = now, time.perf_counter()


def _summary(clocks: dict[str, Clock], samples: int) -> dict[str, Any]:

    def ratios(name: str) -> dict[str, float]:
        """To each reference, round by round; the median."""
        return {
            f"{kind}_to_{reference}": statistics.median(
                ours / theirs
                for ours, theirs in zip(
                    getattr(clocks[name], f"{kind}_s"), getattr(clocks[f"{label} | 1"], f"{kind}_s"), strict=True
                )
            )
            for reference, label in REFERENCES.items()
            for kind in ("cpu", "wall")
        }

    return {
        name: {
            "wall_median_ms": 1e3 * statistics.median(clock.wall_s) / samples,
            "wall_min_ms": 1e3 * min(clock.wall_s) / samples,
            "cpu_median_ms": 1e3 * statistics.median(clock.cpu_s) / samples,
            "cpu_min_ms": 1e3 * min(clock.cpu_s) / samples,
            "samples_per_s": samples / min(clock.wall_s),
            **ratios(name),
            "cpu_all_ms": [round(1e3 * seconds / samples, 2) for seconds in clock.cpu_s],
            "wall_all_ms": [round(1e3 * seconds / samples, 2) for seconds in clock.wall_s],
        }
        for name, clock in clocks.items()
    }


def run_loader(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time to the first batch and memory in fresh processes, then samples per second in this one and with workers."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {"workers": arguments.workers, "unavailable": {}, "backends": {}}
    results["batch"] = BATCH
    with tempfile.TemporaryDirectory() as temporary:
        say("recording")
        folder = make_sources(Path(temporary, "sources"), max(arguments.sources))
        for size in {1, *arguments.sources}:
            write_mixture(folder, size)
        usable: list[str] = []
        for backend in arguments.backends:
            reason = why_not(backend)
            if reason is None:
                usable.append(backend)
            else:
                results["unavailable"][backend] = reason
        found = {backend: readers(folder, backend, arguments.sources) for backend in usable}
        for backend in usable:
            say(f"{backend}: start and memory")
            largest = max(found[backend], key=lambda reader: (reader.name == "concatenation", reader.sources))
            _in_fresh_process(largest)  # LeRobot converts tables once per computer
            starts = {_label(reader): _in_fresh_process(reader) for reader in found[backend]}
            results["backends"][backend] = {"starts": starts}
        for backend in usable:
            if arguments.workers:
                say(f"{backend}: {arguments.workers} workers")
                some = [r for r in found[backend] if r.name in (*REFERENCES.values(), "mixture")]
                clocks = _with_workers(some, arguments.workers, max(2, arguments.rounds // 2), 2 * arguments.batches)
                samples = 2 * arguments.batches * BATCH
                results["backends"][backend]["with_workers"] = _summary(clocks, samples)
        for backend in usable:
            say(f"{backend}: one process")
            stages = {_label(reader): _stage(reader, arguments.batches) for reader in found[backend]}
            warm = -(-max(arguments.sources) // (arguments.batches * BATCH))  # one frame of every source at least
            clocks = interleave(stages, rounds=arguments.rounds, warmup=warm)
            results["backends"][backend]["one_process"] = _summary(clocks, arguments.batches * BATCH)
    return results


def loader_tables(results: dict[str, Any]) -> list[Table]:
    speed = Table(
        "Loading samples: three cameras at three moments, 50 actions",
        [
            *("backend", "reader", "sources", "workers", "CPU min ms", "CPU median ms", "wall median ms"),
            *(
                "samples/s, best",
                "frames/s, best",
                "CPU to stock",
                "wall to stock",
                "CPU to stock, sparse",
                "wall to stock, sparse",
            ),
        ],
    )
    for backend, parts in results["backends"].items():
        for part, workers in (("one_process", 0), ("with_workers", results["workers"])):
            for label, cost in parts.get(part, {}).items():
                name, sources = label.split(" | ")
                speed.add(
                    backend, name, sources, workers, f"{cost['cpu_min_ms']:.1f}", f"{cost['cpu_median_ms']:.1f}",
                    f"{cost['wall_median_ms']:.1f}", f"{cost['samples_per_s']:.0f}",
                    f"{FRAMES_PER_SAMPLE * cost['samples_per_s']:.0f}",
                    *(f"{cost[ratio]:.2f}"
                      for ratio in ("cpu_to_stock", "cpu_to_decoding", "wall_to_decoding", "cpu_to_reader")),
                )  # fmt: skip
    speed.note = (
        f"Per sample, collated into batches of {results['batch']}; videos are {SIZE[0]} x {SIZE[1]} at 30 frames per "
        "second, LeRobot's default encoding. Readers take turns within a round and read the same frames. Ratios: the "
        "median over rounds of times divided by those of one stock dataset in the same round: as LeRobot reads it; "
        "decoding what a mixture decodes, which is less with pyav and the same with torchcodec; with our whole "
        "reader, which takes actions straight from the table too. Each has its own cache of decoders. CPU: of the "
        "process, or of the workers; other processes disturb it less than wall time, which on a busy machine is mostly "
        "waiting. Samples of a mixture are letterboxed in that time, stock ones are not."
    )
    for reason in results["unavailable"].values():
        speed.note += f" Not measured: {reason}."
    starts = Table(
        "Starting, and memory",
        ["backend", "reader", "sources", "open", "first batch, CPU s", "first batch, wall s", "RSS MB", "private MB"],
    )
    for backend, parts in results["backends"].items():
        for label, cost in parts["starts"].items():
            name, sources = label.split(" | ")
            starts.add(
                backend, name, sources, cost["open_sources"], f"{cost['first_batch_cpu_s']:.2f}",
                f"{cost['first_batch_s']:.2f}", f"{cost['rss_mb']:.0f}", f"{cost['private_mb']:.0f}",
            )  # fmt: skip
    starts.note = (
        "One process that reads, as every data loader worker does, after all imports; tables had been opened on this "
        f"computer before. Memory: growth until {SAMPLES_BEFORE_MEMORY + BATCH} samples were read; private is what no "
        "other process shares."
    )
    return [speed, starts]
