"""A checkpoint folder to the Hub, in one commit: a model card, nothing private, the folder left as it was.

    plan = plan_upload(folder, "owner/name")     nothing leaves this computer; print(plan) shows what would
    publish(plan)                                one commit

Weights are sent from where they lie. JSON files that name local folders are sent as redacted copies (privacy.py); what
cannot be redacted stops the upload before anything is sent. The same code serves ``internvla-publish``,
``lerobot-train --policy.push_to_hub=true`` and ``policy.push_to_hub(...)``.
"""

import dataclasses
import fnmatch
import json
import logging
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import draccus
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from lerobot.policies.factory import make_pre_post_processors

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError

from .model_card import (
    CARD_NAME,
    MARKER,
    PICTURE_NAME,
    CardFacts,
    DimStatistics,
    complete_facts,
    read_card_facts,
    render_card,
)
from .privacy import Finding, Redaction, find_private, find_private_in_file, redact_json

logger = logging.getLogger(__name__)

SENT = ("*.safetensors", "*.json", "*.md", "*.txt", "*.jinja", "*.model", "*.yaml", "LICENSE*", "NOTICE*", PICTURE_NAME)
NEVER_SENT = ("eval_info.json", "training_step.json", "optimizer_*", "rng_state*", "scheduler_state*")
"""What would pass SENT but is no part of a policy. An evaluation's numbers are in the card; its file names videos."""
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class UploadPlan:
    """What one commit would hold."""

    folder: Path
    repo_id: str
    private: bool | None
    from_disk: tuple[str, ...]
    """Files sent as they are, relative to the folder."""
    rewritten: dict[str, bytes]
    """Files whose published copy differs from the one on disk, or that are made for the upload (the card)."""
    redactions: tuple[Redaction, ...]
    left_out: tuple[str, ...]
    """Files of the folder that stay here."""
    picture: Path | None
    card: ModelCard
    facts: CardFacts

    def operations(self) -> list[CommitOperationAdd]:
        """As huggingface_hub takes them."""
        sources: dict[str, Path | bytes] = {name: self.folder / name for name in self.from_disk}
        sources |= self.rewritten
        if self.picture is not None:
            sources[PICTURE_NAME] = self.picture
        return [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(source) if isinstance(source, Path) else source)
            for name, source in sorted(sources.items())
        ]

    def retry_command(self) -> str:
        """``internvla-publish`` on the same folder."""
        return retry_command(self.folder, self.repo_id, self.private)

    def __str__(self) -> str:
        def size(file: Path) -> str:
            return f"{file.stat().st_size / 1e6:10.3f} MB"

        lines = [f"To https://huggingface.co/{self.repo_id}, licence {self.facts.licence.id}:"]
        lines += [f"  {size(self.folder / name)}  {name}" for name in self.from_disk]
        lines += [
            f"  {len(data) / 1e6:10.3f} MB  {name}  (made for the upload)" for name, data in self.rewritten.items()
        ]
        if self.picture is not None:
            lines.append(f"  {size(self.picture)}  {PICTURE_NAME}")
        if self.redactions:
            lines += ["Taken out of the published copy:", *(f"  {redaction}" for redaction in self.redactions)]
        if self.left_out:
            lines.append(f"Not sent: {', '.join(self.left_out)}")
        return "\n".join(lines)


def retry_command(folder: Path, repo_id: str | None, private: bool | None) -> str:
    """What to type to publish ``folder``; a private repository stays private."""
    return f"internvla-publish {shlex.quote(str(folder))} --repo_id={repo_id}" + (" --private" if private else "")


