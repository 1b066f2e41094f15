"""The benchmark of many datasets: it runs, its readings read the same frames, sections of a report stay together."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets import dataset_reader
from lerobot.datasets.dataset_reader import DatasetReader

from lerobot_internvla.testing import tiny_dataset

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # scripts, not a package

import mixture  # noqa: E402
import mixture_loader  # noqa: E402
import recordings  # noqa: E402


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "dataset"
    lengths = (40, 45)
    tiny_dataset(folder, repo_id="local/textured", episode_lengths=lengths, cameras=mixture.CAMERAS, fps=30)
    return folder


def test_every_reading_meets_the_same_frames(root: Path, monkeypatch: pytest.MonkeyPatch):
    """One of three moments, each by itself, all in one request; ours asks for the three again."""
    read: dict[str, list[tuple[int, float]]] = {}
    stages = mixture.decode_stages(root, "pyav", samples=3)
    assert tuple(stages) == mixture.STAGES
    stock, decode = DatasetReader._query_videos, dataset_reader.decode_video_frames
    for name, stage in stages.items():
        seen = read.setdefault(name, [])

        def spy(self: Any, query: dict[str, list[float]], episode: int, seen: Any = seen) -> Any:
            seen += [(episode, moment) for moment in query["observation.images.head"]] if len(query) == 3 else []
            return stock(self, query, episode)

        monkeypatch.setattr(DatasetReader, "_query_videos", spy)
        decoded: list[int] = []

        def count(path: Path, moments: list[float], *more: Any, decoded: Any = decoded, **keywords: Any) -> Any:
            decoded.append(len(moments))
            return decode(path, moments, *more, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(dataset_reader, "decode_video_frames", count)
            stage()
        assert sum(decoded) == 3 * 3 * (1 if name == "one frame" else 3), name
    assert read["three one-frame decodes"] == read["three moments, stock"]
    assert read["one frame"] == read["three moments, stock"][1::3]


def test_the_decode_section_and_what_it_writes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    threads = torch.get_num_threads()
    small = mixture.Recording("64 x 64", lambda folder: folder.symlink_to(root, target_is_directory=True))
    monkeypatch.setattr(mixture, "RECORDINGS", {"small": small})
    monkeypatch.setattr(mixture, "why_not", lambda backend: None if backend == "pyav" else "torchcodec is not here")
    output = tmp_path / "results" / "mixture"
    output.parent.mkdir()
    machine = mixture.describe_machine().as_dict() | {"load_average_at_end": [0.0]}
    older = {"command": "python benchmarks/mixture.py another", "machine": machine, "results": {}}
    monkeypatch.setitem(mixture.SECTIONS, "another", mixture.Section(lambda arguments: {}, lambda results: []))
    output.with_suffix(".json").write_text(json.dumps({"another": older}))
    section = mixture.main(["decode", "--recordings", "small", "--rounds=2", "--samples=1", f"--output={output}"])
    torch.set_num_threads(threads)
    written = json.loads(output.with_suffix(".json").read_text())
    assert written["another"] == older, "other sections stay"
    assert written["decode"] == json.loads(json.dumps(section))
    stages = written["decode"]["results"]["recordings"]["small"]["backends"]["pyav"]
    assert set(stages) == set(mixture.STAGES)
    assert stages["three one-frame decodes"]["to_three_decodes"] == 1
    assert all(len(cost["all_ms"]) == 2 and 0 < cost["min_ms"] <= cost["median_ms"] for cost in stages.values())
    text = output.with_suffix(".md").read_text()
    assert "Not measured: torchcodec is not here." in text and "three moments, ours" in text
    assert "three moments, ours" in capsys.readouterr().out


def test_a_backend_that_cannot_be_loaded_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    assert mixture.why_not("pyav") is None

    def fail(name: str) -> None:
        raise RuntimeError("\nCould not load libtorchcodec.\nMore lines")

    monkeypatch.setattr(recordings.importlib, "import_module", fail)
    assert mixture.why_not("torchcodec") == "torchcodec cannot be loaded: Could not load libtorchcodec"


def test_readers_of_the_loader_section_meet_the_same_frames_and_its_tables_say_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(mixture_loader, "SIZE", (48, 64))
    monkeypatch.setattr(mixture_loader, "SECONDS", 2)
    monkeypatch.setattr(mixture_loader, "SAMPLES_BEFORE_MEMORY", 8)
    folder = mixture_loader.make_sources(tmp_path / "sources", 3)
    for size in (1, 3):
        mixture_loader.write_mixture(folder, size)
    found = {(reader.name, reader.sources): reader for reader in mixture_loader.readers(folder, "pyav", [1, 3])}
    stock = {(name, 1) for name in mixture_loader.REFERENCES.values()}
    assert set(found) == stock | {("mixture", 1), ("concatenation", 3), ("mixture", 3)}
    for first, second in ((("mixture", 1), ("stock", 1)), (("mixture", 3), ("concatenation", 3))):
        (ours, positions), (theirs, indices) = found[first].open(), found[second].open()
        for position, index in zip(range(4), indices, strict=False):
            assert next(positions) == position
            ours_item, stock_item = ours[position], theirs[index]
            assert torch.equal(ours_item["action"][:, :14], stock_item["action"])
            assert torch.equal(ours_item["observation.state"][:14], stock_item["observation.state"])
    threads = torch.get_num_threads()
    monkeypatch.setattr(mixture_loader, "make_sources", lambda path, count: folder)
    output = tmp_path / "mixture"
    small = ["--backends", "pyav", "--sources", "1", "3", "--rounds=1", "--batches=1", "--workers=1"]
    mixture.main(["loader", *small, f"--output={output}"])
    torch.set_num_threads(threads)
    measured = json.loads(output.with_suffix(".json").read_text())["loader"]["results"]["backends"]["pyav"]
    assert set(measured["starts"]) == set(measured["one_process"]) == {f"{name} | {n}" for name, n in found}
    assert set(measured["with_workers"]) == set(measured["starts"]) - {"concatenation | 3"}
    for short, name in mixture_loader.REFERENCES.items():
        assert measured["one_process"][f"{name} | 1"][f"cpu_to_{short}"] == 1
    assert measured["starts"]["mixture | 3"]["open_sources"] == 3
    assert all(cost["first_batch_s"] > 0 for cost in measured["starts"].values())
    assert "Starting, and memory" in capsys.readouterr().out
