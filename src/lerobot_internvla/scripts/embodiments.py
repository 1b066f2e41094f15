"""Which robots are known, whether a dataset fits one, and a first file for a new one.

    internvla-embodiments list                                all presets
    internvla-embodiments show so101                          what its numbers mean, dim by dim
    internvla-embodiments show so101 --yaml > mine.yaml       its file, to start a variant from
    internvla-embodiments check DATASET                       does it fit its robot? exit code 1 if not
    internvla-embodiments check DATASET --embodiment mine.yaml --camera-map head=top
    internvla-embodiments new DATASET --output mine.yaml      describe an unknown robot

DATASET is a folder or a Hub id; only its metadata is read. More: docs/embodiments.md.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lerobot_internvla.embodiments.registry import embodiments_called, get_embodiment, presets
from lerobot_internvla.embodiments.spec import UNITS, Embodiment
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import CAMERA_SLOTS
from lerobot_internvla.scripts.messages import says_what_is_wrong

if TYPE_CHECKING:
    from lerobot_internvla.data.dataset_meta import DatasetMeta
    from lerobot_internvla.embodiments.matching import Examination


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvla-embodiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="all presets")
    listing.add_argument("--markdown", action="store_true", help="as in docs/embodiments.md")
    show = commands.add_parser("show", help="one embodiment, dim by dim")
    show.add_argument("name", metavar="NAME", help="a preset, a robot_type, or a YAML file")
    show.add_argument("--yaml", action="store_true", help="print the file itself")
    check = commands.add_parser("check", help="hold a dataset against its robot")
    new = commands.add_parser("new", help="write a first YAML file from a dataset's metadata")
    for command in (check, new):
        command.add_argument("dataset", metavar="DATASET", help="folder or Hub id")
        command.add_argument("--revision", help="branch, tag or commit of a Hub id")
        command.add_argument(
            "--camera-map", nargs="+", metavar="SLOT=CAMERA", help="head, left_wrist, right_wrist = feature key or name"
        )
    check.add_argument("--embodiment", metavar="NAME", help="preset or YAML file (default: by the robot_type)")
    check.add_argument("--foresight-only", action="store_true", help="as a source without actions: cameras only")
    new.add_argument("--output", type=Path, required=True, metavar="FILE", help="my_robot.yaml; must not exist")
    new.add_argument("--name", help="of the embodiment (default: from the file's name)")
    return parser


HEADINGS = ("name", "robot", "state", "action", "relative", "cameras", "units", "robot_type of datasets")


def overview_rows() -> list[tuple[str, ...]]:
    """One row per preset, under ``HEADINGS``; numbers are dims."""
    rows: list[tuple[str, ...]] = []
    for name, robot in presets().items():
        units = dict.fromkeys(dim.unit for part in (*robot.state, *robot.action) for dim in part.dims)
        numbers = (str(robot.state_dim), str(robot.action_dim), str(sum(robot.relative_mask)))
        cameras, types = ", ".join(robot.cameras), ", ".join(robot.robot_types)
        rows.append((name, robot.title, *numbers, cameras, ", ".join(units) or "-", types))
    return rows


def overview() -> Table:
    """The rows for a terminal."""
    table = Table(title="Embodiments", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in ("state", "action", "relative") else "left")
    for row in overview_rows():
        table.add_row(*row)
    return table


def overview_markdown() -> str:
    """The rows for docs/embodiments.md; a test compares them."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    lines += [f"| `{name}` | {' | '.join(others)} |" for name, *others in overview_rows()]
    return "\n".join(lines)


