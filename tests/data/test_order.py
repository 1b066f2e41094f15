"""Quota at any moment, every frame before any again, random access, nothing to save, good shuffling."""

import math
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_internvla.data.order import DrawOrder
from lerobot_internvla.data.rank_plan import Piece
from lerobot_internvla.errors import InternVLAError

ALL_INTERNDATA = 692_000_000
SIZES = sorted({1, 2, 3, 5, 7, 11, 13, 97, 101, 997} | {2**k + d for k in range(1, 11) for d in (-1, 0, 1)})


def pieces_of(masses, frames=1000):
    return [Piece(index, 0, float(mass), 0, frames) for index, mass in enumerate(masses)]


def frames_of(order: DrawOrder, draws: int, first: int = 0) -> np.ndarray:
    """Frames of consecutive draws, whatever their piece."""
    return np.array([order(draw)[1] for draw in range(first, first + draws)])


@st.composite
def masses(draw):
    count = draw(st.integers(1, 60))
    spread = draw(st.sampled_from([0.0, 0.5, 2.0, 6.0]))
    values = np.exp(np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(0, spread, count))
    return values / values.sum()


# --- which piece ------------------------------------------------------------------------------------------------------


@given(masses=masses(), seed=st.integers(0, 2**63), rank=st.integers(0, 511))
@settings(max_examples=80, deadline=None)
def test_every_piece_has_its_quota_within_two_draws_at_any_moment(masses, seed, rank):
    order = DrawOrder(pieces_of(masses), seed=seed, rank=rank)
    counts = np.zeros(len(masses))
    for draw in range(300):
        counts[order(draw)[0]] += 1
        assert np.abs(counts - masses * (draw + 1)).max() < 2
    assert order.draws_of_pieces(300) == counts.tolist()
    for draws in (10**4 + 7, 10**7 + 1, 10**12 + 3):
        counts = np.array(order.draws_of_pieces(draws))
        assert counts.sum() == draws
        assert np.abs(counts - masses * draws).max() < 2 + 1e-12 * draws


def test_quota_holds_for_masses_chosen_to_break_it():
    one_large = np.r_[0.9, np.full(1000, 0.1 / 1000)]
    halves = 0.5 ** np.arange(1, 60)
    fibonacci = [1.0, 1.0]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    for values in (one_large, halves, np.array(fibonacci), np.ones(1000)):
        share = values / values.sum()
        for seed in range(5):
            order = DrawOrder(pieces_of(values), seed=seed, rank=0)
            for draws in (*range(1, 60), *range(1000, 30000, 371)):
                assert np.abs(np.array(order.draws_of_pieces(draws)) - share * draws).max() < 2


def test_a_batch_is_a_small_copy_of_the_mixture():
    order = DrawOrder(pieces_of([0.5, 0.25, 0.125, 0.125]), seed=0, rank=0)
    for first in range(0, 4096, 64):
        counts = np.bincount([order(draw)[0] for draw in range(first, first + 64)], minlength=4)
        assert np.abs(counts - [32, 16, 8, 8]).max() <= 1


# --- which frame ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_every_frame_is_drawn_once_before_any_is_drawn_again(size):
    order = DrawOrder([Piece(0, 3, 1.0, 40, 40 + size)], seed=1, rank=3)
    for in_pass in range(3):
        assert sorted(frames_of(order, size, in_pass * size)) == list(range(40, 40 + size))


def test_every_frame_of_a_rank_is_drawn_once_per_pass_of_its_piece():
    pieces = [Piece(0, 1, 0.3, 7, 20), Piece(4, 1, 0.15, 0, 101), Piece(2, 1, 0.05, 5, 6)]
    order = DrawOrder(pieces, seed=9, rank=1)
    drawn: list[list[int]] = [[] for _ in pieces]
    for draw in range(3000):
        piece, frame = order(draw)
        drawn[piece].append(frame)
    for piece, frames in zip(pieces, drawn, strict=True):
        whole = len(frames) // piece.num_frames * piece.num_frames
        passes = np.reshape(frames[:whole], (-1, piece.num_frames))
        assert (np.sort(passes, axis=1) == np.arange(piece.first_frame, piece.last_frame)).all()


def test_passes_seeds_ranks_and_sources_differ():
    def first_frames(source=0, seed=0, rank=0, first=0):
        return tuple(frames_of(DrawOrder([Piece(source, rank, 1.0, 0, 500)], seed=seed, rank=rank), 50, first))

    variants = [
        first_frames(),
        first_frames(first=500),
        first_frames(first=1000),
        *(first_frames(seed=seed) for seed in (1, 2, 2**40)),
        # Replicas under "lpt": the same frames on several ranks.
        *(first_frames(rank=rank) for rank in (1, 2, 511)),
        first_frames(source=1),
        first_frames(seed=1, rank=1),
    ]
    assert len(set(variants)) == len(variants)
    shared = [len(set(a) & set(b)) for a in variants for b in variants if a != b]
    assert np.mean(shared) == pytest.approx(50 * 50 / 500, abs=1.5)  # as many as by chance


def test_which_piece_comes_when_depends_on_seed_and_rank():
    masses = np.random.default_rng(0).random(30)

    def pieces(seed, rank):
        order = DrawOrder(pieces_of(masses), seed=seed, rank=rank)
        return tuple(order(draw)[0] for draw in range(200))

    assert len({pieces(0, 0), pieces(1, 0), pieces(0, 1), pieces(1, 1)}) == 4


