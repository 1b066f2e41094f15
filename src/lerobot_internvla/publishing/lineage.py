"""Where a checkpoint's weights come from, and which licence follows from that.

``lineage.json`` lies beside the weights. It is written when they are saved and passed on when they are loaded again, so
a fine-tune of a fine-tune still knows what it grew from. It names Hub repositories and never a local folder.

    random weights                    -> {"ancestors": []}                                      tiny from scratch
    base models                       -> Qwen/Qwen3-VL-2B-Instruct, Cosmos, ...                  3b from scratch
    a converted reference checkpoint  -> InternRobotics/InternVLA-A1-3B, Cosmos
    a checkpoint without a record     -> "complete": false, and the licence is unknown

The licence is read off the ancestors (NOTICE lists them) and never guessed: where one ancestor is unknown, so is the
licence, and the model card says so.
"""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError

from .privacy import is_local_path, redact_arguments

LINEAGE_NAME = "lineage.json"
PROVENANCE = "provenance.json"
"""Record of ``internvla-convert``: whatever has one is a reference checkpoint, or derived from one."""
_FORMAT = 1

A1_LICENCE = "cc-by-nc-sa-4.0"
NVIDIA_LICENCE = "nvidia-open-model-license"
NVIDIA_LINK = "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/"
A1_NAME = "InternRobotics/InternVLA-A1-3B"
COSMOS_NAME = "nvidia/Cosmos-Tokenizer-CI8x8"
KNOWN_LICENCES: dict[str, str] = {
    A1_NAME: A1_LICENCE,
    "InternRobotics/InternVLA-A1-3B-RoboTwin": A1_LICENCE,
    COSMOS_NAME: NVIDIA_LICENCE,
    "Qwen/Qwen3-VL-2B-Instruct": "apache-2.0",
    "Qwen/Qwen3-0.6B": "apache-2.0",
    "Qwen/Qwen2.5-0.5B": "apache-2.0",
    "OpenGVLab/InternVL3-1B-hf": "mit",
}
"""Hub id -> the Hub's licence identifier. Facts of NOTICE; nothing else is assumed."""
LICENCE_WORDS: dict[str, str] = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    A1_LICENCE: "CC BY-NC-SA 4.0: no commercial use, share alike",
    NVIDIA_LICENCE: "NVIDIA Open Model License",
}
_PERMISSIVE = ("apache-2.0", "mit")


# ------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Ancestor:
    """One set of weights that these grew from."""

    role: str
    """"checkpoint", "base model", "expert warm start" or "image tokenizer"."""
    name: str
    """Hub id, or words for what has none."""
    revision: str | None = None
    licence: str | None = None
    """The Hub's identifier; None: not known."""

    @property
    def is_on_hub(self) -> bool:
        return re.fullmatch(r"[\w.-]+/[\w.-]+", self.name) is not None


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset that was trained on."""

    repo_id: str
    revision: str | None = None
    robot_type: str | None = None
    """LeRobot's; of a source of a mixture, the name of its embodiment."""
    episodes: int | None = None
    frames: int | None = None
    fps: float | None = None
    tasks: tuple[str, ...] = ()
    share: float | None = None
    """Of the samples, in [0, 1], where several were mixed."""


@dataclass(frozen=True)
class Lineage:
    """Everything that the weights themselves do not say."""

    complete: bool
    """False: at some point weights were loaded whose origin nobody wrote down."""
    ancestors: tuple[Ancestor, ...] = ()
    datasets: tuple[DatasetFacts, ...] = ()
    """In the order of training; the last run's are last."""
    statistics: str | None = None
    """What normalisation was computed from: a dataset's name. None: not recorded."""
    command: tuple[str, ...] | None = None
    """Of the last training run, without local paths."""
    ranks: int | None = None
    """Processes of the last training run."""
    software: dict[str, str] = dataclasses.field(default_factory=dict[str, str])

    @classmethod
    def of_new_weights(cls, config: InternVLAA1Config) -> "Lineage":
        """Of a policy that was built without a checkpoint: its base models, or nothing at all."""
        architecture = config.architecture
        starts = (
            ("base model", config.base_model, architecture.base_model),
            ("expert warm start", config.expert_warm_start, architecture.expert_warm_start),
        )
        ancestors = [
            _named(role, default if name == "auto" else name)
            for role, name, default in starts
            if (default if name == "auto" else name) is not None
        ]
        return cls(complete=True, ancestors=(*ancestors, *_image_tokenizer(config)))

    @classmethod
    def of_checkpoint(cls, folder: Path, config: InternVLAA1Config) -> "Lineage":
        """Of a policy that was loaded: what the checkpoint's record says, and the checkpoint itself if it is public.

        Args:
            folder: a local folder, or a snapshot in the Hub's cache.
        """
        parent = read_lineage(folder)
        hub_id = _hub_id(folder)
        if parent is None:
            unknown = Ancestor(
                "checkpoint", hub_id[0] if hub_id else "a local checkpoint without a record of its origin"
            )
            known = dataclasses.replace(
                unknown, revision=hub_id[1] if hub_id else None, licence=KNOWN_LICENCES.get(unknown.name)
            )
            return cls(complete=known.licence is not None, ancestors=(known, *_image_tokenizer(config)))
        if hub_id is not None and hub_id[0] not in {ancestor.name for ancestor in parent.ancestors}:
            decided = decide_licence(parent)
            licence = decided.weights or decided.id
            itself = Ancestor("checkpoint", *hub_id, licence=None if licence == "unknown" else licence)
            parent = dataclasses.replace(parent, ancestors=(itself, *parent.ancestors))
        return parent

    def trained_on(self, dataset_meta: Any) -> "Lineage":
        """The same weights at the start of a training run on ``dataset_meta`` (LeRobot's dataset metadata)."""
        mixture = getattr(dataset_meta, "mixture", None)
        facts = (dataset_facts(dataset_meta),) if mixture is None else facts_of_sources(mixture)
        names = {dataset.repo_id for dataset in facts}
        kept = tuple(known for known in self.datasets if known.repo_id not in names)
        return dataclasses.replace(
            self,
            datasets=(*kept, *facts),
            # A resumed run is typed as --resume=true and little else: the command that began it says more.
            command=self.command if self.command and "--resume=true" in sys.argv else _training_command(sys.argv),
            ranks=_ranks(),
            software=software_versions(),
        )

    def as_dict(self) -> dict[str, Any]:
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    def save(self, folder: Path) -> None:
        """Write ``lineage.json``."""
        (folder / LINEAGE_NAME).write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")


