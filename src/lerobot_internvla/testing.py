"""Small, real things to try the library on: a configuration, a policy, batches, a dataset on disk. Public and offline.

    config = tiny_config(cameras=["top"], state_dim=7, action_dim=7)
    policy = tiny_policy(config)
    loss, metrics = policy.forward(tiny_batch(config))
    action = policy.select_action(tiny_batch(config, moment="tick"))
    dataset = tiny_dataset("/tmp/reach", cameras={"top": (48, 64)}, fps=30)
    mixture = load_mixture(tiny_mixture("/tmp/mixture"))  # four datasets of three robots

Nothing here is a mock: the policy is the "tiny" variant (the code path of "3b"), and the dataset is a LeRobotDataset v3
that ``lerobot-train`` reads. Everything is a pure function of its arguments.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import av.logging
import datasets
import numpy as np
import torch
import yaml
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from numpy.typing import NDArray

from .action_space import ActionSpace
from .configuration_internvla_a1 import InternVLAA1Config
from .embodiments.spec import Dim, Embodiment, Part
from .errors import InternVLAError
from .model.architecture import CAMERA_SLOTS
from .modeling_internvla_a1 import InternVLAA1Policy

TASKS: tuple[str, ...] = ("move the square to the left", "move the square to the right")
"""Instructions of ``tiny_batch`` and ``tiny_dataset``; they fit the prompt of every variant."""

_HAAR = {"kind": "haar", "image_size": [64, 64], "latent_channels": 48, "compression": 4}
_SPECIAL_TOKENS = {"vision_start": 256, "vision_end": 257, "image": 258, "pad": 259}
SMALL: dict[str, dict[str, Any]] = {
    "3b": {
        "understanding": {"hidden": 64, "mlp": 96},
        "expert": {"hidden": 48, "mlp": 64},
        "layers": 3,
        "query_heads": 4,
        "key_value_heads": 2,
        "head_width": 16,
        "rope_sections": [4, 2, 2],
        "vocabulary": 260,
        "vision": {
            "depth": 2,
            "hidden": 32,
            "mlp": 48,
            "heads": 2,
            "image_size": [64, 96],
            "position_embeddings": 16,
            "deepstack_layers": [1],
        },
        "view_size": [64, 64],
        "image_tokenizer": _HAAR,
        "special_tokens": _SPECIAL_TOKENS,
    },
    "2b": {
        "understanding": {"hidden": 48, "mlp": 64},
        "expert": {"hidden": 48, "mlp": 64},
        "layers": 3,
        "query_heads": 4,
        "key_value_heads": 2,
        "head_width": 12,
        "vocabulary": 260,
        "vision": {"depth": 2, "hidden": 32, "mlp": 48, "heads": 2, "image_size": [56, 56]},
        "view_size": [56, 56],
        "image_tokenizer": _HAAR,
        "special_tokens": _SPECIAL_TOKENS,
    },
    "tiny": {"layers": 3},
}
"""``architecture_overrides`` that shrink each variant to test size, with built-in tokenizers; see ``small_config``."""


def tiny_config(
    *,
    cameras: Sequence[str] = CAMERA_SLOTS,
    image_size: tuple[int, int] = (64, 64),
    state_dim: int = 4,
    action_dim: int = 4,
    **changes: Any,
) -> InternVLAA1Config:
    """A complete configuration of the smallest policy, on the CPU.

    Args:
        cameras: names without the prefix ``observation.images.``; 1 to 3, or more with ``camera_slots``.
        image_size: (height, width) of all cameras in pixels; the policy letterboxes any size.
        state_dim, action_dim: of the robot, at most 32.
        **changes: any field of ``InternVLAA1Config``. The defaults suit quick tests: 10 actions per chunk, of which 5
            are executed, 4 Euler steps, 3 frames between past, now and future.

    Raises:
        InternVLAError: ``changes`` contradict each other.
    """
    fields: dict[str, Any] = {
        "variant": "tiny",
        "device": "cpu",
        "push_to_hub": False,
        "chunk_size": 10,
        "n_action_steps": 5,
        "num_inference_steps": 4,
        "foresight_interval": 3,
        "input_features": {
            OBS_STATE: PolicyFeature(FeatureType.STATE, (state_dim,)),
            **{f"{OBS_IMAGES}.{name}": PolicyFeature(FeatureType.VISUAL, (3, *image_size)) for name in cameras},
        },
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))},
    }
    return InternVLAA1Config(**{**fields, **changes})


def small_config(variant: str, **changes: Any) -> InternVLAA1Config:
    """``tiny_config`` for the towers and experts of ``variant`` at the sizes of ``SMALL``.

    Args:
        variant: "3b", "2b" or "tiny".
        **changes: as for ``tiny_config``.
    """
    fields = {"architecture_overrides": SMALL[variant], "text_tokenizer": "byte", "base_model": None}
    return tiny_config(**{"variant": variant, **fields, **changes})


def tiny_policy(config: InternVLAA1Config | None = None, *, seed: int = 0, **changes: Any) -> InternVLAA1Policy:
    """A policy with random weights and identity statistics (robot units are the model's numbers), in evaluation mode.

    Args:
        config: None takes ``tiny_config(**changes)``.
        seed: of the weights; the global random state is left as it was.
        **changes: as for ``tiny_config``; only without ``config``.

    Raises:
        InternVLAError: both ``config`` and ``changes``, or a configuration that does not fit.
    """
    if config is not None and changes:
        raise InternVLAError(f"tiny_policy got a config and {', '.join(changes)}; pass these to tiny_config instead.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = InternVLAA1Policy(config or tiny_config(**changes))
    cast(ActionSpace, policy.action_space).set_identity()
    return policy.to(policy.config.device).eval()


def tiny_batch(
    config: InternVLAA1Config,
    batch_size: int = 2,
    *,
    moment: Literal["training", "tick"] = "training",
    seed: int = 0,
) -> dict[str, Any]:
    """Random numbers in the shape of LeRobot's batches, after its preprocessor, on ``config.device``.

    Args:
        config: with input and output features.
        moment: "training": cameras [B, T, 3, H, W] and state [B, T, D] at the offsets that the configuration asks for
            (past, now, future; T = 1 without foresight), actions [B, chunk_size, A], ``*_is_pad`` masks.
            "tick": one control tick, cameras [B, 3, H, W] and state [B, D].
        seed: of all values.
    """
    generator = torch.Generator().manual_seed(seed)
    offsets = config.observation_delta_indices
    leading = (batch_size, len(offsets)) if moment == "training" else (batch_size,)
    batch: dict[str, Any] = {"task": [TASKS[row % len(TASKS)] for row in range(batch_size)]}
    for key, feature in (config.input_features or {}).items():
        draw = torch.rand if feature.type is FeatureType.VISUAL else torch.randn
        batch[key] = draw((*leading, *feature.shape), generator=generator)
        if moment == "training":
            batch[f"{key}_is_pad"] = torch.zeros(leading, dtype=torch.bool)
    if moment == "training":
        assert config.action_feature is not None
        batch[ACTION] = torch.randn((batch_size, config.chunk_size, *config.action_feature.shape), generator=generator)
        batch["action_is_pad"] = torch.zeros(batch_size, config.chunk_size, dtype=torch.bool)
    return {k: v.to(config.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def tiny_dataset(
    root: str | Path,
    *,
    repo_id: str = "local/tiny",
    episode_lengths: Sequence[int] = (12, 16, 9),
    cameras: Mapping[str, tuple[int, int]] | Sequence[str] = CAMERA_SLOTS,
    joint_names: Sequence[str] = ("shoulder", "elbow", "wrist", "gripper"),
    state_names: Sequence[str] | None = None,
    fps: int = 10,
    video: bool = True,
    seed: int = 0,
) -> LeRobotDataset:
    """Record a dataset of a few short episodes, through LeRobot's own recording API.

    Every joint swings as a sine, the action is the state of the next tick (an absolute target), and every camera shows
    a square that stands where the first two joints are: small, but the future can be predicted from the past.

    Args:
        root: folder to create.
        repo_id: name of the dataset, owner/name; nothing is uploaded.
        episode_lengths: frames of each episode; tasks alternate between ``TASKS``.
        cameras: names, or names with (height, width) in pixels; 64 x 64 otherwise. May be empty.
        joint_names: of the action's dims.
        state_names: of the state's dims; None takes ``joint_names``.
        fps: frames per second.
        video: store cameras as video (H.264); False stores PNG images, which are exact.
        seed: of phases and colours.

    Returns:
        the finished dataset, opened for reading.

    Raises:
        InternVLAError: ``root`` exists.
    """
    root = Path(root)
    if root.exists():
        raise InternVLAError(f"{root} exists already; choose another folder, or remove it yourself.")
    sizes = dict(cameras) if isinstance(cameras, Mapping) else dict.fromkeys(cameras, (64, 64))
    state_names = joint_names if state_names is None else state_names
    features: dict[str, dict[str, Any]] = {
        OBS_STATE: {"dtype": "float32", "shape": (len(state_names),), "names": list(state_names)},
        ACTION: {"dtype": "float32", "shape": (len(joint_names),), "names": list(joint_names)},
    }
    for name, size in sizes.items():
        features[f"{OBS_IMAGES}.{name}"] = {
            "dtype": "video" if video else "image",
            "shape": (*size, 3),
            "names": ["height", "width", "channels"],
        }
    dataset = LeRobotDataset.create(
        repo_id=repo_id,
        fps=fps,
        features=features,
        root=root,
        robot_type="tiny",
        use_videos=video,
        video_backend="pyav",
        # A keyframe every second frame: LeRobot reads frames in random order.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", g=2, crf=18, preset="veryfast") if video else None,
        # One encoder thread per camera, instead of processes forked from a program that has threads; LeRobot drops
        # frames when the queue is full.
        streaming_encoding=video,
        encoder_queue_maxsize=max(episode_lengths) + 1,
        encoder_threads=1,
    )
    generator = np.random.default_rng(seed)
    with _quiet():
        for episode, length in enumerate(episode_lengths):
            joints = max(len(state_names), len(joint_names))
            phase, period = generator.uniform(0, 2 * np.pi, joints), generator.uniform(20, 40, joints)
            ticks = np.arange(length + 1)[:, None]
            path = np.sin(phase + 2 * np.pi * ticks / period).astype(np.float32)
            for tick in range(length):
                frame: dict[str, Any] = {
                    OBS_STATE: path[tick, : len(state_names)],
                    ACTION: path[tick + 1, : len(joint_names)],
                    "task": TASKS[episode % len(TASKS)],
                }
                for view, (name, size) in enumerate(sizes.items()):
                    frame[f"{OBS_IMAGES}.{name}"] = _picture(
                        size, view, across=float(path[tick, 0]), down=float(path[tick, 1 % joints])
                    )
                dataset.add_frame(frame)
            dataset.save_episode()
        dataset.finalize()
    return LeRobotDataset(repo_id, root=root, video_backend="pyav")


TINY_MIXTURE = """\
foresight_interval_s: 0.5
sources:
  arm: {root: arm, embodiment: tiny_arm.yaml, weight: 0.4}
  slider: {root: slider, embodiment: tiny_slider.yaml, weight: 0.3}
  fast_slider: {root: fast_slider, embodiment: tiny_slider.yaml, weight: 0.1, fps: 10}
  people: {root: people, embodiment: tiny_people.yaml, weight: 0.2, supervision: foresight}
"""
"""The file of ``tiny_mixture``. Foresight looks 15, 5, 10 and 5 frames of the datasets back and ahead."""


def tiny_mixture(root: str | Path, *, video: bool = True, seed: int = 0) -> Path:
    """Record four small datasets of three robots that have little in common, and a mixture file over them.

        source       robot        fps             cameras (height, width)            dims of state and action
        arm          tiny_arm     30              top (48, 64), wrist (48, 64)       4, relative but the gripper
        slider       tiny_slider  10              front (64, 64)                     3, relative but the gripper
        fast_slider  tiny_slider  20, used at 10  front (64, 64), unused (16, 16)    the same 3
        people       tiny_people  10              eyes (64, 48)                      none: foresight only

    Every source has 2 episodes; shares are those of ``TINY_MIXTURE``.

    Args:
        root: folder to create; it holds one folder per dataset, one file per robot, and ``mixture.yaml``.
        video: as for ``tiny_dataset``.
        seed: of all datasets.

    Returns:
        the mixture file, for ``load_mixture`` and ``lerobot-train --dataset.root=<file>``.

    Raises:
        InternVLAError: ``root`` exists.
    """
    root = Path(root)
    if root.exists():
        raise InternVLAError(f"{root} exists already; choose another folder, or remove it yourself.")
    root.mkdir(parents=True)
    joints, axes = ("shoulder", "elbow", "wrist", "gripper"), ("x", "y", "gripper")
    recordings: tuple[tuple[str, int, dict[str, tuple[int, int]], tuple[str, ...], tuple[int, ...]], ...] = (
        ("arm", 30, {"top": (48, 64), "wrist": (48, 64)}, joints, (40, 33)),
        ("slider", 10, {"front": (64, 64)}, axes, (30, 24)),
        ("fast_slider", 20, {"front": (64, 64), "unused": (16, 16)}, axes, (28, 36)),
        ("people", 10, {"eyes": (64, 48)}, joints, (16, 21)),  # it has joints like every dataset; the robot has none
    )
    for index, (name, fps, cameras, names, lengths) in enumerate(recordings):
        tiny_dataset(
            root / name,
            repo_id=f"local/{name}",
            episode_lengths=lengths,
            cameras=cameras,
            joint_names=names,
            fps=fps,
            video=video,
            seed=len(recordings) * seed + index,
        )
    for robot in (
        _tiny_robot("tiny_arm", joints, {"head": ("top",), "left_wrist": ("wrist",)}, fps=30.0),
        _tiny_robot("tiny_slider", axes, {"head": ("front",)}, fps=10.0),
        _tiny_robot("tiny_people", (), {"head": ("eyes",)}, fps=10.0),
    ):
        text = yaml.safe_dump(robot.to_dict(), sort_keys=False)
        (root / f"{robot.name}.yaml").write_text(text, encoding="utf-8")
    (root / "mixture.yaml").write_text(TINY_MIXTURE, encoding="utf-8")
    return root / "mixture.yaml"


def _tiny_robot(name: str, joints: Sequence[str], cameras: Mapping[str, tuple[str, ...]], *, fps: float) -> Embodiment:
    """The robot of a ``tiny_dataset``, in which every joint swings between -1 and 1."""
    state = tuple(Dim(joint, "-1..1") for joint in joints)
    action = tuple(Dim(joint, "-1..1", relative=joint != "gripper") for joint in joints)
    return Embodiment(
        name=name,
        title=name.replace("_", " "),
        robot_types=(name,),
        state=(Part(OBS_STATE, state),) if joints else (),
        action=(Part(ACTION, action),) if joints else (),
        cameras=cameras,
        gripper="-1 and 1 are the ends of a sine" if joints else "none",
        fps=fps,
        source="lerobot_internvla.testing",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No statistics of the video encoder and no progress bar per table of a few rows."""
    datasets.disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)
    try:
        yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)
        datasets.enable_progress_bars()


def _picture(size: tuple[int, int], view: int, *, across: float, down: float) -> NDArray[np.uint8]:
    """A bright square on a background whose shade tells the camera; ``across`` and ``down`` in [-1, 1]."""
    height, width = size
    side = max(2, min(size) // 4)
    picture = np.full((height, width, 3), 30 + 25 * view, dtype=np.uint8)
    top = round((down + 1) / 2 * (height - side))
    left = round((across + 1) / 2 * (width - side))
    picture[top : top + side, left : left + side] = (230, 180 - 60 * (view % 3), 60 + 60 * (view % 3))
    return picture
