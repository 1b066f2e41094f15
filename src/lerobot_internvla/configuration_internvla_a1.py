"""InternVLAA1Config: plain data, saved as config.json. No I/O, no torch modules, no transformers.

Everything that rebuilds the policy and its processors is here; weights, statistics and tokenizer files lie beside it in
the checkpoint folder. Field comments are the help texts of ``lerobot-train --help --policy.type=internvla_a1``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import draccus
from draccus.utils import DecodingError
from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, LRSchedulerConfig
from lerobot.optim.schedulers import ConstantWithWarmupSchedulerConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import Architecture, build_architecture

EXPERTS = ("understanding", "foresight", "action")
WHEN_CREATED: list[Callable[[], None]] = []
"""Called for every configuration that is made: in lerobot-train that is before the dataset is."""
_CHOICES: dict[str, tuple[str, ...]] = {
    "action_representation": ("absolute", "relative"),
    "dtype": ("float32", "bfloat16"),
    "weights_dtype": ("float32", "bfloat16"),
    "image_tokenizer_dtype": ("float32", "bfloat16"),
    "lr_schedule": ("cosine", "constant"),
    "statistics": ("dataset", "checkpoint"),
}


class FormatVersion(int):
    """``format_version`` in config.json: looked at as it is decoded, before draccus trips over fields of the future."""


FORMAT_VERSION = FormatVersion(1)
"""Of checkpoint folders. Raised by a change after which this code would misread older folders, or older code new ones;
a new field whose default means what was done before is no such change."""


class FormatVersionError(InternVLAError, DecodingError):
    """A folder of a newer version. Also a ``DecodingError``, because draccus lets these through as they are."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0])


def _decode_format_version(raw_value: Any, path: Sequence[str] = ()) -> FormatVersion:
    if isinstance(raw_value, bool) or not str(raw_value).isdecimal() or int(raw_value) < 1:
        raise FormatVersionError(
            f"format_version={raw_value!r} in config.json: expected a whole number from 1 to {FORMAT_VERSION}. The "
            "program writes it; take it from an untouched copy of the checkpoint."
        )
    if int(raw_value) > FORMAT_VERSION:
        raise FormatVersionError(
            f"This checkpoint has format version {raw_value}, and this version of lerobot_policy_internvla_a1 reads up "
            f"to {FORMAT_VERSION}: it was written by a newer version. Upgrade lerobot_policy_internvla_a1, or take a "
            "checkpoint that an older version wrote."
        )
    return FormatVersion(raw_value)


draccus.decode.register(FormatVersion, _decode_format_version)