def plan_upload(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    licence: str | None = None,
    eval_info: Sequence[Path] = (),
    foresight: Path | None = None,
    base_policy: str | None = None,
    keep_card: bool | None = None,
    facts: CardFacts | None = None,
) -> UploadPlan:
    """Decide what is sent, and refuse what must not be. Reads only.

    Args:
        folder: a checkpoint folder, full weights or adapter.
        repo_id: ``owner/name`` on the Hub.
        private: visibility of a new repository; None takes ``policy.private``, and the account's default without it.
        licence, eval_info, foresight, base_policy: see ``read_card_facts``.
        keep_card: True sends the folder's README.md, False writes a new one; None keeps it unless it was written by
            this package (the marker line).
        facts: for the card, instead of what the folder says.

    Raises:
        InternVLAError: no checkpoint; files that are damaged; private text that cannot be redacted, all of it listed.
    """
    folder = Path(folder)
    _require_checkpoint(folder)
    if repo_id.count("/") != 1:
        raise InternVLAError(f"--repo_id={repo_id!r}: expected owner/name, as in https://huggingface.co/owner/name.")
    if base_policy is not None and not (folder / "adapter_config.json").is_file():
        raise InternVLAError(f"--base_policy is for adapters; {str(folder)!r} is a whole policy. Leave it out.")
    facts = facts or read_card_facts(
        folder, repo_id=repo_id, licence=licence, eval_info=eval_info, foresight=foresight, base_policy=base_policy
    )
    card_file = folder / CARD_NAME
    own_card = card_file.read_text(encoding="utf-8") if card_file.is_file() else None
    if keep_card is True and own_card is None:
        raise InternVLAError(f"{str(folder)!r} has no {CARD_NAME} to keep.")
    kept = own_card is not None and (keep_card is True or (keep_card is None and MARKER not in own_card))
    card = ModelCard(own_card) if kept and own_card is not None else render_card(facts)

    from_disk: list[str] = []
    left_out: list[str] = []
    rewritten: dict[str, bytes] = {} if kept else {CARD_NAME: str(card).encode()}
    redactions: list[Redaction] = []
    findings: list[Finding] = [] if kept else find_private(CARD_NAME, str(card))
    for file in sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink()):
        name = file.relative_to(folder).as_posix()
        if name in (CARD_NAME, PICTURE_NAME) and not kept:
            continue
        if not _is_sent(name):
            left_out.append(name)
            continue
        if file.suffix == ".json" and file.name not in ("tokenizer.json", "vocab.json"):
            changed, redacted = _redacted(name, file, base_policy, findings)
            if redacted:
                redactions += redacted
                rewritten[name] = changed
                findings += find_private(name, changed.decode())
                continue
        findings += find_private_in_file(name, file)
        from_disk.append(name)
    if findings:
        listed = "\n  - ".join(map(str, findings[:30])) + ("" if len(findings) <= 30 else "\n  - and more")
        raise InternVLAError(
            f"{str(folder)!r} holds {len(findings)} thing(s) that should not be public; nothing was sent:\n  - {listed}"
            "\nRemove them from these files (a token that was ever written down should also be revoked), then repeat."
        )
    return UploadPlan(
        folder=folder,
        repo_id=repo_id,
        private=facts.config.private if private is None else private,
        from_disk=tuple(from_disk),
        rewritten=rewritten,
        redactions=tuple(redactions),
        left_out=tuple(left_out),
        picture=None if kept else facts.foresight.picture,
        card=card,
        facts=facts,
    )


def _require_checkpoint(folder: Path) -> None:
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        inside = folder / "checkpoints" / "last" / "pretrained_model"
        nested = folder / "pretrained_model"
        hint = next((str(path) for path in (inside, nested) if (path / "config.json").is_file()), None)
        raise InternVLAError(
            f"{str(folder)!r} is no checkpoint folder: it needs config.json and one of {', '.join(WEIGHTS)}. "
            + (
                f"Did you mean {hint!r}?"
                if hint
                else "After lerobot-train it is <output_dir>/checkpoints/last/pretrained_model."
            )
        )
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("type")
    except (ValueError, AttributeError) as error:
        raise InternVLAError(f"config.json in {str(folder)!r} cannot be read: {error}.") from error
    if kind != "internvla_a1":
        raise InternVLAError(f"{str(folder)!r} holds a policy of type {kind!r}; expected 'internvla_a1'.")


