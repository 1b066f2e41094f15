"""Releases of the reference in small, converted once per worker."""

from pathlib import Path

import pytest

from conversion.released_files import write_released, write_text_tokenizer
from golden_models import complete_folder
from lerobot_internvla.conversion.convert import convert


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text tokenizer."""
    return write_text_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def released(golden_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's release, 3B and 2B in turn. Not to be changed."""
    return write_released(golden_model, tmp_path_factory.mktemp("released") / golden_model.name)


@pytest.fixture(scope="session")
def released_3b(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 3B alone, for what does not depend on the variant. Not to be changed."""
    folder = tmp_path_factory.mktemp("released") / "a1_3b_tiny"
    golden = complete_folder(goldens / folder.name, tmp_path_factory.mktemp("golden") / folder.name)
    return write_released(golden, folder)


@pytest.fixture(scope="session")
def converted(released: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``released``, verified."""
    folder = tmp_path_factory.mktemp("converted") / "policy"
    done = convert(released, folder, text_tokenizer=words, verify=True)
    assert done.verification is not None
    assert done.verification.precision == "bfloat16"
    return folder
