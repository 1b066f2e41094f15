"""Writing the latents of a mixture: what is missing, whether it fits, frame after frame, and a look at the result.

    plan = plan_latents(mixture, recipe)        # what is there already is left alone
    write_latents(plan, tokenizer, ...)         # one file per episode and camera; each appears whole
    verify_latents(mixture, cache, ...)         # random samples against what training would compute by itself

A run that was interrupted goes on where it stopped when it is started again.
"""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.utils.import_utils import get_safe_default_video_backend
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]  # partly typed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lerobot_internvla.batch_keys import CACHED_LATENTS
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.encoding import encode_frames
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer
from lerobot_internvla.images import letterbox

from .canonical import CAMERA_KEYS, SampleShape, stacked, to_view
from .latent_cache import (
    BLACK,
    MANIFEST,
    TENSOR,
    LatentCache,
    LatentRecipe,
    episode_file,
    find_latents,
    latent_places,
    missing_latents,
)
from .mixture_dataset import MixtureDataset, ReadSettings
from .source_reader import SourceReader
from .sources import Mixture, Source

TOLERATED = 0.1
"""Root mean square of a difference, relative to that of the latents, that another batch size or device may make;
latents of another picture are about as far away as latents are large."""


@dataclass(frozen=True)
class SourcePlan:
    """What is to be written for one source."""

    source: Source
    folder: Path
    episodes: tuple[int, ...]
    """Places in ``source.episodes`` of which a camera, or all, are missing."""

    @property
    def frames(self) -> int:
        """Frames of one camera."""
        return int(self.source.episode_lengths[list(self.episodes)].sum())

    @property
    def pictures(self) -> int:
        """Frames over all cameras: what is encoded."""
        return self.frames * len(self.source.features.cameras)


@dataclass(frozen=True)
class LatentPlan:
    """What is to be written for a mixture."""

    recipe: LatentRecipe
    sources: tuple[SourcePlan, ...]
    present_files: int

    @property
    def pictures(self) -> int:
        return sum(plan.pictures for plan in self.sources)

    @property
    def files(self) -> int:
        return sum(len(plan.episodes) * len(plan.source.features.cameras) for plan in self.sources)

    @property
    def bytes(self) -> int:
        """Disk space that writing will take."""
        return self.pictures * self.recipe.bytes_per_frame

    def refuse_if_too_large(self) -> None:
        """Raise InternVLAError unless every disk has room for its part."""
        needed: dict[int, int] = {}
        free: dict[int, tuple[int, Path]] = {}
        for plan in self.sources:
            disk = _existing(plan.folder)
            device = disk.stat().st_dev
            needed[device] = needed.get(device, 0) + plan.pictures * self.recipe.bytes_per_frame
            free[device] = (shutil.disk_usage(disk).free, disk)
        lines = [
            f"{gigabytes(size)} are needed on the disk of {free[device][1]}, and {gigabytes(free[device][0])} are free"
            for device, size in needed.items()
            if size > free[device][0]
        ]
        if lines:
            raise InternVLAError(
                "The latents do not fit:\n  - " + "\n  - ".join(lines) + "\nNothing was written. Free some space, "
                "use fewer episodes in the mixture file, or make <dataset>/latents a symbolic link to a folder on a "
                "larger disk."
            )


