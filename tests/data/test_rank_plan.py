"""Shares are realised exactly for any sources and ranks; pieces cover their source and do not overlap."""

import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_internvla.data.rank_plan import RANK_STRATEGIES, Piece, RankPlan, plan_ranks
from lerobot_internvla.errors import InternVLAError

TABLE_3 = np.array([0.64, 0.08, 0.18, 0.02, 0.08])
"""Requested shares of InternData-A1, RoboTwin, AgiBot-World, RoboMind and EgoDex (paper Table 3)."""
TABLE_3_SIZES = TABLE_3 / [1.12, 3.26, 0.60, 2.77, 0.81]
"""Their sizes, from weight over frame share."""


@st.composite
def mixtures(draw):
    """1 to 40 sources, of which the largest may be a billion times the smallest, with 1 to 200 episodes each."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = np.exp(rng.normal(0, draw(st.sampled_from([0.0, 0.5, 2.0, 5.0])), n))
    if draw(st.booleans()):  # as people write them: sums of these often fill a rank exactly
        weights = rng.integers(1, 20, n) / 20
    episodes = [rng.integers(1, draw(st.sampled_from([1, 2, 10, 200])) + 1) for _ in range(n)]
    longest = draw(st.sampled_from([1, 3, 1000]))
    return weights, [rng.integers(1, longest + 1, count) for count in episodes]


def check_exact(plan: RankPlan, weights: np.ndarray, lengths: list[np.ndarray]) -> None:
    n, ranks = len(weights), plan.world_size
    assert plan.realised_shares(n) == pytest.approx(weights / weights.sum(), abs=1e-12)
    assert len(plan.pieces) <= n + ranks - 1
    assert [piece.rank for piece in plan.pieces] == sorted(piece.rank for piece in plan.pieces)
    mass = np.zeros(ranks)
    for piece in plan.pieces:
        mass[piece.rank] += piece.mass
        assert piece.mass > 0
    assert mass * ranks == pytest.approx(np.ones(ranks), abs=1e-12)
    for source in range(n):
        pieces, frames = plan.of_source(source), int(lengths[source].sum())
        assert len({piece.rank for piece in pieces}) == len(pieces) > 0
        assert all(piece.num_frames >= 1 for piece in pieces)
        assert pieces[0].first_frame == 0
        assert pieces[-1].last_frame == frames
        if frames >= len(pieces):
            assert all(a.last_frame == b.first_frame for a, b in pairwise(pieces))
        else:
            assert {piece.first_frame for piece in pieces} == set(range(frames))
            assert all(piece.num_frames == 1 for piece in pieces)
        if len(lengths[source]) >= len(pieces):
            ends = set(np.cumsum(lengths[source]).tolist())
            assert all(piece.last_frame in ends for piece in pieces)


@given(mixture=mixtures(), world_size=st.integers(1, 512))
@settings(max_examples=300, deadline=None)
def test_every_source_gets_its_share_and_every_rank_the_same_mass(mixture, world_size):
    weights, lengths = mixture
    check_exact(plan_ranks(weights, lengths, world_size), weights, lengths)


def test_shares_of_table_3_are_exact_for_any_number_of_ranks():
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 500, size) for size in (9000, 40, 1, 700, 3)]
    for world_size in (*range(1, 66), 100, 127, 128, 129, 255, 256, 500, 511, 512):
        check_exact(plan_ranks(TABLE_3, lengths, world_size), TABLE_3, lengths)


@pytest.mark.parametrize("world_size", [2, 5, 10, 20, 100, 500])
def test_rounded_weights_leave_no_sliver_that_nobody_would_draw(world_size):
    # 20 sources of 0.05, given as a sum of floats that is not 1.0: pieces are 1/20 or 1/world_size wide.
    weights = np.full(20, 0.1 + 0.2 - 0.25)
    plan = plan_ranks(weights, [np.full(100, 10)] * 20, world_size)
    assert len(plan.pieces) == max(20, world_size)
    assert all(piece.mass == pytest.approx(min(1 / 20, 1 / world_size)) for piece in plan.pieces)
    # Decimals that add up to whole ranks only on paper.
    plan = plan_ranks([0.7, 0.1, 0.1, 0.1], [np.full(100, 10)] * 4, 10)
    assert len(plan.pieces) == 10


def test_cuts_are_as_near_to_the_mass_as_episodes_allow():
    lengths = np.random.default_rng(0).integers(1, 50, 400)
    plan = plan_ranks([0.7, 0.3], [lengths, np.array([5])], 9)
    pieces, frames = plan.of_source(0), int(lengths.sum())
    wished = np.cumsum([piece.mass for piece in pieces]) / 0.7 * frames
    ends = np.cumsum(lengths)
    for piece, wish in zip(pieces[:-1], wished[:-1], strict=True):
        assert abs(piece.last_frame - wish) == np.abs(ends - wish).min()


def test_few_episodes_are_shared_out_one_to_each_piece():
    # One episode holds nearly all frames; still, every piece gets a whole episode of its own.
    plan = plan_ranks([1.0], [np.array([1, 1, 1000, 1])], 4)
    assert [(piece.first_frame, piece.last_frame) for piece in plan.of_source(0)] == [
        (0, 1),
        (1, 2),
        (2, 1002),
        (1002, 1003),
    ]


def test_fewer_episodes_than_pieces_are_cut_inside_and_fewer_frames_are_repeated():
    inside = plan_ranks([1.0], [np.array([60, 40])], 4)
    assert [piece.first_frame for piece in inside.of_source(0)] == [0, 25, 50, 75]
    repeated = plan_ranks([1.0], [np.array([2])], 4)
    assert [piece.first_frame for piece in repeated.of_source(0)] == [0, 0, 1, 1]


@given(mixture=mixtures(), world_size=st.integers(1, 512))
@settings(max_examples=100, deadline=None)
def test_lpt_places_whole_sources_and_reports_what_comes_of_it(mixture, world_size):
    weights, lengths = mixture
    plan = plan_ranks(weights, lengths, world_size, "lpt")
    n = len(weights)
    assert len(plan.pieces) == max(n, world_size)
    assert all(piece.first_frame == 0 and piece.last_frame == lengths[piece.source].sum() for piece in plan.pieces)
    expected = np.zeros(n)
    for rank in range(world_size):
        here = [piece.source for piece in plan.of_rank(rank)]
        assert here
        expected[here] += weights[here] / weights[here].sum() / world_size
    assert (expected > 0).all()
    assert plan.realised_shares(n) == pytest.approx(expected, rel=1e-12)


def test_lpt_balances_frames():
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 10_000, 1) for _ in range(400)]
    plan = plan_ranks(np.ones(400), lengths, 8, "lpt")
    load = [sum(piece.num_frames for piece in plan.of_rank(rank)) for rank in range(8)]
    assert max(load) / np.mean(load) < 1.001


@pytest.mark.parametrize(("world_size", "variation", "over_sampling"), [(8, 0.39, 17), (32, 0.42, 26), (64, 0.44, 26)])
def test_lpt_of_table_3_gives_five_sources_nearly_equal_shares(world_size, variation, over_sampling):
    lengths = [np.array([round(size * 1e8)]) for size in TABLE_3_SIZES]
    shares = plan_ranks(TABLE_3, lengths, world_size, "lpt").realised_shares(5)
    if world_size == 8:
        assert shares == pytest.approx([0.25, 0.125, 0.25, 0.125, 0.25], rel=1e-12)
    assert 0.5 * np.abs(shares - TABLE_3).sum() == pytest.approx(variation, abs=0.005)
    assert (shares / TABLE_3_SIZES).max() == pytest.approx(over_sampling, rel=0.03)  # RoboMind, per frame
    exact = plan_ranks(TABLE_3, lengths, world_size).realised_shares(5)
    assert np.abs(exact - TABLE_3).sum() < 1e-12


@pytest.mark.parametrize("strategy", RANK_STRATEGIES)
def test_the_plan_is_the_same_wherever_it_is_made(strategy):
    rng = np.random.default_rng(3)
    weights, lengths = rng.integers(1, 4, 60).astype(float), [rng.integers(1, 4, 7) for _ in range(60)]
    plan = plan_ranks(weights, lengths, 17, strategy)
    assert plan == plan_ranks(list(weights), [x.copy() for x in lengths], 17, strategy)
    # Only ratios of weights count; a power of two scales floats without rounding.
    assert plan == plan_ranks(weights * 1024, lengths, 17, strategy)
    assert [piece for rank in range(17) for piece in plan.of_rank(rank)] == list(plan.pieces)


def test_one_rank_reads_everything():
    plan = plan_ranks([3.0, 1.0], [np.array([5, 5]), np.array([7])], 1)
    assert plan.pieces == (Piece(0, 0, 0.75, 0, 10), Piece(1, 0, 0.25, 0, 7))


def test_all_problems_are_named_at_once():
    with pytest.raises(InternVLAError) as error:
        plan_ranks([1.0, -2.0, float("nan")], [np.array([3]), np.array([], int), np.array([2, 0])], 0, "fair")
    for part in ("source 1 has weight -2.0", "source 2 has weight nan", "source 1 has no episodes", "source 2 has no"):
        assert part in str(error.value)
    assert "world_size is 0" in str(error.value)
    assert "'fair'; expected one of exact, lpt" in str(error.value)
    with pytest.raises(InternVLAError, match="2 weights for 1 source"):
        plan_ranks([1.0, 1.0], [np.array([3])], 1)
    with pytest.raises(InternVLAError, match="Rank 4 is not in this plan"):
        plan_ranks([1.0], [np.array([9])], 4).of_rank(4)


def test_a_thousand_sources_on_512_ranks_are_planned_in_seconds():
    rng = np.random.default_rng(0)
    episodes = rng.lognormal(0, 1.2, 1000)
    episodes = np.maximum(1, episodes / episodes.sum() * 1e6).astype(int)
    lengths = [np.full(count, 692) for count in episodes]
    weights = rng.lognormal(0, 2, 1000)
    start = time.perf_counter()
    plan = plan_ranks(weights, lengths, 512)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    plan_ranks(weights, lengths, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    check_exact(plan, weights, lengths)
    assert seconds < 5
    assert peak < 200e6
