"""What a mixture file becomes on your number of ranks, before you train.

    internvla-mixture show FILE --world-size 8                      shares, repetitions, hours, memory per rank
    internvla-mixture show FILE --world-size 8 --output outputs/x   the same as mixture_report.json and .png
    internvla-mixture show FILE --world-size 8 --samples 3_840_000  with passes over every source in a run
    internvla-mixture cache-latents FILE --policy.path=CHECKPOINT   latents of every frame, written beside the datasets

show reads metadata only: no video is opened, and only metadata is downloaded. More: docs/mixtures.md.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.scripts.messages import says_what_is_wrong

if TYPE_CHECKING:
    from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
    from lerobot_internvla.data.mixture_report import MixtureReport, RankReport, SourceReport

RANKS_SHOWN = 16
"""Up to so many ranks are listed one by one."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvla-mixture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="shares, repetitions, hours and memory per rank")
    show.add_argument("file", metavar="FILE", type=Path, help="mixture file (YAML)")
    show.add_argument(
        "--world-size", type=int, required=True, metavar="K", help="ranks: training processes, one per GPU"
    )
    show.add_argument("--strategy", choices=("exact", "lpt"), help="list the ranks of this one (default: the file's)")
    show.add_argument("--samples", type=int, metavar="N", help="samples of the run: steps x batch size x ranks")
    show.add_argument("--output", type=Path, metavar="FOLDER", help="also write mixture_report.json and .png there")
    show.set_defaults(run=_show)
    _add_cache_latents(commands.add_parser("cache-latents", help="write the image tokenizer's latents of every frame"))
    return parser


def _add_cache_latents(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the latents of every frame, so that --policy.latent_cache=true trains without the image tokenizer. What "
        "is there already is left alone: an interrupted run goes on when it is started again."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="mixture file (YAML)")
    policy = parser.add_mutually_exclusive_group(required=True)
    policy.add_argument("--policy.path", dest="policy_path", metavar="CHECKPOINT", help="folder or Hub id of a policy")
    policy.add_argument("--variant", help="for training from scratch: 3b, 2b or tiny")
    parser.add_argument("--image-tokenizer", metavar="FOLDER", help="folder or Hub id, as --policy.image_tokenizer")
    parser.add_argument("--image-tokenizer-dtype", choices=("bfloat16", "float32"), help="default: the policy's")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="frames encoded at once (32)")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="processes that decode (2)")
    parser.add_argument("--video-backend", help="as --dataset.video_backend in training (default: LeRobot's)")
    parser.add_argument("--verify", type=int, default=8, metavar="N", help="random samples compared afterwards (8)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and stop")
    parser.set_defaults(run=_cache_latents)


def _config_of(policy: str) -> "InternVLAA1Config":
    """The configuration in a folder, or of a policy on the Hub."""
    from huggingface_hub import hf_hub_download

    from lerobot_internvla.checkpoints.policy_config import read_policy_config

    folder = Path(policy)
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(policy, "config.json")).parent
        except (OSError, ValueError) as error:  # no such repository, no network, not the form of a name
            raise InternVLAError(f"There is no folder {policy!r}, and the Hub says: {error}") from error
    return read_policy_config(folder)


def _cache_latents(arguments: argparse.Namespace) -> int:
    import torch

    from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
    from lerobot_internvla.data.canonical import SampleShape
    from lerobot_internvla.data.latent_cache import LatentRecipe, open_latents
    from lerobot_internvla.data.latent_writing import gigabytes, plan_latents, verify_latents, write_latents
    from lerobot_internvla.data.mixture_dataset import ReadSettings
    from lerobot_internvla.data.sources import load_mixture
    from lerobot_internvla.data.stock_mixture import image_tokenizer_of

    if arguments.batch_size < 1 or arguments.num_workers < 0 or arguments.verify < 0:
        raise InternVLAError("--batch-size must be at least 1; --num-workers and --verify must not be negative.")
    if arguments.policy_path is not None:
        config = _config_of(arguments.policy_path)
        config.pretrained_path = Path(arguments.policy_path)
    else:
        config = InternVLAA1Config(variant=arguments.variant)
    config.image_tokenizer = arguments.image_tokenizer or config.image_tokenizer
    config.image_tokenizer_dtype = arguments.image_tokenizer_dtype or config.image_tokenizer_dtype
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")

    mixture = load_mixture(arguments.file)
    tokenizer = image_tokenizer_of(config)
    recipe = LatentRecipe.of(tokenizer, config.architecture)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.to(device)
    plan = plan_latents(mixture, recipe)
    print(
        f"Latents {recipe.fingerprint}: {plan.present_files:,} files are there, {plan.files:,} are missing: "
        f"{plan.pictures:,} frames, {gigabytes(plan.bytes)} ({recipe.bytes_per_frame / 1e3:.4g} kB each, "
        f"{recipe.image_tokenizer['dtype']})"
    )
    for part in plan.sources:
        if part.episodes:
            print(f"  {part.source.name}: {gigabytes(part.pictures * recipe.bytes_per_frame)} in {part.folder}")
    plan.refuse_if_too_large()
    if arguments.dry_run:
        return 0
    write_latents(
        plan,
        tokenizer,
        device=device,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        video_backend=arguments.video_backend,
    )
    cache = open_latents(mixture, recipe, command="internvla-mixture cache-latents")
    if arguments.verify:
        found = verify_latents(
            mixture,
            cache,
            tokenizer,
            SampleShape.of(config),
            samples=arguments.verify,
            device=device,
            settings=ReadSettings(video_backend=arguments.video_backend),
        )
        print(found)
    print("Train with --policy.latent_cache=true.")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from lerobot_internvla.data.mixture_report import report_mixture, save_report
    from lerobot_internvla.data.sources import load_mixture

    report = report_mixture(
        load_mixture(arguments.file),
        arguments.world_size,
        strategy=arguments.strategy,
        samples=arguments.samples,
    )
    console = Console()
    for table in render(report):
        console.print(table)
        console.print()
    if arguments.output is not None:
        for path in save_report(report, arguments.output):
            print(path)
    return 0


