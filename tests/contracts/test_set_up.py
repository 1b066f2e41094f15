"""`make setup` finds Python, resumes, repairs a stopped run, and says in one sentence what is missing.

The script runs in a made-up checkout with a made-up PATH. The Python in it is a small shell script: it answers
questions through the real interpreter, and only pretends to make environments and to install packages.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "setup_environment.sh"
TOOLS = ["awk", "cat", "cksum", "cp", "cut", "date", "df", "dirname", "find", "grep", "head", "mkdir", "rm", "rmdir"]
TOOLS += ["sed", "sh", "sleep", "tail", "touch", "uname", "wc"]

FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *_base_executable*)
        case "$*" in *ensurepip*) [ "${FAKE_LACKS:-}" != venv ] || exit 1 ;; esac
        REAL "$@" >/dev/null && echo "$0"
        exit ;;
    "-m venv "*) mkdir -p "$3/bin" "$3/lib/python3/site-packages"; cp "$0" "$3/bin/python"; exit ;;
    "-I -m pip install "*)
        echo "pip $*" >> "$CALLS"
        case "${FAKE_PIP:-works}" in
            hangs) sleep 60 ;;
            no-network) echo "WARNING: NewConnectionError"; echo "ERROR: No matching distribution"; exit 1 ;;
            disk-full) echo "ERROR: Could not install packages: [Errno 28] No space left on device"; exit 1 ;;
            other) echo "ERROR: the moon is in the wrong place"; exit 1 ;;
        esac
        exit ;;
    "-I -c import pip") exit ;;
esac
exec REAL "$@"
"""


class Checkout:
    """A folder with the set-up script, a PATH of its own, and a log of what pip was asked to do."""

    def __init__(self, root: Path) -> None:
        self.root = root / "a checkout"  # the space is meant
        self.bin = root / "bin"
        self.calls = root / "calls"
        (self.root / "tools").mkdir(parents=True)
        shutil.copy(SCRIPT, self.root / "tools")
        (self.root / "requirements.lock").write_text("torch==2.11.0\n")
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, f"this test needs {tool}"
            (self.bin / tool).symlink_to(found)
        self.environment = {"PATH": str(self.bin), "HOME": str(root), "CALLS": str(self.calls)}

    def add_program(self, path: str, text: str) -> Path:
        program = self.bin / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.unlink(missing_ok=True)
        program.write_text(text)
        program.chmod(0o755)
        return program

    def add_python(self, path: str = "python3.12") -> Path:
        return self.add_program(path, FAKE_PYTHON.replace("REAL", f"'{sys.executable}'"))

    def start(self, **settings: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.bin / "sh", self.root / "tools" / SCRIPT.name],
            env=self.environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def set_up(self, **settings: str) -> tuple[int, str]:
        """Exit code and output."""
        process = self.start(**settings)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def installs(self) -> int:
        """How often pip was asked to install something since the last question."""
        count = len(self.calls.read_text().splitlines()) if self.calls.exists() else 0
        self.calls.unlink(missing_ok=True)
        return count


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def assert_one_plain_sentence(outcome: tuple[int, str], *words: str) -> None:
    code, output = outcome
    assert code == 1, output
    last = output.splitlines()[-1]
    assert last.startswith("Set-up stopped: "), output
    assert last.endswith(".")
    for word in words:
        assert word in last


