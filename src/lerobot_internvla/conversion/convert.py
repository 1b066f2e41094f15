"""A checkpoint of the reference implementation -> a complete LeRobot policy folder.

    SOURCE (Hub id or folder)                 DEST
    model.safetensors   key table, bytes      model.safetensors      weights and normalisation, in the stored dtypes
      cosmos tensors    as they are           image_tokenizer/       diffusers-style, in the stored dtype
    config.json         sizes and settings    config.json            type internvla_a1, complete
    stats.json          robot, mean and std   (in model.safetensors), reference/stats.json
    train_config.json   relative or absolute  policy_preprocessor.json, policy_postprocessor.json
    a text tokenizer                          text_tokenizer/
                                              reference/             config.json and stats.json as they were
                                              provenance.json, README.md

Everything that can be wrong is found before the first byte is written; then the weights are copied as byte ranges, so
memory stays small at any size; the folder appears under its name when it is whole, verified if asked for.
"""

import dataclasses
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_internvla.action_space import relative_mask_for
from lerobot_internvla.camera_slots import resolve_camera_slots
from lerobot_internvla.checkpoints.fetching import Fetched, fetch
from lerobot_internvla.checkpoints.policy_config import read_policy_config
from lerobot_internvla.checkpoints.staging import check_destination, check_disk, staged_folder
from lerobot_internvla.checkpoints.tensor_stream import Progress, copy_tensors, read_header
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.conversion.provenance import PROVENANCE, read_provenance, write_provenance
from lerobot_internvla.conversion.reference_layout import (
    CONFIG,
    WEIGHTS,
    ReferenceCheckpoint,
    expected_shapes,
    read_reference,
)
from lerobot_internvla.conversion.released_statistics import (
    STATISTICS,
    TRAIN_CONFIG,
    Robot,
    describe_robot,
    read_statistics,
)
from lerobot_internvla.conversion.verify import Verification, verify_conversion
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.image_tokenizer.cosmos_weights import load_cosmos_weights
from lerobot_internvla.image_tokenizer.factory import NVIDIA_FILES, WEIGHTS_NAME, load_image_tokenizer
from lerobot_internvla.model.action_head import MAX_PERIOD, MIN_PERIOD
from lerobot_internvla.model.architecture import VARIANTS, Architecture
from lerobot_internvla.model.flow import NoiseSeeds
from lerobot_internvla.publishing.model_card import write_card
from lerobot_internvla.statistics import Representation
from lerobot_internvla.text_tokenizer import TextTokenizer, load_text_tokenizer

logger = logging.getLogger(__name__)

TEXT_TOKENIZER_FOLDER = "text_tokenizer"
IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
REFERENCE_FOLDER = "reference"
LICENCE = "cc-by-nc-sa-4.0"
"""Of the A1 weights and everything derived from them, unless shown otherwise (NOTICE)."""
TEXT_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "config.json",
)  # fmt: skip

FORESIGHT_INTERVAL = 15
"""Frames between past, now and future; not configurable in the reference."""
SETTINGS = (
    "chunk_size", "n_action_steps", "num_inference_steps", "lambda_gen", "time_sampling_beta_alpha",
    "time_sampling_beta_beta", "time_sampling_scale", "time_sampling_offset",
)  # fmt: skip
"""Same name and meaning on both sides."""
_FIXED: dict[str, tuple[Any, ...]] = {
    "min_period": (MIN_PERIOD,), "max_period": (MAX_PERIOD,), "n_obs_steps": (1,), "empty_cameras": (0,),
    "imagenet_mean": ([0.485, 0.456, 0.406],), "imagenet_std": ([0.229, 0.224, 0.225],),
}  # fmt: skip
"""What our model takes for granted."""
_OF_NO_CONSEQUENCE = {
    # How it was trained, or where; a fine-tuning run has settings of its own.
    *("dtype", "device", "use_amp", "gradient_checkpointing", "compile_model", "compile_mode", "pretrained_path"),
    *("optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay", "optimizer_grad_clip_norm"),
    *("scheduler_warmup_steps", "scheduler_decay_steps", "scheduler_decay_lr"),
    *("freeze_vision_encoder", "train_expert_only", "train_vlm_only"),
    *("push_to_hub", "repo_id", "private", "tags", "license"),
    # Unused by the reference's own model, or padded widths; the robot's come from its statistics.
    *("image_resolution", "tokenizer_max_length", "input_features", "output_features", "normalization_mapping"),
    # Sizes, read by reference_layout.
    *("qwen3_vl_variant", "action_expert_variant", "internvl_variant", "qwen2_variant", "scale_factor"),
    *("max_state_dim", "max_action_dim"),
}


