"""The text of mixture files: what is understood, and that every mistake is named with its line, without a dataset."""

from pathlib import Path

import numpy as np
import pytest

from lerobot_internvla.data.mixture_file import (
    EpisodeRange,
    MixtureSpec,
    Rule,
    SourceSpec,
    parse_mixture,
    read_mixture,
)
from lerobot_internvla.errors import InternVLAError

SHIPPED = Path(__file__).parents[2] / "configs" / "mixtures"


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str) -> MixtureSpec:
        path = tmp_path / "mixture.yaml"
        path.write_text(text)
        return read_mixture(path)

    return read


@pytest.fixture
def complaint(read):
    """The message about a wrong file."""

    def complaint(text: str) -> str:
        with pytest.raises(InternVLAError) as caught:
            read(text)
        return str(caught.value)

    return complaint


def test_everything_that_can_be_written(read):
    spec = read("""
foresight_interval_s: 0.4
rank_strategy: lpt
groups:
  lab: {share: 0.64, rule: frames, gamma: 0.5}
  field: {share: 1e-1}
sources:
  kitchen:
    repo_id: me/kitchen
    revision: v1
    episodes: "3:90"
    embodiment: so101
    group: lab
    cameras: {head: observation.images.top, left_wrist: wrist}
    fps: 15
  people: {root: ../people_*, weight: 2, rule: episodes, gamma: 0.25, supervision: foresight, episodes: [4, 1]}
  barn: {root: ~/barn, group: field}
""")
    assert (spec.foresight_interval_s, spec.rank_strategy) == (0.4, "lpt")
    assert (spec.groups["lab"].share, spec.groups["lab"].rule) == (0.64, Rule("frames", 0.5))
    assert (spec.groups["field"].share, spec.groups["field"].rule) == (0.1, Rule("frames", 1.0))
    kitchen, people, barn = spec.sources
    assert (kitchen.name, kitchen.repo_id, kitchen.revision, kitchen.root) == ("kitchen", "me/kitchen", "v1", None)
    assert kitchen.episodes == EpisodeRange(3, 90)
    assert (kitchen.embodiment, kitchen.group, kitchen.weight, kitchen.fps) == ("so101", "lab", None, 15)
    assert kitchen.cameras == {"head": "observation.images.top", "left_wrist": "wrist"}
    assert kitchen.trains_actions
    assert kitchen.line("revision") == 10
    assert kitchen.line("nothing") == 8
    assert (people.weight, people.rule, people.glob) == (2, Rule("episodes", 0.25), "../people_*")
    assert people.episodes == (1, 4)
    assert not people.trains_actions
    assert (barn.root, barn.episodes, barn.embodiment, barn.glob) == ("~/barn", None, None, None)


def test_what_is_not_written_has_the_documented_defaults(read):
    spec = read("sources: {a: {root: x, weight: 1}}")
    assert (spec.foresight_interval_s, spec.rank_strategy, spec.groups) == (0.5, "exact", {})
    source = spec.sources[0]
    assert source == SourceSpec("a", root="x", weight=1.0, lines=source.lines)
    assert source.trains_actions


def test_all_problems_come_at_once_with_their_lines(complaint):
    text = complaint("""
foresight_interval_s: 0
rank_strategy: exakt
groups:
  lab: {share: 0.7, rule: frame, gamma: .nan}
  spare: {share: 1}
surces: {}
sources:
  kitchen: {repo_id: me/kitchen, group: labs}
  bench: {root: bench, group: lab, embodyment: so101}
""")
    for problem in (
        "line 2: foresight_interval_s: got 0, expected a number above 0",
        "line 3: rank_strategy: there is no rank_strategy 'exakt' (did you mean 'exact'?)",
        "line 5: groups.lab.rule: there is no rule 'frame' (did you mean 'frames'?); known: uniform, frames, episodes",
        "line 5: groups.lab.gamma: got nan",
        "line 6: groups.spare: no source names it",
        "line 7: the file: unknown key 'surces' (did you mean 'sources'?)",
        "line 9: sources.kitchen.group: there is no group 'labs' (did you mean 'lab'?)",
        "line 10: sources.bench: unknown key 'embodyment' (did you mean 'embodiment'?)",
    ):
        assert problem in text
    assert "8 problems" in text


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{root: x, weight: 0}", "got 0, expected a number above 0; to leave a source out, remove it"),
        ("{root: x, weight: -0.5}", "got -0.5, expected a number above 0"),
        ("{root: x, weight: .nan}", "got nan"),
        ("{root: x, weight: .inf}", "got inf"),
        ("{root: x, weight: much}", "got 'much'"),
        ("{root: x, weight: true}", "got True"),
        ("{root: x, weight: }", "sources.a.weight: has no value"),
        ("{root: x}", "has neither 'weight' nor 'group'"),
        ("{root: x, weight: 1, group: lab}", "has both 'weight' and 'group'"),
        ("{root: x, group: lap}", "there is no group 'lap' (did you mean 'lab'?); known: lab. Groups are listed under"),
        ("{weight: 1}", "names no data"),
        ("{repo_id: kitchen, weight: 1}", "expected <owner>/<name>. A folder is named by 'root'"),
        ("{repo_id: '*/kitchen', weight: 1}", "a glob may stand in the name, not in the owner"),
        ("{repo_id: me/x, root: x_*, weight: 1}", "give 'root' or 'repo_id', not both"),
        ("{repo_id: me/x, root: x, revision: v1, weight: 1}", "'revision' with 'root'"),
        ("{repo_id: me/x, revision: 1.0, weight: 1}", "revision: got 1.0, expected text; quotes"),
        ("{root: x, weight: 1, rule: frames}", "'rule' divides the weight of a glob, and there is none here"),
        ("{root: x, weight: 1, gamma: 2}", "'gamma' divides the weight of a glob"),
        ("{root: x_*, group: lab, rule: frames}", "'rule' beside 'group'; the group has the rule"),
        ("{root: x_*, weight: 1, rule: uniform, gamma: 2}", "'gamma' is for the rules frames and episodes"),
        ("{root: x_*, weight: 1, gamma: -1}", "gamma: got -1, expected a number from 0"),
        (
            "{root: x, weight: 1, supervision: forsight}",
            "(did you mean 'foresight'?); known: action+foresight, foresight",
        ),
        ("{root: x, weight: 1, cameras: {head: a, wrist: b}}", "no camera slot 'wrist' (did you mean 'left_wrist'?)"),
        ("{root: x, weight: 1, cameras: {left_wrist: top}}", "the map has no 'head', which the model requires"),
        ("{root: x, weight: 1, cameras: {}}", "cameras: got {}, expected a map such as {head:"),
        ("{root: x, weight: 1, cameras: top}", "cameras: got 'top', expected a map such as {head:"),
        ("{root: x, weight: 1, fps: 0}", "fps: got 0, expected a number above 0"),
        ("{root: x, weight: 1, episodes: 1:30}", "got 90, expected a list such as [0, 1, 5] or a range such as"),
        ("{root: x, weight: 1, episodes: '0-9'}", "got '0-9', expected a list"),
        ("{root: x, weight: 1, episodes: []}", "got [], expected a list"),
        ("{root: x, weight: 1, episodes: [-1]}", "got [-1], expected a list"),
        ("{root: x, weight: 1, episodes: [3, 5, 3]}", "episodes: lists 3 more than once"),
        ("just text", "sources.a: expected a mapping"),
    ],
)
def test_a_wrong_source_is_explained(complaint, source, problem):
    # A second source uses the group, so that nothing else is wrong.
    text = complaint(f"groups: {{lab: {{share: 1}}}}\nsources:\n  good: {{root: y, group: lab}}\n  a: {source}\n")
    assert problem in text
    assert "line 4: sources.a" in text
    assert "1 problem." in text


