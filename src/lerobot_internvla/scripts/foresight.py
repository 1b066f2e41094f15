"""Look at the future that a policy imagines: past | now | predicted | true | error, and PSNR against two baselines.

    internvla-foresight --policy.path=outputs/train/my_run/checkpoints/last/pretrained_model \\
                        --dataset.repo_id=me/my_dataset [--dataset.root=<folder>] --output_dir=outputs/foresight

Writes a panel (PNG) for some moments, a video over one episode, and summary.json; prints the table and every path.
Flags are written as in LeRobot's own commands; --policy.<field>=... overrides the checkpoint's configuration.
"""

import argparse
import datetime
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draccus

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.scripts.messages import says_what_is_wrong

if TYPE_CHECKING:
    from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
    from lerobot_internvla.foresight import ForesightReport
    from lerobot_internvla.modeling_internvla_a1 import InternVLAA1Policy


@dataclass
class DatasetArguments:
    """Which frames to look at."""

    repo_id: str  # Name of the dataset, as in lerobot-train.
    root: str | None = None  # Folder of the dataset itself. Default: LeRobot's cache, else the Hub.
    episodes: list[int] | None = None  # Only these, e.g. '[40,41]' for episodes that training has not seen.
    revision: str | None = None  # Branch, tag or commit on the Hub.
    video_backend: str | None = None  # torchcodec or pyav. Default: what works here.


@dataclass
class ForesightArguments:
    """Everything but the policy, which is named by --policy.path."""

    dataset: DatasetArguments
    episode: int | None = None  # The video shows it, and moments come from it unless dataset.episodes says otherwise.
    n_samples: int = 8  # Moments with a panel, drawn at random.
    seed: int = 0  # The same seed draws the same moments.
    video: bool = True  # Also write a video over one episode. Default: the episode of the first panel.
    video_every: int = 1  # One video frame for every so many dataset frames; it plays in real time.
    batch_size: int = 8  # Frames per forward pass.
    device: str | None = None  # cpu, cuda, mps. Default: the policy's.
    rename_map: dict[str, str] = field(default_factory=dict)  # '{"<dataset key>": "<policy key>"}', where they differ.
    tolerance_s: float = 1e-4  # How far a video frame may be from its timestamp, as in lerobot-train.
    output_dir: Path | None = None  # Default: outputs/foresight/<date>/<time>.
    overwrite: bool = False  # Replace panels, videos and summary in an output_dir that is not empty.


def load_config(path: str, overrides: Sequence[str]) -> "InternVLAA1Config":
    """A checkpoint's configuration, without its weights.

    Raises:
        InternVLAError: no such folder or Hub repository, another policy type, unreadable.
    """
    from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
    from lerobot_internvla.evaluation.loading import read_config

    config = read_config(path, overrides)
    if not isinstance(config, InternVLAA1Config):
        raise InternVLAError(
            f"{path!r} holds a policy of type {config.type!r}; foresight needs one of type 'internvla_a1'."
        )
    return config


def load_policy(config: "InternVLAA1Config") -> "InternVLAA1Policy":
    """The policy of a checkpoint, with its adapter when it was trained with ``--peft.*``."""
    from lerobot_internvla.checkpoints.adapters import load_with_adapter
    from lerobot_internvla.modeling_internvla_a1 import InternVLAA1Policy

    path = str(config.pretrained_path)
    if not config.use_peft:
        return InternVLAA1Policy.from_pretrained(path, config=config)
    # The adapter's layers are put into the policy itself, so the policy is what we go on with.
    return load_with_adapter(path, config=config).get_base_model()


