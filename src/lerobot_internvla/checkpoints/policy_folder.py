"""Where the files of a policy are: a folder, a checkpoint of a training run, or a Hub repository."""

from pathlib import Path

from huggingface_hub import snapshot_download

from lerobot_internvla.errors import InternVLAError

from .whole_folder import whole_steps, why_not_whole


def find_policy_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder with the files of a policy, whole; fetched from the Hub where ``name`` is a Hub id.

    Args:
        name: folder, or ``owner/name`` on the Hub. The other arguments are huggingface_hub's.

    Raises:
        InternVLAError: no such folder (with the whole checkpoints beside it), or a half-written one.
    """
    folder, given = Path(name), str(name)
    if not folder.is_dir():
        if folder.name == "pretrained_model" and (steps := whole_steps(folder.parents[1])):
            raise InternVLAError(
                f"There is no checkpoint folder {given!r}. Whole ones beside it: {', '.join(steps)}. Pass "
                f"{folder.parents[1] / steps[-1] / folder.name}."
            )
        if folder.exists() or given.startswith((".", "/", "~")) or given.count("/") != 1:
            raise InternVLAError(
                f"There is no checkpoint folder {given!r}. Pass the folder that holds config.json and "
                "model.safetensors (after lerobot-train: <output_dir>/checkpoints/last/pretrained_model), or a Hub "
                "id owner/name."
            )
        folder = Path(
            snapshot_download(
                given,
                revision=revision,
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors"],
            )
        )
    if reason := why_not_whole(folder):
        raise InternVLAError(f"{reason} Take an earlier one; checkpoints/last points to the newest whole one.")
    return folder
