"""Sources on the Hub: from its cache when the network is off, with commit and checksums for the record."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from conversion.released_files import write_text_tokenizer
from lerobot_internvla.checkpoints import fetching
from lerobot_internvla.checkpoints.fetching import fetch
from lerobot_internvla.conversion.convert import convert
from lerobot_internvla.errors import InternVLAError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache of our own."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, repository: str, source: Path, tag: str = "main") -> None:
    """Lay a folder into the cache as a download would."""
    place = cache / ("models--" + repository.replace("/", "--"))
    (place / "refs").mkdir(parents=True)
    (place / "refs" / tag).write_text(COMMIT)
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        (snapshot / file.name).symlink_to(file)


def test_a_repository_is_converted_and_its_commit_recorded(cache: Path, released_3b: Path, tmp_path: Path):
    put(cache, "somebody/a1", released_3b, tag="v202602")
    put(cache, "somebody/words", write_text_tokenizer(tmp_path / "words"))
    done = convert("somebody/a1", tmp_path / "policy", revision="v202602", text_tokenizer="somebody/words")
    assert (done.source.name, done.source.revision, done.source.on_hub) == ("somebody/a1", COMMIT, True)
    text = (tmp_path / "policy" / "provenance.json").read_text()
    assert text.count(COMMIT) == 2
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "base_model:\n- somebody/a1" in card
    assert COMMIT in card


def test_a_download_that_does_not_fit_is_refused_before_it_starts(cache: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    class File:
        file_size, will_download = 10**18, True

    def planned(name: str, *, dry_run: bool = False, **options: object) -> list[File]:
        assert dry_run, "the download was started"
        return [File()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", planned)
    with pytest.raises(InternVLAError, match=r"needs 1000000000\.00 GB, but the Hub cache's disk has .* HF_HUB_CACHE="):
        fetch("somebody/a1", ["*"], what="checkpoint")


def test_a_local_folder_is_named_without_its_path(tmp_path: Path):
    (tmp_path / "a1").mkdir()
    (tmp_path / "a1" / "config.json").write_text("{}")
    fetched = fetching.fetch(tmp_path / "a1", [], what="checkpoint")
    assert fetched.record(["config.json"])["name"] == "a1"
    assert str(tmp_path) not in str(fetched.record(["config.json"]))
