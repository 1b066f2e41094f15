"""RTC removes the jumps that appending causes: benchmarks/rtc_jumps.py with a policy whose chunks never meet."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.testing import tiny_policy

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import rtc_jumps

DELAYS = ("0", "300")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy for the conveyor that wants the arms somewhere else with every chunk, and stays there for the chunk."""
    joints = [f"{name}.pos" for name in BACKENDS["conveyor"].action_names]
    policy = tiny_policy(
        **{"state_dim": 6, "action_dim": 6, "fps": 10.0, "foresight_interval_s": 0.5, "num_inference_steps": 10},
        **{"chunk_size": 16, "n_action_steps": 8, "action_feature_names": joints, "state_feature_names": joints},
    )
    policy.save_pretrained(tmp_path / "policy")
    prefill, chunks = InternVLAA1.prefill, [0]

    def count(self: InternVLAA1, observation: Any, **kwargs: Any) -> Any:
        chunks[0] += 1
        return prefill(self, observation, **kwargs)

    def denoise_step(self: InternVLAA1, prefill: Any, actions: Tensor, time: Tensor) -> Tensor:
        wanted = torch.rand((1, 1, 32), generator=torch.Generator().manual_seed(chunks[0]))
        return (actions - wanted) / time[:, None, None]

    monkeypatch.setattr(InternVLAA1, "prefill", count)
    monkeypatch.setattr(InternVLAA1, "denoise_step", denoise_step)
    return tmp_path / "policy"


def test_rtc_removes_the_jumps_at_every_delay(checkpoint: Path, tmp_path: Path):
    output = tmp_path / "jumps"
    flags = [
        f"--policy={checkpoint}",
        "--episodes=1",
        "--max_ticks=40",
        "--modes",
        "append",
        "cut",
        "rtc",
        "--delays_ms",
        *DELAYS,
        f"--output={output}",
    ]
    rows = rtc_jumps.main(flags)
    by_mode = {(row.mode, row.delay_ms): row for row in rows}
    assert len(by_mode) == 3 * len(DELAYS)
    for delay in map(float, DELAYS):
        rtc, append, cut = (by_mode[mode, delay] for mode in ("rtc", "append", "cut"))
        assert min(rtc.seams, append.seams, cut.seams) >= 1
        assert rtc.jump_mean < 0.5 * append.jump_mean, "the chunks before and after are half an arm's way apart"
        assert rtc.jump_mean < 0.5 * cut.jump_mean, "it is guidance that helps, not the replaced queue"
    page = output.with_suffix(".md").read_text()
    assert "| 300 ms | rtc |" in page and output.with_suffix(".png").stat().st_size > 10_000
