"""``lerobot-train --dataset.root=<file>.yaml``: from LeRobot's configuration to this rank's part of a mixture."""

# LeRobot and pyarrow ship no types, and strict checking asks for them at every import.
# pyright: reportMissingTypeStubs=false

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.factory import find_image_tokenizer
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer

from .canonical import SampleShape
from .latent_cache import NO_AUGMENTATION, LatentCache, LatentRecipe, open_latents
from .mixture_dataset import MixtureDataset, ReadSettings
from .sources import Mixture, describe, load_mixture

logger = logging.getLogger(__name__)

DECODERS = "LEROBOT_VIDEO_DECODER_CACHE_SIZE"


def is_mixture(cfg: Any) -> bool:
    """Whether ``cfg.dataset.root`` names a mixture file rather than the folder of one dataset."""
    root = getattr(getattr(cfg, "dataset", None), "root", None)
    return root is not None and Path(root).suffix in (".yaml", ".yml")


def open_mixture(cfg: Any, policy: InternVLAA1Config) -> MixtureDataset:
    """The dataset of a training run.

    Args:
        cfg: LeRobot's ``TrainPipelineConfig``.

    Raises:
        InternVLAError: problems of the file and its datasets, flags that mean nothing for a mixture, a mixture that
            changed since the checkpoint that is resumed.
    """
    _refuse_flags(cfg, policy)
    if policy.latent_cache and cfg.dataset.image_transforms.enable:
        raise InternVLAError(NO_AUGMENTATION)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mixture = load_mixture(cfg.dataset.root, progress=rank == 0)
    if rank == 0:
        for line in describe(mixture):
            logger.info(line)
    if getattr(cfg, "resume", False):
        _compare_with_checkpoint(cfg, policy, mixture.fingerprint, world_size)
    policy.mixture_fingerprint = mixture.fingerprint
    image_transforms = None
    if cfg.dataset.image_transforms.enable:
        from lerobot.transforms import ImageTransforms

        image_transforms = ImageTransforms(cfg.dataset.image_transforms)
    dataset = MixtureDataset(
        mixture,
        SampleShape.of(policy),
        repo_id=cfg.dataset.repo_id,
        seed=cfg.seed if cfg.seed is not None else 0,
        batch_size=cfg.batch_size,
        rank=rank,
        world_size=world_size,
        settings=ReadSettings(
            video_backend=cfg.dataset.video_backend,
            tolerance_s=cfg.tolerance_s,
            image_transforms=image_transforms,
            cache_frames_gb=policy.cache_frames_gb,
        ),
        latents=latents_of_run(mixture, policy) if policy.latent_cache else None,
    )
    _advise_on_decoders(dataset)
    names = ", ".join(mixture.sources[piece.source].name for piece in dataset.pieces[:8])
    more = f" and {len(dataset.pieces) - 8} more" if len(dataset.pieces) > 8 else ""
    logger.info("Rank %d of %d reads %d pieces: %s%s.", rank, world_size, len(dataset.pieces), names, more)
    return dataset


def image_tokenizer_of(policy: InternVLAA1Config) -> ImageTokenizer:
    """The one that a policy of this configuration will have."""
    return find_image_tokenizer(
        policy.architecture.image_tokenizer,
        named=policy.image_tokenizer,
        checkpoint=policy.pretrained_path,
        dtype=getattr(torch, policy.image_tokenizer_dtype),
    )


def latents_of_run(mixture: Mixture, policy: InternVLAA1Config) -> LatentCache:
    """The cached latents of every source, as the policy would compute them.

    Raises:
        InternVLAError: they are not there, or not all of them.
    """
    command = f"internvla-mixture cache-latents {mixture.path} "
    if policy.pretrained_path is not None:
        command += f"--policy.path={policy.pretrained_path}"
    else:
        command += f"--variant={policy.variant}"
    if policy.image_tokenizer is not None:
        command += f" --image-tokenizer={policy.image_tokenizer}"
    if policy.image_tokenizer_dtype != "bfloat16":
        command += f" --image-tokenizer-dtype={policy.image_tokenizer_dtype}"
    recipe = LatentRecipe.of(image_tokenizer_of(policy), policy.architecture)
    return open_latents(mixture, recipe, command=command)