def _is_sent(name: str) -> bool:
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return False
    return any(fnmatch.fnmatch(parts[-1], pattern) for pattern in SENT) and not any(
        fnmatch.fnmatch(parts[-1], pattern) for pattern in NEVER_SENT
    )


def _redacted(name: str, file: Path, base_policy: str | None, findings: list[Finding]) -> tuple[bytes, list[Redaction]]:
    """The published copy of a JSON file and what it lacks; an adapter without a public base is a finding."""
    try:
        tree: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InternVLAError(f"{str(file)!r} is not valid JSON: {error}. Restore or remove it.") from error
    changed, redactions = redact_json(name, tree)
    if name == "adapter_config.json":
        base = tree.get("base_model_name_or_path")
        if base_policy is not None and base != base_policy:
            changed["base_model_name_or_path"] = base_policy
            redactions = [r for r in redactions if r.field != "base_model_name_or_path"]
            redactions.append(Redaction(name, "base_model_name_or_path", str(base), base_policy))
        elif any(r.field == "base_model_name_or_path" for r in redactions):
            findings.append(
                Finding(
                    name,
                    "base_model_name_or_path",
                    "the base policy is a local folder; publish it too and name it with --base_policy=<owner/name>:",
                    str(base),
                )
            )
    return (json.dumps(changed, indent=4) + "\n").encode(), redactions


