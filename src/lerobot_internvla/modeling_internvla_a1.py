"""InternVLAA1Policy: LeRobot's batch dictionary on one side, the model's typed values on the other.

    batch -> cameras by slot, letterboxed -> Observation \
             task strings -> prompt ids        |           > model -> losses            (forward)
             state at now, normalised          |                   -> absolute actions  (select_action)
             actions, encoded -> Targets      /

This is the only file that knows LeRobot's keys. Statistics are buffers of ``action_space``, so they travel with the
weights; actions enter and leave in robot units, absolute, on every path (docs/architecture.md).
"""

# No `from __future__ import annotations` here: LeRobot reads the annotation of __init__'s config as a class.

import copy
import dataclasses
import logging
import threading
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from accelerate import init_empty_weights
from draccus.utils import DecodingError
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.rtc import RTCProcessor
from lerobot.utils.constants import ACTION, OBS_STATE, POLICY_PREPROCESSOR_DEFAULT_NAME
from torch import Tensor, nn

from lerobot_internvla.errors import InternVLAError

from .action_spaces import ActionSpaces
from .batch_keys import (
    CACHED_LATENTS,
    CAMERA_IS_PRESENT,
    CONTROL_TICK,
    EMBODIMENT_INDEX,
    LATENT_IS_CONTENT,
    PAST_AND_NOW,
    SOURCE_INDEX,
)
from .camera_slots import resolve_camera_slots
from .checkpoints.base_models import load_base_models
from .checkpoints.inheritance import describe_inheritance, untrained_setting
from .checkpoints.policy_folder import find_policy_folder
from .checkpoints.safe_loading import load_weights
from .checkpoints.whole_folder import whole_folder
from .configuration_internvla_a1 import InternVLAA1Config
from .conversion.unconverted import refuse_unconverted
from .data import exact_resume
from .data.adoption import adopt_metadata, adopt_mixture, build_action_space, log_of_sources, statistics_of_dataset
from .embodiments.rows import choose_robot, read_rows
from .image_tokenizer.factory import find_image_tokenizer
from .image_tokenizer.protocol import ImageTokenizer
from .images import content_box, content_mask, letterbox
from .model.flow import NoiseSeeds, draw_noise_and_time
from .model.inputs import Observation, Targets
from .model.internvla_a1 import InternVLAA1, Prefill
from .model.losses import read_floats
from .observation_memory import ObservationMemory, PastAndNow, frames_of_now, index_of_now
from .processor_internvla_a1 import make_internvla_a1_pre_post_processors
from .publishing.following import follow_lerobot
from .publishing.lineage import Lineage
from .serving.faults import refuse_unusable_actions, refuse_unusable_state
from .serving.realtime import make_rtc_processor, sample_guided, without_padding
from .text_tokenizer import PromptBuilder, TextTokenizer, load_text_tokenizer
from .trained_parts import freeze_parts, lora_targets, round_weights

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from .data.sources import Mixture

logger = logging.getLogger(__name__)

TEXT_TOKENIZER_FOLDER = "text_tokenizer"
IMAGE_TOKENIZER_FOLDER = "image_tokenizer"


