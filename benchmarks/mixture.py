"""What many datasets cost: reading video, planning ranks, loading samples, computing latents.

    python benchmarks/mixture.py decode                                 three moments of every camera; some minutes
    python benchmarks/mixture.py plan                                   sources onto ranks, look-ups in orders; a minute
    python benchmarks/mixture.py loader                                 1, 8 and 64 sources against stock; some minutes
    python benchmarks/mixture.py latents                                training steps with cached latents; some minutes
    python benchmarks/mixture.py loader --output benchmarks/results/x   also writes its section of x.json and x.md

Every subcommand measures one section of a report. Sections that are already in <output>.json stay there. Datasets are
synthetic and made on the spot; nothing is downloaded. What is reported, and how, is described in docs/performance.md.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from measure import Clock, Table, describe_machine, interleave
from mixture_latents import CASES, latents_tables, run_latents
from mixture_loader import loader_tables, run_loader
from mixture_planning import plan_tables, run_plan
from recordings import CAMERAS, quiet, say, textured, why_not
from rich.console import Console

from lerobot_internvla.data.video_reader import frames_per_keyframe, read_sparsely
from lerobot_internvla.testing import tiny_dataset

OFFSET_S = 0.5
"""Foresight looks half a second back and ahead."""


# ------------------------------------------------------------------------------------------------------------ decode


@dataclass(frozen=True)
class Recording:
    """A dataset whose videos are measured."""

    about: str
    record: Callable[[Path], Any]


RECORDINGS = {
    "tiny": Recording(
        "64 x 64, H.264",
        lambda root: tiny_dataset(root, repo_id="local/textured", episode_lengths=(150, 150), cameras=CAMERAS, fps=30),
    ),
    "default": Recording("240 x 320, AV1 (LeRobot's default)", lambda root: textured(root, (240, 320), None)),
    "large": Recording("480 x 640, AV1 (LeRobot's default)", lambda root: textured(root, (480, 640), None)),
    "h264": Recording(
        "240 x 320, H.264",
        lambda root: textured(root, (240, 320), RGBEncoderConfig(vcodec="h264", g=2, crf=23)),
    ),
    "rare_keyframes": Recording(
        "240 x 320, H.264",
        lambda root: textured(root, (240, 320), RGBEncoderConfig(vcodec="h264", g=250, crf=23)),
    ),
}
"""All at 30 frames per second."""

STAGES = ("one frame", "three one-frame decodes", "three moments, stock", "three moments, ours")


def decode_stages(root: Path, backend: str, samples: int) -> dict[str, Callable[[], None]]:
    """Each decodes ``samples`` samples of all three cameras; all of them meet the same frames in the same order."""
    stock, ours = (
        LeRobotDataset("local/textured", root=root, video_backend=backend, return_uint8=True) for _ in range(2)
    )
    read_sparsely(ours)
    fps = stock.fps
    steps = round(OFFSET_S * fps)
    lengths = stock.meta.episodes["length"]

    def stage(read: Callable[[int, list[float]], None]) -> Callable[[], None]:
        generator = random.Random(0)

        def run() -> None:
            for _ in range(samples):
                episode = generator.randrange(len(lengths))
                now = generator.randrange(steps, lengths[episode] - steps)
                # As LeRobot's tables have them: float32.
                read(episode, np.float32([(now - steps) / fps, now / fps, (now + steps) / fps]).tolist())

        return run

    def query(dataset: LeRobotDataset, episode: int, moments: list[float]) -> None:
        request = {f"observation.images.{camera}": moments for camera in CAMERAS}
        dataset.reader._query_videos(request, episode)

    def three_decodes(episode: int, moments: list[float]) -> None:
        for moment in moments:
            query(stock, episode, [moment])

    reads = (
        lambda episode, moments: query(stock, episode, moments[1:2]),
        three_decodes,
        lambda episode, moments: query(stock, episode, moments),
        lambda episode, moments: query(ours, episode, moments),
    )
    return {name: stage(read) for name, read in zip(STAGES, reads, strict=True)}


def run_decode(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per sample of three cameras: one frame, three separate frames, three moments stock and ours."""
    results: dict[str, Any] = {"samples_per_round": arguments.samples, "unavailable": {}, "recordings": {}}
    for backend in arguments.backends:
        reason = why_not(backend)
        if reason is not None:
            results["unavailable"][backend] = reason
    usable = [backend for backend in arguments.backends if backend not in results["unavailable"]]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.recordings:
            say(f"{name}: recording")
            root = Path(folder, name)
            with quiet():
                RECORDINGS[name].record(root)
            videos = sorted(root.glob("videos/**/*.mp4"))
            result: dict[str, Any] = {
                "about": RECORDINGS[name].about,
                "frames_per_keyframe": round(frames_per_keyframe(videos[0]), 2),
                "video_mb": round(sum(video.stat().st_size for video in videos) / 1e6, 2),
                "backends": {},
            }
            # Backends take turns inside a round too.
            stages = {
                f"{backend}|{stage}": run
                for backend in usable
                for stage, run in decode_stages(root, backend, arguments.samples).items()
            }
            say(f"{name}: measuring")
            clocks = interleave(stages, rounds=arguments.rounds)
            for backend in usable:
                result["backends"][backend] = _summary(
                    {stage: clocks[f"{backend}|{stage}"] for stage in STAGES}, arguments.samples
                )
            results["recordings"][name] = result
    return results