def read_lineage(folder: Path) -> Lineage | None:
    """The record of a checkpoint folder; None where there is none.

    Raises:
        InternVLAError: the record cannot be read, or a newer version wrote it.
    """
    file = folder / LINEAGE_NAME
    if file.is_file():
        try:
            tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if tree.pop("format") != _FORMAT:
                raise InternVLAError(f"A newer version wrote {str(file)!r}: upgrade lerobot_policy_internvla_a1.")
            ancestors = tuple(Ancestor(**entry) for entry in tree.pop("ancestors"))
            datasets = tuple(
                DatasetFacts(**{**entry, "tasks": tuple(entry.get("tasks", ()))}) for entry in tree.pop("datasets")
            )
            command = tree.pop("command")
            return Lineage(
                ancestors=ancestors, datasets=datasets, command=None if command is None else tuple(command), **tree
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InternVLAError(
                f"{str(file)!r}, the record of where the weights come from, cannot be read ({error}). Restore it; "
                "without it (delete the file) the licence counts as unknown."
            ) from error
    return _of_conversion(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else None


def _of_conversion(file: Path) -> Lineage:
    """What ``internvla-convert`` wrote: the weights are, or derive from, InternVLA-A1."""
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        source, licence = record["source"], str(record["licence"])
        on_hub = source["from"] == "hub"
        itself = Ancestor(
            role="checkpoint",
            name=source["name"] if on_hub else f"a reference checkpoint of InternVLA-A1 ({source['name']}), converted",
            revision=source["revision"],
            licence=licence,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise InternVLAError(f"{str(file)!r} cannot be read ({error!r}). Convert the checkpoint again.") from error
    statistics = (
        f"stats.json of the source, entry {record.get('statistics_key')!r}" if record.get("statistics") else None
    )
    cosmos = Ancestor("image tokenizer", COSMOS_NAME, None, NVIDIA_LICENCE)
    return Lineage(complete=True, ancestors=(itself, cosmos), statistics=statistics)


def _named(role: str, name: str | None) -> Ancestor:
    if name is None or is_local_path(name) or Path(name).is_dir():
        return Ancestor(role, "a model in a local folder")
    return Ancestor(role, name, None, KNOWN_LICENCES.get(name))


def _image_tokenizer(config: InternVLAA1Config) -> tuple[Ancestor, ...]:
    """Cosmos is NVIDIA's in whatever file it came; Haar has no weights."""
    if config.use_foresight and config.architecture.image_tokenizer.kind == "cosmos_ci8x8":
        return (Ancestor("image tokenizer", COSMOS_NAME, None, NVIDIA_LICENCE),)
    return ()


def _hub_id(folder: Path) -> tuple[str, str] | None:
    """(owner/name, commit) of a snapshot in the Hub's cache: models--owner--name/snapshots/<commit>."""
    parts = folder.resolve().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    return parts[-3].removeprefix("models--").replace("--", "/", 1), parts[-1]


def dataset_facts(dataset_meta: Any) -> DatasetFacts:
    """What a model card says about a dataset, from LeRobot's metadata; absent attributes stay unknown."""
    tasks: Any = getattr(dataset_meta, "tasks", None)
    names = [str(task) for task in tasks.index] if hasattr(tasks, "index") and not isinstance(tasks, Sequence) else []
    fps = getattr(dataset_meta, "fps", None)
    return DatasetFacts(
        repo_id=str(dataset_meta.repo_id),
        revision=getattr(dataset_meta, "revision", None),
        robot_type=getattr(dataset_meta, "robot_type", None),
        episodes=getattr(dataset_meta, "total_episodes", None),
        frames=getattr(dataset_meta, "total_frames", None),
        fps=None if fps is None else float(fps),
        tasks=tuple(names[:20]),
    )


def facts_of_sources(mixture: Any) -> tuple[DatasetFacts, ...]:
    """What a model card says about the datasets of a mixture, one entry per source.

    Args:
        mixture: a ``data.sources.Mixture``.
    """
    return tuple(
        DatasetFacts(
            repo_id=source.repo_id,
            revision=source.revision,
            robot_type=source.embodiment.name,
            episodes=source.num_episodes,
            frames=source.num_frames,
            fps=source.fps,
            share=source.weight,
        )
        for source in mixture.sources
    )


# ------------------------------------------------------------------------------------------------------------ licence


@dataclass(frozen=True)
class Licence:
    """What goes into a model card."""

    id: str
    """The Hub's identifier: "apache-2.0", "cc-by-nc-sa-4.0", "other" or "unknown"."""
    reason: str
    """One sentence: why."""
    name: str | None = None
    link: str | None = None
    """Only with "other"."""
    weights: str | None = None
    """With "other": of the policy's own weights, without the image tokenizer."""

    @property
    def is_non_commercial(self) -> bool:
        return self.id == A1_LICENCE


def decide_licence(lineage: Lineage | None, declared: str | None = None) -> Licence:
    """The licence that the origin of the weights leaves.

    Args:
        lineage: None where a checkpoint has no record.
        declared: what the publisher says (``--policy.license``); needed where the origin is unknown, and believed
            unless it contradicts what is known.

    Raises:
        InternVLAError: a declared licence that a known ancestor does not allow.
    """
    ancestors = () if lineage is None else lineage.ancestors
    from_a1 = [ancestor.name for ancestor in ancestors if ancestor.licence == A1_LICENCE]
    if from_a1:
        if declared not in (None, A1_LICENCE):
            raise InternVLAError(
                f"These weights derive from {from_a1[0]}, which is under CC BY-NC-SA 4.0 (share alike), but the "
                f"licence was declared as {declared!r}. Drop --license, or declare {A1_LICENCE!r}."
            )
        return Licence(A1_LICENCE, f"Derived from {from_a1[0]}: share alike, no commercial use.")
    unknown = [ancestor.name for ancestor in ancestors if ancestor.licence is None]
    if lineage is None or not lineage.complete or unknown:
        what = f" of {', '.join(unknown)}" if unknown else ""
        if declared is not None:
            return Licence(declared, f"Declared by the publisher; the origin{what} is not recorded in the checkpoint.")
        return Licence(
            "unknown",
            f"The origin or the licence{what or ' of the weights'} is not recorded. Ask the publisher before "
            "using the weights for anything.",
        )
    nvidia = any(ancestor.licence == NVIDIA_LICENCE for ancestor in ancestors)
    foreign = [a for a in ancestors if a.licence not in (*_PERMISSIVE, NVIDIA_LICENCE)]
    if foreign:
        words = ", ".join(f"{a.name} ({a.licence})" for a in foreign)
        return Licence(
            declared or "unknown", f"Derived from {words}; how that licence carries over was not decided here."
        )
    own = declared or next((str(a.licence) for a in ancestors if a.role == "checkpoint"), "apache-2.0")
    grown = ", ".join(f"{a.name} ({LICENCE_WORDS[a.licence or '']})" for a in ancestors if a.licence in _PERMISSIVE)
    reason = f"Trained from {grown or 'random weights'}; no other weights went into it."
    if nvidia:
        return Licence(
            "other",
            f"{reason} The frozen image tokenizer in image_tokenizer/ is NVIDIA's, under its own licence.",
            name=f"{own}-with-nvidia-image-tokenizer",
            link=NVIDIA_LINK,
            weights=own,
        )
    return Licence(own, reason)


# ----------------------------------------------------------------------------------------------------------- the run


def _training_command(argv: Sequence[str]) -> tuple[str, ...] | None:
    """``lerobot-train`` with its flags, without local paths; None in a notebook or another program."""
    if not argv or Path(argv[0]).name not in ("lerobot-train", "lerobot_train.py", "lerobot_train"):
        return None
    return ("lerobot-train", *redact_arguments(list(argv[1:])))


def _ranks() -> int:
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def software_versions() -> dict[str, str]:
    """Versions of what computes, and the commit of this package where it can be known."""
    versions: dict[str, str] = {}
    for name in ("lerobot_policy_internvla_a1", "lerobot", "torch", "transformers", "diffusers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = _commit()
    if commit is not None:
        versions["lerobot_internvla commit"] = commit
    return versions


@functools.cache
def _commit() -> str | None:
    """Of the installed package (pip's record) or of the checkout it runs from; "-dirty" with uncommitted changes."""
    try:
        record = distribution("lerobot_policy_internvla_a1").read_text("direct_url.json")
        commit = json.loads(record or "{}").get("vcs_info", {}).get("commit_id")
        if isinstance(commit, str):
            return commit
    except (PackageNotFoundError, ValueError):
        pass
    package = Path(__file__).resolve().parents[1]
    if package.parent.name != "src" or not (package.parents[1] / ".git").exists():
        return None  # an installed copy inside somebody else's repository

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