@dataclass(frozen=True)
class Conversion:
    """What was made."""

    folder: Path
    config: InternVLAA1Config
    robot: Robot
    source: Fetched
    notes: tuple[str, ...]
    """Decisions that the person at the keyboard should read."""
    verification: Verification | None


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    revision: str | None = None,
    statistics: str | Path | None = None,
    without_statistics: bool = False,
    embodiment: str | None = None,
    statistics_key: str | None = None,
    actions: Literal["relative", "absolute"] | None = None,
    absolute_dims: Sequence[int] | None = None,
    cameras: Mapping[str, str] | None = None,
    text_tokenizer: str | Path | None = None,
    image_tokenizer: Sequence[str | Path] | None = None,
    licence: str = LICENCE,
    overwrite: bool = False,
    verify: bool = False,
    show_progress: bool = False,
) -> Conversion:
    """Convert a reference checkpoint.

    Args:
        source: Hub id, or a folder with model.safetensors, config.json, stats.json and perhaps train_config.json.
        destination: folder to make.
        revision: of the Hub repository.
        statistics: another stats.json than the source's.
        without_statistics: convert for fine-tuning only; the result cannot act before it was trained.
        embodiment: a name of ``embodiments.released``; None infers it from the statistics.
        statistics_key: robot type in stats.json.
        actions: what the checkpoint produces; None finds it out, or asks.
        absolute_dims: with relative actions, the dims that stay absolute; None takes the embodiment's.
        cameras: slot -> LeRobot feature key; None takes the embodiment's.
        text_tokenizer: Hub id or folder; None takes that of the variant's base model.
        image_tokenizer: folder, Hub id, file, or encoder and decoder file; None takes the one inside the policy file.
        licence: of the weights, for the model card and config.json.
        overwrite: replace an existing checkpoint folder, once the new one is whole.
        verify: reload the result and compare with the source weights before it gets its name.
        show_progress: a progress bar.

    Raises:
        InternVLAError: anything that does not fit. ``destination`` is then as it was.
    """
    destination = Path(destination).expanduser()
    check_destination(destination, overwrite=overwrite)
    fetched = fetch(source, (WEIGHTS, CONFIG, STATISTICS, TRAIN_CONFIG), what="checkpoint", revision=revision)
    check_destination(destination, overwrite=overwrite, sources=() if fetched.on_hub else (fetched.folder,))
    reference = read_reference(fetched.folder)
    robot = _robot(
        fetched.folder,
        Path(statistics) if statistics is not None else None,
        without_statistics=without_statistics,
        embodiment=embodiment,
        statistics_key=statistics_key,
        actions=actions,
        absolute_dims=tuple(absolute_dims) if absolute_dims is not None else None,
    )
    pixels, pixels_from = _image_tokenizer(reference, image_tokenizer)
    config, notes = policy_config(reference, robot, cameras, licence, next(iter(pixels.state_dict().values())).dtype)
    words, words_from = _text_tokenizer(reference.architecture, text_tokenizer)
    notes = (*robot.reasons, *notes)

    action_space = robot.action_space(reference.architecture.max_state_dim, reference.architecture.max_action_dim)
    added = {f"action_space.{name}": tensor for name, tensor in action_space.state_dict().items()}
    added |= {f"noise_seeds.{name}": tensor for name, tensor in NoiseSeeds().state_dict().items()}
    names = {f"model.{ours}": theirs for ours, theirs in reference.names.policy.items()}
    stored = read_header(fetched.folder / WEIGHTS)
    tokenizer_bytes = sum(tensor.numel() * tensor.element_size() for tensor in pixels.state_dict().values())
    check_disk(destination, sum(stored[theirs].bytes for theirs in names.values()) + tokenizer_bytes)

    verification = None
    with staged_folder(destination) as folder:
        with progress_bar(show_progress, (fetched.folder / WEIGHTS).stat().st_size) as advance:
            checksum = copy_tensors(
                fetched.folder / WEIGHTS, folder / WEIGHTS, names, added, metadata={"format": "pt"}, progress=advance
            )
        words.save_pretrained(folder / TEXT_TOKENIZER_FOLDER)
        pixels.save_pretrained(folder / IMAGE_TOKENIZER_FOLDER)
        config.save_pretrained(folder)
        _write_processors(config, folder)
        (folder / REFERENCE_FOLDER).mkdir()
        shutil.copyfile(fetched.folder / CONFIG, folder / REFERENCE_FOLDER / CONFIG)
        used_statistics = Path(statistics) if statistics is not None else fetched.folder / STATISTICS
        if robot.state is not None:
            shutil.copyfile(used_statistics, folder / REFERENCE_FOLDER / STATISTICS)
        present = [f for f in (WEIGHTS, CONFIG, STATISTICS, TRAIN_CONFIG) if (fetched.folder / f).is_file()]
        record = {
            "tool": f"lerobot_internvla {_version()}",
            "source": fetched.record(present, {WEIGHTS: checksum}),
            "text_tokenizer": words_from,
            "image_tokenizer": pixels_from,
            "variant": config.variant,
            "embodiment": robot.embodiment.name,
            "statistics_key": robot.statistics_key,
            "statistics": None if robot.state is None else "reference/stats.json",
            "decisions": list(notes),
            "licence": licence,
            "tied": dict(reference.names.duplicates),
            "dropped": {constant.reference: constant.reason for constant in reference.names.constants},
            "source_metadata": _metadata(fetched.folder / WEIGHTS),
        }
        write_provenance(folder, record)
        write_card(folder)
        if verify:
            verification = verify_conversion(folder, reference, robot)
    return Conversion(destination, config, robot, fetched, notes, verification)


