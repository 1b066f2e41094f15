"""The model card: what a stranger has to know before they run, fine-tune or redistribute a checkpoint.

    facts = read_card_facts(folder)      everything that the folder, its training state and an evaluation say
    text = render_card(facts)            README.md, front matter included

Nothing is invented: what no file says is printed as "not recorded". Units are the dataset's own, because LeRobot
datasets do not record any. The front matter is made by huggingface_hub's card classes, without the network.
"""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from safetensors import safe_open

from lerobot_internvla.camera_slots import resolve_camera_slots
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.embodiments.rows import Row, read_rows
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.summary import summarize

from .lineage import (
    LICENCE_WORDS,
    LINEAGE_NAME,
    NVIDIA_LICENCE,
    DatasetFacts,
    Licence,
    Lineage,
    decide_licence,
    read_lineage,
)
from .privacy import is_local_path, redact_json

CARD_NAME = "README.md"
MARKER = (
    "<!-- Written by lerobot_internvla. Remove this line to keep your own text when the checkpoint is published. -->"
)
PICTURE_NAME = "foresight.png"
NOT_RECORDED = "not recorded"
UNIT = "as recorded in the dataset"
_METHODS = {"prediction": "predicted", "copy_of_now": "copy of now", "reconstruction": "image tokenizer alone"}


