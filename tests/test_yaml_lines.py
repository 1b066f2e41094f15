"""Files that people write: every problem in one message, with the line on which it stands."""

from pathlib import Path

import pytest

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.yaml_lines import Problems, YamlFile, check_keys, did_you_mean

MIXTURE = """\
# comment
sources:
  a:
    root: data/a
    weight: 0.5
  b: {root: data/b,
      weight: 1}
rates: [10, 20,
        30]
"""


def file_with(tmp_path: Path, text: str) -> YamlFile:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return YamlFile.load(path)


def test_values_are_plain_and_know_their_lines(tmp_path: Path):
    file = file_with(tmp_path, MIXTURE)
    assert file.root == {
        "sources": {"a": {"root": "data/a", "weight": 0.5}, "b": {"root": "data/b", "weight": 1}},
        "rates": [10, 20, 30],
    }
    assert file.line_of("sources") == 2
    assert file.line_of("sources", "a", "weight") == 5
    assert file.line_of("sources", "b", "weight") == 7
    assert [file.line_of("rates", i) for i in range(3)] == [8, 8, 9]


def test_what_is_not_there_has_the_line_of_what_is_around_it(tmp_path: Path):
    file = file_with(tmp_path, MIXTURE)
    assert file.line_of("sources", "a", "fps", "deeper") == 3
    assert file.line_of("nothing") == file.line_of() == 1


def test_a_key_written_twice_is_a_problem(tmp_path: Path):
    file = file_with(tmp_path, "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert list(file.problems()) == [
        "line 4: b: the key 'c' is already on line 3",
        "line 5: the key 'a' is already on line 1",
    ]
    assert not list(file_with(tmp_path, MIXTURE).problems())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("a: 1\n? [x, y]\n: 2\n", 2),
        ("a: !!python/object:x {}\n", 1),
    ],
)
def test_broken_yaml_names_the_line(tmp_path: Path, text: str, line: int):
    with pytest.raises(InternVLAError, match=rf"file\.yaml cannot be read: 1 problem\.\n  line {line}: not valid YAML"):
        file_with(tmp_path, text)


def test_missing_empty_and_unreadable_files(tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"There is no file '.*absent\.yaml'"):
        YamlFile.load(tmp_path / "absent.yaml")
    assert file_with(tmp_path, "# nothing\n").root is None
    (tmp_path / "latin.yaml").write_bytes("a: caf\xe9\n".encode("latin-1"))
    with pytest.raises(InternVLAError, match="as UTF-8"):
        YamlFile.load(tmp_path / "latin.yaml")


def test_anchors_and_merges_work_and_an_anchor_in_itself_does_not_hang(tmp_path: Path):
    file = file_with(tmp_path, "base: &b {x: 1}\nother:\n  <<: *b\n  y: 2\n")
    assert file.root["other"] == {"x": 1, "y": 2}
    assert file.line_of("other", "x") == 2  # merged in: the mapping's own line
    assert file_with(tmp_path, "a: &a [1, *a]\n").line_of("a", 1) == 1


def test_problems_are_raised_together_sorted_by_line():
    problems = Problems()
    problems.raise_if_any("fine")
    problems.add("later", 12)
    problems.add("several\nlines", 3)
    problems.add("whole file")
    problems.add("later", 12)  # said once
    with pytest.raises(InternVLAError) as raised:
        problems.raise_if_any("x.yaml cannot be used")
    assert str(raised.value).splitlines() == [
        "x.yaml cannot be used: 3 problems.",
        "  whole file",
        "  line 3: several",
        "    lines",
        "  line 12: later",
    ]


def test_unknown_and_missing_keys(tmp_path: Path):
    file = file_with(tmp_path, MIXTURE)
    problems = Problems()
    assert check_keys(problems, file, "sources", "a", known=("rot", "weight", "fps"), required=("fps", "weight"))
    assert check_keys(problems, file, known=("sources", "speeds"))
    assert not check_keys(problems, file, "rates", known=("low", "high"))
    assert list(problems) == [
        "line 3: sources.a: 'fps' is missing",
        "line 4: sources.a: unknown key 'root' (did you mean 'rot'?)",
        "line 8: the file: unknown key 'rates'; known: sources, speeds",
        "line 8: rates: expected a mapping with the keys low, high; got list",
    ]
    assert did_you_mean("weigth", ("root", "weight")) == " (did you mean 'weight'?)"
    assert did_you_mean("zzz", ("root", "weight")) == ""
