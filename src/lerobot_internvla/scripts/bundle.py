"""Pack a policy for a robot computer without internet, or check such a bundle on the robot.

    internvla-bundle CHECKPOINT DEST                     a folder or Hub id -> a folder to copy to the robot
    internvla-bundle CHECKPOINT DEST --download-wheels   with the wheels of every package, for computers like this one
    internvla-bundle --check DEST                        on the robot: files, versions, one chunk of actions

The bundle's README.md has the commands for the robot. More: docs/offline_robot.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot_internvla.scripts.messages import says_what_is_wrong

if TYPE_CHECKING:
    from lerobot_internvla.publishing.bundle import BundleCheck


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvla-bundle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="folder or Hub id of a policy or adapter")
    parser.add_argument("destination", metavar="DEST", type=Path, nargs="?", help="folder to make")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--download-wheels", action="store_true", help="fetch the wheels of all packages with pip")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="check a bundle instead of making one")
    parser.add_argument("--device", help="with --check: where the policy runs (default: a GPU if there is one)")
    parser.add_argument(
        "--allow-other-versions", action="store_true", help="with --check: list other package versions, accept them"
    )
    return parser


def render(check: "BundleCheck") -> str:
    """The verdict, one line per finding."""
    marks = {True: "ok     ", False: "PROBLEM"}
    lines = [f"{marks[not check.file_problems]}  files: {check.files} in the manifest"]
    lines += [f"           {problem}" for problem in check.file_problems]
    lines.append(f"{marks[not check.version_problems]}  packages: {check.packages} pinned")
    lines += [f"           {problem}" for problem in check.version_problems]
    lines += [f"           (no problem) {note}" for note in check.notes]
    if check.run is None:
        lines.append(f"{marks[False]}  policy: {check.run_problem}")
    else:
        _, steps, dims = check.run["shape"]
        lines.append(
            f"{marks[True]}  policy: loaded in {check.run['load_s']} s without network, predicted {steps} actions of "
            f"{dims} dims in {check.run['chunk_s']} s on {check.run['device']} (the first chunk is the slowest)"
        )
    count = len(check.file_problems) + (check.run is None)
    count += 0 if check.versions_may_differ else len(check.version_problems)
    lines.append("READY" if check.ready else f"NOT READY: {count} problem{'s' * (count > 1)}")
    return "\n".join(lines)


@says_what_is_wrong("internvla-bundle")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-bundle``; returns 0 when the bundle was made or is ready, 1 when it is not ready."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    making = arguments.checkpoint is not None
    if making == (arguments.check is not None) or (making and arguments.destination is None):
        parser.error("give CHECKPOINT and DEST to make a bundle, or --check FOLDER to check one")
    from lerobot_internvla.publishing.bundle import check_bundle, make_bundle

    if arguments.check is not None:
        check = check_bundle(
            arguments.check, allow_other_versions=arguments.allow_other_versions, device=arguments.device
        )
        print(render(check))
        return 0 if check.ready else 1
    folder = make_bundle(
        arguments.checkpoint,
        arguments.destination,
        revision=arguments.revision,
        download_wheels=arguments.download_wheels,
        tell=print,
    )
    print(f"bundle: {folder}\ncheck it here first: internvla-bundle --check {folder}\nthen follow {folder}/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
