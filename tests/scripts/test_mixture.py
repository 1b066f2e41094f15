"""internvla-mixture show: a mixture file in, tables, JSON and a picture out, or what is wrong with it."""

import importlib
import json
import tomllib
from pathlib import Path

import pytest

from lerobot_internvla.scripts.mixture import main
from lerobot_internvla.testing import tiny_dataset

ROBOT = """
name: tiny_arm
title: A robot of the tests
robot_types: [tiny]
fps: null
cameras: {head: [top]}
gripper: no gripper
source: lerobot_internvla.testing
state:
  - {key: observation.state, dims: [{name: shoulder, unit: rad}, {name: elbow, unit: rad}]}
action:
  - {key: action, dims: [{name: shoulder, unit: rad, relative: true}, {name: elbow, unit: rad, relative: true}]}
"""
PAIR = """
foresight_interval_s: 0.2
sources:
  many_frames: {root: long, embodiment: robot.yaml, weight: 1}
  few_frames: {root: short, embodiment: robot.yaml, weight: 3, supervision: foresight}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "robot.yaml").write_text(ROBOT)
    (folder / "pair.yaml").write_text(PAIR)
    for name, lengths in (("long", (40, 40)), ("short", (20,))):
        tiny_dataset(
            folder / name,
            episode_lengths=lengths,
            cameras={"top": (32, 32)},
            joint_names=("shoulder", "elbow"),
            video=False,
        )
    return folder / "pair.yaml"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def row(out: str, name: str) -> list[str]:
    line = next(line for line in out.splitlines() if f" {name} " in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_show(pair: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["show", str(pair), "--world-size", "4"]) == 0
    out = capsys.readouterr().out
    assert "pair.yaml: 2 sources on 4 ranks" in out
    # Requested 75 and 25 %; plain lpt gives each of two sources two of four ranks. 20 frames are drawn 0.75 x 1M times.
    assert row(out, "few_frames") == [
        *("few_frames", "tiny_arm (foresight)", "20", "0.00", "75.00", "75.00", "50.00", "37,500", "25,000")
    ]
    assert row(out, "many_frames")[4:7] == ["25.00", "25.00", "50.00"]
    assert row(out, "all")[2:7] == ["100", "0.00", "100.00", "100.00", "100.00"]
    assert "exact 0.0000, lpt 0.2500" in out
    # Three ranks share the 20 frames, the fourth has both episodes of the other source.
    ranks = out.partition("ranks, strategy exact")[2]
    assert [row(ranks, rank)[1] for rank in "0123"] == ["7", "6", "7", "80"]
    assert row(ranks, "3")[-1] == "many_frames"


def test_passes_and_the_other_strategy(pair: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["show", str(pair), "--world-size", "2", "--samples", "2_000", "--strategy", "lpt"]) == 0
    out = capsys.readouterr().out
    assert "passes per" in out
    assert "2,000" in out
    assert row(out, "few_frames")[-2:] == ["75.0", "50.0"]
    assert "ranks, strategy lpt" in out


def test_many_ranks_are_summed_up(pair: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["show", str(pair), "--world-size", "512"]) == 0
    out = capsys.readouterr().out
    assert "ranks, strategy" not in out
    assert row(out, "median")[2:4] == ["0.195", "1"]
    assert len(out.splitlines()) < 50


def test_output_folder(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["show", str(pair), "--world-size", "4", "--output", str(tmp_path / "report")]) == 0
    data, picture = tmp_path / "report" / "mixture_report.json", tmp_path / "report" / "mixture_report.png"
    assert capsys.readouterr().out.splitlines()[-2:] == [str(data), str(picture)]
    assert json.loads(data.read_text())["total_variation"]["lpt"] == pytest.approx(0.25)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_wrong_comes_without_a_traceback(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("sources:\n  one: {root: nowhere, embodiment: so101, weight: -1}\n")
    assert main(["show", str(wrong), "--world-size", "4"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("internvla-mixture: ")
    assert "line 2" in message
    assert main(["show", str(pair), "--world-size", "0"]) == 2
    assert "world_size is 0; expected at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["show", str(pair)])
    assert "--world-size" in capsys.readouterr().err


def test_it_is_a_command():
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["internvla-mixture"].split(":")
    assert getattr(importlib.import_module(module), function) is main
