"""What every test shares: no network, no traces in the user's home, one thread per worker, the golden files.

Markers and how to switch them on are listed in pyproject.toml; ``pytest -ra`` prints why a test was skipped.
"""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Libraries read these variables when they are imported, and subprocesses inherit them: set before anything else is.
_scratch = tempfile.mkdtemp(prefix="internvla-tests-")
atexit.register(shutil.rmtree, _scratch, ignore_errors=True)
os.environ["HF_LEROBOT_HOME"] = str(Path(_scratch, "lerobot"))
os.environ["HF_DATASETS_CACHE"] = str(Path(_scratch, "datasets"))
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "--network" not in sys.argv:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = str(Path(_scratch, "huggingface"))  # cached statistics go there


@pytest.fixture(autouse=True)
def log_handlers_stay_as_they_were() -> Iterator[None]:
    """LeRobot's commands add handlers that write to the stderr of their test, which is closed in the next one."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lerobot_internvla")
    group.addoption("--network", action="store_true", help="run the tests that talk to the Hugging Face Hub")
    group.addoption("--weights", type=Path, metavar="FOLDER", help="folder with released weights, for such tests")


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)  # pytest-xdist runs one worker per core


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    reasons: dict[str, str] = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device"
    if not config.getoption("--network"):
        reasons["network"] = "talks to the Hugging Face Hub: pass --network to run it"
    if config.getoption("--weights") is None:
        reasons["weights"] = "needs released weights: pass --weights=<folder> to run it"
    for item in items:
        for marker, reason in reasons.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder with the reference's numbers: ``tests/goldens``, laid out as ``make parity`` expects it."""
    return TESTS / "goldens"


@pytest.fixture(scope="session")
def weights(request: pytest.FixtureRequest) -> Path:
    """The folder named by ``--weights``; for tests marked ``weights``."""
    folder: Path = request.config.getoption("--weights")
    if not folder.is_dir():
        pytest.fail(f"--weights={folder} is not a folder")
    return folder


@pytest.fixture(scope="session", params=["a1_3b_tiny", "a1_2b_tiny"])
def golden_model(request: pytest.FixtureRequest, goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete golden model folder of the reference: 3B (Qwen3-VL) and 2B (InternVL3), weights included."""
    from golden_models import complete_folder

    return complete_folder(goldens / request.param, tmp_path_factory.mktemp("golden") / request.param)


@pytest.fixture(scope="session")
def mixture_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four datasets of three robots, recorded once per worker, and the file that mixes them; not to be changed."""
    from lerobot_internvla.testing import tiny_mixture

    return tiny_mixture(tmp_path_factory.mktemp("mixture") / "files")
