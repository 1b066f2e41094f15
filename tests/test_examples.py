"""Every page in examples/ runs, prints what it says that it prints, and stays a page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mujoco_here import skip_unless_it_draws

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "examples").glob("[0-9]*.py"))
NUMBER = r"[-+]?\d[\d,.]*(?:e[-+]?\d+)?"


def promised_output(text: str) -> list[str]:
    """The indented block after "Prints", without its indentation."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Prints"))
    block = lines[start + 1 :]
    end = next((i for i, line in enumerate(block) if line and not line.startswith("    ")), len(block))
    return [line.strip() for line in block[:end] if line.strip()]


def same_but_for_numbers(line: str) -> re.Pattern[str]:
    pieces = re.split(NUMBER, " ".join(line.split()))
    return re.compile(NUMBER.join(re.escape(piece) for piece in pieces))


def test_there_are_pages():
    assert [page.name[:2] for page in PAGES][:2] == ["01", "02"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_a_title_a_command_a_time_and_fits_on_a_page(page: Path):
    text = page.read_text()
    assert len(text.splitlines()) < 120
    assert text.startswith(f'"""{page.name[:2]}: ')
    for heading in ("Run:", "Takes:", "Prints"):
        assert f"\n{heading}" in text, f"{page.name} does not say what it {heading}"
    assert f"python examples/{page.name}" in text


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_and_prints_what_it_promises(page: Path, tmp_path: Path):
    if "[mujoco]" in page.read_text():
        skip_unless_it_draws()
    finished = subprocess.run(
        [sys.executable, page],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr[-4000:]}"
    printed = [" ".join(line.split()) for line in finished.stdout.splitlines()]
    for line in promised_output(page.read_text()):
        wanted = same_but_for_numbers(line)
        assert any(wanted.match(found) for found in printed), f"{line!r} is missing from:\n{finished.stdout}"


def test_the_second_page_prints_commands_for_your_dataset(tmp_path: Path):
    page = next(page for page in PAGES if page.name.startswith("02"))
    finished = subprocess.run(
        [sys.executable, page, "me/my_task"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    commands = [line for line in finished.stdout.splitlines() if line]
    assert [line.split()[1] for line in commands] == ["lerobot-train", "lerobot-train", "internvla-foresight"]
    assert "--dataset.repo_id=me/my_task" in commands[0] and "--dataset.root" not in commands[0]
    assert not list(tmp_path.iterdir())