def _refuse_flags(cfg: Any, policy: InternVLAA1Config) -> None:
    dataset = cfg.dataset
    problems: list[str] = []
    if getattr(dataset, "eval_split", 0.0):
        problems.append("--dataset.eval_split: hold episodes out with 'episodes' of each source instead")
    if dataset.episodes is not None:
        problems.append("--dataset.episodes: write 'episodes' of each source instead")
    if dataset.streaming:
        problems.append("--dataset.streaming: LeRobot's streaming cannot read future frames")
    if dataset.revision is not None:
        problems.append("--dataset.revision: write 'revision' of each source instead")
    if getattr(cfg, "sample_weighting", None) is not None:
        problems.append("--sample_weighting: weights belong into the mixture file")
    if policy.camera_slots:
        problems.append("--policy.camera_slots: write 'cameras' of each source instead")
    if problems:
        raise InternVLAError(
            f"These flags mean nothing for the mixture {dataset.root}:\n  - " + "\n  - ".join(problems) + "\nDrop them."
        )


def _compare_with_checkpoint(cfg: Any, policy: InternVLAA1Config, fingerprint: str, world_size: int) -> None:
    """Refuse to resume on other data; explain what another number of ranks or another batch size means."""
    before = policy.mixture_fingerprint
    if before is not None and before != fingerprint:
        raise InternVLAError(
            f"The mixture {cfg.dataset.root}, or one of its datasets, changed since this run was interrupted "
            f"(fingerprint {before[:12]} then, {fingerprint[:12]} now). Resuming continues the same stream of samples, "
            "and there is no such stream any more. Restore the file and the datasets; or start a new run from the "
            "checkpoint with --policy.path=<checkpoint>/pretrained_model."
        )
    state = Path(cfg.checkpoint_path or "") / "training_state" / "training_step.json"
    if not state.is_file():
        return
    stored: dict[str, Any] = json.loads(state.read_text(encoding="utf-8"))
    ranks = stored.get("dp_world_size", stored.get("num_processes"))
    if ranks is not None and ranks != world_size:
        logger.warning(
            "This run was interrupted with %s ranks and resumes with %s: the mixture is shared out anew. Shares stay "
            "exact and no rank is loaded more than another, but the order starts anew as well: some frames that were "
            "already drawn in this pass are drawn again before others are drawn once. Resume with %s ranks to go on "
            "exactly where it stopped.",
            ranks,
            world_size,
            ranks,
        )
    batch_size = stored.get("batch_size")
    if batch_size is not None and batch_size != cfg.batch_size:
        logger.warning(
            "This run was interrupted with batches of %s and resumes with batches of %s: every rank continues at "
            "another place of its order. Shares stay exact; some frames are skipped or repeated once.",
            batch_size,
            cfg.batch_size,
        )


def _advise_on_decoders(dataset: MixtureDataset) -> None:
    """LeRobot keeps 100 TorchCodec decoders open; with more files than that it opens one for almost every frame."""
    sources = {piece.source for piece in dataset.pieces}
    files = sum(len(dataset.mixture.sources[index].features.cameras) for index in sources)
    kept = int(os.environ.get(DECODERS, 100))
    if dataset.settings.video_backend == "torchcodec" and files > kept:
        logger.warning(
            "This rank reads %d cameras of %d sources, and LeRobot keeps %d video decoders open: reading will be about "
            "a quarter slower. Set %s=%d or more (2 to 3 MB each).",
            files,
            len(sources),
            kept,
            DECODERS,
            files,
        )