@pytest.mark.parametrize("key", ["rule: frames", "gamma: 0.5"])
def test_a_rule_is_for_globs(read, key):
    assert read(f"sources: {{a: {{root: x_*, weight: 1, {key}}}}}").sources[0].rule.size == "frames"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file holds nothing"),
        ("- a\n- b\n", "the file holds a list"),
        ("rank_strategy: exact\n", "'sources' is missing"),
        ("sources:\n", "line 1: sources: has no value"),
        ("sources: {}\n", "line 1: sources: expected a name and its settings"),
        ("sources: [{root: x}]\n", "line 1: sources: expected a name and its settings"),
        ("sources:\n  a/b: {root: x, weight: 1}\n", "line 2: sources: the name 'a/b'"),
        ("sources:\n  1: {root: x, weight: 1}\n", "line 2: sources: the name 1"),
        ("groups:\n  g: {rule: frames}\nsources: {a: {root: x, group: g}}", "line 2: groups.g: 'share' is missing"),
        (
            "sources:\n  a: {root: x, weight: 1}\n  a: {root: y, weight: 1}\n",
            "line 3: sources: the key 'a' is already on",
        ),
        ("sources: {a: {root: x", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_explained(complaint, text, problem):
    assert problem in complaint(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InternVLAError, match=r"no file .*nothing\.yaml"):
        read_mixture(tmp_path / "nothing.yaml")


def test_sources_with_problems_are_still_handed_on_for_a_look_at_their_data(tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text("sources:\n  a: {root: x, weight: -1}\n  b: {weight: 1}\n")
    spec, problems = parse_mixture(path)
    assert [source.name for source in spec.sources] == ["a"]
    assert len(problems) == 2


def test_rules_divide_in_proportion_to_a_power_of_the_size():
    frames, episodes = [100, 400], [9, 1]
    np.testing.assert_allclose(Rule("frames").divide(frames, episodes), [0.2, 0.8])
    np.testing.assert_allclose(Rule("frames", 0.5).divide(frames, episodes), [1 / 3, 2 / 3])
    np.testing.assert_allclose(Rule("episodes").divide(frames, episodes), [0.9, 0.1])
    np.testing.assert_allclose(Rule("episodes", 0.5).divide(frames, episodes), [0.75, 0.25])
    np.testing.assert_allclose(Rule("uniform").divide(frames, episodes), [0.5, 0.5])
    np.testing.assert_allclose(Rule("frames", 0.0).divide(frames, episodes), [0.5, 0.5])
    np.testing.assert_allclose(Rule("frames", 50.0).divide([692_000_000] * 2, episodes), [0.5, 0.5])


def test_rules_are_written_as_formulas():
    rules = [Rule("uniform"), Rule("frames"), Rule("episodes", 0.5)]
    assert [str(rule) for rule in rules] == ["uniform", "frames", "episodes^0.5"]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_are_right(path):
    spec = read_mixture(path)
    assert spec.sources
    header = path.read_text().split("\n\n")[0]
    for word in ("# Run:", "# Measured:", "# Change first:"):
        assert word in header


def test_table_3_has_the_shares_of_the_paper():
    spec = read_mixture(SHIPPED / "table3_pretraining.yaml")
    shares = {name: group.share for name, group in spec.groups.items()}
    assert shares == {"interndata_a1": 0.64, "robotwin": 0.08, "agibot_world": 0.18, "robomind": 0.02, "egodex": 0.08}
    assert [source.name for source in spec.sources if not source.trains_actions] == ["egodex"]
    assert spec.foresight_interval_s == 0.5