@dataclass(frozen=True)
class DimStatistics:
    """Mean and standard deviation per dim, as the policy normalises with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """One group of ``lerobot-eval``'s eval_info.json."""

    environment: str
    success_percent: float
    episodes: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the success rate, in percent."""
        return wilson_interval(self.success_percent / 100, self.episodes)


@dataclass(frozen=True)
class Foresight:
    """A picture of the imagined future, and its numbers where there are some."""

    picture: Path | None = None
    psnr_db: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """camera slot -> method ("prediction", "copy_of_now", "reconstruction") -> dB."""
    frames: int | None = None
    """Behind each of these numbers."""


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says."""

    config: InternVLAA1Config
    lineage: Lineage | None
    licence: Licence
    repo_id: str | None = None
    train_config: Mapping[str, Any] | None = None
    """train_config.json, without local paths."""
    steps: int | None = None
    """Taken; None: not recorded."""
    ranks: int | None = None
    state: DimStatistics | None = None
    action: DimStatistics | None = None
    action_is_relative: tuple[bool, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    foresight: Foresight = Foresight()
    parameters: int | None = None
    """Of the model without the image tokenizer."""
    image_tokenizer_parameters: int | None = None
    is_adapter: bool = False
    base_policy: str | None = None
    """Of an adapter: Hub id of the policy that it belongs to."""


# ------------------------------------------------------------------------------------------------------------ reading


def read_card_facts(
    folder: Path,
    *,
    repo_id: str | None = None,
    licence: str | None = None,
    eval_info: Sequence[Path] = (),
    foresight: Path | None = None,
    base_policy: str | None = None,
) -> CardFacts:
    """Collect what ``folder`` (and LeRobot's files beside it) say.

    Args:
        folder: a checkpoint folder; after lerobot-train ``<output_dir>/checkpoints/<step>/pretrained_model``.
        repo_id: where it will be published; None takes ``policy.repo_id``.
        licence: declared by the publisher; None takes ``policy.license``.
        eval_info: eval_info.json files of lerobot-eval, or their folders; also found beside the checkpoint.
        foresight: a picture, or a folder of ``internvla-foresight``; also found beside the checkpoint.
        base_policy: of an adapter, the Hub id of its base policy.

    Raises:
        InternVLAError: files that cannot be read, a declared licence that contradicts the origin.
    """
    config = InternVLAA1Config.from_pretrained(folder)
    assert isinstance(config, InternVLAA1Config), "publishing checks the type first"
    lineage = read_lineage(folder)
    adapter = _read_json(folder / "adapter_config.json")
    if lineage is None and adapter is not None:
        lineage = _lineage_of_base(str(adapter.get("base_model_name_or_path")), config)
    train_config = _read_json(folder / "train_config.json")
    step = _read_json(folder.parent / "training_state" / "training_step.json") or {}
    statistics, relative = _read_statistics(folder)
    return complete_facts(
        config,
        lineage,
        licence=licence,
        repo_id=repo_id,
        train_config=train_config,
        steps=step.get("step"),
        ranks=step.get("num_processes", step.get("dp_world_size")),
        statistics=statistics,
        action_is_relative=relative,
        evaluations=_read_evaluations(folder, eval_info),
        foresight=_read_foresight(folder, foresight),
        is_adapter=adapter is not None,
        base_policy=base_policy or _public((adapter or {}).get("base_model_name_or_path")),
    )


def complete_facts(
    config: InternVLAA1Config,
    lineage: Lineage | None,
    *,
    licence: str | None = None,
    repo_id: str | None = None,
    train_config: Mapping[str, Any] | None = None,
    steps: int | None = None,
    ranks: int | None = None,
    statistics: Mapping[str, DimStatistics] | None = None,
    action_is_relative: tuple[bool, ...] = (),
    evaluations: tuple[Evaluation, ...] = (),
    foresight: Foresight = Foresight(),
    is_adapter: bool = False,
    base_policy: str | None = None,
) -> CardFacts:
    """``CardFacts`` with everything that follows from the configuration: licence, parameters."""
    if train_config is not None:
        train_config, _ = redact_json("train_config.json", train_config)
    summary = summarize(config.architecture)
    unused = 0
    if not config.use_foresight:
        unused = summary.foresight_head + next(e.parameters for e in summary.experts if e.name == "foresight")
    return CardFacts(
        config=config,
        lineage=lineage,
        licence=decide_licence(lineage, licence or config.license),
        repo_id=repo_id or config.repo_id,
        train_config=train_config,
        steps=steps,
        ranks=ranks if ranks is not None or lineage is None else lineage.ranks,
        state=(statistics or {}).get("state"),
        action=(statistics or {}).get("action"),
        action_is_relative=action_is_relative,
        evaluations=evaluations,
        foresight=foresight,
        parameters=summary.model - unused,
        image_tokenizer_parameters=summary.image_tokenizer if config.use_foresight else 0,
        is_adapter=is_adapter,
        base_policy=base_policy,
    )


def _lineage_of_base(base: str, config: InternVLAA1Config) -> Lineage | None:
    """Origin of an adapter that has no record itself (LeRobot's own checkpoints): that of its base, without its run."""
    folder = Path(base)
    if not folder.is_dir() and _public(base):
        cached = try_to_load_from_cache(base, LINEAGE_NAME)
        folder = Path(cached).parent if isinstance(cached, str) else folder
    if not folder.is_dir():
        return None
    lineage = Lineage.of_checkpoint(folder, config)
    return dataclasses.replace(lineage, statistics=None, command=None, ranks=None, software={})


def _read_json(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file that holds an object; None where there is none.

    Raises:
        InternVLAError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        tree: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InternVLAError(f"{str(file)!r} is not valid JSON: {error}. Restore or remove it.") from error
    if not isinstance(tree, dict):
        raise InternVLAError(f"{str(file)!r} holds a {type(tree).__name__}, expected an object.")
    return tree


def _public(name: Any) -> str | None:
    return (
        name if isinstance(name, str) and not is_local_path(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None
    )


def _read_statistics(folder: Path) -> tuple[dict[str, DimStatistics], tuple[bool, ...]]:
    """The policy's own buffers (``ActionSpace``), from full weights or from an adapter."""
    weights = next(
        (folder / n for n in ("model.safetensors", "adapter_model.safetensors") if (folder / n).is_file()), None
    )
    if weights is None:
        return {}, ()
    found: dict[str, Any] = {}
    with safe_open(weights, framework="pt") as handle:
        for name in handle.keys():  # noqa: SIM118  # not a dictionary
            match = re.search(r"action_space\.(?:[\w.]*\.)?(\w+)$", name)
            if match and ".robots." not in name:  # of several robots, none is the one of the card
                found[match[1]] = handle.get_tensor(name).tolist()
    if not found.get("statistics_are_set") or "action_dim_is_valid" not in found:
        return {}, ()
    dims = {name: sum(found[f"{name}_dim_is_valid"]) for name in ("state", "action")}
    statistics = {
        name: DimStatistics(tuple(found[f"{name}_mean"][:dim]), tuple(found[f"{name}_std"][:dim]))
        for name, dim in dims.items()
    }
    return statistics, tuple(found["action_is_relative"][: dims["action"]])


def _read_evaluations(folder: Path, given: Sequence[Path]) -> tuple[Evaluation, ...]:
    files = [path / "eval_info.json" if path.is_dir() else path for path in given]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise InternVLAError(
            f"No evaluation at {', '.join(missing)}: pass eval_info.json of lerobot-eval, or its folder."
        )
    if not files:
        beside = (
            folder / "eval_info.json",
            folder.parent / "eval_info.json",
            folder.parent / "eval" / "eval_info.json",
        )
        files = [file for file in beside if file.is_file()][:1]  # the nearest
    found: list[Evaluation] = []
    for file in files:
        tree = _read_json(file) or {}
        groups: dict[str, Any] = tree.get("per_group") or {"all environments": tree.get("overall") or {}}
        try:
            found += [
                Evaluation(name, float(group["pc_success"]), int(group["n_episodes"]))
                for name, group in groups.items()
                if not math.isnan(float(group["pc_success"]))
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise InternVLAError(
                f"{str(file)!r} is not an eval_info.json of lerobot-eval: no {error} in one of its groups."
            ) from error
    return tuple(found)


def _read_foresight(folder: Path, given: Path | None) -> Foresight:
    if given is not None and not given.exists():
        raise InternVLAError(f"No foresight picture at {str(given)!r}: pass a PNG, or a folder of internvla-foresight.")
    if given is not None and given.is_file():
        return Foresight(picture=given)
    for place in (given,) if given is not None else (folder, folder / "foresight", folder.parent / "foresight"):
        panels = sorted(place.glob("panel_*.png")) or sorted(place.glob(PICTURE_NAME))
        if not panels:
            continue
        moments: dict[str, Any] = (_read_json(place / "summary.json") or {}).get("moments") or {}
        cameras: dict[str, Any] = moments.get("cameras") or {}
        psnr = {
            slot: {m: float(scores[m]["psnr_db"]) for m in _METHODS if (scores.get(m) or {}).get("psnr_db") is not None}
            for slot, scores in cameras.items()
        }
        return Foresight(panels[0], psnr, min((int(scores["frames"]) for scores in cameras.values()), default=None))
    if given is not None:
        raise InternVLAError(f"{str(given)!r} has no panel_*.png: pass a folder that internvla-foresight wrote.")
    return Foresight()


def wilson_interval(rate: float, episodes: int) -> tuple[float, float]:
    """95 % interval of a success rate in [0, 1] over so many episodes, in percent."""
    if episodes < 1:
        return 0.0, 100.0
    z = 1.959964
    centre = (rate + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = z / (1 + z * z / episodes) * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes**2))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


# ------------------------------------------------------------------------------------------------------------ writing


def render_card(facts: CardFacts) -> ModelCard:
    """The whole card.

    Raises:
        InternVLAError: the front matter does not survive a round trip through huggingface_hub's parser.
    """
    data = card_data(facts)
    sections = (
        _title(facts),
        _licence(facts),
        _use(facts),
        _robot(facts),
        _cameras(facts),
        _model(facts),
        _training(facts),
        _evaluation(facts),
        _foresight(facts),
        _limits(facts),
        _credit(),
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{MARKER}\n\n" + "\n\n".join(sections) + "\n")
    if card.data.to_dict() != data.to_dict():
        raise InternVLAError("The model card's front matter cannot be read back; check policy.tags and policy.license.")
    return card


def write_card(folder: Path) -> None:
    """Write what the files of ``folder`` say as its README.md."""
    render_card(read_card_facts(folder)).save(folder / CARD_NAME)


def card_data(facts: CardFacts) -> ModelCardData:
    """Front matter: only identifiers that mean something on the Hub."""
    lineage = facts.lineage
    bases = [a.name for a in (lineage.ancestors if lineage else ()) if a.is_on_hub and a.role != "image tokenizer"]
    if facts.base_policy:
        bases = [facts.base_policy]
    datasets = [d.repo_id for d in _datasets(facts) if not d.repo_id.startswith("local/") and _public(d.repo_id)]
    fields: dict[str, Any] = {
        "license": facts.licence.id,
        "license_name": facts.licence.name,
        "license_link": facts.licence.link,
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": sorted({*(facts.config.tags or ()), "robotics", "lerobot", "internvla_a1", "vision-language-action"}),
        "base_model": bases or None,
        "datasets": datasets or None,
    }
    if bases and (facts.is_adapter or lineage is not None):
        fields["base_model_relation"] = "adapter" if facts.is_adapter else "finetune"
    if facts.evaluations:
        fields["model_name"] = _name(facts)
        fields["eval_results"] = [
            EvalResult(
                task_type="robotics",
                dataset_type=evaluation.environment,
                dataset_name=evaluation.environment,
                metric_type="success_rate",
                metric_name=f"success rate in percent, {evaluation.episodes} episodes",
                metric_value=round(evaluation.success_percent, 2),
            )
            for evaluation in facts.evaluations
        ]
    return ModelCardData(**{key: value for key, value in fields.items() if value is not None})


def _name(facts: CardFacts) -> str:
    return facts.repo_id.split("/")[-1] if facts.repo_id else f"internvla_a1_{facts.config.variant}"


def _datasets(facts: CardFacts) -> tuple[DatasetFacts, ...]:
    """From the lineage, and the name in train_config.json where that does not have it."""
    recorded = facts.lineage.datasets if facts.lineage is not None else ()
    dataset = (facts.train_config or {}).get("dataset") or {}
    name = dataset.get("repo_id")
    # After a run on a mixture the name is that of the mixture, which is no dataset; its sources are recorded.
    is_mixture = any(known.share is not None for known in recorded[-1:])
    if not name or is_mixture or name in {known.repo_id for known in recorded}:
        return recorded
    return (*recorded, DatasetFacts(str(name), dataset.get("revision")))


def _title(facts: CardFacts) -> str:
    config = facts.config
    kind = "LoRA or other PEFT adapter for a policy" if facts.is_adapter else "policy"
    robots = sorted({d.robot_type for d in _datasets(facts) if d.robot_type})
    return (
        f"# {_name(facts)}\n\n"
        f"InternVLA-A1 ([arXiv 2601.02456](https://arxiv.org/abs/2601.02456)), variant `{config.variant}`, as a "
        f"LeRobot {kind} of type `internvla_a1`. It reads cameras, robot state and one sentence, imagines the next "
        f"moment and returns chunks of {config.chunk_size} absolute actions. Robot: "
        f"{_text(', '.join(robots)) or NOT_RECORDED}."
    )


def _licence(facts: CardFacts) -> str:
    licence, lineage = facts.licence, facts.lineage
    rows = [
        (
            a.role,
            (f"[{a.name}](https://huggingface.co/{a.name})" if a.is_on_hub else _text(a.name))
            + (f", revision `{_text(a.revision)}`" if a.revision else ""),
            _licence_words(a.licence),
        )
        for a in (lineage.ancestors if lineage else ())
    ]
    shown = licence.name or LICENCE_WORDS.get(licence.id, licence.id)
    shown = shown[0].upper() + shown[1:]
    parts = [f"## Licence\n\n**{_text(shown)}.** {_text(licence.reason)}"]
    if rows:
        parts.append(_table(("started from", "name", "its licence"), rows))
    elif lineage is None or not lineage.complete:
        parts.append("**Where these weights come from is not recorded.**")
    if any(a.licence == NVIDIA_LICENCE for a in (lineage.ancestors if lineage else ())):
        parts.append(
            "`image_tokenizer/` holds NVIDIA's Cosmos-Tokenizer-CI8x8 under the NVIDIA Open Model License, whatever "
            "the licence of the rest."
        )
    parts.append("The datasets have licences of their own. The code (`lerobot_internvla`) is Apache-2.0.")
    return "\n\n".join(parts)


def _licence_words(identifier: str | None) -> str:
    return "**unknown**" if identifier is None else LICENCE_WORDS.get(identifier, identifier)


def _use(facts: CardFacts) -> str:
    repo = facts.repo_id or "<owner/name>"
    commercial = (
        " Not for commercial use (share alike)."
        if facts.licence.is_non_commercial
        else " The licence is unknown: ask before any use."
        if facts.licence.id == "unknown"
        else ""
    )
    base = ""
    if facts.is_adapter:
        named = f"`{facts.base_policy}`" if facts.base_policy else "its base policy, which is **not recorded**"
        base = f"\n\nThis is an adapter: it is loaded over {named} (`adapter_config.json`)."
    statistics = (
        ""
        if facts.action is not None or facts.config.embodiments
        else "\n\n**It holds no normalisation statistics: it cannot act before it was fine-tuned.**"
    )
    purpose = "Research on robot manipulation: evaluation on the robot and cameras below, fine-tuning on others."
    which = (
        "\n\nThe policy knows several robots: add `--policy.embodiment=<name>` with a name of the table below, or, in "
        "training, a new one."
        if facts.config.embodiments
        else ""
    )
    return f"""## Intended use

{purpose}{commercial}{base}{statistics}

```
pip install lerobot_policy_internvla_a1
lerobot-eval --policy.path={repo} --env.type=<environment>
lerobot-rollout --policy.path={repo} --robot.type=<robot> --task="<what to do>" --inference.type=sync
lerobot-train --policy.path={repo} --dataset.repo_id=<your dataset> --policy.repo_id=<owner/name>
```{which}"""


def _robots(rows: Mapping[str, Row], representation: str) -> str:
    """The robots of a policy that was trained on a mixture."""
    lines: list[tuple[str, ...]] = []
    for name, row in rows.items():
        robot = row.embodiment
        relative = robot.relative_mask if representation == "relative" else (False,) * robot.action_dim
        actions = [f"{dim}{' (relative)' * r}" for dim, r in zip(robot.action_names, relative, strict=True)]
        lines.append(
            (
                f"`{name}`",
                _text(robot.title),
                f"{robot.state_dim}: {_text(', '.join(robot.state_names))}" if robot.state_dim else "none",
                f"{robot.action_dim}: {_text(', '.join(actions))}" if robot.action_dim else "none, videos only",
                ", ".join(robot.cameras),
                NOT_RECORDED if row.fps is None else f"{row.fps:g}",
            )
        )
    header = ("robot", "what it is", "state dims", "action dims", "cameras", "steps per second")
    return (
        "## Robots\n\nEach has its own statistics, in the weights (`action_space.robots.<name>.*`); units and gripper "
        "conventions are in `config.json` under `embodiments`. Actions leave the policy absolute on every "
        "path; *relative* dims are learned as offsets from the state at the start of the chunk.\n\n"
        + _table(header, lines)
    )


def _robot(facts: CardFacts) -> str:
    config = facts.config
    if config.embodiments:
        return _robots(read_rows(config.embodiments), config.action_representation)
    state, action = config.robot_state_feature, config.action_feature
    state_dim, action_dim = (0 if f is None else int(f.shape[0]) for f in (state, action))
    relative = facts.action_is_relative or (False,) * action_dim
    kinds = [
        NOT_RECORDED
        if config.action_representation == "relative" and not facts.action_is_relative
        else "relative"
        if is_relative
        else "absolute"
        for is_relative in relative
    ]
    lines = [
        "## Robot: state and action, dim by dim",
        f"State {state_dim} dims, action {action_dim} dims. Actions leave the policy absolute on every path. "
        "*Learned as* says what the model predicts: *relative* is the offset from the state at the start of the chunk. "
        f"Units: LeRobot datasets record none, so they are {UNIT}; mean and standard deviation (of what is learned) "
        "show the scale.",
    ]
    lines.append(
        _table(
            ("action dim", "name", "learned as", "unit", "mean", "std"),
            _dims(action_dim, config.action_feature_names, facts.action, kinds),
        )
    )
    lines.append(
        _table(
            ("state dim", "name", "unit", "mean", "std"),
            _dims(state_dim, config.state_feature_names, facts.state, None),
        )
    )
    return "\n\n".join(lines)


def _dims(
    count: int, names: Sequence[str] | None, statistics: DimStatistics | None, kinds: Sequence[str] | None
) -> Iterable[Sequence[str]]:
    for dim in range(count):
        name = _text(names[dim]) if names is not None and dim < len(names) else NOT_RECORDED
        numbers = (
            (f"{statistics.mean[dim]:.4g}", f"{statistics.std[dim]:.4g}")
            if statistics is not None and dim < len(statistics.mean)
            else (NOT_RECORDED, NOT_RECORDED)
        )
        yield (str(dim), name, *([kinds[dim]] if kinds is not None else []), UNIT, *numbers)


def _cameras(facts: CardFacts) -> str:
    config = facts.config
    slots = resolve_camera_slots(list(config.image_features), config.camera_slots)
    height, width = config.architecture.view_size
    rows = []
    for slot, key in slots.items():
        feature = config.image_features.get(key)
        size = f"{feature.shape[2]} x {feature.shape[1]}" if feature is not None else NOT_RECORDED
        rows.append((slot, f"`{key}`", size))
    fps = f"{config.fps:g} frames per second" if config.fps else f"frame rate {NOT_RECORDED}"
    if config.embodiments and not config.fps:
        fps = "the rate of each robot"
    lines = [
        "## Cameras and time",
        _table(("slot", "feature", "width x height in training"), rows),
        f"Every view is letterboxed to {width} x {height} pixels. Control at {fps}; chunks of {config.chunk_size} "
        f"actions, of which {config.n_action_steps} are executed before the next one"
        + (f" ({config.n_action_steps / config.fps:.3g} s)" if config.fps else "")
        + ".",
    ]
    if config.use_foresight:
        frames = config.interval_frames
        seconds = f" = {frames / config.fps:.3g} s" if config.fps else f" ({NOT_RECORDED} in seconds)"
        interval = f"{frames} frames{seconds}"
        if config.embodiments and config.fps is None:
            interval = f"{config.foresight_interval_s:g} s, at the rate of each robot"
        lines.append(
            f"Foresight interval: {interval}. The policy also reads the frame of one interval ago and "
            "keeps it by itself; run it at this rate."
        )
    else:
        lines.append("Trained without foresight: one frame per camera.")
    return "\n\n".join(lines)


def _model(facts: CardFacts) -> str:
    config, architecture = facts.config, facts.config.architecture
    tokenizer = {"cosmos_ci8x8": "Cosmos CI8x8", "haar": "Haar (no parameters)"}[architecture.image_tokenizer.kind]
    statistics = (facts.lineage.statistics if facts.lineage else None) or (
        NOT_RECORDED if facts.action is not None else "none in the checkpoint"
    )
    rows = [
        ("variant", f"`{config.variant}`" + (", sizes changed" if config.architecture_overrides else "")),
        ("parameters", NOT_RECORDED if facts.parameters is None else f"{facts.parameters:,}"),
        ("understanding expert", _text(architecture.base_model or "convolutions, from scratch")),
        (
            "image tokenizer (frozen)",
            f"{tokenizer}" + (f", {n:,} parameters" if (n := facts.image_tokenizer_parameters) else "")
            if config.use_foresight
            else "none",
        ),
        ("precision", f"computed in {config.dtype}, weights kept in {config.weights_dtype}"),
        ("normalisation", "mean and standard deviation per dim, inside the weights (`action_space.*`)"),
        ("statistics from", _text(statistics)),
        ("Euler steps per chunk", str(config.num_inference_steps)),
    ]
    if config.architecture_overrides:
        rows.insert(1, ("changed sizes", f"`{json.dumps(config.architecture_overrides)}`"))
    return "## Model\n\n" + _table(("", ""), rows)


def _training(facts: CardFacts) -> str:
    lineage, train = facts.lineage, facts.train_config
    lines = ["## Training"]
    datasets = _datasets(facts)
    if datasets:
        rows = [
            (
                _dataset_link(d),
                "100 %" if len(datasets) == 1 else NOT_RECORDED if d.share is None else f"{100 * d.share:.3g} %",
                _number(d.episodes),
                _number(d.frames),
                NOT_RECORDED if d.fps is None else f"{d.fps:g}",
                "; ".join(map(_text, d.tasks[:5])) + (f"; {len(d.tasks) - 5} more" if len(d.tasks) > 5 else "")
                or NOT_RECORDED,
            )
            for d in datasets
        ]
        lines.append(_table(("dataset", "share of samples", "episodes", "frames", "fps", "tasks"), rows))
        if len(datasets) > 1 and any(d.share is None for d in datasets):
            mixed = any(d.share is not None for d in datasets)
            lines.append(
                "Datasets in the order of training: the checkpoint was fine-tuned from one to the next"
                + ("; shares are those inside a mixture." if mixed else ".")
            )
    else:
        lines.append(f"Datasets: {NOT_RECORDED}.")
    planned = "" if facts.steps is not None or train is None else f"; {_number(train.get('steps'))} were planned"
    rows = [("steps", _number(facts.steps) + planned), ("effective batch", _batch(facts))]
    if train is not None:
        optimizer: Mapping[str, Any] = train.get("optimizer") or {}
        rows += [
            ("optimizer", f"{optimizer.get('type', NOT_RECORDED)}, learning rate {optimizer.get('lr', NOT_RECORDED)}"),
            ("seed", str(train.get("seed", NOT_RECORDED))),
            ("trained experts", ", ".join(facts.config.trained_experts)),
        ]
    for name, version in (lineage.software if lineage else {}).items():
        rows.append((name, f"`{version}`"))
    if not (lineage and lineage.software):
        rows.append(("versions and commit", NOT_RECORDED))
    lines.append(_table(("", ""), rows))
    if lineage is not None and lineage.command:
        lines.append(f"```\n{_command(lineage.command)}\n```")
    elif train is None:
        lines.append(f"Command: {NOT_RECORDED}.")
    if train is not None:
        lines.append("Every setting is in `train_config.json`, beside this file; local paths were taken out of it.")
    return "\n\n".join(lines)


def _dataset_link(dataset: DatasetFacts) -> str:
    if dataset.repo_id.startswith("local/") or _public(dataset.repo_id) is None:
        return f"{_text(dataset.repo_id)} (not on the Hub)"
    return f"[{dataset.repo_id}](https://huggingface.co/datasets/{dataset.repo_id})"


def _batch(facts: CardFacts) -> str:
    """Samples per optimizer step: per device x devices x accumulation."""
    train = facts.train_config or {}
    per_device = train.get("batch_size")
    if per_device is None:
        return NOT_RECORDED
    # Only LeRobot after 0.6.1 can accumulate.
    accumulation = ((train.get("accelerator") or {}).get("gradient_accumulation") or {}).get("steps") or 1
    if facts.ranks is None:
        return f"{per_device} per device x {accumulation} accumulated; number of devices {NOT_RECORDED}"
    total = per_device * facts.ranks * accumulation
    return f"{total} = {per_device} per device x {facts.ranks} device(s) x {accumulation} accumulated"


def _command(arguments: Sequence[str]) -> str:
    flags = [shlex.quote(argument) if "<path>" not in argument else argument for argument in arguments[1:]]
    return " \\\n    ".join([arguments[0], *flags]).replace("```", "` ` `")


def _evaluation(facts: CardFacts) -> str:
    if not facts.evaluations:
        return "## Evaluation\n\n**Not evaluated**, or the results were not given to the program that wrote this card."
    rows = [
        (
            _text(evaluation.environment),
            f"{evaluation.success_percent:.1f} %",
            str(evaluation.episodes),
            "{:.0f} to {:.0f} %".format(*evaluation.interval),
        )
        for evaluation in facts.evaluations
    ]
    return (
        "## Evaluation\n\n"
        + _table(("environment", "success", "episodes", "95 % interval"), rows)
        + "\n\nBy `lerobot-eval`; Wilson score intervals. Other seeds, speeds, objects or robots were not tested "
        "unless they are listed."
    )


def _foresight(facts: CardFacts) -> str:
    if not facts.config.use_foresight:
        return "## Foresight\n\nNone: trained without the generation expert."
    foresight = facts.foresight
    if foresight.picture is None:
        return "## Foresight\n\nNo picture was given; `internvla-foresight` makes one."
    columns = "past, now, predicted, true, error"
    text = f"## Foresight\n\n![{columns}]({PICTURE_NAME})\n\nColumns: {columns}."
    if foresight.psnr_db:
        rows = [
            (_text(slot), *(f"{scores[m]:.1f}" if m in scores else NOT_RECORDED for m in _METHODS))
            for slot, scores in foresight.psnr_db.items()
        ]
        text += f" PSNR in dB against the true future, {foresight.frames} frames per camera:\n\n"
        text += _table(("camera", *_METHODS.values()), rows)
    return text


def _limits(facts: CardFacts) -> str:
    speed = f"{facts.config.fps:g} Hz" if facts.config.fps else "the rate of its data"
    return f"""## Limits and safety

- It knows the robot, cameras, tasks and scenes of its data, at {speed}. Anything else (another mounting, other
  lighting, another calibration, words it has not read) is outside, and it does not notice.
- It has no notion of collisions, forces, people or forbidden places. The imagined future is a training signal and an
  illustration, not a safety check.
- Before the first run on hardware: compare its actions with recorded ones (open loop), check units and joint order
  against the tables above, limit speed, torque and workspace in the robot's controller, start slowly, and keep a hand
  on the emergency stop. Do not run it near people without a protective stop that does not depend on it.
- A chunk is executed without looking: up to {facts.config.n_action_steps} actions pass between two decisions.
- Not for safety-critical, medical or unattended use."""


def _credit() -> str:
    return """## Credit

InternVLA-A1 is the work of the InternRobotics team; please cite them. This checkpoint was written by
`lerobot_internvla`, an independent implementation on LeRobot.

```bibtex
@article{internvla_a1,
    title = {InternVLA-A1: Unifying Understanding, Generation and Action for Robotic Manipulation},
    author = {Cai, Junhao and Cai, Zetao and Cao, Jiafei and others},
    journal = {arXiv:2601.02456},
    year = {2026}
}
```"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(text: str) -> str:
    """Names from datasets and folders, made harmless for Markdown tables and HTML."""
    text = re.sub(r"\s+", " ", text)
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").replace("`", "'").strip()


def _number(value: Any) -> str:
    return NOT_RECORDED if value is None else f"{value:,}" if isinstance(value, int) else str(value)
