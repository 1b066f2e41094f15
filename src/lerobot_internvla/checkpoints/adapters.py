"""LoRA and other PEFT adapters: load one over its base as LeRobot does, and merge it into a plain policy."""

import json
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy

from lerobot_internvla.checkpoints.fetching import fetch
from lerobot_internvla.errors import InternVLAError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter, which is no policy without its base."""
    return (folder / ADAPTER_CONFIG).is_file()


def load_with_adapter(
    checkpoint: str | Path, *, config: PreTrainedConfig | None = None, device: str | None = None
) -> Any:
    """An adapter over the base that its adapter_config.json names: a ``peft.PeftModel``.

    Args:
        checkpoint: folder as ``lerobot-train --peft.*`` saves it, or Hub id.
        config: of the policy; None takes the one beside the adapter.
        device: None takes the configuration's.

    Raises:
        InternVLAError: peft is not installed, no adapter, or a base that cannot be found.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise InternVLAError(
            "This checkpoint is an adapter, and the package peft is missing. Install it with "
            "`pip install 'lerobot_policy_internvla_a1[peft]'`."
        ) from error
    folder = fetch(checkpoint, ["*.json", "*.safetensors"], what="adapter").folder
    if not is_adapter(folder):
        raise InternVLAError(f"{str(folder)!r} holds no adapter: {ADAPTER_CONFIG} is missing.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InternVLAError(
            f"{str(folder)!r} has no {ADAPTER_WEIGHTS}. Pickled weights (adapter_model.bin) are not read: save the "
            "adapter again with a newer peft, which writes safetensors."
        )
    config = config or PreTrainedConfig.from_pretrained(folder)
    if device is not None:
        config.device = device
    adapter = PeftConfig.from_pretrained(str(folder))
    base = adapter.base_model_name_or_path
    if not base or (base.startswith(("/", ".", "~")) and not Path(base).expanduser().is_dir()):
        raise InternVLAError(
            f"The adapter in {str(folder)!r} was trained on {base!r}, which is not here. Put the base checkpoint "
            f"there, or write its folder or Hub id into base_model_name_or_path of {ADAPTER_CONFIG}."
        )
    policy = get_policy_class(config.type).from_pretrained(base, config=config, revision=adapter.revision)
    return PeftModel.from_pretrained(policy, str(folder), config=adapter).eval()


def merge_adapter(folder: Path, *, device: str | None = None) -> PreTrainedPolicy:
    """The policy with its adapter folded into the weights: faster, and whole without its base.

    Actions differ from those of the adapter over its base by rounding only: of float32, or of bfloat16 if the weights
    are kept in that (``weights_dtype``), which then rounds every adapted weight once.

    Raises:
        InternVLAError: as ``load_with_adapter``.
    """
    merged: PreTrainedPolicy = load_with_adapter(folder, device=device).merge_and_unload()
    merged.config.use_peft = False
    merged.config.pretrained_path = None
    return merged.eval()


def base_of(folder: Path) -> str:
    """The folder or Hub id that an adapter was trained on, as its own file says."""
    return str(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])
