"""Any LeRobot policy with its processors, loaded as LeRobot's own commands do, and asked for chunks of a dataset.

    policy = load_policy("outputs/train/act/checkpoints/last/pretrained_model")
    chunks = policy.predict(batch, ...)      # [B, chunk_size, A], absolute, in the dataset's units

LeRobot's contract: the preprocessor takes a batch of observations, ``predict_action_chunk`` returns chunks in the
model's numbers, the postprocessor brings them back (it un-normalises every step alike, and turns relative actions into
absolute ones with the state that the preprocessor has just seen).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_internvla.camera_slots import resolve_camera_slots
from lerobot_internvla.checkpoints.adapters import load_with_adapter
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.embodiments.rows import choose_robot, read_rows
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.foresight.samples import interval_in_frames

TRAIN_CONFIG = "train_config.json"


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy, ready to be asked."""

    name: str
    """What it is called in tables."""
    path: str
    policy: PreTrainedPolicy
    preprocess: Any
    postprocess: Any

    @property
    def config(self) -> Any:
        return self.policy.config

    @property
    def is_ours(self) -> bool:
        return isinstance(self.config, InternVLAA1Config)

    @property
    def imagines(self) -> bool:
        """Whether it can show the future that it expects."""
        return self.is_ours and self.config.use_foresight

    @property
    def chunk_size(self) -> int:
        """Actions per prediction, from now on."""
        return int(getattr(self.config, "chunk_size", None) or self.n_action_steps)

    @property
    def n_action_steps(self) -> int:
        """How many of them the robot executes before the next prediction."""
        return int(getattr(self.config, "n_action_steps", 1))

    def frame_offsets(self, fps: float) -> tuple[int, ...]:
        """Frames of an observation relative to now, the last one being now: (0,), or (-15, 0) with a history.

        Raises:
            InternVLAError: our policy at a frame rate that it does not know.
        """
        if self.imagines:
            return -interval_in_frames(self.config, fps), 0
        if self.is_ours:
            return (0,)
        offsets = self.config.observation_delta_indices or [0]
        return tuple(sorted(offset for offset in offsets if offset <= 0)) or (0,)

    @torch.no_grad()
    def predict(
        self, observation: Mapping[str, Any], seeds: Sequence[int]
    ) -> Float[Tensor, "batch chunk_size action_dim"]:
        """Chunks on the CPU, float32, absolute or whatever else the dataset's actions are.

        Args:
            observation: cameras [B, T, 3, H, W] in [0, 1] and state [B, T, D] at ``frame_offsets``, without T if there
                is one; ``task``. With the dataset's keys: the preprocessor renames them if it was told to.
            seeds: one per sample. Ours draws each sample's noise from its own; others draw a whole batch from the
                first, so their answers depend on the batch size.

        Raises:
            InternVLAError: the policy cannot read such a batch, or answers something else than chunks.
        """
        policy, config = self.policy, self.config
        policy.reset()
        options: dict[str, Any] = {}
        if self.is_ours:
            shape = (config.chunk_size, config.architecture.max_action_dim)
            noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            device = next(policy.parameters()).device
            options["noise"] = config.noise_scale * torch.stack(noise).to(device)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seeds[0])
                chunks = self.postprocess(policy.predict_action_chunk(self.preprocess(dict(observation)), **options))
        except InternVLAError:
            raise
        except Exception as error:  # any policy, any library below it
            raise InternVLAError(
                f"{self.name}: {type(policy).__name__} cannot predict chunks from this dataset. "
                f"{type(error).__name__}: {error}"
            ) from error
        chunks = chunks.detach().float().cpu()
        if chunks.ndim != 3 or chunks.shape[0] != len(seeds):
            raise InternVLAError(
                f"{self.name}: predict_action_chunk gave shape {tuple(chunks.shape)} for {len(seeds)} observations; "
                "expected (batch, steps, action dims). Open-loop evaluation needs a policy that predicts chunks."
            )
        return chunks


