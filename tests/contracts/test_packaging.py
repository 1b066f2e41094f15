"""The wheel: what stock LeRobot finds once a stranger has installed it.

The wheel goes into an environment of its own, far from the checkout. So that nothing is downloaded, that environment
sees the packages installed here through a folder of links, this project excepted.
"""

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTION = "lerobot_policy_internvla_a1"


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, away from this checkout's paths."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200
    )
    assert finished.returncode == 0, f"{command} exited {finished.returncode}:\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that no build folder of the checkout gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=source)
    (built,) = folder.glob("*.whl")
    return built


Install = Callable[[Iterable[str]], Path]


@pytest.fixture(scope="module")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Make an empty environment with the wheel and without the named packages; returns its interpreter."""

    def make(without: Iterable[str] = ()) -> Path:
        folder = tmp_path_factory.mktemp("stranger")
        hidden = {name.lower() for name in (DISTRIBUTION, *without)}
        links = folder / "packages"
        links.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            name = entry.name.removeprefix("__editable__.").removeprefix("__editable___").split("-")[0].lower()
            # .pth files of other projects would only point elsewhere: they do not run from a folder of links anyway.
            if name not in hidden and not name.startswith(DISTRIBUTION) and entry.suffix != ".pth":
                (links / entry.name).symlink_to(entry)
        venv.create(folder / "environment", with_pip=False)
        (site_packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
        (site_packages / "packages.pth").write_text(f"{links}\n")
        python = folder / "environment" / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--python", python, "install")
        run(*pip, "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
        return python

    return make


@pytest.fixture(scope="module")
def stranger(install: Install) -> Path:
    """The interpreter of an environment with the wheel and everything that it depends on."""
    return install(())


def test_the_name_in_the_metadata_is_the_one_that_lerobot_looks_for(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
    assert metadata["Name"] == DISTRIBUTION  # letter by letter: with dashes LeRobot never finds it
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_wheel_holds_both_packages_and_all_their_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and not {"__pycache__", f"{DISTRIBUTION}.egg-info"}.intersection(path.parts)
    }
    assert {"lerobot_internvla/__init__.py", "lerobot_internvla/py.typed", f"{DISTRIBUTION}/__init__.py"} <= sources
    assert sources - inside == set()
    packed = {name for name in inside if ".dist-info/" not in name}
    assert packed - sources == set()
    assert {Path(name).name for name in inside if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_every_console_script_leads_to_a_function(stranger: Path) -> None:
    scripts = {name: stranger.with_name(name) for name in PROJECT["scripts"]}
    assert {name for name, path in scripts.items() if not path.exists()} == set()
    check = "import sys; from importlib.metadata import distribution\n"
    check += "for script in distribution(sys.argv[1]).entry_points: assert callable(script.load()), script"
    run(stranger, "-c", check, DISTRIBUTION, cwd=stranger.parent)


@pytest.mark.slow
def test_stock_lerobot_train_knows_the_policy_and_its_fields(stranger: Path) -> None:
    options = run(
        stranger, "-m", "lerobot.scripts.lerobot_train", "--help", "--policy.type=internvla_a1", cwd=stranger.parent
    )
    for field in ("--policy.variant", "--policy.use_foresight", "--policy.lambda_gen", "--policy.n_action_steps"):
        assert field in options
    origin = run(stranger, "-c", "import lerobot_internvla; print(lerobot_internvla.__file__)", cwd=stranger.parent)
    assert Path(origin.strip()).is_relative_to(stranger.parents[1])


@pytest.mark.slow
def test_importing_the_plugin_adds_nothing_of_transformers_or_diffusers(stranger: Path) -> None:
    """LeRobot itself imports parts of both; the plugin must not add to them, nor build its modeling file."""
    added = run(
        stranger,
        "-c",
        "import sys, lerobot.policies, lerobot.envs; before = set(sys.modules)\n"
        f"import {DISTRIBUTION}; print(*sorted(set(sys.modules) - before))",
        cwd=stranger.parent,
    ).split()
    assert "lerobot_internvla.configuration_internvla_a1" in added
    assert "lerobot_internvla.modeling_internvla_a1" not in added
    assert [name for name in added if name.partition(".")[0] in ("transformers", "diffusers")] == []


@pytest.mark.slow
def test_without_transformers_the_plugin_registers_and_the_policy_names_what_is_missing(install: Install) -> None:
    python = install(["transformers", "diffusers"])
    answer = run(
        python,
        "-c",
        "import lerobot_internvla\n"
        "from lerobot.configs.policies import PreTrainedConfig\n"
        "assert 'internvla_a1' in PreTrainedConfig.get_known_choices()\n"
        "try: lerobot_internvla.InternVLAA1Policy\n"
        "except (ImportError, ValueError) as error: print(error)",
        cwd=python.parent,
    )
    assert "transformers" in answer


def test_the_citation_names_the_same_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
