"""The benchmark of the control loops runs LeRobot's own, on every path, and sees late, dry and long ticks."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import control_loops
import rollout_paths
from control_loops import Case, Chunk, StandIn, Trace


@pytest.fixture(autouse=True)
def logging_and_threads_as_before():
    threads = torch.get_num_threads()
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def test_the_three_loops(tmp_path: Path):
    pytest.importorskip("grpc", reason="the policy server needs grpc: the extra 'async'")
    output = tmp_path / "paths"
    arguments = ["--robots", "cameras", "--latencies_ms", "150", "--ticks=60", "--n_action_steps=10", "--rounds=1"]
    report = rollout_paths.main([*arguments, f"--output={output}"])
    assert json.loads(output.with_suffix(".json").read_text())["rows"] == report["rows"]
    assert output.with_suffix(".png").stat().st_size > 10_000
    rows = {(row["path"], row["policy"]["is_host_busy"]): row for row in report["rows"]}
    assert set(rows) == {("sync", False), ("rtc", False), ("async", False), ("rtc", True)}
    for (path, _), row in rows.items():
        # Other processes may slow down anything here, but nothing makes a sleep shorter.
        assert row["chunks"] >= 1 and row["chunk_ms"]["min"] >= 150, path
        if row["age_ms"] is not None:
            assert row["age_ms"]["min"] >= 150, "no action comes before it is computed"
            latest = row["chunk_ms"]["max"] + 3 * row["period_ms"]["max"]
            assert row["age_ms"]["max"] < latest, "seen a tick before at most, used a tick later at most"
        assert row["rate_hz"] < 1.05 * row["fps"]
        assert 10 <= row["ticks"] < 60
    sync, rtc = rows["sync", False], rows["rtc", False]
    assert sync["tick while predicting_ms"]["min"] >= 150 > sync["tick_ms"]["p50"], "the control thread itself predicts"
    assert rtc["tick while predicting_ms"]["p50"] < 150, "another thread does"
    assert sync["late_ticks"] >= sync["chunks"] and sync["dry_ticks"] == 0
    assert rtc["notify_ms"]["min"] > 0 and sync["age_ms"]["p50"] < 1.5 * sync["chunk_ms"]["p50"]
    page = output.with_suffix(".md").read_text()
    assert page.startswith("# Control loops") and "| stand-in, 150 ms, busy host |" in page


def trace_of(periods_ms: list[float], **changes) -> Trace:
    trace = Trace()
    now = 100.0
    for period in periods_ms:
        trace.begun_s.append(now)
        trace.done_s.append(now + 0.002)
        trace.has_action.append(True)
        trace.notify_ms.append(0.5)
        now += period / 1e3
    for name, value in changes.items():
        setattr(trace, name, value)
    return trace


def test_what_is_late_dry_and_computed_meanwhile():
    trace = trace_of([10, 500, 100, 100, 150, 109, 100])
    trace.has_action[0] = trace.has_action[4] = False  # the first action goes out on tick 1
    begun = trace.begun_s
    used, dropped = (Chunk(begun[3] - 0.01, begun[3] + 0.001, begun[4] + 0.001) for _ in range(2))
    used.used_s = begun[5]
    trace.chunks = [Chunk(begun[0], begun[0], begun[1], begun[1]), used, dropped]
    trace.imagined_s = [begun[1], begun[4], begun[5]]
    row = rollout_paths.summarise(Case("conveyor", "rtc"), [trace, trace], n_action_steps=1)
    assert row["ticks"] == 8 and row["period_ms"]["max"] == 150, "from tick 2 on; the last one has no period"
    assert (row["late_ticks"], row["dry_ticks"]) == (2, 2), "109 ms are less than 10 % more than 100"
    assert row["chunks"] == 4 and row["chunk_ms"]["p50"] == pytest.approx(100, abs=0.1)
    assert row["age_ms"]["p50"] == row["age_ms"]["max"] == pytest.approx(260, abs=0.1), "of chunks that were used"
    assert row["tick_ms"]["p50"] == row["tick while predicting_ms"]["p50"] == pytest.approx(2)
    assert row["imagined"] == 4
    shown = rollout_paths.live_table([row]).markdown()
    assert "| conveyor | tiny | rtc | none | 4 | 4 | 8.71 |" in shown
    with pytest.raises(RuntimeError, match="Raise --ticks"):
        rollout_paths.summarise(Case("conveyor", "rtc"), [trace_of([100, 100])], n_action_steps=2)


def test_chunks_that_fail_are_no_measurement(monkeypatch: pytest.MonkeyPatch):
    from lerobot_internvla import InternVLAA1Policy

    def fail(*args, **kwargs):
        raise ValueError("out of order")

    monkeypatch.setattr(InternVLAA1Policy, "predict_action_chunk", fail)
    logging.disable(logging.CRITICAL)
    with pytest.raises(RuntimeError, match="chunks failed under RTC"):
        control_loops.run(Case("cameras", "rtc"), ticks=40, n_action_steps=10)


def test_a_busy_host_computes_for_as_long():
    from lerobot_internvla import InternVLAA1Policy

    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InternVLAA1Policy, "_sample", lambda self: calls.append(0))
        for policy in (StandIn(), StandIn(30), StandIn(30, is_host_busy=True)):
            calls.clear()
            with policy.installed():
                InternVLAA1Policy._sample(None)
            assert (len(calls) > 1) == policy.is_host_busy, "an idle host sleeps, a busy one goes on sampling"
    assert str(StandIn()) == "tiny" and str(StandIn(30)) == "stand-in, 30 ms, idle host"


def test_the_live_view_imagines_and_the_display_alone_does_not():
    pytest.importorskip("rerun", reason="the live view needs rerun: LeRobot's extra 'viz'")
    for display, is_imagined in (("cameras and foresight", True), ("cameras", False)):
        trace = control_loops.run(Case("cameras", "sync", display=display), ticks=40, n_action_steps=10)
        assert bool(trace.imagined_s) == is_imagined and len(trace.begun_s) == 40


def test_the_live_view_is_compared_with_the_display_alone():
    arguments = type("Arguments", (), {"robots": ["conveyor"], "latencies_ms": [0.0], "paths": rollout_paths.PATHS})
    cases = rollout_paths.live_cases(arguments)
    assert [(case.path, case.display) for case in cases] == [
        (path, display) for path in ("sync", "rtc") for display in ("none", "cameras", "cameras and foresight")
    ]