def plan_latents(mixture: Mixture, recipe: LatentRecipe) -> LatentPlan:
    """What is missing, and where it will go: to where a part is already, else beside the dataset, else to the cache of
    this package (``latent_places``)."""
    plans: list[SourcePlan] = []
    present = 0
    for source in mixture.sources:
        folder = find_latents(source, recipe.fingerprint)
        if folder is None:
            places = latent_places(source)
            # A place for which a folder can be made; the last one is ours.
            chosen = next((place for place in places if os.access(_existing(place), os.W_OK)), places[-1])
            folder = chosen / recipe.fingerprint
        missing = missing_latents(source, folder)
        episodes = tuple(sorted({place for place, _ in missing}))
        present += (source.num_episodes - len(episodes)) * len(source.features.cameras)
        plans.append(SourcePlan(source, folder, episodes))
    return LatentPlan(recipe, tuple(plans), present)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def gigabytes(size: int) -> str:
    """For people."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


class _Chunks(Dataset[dict[str, Tensor]]):
    """Consecutive frames of one source, in view size: chunk after chunk, episode after episode."""

    def __init__(self, plan: SourcePlan, reader: SourceReader, view_size: tuple[int, int], frames: int) -> None:
        self.plan, self.reader, self.view_size, self.frames = plan, reader, view_size, frames
        self.chunks = [
            (place, start)
            for place in plan.episodes
            for start in range(0, int(plan.source.episode_lengths[place]), frames)
        ]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """camera -> uint8 [frames, 3, height, width]; fewer at the end of an episode."""
        place, start = self.chunks[index]
        source = self.plan.source
        count = min(self.frames, int(source.episode_lengths[place]) - start)
        item = self.reader[int(source.episode_starts[place]) + start]
        return {
            # Frames past the end of the episode are its last one again.
            camera: to_view(stacked(item[camera], self.frames)[:count], self.view_size)
            for camera in source.features.cameras.values()
        }


def encode_views(views: Tensor, tokenizer: ImageTokenizer, recipe: LatentRecipe, device: torch.device) -> Tensor:
    """uint8 views [n, 3, height, width] to latents [n, C, h, w] in the recipe's dtype, on the CPU; pixel for pixel as
    ``lerobot-train`` and the policy do it (which divide by 255 on the CPU)."""
    pixels = letterbox(views, recipe.view_size).to(device)
    return encode_frames(tokenizer, pixels, recipe.image_size).to(recipe.dtype).cpu()


def write_latents(
    plan: LatentPlan,
    tokenizer: ImageTokenizer,
    *,
    device: str = "cpu",
    batch_size: int = 32,
    num_workers: int = 0,
    video_backend: str | None = None,
    tolerance_s: float = 1e-4,
    progress: bool = True,
) -> None:
    """Write everything that is missing.

    Args:
        plan: from ``plan_latents``.
        tokenizer: the one of ``plan.recipe``, on ``device``.
        batch_size: frames that are encoded at once.
        num_workers: processes that decode.
        video_backend, tolerance_s: as in training.

    Raises:
        InternVLAError: it does not fit on the disk; then nothing is written.
    """
    plan.refuse_if_too_large()
    recipe, where = plan.recipe, torch.device(device)
    conditions = {
        "device": where.type,
        "batch_size": batch_size,
        "video_backend": video_backend or get_safe_default_video_backend(),
        "torch": torch.__version__,
    }
    black = encode_views(torch.zeros(1, 3, *recipe.view_size, dtype=torch.uint8), tokenizer, recipe, where)
    for part in plan.sources:
        part.folder.mkdir(parents=True, exist_ok=True)
        if not (part.folder / BLACK).is_file():
            _save(black, part.folder / BLACK)
        manifest = {"recipe": recipe.to_dict(), "dataset": part.source.repo_id, "written_with": conditions}
        _write_whole(part.folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    bar = tqdm(total=plan.pictures, desc="latents", unit="frame", disable=not (progress and plan.files), smoothing=0.05)
    with bar:
        written = 0
        for part in plan.sources:
            if part.episodes:
                for episode_bytes in _write_source(
                    part, recipe, tokenizer, where, batch_size, num_workers, video_backend, tolerance_s, bar
                ):
                    written += episode_bytes
                    bar.set_postfix_str(f"{gigabytes(written)} of {gigabytes(plan.bytes)}, {part.source.name}")


def _write_source(
    part: SourcePlan,
    recipe: LatentRecipe,
    tokenizer: ImageTokenizer,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    video_backend: str | None,
    tolerance_s: float,
    bar: Any,
) -> Iterator[int]:
    """Yields the bytes of every episode, once they are on the disk."""
    source = part.source
    steps = [step / source.dataset_fps for step in range(batch_size)]
    reader = SourceReader(
        source,
        list(part.episodes) if source.from_hub else None,
        delta_timestamps=dict.fromkeys(source.features.cameras.values(), steps),
        tolerance_s=tolerance_s,
        video_backend=video_backend,
    )
    chunks = _Chunks(part, reader, recipe.view_size, batch_size)
    loader = DataLoader(chunks, batch_size=None, shuffle=False, num_workers=num_workers)
    done: dict[str, list[Tensor]] = {}
    for (place, start), views in zip(chunks.chunks, loader, strict=True):
        for camera, frames in views.items():
            done.setdefault(camera, []).append(encode_views(frames, tokenizer, recipe, device))
            bar.update(len(frames))
        if start + batch_size >= int(source.episode_lengths[place]):
            size = 0
            for camera, parts in done.items():
                latents = torch.cat(parts)
                _save(latents, episode_file(part.folder, camera, source.episodes[place]))
                size += latents.nbytes
            done = {}
            yield size


def _save(latents: Tensor, path: Path) -> None:
    """The file is there once it is complete and on the disk, and not before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".unfinished")
    save_file({TENSOR: latents.contiguous()}, draft)
    _publish(draft, path)


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_suffix(".unfinished")
    draft.write_text(text, encoding="utf-8")
    _publish(draft, path)


