"""Statistics of a robot with several datasets: those of all its data put together, computed once and kept."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from numpy.typing import NDArray

from lerobot_internvla import statistics
from lerobot_internvla.action_space import ActionSpace
from lerobot_internvla.data.mixture_statistics import mixture_statistics, source_statistics
from lerobot_internvla.data.sources import Mixture, Source, load_mixture
from lerobot_internvla.embodiments.rows import Row, build_action_spaces
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.statistics import FeatureStatistics, Statistics

CHUNK = 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def load(mixture_file: Path, request: pytest.FixtureRequest) -> Callable[..., Mixture]:
    """The tiny mixture with some text of its file replaced."""

    def load(*changes: tuple[str, str]) -> Mixture:
        text = mixture_file.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = mixture_file.with_name(f"{abs(hash(request.node.name))}.yaml")
        file.write_text(text)
        return load_mixture(file)

    return load


def spaces_of(mixture: Mixture, representation: str = "relative") -> dict[str, ActionSpace]:
    rows = {robot.name: Row(robot, robot.fps) for robot in mixture.embodiments}
    return dict(build_action_spaces(rows, representation, max_state_dim=8, max_action_dim=8).rows())


def columns(source: Source) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(states, actions) of every episode in use, float64."""
    table = LeRobotDataset(source.repo_id, root=source.root).hf_dataset.with_format("numpy")
    episode = np.asarray(table["episode_index"])
    states, actions = (np.stack(list(table[key])).astype(np.float64) for key in ("observation.state", "action"))
    return [(states[episode == wanted], actions[episode == wanted]) for wanted in source.episodes]