@PreTrainedConfig.register_subclass("internvla_a1")
@dataclass
class InternVLAA1Config(PreTrainedConfig):
    """Configuration of InternVLA-A1 (arXiv 2601.02456).

    Raises:
        InternVLAError: values that contradict each other; every problem is listed at once, with what to change.
    """

    # Model size: "3b" (Qwen3-VL-2B understanding), "2b" (InternVL3-1B) or "tiny" (offline, a few million parameters).
    variant: str = "3b"
    # Changes to the variant's sizes, nested as in model/architecture.py, e.g. {"layers": 2}. For research and tests.
    architecture_overrides: dict[str, Any] = field(default_factory=dict)

    # Actions per predicted chunk, at the dataset's rate.
    chunk_size: int = 50
    # Actions executed before the next chunk is predicted (at most chunk_size).
    n_action_steps: int = 50
    # Euler steps from noise to actions.
    num_inference_steps: int = 10
    # Standard deviation of the noise that sampling starts from: 1 as in training, 0 for one deterministic answer.
    noise_scale: float = 1.0

    # False trains and runs the ablation without the generation expert (no past and no future frames).
    use_foresight: bool = True
    # Frames between past and now, and between now and the imagined future (15 at 30 fps = 0.5 s in the paper).
    foresight_interval: int = 15
    # The same interval in seconds; needs fps, and overrides foresight_interval.
    foresight_interval_s: float | None = None
    # Frames per second of dataset and robot. Filled in from the dataset; needed only with foresight_interval_s.
    fps: float | None = None
    # Weight of the foresight loss beside the action loss.
    lambda_gen: float = 0.01

    # Keep decoded camera frames in memory, up to this many GB in every loader process; 0 decodes for every sample.
    # For small datasets: three moments per camera are slow to decode without torchcodec.
    cache_frames_gb: float = 0.0
    # Read the image tokenizer's latents from disk instead of computing them in every step. For mixtures, after
    # internvla-mixture cache-latents; not together with image augmentation.
    latent_cache: bool = False

    # Which camera is which: {"head": "observation.images.top", "left_wrist": ...}. None: known names are recognised.
    camera_slots: dict[str, str] | None = None

    # "absolute", or "relative" to the state at the chunk's start. Absolute targets leave the policy in both cases.
    action_representation: str = "absolute"
    # With relative actions: joints whose name contains one of these words stay absolute.
    absolute_joint_names: list[str] = field(default_factory=lambda: ["gripper"])
    # The same as indices, for datasets without joint names.
    absolute_joint_indices: list[int] | None = None
    # Joint names of action and state. Filled from the dataset in training.
    action_feature_names: list[str] | None = None
    state_feature_names: list[str] | None = None
    # LeRobot's name for the robot of the training data. Filled from the dataset; the policy server, whose client does
    # not tell what it drives, looks up action limits by it.
    robot_type: str | None = None
    # Which of the robots of a multi-robot policy this one drives, or is fine-tuned on; a new name adds a robot. null:
    # the only one that fits. Policies of one robot need none: there it names the preset or YAML file whose limits act.
    embodiment: str | None = None
    # Limit the commands that lerobot-rollout and the policy server send to the ranges and speeds of the robot's joints,
    # where an embodiment has them (docs/robots.md). Evaluation in simulation is never limited.
    limit_actions: bool = True
    # The robot that a YAML file described to the training of a policy of one robot, written by the program.
    described_embodiment: dict[str, Any] = field(default_factory=dict)
    # The robots of a policy that was trained on a mixture, written by the program; not a setting.
    embodiments: dict[str, Any] = field(default_factory=dict)
    # What the mixture of a training run consisted of, written by the program; a resumed run compares it.
    mixture_fingerprint: str | None = None
    # Normalisation when fine-tuning a checkpoint: statistics of the new "dataset", or those of the "checkpoint".
    statistics: str = "dataset"

    # Text tokenizer: Hub id, folder, or "byte". None: the checkpoint's own, else the base model's (tiny: byte).
    text_tokenizer: str | None = None
    # Image tokenizer: Hub id or folder. None: the checkpoint's own (tiny: built in). 3b and 2b from scratch need one.
    image_tokenizer: str | None = None
    # Precision of the frozen image tokenizer (bfloat16 in the released model).
    image_tokenizer_dtype: str = "bfloat16"
    # Vision-language model that training from scratch starts from: Hub id, folder, "auto" (the variant's own) or null
    # (random weights). Never read when a checkpoint is loaded.
    base_model: str | None = "auto"
    # Text model whose layers initialise the foresight and action experts: Hub id, folder, "auto" or null (random).
    expert_warm_start: str | None = None

    # Precision of the computation. bfloat16 runs under autocast with float32 master weights.
    dtype: str = "float32"
    # Precision in which the weights are kept. bfloat16 halves memory; meant for inference and frozen parts.
    weights_dtype: str = "float32"
    # Recompute activations in the backward pass (joint layers and vision tower).
    gradient_checkpointing: bool = False
    # Compile the sampler (inference).
    compile_model: bool = False
    compile_mode: str = "default"

    # What is not trained. Frozen parts include their heads and are not handed to the optimizer.
    freeze_vision_encoder: bool = False
    freeze_understanding: bool = False
    freeze_foresight: bool = False
    freeze_action: bool = False
    # Shorthand: train only the foresight and action experts / only the understanding expert.
    train_expert_only: bool = False
    train_vlm_only: bool = False
    # Experts that --peft.* adapts by default (attention and MLP; their heads are trained in full).
    peft_experts: list[str] = field(default_factory=lambda: list(EXPERTS))

    # Flow time in training: scale * Beta(alpha, beta) + offset; 1 is noise.
    time_sampling_beta_alpha: float = 1.5
    time_sampling_beta_beta: float = 1.0
    time_sampling_scale: float = 0.999
    time_sampling_offset: float = 0.001

    # Draws of noise and time per training sample. The observation is processed once, so further draws cost only the
    # action block; 1 in the paper. Worth raising for small models and small batches.
    flow_draws: int = 1

    # Optimizer and schedule (paper Table 2, post-training; "constant" is its pre-training schedule).
    optimizer_lr: float = 5e-5
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    lr_schedule: str = "cosine"
    scheduler_warmup_steps: int = 2000
    scheduler_decay_steps: int = 60_000
    scheduler_decay_lr: float = 5e-6

    # Write the imagined future as a video during lerobot-eval.
    save_predicted_video: bool = False
    # Show the imagined future beside the cameras during lerobot-rollout --display_data=true.
    live_foresight: bool = False

    # Format of the checkpoint folder, written by the program; not a setting.
    format_version: FormatVersion = FORMAT_VERSION

    # Parity with the reference implementation only (docs/differences_from_reference.md).
    reference_loss: bool = False
    reference_positions: bool = False

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for call in WHEN_CREATED:
            call()
        build_architecture(self.variant, self.architecture_overrides)
        problems = [
            f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        for name in ("chunk_size", "n_action_steps", "num_inference_steps", "foresight_interval", "flow_draws"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: must be at least 1")
        if self.n_action_steps > self.chunk_size:
            problems.append(
                f"n_action_steps={self.n_action_steps} is larger than chunk_size={self.chunk_size}: a chunk holds only "
                "chunk_size actions. Lower n_action_steps or raise chunk_size"
            )
        for name in ("lambda_gen", "noise_scale", "cache_frames_gb"):
            if getattr(self, name) < 0:
                problems.append(f"{name}={getattr(self, name)}: must not be negative")
        problems += self._interval_problems()
        if not self.use_foresight:
            if self.latent_cache:
                problems.append("latent_cache=true needs use_foresight=true: nothing is encoded without it")
            if self.save_predicted_video:
                problems.append("save_predicted_video=true needs use_foresight=true: nothing is imagined without it")
            if self.live_foresight:
                problems.append("live_foresight=true needs use_foresight=true: nothing is imagined without it")
            if self.freeze_foresight:
                problems.append(
                    "freeze_foresight=true with use_foresight=false: there is no generation expert to freeze"
                )
        if self.train_expert_only and self.train_vlm_only:
            problems.append("train_expert_only and train_vlm_only exclude each other: together they freeze everything")
        elif not self.trained_experts:
            problems.append("every expert is frozen: nothing is left to train. Unfreeze one of freeze_*")
        unknown = sorted(set(self.peft_experts) - set(EXPERTS))
        if unknown or not self.peft_experts:
            problems.append(f"peft_experts={self.peft_experts}: expected some of {', '.join(EXPERTS)}")
        not_identity = {k: v for k, v in self.normalization_mapping.items() if v is not NormalizationMode.IDENTITY}
        if not_identity:
            problems.append(
                f"normalization_mapping={ {k: v.value for k, v in not_identity.items()} }: the policy normalises by "
                "itself; a second normalisation in the processors would be wrong. Leave it at IDENTITY"
            )
        if problems:
            raise InternVLAError("policy configuration:\n  - " + "\n  - ".join(problems))

    def _interval_problems(self) -> list[str]:
        if self.foresight_interval_s is None:
            return []
        if self.fps is None and self.embodiments:
            return []  # every robot has its own rate
        if self.fps is None:
            return [
                f"foresight_interval_s={self.foresight_interval_s} needs the frame rate: pass "
                "--policy.fps=<dataset fps> (LeRobot picks frames before the policy can see the dataset), or give "
                "foresight_interval in frames"
            ]
        frames = self.foresight_interval_s * self.fps
        if frames < 0.5 or abs(frames - round(frames)) > 1e-3 * max(1.0, frames):
            return [
                f"foresight_interval_s={self.foresight_interval_s} is {frames:.3f} frames at {self.fps} fps, not a "
                f"whole number; the nearest interval that fits is {max(1, round(frames)) / self.fps:.4f} s"
            ]
        return []

    # ------------------------------------------------------------------ derived

    @property
    def architecture(self) -> Architecture:
        """Sizes of the model."""
        return build_architecture(self.variant, self.architecture_overrides)

    @property
    def interval_frames(self) -> int:
        """Frames between past, now and future, of the robot that ``embodiment`` names if there are several."""
        fps = self.fps
        if fps is None and self.embodiment is not None:
            fps = self.embodiments.get(self.embodiment, {}).get("fps")
        if self.foresight_interval_s is not None and fps is not None:
            return max(1, round(self.foresight_interval_s * fps))
        return self.foresight_interval

    @property
    def trained_experts(self) -> tuple[str, ...]:
        """Experts, with their heads, that training updates."""
        frozen = {
            "understanding": self.freeze_understanding or self.train_expert_only,
            "foresight": self.freeze_foresight or self.train_vlm_only or not self.use_foresight,
            "action": self.freeze_action or self.train_vlm_only,
        }
        return tuple(name for name in EXPERTS if not frozen[name])

    # ------------------------------------------------------------------ LeRobot contract

    @property
    def image_observation_delta_indices(self) -> list[int]:
        """Frames per camera, relative to now: past, now, future. At the ends of an episode LeRobot repeats the edge."""
        step = self.interval_frames
        return [-step, 0, step] if self.use_foresight else [0]

    @property
    def state_observation_delta_indices(self) -> list[int]:
        return [0]

    @property
    def observation_delta_indices(self) -> list[int]:
        """LeRobot 0.6.1 knows one list for cameras and state; the policy picks the state at "now" itself."""
        return self.image_observation_delta_indices

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> LRSchedulerConfig:
        if self.lr_schedule == "constant":
            return ConstantWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
        )

    def validate_features(self) -> None:
        """Check dims and cameras against the architecture.

        Raises:
            InternVLAError: no camera, no state, no action, vectors that are not one-dimensional or too wide.
        """
        architecture = self.architecture
        problems: list[str] = []
        for name, feature, limit in (
            (OBS_STATE, self.robot_state_feature, architecture.max_state_dim),
            (ACTION, self.action_feature, architecture.max_action_dim),
        ):
            if feature is None:
                problems.append(f"{name!r} is missing: the policy reads one state vector and writes one action vector")
            elif len(feature.shape) != 1:
                problems.append(f"{name!r} has shape {tuple(feature.shape)}; expected one vector (n,)")
            elif feature.shape[0] > limit:
                problems.append(f"{name!r} has {feature.shape[0]} dims; {self.variant} takes at most {limit}")
        if not self.image_features:
            others = [k for k, f in (self.input_features or {}).items() if f.type is not FeatureType.VISUAL]
            problems.append(
                f"no camera among the input features ({', '.join(others) or 'none at all'}): the policy needs 1 to 3. "
                "Record the dataset with cameras, or fix policy.input_features"
            )
        if problems:
            raise InternVLAError("The features do not fit InternVLA-A1:\n  - " + "\n  - ".join(problems))
