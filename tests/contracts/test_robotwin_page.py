"""examples/10_robotwin_evaluation.py with a stand-in for RoboTwin: its commands run in stock ``lerobot-eval``.

The stand-in has RoboTwin's files and calls as LeRobot 0.6.1's environment reads them, and no physics.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lerobot.policies import make_pre_post_processors

from lerobot_internvla.testing import tiny_policy

PAGE = Path(__file__).parents[2] / "examples" / "10_robotwin_evaluation.py"
TASK = '''
"""Succeeds after 40 control steps in scenes of an even seed."""
import numpy as np

class click_bell:
    def setup_demo(self, *, seed, task_name, left_embodiment_config, **settings):
        assert task_name == "click_bell" and left_embodiment_config == {"arms": 2}
        self.seed, self.steps = seed, 0

    def get_obs(self):
        picture = {"rgb": np.full((240, 320, 3), self.steps, np.uint8)}
        cameras = {name: picture for name in ("head_camera", "left_camera", "right_camera")}
        return {"observation": cameras, "joint_action": {"vector": np.zeros(14)}}

    def take_action(self, action):
        assert action.shape == (14,)
        self.steps += 1

    def check_success(self):
        return self.seed % 2 == 0 and self.steps >= 40
'''


@pytest.fixture
def robotwin(tmp_path: Path) -> Path:
    """A folder like RoboTwin's; paths in its files are relative to it."""
    root = tmp_path / "robotwin"
    files = {
        "envs/__init__.py": 'CONFIGS_PATH = "task_config"\n',
        "envs/click_bell.py": TASK,
        "task_config/demo_clean.yml": "embodiment: [aloha-agilex]\ncamera: {head_camera_type: D435}\n",
        "task_config/demo_randomized.yml": "embodiment: [aloha-agilex]\ncamera: {head_camera_type: D435}\nrandom: 1\n",
        "task_config/_embodiment_config.yml": "aloha-agilex: {file_path: robot}\n",
        "task_config/_camera_config.yml": "D435: {h: 240, w: 320}\n",
        "robot/config.yml": "arms: 2\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As internvla-convert writes that of RoboTwin: ALOHA's camera names, 14 dims."""
    cameras = ("cam_high", "cam_left_wrist", "cam_right_wrist")
    policy = tiny_policy(
        cameras=cameras, image_size=(48, 64), state_dim=14, action_dim=14, chunk_size=50, num_inference_steps=1
    )
    folder = tmp_path / "checkpoint"
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config):
        processor.save_pretrained(folder)
    return folder


def run_page(folder: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, PAGE, *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.mark.slow
def test_the_commands_of_the_page_run_and_their_results_become_a_table(
    robotwin: Path, checkpoint: Path, tmp_path: Path
):
    (tmp_path / "limits.yaml").write_text("click_bell: 45\n")
    flags = [f"--policy={checkpoint}", f"--robotwin={robotwin}", "--tasks=click_bell", "--episodes=2", "--run"]
    done = run_page(tmp_path, *flags, "--limits=limits.yaml", "--output=results")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    assert "| click_bell | 50.0 (9.5 to 90.5) |" in done.stdout and "1 of 50 tasks" in done.stdout
    assert "easy,click_bell,1,2,50.00" in (tmp_path / "results" / "table.csv").read_text()
    written = (tmp_path / "results" / "easy" / "click_bell" / "eval_info.json").stat().st_mtime_ns
    again = run_page(tmp_path, *flags, "--output=results")
    assert again.returncode == 0 and "| click_bell | 50.0" in again.stdout
    assert (tmp_path / "results" / "easy" / "click_bell" / "eval_info.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_easy_scenes_are_not_counted_as_hard_ones(robotwin: Path, tmp_path: Path):
    flags = ("--policy=checkpoint", f"--robotwin={robotwin}", "--tasks=click_bell", "--run", "--setting=hard")
    done = run_page(tmp_path, *flags)
    assert done.returncode == 1 and "is that of the setting easy, not hard" in done.stderr
