"""Killed at any moment, training loses nothing: the last checkpoint is whole, and going on from it is exact."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.data import exact_resume
from stock_commands import last_checkpoint, lerobot_train, training_flags

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


def test_a_run_resumed_in_a_later_epoch_sees_the_frames_of_an_uninterrupted_one(
    dataset: LeRobotDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """37 frames in batches of 13 are three steps per epoch; resumed in the second, it goes on into the third."""
    seen: list[list[int]] = []
    stock = InternVLAA1Policy.forward

    def spy(self: InternVLAA1Policy, batch: dict[str, Any], **kwargs: Any) -> Any:
        seen.append(batch["index"].tolist())
        return stock(self, batch, **kwargs)

    monkeypatch.setattr(InternVLAA1Policy, "forward", spy)
    output, copy = tmp_path / "run", tmp_path / "copy"
    lerobot_train(*training_flags(dataset.root, output, steps=8), "--save_freq=4", "--batch_size=13", "--seed=7")
    uninterrupted = list(seen)
    assert len({frame for frames in uninterrupted[:3] for frame in frames}) == 37
    seen.clear()
    shutil.copytree(output, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / "000008")
    config = copy / "checkpoints" / "000004" / "pretrained_model" / "train_config.json"
    lerobot_train(f"--config_path={config}", "--resume=true", f"--output_dir={copy}")
    assert seen == uninterrupted[4:]
    ours, theirs = (load_file(last_checkpoint(folder) / "model.safetensors") for folder in (copy, output))
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


@pytest.mark.parametrize("counts_from", [0, 3])
def test_the_sampler_takes_the_count_of_epochs_from_where_it_was_put(counts_from: int):
    """Accelerate counts from zero after a resume. A version that does not would be right too."""
    from lerobot.datasets import EpisodeAwareSampler

    exact_resume.install()

    def orders(sampler: EpisodeAwareSampler, epochs: range) -> list[list[int]]:
        found = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            found.append(list(sampler))
        return found

    straight = orders(EpisodeAwareSampler([0], [20], shuffle=True), range(6))
    resumed = EpisodeAwareSampler([0], [20], shuffle=True)
    resumed.load_state_dict({"epoch": 3, "start_index": 5})
    first, *later = orders(resumed, range(counts_from, counts_from + 3))
    assert first == straight[3][5:]
    assert later == straight[4:]
