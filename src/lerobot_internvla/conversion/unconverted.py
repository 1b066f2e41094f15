"""An unconverted reference checkpoint, given where LeRobot expects one of ours: one sentence with the command to type.

The reference's config.json names the types ``qwena1`` (3B) and ``interna1`` (2B). LeRobot looks such a name up in its
registry before any code of ours could run, so the names are registered: with a class that refuses to exist. It accepts
the flags of ``internvla_a1``, because they are parsed first, and answers every use with the same sentence.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import draccus
from lerobot.configs import PreTrainedConfig, parser

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError

REFERENCE_TYPES = {"qwena1": "3b", "interna1": "2b"}
"""``type`` in the reference's config.json -> our variant."""


def refuse(policy_path: str | None = None) -> NoReturn:
    """Say which command converts the checkpoint.

    Args:
        policy_path: folder or Hub id; None takes the command line's ``--policy.path``.

    Raises:
        InternVLAError: always.
    """
    path = policy_path or parser.get_path_arg("policy")
    if path is None:
        raise InternVLAError(
            f"{' and '.join(REFERENCE_TYPES)} are the reference implementation's policy types: convert its checkpoint "
            "with `internvla-convert SOURCE DEST` and pass DEST, or use --policy.type=internvla_a1."
        )
    converted = f"{path.rstrip('/')}-lerobot" if Path(path).is_dir() else f"{path.split('/')[-1]}-lerobot"
    raise InternVLAError(
        f"{path!r} is a checkpoint of the reference implementation, which must be converted once: run "
        f"`internvla-convert {shlex.quote(path)} {shlex.quote(converted)}` and pass --policy.path={converted}."
    )


def refuse_unconverted(folder: Path, policy_path: str | None = None) -> None:
    """Refuse a folder whose config.json is the reference's; say nothing about any other.

    Args:
        folder: where the files are.
        policy_path: what the user typed, for the message; None: the folder.

    Raises:
        InternVLAError: it has to be converted first.
    """
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(config, dict) and config.get("type") in REFERENCE_TYPES:
        refuse(policy_path or str(folder))


@dataclass
class UnconvertedReferenceConfig(InternVLAA1Config):
    """Never an instance: making one raises the sentence above."""

    def __post_init__(self) -> None:
        refuse()

    @classmethod
    def get_choice_name(cls, subcls: type) -> str:
        # The first thing that draccus asks of a choice type that it decodes a file for, before it complains about
        # the reference's fields, which are not ours. (Hence the direct base ChoiceRegistry below: draccus takes no
        # grandchild of it for a choice type. A decoder of its own is not allowed for a choice.)
        refuse()


@PreTrainedConfig.register_subclass("qwena1")
@dataclass
class Unconverted3BConfig(UnconvertedReferenceConfig, draccus.ChoiceRegistry):
    """``type: qwena1``."""


@PreTrainedConfig.register_subclass("interna1")
@dataclass
class Unconverted2BConfig(UnconvertedReferenceConfig, draccus.ChoiceRegistry):
    """``type: interna1``."""