class InternVLAA1Policy(PreTrainedPolicy):
    """InternVLA-A1 as a LeRobot policy.

    Args:
        config: its configuration; input and output features must be set.
        dataset_stats: LeRobot's statistics of the dataset (absolute actions), as ``make_policy`` passes them.
        dataset_meta: LeRobot's dataset metadata; relative actions need it to compute their own statistics.
        checkpoint_folder: set by ``from_pretrained``: nothing is downloaded or initialised that the folder holds.
        without_weights: set by ``from_pretrained``: parameters take no memory until a checkpoint is assigned to them.

    Raises:
        InternVLAError: features, cameras or joints that do not fit; a missing dependency, by name.
    """

    config_class = InternVLAA1Config  # pyright: ignore[reportAssignmentType]  # LeRobot declares None for subclasses
    name = "internvla_a1"  # pyright: ignore[reportAssignmentType]  # the same
    config: InternVLAA1Config
    _fsdp_wrap_modules: ClassVar[list[str]] = ["JointLayer"]
    _no_split_modules: ClassVar[list[str]] = ["JointLayer"]

    def __init__(
        self,
        config: InternVLAA1Config,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        dataset_meta: Any | None = None,
        *,
        checkpoint_folder: Path | None = None,
        without_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        architecture = config.architecture
        # Not written back to the configuration: a fine-tune on other cameras would inherit the old names.
        self.camera_slots = resolve_camera_slots(list(config.image_features), config.camera_slots)
        self.mixture: Mixture | None = getattr(dataset_meta, "mixture", None)
        if self.mixture is not None:
            adopt_mixture(config, self.mixture)
        elif dataset_meta is not None:
            adopt_metadata(config, dataset_meta, self.camera_slots)
        self.rows = read_rows(config.embodiments)
        self.robot = None if config.embodiment is None or not self.rows else choose_robot(self.rows, config.embodiment)
        if checkpoint_folder is None:
            self.lineage = Lineage.of_new_weights(config)
        else:
            self.lineage = Lineage.of_checkpoint(checkpoint_folder, config)
        if dataset_meta is not None:
            self.lineage = self.lineage.trained_on(dataset_meta)
            follow_lerobot()
            exact_resume.install()  # where this package was imported before LeRobot's datasets were

        self.noise_seeds = NoiseSeeds()
        self.action_space = build_action_space(config, self.rows)
        tokenizer = self._load_image_tokenizer(checkpoint_folder) if config.use_foresight else None
        cached_latents = getattr(dataset_meta, "cached_latents", None)
        if cached_latents is not None and tokenizer is not None:
            cached_latents.require(tokenizer, architecture)
        # Buffers are real in any case: tables of angles and the like are in no file.
        with init_empty_weights(include_buffers=False) if without_weights else nullcontext():
            self.model = InternVLAA1(
                architecture,
                use_foresight=config.use_foresight,
                chunk_size=config.chunk_size,
                image_tokenizer=tokenizer,
            )
        self.prompt_builder = PromptBuilder(self._load_text_tokenizer(checkpoint_folder), architecture.prompt_tokens)
        self._content_masks: dict[tuple[int, int], Tensor] = {}
        if checkpoint_folder is None:
            load_base_models(self.model, config.base_model, config.expert_warm_start)
            self._adopt_statistics(dataset_stats, dataset_meta)
        if config.weights_dtype != "float32":
            round_weights(self.model, getattr(torch, config.weights_dtype))
        freeze_parts(self.model, config)
        self.model.mixture.gradient_checkpointing = config.gradient_checkpointing
        self.model.vision_language.gradient_checkpointing = config.gradient_checkpointing
        if config.compile_model:
            self.model.sample_actions = torch.compile(self.model.sample_actions, mode=config.compile_mode)

        self._source_log = (
            None if self.mixture is None else log_of_sources(self.mixture, use_foresight=config.use_foresight)
        )
        self._rtc: RTCProcessor | None = None
        self.memory = ObservationMemory()
        self._told_late_guidance = False
        self._live_foresight = None
        if config.live_foresight:
            from .foresight.live import watch

            self._live_foresight = watch(self)
        self.last_predicted_latents: Tensor | None = None
        self._imagined_latents: Tensor | None = None
        self.reset()

    # ------------------------------------------------------------------ building

    def _load_text_tokenizer(self, checkpoint_folder: Path | None) -> TextTokenizer:
        config = self.config
        if config.text_tokenizer is not None:
            return load_text_tokenizer(config.text_tokenizer)
        if checkpoint_folder is not None and (checkpoint_folder / TEXT_TOKENIZER_FOLDER).is_dir():
            return load_text_tokenizer(checkpoint_folder / TEXT_TOKENIZER_FOLDER)
        if config.architecture.family == "tiny":
            return load_text_tokenizer("byte")
        base = config.architecture.base_model if config.base_model in (None, "auto") else config.base_model
        assert base is not None
        return load_text_tokenizer(base)

    def _load_image_tokenizer(self, checkpoint_folder: Path | None) -> ImageTokenizer:
        config = self.config
        return find_image_tokenizer(
            config.architecture.image_tokenizer,
            named=config.image_tokenizer,
            checkpoint=checkpoint_folder,
            dtype=getattr(torch, config.image_tokenizer_dtype),
        )

    def _adopt_statistics(self, dataset_stats: dict[str, dict[str, Any]] | None, dataset_meta: Any | None) -> None:
        """Set the normalisation that a dataset or mixture has; nothing where there is none."""
        chunk_size, source = self.config.chunk_size, getattr(dataset_meta, "repo_id", "statistics given in Python")
        if self.mixture is not None:
            from .data.mixture_statistics import mixture_statistics

            spaces = {name: self.action_space_of(name) for name in self._robots_of_dataset()}
            for name, statistics in mixture_statistics(self.mixture, spaces, chunk_size).items():
                spaces[name].set_statistics(statistics)
        else:
            space = self.action_space_of(self.config.embodiment)
            statistics = statistics_of_dataset(space, chunk_size, dataset_stats, dataset_meta)
            if statistics is None:
                return
            space.set_statistics(statistics)
        self.lineage = dataclasses.replace(self.lineage, statistics=source)

    def _robots_of_dataset(self) -> list[str]:
        """Robots whose statistics the given dataset or mixture has; empty for a policy of one robot."""
        if self.mixture is not None:
            return [e.name for e in self.mixture.embodiments if e.action_dim]
        return [self.config.embodiment] if self.rows and self.config.embodiment is not None else []

    def action_space_of(self, robot: str | None) -> Any:
        """The ``ActionSpace`` of one robot, or of the only one; PEFT's wrapper around it while it adapts the policy."""
        if not self.rows:
            return self.action_space
        return cast(ActionSpaces, self.action_space).of(robot or choose_robot(self.rows, self.config.embodiment))

    def get_optim_params(self) -> list[nn.Parameter]:
        """Parameters that are trained, and no others."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """Attention and MLP projections of ``config.peft_experts``; their heads are trained in full."""
        return lora_targets(self.model, self.config)

    def _validate_peft_config(self, peft_config: Any) -> None:
        """Called by LeRobot before it wraps the policy: statistics and noise seeds travel with the adapter."""
        super()._validate_peft_config(peft_config)
        peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or ()), "action_space", "noise_seeds"})

    # ------------------------------------------------------------------ checkpoints

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Config and weights as LeRobot writes them, and beside them what makes the folder whole.

        That is the tokenizers and, where the folder has none yet, LeRobot's stock processors: every command needs them.

        The folder is whole at every moment too: its files appear together (checkpoints/whole_folder.py).
        """
        given = {} if state_dict is None else {"state_dict": state_dict}  # LeRobot's main has no such argument
        with whole_folder(save_directory) as draft:
            super()._save_pretrained(draft, **given)
            self.prompt_builder.tokenizer.save_pretrained(draft / TEXT_TOKENIZER_FOLDER)
            if self.config.use_foresight:
                self.model.image_tokenizer.save_pretrained(draft / IMAGE_TOKENIZER_FOLDER)
            self.lineage.save(draft)
            if (draft / "config.json").is_file():
                # The folder brings its own tokenizers: names and paths of this machine would be looked up elsewhere.
                portable = copy.copy(self.config)
                portable.text_tokenizer = portable.image_tokenizer = None
                portable.latent_cache = False
                portable._save_pretrained(draft)
                if not (save_directory / f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json").is_file():
                    # From a notebook. LeRobot's own commands write theirs into the folder after this.
                    for pipeline in make_internvla_a1_pre_post_processors(copy.copy(self.config)):
                        pipeline.save_pretrained(draft)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: InternVLAA1Config | None = None,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        dataset_meta: Any | None = None,
        revision: str | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        strict: bool = True,
        **kwargs: Any,
    ) -> "InternVLAA1Policy":
        """Load a checkpoint folder or Hub repository.

        With ``dataset_meta`` (fine-tuning) and ``config.statistics == "dataset"`` the normalisation comes from that
        dataset, as LeRobot does for its own policies; otherwise from the checkpoint. What is kept and what is replaced
        is logged.

        Args:
            strict: False loads the weights that fit and warns with the list of all others, which stay random. LeRobot's
                own policies do that by default and LeRobot's commands never ask for it, so it is for Python only.

        Raises:
            InternVLAError: no such folder, files missing, weights that do not fit; all problems at once.
        """
        folder = find_policy_folder(
            pretrained_name_or_path,
            revision=revision,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        config = config or cls._read_config(folder, str(pretrained_name_or_path))
        refits = config.statistics == "dataset" and (dataset_meta is not None or bool(dataset_stats))
        # The metadata decides joint names and with them which joints are relative, so the policy is built with it.
        # Random weights of 3b would take a minute and 12.6 GB; strict loading replaces every one of them.
        policy = cls(config, dataset_meta=dataset_meta, checkpoint_folder=folder, without_weights=strict)
        # The ablation without the generation expert may start from a full checkpoint.
        ablated = () if config.use_foresight else ("foresight_head.", "experts.foresight.", "final_norms.foresight.")
        weights = folder / "model.safetensors"
        if refits or config.use_peft:
            if refits:
                policy._adopt_statistics(dataset_stats, dataset_meta)
            # An adapter brings its own statistics; those of its base model may be another robot's. A policy of several
            # robots takes those of the others from the checkpoint.
            robots = [] if config.use_peft else policy._robots_of_dataset()
            keep = tuple(f"action_space.robots.{name}." for name in robots) or ("action_space.",)
            drop = (*ablated, "action_space.")
            report = load_weights(policy, weights, keep_ours=keep, drop_theirs=drop, strict=strict)
        else:
            report = load_weights(policy, weights, drop_theirs=ablated, strict=strict)
        if dataset_meta is not None or dataset_stats:
            for line in describe_inheritance(folder, config, policy.camera_slots, report, new_statistics=refits):
                logger.info(line)
        elif untrained := untrained_setting(folder, config):
            logger.warning(untrained)
        policy.to(config.device)
        policy.eval()
        return policy

    @staticmethod
    def _read_config(folder: Path, name: str) -> InternVLAA1Config:
        refuse_unconverted(folder, name)
        try:
            config = InternVLAA1Config.from_pretrained(folder)
        except InternVLAError:
            raise
        except (OSError, ValueError, DecodingError) as error:
            advice = " A newer version may have written it: upgrade lerobot_policy_internvla_a1." * isinstance(
                error, DecodingError
            )
            raise InternVLAError(f"The configuration in {str(folder)!r} cannot be used: {error}.{advice}") from error
        if not isinstance(config, InternVLAA1Config):
            raise InternVLAError(
                f"{str(folder)!r} holds a policy of type {config.type!r}, expected {InternVLAA1Policy.name!r}. Load it "
                "with LeRobot's own class, or pass the folder of an InternVLA-A1 checkpoint."
            )
        return config

    # ------------------------------------------------------------------ publishing (publishing/upload.py)

    def push_model_to_hub(
        self,
        cfg: Any,
        peft_model: Any = None,
        state_dict: dict[str, Tensor] | None = None,
        dataset_meta: Any | None = None,
    ) -> None:
        """What ``lerobot-train`` 0.6.1 calls after its last step: weights, tokenizers and model card in one commit.

        Raises:
            InternVLAError: refused or failed; nothing is lost, and the message has the command that repeats it.
        """
        from .publishing.upload import publish_training

        publish_training(self, cfg, peft_model=peft_model, state_dict=state_dict)

    def generate_model_card(
        self,
        dataset_repo_id: str | None = None,
        model_type: str | None = None,
        license: str | None = None,
        tags: list[str] | None = None,
        cfg: Any | None = None,
        dataset_meta: Any | None = None,
    ) -> "ModelCard":
        """The model card, without the network. The arguments are LeRobot's; only ``license`` and ``cfg`` are news here.

        Raises:
            InternVLAError: ``license`` contradicts the origin of the weights.
        """
        from .publishing.upload import card_of_policy

        return card_of_policy(self, licence=license, cfg=cfg)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        card_kwargs: dict[str, Any] | None = None,
        **filters: Any,
    ) -> str:
        """Publish weights, tokenizers and model card in one commit; the processors have a ``push_to_hub`` of their own.

        Args:
            filters: LeRobot's file patterns, which have nothing to choose here: the files are a closed list.

        Returns:
            the commit's address; empty on all ranks but the first.

        Raises:
            InternVLAError: refused or failed.
        """
        from .publishing.upload import publish_policy

        return publish_policy(
            self,
            repo_id,
            message=commit_message or "Upload policy and model card",
            private=private,
            token=token,
            revision=branch,
            create_pr=create_pr,
        )

    # ------------------------------------------------------------------ batch -> values

    def _state(self, batch: dict[str, Any]) -> Tensor:
        if OBS_STATE not in batch:
            raise InternVLAError(f"The batch has no {OBS_STATE!r}. It holds: {', '.join(sorted(batch))}.")
        state = batch[OBS_STATE]
        return state[:, index_of_now(state.shape[1])] if state.ndim == 3 else state

    def act_as(self, robot: str) -> None:
        """Drive another of the robots that the policy knows, from the next observation on; forgets the episode.

        Raises:
            InternVLAError: it does not know that robot, or knows it from videos only.
        """
        self.robot = choose_robot(self.rows, robot)
        self.reset()

    def recognise(self, state_dim: int, action_dim: int | None = None) -> None:
        """Settle which of the robots that the policy knows it drives: by the widths of a robot, unless it was told.

        Raises:
            InternVLAError: none of its robots has these widths, or several do.
        """
        if not self.rows or self.robot is not None:
            return
        action, widest = self.config.action_feature, self.config.architecture.max_action_dim
        if action_dim is None and action is not None and action.shape[0] < widest:
            action_dim = action.shape[0]  # LeRobot puts an environment's dims there
        self.robot = choose_robot(self.rows, None, state_dim=state_dim, action_dim=action_dim)
        logger.info("This policy knows %s; state and action say that this is %s.", ", ".join(self.rows), self.robot)

    def _driven(self, batch: dict[str, Any]) -> Any:
        """The action space of the robot at hand, for a batch of one robot (see ``action_space_of``)."""
        if self.rows and self.robot is None:
            self.recognise(self._state(batch).shape[-1])
        return self.action_space_of(self.robot)

    def driven_cameras(self) -> dict[str, str]:
        """Slot -> key of the cameras that must be there: all, but for a robot that has fewer than the policy."""
        if not self.rows or self.robot is None:
            return self.camera_slots
        mine = self.rows[self.robot].embodiment.cameras
        return {slot: key for slot, key in self.camera_slots.items() if slot in mine}

    def driven_joints(self) -> tuple[list[str] | None, list[str] | None]:
        """Names of state and action dims of the robot at hand, in order; None where nobody named them."""
        if not self.rows:
            return self.config.state_feature_names, self.config.action_feature_names
        if self.robot is None:
            return None, None
        robot = self.rows[self.robot].embodiment
        return list(robot.state_names), list(robot.action_names)

    def _slots_of(self, batch: dict[str, Any]) -> dict[str, str]:
        if not self.rows or EMBODIMENT_INDEX in batch:
            return self.camera_slots
        self._driven(batch)
        return self.driven_cameras()

    def _cameras(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Frames by slot, [B, T, 3, height, width] or [B, 3, height, width], as they came; black where a robot of a
        policy of several has no camera."""
        slots = self._slots_of(batch)
        missing = [key for key in slots.values() if key not in batch]
        if missing:
            cameras = sorted(k for k in batch if k.startswith("observation.image") and not k.endswith("_is_pad"))
            raise InternVLAError(
                f"Missing cameras: {', '.join(missing)}. The batch holds: {', '.join(cameras) or 'none'}. The policy "
                f'expects {self.camera_slots}; rename with --rename_map=\'{{"<theirs>": "{missing[0]}"}}\'.'
            )
        found = {slot: batch[key] for slot, key in slots.items()}
        black = torch.zeros_like(next(iter(found.values()))) if len(found) < len(self.camera_slots) else None
        return {slot: found.get(slot, cast(Tensor, black)) for slot in self.camera_slots}

    def _camera_is_present(self, batch: dict[str, Any], batch_size: int, device: torch.device) -> Tensor:
        """[B, V] bool."""
        present = batch.get(CAMERA_IS_PRESENT)
        if present is None:
            slots = self._slots_of(batch)
            row = torch.tensor([slot in slots for slot in self.camera_slots]).to(device, non_blocking=True)
            present = row.expand(batch_size, -1)
        return present

    def _normalized_state(self, batch: dict[str, Any], device: torch.device) -> Tensor:
        state = self._state(batch).to(device)
        if EMBODIMENT_INDEX in batch:
            return cast(ActionSpaces, self.action_space).normalize_state(state, batch[EMBODIMENT_INDEX])
        return self._driven(batch).normalize_state(state)

    def _views(self, cameras: dict[str, Tensor]) -> Tensor:
        """[B, V, T, 3, height, width] in [0, 1], letterboxed to the model's view size."""
        size = self.config.architecture.view_size
        return torch.stack([letterbox(frames, size) for frames in cameras.values()], dim=1)

    def _observation(self, batch: dict[str, Any], views: Tensor) -> Observation:
        """The model's input; ``views`` hold past and now, or now alone without foresight."""
        device = views.device
        batch_size = views.shape[0]
        tasks = batch.get("task", "")
        tasks = [tasks] * batch_size if isinstance(tasks, str) else list(tasks)
        if len(tasks) != batch_size:
            raise InternVLAError(f"The batch has {batch_size} samples but {len(tasks)} tasks; pass one per sample.")
        prompt_ids, prompt_is_valid = self.prompt_builder(tasks)
        vocabulary = self.config.architecture.vocabulary
        if int(prompt_ids.max()) >= vocabulary:  # still on the CPU: no synchronisation
            raise InternVLAError(
                f"The text tokenizer produced id {int(prompt_ids.max())}, but the model knows {vocabulary} ids. "
                f"policy.text_tokenizer={self.config.text_tokenizer!r} does not belong to variant "
                f"{self.config.variant!r}."
            )
        return Observation(
            images=views,
            camera_is_present=self._camera_is_present(batch, batch_size, device),
            prompt_ids=prompt_ids.to(device, non_blocking=True),
            prompt_is_valid=prompt_is_valid.to(device, non_blocking=True),
            state=self._normalized_state(batch, device),
        )

    def _targets(self, batch: dict[str, Any], cameras: dict[str, Tensor], views: Tensor) -> Targets:
        config = self.config
        batch_size = views.shape[0]
        robot = batch.get(EMBODIMENT_INDEX)
        if robot is None:
            dims = self._driven(batch).action_dim_is_valid
        else:
            dims = cast(ActionSpaces, self.action_space).action_dim_is_valid(robot)[:, None]
        if ACTION in batch:
            actions = batch[ACTION]
            if actions.shape[1] != config.chunk_size:
                raise InternVLAError(
                    f"The batch has chunks of {actions.shape[1]} actions, but chunk_size is {config.chunk_size}."
                )
            if robot is None:
                encoded = self._driven(batch).encode_actions(actions, self._state(batch))
            else:
                spaces = cast(ActionSpaces, self.action_space)
                encoded = spaces.encode_actions(actions, self._state(batch), robot)
            padded = batch.get("action_is_pad")
            steps = torch.ones_like(actions[..., 0], dtype=torch.bool) if padded is None else ~padded
        else:  # action-free video: the foresight path alone is trained
            shape = (batch_size, config.chunk_size, config.architecture.max_action_dim)
            encoded = torch.zeros(shape, device=views.device)
            steps = torch.zeros(shape[:2], dtype=torch.bool, device=views.device)
        # A padded step repeats the last action; with a masked loss its value must only be finite.
        future = future_is_valid = content = None
        if config.use_foresight:
            future = None if CACHED_LATENTS in batch else views[:, :, 2]
            pads = [self._future_is_pad(batch, key) for key in self.camera_slots.values()]
            future_is_valid = torch.stack(
                [torch.ones_like(steps[:, 0]) if pad is None else ~pad.to(views.device) for pad in pads], dim=1
            )
            content = batch.get(LATENT_IS_CONTENT)
            if content is None:
                masks = [self._content_mask(frames.shape[-2], frames.shape[-1]) for frames in cameras.values()]
                content = torch.stack([mask.to(views.device) for mask in masks])[None].expand(batch_size, -1, -1, -1)
        return Targets(
            actions=encoded,
            action_is_valid=steps[:, :, None] & dims,
            future_images=future,
            future_is_valid=future_is_valid,
            latent_is_content=content,
        )

    @staticmethod
    def _future_is_pad(batch: dict[str, Any], key: str) -> Tensor | None:
        """Whether the future frame was clamped at the episode's end, [B].

        All features share the same offsets, and LeRobot 0.6.1 renames a camera without its mask, so any frame mask
        serves.
        """
        names = [f"{key}_is_pad", *sorted(k for k in batch if k.startswith("observation.") and k.endswith("_is_pad"))]
        for name in names:
            mask = batch.get(name)
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == 3:
                return mask[:, 2]
        return None

    def _content_mask(self, height: int, width: int) -> Tensor:
        """Latent cells that show the scene rather than letterbox bars; made once per camera resolution."""
        if (height, width) not in self._content_masks:
            architecture = self.config.architecture
            tokenizer = architecture.image_tokenizer
            box = content_box(height, width, architecture.view_size)
            mask = content_mask(box, architecture.view_size, tokenizer.image_size, tokenizer.latent_size)
            self._content_masks[height, width] = mask
        return self._content_masks[height, width]

    # ------------------------------------------------------------------ train

    def _autocast(self) -> torch.autocast:
        """bfloat16 over float32 weights when ``config.dtype`` asks for it; harmless inside another autocast."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.dtype == "bfloat16")

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Loss and metrics of one training batch.

        Args:
            batch: LeRobot's batch; cameras [B, 3, 3, H, W] (past, now, future; [B, 3, H, W] without foresight), state,
                actions [B, chunk_size, A] in robot units, ``*_is_pad`` masks, ``task`` strings. With cached latents the
                cameras are [B, 1, 3, H, W] (now). Not modified.
            reduction: "mean" (scalar) or "none" ([B], for LeRobot's sample weighting).

        Returns:
            loss and a dictionary with the same keys on every step and rank.
        """
        if reduction not in ("mean", "none"):
            raise InternVLAError(f"reduction={reduction!r}: expected 'mean' or 'none'.")
        config = self.config
        cameras = self._cameras(batch)
        frames = {slot: f.shape[1] if f.ndim == 5 else 1 for slot, f in cameras.items()}
        latents = batch.get(CACHED_LATENTS)
        expected = len(config.image_observation_delta_indices) if latents is None else 1
        if any(count != expected for count in frames.values()):
            raise InternVLAError(
                f"Training needs {expected} frames per camera (offsets {config.image_observation_delta_indices}), got "
                f"{frames}. lerobot-train asks the dataset for them by itself; in your own loop pass "
                "delta_timestamps={camera: [offset / fps ...]} to LeRobotDataset."
            )
        views = self._views({slot: f if f.ndim == 5 else f[:, None] for slot, f in cameras.items()})
        observation = self._observation(batch, views[:, :, :2])
        targets = self._targets(batch, cameras, views)
        # A loss computed in eval mode, between two training steps, must not change what comes after it.
        seed = self.noise_seeds() if self.training else int(torch.randint(2**62, ()))
        batch_size, chunk_size, width = targets.actions.shape
        noise, time = draw_noise_and_time(
            (batch_size * config.flow_draws, chunk_size, width),
            alpha=config.time_sampling_beta_alpha,
            beta=config.time_sampling_beta_beta,
            scale=config.time_sampling_scale,
            offset=config.time_sampling_offset,
            seed=seed,
        )
        with self._autocast():
            losses = self.model(
                observation,
                targets,
                noise.to(views.device, non_blocking=True),
                time.to(views.device, non_blocking=True),
                lambda_gen=config.lambda_gen if config.use_foresight else 0.0,
                reference_loss=config.reference_loss,
                across_ranks=self.training and torch.is_grad_enabled(),
                latents=latents,
            )
        scalars = losses.scalars()
        if self.training and self._source_log is not None and SOURCE_INDEX in batch:
            scalars |= self._source_log.update(losses, batch[SOURCE_INDEX])
        return (losses.total if reduction == "mean" else losses.total_per_sample), read_floats(scalars)

    # ------------------------------------------------------------------ act

    def reset(self) -> None:
        """Forget queue and history; LeRobot calls it at the start of an episode."""
        self._action_queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
        self.memory.reset()
        self._episode = object()
        self._first_tick: float | None = None
        self.last_predicted_latents = self._imagined_latents = None
        self._driver: int | None = None
        if self._live_foresight is not None:
            self._live_foresight.reset()

    def _history_ticks(self) -> int:
        """Control ticks between past and now.

        Raises:
            InternVLAError: a robot whose datasets had several rates.
        """
        config = self.config
        if not self.rows or config.fps is not None:
            return config.interval_frames
        assert self.robot is not None and config.foresight_interval_s is not None
        fps = self.rows[self.robot].fps
        if fps is None:
            raise InternVLAError(
                f"The datasets of robot {self.robot!r} have several frame rates, so the policy cannot know how many "
                f"control ticks make {config.foresight_interval_s} s. Pass --policy.fps=<your control rate in Hz>."
            )
        return max(1, round(config.foresight_interval_s * fps))

    def _claim(self, batch_size: int) -> None:
        """Refuse a second caller between two resets: queue and history belong to one rollout.

        With max_parallel_tasks > 1 ``lerobot-eval`` lets several threads share one policy, each of which resets it. The
        first to act after a reset drives it; whoever acts beside the driver is told, so nothing is mixed up unnoticed.
        """
        thread = threading.get_ident()
        if self._driver is None:
            self._driver = thread
        if self._driver != thread:
            raise InternVLAError(
                "Two threads drive one policy, but its action queue and frame history belong to one rollout at a time. "
                "Run lerobot-eval with --env.max_parallel_tasks=1 (several environments at once: --eval.batch_size), "
                "or give each thread a policy of its own."
            )
        if self._action_queue and self._action_queue[0].shape[0] != batch_size:
            raise InternVLAError(
                f"The batch changed from {self._action_queue[0].shape[0]} to {batch_size} environments within an "
                "episode. Call policy.reset() when a rollout begins."
            )

    def _prefill(self, batch: dict[str, Any], with_foresight: bool) -> Prefill:
        cameras, latents = self._cameras(batch), None
        if self.config.use_foresight:
            views = self._views(self.memory.pair_up(cameras))
            seen: PastAndNow | None = batch.get(PAST_AND_NOW)
            latents = None if seen is None else seen.latents(views, self.model.encode_frames)
        else:
            views = self._views({slot: frames[:, None] for slot, frames in frames_of_now(cameras).items()})
        return self.model.prefill(
            self._observation(batch, views),
            latents=latents,
            with_foresight=with_foresight,
            reference_positions=self.config.reference_positions,
        )

    def _sample(
        self,
        batch: dict[str, Any],
        prefill: Prefill,
        noise: Tensor | None,
        left_over: Tensor | None = None,
        inference_delay: int = 0,
    ) -> Tensor:
        """Absolute actions [B, chunk_size, A] in robot units."""
        state, space, steps = self._state(batch), self._driven(batch), self.config.num_inference_steps
        architecture = self.config.architecture
        if noise is None:
            shape = (state.shape[0], self.config.chunk_size, architecture.max_action_dim)
            noise = self.config.noise_scale * torch.randn(shape, device=state.device, dtype=torch.float32)
        if left_over is None or self._rtc is None:
            actions = self.model.sample_actions(prefill, noise, steps)
        else:
            actions = sample_guided(
                self.model,
                prefill,
                noise,
                steps,
                processor=self._rtc,
                left_over=space.encode_actions(left_over, state),
                action_dim=space.action_dim,
                inference_delay=inference_delay,
            )
        actions = space.decode_actions(actions, state)
        refuse_unusable_actions(actions, self._dim_names(batch)[1])
        if self._live_foresight is not None:
            self._live_foresight.chunk_done()
        return actions

    def _dim_names(self, batch: dict[str, Any]) -> tuple[list[str] | None, list[str] | None]:
        """``driven_joints`` of the robot that this observation is of, for messages."""
        self._driven(batch)
        return self.driven_joints()

    # ............ under real-time chunking, or behind a server: serving/

    @property
    def control_rate_hz(self) -> float | None:
        """Frames per second of the training data, which is the rate that chunks are meant for; None where unknown."""
        if self.config.fps is not None or not self.rows or self.robot is None:
            return self.config.fps
        return self.rows[self.robot].fps

    def supports_rtc(self) -> bool:
        """LeRobot asks before it offers ``--inference.type=rtc``."""
        return True

    def init_rtc_processor(self) -> None:
        """Take over ``config.rtc_config``, which ``lerobot-rollout`` sets from ``--inference.rtc.*`` before this call.

        LeRobot's RTC engine then hands the policy the frames of every control tick.
        """
        from .serving.rtc_engine import enter_rtc_engine

        self._rtc = make_rtc_processor(getattr(self.config, "rtc_config", None), self.config.num_inference_steps)
        if self._rtc is not None and self.config.compile_model:
            # The guided sampler is a loop on the host, so what is compiled is one step. The sampler of first chunks is
            # to run over the same one: LeRobot warms up with these alone, and nothing is compiled once the robot moves.
            for name in ("sample_actions", "denoise_step"):
                self.model.__dict__.pop(name, None)
            self.model.denoise_step = torch.compile(self.model.denoise_step, mode=self.config.compile_mode)
        enter_rtc_engine()

    def observe(self, frames: dict[str, Tensor], tick: float) -> None:
        """Remember frames at whose moment no chunk is asked for; another thread may be predicting meanwhile.

        Args:
            frames: [B, 3, H, W] by camera key, uint8 or in [0, 1].
            tick: when they were taken, in control ticks since any moment (seconds times the control rate).

        Raises:
            InternVLAError: a tick before that of the frames before; frames of another size.
        """
        if self._first_tick is None:
            self._first_tick = tick
        if self.config.use_foresight:
            self.memory.observe(frames, tick, self._history_ticks())

    def _with_past(self, batch: dict[str, Any], tick: float | None) -> dict[str, Any]:
        """The observation with what was seen one interval before ``tick`` beside each frame, where that is known."""
        if CONTROL_TICK in batch:
            tick = float(batch[CONTROL_TICK].flatten()[0])
        now = {key: batch[key] for key in self._slots_of(batch).values() if key in batch}
        if tick is None or not self.config.use_foresight or any(frames.ndim != 4 for frames in now.values()):
            return batch
        seen = self.memory.recall(now, tick, self._history_ticks())
        return {**batch, **seen.frames(), PAST_AND_NOW: seen}

    def _left_over(self, left_over: Tensor | None, batch: dict[str, Any], inference_delay: int) -> Tensor | None:
        """What is left of the chunk before, [1, S, A], where it shall guide the next; S at least 1."""
        if left_over is None or self._rtc is None:
            if left_over is not None and getattr(self.config, "rtc_config", None) is None:
                raise InternVLAError(
                    "prev_chunk_left_over is given, but RTC is not set up. Set policy.config.rtc_config = RTCConfig() "
                    "and call policy.init_rtc_processor(), as lerobot-rollout does."
                )
            return None
        horizon = self._rtc.rtc_config.execution_horizon
        if inference_delay >= horizon and not self._told_late_guidance:
            logger.warning(
                "A chunk takes %d ticks and the execution horizon is %d: when it arrives, the part that was blended "
                "with the chunk before is over, and the robot will jump. Pass --inference.rtc.execution_horizon=%d or "
                "more (chunk_size is %d), or make inference faster.",
                inference_delay,
                horizon,
                min(2 * inference_delay, self.config.chunk_size),
                self.config.chunk_size,
            )
            self._told_late_guidance = True
        steps = without_padding(left_over)[: self.config.chunk_size].to(self._state(batch).device)
        return steps[None] if len(steps) else None

    def _refuse_what_is_over(self, batch: dict[str, Any]) -> None:
        """Under RTC every observation was observed before: one that was not is of the episode before the reset."""
        if CONTROL_TICK in batch:
            tick, first = float(batch[CONTROL_TICK].flatten()[0]), self._first_tick
            if first is None or tick < first:
                raise InternVLAError("The episode ended before a chunk for it was computed; it is not computed.")

    @torch.compiler.disable  # what is worth compiling, the sampler, is compiled by itself (compile_model)
    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        noise: Tensor | None = None,
        *,
        inference_delay: int = 0,
        prev_chunk_left_over: Tensor | None = None,
        tick: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Absolute actions [B, chunk_size, A] in robot units.

        Args:
            batch: an observation; cameras [B, 2, 3, H, W] (past, now), or [B, 3, H, W].
            noise: [B, chunk_size, max_action_dim]; None draws it with standard deviation ``config.noise_scale``.
            inference_delay: RTC: steps of the left-over chunk that will be executed before this one arrives.
            prev_chunk_left_over: RTC: what is left of the chunk before, [S, A] as this method returned it (absolute,
                robot units), filled up with rows of zeros. Guides the first steps of this chunk.
            tick: when single frames were taken, in control ticks since any moment (seconds times the control rate);
                grows from call to call, until ``reset``. The past is then what an earlier call, or ``observe``, showed
                nearest to one interval before. Without it the past is taken to be now, and a warning says so.

        Raises:
            InternVLAError: a state, or actions, that are not finite; ``reset`` was called meanwhile: the chunk belongs
                to an episode that is over.
        """
        self.eval()
        episode = self._episode
        self._refuse_what_is_over(batch)
        refuse_unusable_state(self._state(batch), self._dim_names(batch)[0])
        batch = self._with_past(batch, tick)
        if self._live_foresight is not None:
            self._live_foresight.observed(batch)
        with self._autocast():
            prefill = self._prefill(batch, with_foresight=False)
            left_over = self._left_over(prev_chunk_left_over, batch, inference_delay)
            actions = self._sample(batch, prefill, noise, left_over, inference_delay)
        if self._episode is not episode:
            raise InternVLAError("The episode ended while a chunk for it was computed; the chunk is dropped.")
        return actions

    @torch.no_grad()
    def predict_foresight(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The imagined frame one interval ahead.

        Args:
            batch: an observation as for ``predict_action_chunk``.

        Returns:
            latents [B, V, C, h, w] and images [B, V, 3, H, W] in [0, 1], views in the order of ``camera_slots``.
        """
        self.eval()
        with self._autocast():
            latents = self._imagine(batch, self._prefill(batch, with_foresight=True))
        return latents, self.model.decode_latents(latents)

    def _imagine(self, batch: dict[str, Any], prefill: Prefill) -> Tensor:
        """Predicted latents [B, V, C, h, w]. Letterbox bars are made black: training does not teach the model any."""
        latents = self.model.predict_foresight(prefill).float()
        masks = [self._content_mask(frames.shape[-2], frames.shape[-1]) for frames in self._cameras(batch).values()]
        if all(bool(mask.all()) for mask in masks):
            return latents
        content = torch.stack(masks).to(latents.device)[None, :, None]
        black = latents.new_zeros(1, 1, 1, 3, *self.config.architecture.image_tokenizer.image_size)
        return torch.where(content, latents, self.model.encode_frames(black)[:, :, 0])

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """One absolute action [B, A] per call; predicts a chunk when the queue is empty.

        Call it on every control tick: it remembers the frames, so that the model sees the one of an interval ago.
        """
        cameras = self._cameras(batch)
        self._claim(next(iter(cameras.values())).shape[0])
        state = self._state(batch)
        if state.device.type == "cpu" or not self._action_queue:
            refuse_unusable_state(state, self._dim_names(batch)[0])
        queue, seen = self._action_queue, None  # this queue, even if another thread resets meanwhile
        if self.config.use_foresight:
            seen = self.memory.push(frames_of_now(cameras), self._history_ticks())
        if not queue:
            self.eval()  # a walk over all modules: not on ticks that only take from the queue
            if seen is not None:
                pairs = {self.camera_slots[slot]: frames for slot, frames in seen.frames().items()}
                batch = {**batch, **pairs, PAST_AND_NOW: seen}
            if self._live_foresight is not None:
                self._live_foresight.observed(batch)
            with self._autocast():
                prefill = self._prefill(batch, with_foresight=self.config.save_predicted_video)
                actions = self._sample(batch, prefill, noise)
                if self.config.save_predicted_video:
                    # [B, V * C, 1, h, w]: LeRobot concatenates what it collects in an episode along dim 2.
                    self._imagined_latents = self._imagine(batch, prefill).flatten(1, 2)[:, :, None]
            queue.extend(actions.transpose(0, 1)[: self.config.n_action_steps])
        # LeRobot takes it away after every step. Offering it again until the next chunk keeps its video in step with
        # the video of the episode.
        self.last_predicted_latents = self._imagined_latents
        return queue.popleft()

    @torch.no_grad()
    def decode_predicted_latents(self, latents: Tensor) -> Tensor:
        """Imagined frames of one episode for ``lerobot-eval``'s video: [T, H, V * W, 3] uint8, views side by side.

        Small pictures are magnified by a whole number, to at least 160 pixels per view.

        Args:
            latents: [B, V * C, T, h, w], the concatenation of ``last_predicted_latents`` over the T steps of an
                episode. Environment 0 is shown.
        """
        # One chunk's imagination lasts for several steps, and is decoded once.
        different, which = latents[0].transpose(0, 1).unique_consecutive(dim=0, return_inverse=True)
        device, views = next(self.parameters()).device, len(self.camera_slots)
        frames: list[Tensor] = []
        for some in different.split(8):  # a whole episode at once need not fit in memory
            images = self.model.decode_latents(some.unflatten(1, (views, -1)).to(device))
            images = (images.permute(0, 3, 1, 4, 2).flatten(2, 3) * 255).round().to(torch.uint8).cpu()
            factor = -(-160 // (images.shape[2] // views))
            frames.append(images.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2))
        return torch.cat(frames)[which]