def load_policy(
    path: str,
    *,
    name: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    rename_map: Mapping[str, str] | None = None,
) -> LoadedPolicy:
    """A checkpoint of any policy type that LeRobot knows here, plugins included.

    Args:
        path: folder with config.json, or Hub id. An adapter (``--peft.*``) is loaded over its base.
        name: for tables; None takes the policy's type.
        overrides: of its configuration, as on a command line: ``--n_action_steps=10``.
        device: None takes the configuration's.
        rename_map: dataset key -> policy key.

    Raises:
        InternVLAError: no such checkpoint, or one that cannot be loaded.
    """
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    config = read_config(path, [*overrides, *([] if device is None else [f"--device={device}"])])
    try:
        if config.use_peft:
            # The adapter's layers are put into the policy itself, so the policy is what we go on with.
            policy = load_with_adapter(path, config=config).get_base_model()
        else:
            policy = get_policy_class(config.type).from_pretrained(path, config=config)
        changes: dict[str, Any] = {"device_processor": {"device": config.device}}
        if rename_map:
            changes["rename_observations_processor"] = {"rename_map": dict(rename_map)}
        pre, post = make_pre_post_processors(config, pretrained_path=path, preprocessor_overrides=changes)
    except InternVLAError:
        raise
    except Exception as error:  # weights, processors and the Hub each have their own
        raise InternVLAError(f"Cannot load the policy {path!r}: {type(error).__name__}: {error}") from error
    return LoadedPolicy(name or config.type, path, policy.eval(), pre, post)


def read_config(path: str, overrides: Sequence[str] = ()) -> PreTrainedConfig:
    """A checkpoint's configuration, whatever its type.

    Raises:
        InternVLAError: no such folder or Hub repository, an unknown policy type, unreadable.
    """
    folder = Path(path)
    if not folder.is_dir() and (folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise InternVLAError(
            f"There is no checkpoint folder {path!r}. Pass the folder that holds config.json and model.safetensors "
            "(after lerobot-train: <output_dir>/checkpoints/last/pretrained_model), or a Hub id owner/name."
        )
    try:
        config = PreTrainedConfig.from_pretrained(path, cli_overrides=list(overrides))
    except InternVLAError:
        raise
    except FileNotFoundError as error:
        raise InternVLAError(
            f"{path!r} is no checkpoint: {error}. A checkpoint folder holds config.json and model.safetensors; after "
            "lerobot-train it is <output_dir>/checkpoints/last/pretrained_model."
        ) from error
    except Exception as error:  # the Hub, JSON and draccus each have their own
        raise InternVLAError(f"Cannot read the policy {path!r}: {error}") from error
    config.pretrained_path = cast(Any, path)  # a Hub id is no Path
    return config


def saved_device(path: str) -> str | None:
    """The device in a checkpoint folder's config.json. LeRobot replaces it while reading, where it is not here."""
    try:
        device = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))["device"]
    except (OSError, ValueError, KeyError):
        return None
    return device if isinstance(device, str) else None


def distinct_names(paths: Sequence[str], types: Sequence[str]) -> list[str]:
    """Short names for tables: the policy's type, with as much of the path as tells two of a type apart."""
    names: list[str] = []
    for path, kind in zip(paths, types, strict=True):
        rivals = [other for other, its in zip(paths, types, strict=True) if its == kind and other != path]
        parts = [part for part in Path(path).parts if part not in ("pretrained_model", "checkpoints", "/")]
        others = {part for rival in rivals for part in Path(rival).parts}
        own = [part for part in parts if part not in others]
        names.append(" ".join([kind, *own]) if rivals else kind)
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


# -------------------------------------------------------------------------------------------------------- what it reads


@dataclass(frozen=True)
class Expected:
    """What a policy reads and answers, for the robot at hand."""

    state_dim: int | None
    """None: it reads no state, or does not say."""
    action_dim: int | None
    state_names: tuple[str, ...] | None
    action_names: tuple[str, ...] | None
    cameras: tuple[str, ...]
    """Feature keys that must be there."""
    fps: float | None
    """Rate of its steps; None: it does not note one."""


