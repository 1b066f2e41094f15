"""What a mixture file becomes on your number of ranks, before you train.

    internvla-mixture show FILE --world-size 8                      shares, repetitions, hours, memory per rank
    internvla-mixture show FILE --world-size 8 --output outputs/x   the same as mixture_report.json and .png
    internvla-mixture show FILE --world-size 8 --samples 3_840_000  with passes over every source in a run

Only metadata is read: no video is opened, and only metadata is downloaded. More: docs/mixtures.md.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lerobot_internvla.scripts.messages import says_what_is_wrong

if TYPE_CHECKING:
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
    return parser


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
    table.caption = "memory: estimate of tables (memory-mapped), index and video decoders; see docs/mixtures.md"
    table.caption_justify = "left"
    return table


def _ranks(report: "MixtureReport") -> Table:
    table = Table(title=f"ranks, strategy {report.strategy}", title_justify="left")
    for heading in ("rank", "frames", "hours", "tables\nMB", "index\nMB", "decoders\nMB"):
        table.add_column(heading, justify="right")
    table.add_column("sources, heaviest first", overflow="fold")
    for rank in report.ranks[report.strategy]:
        table.add_row(
            str(rank.rank),
            f"{rank.frames:,}",
            f"{rank.hours:,.2f}",
            *(f"{size / 1e6:,.1f}" for size in (rank.table_bytes, rank.index_bytes, rank.decoder_bytes)),
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
