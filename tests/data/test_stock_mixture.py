"""What a run on a mixture is told at its start."""

import logging
from pathlib import Path

import pytest

from lerobot_internvla.data.canonical import SampleShape
from lerobot_internvla.data.mixture_dataset import MixtureDataset, ReadSettings
from lerobot_internvla.data.sources import load_mixture
from lerobot_internvla.data.stock_mixture import DECODERS, _advise_on_decoders
from lerobot_internvla.testing import tiny_config


@pytest.mark.parametrize(
    ("backend", "kept", "advised"), [("torchcodec", 3, True), ("torchcodec", 9, False), ("pyav", 3, False)]
)
def test_too_few_decoders_for_the_cameras_of_a_rank_are_said(
    mixture_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    backend: str,
    kept: int,
    advised: bool,
):
    monkeypatch.setenv(DECODERS, str(kept))
    dataset = MixtureDataset(
        load_mixture(mixture_file),
        SampleShape.of(tiny_config()),
        repo_id="local/mixture",
        seed=0,
        batch_size=2,
        settings=ReadSettings(video_backend=backend),
    )
    with caplog.at_level(logging.WARNING):
        _advise_on_decoders(dataset)
    assert (DECODERS in caplog.text) == advised
