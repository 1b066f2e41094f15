"""The configuration of a policy folder of ours, without its weights."""

from pathlib import Path
from typing import Any

from draccus.utils import DecodingError
from lerobot.configs import PreTrainedConfig

from lerobot_internvla.checkpoints.whole_folder import CONFIG_FILE, why_not_whole
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError


def read_policy_config(folder: Path, *overrides: str) -> InternVLAA1Config:
    """``config.json`` of ``folder``.

    Args:
        folder: of a policy, or of an adapter.
        overrides: flags such as "--device=cpu".

    Raises:
        InternVLAError: none there, another policy's, or unreadable; a checkpoint of the reference implementation, with
            the command that converts it.
    """
    if reason := why_not_whole(folder):
        raise InternVLAError(reason)
    if not (folder / CONFIG_FILE).is_file():
        raise InternVLAError(
            f"There is no {CONFIG_FILE} in {str(folder)!r}. Pass a policy folder of type internvla_a1."
        )
    try:
        config: Any = PreTrainedConfig.from_pretrained(folder, cli_overrides=list(overrides))
    except (ValueError, DecodingError) as error:
        raise InternVLAError(f"{str(folder)!r} is no policy of this library: {error}") from error
    if not isinstance(config, InternVLAA1Config):
        raise InternVLAError(f"{str(folder)!r} holds a policy of type {config.type!r}, expected 'internvla_a1'.")
    return config