def _summary(clocks: dict[str, Clock], samples: int) -> dict[str, Any]:
    """Milliseconds per sample, and ratios to three one-frame decodes: of wall times, the median over rounds."""
    three = clocks["three one-frame decodes"]
    return {
        stage: {
            "min_ms": 1e3 * min(clock.wall_s) / samples,
            "median_ms": 1e3 * statistics.median(clock.wall_s) / samples,
            "cpu_min_ms": 1e3 * min(clock.cpu_s) / samples,
            "to_three_decodes": statistics.median(a / b for a, b in zip(clock.wall_s, three.wall_s, strict=True)),
            "cpu_min_to_three_decodes": min(clock.cpu_s) / min(three.cpu_s),
            "all_ms": [round(1e3 * seconds / samples, 3) for seconds in clock.wall_s],
            "other_cores": [round(cores, 2) for cores in clock.other_cores],
        }
        for stage, clock in clocks.items()
    }


def decode_tables(results: dict[str, Any]) -> list[Table]:
    table = Table(
        "Reading video: three moments (-0.5 s, now, +0.5 s) of three cameras",
        [
            "videos, frames per keyframe",
            "backend",
            "reading",
            "min ms",
            "median ms",
            "CPU min ms",
            "to three decodes",
            "CPU ratio",
        ],
    )
    for recording in results["recordings"].values():
        about = f"{recording['about']}, {recording['frames_per_keyframe']:.0f}"
        for backend, stages in recording["backends"].items():
            for stage, cost in stages.items():
                table.add(
                    about, backend, stage, f"{cost['min_ms']:.1f}", f"{cost['median_ms']:.1f}",
                    f"{cost['cpu_min_ms']:.1f}", f"{cost['to_three_decodes']:.2f}",
                    f"{cost['cpu_min_to_three_decodes']:.2f}",
                )  # fmt: skip
    table.note = (
        "Milliseconds per sample at 30 frames per second: three cameras, decoded by three threads as LeRobot does, up "
        "to the uint8 tensor; tables and collation are not in it. Readings and backends take turns within a round, on "
        "the same random frames. To three decodes: time divided by that of three one-frame decodes in the same "
        "round, the median over rounds; CPU ratio: the same of the CPU times of the fastest rounds, which other "
        "processes disturb least."
    )
    for reason in results["unavailable"].values():
        table.note += f" Not measured: {reason}."
    return [table]