def verify_converted(source: str | Path, folder: Path, *, revision: str | None = None) -> Verification:
    """Verify a folder that was converted before, without writing anything.

    Args:
        source: as for ``convert``.
        folder: what ``convert`` made of it. Its provenance.json and config.json say for which robot.
        revision: of the Hub repository.

    Raises:
        InternVLAError: not a converted folder, or it does not hold what the source does.
    """
    record = read_provenance(folder)
    if record is None:
        raise InternVLAError(f"{str(folder)!r} has no {PROVENANCE}: internvla-convert did not make it.")
    config = read_policy_config(folder, "--device=cpu")
    absolute_dims = None
    if config.action_representation == "relative":
        names = config.action_feature_names, config.state_feature_names
        is_relative = relative_mask_for(*names, absolute_indices=config.absolute_joint_indices)
        absolute_dims = tuple(dim for dim, relative in enumerate(is_relative) if not relative)
    without_statistics = record["statistics"] is None
    fetched = fetch(source, (WEIGHTS, CONFIG, STATISTICS, TRAIN_CONFIG), what="checkpoint", revision=revision)
    reference = read_reference(fetched.folder)
    robot = _robot(
        folder,
        None if without_statistics else folder / REFERENCE_FOLDER / STATISTICS,
        without_statistics=without_statistics,
        embodiment=record["embodiment"],
        statistics_key=record["statistics_key"],
        actions=cast(Representation, config.action_representation),
        absolute_dims=absolute_dims,
    )
    return verify_conversion(folder, reference, robot)


def _version() -> str:
    try:
        return importlib.metadata.version("lerobot_policy_internvla_a1")
    except importlib.metadata.PackageNotFoundError:
        return "0+not.installed"


def _metadata(weights: Path) -> dict[str, str] | None:
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        return file.metadata()


def progress_bar(show: bool, total: int) -> AbstractContextManager[Progress]:
    """A bar over ``total`` bytes, or nothing."""
    if not show:
        return nullcontext(lambda done: None)
    return _bar(total)


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc=WEIGHTS) as bar:
        yield bar.update


# ------------------------------------------------------------------------------------------------------- the robot