def render(report: "MixtureReport") -> list[Table]:
    """Sources; the spread over ranks under both strategies; and, if they are few, the ranks one by one."""
    tables = [_sources(report), _spread(report)]
    if report.world_size <= RANKS_SHOWN:
        tables.append(_ranks(report))
    return tables


def _sources(report: "MixtureReport") -> Table:
    from lerobot_internvla.data.mixture_report import RANK_STRATEGIES, counted, largest_and_rest, shortened, sum_up

    table = Table(
        title=f"{report.file}: {counted(len(report.sources), 'source')} on {counted(report.world_size, 'rank')}",
        title_justify="left",
    )
    table.add_column("source", overflow="fold")
    table.add_column("robot", overflow="fold")
    for heading in ("frames", "hours", "requested\n%"):
        table.add_column(heading, justify="right")
    # The strategy in use stands out.
    styles = {name: "bold" if name == report.strategy else "" for name in RANK_STRATEGIES}
    # With a number of samples: passes over the source; without: how often a frame comes in a million samples.
    repetition = "draws/frame\nper 1M" if report.samples is None else f"passes per\n{report.samples:,}"
    for heading in ("realised\n%", repetition):
        for name in RANK_STRATEGIES:
            table.add_column(f"{heading}\n{name}", justify="right", style=styles[name])

    def add(row: "SourceReport") -> None:
        uses = [row.use[name] for name in RANK_STRATEGIES]
        robot = row.embodiment if row.trains_actions else f"{row.embodiment} (foresight)"
        table.add_row(
            shortened(row.name, 30),
            robot if row.embodiment else "",
            f"{row.frames:,}",
            f"{row.hours:,.2f}",
            _percent(row.requested),
            *(_percent(use.share) for use in uses),
            *(_number(use.draws_per_frame if use.passes is None else use.passes) for use in uses),
        )

    for row in largest_and_rest(report):
        add(row)
    table.add_section()
    add(sum_up(report.sources, "all"))
    variation = ", ".join(f"{name} {report.total_variation[name]:.4f}" for name in RANK_STRATEGIES)
    uneven = max(row.use["exact"].most_drawn for row in report.sources)
    table.caption = (
        f"total variation to the request: {variation}\n"
        f"exact: no frame comes more than {uneven:.2f} times as often as the average frame of its source"
    )
    table.caption_justify = "left"
    return table


def _spread(report: "MixtureReport") -> Table:
    table = Table(title="per rank", title_justify="left")
    for heading in ("strategy", "", "samples\n%", "open\npieces", "frames", "hours", "memory per\nprocess, MB"):
        table.add_column(heading, justify="left" if heading in ("strategy", "") else "right")
    kinds: dict[str, Callable[[list[float]], float]] = {"least": min, "median": statistics.median, "most": max}
    for name, ranks in report.ranks.items():
        columns = [
            [rank.mass * 100 for rank in ranks],
            [float(len(rank.sources)) for rank in ranks],
            [float(rank.frames) for rank in ranks],
            [rank.hours for rank in ranks],
            [rank.memory_bytes / 1e6 for rank in ranks],
        ]
        for kind, choose in kinds.items():
            mass, pieces, frames, hours, memory = map(choose, columns)
            table.add_row(
                name if kind == "least" else "",
                kind,
                f"{mass:.3g}",
                f"{pieces:,.10g}",
                f"{frames:,.0f}",
                f"{hours:,.2f}",
                f"{memory:,.0f}",
                style="bold" if name == report.strategy else "",
            )
        table.add_section()
    table.caption = "memory: estimate of tables (memory-mapped) and video decoders; see docs/mixtures.md"
    table.caption_justify = "left"
    return table


def _ranks(report: "MixtureReport") -> Table:
    table = Table(title=f"ranks, strategy {report.strategy}", title_justify="left")
    for heading in ("rank", "frames", "hours", "tables\nMB", "decoders\nMB"):
        table.add_column(heading, justify="right")
    table.add_column("sources, heaviest first", overflow="fold")
    for rank in report.ranks[report.strategy]:
        table.add_row(
            str(rank.rank),
            f"{rank.frames:,}",
            f"{rank.hours:,.2f}",
            *(f"{size / 1e6:,.1f}" for size in (rank.table_bytes, rank.decoder_bytes)),
            _names(rank),
        )
    return table


def _names(rank: "RankReport", shown: int = 6) -> str:
    more = len(rank.sources) - shown
    from lerobot_internvla.data.mixture_report import shortened

    return ", ".join(shortened(name, 30) for name in rank.sources[:shown]) + (f" and {more} more" if more > 0 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}" if share >= 5e-5 else "<0.01"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


@says_what_is_wrong("internvla-mixture")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-mixture``."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
