"""``lerobot-rollout --use_torch_compile=true``, as typed: actions and past are those without it, in sync and under RTC.

LeRobot sets ``policy.compile_model`` and warms RTC up with two chunks before the robot moves. In sync it does not: the
robot stands still until its first chunk is compiled. The rollouts run in processes of their own (compiled_rollout.py).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clocked_planner import CHUNK, EXECUTED, INTERVAL, LAYOUT, REPRESENTATIONS, RTC_FLAGS
from clocked_world import FPS, JOINTS
from lerobot_internvla.testing import tiny_dataset
from stock_commands import last_checkpoint, lerobot_train, training_flags

SCRIPT = Path(__file__).with_name("compiled_rollout.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")),
        reason="torch.compile on a CPU needs a C++ compiler",
    ),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compiled")
    tiny_dataset(root / "data", joint_names=JOINTS, fps=FPS, episode_lengths=(24, 23), video=False)
    lerobot_train(*training_flags(root / "data", root / "run", steps=1), *LAYOUT, *REPRESENTATIONS["relative"])
    return last_checkpoint(root / "run")


@pytest.mark.parametrize("inference", [("--inference.type=sync",), RTC_FLAGS], ids=["sync", "rtc"])
def test_compiled_chunks_are_those_of_the_plain_policy(inference: tuple[str, ...], checkpoint: Path):
    tests = SCRIPT.parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCRIPT), str(checkpoint), "--policy.num_inference_steps=2", *inference]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    is_rtc = inference is RTC_FLAGS

    assert report["compile_model"]
    assert report["compiled"] == (["denoise_step"] if is_rtc else ["sample_actions"])
    assert set(report["graphs"]) == {1}, "one graph, compiled for the first chunk; nothing while the robot moves"
    assert len(report["errors"]) >= 3 and max(report["errors"]) < 1e-4, "of targets between about -4 and 4"
    assert not is_rtc or sum(report["guided"]) >= 2

    # After warming up LeRobot resets; in sync it then acts on the observation that it has, the rollout's first.
    begun = report["starts"][-1] if is_rtc else 1
    acted = [(past, now) for past, now in report["ticks"] if now >= begun]
    assert len(acted) >= 3 and any(now > begun + INTERVAL for _, now in acted)
    assert all(past == max(now - INTERVAL, begun) for past, now in acted)

    commands = [command for _, command in report["commands"]]
    assert len(commands) >= 3 * EXECUTED
    planned = {tuple(action) for chunk in report["chunks"] for action in chunk}
    assert {tuple(command) for command in commands} <= planned
    if not is_rtc:
        assert commands[:EXECUTED] == report["chunks"][0][:EXECUTED] and len(report["chunks"][0]) == CHUNK
