"""The one place where this package enters stock ``lerobot-train``: which dataset it trains on, and how it is read.

LeRobot has no hook for either, so two of its functions are wrapped, once: when a command that trains imports the plugin
or, where that was imported first, when a configuration of our policy is made. Both call the original, and return what
it returned for every policy but ``internvla_a1``. For ours:

- ``--dataset.root=<file>.yaml`` names a mixture of datasets (mixture_file.py), read as one;
- the reader decodes sparse moments without the video between them (video_reader.py);
- ``--policy.cache_frames_gb=<limit>`` keeps decoded episodes in memory (frame_cache.py).

A resumed run goes on with the right frames in every epoch (exact_resume.py; the sampler, for every policy).
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError

from . import exact_resume
from .frame_cache import cache_frames
from .stock_mixture import is_mixture, open_mixture
from .video_reader import read_sparsely


def install() -> None:
    """Wrap LeRobot's training, if it is what imported us; asking again changes nothing."""
    exact_resume.install()
    factory = sys.modules.get("lerobot.datasets.factory")
    if factory is None or hasattr(factory.make_dataset, "__wrapped__"):
        return
    _replace(factory.make_dataset, _wrap_make_dataset(factory.make_dataset))
    _replace(factory.make_train_eval_datasets, _wrap_make_train_eval_datasets(factory.make_train_eval_datasets))


def _replace(original: Any, wrapped: Any) -> None:
    """Put ``wrapped`` in the place of ``original`` wherever it is; lerobot-train has imported it by name."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(original.__name__) is original:
            vars(module)[original.__name__] = wrapped


def _wrap_make_dataset(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_dataset(cfg: Any) -> Any:
        policy = _ours(cfg)
        if policy is None:
            if is_mixture(cfg):
                raise InternVLAError(
                    f"--dataset.root={cfg.dataset.root} is a mixture of datasets, which only policy.type=internvla_a1 "
                    "can be trained on. Pass the folder of one dataset, or train that policy."
                )
            return original(cfg)
        if is_mixture(cfg):
            return open_mixture(cfg, policy)
        if policy.latent_cache:
            raise InternVLAError(
                "policy.latent_cache=true works with mixtures, whose frames come in the view size that latents are "
                "cached for. Write a mixture file with this dataset as its one source (docs/mixtures.md) and pass "
                "--dataset.root=<file>.yaml, or drop --policy.latent_cache."
            )
        _refuse_flags(cfg.dataset, policy)
        try:
            dataset = original(cfg)
        except InternVLAError:
            raise
        except Exception as error:  # the Hub, file systems and parquet each have their own
            raise InternVLAError(_why_not_opened(cfg.dataset, error)) from error
        return _read_well(dataset, policy.cache_frames_gb)

    return make_dataset


def _wrap_make_train_eval_datasets(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_train_eval_datasets(cfg: Any) -> Any:
        training, held_out = original(cfg)
        policy = _ours(cfg)
        if policy is None or held_out is None:
            return training, held_out
        # With --dataset.eval_split, LeRobot opens the dataset that make_dataset gave it twice more, without asking
        # make_dataset. The cache is for the frames that are read in every epoch.
        return _read_well(training, policy.cache_frames_gb), _read_well(held_out, 0.0)

    return make_train_eval_datasets


def _refuse_flags(source: Any, policy: InternVLAA1Config) -> None:
    """What LeRobot would answer by asking the Hub for episodes, or with an empty batch after minutes."""
    if source.streaming and policy.use_foresight:
        raise InternVLAError(
            "--dataset.streaming=true: LeRobot's streaming cannot read future frames, which the foresight is trained "
            "on. Drop the flag, so that the dataset is downloaded, or pass --policy.use_foresight=false."
        )
    info = Path(source.root, "meta", "info.json") if source.root is not None else None
    if source.episodes and info is not None and info.is_file():
        total = int(json.loads(info.read_text(encoding="utf-8"))["total_episodes"])
        unknown = [str(episode) for episode in source.episodes if not 0 <= episode < total]
        if unknown:
            raise InternVLAError(
                f"--dataset.episodes: there is no episode {', '.join(unknown)} in {str(source.root)!r}; it has 0 to "
                f"{total - 1}."
            )


def _why_not_opened(source: Any, error: Exception) -> str:
    where = f"The dataset {source.repo_id!r} cannot be opened"
    if source.root is None:
        advice = "Is the name that of lerobot-record? For a folder elsewhere pass --dataset.root=<folder>."
    elif not Path(source.root, "meta", "info.json").is_file():
        where += f": {str(source.root)!r} holds no meta/info.json, and it could not be fetched from the Hub either"
        advice = "--dataset.root is the folder of the dataset itself, the one that holds meta, data and videos."
    else:
        where += f" from {str(source.root)!r}"
        advice = "Is the folder whole? `lerobot-dataset-viz` shows what LeRobot can read of it."
    return f"{where}. {type(error).__name__}: {str(error).rstrip('.')}. {advice}"


def _ours(cfg: Any) -> InternVLAA1Config | None:
    policy = getattr(cfg, "policy", None)
    return policy if isinstance(policy, InternVLAA1Config) else None


def _read_well(dataset: Any, cache_frames_gb: float) -> Any:
    """``dataset`` itself, its reader taken over."""
    read_sparsely(dataset)
    if cache_frames_gb > 0:
        cache_frames(dataset, cache_frames_gb)
    return dataset