def expected_by(config: Any, state_dim: int | None, action_dim: int | None) -> Expected:
    """What a policy of any type expects.

    Args:
        config: of the policy. One of several robots is chosen by name or by widths, and noted as ``embodiment``.
        state_dim, action_dim: widths of the robot or dataset at hand.

    Raises:
        InternVLAError: a policy of several robots, of which none or more than one fits.
    """
    if isinstance(config, InternVLAA1Config) and config.embodiments:
        rows = read_rows(config.embodiments)
        config.embodiment = choose_robot(rows, config.embodiment, state_dim=state_dim, action_dim=action_dim)
        row = rows[config.embodiment]
        robot = row.embodiment
        slots = resolve_camera_slots(list(config.image_features), config.camera_slots)
        return Expected(
            robot.state_dim,
            robot.action_dim,
            robot.state_names,
            robot.action_names,
            tuple(key for slot, key in slots.items() if slot in robot.cameras),
            config.fps or row.fps,
        )
    state, action = config.robot_state_feature, config.action_feature
    state_names, action_names = (getattr(config, f"{side}_feature_names", None) for side in ("state", "action"))
    return Expected(
        None if state is None else int(state.shape[0]),
        None if action is None else int(action.shape[0]),
        None if state_names is None else tuple(state_names),
        None if action_names is None else tuple(action_names),
        tuple(config.image_features),
        getattr(config, "fps", None),
    )


# ------------------------------------------------------------------------------------------------------------- dataset


def read_metadata(repo_id: str, root: str | Path | None = None, revision: str | None = None) -> LeRobotDatasetMetadata:
    """A dataset's metadata; no frames.

    Raises:
        InternVLAError: there is no such dataset.
    """
    # LeRobot would make the folder and then ask the Hub for it.
    if root is not None and not Path(root, "meta", "info.json").is_file():
        raise InternVLAError(
            f"There is no dataset in {str(root)!r}: it has no meta/info.json. --dataset.root is the folder of the "
            "dataset itself, the one that holds meta, data and videos."
        )
    try:
        return LeRobotDatasetMetadata(repo_id, root=root, revision=revision)
    except Exception as error:  # file system, Hub and parquet each have their own
        raise InternVLAError(
            f"Cannot open the dataset {repo_id!r}: {error}. For one on this machine: --dataset.root=<folder>."
        ) from error


def training_episodes(path: str, meta: LeRobotDatasetMetadata) -> set[int] | None:
    """Episodes of this dataset that the checkpoint was trained on, as its train_config.json says.

    Returns:
        None when that cannot be known: no such file; a dataset of another name, or of the same name in another folder
        or, as lineage.json tells, with another number of frames.
    """
    try:
        dataset = json.loads(Path(path, TRAIN_CONFIG).read_text(encoding="utf-8"))["dataset"]
        repo_id, root, episodes = dataset["repo_id"], dataset["root"], dataset["episodes"]
        split = dataset.get("eval_split") or 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    frames = _frames_in_training(path, repo_id)
    is_elsewhere = root is not None and Path(root).resolve() != Path(meta.root).resolve()
    if repo_id != meta.repo_id or (is_elsewhere if frames is None else frames != meta.total_frames):
        return None
    chosen = list(range(meta.total_episodes)) if episodes is None else [int(episode) for episode in episodes]
    if not split:
        return set(chosen)
    # As LeRobot 0.6.1 splits: of every task the last ceil(n * split) episodes are held out.
    by_task: dict[str, list[int]] = {}
    rows: Any = meta.episodes
    for episode in chosen:
        tasks = rows[episode]["tasks"]
        by_task.setdefault(tasks[0] if tasks else "", []).append(episode)
    return {episode for same in by_task.values() for episode in same[: len(same) - math.ceil(len(same) * split)]}


def _frames_in_training(path: str, repo_id: str) -> int | None:
    """Size of the dataset as our checkpoints note it in lineage.json; None if nothing is noted."""
    try:
        datasets = json.loads(Path(path, "lineage.json").read_text(encoding="utf-8"))["datasets"]
        return next(int(entry["frames"]) for entry in datasets if entry["repo_id"] == repo_id)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
