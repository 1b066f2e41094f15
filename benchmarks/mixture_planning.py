"""What planning costs: sources onto ranks, and one look-up in a rank's order. Pure arithmetic, no dataset is made.

    python benchmarks/mixture_planning.py            a minute; prints the tables

``run_plan`` and ``plan_tables`` are the section "plan" of benchmarks/mixture.py as well.
"""

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import Table
from numpy.typing import NDArray
from rich.console import Console

from lerobot_internvla.data.order import DrawOrder
from lerobot_internvla.data.rank_plan import RANK_STRATEGIES, Piece, plan_ranks

FRAMES, EPISODES = 692_000_000, 1_000_000
"""Frames as many as the paper's pre-training data has; episodes are a guess."""
CASES = ((10, 8), (100, 64), (1000, 8), (1000, 64), (1000, 512))
"""Sources, ranks."""
PIECES = (1, 10, 100, 1000)


def synthetic_sizes(
    sources: int, *, frames: int = FRAMES, episodes: int = EPISODES, seed: int = 0
) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """Weights and episode lengths of a skewed mixture: sizes, lengths and weights are log-normal."""
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(0, 1.2, sources)
    counts = np.maximum(1, np.rint(sizes / sizes.sum() * episodes)).astype(int)
    lengths = [rng.lognormal(0, 0.7, count) for count in counts]
    scale = frames / sum(float(source.sum()) for source in lengths)
    weights = rng.lognormal(0, 2, sources)
    return weights / weights.sum(), [np.maximum(1, np.rint(source * scale)).astype(np.int64) for source in lengths]


def _clock(function: Callable[[], Any], rounds: int) -> dict[str, float]:
    seconds: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return {"min_s": min(seconds), "median_s": statistics.median(seconds)}


def _peak_bytes(function: Callable[[], Any]) -> int:
    """Most memory in use at a time, of Python and numpy, beyond what was there before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_plan(sources: int, ranks: int, strategy: str, rounds: int = 5) -> dict[str, Any]:
    """One plan: seconds, memory, pieces, and how far realised shares are from the requested ones."""
    weights, lengths = synthetic_sizes(sources)

    def plan() -> Any:
        return plan_ranks(weights, lengths, ranks, strategy)

    made = plan()
    shares = made.realised_shares(sources)
    per_rank = np.bincount([piece.rank for piece in made.pieces], minlength=ranks)
    return {
        "sources": sources,
        "frames": int(sum(source.sum() for source in lengths)),
        "episodes": sum(map(len, lengths)),
        "ranks": ranks,
        "strategy": strategy,
        **_clock(plan, rounds),
        "peak_mb": _peak_bytes(plan) / 1e6,
        "input_mb": sum(source.nbytes for source in lengths) / 1e6,
        "pieces": len(made.pieces),
        "most_pieces_of_a_rank": int(per_rank.max()),
        "total_variation": 0.5 * float(np.abs(shares - weights).sum()),
        "largest_error": float(np.abs(shares - weights).max()),
    }


def measure_order(pieces: int, frames: int = FRAMES, draws: int = 5000, rounds: int = 5) -> dict[str, Any]:
    """One rank's order: microseconds per look-up far into a run, memory."""
    masses = np.random.default_rng(0).lognormal(0, 2, pieces)
    of_rank = [Piece(index, 0, float(mass), 0, frames // pieces) for index, mass in enumerate(masses)]

    def make() -> DrawOrder:
        return DrawOrder(of_rank, seed=0, rank=0)

    order = make()
    places = np.random.default_rng(1).integers(0, 10**10, draws).tolist()

    def look_up() -> None:
        for place in places:
            order(place)

    clock = _clock(look_up, rounds)
    return {
        "pieces": pieces,
        "frames": frames,
        "build_ms": 1e3 * _clock(make, rounds)["min_s"],
        "min_us": 1e6 * clock["min_s"] / draws,
        "median_us": 1e6 * clock["median_s"] / draws,
        "peak_kb": _peak_bytes(lambda: [make()(place) for place in places[:3]]) / 1e3,
    }


def run_plan(arguments: argparse.Namespace | None = None) -> dict[str, Any]:
    """Everything above, as plain data."""
    return {
        "plans": [measure_plan(*case, strategy) for case in CASES for strategy in RANK_STRATEGIES],
        "orders": [measure_order(pieces) for pieces in PIECES]
        + [measure_order(1, frames) for frames in (1000, 1_000_000)],
    }


def plan_tables(results: dict[str, Any]) -> list[Table]:
    plans = Table(
        "Planning: sources onto ranks",
        [
            *("sources", "frames", "episodes", "ranks", "strategy", "min ms", "median ms", "peak MB"),
            *("pieces", "most per rank", "total variation"),
        ],
    )
    for row in results["plans"]:
        plans.add(
            f"{row['sources']:,}", f"{row['frames']:,}", f"{row['episodes']:,}", f"{row['ranks']:,}", row["strategy"],
            f"{1e3 * row['min_s']:.1f}", f"{1e3 * row['median_s']:.1f}", f"{row['peak_mb']:.1f}",
            f"{row['pieces']:,}", row["most_pieces_of_a_rank"], f"{row['total_variation']:.2g}",
        )  # fmt: skip
    plans.note = (
        "Every rank makes the whole plan for itself. Synthetic sources with log-normal sizes and weights, so the total "
        "variation of lpt says nothing about the paper's data. Peak: memory of Python and numpy during one plan; the "
        f"episode lengths themselves take {results['plans'][-1]['input_mb']:.0f} MB."
    )
    orders = Table(
        "Order: one look-up of (piece, frame)",
        ["pieces of the rank", "frames of the rank", "min us", "median us", "made in ms", "peak kB"],
    )
    for row in results["orders"]:
        orders.add(
            f"{row['pieces']:,}", f"{row['frames']:,}", f"{row['min_us']:.1f}", f"{row['median_us']:.1f}",
            f"{row['build_ms']:.1f}", f"{row['peak_kb']:.0f}",
        )  # fmt: skip
    orders.note = (
        "Look-ups at random places among the first ten thousand million draws; masses of pieces are log-normal. Peak: "
        "memory of Python for an order and three look-ups."
    )
    return [plans, orders]


if __name__ == "__main__":
    for table in plan_tables(run_plan()):
        Console(width=150).print(table.rich())
