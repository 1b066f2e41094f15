"""Tables over tasks, from made-up eval_info.json files in LeRobot 0.6.1's layout."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.evaluation.success_table import Successes, SuccessTable, read_eval_info, read_folder


def write(folder: Path, outcomes: Mapping[tuple[str, int], list[Any]]) -> Path:
    """What lerobot-eval writes, as far as it is read."""
    tasks = [
        {"task_group": group, "task_id": number, "metrics": {"sum_rewards": [0.0], "successes": done}}
        for (group, number), done in outcomes.items()
    ]
    folder.mkdir(parents=True)
    (folder / "eval_info.json").write_text(json.dumps({"per_task": tasks, "per_group": {}, "overall": {}}))
    return folder


def some(successes: int, episodes: int) -> list[bool]:
    return [i < successes for i in range(episodes)]


def test_a_task_is_named_by_its_group_unless_that_has_several(tmp_path: Path):
    robotwin = write(tmp_path / "a", {("click_bell", 0): some(3, 4)})
    assert read_eval_info(robotwin) == read_eval_info(robotwin / "eval_info.json") == {"click_bell": Successes(3, 4)}
    libero = write(tmp_path / "b", {("libero_10", 0): some(1, 2), ("libero_10", 7): some(0, 2)})
    assert read_eval_info(libero) == {"libero_10/0": Successes(1, 2), "libero_10/7": Successes(0, 2)}


def test_rates_have_wilson_intervals():
    low, high = Successes(90, 100).interval  # Wilson 1927: (82.6, 94.5) %
    assert Successes(90, 100).percent == 90.0 and (round(low, 1), round(high, 1)) == (82.6, 94.5)
    assert Successes(0, 100).interval[0] == 0.0 and 3.0 < Successes(0, 100).interval[1] < 4.0


def test_a_folder_of_one_evaluation_per_task_becomes_a_column(tmp_path: Path):
    for task, successes in (("lift_pot", 10), ("click_bell", 5)):
        write(tmp_path / "easy" / task, {(task, 0): some(successes, 10)})
    assert read_folder(tmp_path / "easy") == {"click_bell": Successes(5, 10), "lift_pot": Successes(10, 10)}


def test_the_table_shows_missing_tasks_and_averages_over_those_there_are():
    easy = {"click_bell": Successes(50, 100), "lift_pot": Successes(100, 100)}
    table = SuccessTable({"easy": easy, "hard": {"lift_pot": Successes(90, 100)}}, ("lift_pot", "click_bell"))
    assert table.markdown().splitlines() == [
        "| task | easy | hard |",
        "| --- | ---: | ---: |",
        "| lift_pot | 100.0 (96.3 to 100.0) | 90.0 (82.6 to 94.5) |",
        "| click_bell | 50.0 (40.4 to 59.6) | – |",
        "| **mean over tasks** | **75.00** (68.6 to 80.5) | **90.00** (82.6 to 94.5), 1 of 2 tasks |",
        "",
        "Success in %, 95 % Wilson interval; 100 episodes per task.",
    ]
    assert table.missing("hard") == ["click_bell"] and table.missing("easy") == []


def test_tasks_weigh_the_same_and_no_interval_is_made_up_for_that():
    table = SuccessTable({"easy": {"a": Successes(1, 1), "b": Successes(0, 99)}})
    average = table.average("easy")
    assert average is not None and average.percent == 50.0 and average.interval is None and average.episodes == 100
    assert SuccessTable({"easy": {}}, ("a",)).average("easy") is None


def test_csv_has_a_line_per_task_and_column():
    table = SuccessTable({"easy": {"a": Successes(1, 2)}, "hard": {"a": Successes(2, 2), "b": Successes(0, 2)}})
    rows = list(csv.DictReader(table.csv().splitlines()))
    assert [(r["column"], r["task"], r["successes"]) for r in rows] == [
        ("easy", "a", "1"),
        ("hard", "a", "2"),
        ("hard", "b", "0"),
    ]
    assert rows[0]["percent"] == "50.00" and float(rows[0]["low"]) < 50 < float(rows[0]["high"])


def test_what_is_no_result_is_refused_by_name(tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"holds no eval_info\.json"):
        read_folder(tmp_path)
    with pytest.raises(InternVLAError, match=r"nowhere.*output_dir"):
        read_eval_info(tmp_path / "nowhere")
    with pytest.raises(InternVLAError, match="at least one column"):
        SuccessTable({})
    write(tmp_path / "a", {("click_bell", 0): some(1, 2)})
    write(tmp_path / "b", {("click_bell", 0): some(2, 2)})
    write(tmp_path / "c", {("lift_pot", 0): [float("nan")]})
    write(tmp_path / "d", {("scan_object", 0): []})
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "eval_info.json").write_text('{"per_task": [{"task_group"')
    with pytest.raises(InternVLAError) as error:
        read_folder(tmp_path)
    for said in ("'click_bell' is in", "'lift_pot'", "'scan_object'", "is no eval_info.json of lerobot-eval"):
        assert said in str(error.value)