def test_neighbouring_draws_are_far_apart_and_every_region_is_visited_alike():
    size = 100_000
    frames = frames_of(DrawOrder([Piece(0, 0, 1.0, 0, size)], seed=5, rank=0), 20_000)
    # Two independent places in [0, F) are F / 3 apart on average, with a standard deviation of F / sqrt(18).
    distance = np.abs(np.diff(frames))
    assert distance.mean() == pytest.approx(size / 3, rel=5 / math.sqrt(2 * 20_000))
    assert (distance <= 1).sum() <= 5  # 0.4 expected
    for lag in (1, 2, 3, 8, 316, 317):
        assert abs(np.corrcoef(frames[:-lag], frames[lag:])[0, 1]) < 4.5 / math.sqrt(20_000)
    assert_uniform(np.bincount(frames * 100 // size, minlength=100), 1 - 20_000 / size)
    # Also modulo the side of the Feistel grid, where a weak network would show rows and columns.
    assert_uniform(np.bincount(frames % 317, minlength=317), 1 - 20_000 / size)


def test_where_a_frame_comes_is_uniform_over_passes_and_so_are_pairs():
    for size in (5, 12):
        order = DrawOrder([Piece(0, 0, 1.0, 0, size)], seed=2, rank=0)
        passes = np.array([frames_of(order, size, k * size) for k in range(1500)])
        for position in (0, 1, size // 2, size - 1):
            assert_uniform(np.bincount(passes[:, position], minlength=size))
        first_two = np.bincount(passes[:, 0] * size + passes[:, 1], minlength=size**2).reshape(size, size)
        assert (np.diag(first_two) == 0).all()
        assert_uniform(first_two[~np.eye(size, dtype=bool)])
        assert_uniform(np.bincount((passes[:, 1] - passes[:, 0]) % size, minlength=size)[1:])


def test_all_orders_of_a_few_frames_occur_alike():
    for size in (2, 3, 4):
        order = DrawOrder([Piece(0, 0, 1.0, 0, size)], seed=3, rank=0)
        seen = [tuple(frames_of(order, size, k * size)) for k in range(150 * math.factorial(size))]
        _, counts = np.unique(seen, axis=0, return_counts=True)
        assert len(counts) == math.factorial(size)
        assert_uniform(counts)


def assert_uniform(counts: np.ndarray, variance: float = 1.0) -> None:
    """Chi-square within 5 standard deviations above; ``variance``: what drawing without replacement leaves of it."""
    expected, freedom = counts.mean(), counts.size - 1
    statistic = ((counts - expected) ** 2 / expected).sum() / variance
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
    # Too even would be no shuffling either.
    assert statistic > freedom - 5 * math.sqrt(2 * freedom)


# --- random access, resume, cost --------------------------------------------------------------------------------------


@pytest.fixture
def order():
    rng = np.random.default_rng(0)
    pieces = [
        Piece(index, 2, mass, 10, 10 + int(rng.integers(1, 500))) for index, mass in enumerate(rng.lognormal(0, 2, 40))
    ]
    return DrawOrder(pieces, seed=8, rank=2)


def test_random_access_equals_sequential_access(order):
    sequential = [order(draw) for draw in range(3000)]
    shuffled = np.random.default_rng(1).permutation(3000)
    assert [order(int(draw)) for draw in shuffled] == [sequential[draw] for draw in shuffled]
    again = DrawOrder(order.pieces, seed=8, rank=2)
    assert [again(draw) for draw in range(2000, 3000)] == sequential[2000:]


def test_survives_pickling(order):
    copy = pickle.loads(pickle.dumps(order))
    assert [copy(draw) for draw in range(500)] == [order(draw) for draw in range(500)]


def test_the_order_never_changes():
    # Written down once: another order here would break the resume of runs that people have started.
    order = DrawOrder([Piece(0, 1, 0.6, 0, 1000), Piece(7, 1, 0.4, 50, 90)], seed=1000, rank=1)
    drawn = [order(draw) for draw in (0, 1, 2, 3, 4, 10**6, 10**12)]
    assert drawn == [(0, 307), (1, 80), (0, 761), (1, 77), (0, 712), (0, 328), (0, 599)]


def test_a_look_up_costs_little_and_grows_like_a_logarithm():
    def forks_passed(pieces):
        """Average length of the way down the tree, by counting look-ups of forks."""
        order = DrawOrder(pieces_of(np.ones(pieces), 10_000), seed=0, rank=0)

        class Counted(list):
            looked_up = 0

            def __getitem__(self, index):
                Counted.looked_up += 1
                return super().__getitem__(index)

        order._forks = Counted(order._forks)
        for draw in range(1000):
            order(draw)
        return Counted.looked_up / 1000

    assert forks_passed(1000) <= math.log2(1000) + 1
    assert forks_passed(4000) <= math.log2(4000) + 1
    skewed = DrawOrder(pieces_of(np.random.default_rng(0).lognormal(0, 3, 1000), ALL_INTERNDATA), seed=0, rank=0)
    start = time.perf_counter()
    for draw in range(10**9, 10**9 + 2000):
        skewed(draw)
    assert (time.perf_counter() - start) / 2000 < 500e-6  # measured: about 10 us; a decoded frame costs milliseconds


def test_memory_does_not_depend_on_frames():
    def peak(frames):
        tracemalloc.start()
        order = DrawOrder(pieces_of(np.ones(100), frames), seed=0, rank=0)
        for draw in range(2000):
            order(draw)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    small, large = peak(10), peak(ALL_INTERNDATA)
    assert large < small + 20_000
    assert large < 500_000


def test_wrong_use_is_explained(order):
    with pytest.raises(InternVLAError, match="numbered from 0; got -1"):
        order(-1)
    with pytest.raises(InternVLAError, match="Rank 3 has no pieces"):
        DrawOrder([], seed=0, rank=3)
