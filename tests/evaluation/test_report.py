"""The page: whole, readable without this computer, true to the numbers, and never written over someone's files."""

import json
import re

import pytest
from PIL import Image

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.evaluation.loading import load_policy
from lerobot_internvla.evaluation.open_loop import evaluate_open_loop
from lerobot_internvla.evaluation.page import Heading, Page, Sentences, TableBlock
from lerobot_internvla.evaluation.report import build_page, evaluate_foresight, number, write_report
from scripted_policy import Oracle, loaded, scripted


@pytest.fixture
def result(dataset, recorded):
    policies = [loaded(Oracle(recorded), "<oracle>"), scripted(0.3)]
    return evaluate_open_loop(policies, dataset, n_plots=2, show_progress=False)


def test_the_page_is_whole_and_needs_no_other_file(result, tmp_path):
    written = write_report(result, [], tmp_path / "out")
    html = written.html.read_text()
    assert not re.search(r'(src|href)="(?!data:)', html), "something would be fetched"
    assert html.count("data:image/png;base64,") == len(written.pictures) == 3
    names = [path.name for path in written.pictures]
    assert names == ["errors_by_step.png", "episode_0.png", "episode_1.png"]
    for path in written.pictures:
        assert Image.open(path).size[0] > 800
        assert f"({path.name})" in written.markdown.read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in written.paths}


def test_names_cannot_become_markup(result, tmp_path):
    written = write_report(result, [], tmp_path / "out")
    assert "<oracle>" not in written.html.read_text() and "&lt;oracle&gt;" in written.html.read_text()
    assert r"\<oracle\>" in written.markdown.read_text()


def test_json_holds_the_numbers_of_the_page(result, tmp_path):
    document = json.loads(write_report(result, [], tmp_path / "out", about={"why": "test"}).json.read_text())
    assert document["why"] == "test" and document["versions"]["lerobot"]
    oracle, constant = document["policies"]
    assert oracle["executed"]["mae"] == pytest.approx(0, abs=1e-6)
    expected = result.policies[1].executed.mae().tolist()
    assert constant["executed"]["mae_by_joint"] == pytest.approx(expected)
    assert len(constant["whole_chunk"]["mae_by_step_and_joint"]) == 6
    assert set(document["baselines"]) == {"hold the state", "repeat last action"}
    assert [joint["unit"] for joint in document["joints"]] == ["unknown"] * 4
    table = next(block for block in build_page(result, []).blocks if isinstance(block, TableBlock))
    assert [row[3] for row in table.rows] == [number(value) for value in expected]
    assert table.best == {(i, 2) for i in range(4)}, "the smallest error of each joint is marked"


def test_what_was_not_counted_is_null_and_a_dash(result):
    assert number(float("nan")) == "-"
    assert (number(0.0), number(0.012345), number(0.00012345), number(123.4)) == ("0", "0.0123", "1.23e-04", "123")


def test_foresight_is_shown_for_the_policies_that_have_it(dataset, ours, act, tmp_path):
    policies = [load_policy(str(path), name=name) for path, name in ((ours, "ours"), (act, "act"))]
    result = evaluate_open_loop(policies, dataset, n_plots=0, show_progress=False)
    foresight = evaluate_foresight(policies, dataset, n_samples=4, n_panels=1, show_progress=False)
    assert [entry.policy for entry in foresight] == ["ours"]
    written = write_report(result, foresight, tmp_path / "out")
    assert [path.name for path in written.pictures] == ["errors_by_step.png", "foresight_ours_0.png"]
    cameras = json.loads(written.json.read_text())["foresight"]["ours"]["cameras"]
    assert cameras["head"]["frames"] == 4 and cameras["head"]["copy_of_now"]["psnr_db"] is not None
    assert "than copying the current frame" in written.markdown.read_text()


def test_a_folder_in_use_is_left_alone_unless_told_otherwise(result, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "episode_7.png").write_text("old")
    with pytest.raises(InternVLAError, match="exists and is not empty; nothing was written"):
        write_report(result, [], folder)
    write_report(result, [], folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "episode_7.png").exists(), "an old picture would be taken for a new one"


def test_markdown_keeps_tables_and_names_apart():
    page = Page("a | b", [Heading("x_y"), Sentences(["1 * 2", "[3]"], as_list=True), TableBlock(["n"], [["a|b"]])])
    assert page.to_markdown() == "# a \\| b\n\n## x_y\n\n- 1 \\* 2\n- \\[3\\]\n\n| n |\n| --- |\n| a\\|b |\n"
