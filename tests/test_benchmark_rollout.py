"""The rollout benchmark drives LeRobot's own loop, and tells ticks between chunks from ticks that predict one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import moment_latents
import rollout

from lerobot_internvla.model.architecture import build_architecture
from lerobot_internvla.testing import tiny_policy


@pytest.fixture(autouse=True)
def logging_and_threads_as_before():
    import logging

    import torch

    threads = torch.get_num_threads()
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def test_rollout_script(tmp_path: Path):
    output = tmp_path / "rollout"
    arguments = ["--robots", "conveyor", "cameras", "--latencies_ms", "0", "150", "--ticks=20", "--n_action_steps=4"]
    arguments += ["--latents", "tiny", "--pairs=2"]
    report = rollout.main([*arguments, f"--output={output}"])
    assert json.loads(output.with_suffix(".json").read_text())["rows"] == report["rows"]
    assert report["command"].startswith("python benchmarks/rollout.py --robots conveyor")
    tiny, slow, _, cameras = report["rows"]
    assert [row["robot"] for row in report["rows"]] == ["conveyor"] * 2 + ["cameras"] * 2
    for row in report["rows"]:
        assert (row["ticks"], row["chunks"]) == (16, 4), "20 ticks but the first chunk's four; every fourth predicts"
        between, chunk = row["between_chunks_ms"], row["at_chunk_ms"]
        assert 0 < between["select_action"]["p50"] <= between["with processors"]["p50"] < between["engine"]["p50"]
        assert between["with processors"]["min"] < chunk["with processors"]["min"]
        assert row["rate_hz"] < 1.05 * row["fps"]
    # Other processes may slow down anything here, but nothing makes a sleep shorter.
    assert slow["at_chunk_ms"]["select_action"]["min"] >= 150 > slow["between_chunks_ms"]["select_action"]["min"]
    assert slow["late_ticks"] >= 3, "a chunk of 150 ms delays a loop of 10 Hz"
    assert tiny["history_bytes"] == (5 + 1) * 3 * 64 * 64 * 3
    assert cameras["history_bytes"] == (15 + 1) * 3 * 480 * 640 * 3, "what 3b holds of such cameras, too"
    (known,) = report["latents"]
    assert known["model"] == "tiny" and known["latent_bytes"] == 3 * 3 * 48 * 16 * 16 * 4, "of the last three chunks"
    page = output.with_suffix(".md").read_text()
    assert page.startswith("# Rollout") and "44,236,800" in page and "| stand-in, 150 ms |" in page


def test_every_second_chunk_finds_the_latents_of_its_past():
    policy = tiny_policy(moment_latents.configure("tiny", ""))
    tokenizer, encoded = policy.model.image_tokenizer, []
    encode = tokenizer.encode
    tokenizer.encode = lambda images: (encoded.append(len(images)), encode(images))[1]  # pyright: ignore
    known, unknown = moment_latents.chunk_ms(policy, 3)
    assert len(known) == len(unknown) == 3
    assert encoded[-9:] == [3] * 9, "by the moment: one where the past is known, two where it is not"
    assert len(encoded) == 1 + 2 + 1 + 2 + 1 + 2 + 9


def test_shares_are_those_of_performance_md():
    """3b: 475 GFLOP of the image tokenizer, for past and now, of 2,234 per chunk."""
    share = moment_latents.share_of_past(build_architecture("3b"))
    assert share == pytest.approx(475 / 2 / 2234, rel=0.005)
    assert moment_latents.share_of_past(build_architecture("tiny")) is None


def test_the_bound_is_on_policy_time_between_chunks():
    watch = rollout.Stopwatch(starts_s=[0.1 * tick for tick in range(8)])
    select = [50.0, 1, 1, 1, 50, 1, 1, 3]
    watch.times_ms = {"select_action": select, **{name: [0.25] * 8 for name in ("preprocess", "postprocess")}}
    watch.times_ms |= {name: [9.0] * 8 for name in ("convert", "engine", "observe", "send")}
    row = rollout.summarise(watch, fps=10, n_action_steps=4)
    assert row["between_chunks_ms"]["with processors"] == {"min": 1.5, "p50": 1.5, "p95": 3.3, "max": 3.5}
    assert row["at_chunk_ms"]["select_action"]["p50"] == 50 and (row["ticks"], row["chunks"]) == (4, 1)
    assert row["late_ticks"] == 0 and row["rate_hz"] == pytest.approx(10)
    assert rollout.within(row, "p50") and not rollout.within(row, "p95")
    watch.times_ms["engine"].pop()
    with pytest.raises(RuntimeError, match="calls per tick differ"):
        rollout.summarise(watch, fps=10, n_action_steps=4)


def test_percentiles_are_of_the_values():
    assert rollout.percentiles(np.arange(101.0)) == {"min": 0, "p50": 50, "p95": 95, "max": 100}
