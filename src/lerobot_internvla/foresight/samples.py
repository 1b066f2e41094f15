"""Imagine: what the policy expects to see one interval ahead, beside what really happened.

    LeRobotDataset, offsets as in training -> past, now ----> policy.predict_foresight -> predicted
                                           -> future -------> image tokenizer          -> true, reconstruction

``imagine`` answers for chosen frames of a dataset with one ``ForesightSample`` each: pictures per camera slot, and
their squared errors beside those of two baselines. Copying the current frame is what a policy scores that knows nothing
of the future; the image tokenizer's reconstruction of the true frame is about the best that any prediction could score.

Axes: V camera views in the order of ``camera_slots``, height x width pixels of the image tokenizer.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.embodiments.rows import choose_robot, read_rows
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.foresight.psnr import psnr_db, scene_box, squared_error
from lerobot_internvla.images import Box, letterbox
from lerobot_internvla.model.internvla_a1 import InternVLAA1

logger = logging.getLogger(__name__)

CAMERA_IS_PRESENT = "observation.camera_is_present"
"""Optional dataset feature, [V] bool: which camera slots a frame really has. The policy reads the same key."""


def _require_ours(policy: PreTrainedPolicy) -> InternVLAA1:
    """The model of an InternVLAA1Policy. (This package lies below the policy and does not import its class.)

    Raises:
        InternVLAError: another policy, or ours inside a PEFT wrapper.
    """
    model = getattr(policy, "model", None)
    if not isinstance(getattr(policy, "config", None), InternVLAA1Config) or not isinstance(model, InternVLAA1):
        raise InternVLAError(
            f"Foresight is drawn for an InternVLAA1Policy; this one is {type(policy).__name__}. With a PEFT adapter "
            "pass policy.get_base_model(): the adapter's layers are inside."
        )
    return model


# ------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Moment:
    """One frame of a dataset."""

    index: int
    """Position in the dataset as it was opened: ``dataset[index]``."""
    episode: int
    frame: int
    """Frames since the start of the episode."""
    time_s: float
    """Seconds since the start of the episode."""
    task: str


@dataclass(frozen=True)
class SquaredErrors:
    """Mean squared errors against the true future frame, images in [0, 1], letterbox bars excluded.

    nan where there is nothing to compare with: a missing camera, or a moment so late that the episode ends before.
    """

    prediction: Float[Tensor, " view"]
    copy_of_now: Float[Tensor, " view"]
    """Baseline: the current frame, as if nothing moved."""
    reconstruction: Float[Tensor, " view"]
    """Bound: the true frame, encoded and decoded. Zero up to rounding for the Haar image tokenizer."""

    def psnr_db(self, method: str, view: int) -> float:
        """PSNR in dB of one method ("prediction", "copy_of_now", "reconstruction") in one view."""
        return psnr_db(float(getattr(self, method)[view]))


@dataclass(frozen=True)
class ForesightSample:
    """One moment, seen by every camera. Images are RGB in [0, 1], as the image tokenizer sees them, bars included."""

    moment: Moment
    interval_s: float
    """Seconds between past and now, and between now and the future."""
    camera_slots: tuple[str, ...]
    scene: tuple[Box, ...]
    """Per view, where its picture shows the scene rather than letterbox bars."""
    past: Float[Tensor, "view 3 height width"]
    now: Float[Tensor, "view 3 height width"]
    predicted: Float[Tensor, "view 3 height width"]
    true: Float[Tensor, "view 3 height width"]
    """The last frame of the episode where ``future_is_valid`` is False."""
    reconstruction: Float[Tensor, "view 3 height width"]
    camera_is_present: Bool[Tensor, " view"]
    past_is_valid: Bool[Tensor, " view"]
    """False at the start of an episode, where the first frame stands in for the past, as in training."""
    future_is_valid: Bool[Tensor, " view"]
    """False at the end of an episode."""
    errors: SquaredErrors


# ------------------------------------------------------------------------------------------------------------ dataset


def interval_in_frames(config: InternVLAA1Config, dataset_fps: float | int) -> int:
    """Frames of a dataset between now and the future that the policy imagines.

    The policy learned an interval in seconds. A dataset with another frame rate is read with as many frames as fill the
    same time; a policy that does not know its own frame rate gets the frames it was configured with.

    Raises:
        InternVLAError: the policy was built without foresight, or the interval is not a whole number of frames.
    """
    if not config.use_foresight:
        raise InternVLAError(
            "This policy was built with use_foresight=false: it has no generation expert and cannot imagine the "
            "future. Use a checkpoint that was trained with --policy.use_foresight=true."
        )
    if config.fps is None and config.foresight_interval_s is not None:
        # Several robots, each with its own rate: training rounds to whole frames, too.
        return max(1, round(config.foresight_interval_s * dataset_fps))
    if config.fps is None:
        return config.interval_frames
    seconds = config.interval_frames / config.fps
    frames = seconds * dataset_fps
    if round(frames) < 1 or abs(frames - round(frames)) > 1e-3 * max(1.0, frames):
        raise InternVLAError(
            f"The policy imagines {config.interval_frames} frames at {config.fps:g} fps ahead, {seconds:g} s. At the "
            f"dataset's {dataset_fps:g} fps that is {frames:.3f} frames, not a whole number. Use a dataset recorded at "
            f"{config.fps:g} fps or a multiple of it."
        )
    return round(frames)


def slots_of_dataset(
    config: InternVLAA1Config,
    camera_slots: Mapping[str, str],
    meta: LeRobotDatasetMetadata,
    rename_map: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The cameras that a dataset must have: the policy's, or those of the dataset's robot in a policy of several.

    The robot is the one that ``config.embodiment`` names, else the only one with a state of the dataset's width; it is
    noted in ``config.embodiment``.

    Raises:
        InternVLAError: none or more than one fits.
    """
    if not config.embodiments:
        return dict(camera_slots)
    state = meta.features.get(_dataset_names(rename_map).get(OBS_STATE, OBS_STATE))
    rows = read_rows(config.embodiments)
    config.embodiment = choose_robot(rows, config.embodiment, state_dim=None if state is None else state["shape"][0])
    mine = rows[config.embodiment].embodiment.cameras
    return {slot: key for slot, key in camera_slots.items() if slot in mine}