def describe(robot: Embodiment) -> Group:
    """One row per dim of state and action, and what else is known."""
    table = Table(title=f"{robot.name}: {robot.title}", title_justify="left")
    for heading in ("", "feature", "dim", "name", "unit", "relative", "range", "speed"):
        table.add_column(heading, justify="right" if heading in ("dim", "speed") else "left")
    for kind, parts in (("state", robot.state), ("action", robot.action)):
        position = 0
        for part in parts:
            for dim in part.dims:
                relative = {True: "yes", False: "no"}[dim.relative] if kind == "action" else ""
                limits = ("", "")
                if kind == "action":
                    bounds = ["" if bound is None else f"{bound:g}" for bound in dim.range or ()]
                    limits = ("..".join(bounds) or "-", "-" if dim.speed is None else f"{dim.speed:g}/s")
                table.add_row(kind, part.key, str(position), dim.name, dim.unit, relative, *limits)
                position += 1
        table.add_section()
    units = {dim.unit for part in (*robot.state, *robot.action) for dim in part.dims}
    cameras = "; ".join(f"{slot}: {', '.join(names)}" for slot, names in robot.cameras.items())
    notes = {
        "cameras": cameras,
        "gripper": robot.gripper,
        "units": "; ".join(f"{unit}: {meaning}" for unit, meaning in UNITS.items() if unit in units) or "none",
        "typical rate": "varies" if robot.fps is None else f"{robot.fps:g} fps",
        "robot_type": ", ".join(robot.robot_types) or "none",
        "names": "must be those of a dataset" if robot.names_are_checked else "not compared with a dataset",
        "source": robot.source,
    }
    return Group(table, *(Text(f"{key}: {value}") for key, value in notes.items()))


def render_check(meta: "DatasetMeta", robot: Embodiment, found: "Examination") -> Table:
    """What the dataset has for each feature and camera slot of the robot."""
    title = f"{meta.repo_id} (robot_type {meta.robot_type!r}, {meta.fps:g} fps) as {robot.name}"
    table = Table(title=escape(title), title_justify="left")
    for heading in ("", "feature or slot", "found", "names", "units"):
        table.add_column(heading)
    for part in found.parts:
        wanted = len(part.part.dims)
        if part.width is None:
            dims = "missing"
        else:
            dims = f"{part.width} dims" + ("" if part.width == wanted else f" of {wanted}")
        units = ", ".join(dict.fromkeys(dim.unit for dim in part.part.dims))
        table.add_row(part.kind, part.part.key, dims, part.names, units)
    table.add_section()
    for camera in found.cameras:
        table.add_row("camera", camera.slot, camera.key or "-", camera.why, "")
    for key in found.unused_cameras:
        table.add_row("camera", "not used", key, "", "")
    return table


def remarks(meta: "DatasetMeta", robot: Embodiment, found: "Examination") -> list[str]:
    """What is no problem for training and may be one for the robot."""
    from lerobot_internvla.embodiments.limits import beyond_limits
    from lerobot_internvla.embodiments.matching import unit_doubts

    statistics = _statistics(meta)
    notes = unit_doubts(robot, statistics) + beyond_limits(robot, statistics)
    others = [other.name for other in embodiments_called(meta.robot_type or "")]
    if others and robot.name not in others and robot.name in presets():
        notes.append(f"the dataset's robot_type {meta.robot_type!r} is that of {' and '.join(others)}")
    unknown = [dim for part in found.parts for dim in part.part.dims if dim.unit == "unknown"]
    if unknown:
        notes.append(
            f"the unit of {len(unknown)} dims is unknown; nothing is converted, so mix no dataset in other units"
        )
    if any(part.names == "not named" for part in found.parts):
        notes.append("the dataset does not name all dims: only their number was compared, not their order")
    return notes


def _statistics(meta: "DatasetMeta") -> dict[str, Any] | None:
    path = meta.root / "meta" / "stats.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _read(dataset: str, revision: str | None) -> "DatasetMeta":
    from lerobot_internvla.data.dataset_meta import Place, read_meta

    if Path(dataset).is_dir():
        return read_meta(Place(dataset, None, Path(dataset).resolve(), None))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) or dataset.startswith("."):
        raise InternVLAError(f"{dataset!r} is neither a folder nor a Hub id (owner/name).")
    return read_meta(Place(dataset, dataset, None, revision))