def test_the_second_run_does_nothing_and_needs_no_python(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.set_up()[0] == 0
    assert checkout.installs() == 2  # the locked packages, the project
    (checkout.bin / "python3.12").unlink()
    code, output = checkout.set_up(FAKE_PIP="no-network")
    assert (code, checkout.installs()) == (0, 0), output


def test_a_changed_lock_installs_again_into_the_same_environment(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.set_up()
    checkout.installs()
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    (checkout.root / "requirements.lock").write_text("torch==2.11.1\n")
    assert checkout.set_up()[0] == 0
    assert checkout.installs() == 2
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert checkout.set_up()[0] == 0
    assert checkout.installs() == 1  # the project alone
    assert kept.exists()


def test_failing_to_collect_an_update_leaves_the_environment_whole(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.set_up()
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    (checkout.root / "requirements.lock").write_text("torch==2.11.1\n")
    assert_one_plain_sentence(checkout.set_up(FAKE_PIP="no-network"), "network")
    assert checkout.set_up()[0] == 0
    assert kept.exists()


def test_a_moved_checkout_gets_a_new_environment(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.set_up()
    (checkout.root / ".venv" / "old").touch()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.set_up()[0] == 0
    assert not (checkout.root / ".venv" / "old").exists()


def test_a_stopped_run_says_so_and_the_next_one_repairs_it(checkout: Checkout) -> None:
    checkout.add_python()
    stopped = checkout.start(FAKE_PIP="hangs")
    deadline = time.monotonic() + 120
    while not checkout.calls.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_one_plain_sentence(checkout.set_up(), "already making .venv")  # a second one must not tear down the first
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=120)
    assert_one_plain_sentence((stopped.returncode, output), "interrupted")
    (checkout.root / ".venv" / "half-made").touch()
    code, output = checkout.set_up()
    assert code == 0
    assert "half-way" in output
    assert not (checkout.root / ".venv" / "half-made").exists()


def test_pyenv_versions_are_found_behind_a_shim_that_fails(checkout: Checkout) -> None:
    checkout.add_program("python3.12", "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    assert_one_plain_sentence(checkout.set_up(), "Python 3.12 or 3.13 was not found")
    checkout.add_python("pyenv root/versions/3.12.4/bin/python")
    code, output = checkout.set_up(PYENV_ROOT=str(checkout.bin / "pyenv root"))
    assert code == 0, output


def test_a_working_python_behind_a_failing_one_on_the_path_is_found(checkout: Checkout) -> None:
    checkout.add_program("python3.12", "#!/bin/sh\nexit 127\n")
    further = checkout.add_python("further/python3.12").parent
    code, output = checkout.set_up(PATH=f"{checkout.bin}{os.pathsep}{further}")
    assert code == 0, output


def test_uv_is_asked_for_a_python(checkout: Checkout) -> None:
    python = checkout.add_python("hidden/python3.12")
    installed = checkout.root / "installed"
    checkout.add_program(
        "uv",
        f"#!/bin/sh\ncase \"$1 $2\" in 'python install') : > '{installed}' ;;\n"
        f"'python find') [ -e '{installed}' ] && echo '{python}' ;; esac\n",
    )
    code, output = checkout.set_up()
    assert code == 0, output
    checkout.add_program("uv", "#!/bin/sh\nexit 1\n")
    shutil.rmtree(checkout.root / ".venv")
    assert_one_plain_sentence(checkout.set_up(), "uv could not install Python 3.12")


def test_missing_pieces_are_named(checkout: Checkout) -> None:
    assert_one_plain_sentence(checkout.set_up(), "Python 3.12 or 3.13 was not found")
    checkout.add_python()
    assert_one_plain_sentence(checkout.set_up(PYTHON="no-such-python"), "PYTHON=no-such-python")
    assert_one_plain_sentence(checkout.set_up(FAKE_LACKS="venv"), "python3.12", "venv, ensurepip or ssl module")
    assert not (checkout.root / ".venv").exists()
    assert_one_plain_sentence(checkout.set_up(FAKE_PIP="no-network"), "network")
    assert_one_plain_sentence(checkout.set_up(FAKE_PIP="disk-full"), "disk is full")
    assert_one_plain_sentence(checkout.set_up(FAKE_PIP="other"), "the moon is in the wrong place")
    shutil.rmtree(checkout.root / ".venv")
    checkout.add_program(
        "df", "#!/bin/sh\necho 'Filesystem 1024-blocks Used Available'\necho '/dev/disk 9 9 1000001 1% /'\n"
    )
    assert_one_plain_sentence(checkout.set_up(), "1 GB are free here")


def test_an_environment_that_is_not_ours_is_not_torn_down(checkout: Checkout) -> None:
    checkout.add_python()
    theirs = checkout.root / ".venv" / "theirs"
    theirs.parent.mkdir()
    theirs.touch()
    assert_one_plain_sentence(checkout.set_up(), ".venv exists, was not made by this script")
    assert theirs.exists()