def _publish(draft: Path, path: Path) -> None:
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    draft.replace(path)


@dataclass(frozen=True)
class Verification:
    """What a comparison of cached with freshly computed latents found."""

    samples: int
    identical: int
    """Samples that are equal to the last bit."""
    largest: float
    """Difference of two latents."""
    relative: float
    """Root mean square of the difference, relative to that of the latents; of the worst sample."""

    def __str__(self) -> str:
        if self.identical == self.samples:
            return f"{self.samples} samples verified: equal to the last bit to what training computes by itself"
        return (
            f"{self.samples} samples verified: {self.identical} equal to the last bit to what training computes by "
            f"itself; the others differ by at most {self.largest:.3g} (root mean square {self.relative:.2%} of the "
            "latents'), as results of another batch size do"
        )


def verify_latents(
    mixture: Mixture,
    cache: LatentCache,
    tokenizer: ImageTokenizer,
    shape: SampleShape,
    *,
    samples: int,
    device: str = "cpu",
    settings: ReadSettings | None = None,
    seed: int = 0,
) -> Verification:
    """Random samples, source after source: the cache's against frames that are decoded and encoded as in training.

    Args:
        shape: of the policy's samples.

    Raises:
        InternVLAError: latents are not those of the frames.
    """
    fixed: Mapping[str, Any] = {"repo_id": "verification", "seed": seed, "batch_size": 1, "settings": settings}
    plain = MixtureDataset(mixture, replace(shape, cached_latents=False), **fixed)
    cached = MixtureDataset(mixture, replace(shape, cached_latents=True), **fixed, latents=cache)
    generator = np.random.default_rng(seed)
    wrong: list[str] = []
    identical, largest, worst = 0, 0.0, 0.0
    for number in range(samples):
        source = mixture.sources[number % len(mixture.sources)]
        frame = int(generator.integers(source.num_frames))
        views = torch.stack([plain.sample(source, frame)[key] for key in CAMERA_KEYS.values()])
        fresh = encode_views(views.flatten(0, 1), tokenizer, cache.recipe, torch.device(device))
        fresh = fresh.reshape(*views.shape[:2], *fresh.shape[1:])
        stored: Tensor = cached.sample(source, frame)[CACHED_LATENTS]
        difference = (stored.float() - fresh.float()).abs()
        relative = float(difference.square().mean().sqrt() / fresh.float().square().mean().sqrt().clamp_min(1e-12))
        identical += bool(torch.equal(stored, fresh))
        largest, worst = max(largest, float(difference.max())), max(worst, relative)
        if not relative <= TOLERATED:
            wrong.append(f"{source.name}, frame {frame}: off by {relative:.0%} (in {cache.folders[source.index]})")
    if wrong:
        raise InternVLAError(
            f"{len(wrong)} of {samples} cached samples are not the latents of their frames:\n  - "
            + "\n  - ".join(wrong[:10])
            + "\nThe videos changed after their latents were written. Remove these folders and run the command again."
        )
    return Verification(samples, identical, largest, worst)
