"""Which rank reads what: sources and their weights -> pieces, one list per rank.

A rank is one training process. All ranks draw the same number of samples, so a rank's sampling mass is exactly
1 / world size, and a source has its requested share if the masses of its pieces on all ranks sum to its weight. Two
ways to arrange that:

    exact  the heaviest source goes to the rank with most room; what does not fit spills over to the next rank
           (McNaughton's wrap-around rule, here filling the emptiest rank first). Every share is realised as requested.
    lpt    the paper's load balancing (section "Load-balanced Parallel Training"): whole sources, largest first, to
           the rank with fewest frames. Weights are compared inside a rank only, so realised shares differ.

A piece is a run of whole episodes. Pure arithmetic on numpy arrays: the plan is the same on every rank and computer,
and nobody has to send it to anybody.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lerobot_internvla.errors import InternVLAError

RANK_STRATEGIES: tuple[str, ...] = ("exact", "lpt")

# Weights are rounded floats, so a source that should fill a rank exactly misses by about 1e-16 of all draws. Below
# this share of all draws a difference is such rounding, and no piece is made of it: it would never be drawn from.
_ROUNDING = Fraction(1, 10**14)


@dataclass(frozen=True)
class Piece:
    """What one rank reads of one source.

    Frames are positions in the source's frames in use (0 to its number of frames - 1, episode after episode), the last
    one exclusive.
    """

    source: int
    rank: int
    mass: float
    """Share of all draws of all ranks; the masses of one rank sum to 1 / world size."""
    first_frame: int
    last_frame: int

    @property
    def num_frames(self) -> int:
        return self.last_frame - self.first_frame


@dataclass(frozen=True)
class RankPlan:
    """All pieces, ordered by rank and, inside a rank, by falling mass."""

    world_size: int
    strategy: str
    pieces: tuple[Piece, ...]

    def of_rank(self, rank: int) -> tuple[Piece, ...]:
        """The pieces of ``rank`` (0 to world size - 1); never empty."""
        if not 0 <= rank < self.world_size:
            raise InternVLAError(f"Rank {rank} is not in this plan. Expected 0 to {self.world_size - 1}.")
        return tuple(piece for piece in self.pieces if piece.rank == rank)

    def of_source(self, source: int) -> tuple[Piece, ...]:
        """The pieces of the source with this index, in the order of their frames (replicas: of their ranks)."""
        pieces = (piece for piece in self.pieces if piece.source == source)
        return tuple(sorted(pieces, key=lambda piece: (piece.first_frame, piece.rank)))

    def realised_shares(self, n_sources: int) -> NDArray[np.float64]:
        """The share of all draws that each source gets, float64 [n_sources], summing to 1."""
        shares = np.zeros(n_sources)
        np.add.at(shares, [piece.source for piece in self.pieces], [piece.mass for piece in self.pieces])
        return shares


def plan_ranks(
    weights: ArrayLike,
    episode_lengths: Sequence[NDArray[np.int64]],
    world_size: int,
    strategy: str = "exact",
) -> RankPlan:
    """Share n sources out over ranks.

    Args:
        weights: [n], positive; only their ratios matter.
        episode_lengths: frames of each episode in use, one array per source.
        world_size: number of ranks (training processes).
        strategy: "exact" or "lpt", see the top of this file.

    Returns:
        With "exact": at most n + world_size - 1 pieces. The pieces of one source are disjoint runs of whole episodes
        that together cover it, as long as their mass demands (to the nearest end of an episode). A source with fewer
        episodes than pieces is cut inside episodes, and one with fewer frames than pieces shows a frame to several
        ranks. With "lpt": every source whole on one rank; if there are fewer sources than ranks, the list of sources
        starts again until every rank has one.

    Raises:
        InternVLAError: every problem at once.
    """
    shares = np.asarray(weights, dtype=np.float64)
    lengths = [np.asarray(source, dtype=np.int64) for source in episode_lengths]
    problems: list[str] = []
    if shares.ndim != 1 or len(shares) != len(lengths) or not len(lengths):
        problems.append(f"{shares.size} weights for {len(lengths)} sources; expected one per source, at least one")
    problems += [
        f"source {index} has weight {weight}; expected a finite number above 0"
        for index, weight in enumerate(shares.ravel())
        if not (math.isfinite(weight) and weight > 0)
    ]
    problems += [
        f"source {index} has no episodes, or one without frames; leave it out"
        for index, source in enumerate(lengths)
        if not len(source) or source.min() < 1
    ]
    if world_size < 1:
        problems.append(f"world_size is {world_size}; expected at least 1")
    if strategy not in RANK_STRATEGIES:
        problems.append(f"unknown rank strategy {strategy!r}; expected one of {', '.join(RANK_STRATEGIES)}")
    if problems:
        raise InternVLAError("No rank plan: " + "; ".join(problems) + ".")

    if strategy == "exact":
        placed = _fill_ranks([float(weight) for weight in shares], world_size)
        pieces = _cut_into_episodes(placed, lengths)
    else:
        frames = [int(source.sum()) for source in lengths]
        pieces = [
            Piece(source, rank, mass, 0, frames[source])
            for source, rank, mass in _place_whole([float(weight) for weight in shares], frames, world_size)
        ]
    pieces.sort(key=lambda piece: (piece.rank, -piece.mass, piece.source))
    return RankPlan(world_size, strategy, tuple(pieces))


_Placed = tuple[int, int, float]  # source, rank, mass


def _fill_ranks(weights: list[float], world_size: int) -> list[_Placed]:
    """Heaviest source first to the rank with most room, the remainder to the next one. Exact rational arithmetic.

    Every step either uses up a source or fills a rank, and the last one does both: at most n + world_size - 1 steps.
    No source comes twice to a rank, because a rank that it leaves is full.
    """
    total = sum(map(Fraction, weights))
    by_weight = sorted(range(len(weights)), key=lambda source: (-weights[source], source))
    emptiest_first = [(-Fraction(1, world_size), rank) for rank in range(world_size)]
    placed: list[_Placed] = []
    for source in by_weight:
        remaining = Fraction(weights[source]) / total
        while remaining:
            negative_room, rank = heapq.heappop(emptiest_first)
            room = -negative_room
            fits = remaining <= room + _ROUNDING or room <= _ROUNDING
            taken = remaining if fits else room
            placed.append((source, rank, float(taken)))
            heapq.heappush(emptiest_first, (taken - room, rank))
            remaining -= taken
    # What rounding has put into a rank too much or too little is spread over the rank's pieces.
    load = np.zeros(world_size)
    np.add.at(load, [rank for _, rank, _ in placed], [mass for _, _, mass in placed])
    return [(source, rank, mass / float(load[rank]) / world_size) for source, rank, mass in placed]


def _place_whole(weights: list[float], frames: list[int], world_size: int) -> list[_Placed]:
    """Largest source first to the rank with fewest frames; mass by weight inside the rank."""
    by_frames = sorted(range(len(frames)), key=lambda source: (-frames[source], source))
    emptiest_first = [(0, rank) for rank in range(world_size)]
    homes: list[tuple[int, int]] = []
    for source in islice(cycle(by_frames), max(len(frames), world_size)):
        load, rank = heapq.heappop(emptiest_first)
        heapq.heappush(emptiest_first, (load + frames[source], rank))
        homes.append((source, rank))
    weight_of_rank = np.zeros(world_size)
    np.add.at(weight_of_rank, [rank for _, rank in homes], [weights[source] for source, _ in homes])
    return [(source, rank, weights[source] / float(weight_of_rank[rank]) / world_size) for source, rank in homes]


def _cut_into_episodes(placed: list[_Placed], lengths: list[NDArray[np.int64]]) -> list[Piece]:
    of_source: dict[int, list[_Placed]] = {}
    for item in placed:
        of_source.setdefault(item[0], []).append(item)
    pieces: list[Piece] = []
    for source, items in of_source.items():
        first, last = _cut(np.array([mass for _, _, mass in items]), lengths[source])
        pieces += [
            Piece(source, rank, mass, int(first[index]), int(last[index]))
            for index, (_, rank, mass) in enumerate(items)
        ]
    return pieces


def _cut(masses: NDArray[np.float64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last (exclusive) frame of consecutive pieces, proportional to ``masses`` up to the nearest episode."""
    pieces, episodes = len(masses), len(lengths)
    bounds: NDArray[np.int64] = np.concatenate(([0], np.cumsum(lengths)))
    frames = int(bounds[-1])
    if frames < pieces:
        first = np.arange(pieces) * frames // pieces
        return first, first + 1
    wished: NDArray[np.float64] = np.cumsum(masses)[:-1] / masses.sum() * frames
    # Cuts are counted in episodes, or in frames where there are too few episodes.
    if episodes >= pieces:
        after = np.maximum(bounds.searchsorted(wished), 1)
        nearest = after - (wished - bounds[after - 1] <= bounds[after] - wished)
    else:
        nearest = np.rint(wished).astype(np.int64)
    # Cut number i leaves at least one episode to each of the i + 1 pieces before it and to each one after it.
    number = np.arange(pieces - 1)
    cuts = np.maximum.accumulate(np.maximum(nearest, 1) - number) + number
    cuts = np.minimum(cuts, (episodes if episodes >= pieces else frames) - (pieces - 1) + number)
    if episodes >= pieces:
        cuts = bounds[cuts]
    return np.concatenate(([0], cuts)), np.concatenate((cuts, [frames]))
