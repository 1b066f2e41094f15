"""Latents of every frame on disk, so that a training step does not run the image tokenizer.

    <dataset>/latents/<fingerprint>/
        manifest.json                                 what the latents are of: a LatentRecipe
        black.safetensors                             the latents of a camera that a robot does not have
        observation.images.top/episode-000000.safetensors    "latents" [frames, C, h, w], in the tokenizer's own dtype

The fingerprint covers everything that latents depend on besides the frame: image tokenizer and its weights, view size,
the way from pixels to its input. Files appear whole (latent_writing.py), so one that is there is complete. A dataset in
the Hub cache, or in a folder that cannot be written to, has its latents under ``<HF_HOME>/lerobot_internvla/latents``.

Only the frame "now" is decoded then, for the understanding expert. Augmented pixels would have other latents, so image
transforms and cached latents exclude each other.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import constants
from jaxtyping import Bool, Float
from torch import Tensor

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.encoding import describe_identity
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer
from lerobot_internvla.model.architecture import CAMERA_SLOTS, Architecture

from .sources import Mixture, Source

FOLDER = "latents"
MANIFEST = "manifest.json"
BLACK = "black.safetensors"
TENSOR = "latents"
_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
PIXELS = "letterboxed, rounded to 8 bits, resized (bilinear, no antialias), scaled to [-1, 1]; version 1"
"""What happens between a decoded frame and the tokenizer (canonical.py, encoding.py). Part of the fingerprint: changed
whenever that is."""
NO_AUGMENTATION = (
    "Cached latents are those of the frames as they were recorded, and image transforms would change the frames. Use "
    "one of the two: --policy.latent_cache=false, or --dataset.image_transforms.enable=false."
)


@dataclass(frozen=True)
class LatentRecipe:
    """Everything that the latents of a frame depend on, besides the frame."""

    image_tokenizer: dict[str, Any]
    """See ``describe_identity``."""
    view_size: tuple[int, int]
    image_size: tuple[int, int]
    latent_shape: tuple[int, int, int]
    """Channels, height, width."""
    pixels: str = PIXELS

    @classmethod
    def of(cls, tokenizer: ImageTokenizer, architecture: Architecture) -> "LatentRecipe":
        spec = architecture.image_tokenizer
        return cls(
            image_tokenizer=describe_identity(tokenizer),
            view_size=(architecture.view_size[0], architecture.view_size[1]),
            image_size=(spec.image_size[0], spec.image_size[1]),
            latent_shape=(spec.latent_channels, *spec.latent_size),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return cast(dict[str, Any], json.loads(json.dumps(self.__dict__)))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; the name of the folder."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokenizer's computation: nothing is lost."""
        return cast(torch.dtype, getattr(torch, self.image_tokenizer["dtype"]))

    @property
    def bytes_per_frame(self) -> int:
        """Of one camera."""
        return self.latent_shape[0] * self.latent_shape[1] * self.latent_shape[2] * self.dtype.itemsize

    def differences(self, other: dict[str, Any]) -> str:
        """Which parts of another recipe are not ours, in words."""
        ours = self.to_dict()
        flat_ours = {**ours, **{f"image tokenizer's {k}": v for k, v in ours.pop("image_tokenizer").items()}}
        theirs = {**other, **{f"image tokenizer's {k}": v for k, v in other.get("image_tokenizer", {}).items()}}
        names = [name for name in flat_ours if name != "image_tokenizer" and flat_ours[name] != theirs.get(name)]
        shown = [
            f"{name} {theirs.get(name)} instead of {flat_ours[name]}" if name.endswith("size") else name
            for name in names
        ]
        return ", ".join(shown)


def latent_places(source: Source) -> list[Path]:
    """Folders in which latents of a source may be, best first: beside the dataset, unless that is in the Hub cache; and
    in this package's own cache."""
    label = source.repo_id.replace("/", "--")
    if source.from_hub:
        key = source.revision or "main"
    else:
        key = hashlib.sha256(os.fsencode(source.root.resolve())).hexdigest()[:12]
    own = Path(constants.HF_HOME) / "lerobot_internvla" / FOLDER / f"{label}-{key}"
    return [own] if source.from_hub else [source.root / FOLDER, own]


def find_latents(source: Source, fingerprint: str) -> Path | None:
    """The folder with latents of this fingerprint, complete or not; None where there is none."""
    folders = [place / fingerprint for place in latent_places(source)]
    return next((folder for folder in folders if (folder / MANIFEST).is_file()), None)


def episode_file(folder: Path, camera: str, episode: int) -> Path:
    """Of one camera and episode; ``camera`` is the dataset's feature key."""
    return folder / camera / f"episode-{episode:06d}.safetensors"


def missing_latents(source: Source, folder: Path) -> list[tuple[int, str]]:
    """(place in ``source.episodes``, camera) of what is in use and not there. One listing per camera."""
    missing: list[tuple[int, str]] = []
    for camera in source.features.cameras.values():
        parent = folder / camera
        present = {entry.name for entry in os.scandir(parent)} if parent.is_dir() else set[str]()
        missing += [
            (place, camera)
            for place, episode in enumerate(source.episodes)
            if episode_file(folder, camera, episode).name not in present
        ]
    return sorted(missing)


@dataclass(frozen=True)
class CachedMoments:
    """Latents of one sample, instead of its past and future frames."""

    values: Float[Tensor, "view time channel latent_height latent_width"]
    is_pad: Bool[Tensor, " time"]
    """The moment lies outside the episode; its latents are those of the episode's edge, as LeRobot does with frames."""


