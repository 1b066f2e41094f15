"""Convert a checkpoint of the reference implementation for LeRobot, or a LeRobot one back.

    internvla-convert SOURCE DEST                          a folder, or a Hub id
    internvla-convert SOURCE DEST --revision v2 --verify   reload the result and compare it with the source; if DEST
                                                           was converted before, only that
    internvla-convert FOLDER DEST --export-reference       from our layout to the reference's

SOURCE holds model.safetensors, config.json (type qwena1 or interna1), stats.json and perhaps train_config.json. DEST
becomes a complete LeRobot policy folder; --policy.path=DEST runs it. Formats and licences: docs/checkpoints.md.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import CAMERA_SLOTS
from lerobot_internvla.scripts.messages import says_what_is_wrong


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvla-convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="Hub id or folder of the checkpoint")
    parser.add_argument("destination", metavar="DEST", type=Path, help="folder to make")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--overwrite", action="store_true", help="replace DEST, once the new folder is whole")
    parser.add_argument(
        "--verify", action="store_true", help="reload and compare with the source weights; a DEST of before as it is"
    )
    parser.add_argument("--export-reference", action="store_true", help="SOURCE is ours: write the reference's layout")

    robot = parser.add_argument_group("the robot (default: what stats.json and train_config.json say for certain)")
    robot.add_argument(
        "--embodiment", metavar="NAME", help="robot type, such as aloha or genie1; a wrong one lists all"
    )
    robot.add_argument("--statistics", type=Path, metavar="FILE", help="another stats.json than SOURCE's")
    robot.add_argument("--stats-key", metavar="KEY", help="robot type in stats.json, where it has several")
    robot.add_argument("--without-statistics", action="store_true", help="for fine-tuning only: DEST cannot act")
    robot.add_argument("--actions", choices=("relative", "absolute"), help="relative is 'delta' in the reference")
    robot.add_argument(
        "--absolute-dims", type=int, nargs="*", metavar="DIM", help="with relative actions: dims that stay absolute"
    )
    robot.add_argument(
        "--camera", action="append", metavar="SLOT=KEY", help="head=observation.images.top; repeat for left_wrist, ..."
    )

    parts = parser.add_argument_group("parts and papers")
    parts.add_argument("--text-tokenizer", metavar="ID", help="Hub id or folder (default: the variant's base model)")
    parts.add_argument(
        "--image-tokenizer",
        nargs="+",
        metavar="PATH",
        help="folder, Hub id, file, or encoder and decoder file (default: the one inside the policy file)",
    )
    parts.add_argument("--licence", help="of the weights, as the Hub spells it (default: cc-by-nc-sa-4.0)")
    return parser


def _cameras(pairs: Sequence[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    cameras: dict[str, str] = {}
    problems: list[str] = []
    for pair in pairs:
        slot, equals, key = pair.partition("=")
        if not equals or slot not in CAMERA_SLOTS or not key.startswith("observation.image"):
            problems.append(f"--camera {pair}: expected SLOT=KEY, such as head=observation.images.top")
        elif slot in cameras:
            problems.append(f"--camera {pair}: {slot} is {cameras[slot]} already")
        else:
            cameras[slot] = key
    if not problems and "head" not in cameras:
        problems.append("--camera: head is missing, which the model requires")
    if problems:
        raise InternVLAError("; ".join([*problems, f"slots are {', '.join(CAMERA_SLOTS)}"]) + ".")
    return cameras


_CHOICES = (
    *("statistics", "stats_key", "without_statistics", "actions", "absolute_dims", "camera"),
    *("text_tokenizer", "image_tokenizer", "licence"),
)
"""Flags that decide what a conversion becomes, but for --embodiment."""


def _refuse(arguments: argparse.Namespace, flags: Sequence[str], reason: str) -> None:
    """Nothing that was typed is ignored."""
    given = [f"--{flag.replace('_', '-')}" for flag in flags if getattr(arguments, flag) not in (None, False)]
    if given:
        raise InternVLAError(f"{', '.join(given)}: no meaning {reason}")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.export_reference:
        from lerobot_internvla.conversion.export import export_reference

        unused = (*_CHOICES, "revision", "verify")
        _refuse(arguments, unused, "with --export-reference, because everything is in SOURCE.")
        for line in export_reference(
            Path(arguments.source),
            arguments.destination,
            embodiment=arguments.embodiment,
            overwrite=arguments.overwrite,
            show_progress=True,
        ):
            print(line)
        return

    from lerobot_internvla.conversion.convert import PROVENANCE, convert, verify_converted

    destination: Path = arguments.destination.expanduser()
    if arguments.verify and not arguments.overwrite and (destination / PROVENANCE).is_file():
        reason = f"for {str(destination)!r}, which was converted before and is only verified. --overwrite converts it."
        _refuse(arguments, (*_CHOICES, "embodiment"), reason)
        print(verify_converted(arguments.source, destination, revision=arguments.revision))
        print(f"nothing was written: {destination} was converted before (--overwrite converts it again)")
        return

    optional: dict[str, Any] = {} if arguments.licence is None else {"licence": arguments.licence}
    done = convert(
        arguments.source,
        arguments.destination,
        revision=arguments.revision,
        statistics=arguments.statistics,
        without_statistics=arguments.without_statistics,
        embodiment=arguments.embodiment,
        statistics_key=arguments.stats_key,
        actions=arguments.actions,
        absolute_dims=arguments.absolute_dims,
        cameras=_cameras(arguments.camera),
        text_tokenizer=arguments.text_tokenizer,
        image_tokenizer=arguments.image_tokenizer,
        overwrite=arguments.overwrite,
        verify=arguments.verify,
        show_progress=True,
        **optional,
    )
    for note in done.notes:
        print(note)
    if done.verification is not None:
        print(done.verification)
    if done.robot.state is None:
        print("no statistics: fine-tune it before use (lerobot-train --policy.path=...)")
    print(f"converted: {done.folder}")
    print(f"run it:    lerobot-eval --policy.path={done.folder} --env.type=...")


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


@says_what_is_wrong("internvla-convert", OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-convert``."""
    arguments = _parser().parse_args(argv)
    # A scheduler's polite end cleans up as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        _run(arguments)
    except KeyboardInterrupt:
        print("internvla-convert: stopped; nothing was left behind", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
