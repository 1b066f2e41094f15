"""What will fail on the robot, before it does. Nothing is connected and nothing moves.

    internvla-check                                                      versions, plugin, device
    internvla-check --policy.path=<checkpoint>                           ... and: loads, latency, memory
    internvla-check --policy.path=<checkpoint> --dataset.root=<folder>   ... and: cameras, joints, rate
    internvla-check --policy.path=<checkpoint> --robot.type=so101_follower --robot.port=/dev/ttyACM0 \\
                    --robot.cameras='{top: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}' --fps=30

--robot.*, --rename_map and --policy.<field> are those of lerobot-rollout. Any LeRobot policy can be checked.
Exit code 0: nothing will fail, though there may be warnings; 1: something will; 2: wrong command line.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draccus
from lerobot.robots.config import RobotConfig

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.scripts.messages import says_what_is_wrong

if TYPE_CHECKING:
    from lerobot_internvla.evaluation.readiness import Finding, Surroundings

COLOURS = {"ok": "green", "warning": "yellow", "failure": "bold red"}


@dataclass
class CheckedDataset:
    """A dataset whose metadata the policy is held against; no frames are read."""

    repo_id: str | None = None  # Default: local/<name of the folder>.
    root: str | None = None  # Folder of the dataset itself. Default: LeRobot's cache, else the Hub.
    revision: str | None = None  # Branch, tag or commit on the Hub.


@dataclass
class CheckArguments:
    """Everything but the policy, which is named by --policy.path."""

    dataset: CheckedDataset = field(default_factory=CheckedDataset)
    robot: RobotConfig | None = None  # As in lerobot-rollout: --robot.type=..., its port, its cameras.
    fps: float | None = None  # Control rate, as in lerobot-rollout. Default: the dataset's.
    rename_map: dict[str, str] = field(default_factory=dict)  # '{"<key there>": "<policy key>"}', where they differ.
    device: str | None = None  # cpu, cuda, mps. Default: the policy's.
    repetitions: int = 5  # Predictions that are timed, after one to warm up.
    json: bool = False  # Print JSON instead of a table.


def findings(arguments: CheckArguments, policy_path: str | None, overrides: Sequence[str]) -> "Iterator[Finding]":
    """Everything that the command finds, in order.

    Raises:
        InternVLAError: the command line makes no sense. What is wrong with policy, robot or dataset is a finding.
    """
    from lerobot_internvla.evaluation import readiness
    from lerobot_internvla.evaluation.loading import load_policy, saved_device
    from lerobot_internvla.evaluation.readiness import Finding

    if arguments.repetitions < 1:
        raise InternVLAError(f"repetitions is {arguments.repetitions}, expected at least 1.")
    if arguments.fps is not None and not arguments.fps > 0:
        raise InternVLAError(f"fps is {arguments.fps:g}, expected more than 0.")
    yield from readiness.check_versions()
    yield from readiness.check_plugin()
    around: list[Surroundings] = []
    yield from _surroundings(arguments, around)
    fps = arguments.fps or next((one.fps for one in around if one.fps is not None), None)
    if policy_path is None:
        yield from readiness.check_device(None)
        for one in around:
            yield Finding("cameras", "ok", f"{one.what}: {', '.join(one.cameras) or 'none'}")
        return
    started = time.perf_counter()
    try:
        policy = load_policy(policy_path, overrides=overrides, device=arguments.device, rename_map=arguments.rename_map)
    except InternVLAError as error:
        yield from readiness.check_device(arguments.device)
        yield Finding("checkpoint", "failure", str(error))
        return
    config = policy.config
    seconds = time.perf_counter() - started
    typed = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("--device=")), arguments.device)
    yield from readiness.check_device(typed or config.device, None if typed else saved_device(policy_path))
    kind = f"{config.type} {config.variant}" if policy.is_ours else config.type
    strictly = ", every weight in its place" if policy.is_ours else " (LeRobot does not check all its weights)"
    yield Finding("checkpoint", "ok", f"{kind}, loaded in {seconds:.1f} s{strictly}")
    state_dim = None
    trained = getattr(config, "fps", None)
    for one in around:
        try:
            expected = readiness.expected_here(config, one)
        except InternVLAError as error:
            yield Finding("joints", "failure", f"{one.what}: {error}")
            continue
        state_dim, trained = expected.state_dim, expected.fps
        yield from readiness.check_cameras(config, expected, one, arguments.rename_map)
        yield from readiness.check_joints(expected, one)
        yield from readiness.check_limits(config, one)
    if not around:
        text = "not compared with any robot or dataset"
        yield Finding("cameras", "warning", text, "--robot.type=... as in lerobot-rollout, or --dataset.root=...")
    yield from readiness.check_rate(config, trained, fps)
    try:
        times = readiness.measure_chunk_s(policy, arguments.repetitions, state_dim)
    except InternVLAError as error:
        yield Finding("latency", "failure", str(error))
        return
    yield from readiness.check_latency(config, times, fps, supports_rtc=policy.policy.supports_rtc())
    yield from readiness.check_memory(policy)


def _surroundings(arguments: CheckArguments, around: "list[Surroundings]") -> "Iterator[Finding]":
    """Findings about robot and dataset themselves; what can be compared is put into ``around``."""
    from lerobot_internvla.evaluation import readiness
    from lerobot_internvla.evaluation.loading import read_metadata
    from lerobot_internvla.evaluation.readiness import Finding

    if arguments.robot is not None:
        try:
            from lerobot.robots.utils import make_robot_from_config

            robot = make_robot_from_config(arguments.robot)
            around.append(readiness.surroundings_of_robot(robot, arguments.fps))
            yield Finding("robot", "ok", f"{robot.name}; not connected")
        except Exception as error:  # every robot has its own SDK
            # LeRobot has several names for one configuration, and .type is not always the one that was typed.
            text = f"{type(arguments.robot).__name__} cannot be built: {type(error).__name__}: {error}"
            yield Finding("robot", "failure", text, "lerobot-rollout would fail at the same place")
    source = arguments.dataset
    if source.root is not None or source.repo_id is not None:
        try:
            name = source.repo_id or f"local/{Path(str(source.root)).resolve().name}"
            meta = read_metadata(name, source.root, source.revision)
            around.append(readiness.surroundings_of_dataset(meta))
            text = f"{meta.repo_id}: {meta.total_episodes} episodes, {meta.fps:g} fps, robot_type {meta.robot_type}"
            yield Finding("dataset", "ok", text)
        except InternVLAError as error:
            yield Finding("dataset", "failure", str(error))


def _collect(findings: "Iterator[Finding]") -> "list[Finding]":
    """All of them; says on a terminal how far it is, because loading a large policy takes minutes."""
    from rich.console import Console

    found: list[Finding] = []
    with Console(stderr=True).status("looking at the installation") as status:
        for finding in findings:
            found.append(finding)
            areas = ", ".join(dict.fromkeys(one.area for one in found))
            status.update(f"looked at: {areas}; going on")
    return found


def _print(found: "Sequence[Finding]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    previous = ""
    for finding in found:
        if previous and finding.area != previous:
            table.add_section()
        text = escape(finding.text)
        if finding.advice and finding.verdict != "ok":
            text += f"\n[dim]next: {escape(finding.advice)}[/]"
        colour = COLOURS[finding.verdict]
        table.add_row(finding.area if finding.area != previous else "", f"[{colour}]{finding.verdict}[/]", text)
        previous = finding.area
    Console().print(table)


def verdict_line(found: "Sequence[Finding]") -> str:
    """The last line: is it ready?"""
    counts = {verdict: sum(finding.verdict == verdict for finding in found) for verdict in COLOURS}
    warnings = f"{counts['warning']} warning{'s' * (counts['warning'] != 1)}"
    if counts["failure"]:
        count = counts["failure"]
        return f"NOT READY: {count} thing{'s' * (count > 1)} will fail; {warnings}."
    return f"READY, with {warnings}." if counts["warning"] else "READY."


@says_what_is_wrong("internvla-check", argparse.ArgumentError, draccus.utils.DecodingError)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-check``."""
    from lerobot.configs import parser

    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    if any(argument.startswith("--robot") for argument in argv):
        _register_robots()
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        parser.print_scoped_help(CheckArguments, argv)
        return 0
    policy_path = parser.get_path_arg("policy", argv)
    overrides = parser.get_cli_overrides("policy", argv) or []
    if overrides and policy_path is None:
        raise InternVLAError(f"{' '.join(overrides)}: which policy? Pass --policy.path=<checkpoint folder or Hub id>.")
    arguments = draccus.parse(CheckArguments, args=parser.filter_path_args("policy", argv))
    found = _collect(findings(arguments, policy_path, overrides))
    failed = any(finding.verdict == "failure" for finding in found)
    if arguments.json:
        print(json.dumps({"ready": not failed, "findings": [finding.as_dict() for finding in found]}, indent=1))
    else:
        _print(found)
        print(verdict_line(found))
    return 1 if failed else 0


def _register_robots() -> Any:
    """Robot and camera types, as lerobot-rollout knows them: by importing what it imports, and plugins."""
    from lerobot.scripts import lerobot_rollout
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    return lerobot_rollout


if __name__ == "__main__":
    raise SystemExit(main())
