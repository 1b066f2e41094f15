"""The benchmark of cached latents runs, and its cached steps leave the image tokenizer and two thirds of frames out."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import mixture_latents

from lerobot_internvla.image_tokenizer.haar import HaarImageTokenizer


def test_latents_section(monkeypatch: pytest.MonkeyPatch):
    encoded: list[int] = []
    encode = HaarImageTokenizer.encode
    monkeypatch.setattr(
        HaarImageTokenizer, "encode", lambda self, images: (encoded.append(len(images)), encode(self, images))[1]
    )
    small = mixture_latents.Case("small", "tiny", cosmos=False, episode_frames=6, batch=2)
    monkeypatch.setattr(mixture_latents, "CASES", {"small": small})
    monkeypatch.setattr(mixture_latents, "count_in_full_size", lambda: {"plain": 4610.0, "cached": 3898.0})
    threads = torch.get_num_threads()
    results = mixture_latents.run_latents(argparse.Namespace(cases=["small"], rounds=2, threads=1))
    torch.set_num_threads(threads)
    # Black, 3 cameras, 2 verified samples; then a warm-up and two rounds of plain steps, and none of cached ones.
    assert encoded == [1, 6, 6, 6, 9, 9, 18, 18, 18]
    case = results["cases"]["small"]
    assert case["pictures"] == 18 and case["verified"]["identical"] == 2
    assert all(clock["rounds"] == 2 for clock in case["stages"].values()) and len(case["stages"]) == 4
    steps, work = mixture_latents.latents_tables(results)
    assert [row[:3] for row in steps.rows] == [["small", "computed", "2"], ["small", "cached", "2"]]
    assert work.rows[1] == ["cached", "3.898", "1.18"]
