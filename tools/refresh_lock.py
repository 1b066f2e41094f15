"""Resolve pyproject.toml (with every extra) to exact versions and write requirements.lock. Standard library only.

Run as `make lock`. pip resolves without installing; what it settles on is written down, one `name==version` a line.
Left out are this project itself and the wheels that torch chooses for the platform (CUDA libraries, triton): torch
pins those exactly, so that the same lock serves Linux with and without a GPU.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
CHOSEN_BY_TORCH = ("cuda-", "nvidia-", "triton")
HEADER = """\
# Exact versions for `make setup`, resolved from pyproject.toml by `make lock`. Do not edit by hand.
# CUDA libraries and triton are absent on purpose: torch names the ones that fit the platform.
"""


def normalised(name: str) -> str:
    """The spelling that package indexes compare by: lower case, runs of -, _ and . become one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve() -> dict[str, str]:
    """Name -> version of everything that pip would install, our own distribution excepted.

    Raises:
        subprocess.CalledProcessError: pip found no consistent set, or no network; its own words are on the screen.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ",".join(project["optional-dependencies"])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), f"{ROOT}[{extras}]"], check=True)
        installed = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return {
        normalised(entry["name"]): entry["version"].partition("+")[0]  # 2.11.0+cpu and 2.11.0 are one release
        for entry in installed
        if normalised(entry["name"]) != normalised(project["name"])
        and not normalised(entry["name"]).startswith(CHOSEN_BY_TORCH)
    }


def main() -> None:
    versions = resolve()
    LOCK.write_text(HEADER + "".join(f"{name}=={versions[name]}\n" for name in sorted(versions)))
    print(f"{LOCK.name}: {len(versions)} packages. Run `make test` before you commit it.")


if __name__ == "__main__":
    main()
