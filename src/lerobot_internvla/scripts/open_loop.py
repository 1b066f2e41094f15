"""Open-loop error of a policy on recorded episodes, beside baselines that know nothing. No robot, no simulator.

    internvla-openloop --policy.path=outputs/train/my_run/checkpoints/last/pretrained_model \\
                       --dataset.repo_id=me/my_dataset [--dataset.root=<folder>] --dataset.episodes='[40,41,42]'

Any LeRobot policy that predicts chunks will do; give --policy.path several times to compare several on one page. Writes
report.html, report.md, report.json and pictures; prints the table and every path. Use episodes that training has not
seen. --policy.<field>=... overrides the checkpoint's configuration, with one policy only.
"""

import argparse
import datetime
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import draccus

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.scripts.foresight import DatasetArguments
from lerobot_internvla.scripts.messages import says_what_is_wrong

if TYPE_CHECKING:
    from lerobot_internvla.evaluation.open_loop import OpenLoopResult
    from lerobot_internvla.evaluation.report import Foresight, WrittenReport


@dataclass
class OpenLoopArguments:
    """Everything but the policies, which are named by --policy.path."""

    dataset: DatasetArguments
    names: list[str] = field(default_factory=list)  # One per policy, for tables. Default: type and folder.
    stride: int | None = None  # Frames between two predictions. Default: the smallest n_action_steps.
    batch_size: int = 8  # Moments per forward pass.
    num_workers: int = 0  # Processes that read frames.
    seed: int = 0  # Of the policies' noise and of the choice of moments for foresight.
    plots: int = 3  # Episodes whose chunks are drawn.
    foresight_samples: int = 32  # Moments for foresight, where a policy has it. 0: none.
    embodiment: str | None = None  # Preset or YAML file that says the units. Default: by the dataset's robot_type.
    device: str | None = None  # cpu, cuda, mps. Default: each policy's.
    rename_map: dict[str, str] = field(default_factory=dict)  # '{"<dataset key>": "<policy key>"}', where they differ.
    tolerance_s: float = 1e-4  # How far a video frame may be from its timestamp, as in lerobot-train.
    output_dir: Path | None = None  # Default: outputs/open_loop/<date>/<time>.
    overwrite: bool = False  # Replace the report in an output_dir that is not empty.


def open_loop(
    arguments: OpenLoopArguments, paths: Sequence[str], overrides: Sequence[str]
) -> "tuple[OpenLoopResult, list[Foresight], WrittenReport]":
    """Everything that the command does except printing.

    Raises:
        InternVLAError: nothing is written then.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_internvla.evaluation.loading import distinct_names, load_policy, read_config, read_metadata
    from lerobot_internvla.evaluation.open_loop import evaluate_open_loop
    from lerobot_internvla.evaluation.report import evaluate_foresight, write_report
    from lerobot_internvla.foresight import require_free

    problems: list[str] = []
    if overrides and len(paths) > 1:
        problems.append(f"{' '.join(overrides)}: with several policies it is not clear whose; evaluate them one by one")
    if arguments.names and len(set(arguments.names)) != len(paths):
        problems.append(f"--names has {len(set(arguments.names))} different names for {len(paths)} policies")
    if arguments.foresight_samples < 0:
        problems.append(f"foresight_samples is {arguments.foresight_samples}, expected 0 or more")
    if problems:
        raise InternVLAError("; ".join(problems) + ".")
    output_dir = arguments.output_dir or Path("outputs/open_loop", f"{datetime.datetime.now():%Y-%m-%d/%H-%M-%S}")
    require_free(output_dir, overwrite=arguments.overwrite, replaced="the report in it")
    source = arguments.dataset
    meta = read_metadata(source.repo_id, source.root, source.revision)
    unknown = sorted(set(source.episodes or []) - set(range(meta.total_episodes)))
    if unknown:
        raise InternVLAError(
            f"There is no episode {', '.join(map(str, unknown))} in {source.repo_id!r}; it has 0 to "
            f"{meta.total_episodes - 1}."
        )
    types = [read_config(path, overrides).type for path in paths]
    policies = [
        load_policy(path, name=name, overrides=overrides, device=arguments.device, rename_map=arguments.rename_map)
        for path, name in zip(paths, arguments.names or distinct_names(paths, types), strict=True)
    ]
    dataset = LeRobotDataset(
        source.repo_id,
        root=source.root,
        episodes=source.episodes,
        tolerance_s=arguments.tolerance_s,
        revision=source.revision,
        video_backend=source.video_backend,
    )
    result = evaluate_open_loop(
        policies,
        dataset,
        stride=arguments.stride,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        seed=arguments.seed,
        n_plots=arguments.plots,
        embodiment=arguments.embodiment,
        rename_map=arguments.rename_map,
    )
    foresight = evaluate_foresight(
        policies,
        dataset,
        n_samples=arguments.foresight_samples,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        rename_map=arguments.rename_map,
    )
    about = {"dataset_root": source.root, "rename_map": arguments.rename_map, "policy_overrides": list(overrides)}
    written = write_report(result, foresight, output_dir, about=about, overwrite=arguments.overwrite)
    return result, foresight, written


def _print(result: "OpenLoopResult", foresight: "Sequence[Foresight]", written: "WrittenReport") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from lerobot_internvla.evaluation.open_loop import BASELINES
    from lerobot_internvla.evaluation.report import held_out, number

    steps = result.shared_steps
    table = Table(
        title=f"Mean absolute error over the first {steps} steps of each chunk",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("joint", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    columns = {policy.name: policy.errors.first(steps).mae() for policy in result.policies}
    columns |= {name: result.baseline(name, steps).mae() for name in BASELINES}
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for i, joint in enumerate(result.joints):
        table.add_row(joint.name, joint.unit, *(number(float(values[i])) for values in columns.values()))
    console = Console()
    console.print()
    console.print(table)
    for note in result.joints.notes:
        print(note)
    for policy in result.policies:
        print(result.verdict(policy))
        print(f"{policy.name}: {held_out(policy, result.episodes)}")
    for entry in foresight:
        for sentence in entry.summary.verdicts:
            print(f"{entry.policy}, {sentence}")
    print()
    for path in written.paths:
        print(path)


def policy_paths(argv: Sequence[str]) -> list[str]:
    """Every value of --policy.path, in order: --policy.path=a, --policy.path a, several times."""
    flag, found = "--policy.path", list[str]()
    for i, argument in enumerate(argv):
        if argument.startswith(flag + "="):
            found.append(argument.removeprefix(flag + "="))
        elif argument == flag and i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            found.append(argv[i + 1])
    return found


@says_what_is_wrong("internvla-openloop", argparse.ArgumentError, draccus.utils.DecodingError)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-openloop``."""
    from lerobot.configs import parser

    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        parser.print_scoped_help(OpenLoopArguments, argv)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    paths = policy_paths(argv)
    if not paths:
        raise InternVLAError(
            "Which policy? Pass --policy.path=<checkpoint folder or Hub id>, for example "
            "--policy.path=outputs/train/my_run/checkpoints/last/pretrained_model. All flags: --help"
        )
    overrides = parser.get_cli_overrides("policy", argv) or []
    arguments = draccus.parse(OpenLoopArguments, args=parser.filter_path_args("policy", argv))
    _print(*open_loop(arguments, paths, overrides))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