def publish(
    plan: UploadPlan,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool | None = None,
    message: str = "Upload policy and model card",
    retry: str | None = None,
    notebook: bool = False,
) -> Any:
    """Make the repository if needed and send ``plan`` as one commit.

    Args:
        retry: the command that repeats this, for the message; None: ``internvla-publish`` on the same folder.
        notebook: the folder is a passing one, not worth a word.

    Returns:
        huggingface_hub's ``CommitInfo``.

    Raises:
        InternVLAError: the upload failed, and how to repeat it. The local folder is as it was, and on the Hub a commit
            appears whole or not at all.
    """
    try:
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id=plan.repo_id, private=plan.private, exist_ok=True).repo_id
        return api.create_commit(
            repo_id=repo_id,
            repo_type="model",
            operations=plan.operations(),
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # the Hub, HTTP, the disk and being offline each have their own
        raise InternVLAError(
            f"Publishing to {plan.repo_id!r} failed: {type(error).__name__}: {error}\n"
            + ("" if notebook else f"The checkpoint is whole in {str(plan.folder)!r}; nothing in it was changed. ")
            + f"Log in if needed (`hf auth login`), then repeat with:\n  {retry or plan.retry_command()}"
        ) from error


# ----------------------------------------------------------------------------------------------- a policy in memory


def publish_policy(
    policy: Any,
    repo_id: str,
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Save ``policy`` (an ``InternVLAA1Policy``) to a passing folder and publish that.

    Returns:
        the commit's address; empty on all ranks but the first.

    Raises:
        InternVLAError: refused or failed.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "policy"
        policy.save_pretrained(folder)  # by all ranks: gathering shards is collective
        if not is_main_process():
            return ""
        info = publish(
            plan_upload(folder, repo_id, private=private),
            token=token,
            revision=revision,
            create_pr=create_pr,
            message=message,
            retry=f"policy.push_to_hub({repo_id!r})",
            notebook=True,
        )
    return str(info.commit_url)


def card_of_policy(policy: Any, *, licence: str | None = None, cfg: Any | None = None) -> ModelCard:
    """The model card of ``policy`` (an ``InternVLAA1Policy``), without the network.

    Args:
        licence: None: the one that follows from the origin of the weights.
        cfg: LeRobot's TrainPipelineConfig.

    Raises:
        InternVLAError: ``licence`` contradicts the origin of the weights.
    """
    # The card describes one robot's dims; of several, the one that the policy drives.
    space = None if policy.rows and policy.robot is None else policy.action_space_of(policy.robot)
    statistics: dict[str, DimStatistics] = {}
    if space is not None and bool(space.statistics_are_set):
        for name, dim in (("state", space.state_dim), ("action", space.action_dim)):
            mean, std = (tuple(space.get_buffer(f"{name}_{part}")[:dim].tolist()) for part in ("mean", "std"))
            statistics[name] = DimStatistics(mean, std)
    facts = complete_facts(
        policy.config,
        policy.lineage,
        licence=licence,
        train_config=None if cfg is None else train_config_of(cfg),
        steps=None if cfg is None else cfg.steps,
        statistics=statistics or None,
        action_is_relative=() if space is None else space.relative_mask,
        is_adapter=policy.config.use_peft,
    )
    return render_card(facts)


# ---------------------------------------------------------------------------------------------- at the end of training


def publish_training(
    policy: Any,
    cfg: Any,
    *,
    peft_model: Any | None = None,
    state_dict: dict[str, Any] | None = None,
    processors: Sequence[Any] = (),
) -> Any | None:
    """What ``lerobot-train`` publishes after its last step; None on all ranks but the first.

    Args:
        policy: an ``InternVLAA1Policy``; saved by all ranks, because gathering shards is collective.
        cfg: LeRobot's TrainPipelineConfig.
        peft_model: the PEFT wrapper, whose adapter is published instead of the weights.
        processors: pipelines to publish in the same commit (LeRobot 0.6.1 sends its own afterwards).

    Raises:
        InternVLAError: the upload was refused or failed. What was to be published lies in ``<output_dir>/to_publish``,
            and the message says how to repeat.
    """
    # In the output folder and not in a temporary one: if the upload fails, hours of training must not vanish with it.
    folder = Path(cfg.output_dir) / "to_publish"
    config: InternVLAA1Config = policy.config
    is_main = is_main_process()
    if is_main:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if peft_model is not None:
        if is_main:
            peft_model.save_pretrained(folder)
            (folder / CARD_NAME).unlink(missing_ok=True)  # PEFT's own, an empty form
            policy.config.save_pretrained(folder)
            policy.lineage.save(folder)
    else:
        given = {} if state_dict is None else {"state_dict": state_dict}
        policy.save_pretrained(folder, **given)
    if not is_main:
        return None
    _save_processors(folder, cfg, config, processors)
    cfg.save_pretrained(folder)
    try:
        facts = read_card_facts(folder, repo_id=config.repo_id, licence=config.license)
        if facts.steps is None:
            facts = dataclasses.replace(facts, steps=cfg.steps)
        plan = plan_upload(folder, str(config.repo_id), private=config.private, facts=facts)
    except InternVLAError as error:
        command = retry_command(folder, config.repo_id, config.private)
        raise InternVLAError(
            f"{error}\nWhat was to be published is in {str(folder)!r}. Repeat with:\n  {command}"
        ) from error
    for redaction in plan.redactions:
        logger.info("Not published: %s", redaction)
    info = publish(plan)
    # LeRobot's remote jobs wait for exactly this line (lerobot.jobs.hf).
    logging.info(f"Model pushed to {info.repo_url.url}")
    shutil.rmtree(folder, ignore_errors=True)
    return info


def _save_processors(folder: Path, cfg: Any, config: InternVLAA1Config, processors: Sequence[Any]) -> None:
    """The pipelines that were handed in; else those of the last checkpoint; else new ones, of stock steps."""
    last = Path(cfg.output_dir) / "checkpoints" / "last" / "pretrained_model"
    saved = [*last.glob("policy_preprocessor*"), *last.glob("policy_postprocessor*")]
    if not processors and saved:
        for file in saved:
            shutil.copyfile(file, folder / file.name)
        return
    for pipeline in processors or make_pre_post_processors(config):
        pipeline.save_pretrained(folder)


def train_config_of(cfg: Any) -> dict[str, Any]:
    """LeRobot's TrainPipelineConfig as train_config.json holds it."""
    return json.loads(json.dumps(draccus.encode(cfg), default=str))


def is_main_process() -> bool:
    """True for the one process that writes and uploads."""
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