def check_dataset(
    config: InternVLAA1Config,
    camera_slots: Mapping[str, str],
    meta: LeRobotDatasetMetadata,
    rename_map: Mapping[str, str] | None = None,
) -> int:
    """Whether a dataset can be shown to a policy; needs neither weights nor frames.

    Args:
        config: of the policy.
        camera_slots: slot -> feature key, as the policy resolved them.
        meta: of the dataset.
        rename_map: dataset key -> policy key, as ``--rename_map`` of LeRobot's commands.

    Returns:
        Frames between now and the imagined future (see ``interval_in_frames``).

    Raises:
        InternVLAError: no cameras, other cameras or state dims than the policy, a frame rate that does not fit.
    """
    frames = interval_in_frames(config, float(meta.fps))
    camera_slots = slots_of_dataset(config, camera_slots, meta, rename_map)
    names = _dataset_names(rename_map)
    problems: list[str] = []
    cameras = [key for key in meta.camera_keys if key not in meta.depth_keys]
    missing = [key for key in camera_slots.values() if names.get(key, key) not in cameras]
    if not cameras:
        problems.append("it has no camera; foresight compares pictures. Record it with the policy's cameras")
    elif missing:
        problems.append(
            f"its cameras are {', '.join(cameras)}; the policy sees "
            f"{', '.join(f'{slot} = {key}' for slot, key in camera_slots.items())}. Missing: {', '.join(missing)}. "
            f'Name the corresponding ones: --rename_map=\'{{"<dataset camera>": "{missing[0]}"}}\''
        )
    state = meta.features.get(names.get(OBS_STATE, OBS_STATE))
    feature = config.robot_state_feature
    expected = None if feature is None else tuple(feature.shape)
    if config.embodiments and config.embodiment is not None:
        expected = (read_rows(config.embodiments)[config.embodiment].embodiment.state_dim,)
    if state is None:
        problems.append(f"it has no {OBS_STATE!r}, which the policy reads")
    elif expected is not None and tuple(state["shape"]) != expected:
        problems.append(f"its state has shape {tuple(state['shape'])}; the policy was trained on {expected}")
    if problems:
        raise InternVLAError(f"Dataset {meta.repo_id!r} does not fit this policy:\n  - " + "\n  - ".join(problems))
    return frames


