"""The planning benchmark runs, and says of a plan what is true of it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import mixture_planning


def test_planning_section(monkeypatch: pytest.MonkeyPatch):
    sizes = mixture_planning.synthetic_sizes
    small = lambda sources: sizes(sources, frames=100_000, episodes=500)
    monkeypatch.setattr(mixture_planning, "synthetic_sizes", small)
    monkeypatch.setattr(mixture_planning, "CASES", ((10, 8), (30, 64)))
    monkeypatch.setattr(mixture_planning, "PIECES", (1, 50))
    results = mixture_planning.run_plan()
    assert [(row["sources"], row["ranks"], row["strategy"]) for row in results["plans"]] == [
        *((10, 8, "exact"), (10, 8, "lpt"), (30, 64, "exact"), (30, 64, "lpt"))
    ]
    for row in results["plans"]:
        assert row["frames"] == pytest.approx(100_000, rel=0.01)
        assert (row["total_variation"] < 1e-12) == (row["strategy"] == "exact")
        assert row["pieces"] <= row["sources"] + row["ranks"] - 1
    assert [row["pieces"] for row in results["orders"]] == [1, 50, 1, 1]
    plans, orders = mixture_planning.plan_tables(results)
    assert (len(plans.rows), len(orders.rows)) == (4, 4)
    assert "| 30 | 100,0" in plans.markdown()
