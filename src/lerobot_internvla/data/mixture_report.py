"""What a mixture becomes on a number of ranks, before anything is trained: shares, repetitions, hours and memory.

    report_mixture(mixture, world_size) -> MixtureReport     values, for both rank strategies side by side
    save_report(report, folder)         -> mixture_report.json, mixture_report.png

``internvla-mixture show`` prints the same as tables. A sample is one draw of one rank.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_internvla.data.rank_plan import RANK_STRATEGIES, Piece, RankPlan, plan_ranks
from lerobot_internvla.data.sources import Mixture, Source
from lerobot_internvla.errors import InternVLAError

PER_SAMPLES = 1_000_000
"""Repetitions are given per so many samples of all ranks together."""
SOURCES_SHOWN = 20
"""The largest sources are shown one by one in tables and pictures, the others as one line."""

# Memory of one process that reads (a data loader worker), once it has every source of its rank open. Estimated from
# above as tables + decoders:
#     tables    frames x (36 + 4 x (state dims + action dims)) bytes: float32 values, a float32 time stamp and four
#               int64 numbers per frame. Tables are memory-mapped: workers of one computer share these pages, and the
#               kernel takes them back when memory is short.
#     decoders  3 MB x min(100, cameras x episodes). LeRobot 0.6.1 keeps at most 100 torchcodec decoders open. Measured
#               at 480 x 640 pixels with torchcodec 0.11: 1.8 MB for AV1, 3.0 MB for H.264; less for smaller pictures.
# Not in it: Python with torch and LeRobot themselves, batches on their way, and frames kept by policy.cache_frames_gb.
INDEX_COLUMNS_BYTES = 4 + 4 * 8
DECODER_BYTES = 3_000_000
MAX_DECODERS = 100


@dataclass(frozen=True)
class SourceUse:
    """What a rank strategy makes of one source."""

    share: float
    """Realised share of all samples."""
    draws_per_frame: float
    """How often a frame is drawn in a million samples of all ranks, on average."""
    passes: float | None
    """How often in the samples of the run, if their number is given."""
    most_drawn: float
    """The same for the frames that come most often, relative to the average: above 1 because ends of episodes do not
    lie where shares would have them."""
    ranks: int
    """Ranks that read it."""


@dataclass(frozen=True)
class SourceReport:
    name: str
    embodiment: str
    trains_actions: bool
    frames: int
    episodes: int
    hours: float
    requested: float
    """Share of all samples that the mixture file asks for."""
    use: Mapping[str, SourceUse]
    """By rank strategy."""


@dataclass(frozen=True)
class RankReport:
    """What one rank reads. Bytes are estimates per process, see the top of this file."""

    rank: int
    mass: float
    """Share of all samples."""
    sources: tuple[str, ...]
    """One per piece, heaviest first."""
    frames: int
    hours: float
    table_bytes: int
    decoder_bytes: int

    @property
    def memory_bytes(self) -> int:
        return self.table_bytes + self.decoder_bytes


@dataclass(frozen=True)
class MixtureReport:
    """A mixture on ``world_size`` ranks, under every rank strategy."""

    file: str
    fingerprint: str
    world_size: int
    strategy: str
    """The one in use: the mixture file's, unless another was asked for."""
    samples: int | None
    """Samples of the run over all ranks (steps x batch size x ranks), if given."""
    sources: tuple[SourceReport, ...]
    ranks: Mapping[str, tuple[RankReport, ...]]
    total_variation: Mapping[str, float]
    """Half the sum of |realised - requested share|: the part of all samples that come from the wrong source."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        data = asdict(self)
        for strategy, ranks in self.ranks.items():
            for row, rank in zip(data["ranks"][strategy], ranks, strict=True):
                row["memory_bytes"] = rank.memory_bytes
        return data


def report_mixture(
    mixture: Mixture, world_size: int, *, strategy: str | None = None, samples: int | None = None
) -> MixtureReport:
    """Plan ``mixture`` for ``world_size`` ranks with every strategy, and say what comes of it.

    Args:
        strategy: the one in use; None takes the mixture file's.
        samples: of the whole run, over all ranks; adds passes over every source.

    Raises:
        InternVLAError: fewer than one rank or sample, unknown strategy.
    """
    if samples is not None and samples < 1:
        raise InternVLAError(f"samples is {samples}; expected at least 1 (steps x batch size x ranks).")
    in_use = mixture.rank_strategy if strategy is None else strategy
    if in_use not in RANK_STRATEGIES:
        raise InternVLAError(f"Unknown rank strategy {in_use!r}. Expected one of {', '.join(RANK_STRATEGIES)}.")
    weights = [source.weight for source in mixture.sources]
    lengths = [source.episode_lengths for source in mixture.sources]
    plans = {name: plan_ranks(weights, lengths, world_size, name) for name in RANK_STRATEGIES}
    use = {name: _use_of_sources(plan, mixture.sources, samples) for name, plan in plans.items()}
    return MixtureReport(
        file=mixture.path.name,
        fingerprint=mixture.fingerprint,
        world_size=world_size,
        strategy=in_use,
        samples=samples,
        sources=tuple(
            SourceReport(
                name=source.name,
                embodiment=source.embodiment.name,
                trains_actions=source.trains_actions,
                frames=source.num_frames,
                episodes=source.num_episodes,
                hours=source.hours,
                requested=source.weight,
                use={name: of_sources[source.index] for name, of_sources in use.items()},
            )
            for source in mixture.sources
        ),
        ranks={name: _ranks(plan, mixture.sources) for name, plan in plans.items()},
        total_variation={
            name: 0.5 * float(np.abs(plan.realised_shares(len(weights)) - weights).sum())
            for name, plan in plans.items()
        },
    )


def _use_of_sources(plan: RankPlan, sources: Sequence[Source], samples: int | None) -> list[SourceUse]:
    shares = plan.realised_shares(len(sources))
    readers = [0] * len(sources)
    # Pieces of a source are either disjoint or the same frames on several ranks.
    mass_of_frames: list[dict[tuple[int, int], float]] = [{} for _ in sources]
    for piece in plan.pieces:
        readers[piece.source] += 1
        masses, frames = mass_of_frames[piece.source], (piece.first_frame, piece.last_frame)
        masses[frames] = masses.get(frames, 0.0) + piece.mass
    uses: list[SourceUse] = []
    for source, share, masses, ranks in zip(sources, shares.tolist(), mass_of_frames, readers, strict=True):
        per_sample = share / source.num_frames
        uses.append(
            SourceUse(
                share=share,
                draws_per_frame=per_sample * PER_SAMPLES,
                passes=None if samples is None else per_sample * samples,
                most_drawn=max(mass / (last - first) for (first, last), mass in masses.items()) / per_sample,
                ranks=ranks,
            )
        )
    return uses


def _ranks(plan: RankPlan, sources: Sequence[Source]) -> tuple[RankReport, ...]:
    of_rank: list[list[Piece]] = [[] for _ in range(plan.world_size)]
    for piece in plan.pieces:
        of_rank[piece.rank].append(piece)
    reports: list[RankReport] = []
    for rank, pieces in enumerate(of_rank):
        read = [(piece, sources[piece.source]) for piece in pieces]
        reports.append(
            RankReport(
                rank=rank,
                mass=sum(piece.mass for piece in pieces),
                sources=tuple(source.name for _, source in read),
                frames=sum(piece.num_frames for piece in pieces),
                hours=sum(piece.num_frames / source.dataset_fps for piece, source in read) / 3600,
                table_bytes=sum(piece.num_frames * _row_bytes(source) for piece, source in read),
                decoder_bytes=DECODER_BYTES * min(MAX_DECODERS, sum(_videos(piece, source) for piece, source in read)),
            )
        )
    return tuple(reports)


def _row_bytes(source: Source) -> int:
    return INDEX_COLUMNS_BYTES + 4 * (source.embodiment.state_dim + source.embodiment.action_dim)


def _videos(piece: Piece, source: Source) -> int:
    """At most so many video files are read: one per camera and episode."""
    first, last = np.searchsorted(source.episode_ends, [piece.first_frame, piece.last_frame - 1], side="right")
    return (int(last) - int(first) + 1) * len(source.features.cameras)


# --- few lines for many sources ---------------------------------------------------------------------------------------


def largest_and_rest(report: MixtureReport, shown: int = SOURCES_SHOWN) -> list[SourceReport]:
    """The ``shown`` sources with the largest requested shares, and one line that sums up the others.

    The line's repetitions are averages over its frames; its ``embodiment`` is empty, and so are ``ranks`` (0).
    """
    rows = sorted(report.sources, key=lambda row: -row.requested)
    if len(rows) <= shown + 1:
        return rows
    return [*rows[:shown], sum_up(rows[shown:], f"{len(rows) - shown} more")]


def sum_up(rows: Sequence[SourceReport], name: str) -> SourceReport:
    """Several sources as one line."""
    frames = sum(row.frames for row in rows)

    def use(strategy: str) -> SourceUse:
        uses = [row.use[strategy] for row in rows]
        passes = [use.passes * row.frames for use, row in zip(uses, rows, strict=True) if use.passes is not None]
        share = sum(use.share for use in uses)
        return SourceUse(
            share=share,
            draws_per_frame=share / frames * PER_SAMPLES,
            passes=sum(passes) / frames if passes else None,
            most_drawn=max(use.most_drawn for use in uses),
            ranks=0,
        )

    return SourceReport(
        name=name,
        embodiment="",
        trains_actions=any(row.trains_actions for row in rows),
        frames=frames,
        episodes=sum(row.episodes for row in rows),
        hours=sum(row.hours for row in rows),
        requested=sum(row.requested for row in rows),
        use={strategy: use(strategy) for strategy in RANK_STRATEGIES},
    )


# --- files ------------------------------------------------------------------------------------------------------------


def save_report(report: MixtureReport, folder: Path) -> tuple[Path, Path]:
    """Write mixture_report.json (everything) and mixture_report.png (the largest sources, all ranks) into ``folder``.

    Both are replaced if they exist.

    Raises:
        InternVLAError: ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InternVLAError(f"{folder} is a file, not a folder. Choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    data, picture = folder / "mixture_report.json", folder / "mixture_report.png"
    data.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    draw_report(report, picture)
    return data, picture


_COLOURS = {"requested": "#8c959f", "exact": "#1f6feb", "lpt": "#d4822a"}
_MARKS = {"exact": "o", "lpt": "D"}


def draw_report(report: MixtureReport, path: Path) -> None:
    """One PNG: shares and repetitions by source, hours and memory by rank."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = largest_and_rest(report)
    figure: Any = Figure(figsize=(12, 4.4 + 0.36 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: a report must not choose the backend of a notebook that makes it
    grid = figure.add_gridspec(2, 2, height_ratios=[0.9 + 0.36 * len(rows), 2.6], width_ratios=[3, 2])
    shares = figure.add_subplot(grid[0, 0])
    repetitions = figure.add_subplot(grid[0, 1], sharey=shares)
    figure.suptitle(
        f"{report.file}: {counted(len(report.sources), 'source')} on {counted(report.world_size, 'rank')}, "
        f"rank strategy {report.strategy}",
        fontweight="bold",
    )

    # The line that sums up many small sources would dwarf the others: its shares are written, not drawn.
    drawn = [row for row in rows if row.embodiment]
    places = np.arange(len(rows))
    for offset, name in enumerate(("requested", *RANK_STRATEGIES)):
        values = [100 * _share(row, name) for row in drawn]
        label = name
        if name != "requested":
            label += f" (total variation to the request: {report.total_variation[name]:.3f})"
        shares.barh(places[: len(drawn)] + (offset - 1) * 0.27, values, height=0.25, color=_COLOURS[name], label=label)
    for place, row in zip(places[len(drawn) :].tolist(), rows[len(drawn) :], strict=True):
        text = ", ".join(f"{name} {100 * _share(row, name):.1f} %" for name in ("requested", *RANK_STRATEGIES))
        shares.text(0, place, f"  {text}", va="center", color="#66707b")
    shares.set(yticks=places, yticklabels=[shortened(row.name) for row in rows], xlabel="share of all samples (%)")
    shares.invert_yaxis()
    for name in RANK_STRATEGIES:
        values = [row.use[name].draws_per_frame for row in rows]
        repetitions.plot(values, places, _MARKS[name], color=_COLOURS[name], markersize=6, alpha=0.85)
    repetitions.set(xscale="log", xlabel="draws per frame in a million samples")
    repetitions.xaxis.set_major_formatter("{x:g}")
    repetitions.tick_params(labelleft=False)
    repetitions.grid(axis="x", color="#eceff2")

    edges = np.arange(report.world_size + 1)
    for column, (label, value) in enumerate(_RANK_CURVES.items()):
        axes = figure.add_subplot(grid[1, column])
        for name in RANK_STRATEGIES:
            values = sorted(value(rank) for rank in report.ranks[name])
            axes.stairs(values, edges, baseline=None, color=_COLOURS[name], linewidth=1.8)
        axes.set(xlabel="ranks, from least to most", ylabel=label, xlim=(0, report.world_size))
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.savefig(path)


def _share(row: SourceReport, name: str) -> float:
    return row.requested if name == "requested" else row.use[name].share


def _hours(rank: RankReport) -> float:
    return rank.hours


def _megabytes(rank: RankReport) -> float:
    return rank.memory_bytes / 1e6


_RANK_CURVES = {"hours held": _hours, "memory per process,\nestimated (MB)": _megabytes}


def counted(number: int, word: str) -> str:
    """1 rank, 512 ranks."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def shortened(name: str, width: int = 34) -> str:
    """A long name without its middle: datasets of one collection differ at the end."""
    return name if len(name) <= width else f"{name[: width // 3]}...{name[width // 3 + 3 - width :]}"
