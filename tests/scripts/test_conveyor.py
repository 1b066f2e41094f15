"""internvla-conveyor, as typed."""

import json
from pathlib import Path

import pytest

from lerobot_internvla.scripts.conveyor import main


def test_evaluate_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "new" / "expert.json"
    assert main(["evaluate", "--policy=expert", "--episodes=6", "--task=fast", f"--json={file}"]) == 0
    assert "6 of 6" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result["overall"]["successes"] == result["overall"]["episodes"] == 6
    assert set(result["by_speed"]) == {"0.35-0.45"}


def test_record_then_refuse_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["record", f"--root={tmp_path / 'd'}", "--episodes=1", "--task=fast", "--parcels=1", "--image_size=32"]
    assert main(arguments) == 0
    assert "Kept 1 successful episodes" in capsys.readouterr().out
    assert (tmp_path / "d" / "meta" / "info.json").is_file()
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_watch_writes_a_video(tmp_path: Path):
    assert main(["watch", f"--output={tmp_path / 'w.mp4'}", "--height=96", "--belt_speed", "0.4", "0.45"]) == 0
    assert (tmp_path / "w.mp4").stat().st_size > 1000