def _camera_map(pairs: Sequence[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    wrong = [pair for pair in pairs if pair.count("=") != 1 or not all(pair.split("="))]
    if wrong:
        raise InternVLAError(
            f"--camera-map {' '.join(wrong)}: expected SLOT=CAMERA, such as head=top left_wrist=wrist; slots are "
            f"{', '.join(CAMERA_SLOTS)}."
        )
    slots = [pair.split("=")[0] for pair in pairs]
    if len(set(slots)) < len(slots):
        raise InternVLAError(f"--camera-map {' '.join(pairs)}: a slot is given twice.")
    return dict(zip(slots, (pair.split("=")[1] for pair in pairs), strict=True))


def _check(arguments: argparse.Namespace, console: Console) -> int:
    from lerobot_internvla.embodiments.matching import examine, infer_embodiment

    meta = _read(arguments.dataset, arguments.revision)
    if arguments.embodiment is not None:
        robot = get_embodiment(arguments.embodiment)
    else:
        robot = infer_embodiment(meta.robot_type, meta.features)
        console.print(f"embodiment: {robot.name}, by the dataset's robot_type {meta.robot_type!r}", highlight=False)
    needs_actions = not arguments.foresight_only
    found = examine(
        robot,
        meta.features,
        camera_map=_camera_map(arguments.camera_map),
        needs_actions=needs_actions,
        needs_state=needs_actions,
    )
    console.print(render_check(meta, robot, found))
    for remark in remarks(meta, robot, found):
        print(f"note: {remark}")
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    count = len(found.problems)
    print("FITS" if not count else f"DOES NOT FIT: {count} problem{'s' * (count > 1)}")
    return 1 if count else 0


def _new(arguments: argparse.Namespace) -> int:
    from lerobot_internvla.data.recorded_motion import recorded_motion
    from lerobot_internvla.embodiments.drafting import draft_embodiment
    from lerobot_internvla.embodiments.matching import match_features

    output: Path = arguments.output
    if output.suffix not in (".yaml", ".yml"):
        raise InternVLAError(f"--output {output}: expected a name that ends in .yaml.")
    if output.exists():
        raise InternVLAError(f"{output} exists already. Choose another name, or remove it yourself.")
    meta = _read(arguments.dataset, arguments.revision)
    text = draft_embodiment(
        arguments.name or re.sub(r"\W+", "_", output.stem).lower(),
        meta.features,
        robot_type=meta.robot_type,
        fps=meta.fps,
        dataset=meta.repo_id,
        camera_map=_camera_map(arguments.camera_map),
        recorded=recorded_motion(meta),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    robot = get_embodiment(output)
    match_features(robot, meta.features, needs_actions=bool(robot.action))
    print(f"{output}: state {robot.state_dim}, action {robot.action_dim}, cameras {', '.join(robot.cameras)}")
    others = embodiments_called(meta.robot_type or "")
    if others:
        names = " or ".join(other.name for other in others)
        print(f"note: robot_type {meta.robot_type!r} has a preset already: {names}")
    print(
        "The metadata names no units: they are 'unknown' until you fill them in. So are the gripper's ends.\n"
        "range and speed limit commands on a robot and are drafted from what was recorded: review them.\n"
        f"Then: internvla-embodiments check {arguments.dataset} --embodiment {output}"
    )
    return 0


@says_what_is_wrong("internvla-embodiments")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-embodiments``; 0: done, or it fits; 1: it does not fit; 2: wrong input."""
    arguments = _parser().parse_args(argv)
    console = Console()
    if arguments.command == "list":
        if arguments.markdown:
            print(overview_markdown())
        else:
            console.print(overview())
    elif arguments.command == "show":
        robot = get_embodiment(arguments.name)
        if arguments.yaml:
            preset = resources.files("lerobot_internvla.embodiments") / "presets" / f"{robot.name}.yaml"
            own = str(arguments.name).endswith((".yaml", ".yml"))
            print(Path(arguments.name).read_text() if own else preset.read_text(), end="")
        else:
            console.print(describe(robot))
    elif arguments.command == "check":
        return _check(arguments, console)
    else:
        return _new(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