def pairs(source: Source, relative: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Every action that training sees, minus the state at the start of its chunk: one frame and one step at a time."""
    found: list[NDArray[np.float64]] = []
    for states, actions in columns(source):
        for frame in range(len(states)):
            for step in range(CHUNK):
                later = frame + step * source.frame_stride
                if later < len(states):
                    found.append(actions[later] - np.where(relative, states[frame], 0.0))
    return found


def assert_same(found: FeatureStatistics, samples: list[NDArray[np.float64]]) -> None:
    everything = np.stack(samples)
    assert found.count == len(everything)
    for name, expected in (
        ("mean", everything.mean(axis=0)),
        ("std", everything.std(axis=0)),
        ("min", everything.min(axis=0)),
        ("max", everything.max(axis=0)),
    ):
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-12, atol=1e-14)


def test_merged_statistics_are_those_of_all_data_of_the_robot_together(load: Callable[..., Mixture]):
    """The slider has two datasets, one of them at twice the rate: steps are two frames apart there."""
    mixture = load()
    spaces = spaces_of(mixture)
    found = mixture_statistics(mixture, spaces, CHUNK)
    assert found.keys() == {"tiny_arm", "tiny_slider"}
    for name, statistics_ in found.items():
        sources = [source for source in mixture.sources if source.embodiment.name == name]
        relative = np.array(spaces[name].relative_mask)
        assert_same(statistics_.action, [pair for source in sources for pair in pairs(source, relative)])
        assert_same(statistics_.state, [row for source in sources for states, _ in columns(source) for row in states])
    assert [source.frame_stride for source in mixture.sources] == [1, 1, 2, 1]
    spaces["tiny_slider"].set_statistics(found["tiny_slider"])


def test_weights_do_not_matter(load: Callable[..., Mixture]):
    plain, heavier = load(), load(("weight: 0.3", "weight: 9"))
    assert heavier.sources[1].weight > 0.9
    found = [mixture_statistics(mixture, spaces_of(mixture), CHUNK)["tiny_slider"] for mixture in (plain, heavier)]
    assert found[0] == found[1]


def test_absolute_actions_count_every_frame_once(load: Callable[..., Mixture]):
    mixture = load()
    found = mixture_statistics(mixture, spaces_of(mixture, "absolute"), CHUNK)["tiny_slider"]
    relative = mixture_statistics(mixture, spaces_of(mixture), CHUNK)["tiny_slider"]
    rows = [row for source in mixture.sources[1:3] for _, actions in columns(source) for row in actions]
    assert found.action.count == len(rows)
    np.testing.assert_allclose(found.action.mean, np.mean(rows, axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.action.std, np.std(rows, axis=0), rtol=1e-12)
    assert found.fingerprint != relative.fingerprint
    assert np.abs(found.action.std - relative.action.std).max() > 0.01


def test_only_episodes_in_use_and_only_sources_with_actions_count(load: Callable[..., Mixture]):
    mixture = load(("root: slider,", "root: slider, episodes: [1],"), ("fps: 10}", "supervision: foresight}"))
    spaces = spaces_of(mixture)
    found = mixture_statistics(mixture, spaces, CHUNK)["tiny_slider"]
    relative = np.array(spaces["tiny_slider"].relative_mask)
    assert mixture.sources[1].episodes == (1,)
    assert_same(found.action, pairs(mixture.sources[1], relative))
    assert_same(found.state, list(columns(mixture.sources[1])[0][0]))
    assert found.state.count == 24


def test_a_second_run_reads_no_data_and_a_new_source_only_its_own(
    load: Callable[..., Mixture], monkeypatch: pytest.MonkeyPatch
):
    computed: list[str] = []
    stock = statistics._compute

    def counted(*args: object, name: str, **kwargs: object) -> object:
        computed.append(name)
        return stock(*args, name=name, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(statistics, "_compute", counted)
    full, without = load(), load(("fps: 10}", "fps: 10, supervision: foresight}"))
    before = mixture_statistics(without, spaces_of(without), CHUNK)
    assert computed == ["local/arm", "local/slider"]
    with_it = mixture_statistics(full, spaces_of(full), CHUNK)
    assert computed == ["local/arm", "local/slider", "local/fast_slider"]
    assert mixture_statistics(full, spaces_of(full), CHUNK) == with_it
    assert len(computed) == 3
    assert with_it["tiny_arm"] == before["tiny_arm"] and with_it["tiny_slider"] != before["tiny_slider"]


def test_stride_and_chunk_size_decide_relative_numbers(load: Callable[..., Mixture]):
    slow, fast = load(), load((", fps: 10}", "}"))
    spaces = spaces_of(slow)
    found: list[Statistics] = [
        source_statistics(slow.sources[2], spaces["tiny_slider"], CHUNK),
        source_statistics(fast.sources[2], spaces["tiny_slider"], CHUNK),
        source_statistics(slow.sources[2], spaces["tiny_slider"], CHUNK + 1),
    ]
    assert len({one.fingerprint for one in found}) == 3
    assert len({float(one.action.std[0]) for one in found}) == 3


def test_where_a_rank_starts_changes_nothing(load: Callable[..., Mixture], monkeypatch: pytest.MonkeyPatch):
    mixture = load()
    plain = mixture_statistics(mixture, spaces_of(mixture), CHUNK)
    started: list[str] = []
    stock = source_statistics

    def counted(source: Source, space: ActionSpace, chunk_size: int) -> Statistics:
        started.append(source.name)
        return stock(source, space, chunk_size)

    monkeypatch.setattr("lerobot_internvla.data.mixture_statistics.source_statistics", counted)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert mixture_statistics(mixture, spaces_of(mixture), CHUNK) == plain
    assert started == ["slider", "fast_slider", "arm"]


def test_a_robot_whose_actions_nobody_trains_has_no_statistics(load: Callable[..., Mixture]):
    mixture = load(("{root: arm,", "{root: arm, supervision: foresight,"))
    with pytest.raises(InternVLAError, match="No source of the mixture trains the actions of robot 'tiny_arm'"):
        mixture_statistics(mixture, spaces_of(mixture), CHUNK)