def check_policy_and_dataset(
    policy: PreTrainedPolicy, meta: LeRobotDatasetMetadata, rename_map: Mapping[str, str] | None = None
) -> int:
    """``check_dataset`` for a policy in memory.

    Raises:
        InternVLAError: as ``check_dataset``, or the policy is not ours.
    """
    _require_ours(policy)
    ours = cast(Any, policy)
    return check_dataset(ours.config, ours.camera_slots, meta, rename_map)


def _dataset_names(rename_map: Mapping[str, str] | None) -> dict[str, str]:
    """Policy key -> dataset key."""
    return {policy_key: dataset_key for dataset_key, policy_key in (rename_map or {}).items()}


def foresight_delta_timestamps(
    camera_slots: Mapping[str, str], frames_ahead: int, fps: float | int, rename_map: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """``delta_timestamps`` for LeRobotDataset: past, now and future of every camera that the policy sees."""
    names = _dataset_names(rename_map)
    step = frames_ahead / fps
    return {names.get(key, key): [-step, 0.0, step] for key in camera_slots.values()}


def _with_offsets(dataset: LeRobotDataset, wanted: dict[str, list[float]]) -> LeRobotDataset:
    """The dataset itself where it gives past, now and future already; else the same opened anew, untransformed."""
    if dataset.delta_timestamps == wanted and dataset.image_transforms is None:
        return dataset
    return LeRobotDataset(
        dataset.repo_id,
        root=dataset.root,
        episodes=dataset.episodes,
        delta_timestamps=wanted,
        tolerance_s=dataset.tolerance_s,
        revision=dataset.revision,
        video_backend=getattr(dataset, "_video_backend", None),
        return_uint8=True,
    )


def episode_positions(dataset: LeRobotDataset) -> dict[int, range]:
    """Episode -> its positions in ``dataset``, which may hold only some of the episodes."""
    positions: dict[int, range] = {}
    rows: Any = dataset.meta.episodes
    start = 0
    for episode in sorted(dataset.episodes) if dataset.episodes is not None else range(dataset.meta.total_episodes):
        length = int(rows[episode]["length"])
        positions[episode] = range(start, start + length)
        start += length
    return positions


def choose_frames(dataset: LeRobotDataset, frames_ahead: int, count: int, seed: int) -> list[int]:
    """``count`` different positions whose future lies in the same episode, in order; the same for the same seed.

    Fewer when the dataset has fewer.

    Raises:
        InternVLAError: no episode is longer than the interval.
    """
    positions = [i for where in episode_positions(dataset).values() for i in where[: max(0, len(where) - frames_ahead)]]
    if not positions:
        raise InternVLAError(
            f"No episode of {dataset.repo_id!r} is longer than the policy's interval of {frames_ahead} frames: there "
            "is no future to compare with. Use longer episodes."
        )
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    return sorted(positions[i] for i in order[:count].tolist())


# ------------------------------------------------------------------------------------------------------------ imagine


def imagine(
    policy: PreTrainedPolicy,
    dataset: LeRobotDataset,
    frame_indices: Sequence[int],
    batch_size: int = 8,
    *,
    rename_map: Mapping[str, str] | None = None,
) -> list[ForesightSample]:
    """Predicted and true future of chosen frames.

    Args:
        policy: with foresight, on any device.
        dataset: any LeRobotDataset with the policy's cameras; it need not have delta timestamps.
        frame_indices: positions in ``dataset``; frames without a future are allowed and have no error.
        batch_size: frames per forward pass.
        rename_map: dataset key -> policy key, where the names differ.

    Returns:
        One sample per index, in the same order, on the CPU.

    Raises:
        InternVLAError: policy without foresight; other cameras, state dims or frame rate; an index out of range.
    """
    return list(iterate_imagined(policy, dataset, frame_indices, batch_size, rename_map=rename_map))


def iterate_imagined(
    policy: PreTrainedPolicy,
    dataset: LeRobotDataset,
    frame_indices: Sequence[int],
    batch_size: int = 8,
    *,
    rename_map: Mapping[str, str] | None = None,
) -> Iterator[ForesightSample]:
    """``imagine``, one sample after the other: a whole episode need not fit in memory."""
    if batch_size < 1:
        raise InternVLAError(f"batch_size={batch_size}: expected at least 1.")
    frames_ahead, fps = check_policy_and_dataset(policy, dataset.meta, rename_map), dataset.meta.fps
    ours = cast(Any, policy)
    slots = slots_of_dataset(ours.config, ours.camera_slots, dataset.meta, rename_map)
    if ours.rows:
        ours.act_as(ours.config.embodiment)
    dataset = _with_offsets(dataset, foresight_delta_timestamps(slots, frames_ahead, fps, rename_map))
    outside = [index for index in frame_indices if not 0 <= index < len(dataset)]
    if outside:
        raise InternVLAError(f"Frames {outside} are not in the dataset; it has 0 to {len(dataset) - 1}.")
    names = _dataset_names(rename_map)
    for start in range(0, len(frame_indices), batch_size):
        indices = frame_indices[start : start + batch_size]
        items: list[Any] = [dataset[index] for index in indices]
        yield from _imagine_batch(policy, items, indices, slots, names, frames_ahead / fps)


@torch.no_grad()
def _imagine_batch(
    policy: PreTrainedPolicy,
    items: list[dict[str, Any]],
    indices: Sequence[int],
    slots: Mapping[str, str],
    names: Mapping[str, str],
    interval_s: float,
) -> list[ForesightSample]:
    model, ours = _require_ours(policy), cast(Any, policy)
    device = next(model.parameters()).device
    keys = {slot: (key, names.get(key, key)) for slot, key in slots.items()}
    frames = {key: torch.stack([item[stored] for item in items]).to(device) for key, stored in keys.values()}
    state = torch.stack([item[names.get(OBS_STATE, OBS_STATE)] for item in items]).to(device)
    batch: dict[str, Any] = {
        # The policy is handed past and now only: it cannot see what it is asked to predict.
        **{key: pictures[:, :2] for key, pictures in frames.items()},
        OBS_STATE: state,
        "task": [item["task"] for item in items],
    }
    present = torch.ones(len(items), len(keys), dtype=torch.bool)
    if CAMERA_IS_PRESENT in items[0]:
        present = torch.stack([item[CAMERA_IS_PRESENT].bool() for item in items])
        batch[CAMERA_IS_PRESENT] = present.to(device)
    _, predicted = ours.predict_foresight(batch)
    # A robot of a policy of several may have fewer cameras; what is imagined for the others shows nothing.
    predicted = predicted[:, [list(ours.camera_slots).index(slot) for slot in slots]]

    architecture = model.architecture
    view_size, image_size = architecture.view_size, architecture.image_tokenizer.image_size
    pictures = torch.stack([_as_encoded(f, view_size, image_size) for f in frames.values()], dim=1)
    past, now, true = pictures.unbind(dim=2)
    reconstruction = model.decode_latents(model.encode_frames(true[:, :, None])[:, :, 0])
    scene = tuple(scene_box(f.shape[-2], f.shape[-1], view_size, image_size) for f in frames.values())

    pads = torch.stack(
        [torch.stack([item[f"{stored}_is_pad"] for item in items]) for _, stored in keys.values()], dim=1
    )
    counts = present & ~pads[:, :, 2]
    errors = [squared_error(x, true, scene).cpu() for x in (predicted, now, reconstruction)]
    errors = [torch.where(counts, error, torch.nan) for error in errors]
    past, now, predicted, true, reconstruction = (x.float().cpu() for x in (past, now, predicted, true, reconstruction))
    return [
        ForesightSample(
            moment=Moment(
                index=int(index),
                episode=int(item["episode_index"]),
                frame=int(item["frame_index"]),
                time_s=float(item["timestamp"]),
                task=item["task"],
            ),
            interval_s=interval_s,
            camera_slots=tuple(keys),
            scene=scene,
            past=past[i],
            now=now[i],
            predicted=predicted[i],
            true=true[i],
            reconstruction=reconstruction[i],
            camera_is_present=present[i],
            past_is_valid=~pads[i, :, 0],
            future_is_valid=~pads[i, :, 2],
            errors=SquaredErrors(*(error[i] for error in errors)),
        )
        for i, (index, item) in enumerate(zip(indices, items, strict=True))
    ]


def _as_encoded(
    frames: Tensor, view_size: tuple[int, int], image_size: tuple[int, int]
) -> Float[Tensor, "batch time 3 height width"]:
    """Frames [B, T, 3, H, W] of a camera, letterboxed and resized to what the image tokenizer encodes."""
    views = letterbox(frames, view_size).float()
    if tuple(view_size) == tuple(image_size):
        return views
    resized = F.interpolate(views.flatten(0, 1), size=image_size, mode="bilinear", align_corners=False)
    return resized.unflatten(0, frames.shape[:2])
