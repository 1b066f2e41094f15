"""Killed at random moments, training loses nothing: the last checkpoint is whole, and going on from it is exact."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_training.py")
KILLS = 24


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path: Path):
    """``last`` always loads strictly and equals what was recorded as complete: policy, optimizer, bit for bit.

    And every step that was ever saved, across all resumptions, equals that of a run which nobody disturbed.
    """
    finished = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, str(KILLS), "7"],
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    report = json.loads(finished.stdout.splitlines()[-1])
    print(report)
    assert report["kills"] == KILLS
    assert report["half_written"] > 0, "no kill came in the middle of a save: nothing was tested"
    assert report["wrong"] == []
    assert report["steps"][-1] > 3, "the kills must not prevent all progress, or nothing was tested"
    assert report["steps"] == sorted(report["steps"]), "no step is ever lost"
    assert len(report["steps"]) >= KILLS - 6