@dataclass(frozen=True)
class LatentCache:
    """Complete latents of a mixture. It pickles, for data loader workers, and keeps no file open."""

    recipe: LatentRecipe
    folders: tuple[Path, ...]
    """Of each source."""
    black: Tensor
    """[C, h, w]"""

    def require(self, tokenizer: ImageTokenizer, architecture: Architecture) -> None:
        """Raise InternVLAError unless a policy with this tokenizer would compute the same latents."""
        other = LatentRecipe.of(tokenizer, architecture)
        if other.fingerprint != self.recipe.fingerprint:
            raise InternVLAError(
                f"The dataset reads cached latents {self.recipe.fingerprint}, but the policy's own would be "
                f"{other.fingerprint}; these differ: {other.differences(self.recipe.to_dict())}. Open the cache for "
                "this policy, or pass --policy.latent_cache=false."
            )

    def moments(self, source: Source, place: int, offset: int) -> CachedMoments:
        """Past, now and future of the frame ``offset`` of the episode at ``place`` in ``source.episodes``.

        Raises:
            InternVLAError: a file is damaged, or of an episode of another length.
        """
        length = int(source.episode_lengths[place])
        wanted = [offset - source.interval_frames, offset, offset + source.interval_frames]
        frames = [min(max(frame, 0), length - 1) for frame in wanted]
        folder = self.folders[source.index]
        rows: list[Tensor] = []
        for slot in CAMERA_SLOTS:
            camera = source.features.cameras.get(slot)
            if camera is None:
                rows.append(self.black.expand(len(frames), -1, -1, -1))
            else:
                file = episode_file(folder, camera, source.episodes[place])
                rows.append(read_latents(file, frames, (length, *self.recipe.latent_shape), self.recipe.dtype))
        is_pad = torch.tensor([frame != edge for frame, edge in zip(wanted, frames, strict=True)])
        return CachedMoments(torch.stack(rows), is_pad)


def read_latents(path: Path, frames: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Some frames of one file, [T, C, h, w].

    Reads these bytes and no others; opening the file with the safetensors package maps all of it, which takes several
    times as long (docs/mixtures.md).

    Args:
        shape: of the whole tensor, as it must be.

    Raises:
        InternVLAError: no such file, or not with one tensor of this shape and dtype.
    """
    try:
        with path.open("rb", buffering=0) as file:
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > 1 << 16:
                raise ValueError("no header of one tensor")
            header = json.loads(file.read(header_size))[TENSOR]
            found = (tuple(header["shape"]), header["dtype"])
            if found != (shape, _STORED[str(dtype).removeprefix("torch.")]):
                raise ValueError(f"it holds {found[1]} {list(found[0])}, expected {list(shape)}: another recording?")
            start = 8 + header_size + int(header["data_offsets"][0])
            size = dtype.itemsize
            for extent in shape[1:]:
                size *= extent
            result = torch.empty(len(frames), *shape[1:], dtype=dtype)
            rows = cast(Any, result.view(torch.uint8)).reshape(len(frames), size).numpy()
            for row, frame in zip(rows, frames, strict=True):
                if os.preadv(file.fileno(), [row.data], start + frame * size) != size:
                    raise ValueError(f"it ends before frame {frame}")
            return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InternVLAError(
            f"Cannot read cached latents from {path}: {error}. Remove the file, or the folder {path.parents[1]} if the "
            "dataset was recorded anew, and run internvla-mixture cache-latents again."
        ) from error


def open_latents(mixture: Mixture, recipe: LatentRecipe, *, command: str) -> LatentCache:
    """The latents of all sources.

    Args:
        command: what the user types to write them, for the message.

    Raises:
        InternVLAError: latents are missing, or there are only those of another tokenizer or picture size; every source
            is listed.
    """
    problems: list[str] = []
    folders: list[Path] = []
    for source in mixture.sources:
        folder = find_latents(source, recipe.fingerprint)
        if folder is None:
            problems.append(f"{source.name}: {_what_else(source, recipe)}")
            continue
        folders.append(folder)
        missing = missing_latents(source, folder)
        if missing or not (folder / BLACK).is_file():
            total = source.num_episodes * len(source.features.cameras)
            first = "" if not missing else f"; the first is episode {source.episodes[missing[0][0]]} of {missing[0][1]}"
            problems.append(f"{source.name}: {len(missing)} of {total} files are missing{first} (in {folder})")
    if problems:
        some = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise InternVLAError(
            f"policy.latent_cache=true needs the latents of every frame of {mixture.path} (fingerprint "
            f"{recipe.fingerprint}):\n  - " + "\n  - ".join(some) + f"\nWrite them, or the rest of them, with\n  "
            f"{command}\nor train without: --policy.latent_cache=false."
        )
    single = (1, *recipe.latent_shape)
    return LatentCache(recipe, tuple(folders), read_latents(folders[0] / BLACK, [0], single, recipe.dtype)[0])


def _what_else(source: Source, recipe: LatentRecipe) -> str:
    """Which latents there are instead."""
    found: list[str] = []
    for place in latent_places(source):
        for manifest in sorted(place.glob(f"*/{MANIFEST}")):
            try:
                other = json.loads(manifest.read_text(encoding="utf-8"))["recipe"]
                found.append(f"{manifest.parent.name} ({recipe.differences(other)})")
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                found.append(f"{manifest.parent.name} (its {MANIFEST} cannot be read)")
    return f"only others are there: {'; '.join(found)}" if found else "there are none"