# ---------------------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class Section:
    """A subcommand: what it measures, as plain data for JSON, and the tables that say it."""

    run: Callable[[argparse.Namespace], dict[str, Any]]
    tables: Callable[[dict[str, Any]], list[Table]]


SECTIONS = {
    "decode": Section(run_decode, decode_tables),
    "plan": Section(run_plan, plan_tables),
    "loader": Section(run_loader, loader_tables),
    "latents": Section(run_latents, latents_tables),
}


def write_section(name: str, section: dict[str, Any], output: Path) -> None:
    """Put one section into <output>.json, in the place of an older one, and write all of them to <output>.md."""
    path = output.with_suffix(".json")
    sections: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    sections[name] = section
    sections = {name: sections[name] for name in SECTIONS if name in sections}
    lines = ["# Mixtures: what many datasets cost", ""]
    for name, section in sections.items():
        machine = section["machine"]
        versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
        lines += [
            f"- `{section['command']}`, {machine['date']}: {machine['cores']} cores of {machine['processor']}, "
            f"{machine['memory_gb']:g} GB; {versions}; load average (1, 5, 15 min) {machine['load_average']} at the "
            f"start, {machine['load_average_at_end']} at the end",
            "",
        ]
        lines += [table.markdown() for table in SECTIONS[name].tables(section["results"])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sections, indent=1) + "\n")
    output.with_suffix(".md").write_text("\n".join(lines))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point; returns the section it measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    subcommands = parser.add_subparsers(dest="section", required=True)
    decode = subcommands.add_parser("decode", help="three moments of every camera, per backend")
    decode.add_argument("--recordings", nargs="*", choices=list(RECORDINGS), default=list(RECORDINGS))
    decode.add_argument("--backends", nargs="*", choices=["pyav", "torchcodec"], default=["pyav", "torchcodec"])
    decode.add_argument("--samples", type=int, default=4, help="samples per timed round")
    decode.add_argument("--rounds", type=int, default=10, help="timed rounds")
    plan = subcommands.add_parser("plan", help="sources onto ranks, and look-ups in an order")
    loader = subcommands.add_parser("loader", help="samples of 1, 8 and 64 sources, against stock LeRobot")
    loader.add_argument("--backends", nargs="*", choices=["pyav", "torchcodec"], default=["pyav", "torchcodec"])
    loader.add_argument("--sources", nargs="*", type=int, default=[1, 8, 64], help="sizes of mixtures")
    loader.add_argument("--rounds", type=int, default=8, help="timed rounds")
    loader.add_argument("--batches", type=int, default=2, help="batches of 8 samples per timed round")
    loader.add_argument("--workers", type=int, default=2, help="for the part with data loader workers; 0 leaves it out")
    latents = subcommands.add_parser("latents", help="training steps with and without cached latents")
    latents.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    latents.add_argument("--rounds", type=int, default=8, help="timed rounds; at most 4 with Cosmos in full size")
    latents.add_argument("--threads", type=int, default=1)
    for command in (decode, plan, loader, latents):
        command.add_argument("--output", type=Path, help="add the section to <output>.json and <output>.md")
    arguments = parser.parse_args(argv)

    machine = describe_machine()
    results = SECTIONS[arguments.section].run(arguments)
    given = list(sys.argv[1:] if argv is None else argv)
    section = {
        "command": "python " + shlex.join(["benchmarks/mixture.py", *given]),
        "machine": machine.as_dict() | {"load_average_at_end": describe_machine().load_average},
        "results": results,
    }
    console = Console()
    console = console if console.is_terminal else Console(width=170)
    for table in SECTIONS[arguments.section].tables(results):
        console.print(table.rich())
    if arguments.output is not None:
        write_section(arguments.section, section, arguments.output)
        console.print(f"Written: {arguments.output.with_suffix('.json')}, {arguments.output.with_suffix('.md')}")
    return section


if __name__ == "__main__":
    main()