def _robot(folder: Path, statistics: Path | None, *, without_statistics: bool, **choices: Any) -> Robot:
    file = statistics or folder / STATISTICS
    if without_statistics and statistics is not None:
        raise InternVLAError("--statistics and --without-statistics exclude each other.")
    entries = None
    if not without_statistics:
        if not file.is_file():
            raise InternVLAError(
                f"There is no {str(file)!r}. Without statistics (mean and standard deviation of states and actions) "
                "the policy can neither read a state nor produce an action. Pass the reference's file with "
                "--statistics <stats.json>, or convert for fine-tuning only with --without-statistics."
            )
        entries = read_statistics(file)
    train_config: Any = None
    if (folder / TRAIN_CONFIG).is_file():
        try:
            train_config = json.loads((folder / TRAIN_CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InternVLAError(f"{str(folder / TRAIN_CONFIG)!r} is not valid JSON ({error}).") from error
    return describe_robot(entries, train_config=train_config, **choices)


# ------------------------------------------------------------------------------------------------------- config.json


def architecture_overrides(architecture: Architecture) -> dict[str, Any]:
    """What distinguishes an architecture from its variant's row, as ``InternVLAA1Config.architecture_overrides``."""
    return _difference(VARIANTS[architecture.name], architecture)


def _difference(base: Any, changed: Any) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(base):
        before, after = getattr(base, field.name), getattr(changed, field.name)
        if dataclasses.is_dataclass(before):
            if nested := _difference(before, after):
                changes[field.name] = nested
        elif before != after:
            changes[field.name] = list(after) if isinstance(after, tuple) else after
    return changes


def policy_config(
    reference: ReferenceCheckpoint,
    robot: Robot,
    cameras: Mapping[str, str] | None,
    licence: str,
    image_tokenizer_dtype: torch.dtype,
) -> tuple[InternVLAA1Config, tuple[str, ...]]:
    """Our configuration for a reference checkpoint, and what is worth saying about it.

    Raises:
        InternVLAError: settings that our model cannot follow, all of them.
    """
    settings = reference.policy_config
    problems = [
        f"{name} is {settings[name]!r}, but our model only knows {known[0]!r}"
        for name, known in _FIXED.items()
        if name in settings and settings[name] not in known
    ]
    normalisation = settings.get("normalization_mapping")
    if isinstance(normalisation, dict) and set(normalisation.values()) - {"IDENTITY"}:
        problems.append(
            f"normalization_mapping is {normalisation}, but the reference normalises outside of its model: IDENTITY"
        )
    if problems:
        raise InternVLAError(f"{CONFIG} cannot be converted:\n  " + "\n  ".join(problems))
    notes: list[str] = []
    unknown = sorted(settings.keys() - _OF_NO_CONSEQUENCE - set(SETTINGS) - _FIXED.keys())
    if unknown:
        notes.append(f"settings in {CONFIG} that this library does not know and has not followed: {', '.join(unknown)}")
    views = dict(cameras) if cameras is not None else dict(robot.embodiment.cameras)
    architecture = reference.architecture
    relative = robot.representation == "relative"
    config = InternVLAA1Config(
        variant=architecture.name,
        architecture_overrides=architecture_overrides(architecture),
        **{name: settings[name] for name in SETTINGS if name in settings},
        foresight_interval=FORESIGHT_INTERVAL,
        action_representation=robot.representation,
        absolute_joint_indices=_absolute_indices(robot) if relative else None,
        action_feature_names=robot.action_names,
        state_feature_names=robot.state_names,
        image_tokenizer_dtype=str(image_tokenizer_dtype).removeprefix("torch."),
        camera_slots=_explicit_slots(views),
        input_features={
            OBS_STATE: PolicyFeature(FeatureType.STATE, (robot.state_dim,)),
            # The policy letterboxes pictures of any size; the model's own is as good as any to put down.
            **{key: PolicyFeature(FeatureType.VISUAL, (3, *architecture.view_size)) for key in views.values()},
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (robot.action_dim,))},
        push_to_hub=False,
        license=licence,
        device="cpu",
    )
    # Of the computer that loads it, not of the one that converts: without such a GPU LeRobot takes what there is.
    config.device = "cuda"
    config.validate_features()
    resolve_camera_slots(list(config.image_features), config.camera_slots)
    notes.append("cameras: " + ", ".join(f"{slot} = {key}" for slot, key in views.items()))
    return config, tuple(notes)


def _explicit_slots(views: Mapping[str, str]) -> dict[str, str] | None:
    """None where the names speak for themselves, so that a fine-tune on other cameras inherits no old names."""
    try:
        known = resolve_camera_slots(list(views.values()))
    except InternVLAError:
        return dict(views)
    return None if known == dict(views) else dict(views)


def _absolute_indices(robot: Robot) -> list[int] | None:
    """None where the joint names tell which dims stay absolute."""
    try:
        if relative_mask_for(robot.action_names, robot.state_names) == robot.relative:
            return None
    except InternVLAError:
        pass
    return [dim for dim, is_relative in enumerate(robot.relative) if not is_relative]


def _write_processors(config: InternVLAA1Config, folder: Path) -> None:
    """LeRobot's stock pipelines; their device step follows the computer, too."""
    from lerobot.policies.factory import make_pre_post_processors

    anywhere = dataclasses.replace(config, device="cpu")  # the loader overrides it with the policy's device
    for pipeline in make_pre_post_processors(anywhere):
        pipeline.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------ tokenizers


def _image_tokenizer(
    reference: ReferenceCheckpoint, source: Sequence[str | Path] | None
) -> tuple[CosmosImageTokenizer, dict[str, Any]]:
    """The image tokenizer and where it came from; dtypes as stored."""
    spec = reference.architecture.image_tokenizer
    if source is None:
        if not reference.image_tokenizer_state:
            raise InternVLAError(
                "This policy file holds no image tokenizer (Cosmos CI8x8), and foresight needs one. Pass "
                "--image-tokenizer with NVIDIA's encoder.jit and decoder.jit, their folder, the same as safetensors, "
                "a folder converted before, or a Hub id that holds one of these."
            )
        with torch.device("meta"):
            tokenizer = CosmosImageTokenizer.from_spec(spec)
        state = {name: tensor.contiguous() for name, tensor in reference.image_tokenizer_state.items()}
        if len({tensor.dtype for tensor in state.values()}) > 1:
            raise InternVLAError(
                "The image tokenizer inside the policy file mixes dtypes: "
                f"{', '.join(sorted({str(t.dtype) for t in state.values()}))}. Pass another with --image-tokenizer."
            )
        tokenizer.load_state_dict(state, assign=True)
        return tokenizer, {"from": "the policy file"}
    files = [Path(part).expanduser() for part in source]
    if len(files) > 2:
        raise InternVLAError(f"--image-tokenizer takes one folder, file or Hub id, or two files; got {len(files)}.")
    if len(files) == 2 or files[0].is_file():
        pair_or_one: Any = tuple(files) if len(files) == 2 else files[0]  # a pair to us, any number to the type checker
        tokenizer = load_cosmos_weights(pair_or_one, spec=spec)
        record = Fetched(files[0].parent, files[0].resolve().parent.name, None, on_hub=False)
        return tokenizer, record.record([file.name for file in files])
    wanted = (CONFIG, WEIGHTS_NAME, *NVIDIA_FILES)
    fetched = fetch(source[0], wanted, what="image tokenizer")
    tokenizer = load_image_tokenizer(fetched.folder, spec=spec)
    if not isinstance(tokenizer, CosmosImageTokenizer):
        raise InternVLAError(f"{fetched.name!r} is no Cosmos image tokenizer, which this checkpoint was trained with.")
    found = {name: tuple(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    if found != expected_shapes(reference.architecture)[1]:
        raise InternVLAError(f"The image tokenizer in {fetched.name!r} has other sizes than this checkpoint's: {spec}.")
    return tokenizer, fetched.record([name for name in wanted if (fetched.folder / name).is_file()])


def _text_tokenizer(architecture: Architecture, source: str | Path | None) -> tuple[TextTokenizer, dict[str, Any]]:
    """The text tokenizer and where it came from, loaded from files that are here."""
    if source == "byte":
        raise InternVLAError("The byte tokenizer belongs to the tiny variant; the released models read Qwen's ids.")
    base = architecture.base_model if source is None else source
    assert base is not None
    try:
        fetched = fetch(base, TEXT_TOKENIZER_FILES, what="text tokenizer")
    except InternVLAError as error:
        raise InternVLAError(
            f"{error} Pass a copy of the tokenizer of {architecture.base_model}: --text-tokenizer <folder or Hub id>."
        ) from error
    tokenizer = load_text_tokenizer(fetched.folder)
    if tokenizer.vocabulary_size > architecture.vocabulary:
        raise InternVLAError(
            f"The text tokenizer {fetched.name!r} has {tokenizer.vocabulary_size} ids, the model embeds only "
            f"{architecture.vocabulary}: it is not this model's. Pass that of {architecture.base_model} "
            "(--text-tokenizer)."
        )
    return tokenizer, fetched.record([f for f in TEXT_TOKENIZER_FILES if (fetched.folder / f).is_file()])


__all__ = ["PROVENANCE", "Conversion", "architecture_overrides", "convert", "policy_config", "verify_converted"]