def open_dataset(arguments: ForesightArguments, config: "InternVLAA1Config") -> Any:
    """The LeRobotDataset, checked against the policy before a single frame is read.

    Raises:
        InternVLAError: no such dataset or episode, or one that does not fit the policy.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_internvla.camera_slots import resolve_camera_slots
    from lerobot_internvla.foresight import check_dataset, foresight_delta_timestamps, slots_of_dataset

    source = arguments.dataset
    # LeRobot would make the folder and then ask the Hub for it.
    if source.root is not None and not Path(source.root, "meta", "info.json").is_file():
        raise InternVLAError(
            f"There is no dataset in {source.root!r}: it has no meta/info.json. --dataset.root is the folder of the "
            "dataset itself, the one that holds meta, data and videos."
        )
    try:
        meta = LeRobotDatasetMetadata(source.repo_id, root=source.root, revision=source.revision)
    except Exception as error:  # file system, Hub and parquet each have their own
        raise InternVLAError(
            f"Cannot open the dataset {source.repo_id!r}: {error}. For one on this machine: --dataset.root=<folder>."
        ) from error
    slots = resolve_camera_slots(list(config.image_features), config.camera_slots)
    frames_ahead = check_dataset(config, slots, meta, arguments.rename_map)
    slots = slots_of_dataset(config, slots, meta, arguments.rename_map)
    episodes = source.episodes
    if episodes is None and arguments.episode is not None:
        episodes = [arguments.episode]
    unknown = sorted(set(episodes or []) - set(range(meta.total_episodes)))
    if unknown:
        raise InternVLAError(
            f"There is no episode {', '.join(map(str, unknown))} in {source.repo_id!r}; it has 0 to "
            f"{meta.total_episodes - 1}."
        )
    return LeRobotDataset(
        source.repo_id,
        root=source.root,
        episodes=episodes,
        delta_timestamps=foresight_delta_timestamps(slots, frames_ahead, meta.fps, arguments.rename_map),
        tolerance_s=arguments.tolerance_s,
        revision=source.revision,
        video_backend=source.video_backend,
        return_uint8=True,
    )


def foresight(arguments: ForesightArguments, policy_path: str, policy_overrides: Sequence[str]) -> "ForesightReport":
    """Everything that the command does except printing.

    Raises:
        InternVLAError: nothing is written then.
    """
    from lerobot_internvla.foresight import require_free, write_report

    output_dir = arguments.output_dir or Path("outputs/foresight", f"{datetime.datetime.now():%Y-%m-%d/%H-%M-%S}")
    require_free(output_dir, overwrite=arguments.overwrite)
    device = [] if arguments.device is None else [f"--device={arguments.device}"]
    config = load_config(policy_path, [*policy_overrides, *device])
    dataset = open_dataset(arguments, config)
    policy = load_policy(config)
    return write_report(
        policy,
        dataset,
        output_dir,
        n_samples=arguments.n_samples,
        seed=arguments.seed,
        video=arguments.video,
        episode=arguments.episode,
        video_every=arguments.video_every,
        batch_size=arguments.batch_size,
        rename_map=arguments.rename_map,
        overwrite=arguments.overwrite,
        about={
            "policy": policy_path,
            "variant": config.variant,
            "dataset": arguments.dataset.repo_id,
            "dataset_root": arguments.dataset.root,
            "dataset_episodes": dataset.episodes,
        },
    )


def _print(report: "ForesightReport") -> None:
    from rich.console import Console

    console = Console()
    console.print()
    console.print(report.moments.as_table(f"{len(report.panels)} moments"))
    summaries = [("panels", report.moments)]
    if report.episode is not None:
        console.print()
        console.print(report.episode.as_table(f"episode {report.video_episode}"))
        summaries.append((f"episode {report.video_episode}", report.episode))
    console.print()
    for name, summary in summaries:
        for sentence in summary.verdicts:
            print(f"{name}, {sentence}")
    print()
    for path in report.paths:
        print(path)


@says_what_is_wrong("internvla-foresight", argparse.ArgumentError, draccus.utils.DecodingError)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-foresight``."""
    from lerobot.configs import parser

    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        parser.print_scoped_help(ForesightArguments, argv)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    policy_path = parser.get_path_arg("policy", argv)
    if policy_path is None:
        raise InternVLAError(
            "Which policy? Pass --policy.path=<checkpoint folder or Hub id>, for example "
            "--policy.path=outputs/train/my_run/checkpoints/last/pretrained_model. All flags: --help"
        )
    overrides = parser.get_cli_overrides("policy", argv) or []
    arguments = draccus.parse(ForesightArguments, args=parser.filter_path_args("policy", argv))
    _print(foresight(arguments, policy_path, overrides))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
