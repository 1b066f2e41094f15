"""12: open-loop error of a policy on recorded episodes, and the published numbers to compare with.

At every chunk's start the policy sees the recorded cameras, state and instruction, and predicts a chunk; the error is
its difference from the recorded actions. Nothing moves, so this checks a conversion, not a skill. With the real weights
(convert them first, docs/checkpoints.md) the page reproduces the numbers in ``PUBLISHED``; without arguments it runs an
untrained toy policy on a toy dataset, to show what is computed.

Run:    python examples/12_published_numbers.py
        python examples/12_published_numbers.py <converted checkpoint> <dataset id or folder> [episodes: 0 1 2]
Takes:  about 10 seconds of one CPU core for the toy. No network.
Prints (numbers vary):

    episode 0: 3 chunks of 5 actions, MSE 1.4e+00, MAE 9.6e-01
    episode 1: 3 chunks of 5 actions, MSE 1.5e+00, MAE 1.0e+00
    published for genie1/Genie1-Place_Markpen, episodes 0 to 2, float32: MSE 2.72e-05, 3.26e-05, 6.24e-06

Next: internvla-foresight, for what the same policy expects to see.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import default_collate
from tqdm import tqdm

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.foresight.samples import interval_in_frames
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy

DIMS = 16
"""Of the published numbers: both arms and grippers of the Genie-1."""
PUBLISHED = "genie1/Genie1-Place_Markpen, episodes 0 to 2, float32: MSE 2.72e-05, 3.26e-05, 6.24e-06"
"""Checkpoint Jia-Zeng/InternVLA-A1-3B-FineTuned-Place_Markpen, every 50 frames, 10 Euler steps (reported, not ours)."""


def open_loop_errors(policy: InternVLAA1Policy, dataset: LeRobotDataset, episode: int) -> torch.Tensor:
    """Predicted minus recorded actions [chunks, chunk_size, dims], in the dataset's units; nan beyond the end."""
    begin, end = (int(dataset.meta.episodes[episode][f"dataset_{side}_index"]) for side in ("from", "to"))
    chunk, errors = policy.config.chunk_size, []
    for index in tqdm(range(begin, end, chunk), desc=f"episode {episode}", leave=False, disable=None):
        batch = default_collate([dataset[index]])
        batch = {key: v.to(policy.config.device) if torch.is_tensor(v) else v for key, v in batch.items()}
        noise = torch.randn(1, chunk, 32, generator=torch.Generator().manual_seed(0)).to(policy.config.device)
        error = policy.predict_action_chunk(batch, noise=noise) - batch["action"]
        errors.append(error.masked_fill(batch["action_is_pad"][..., None], torch.nan)[0, :, :DIMS].cpu())
    return torch.stack(errors)


def report(policy: InternVLAA1Policy, root: Path | None, repo_id: str, episodes: Sequence[int]) -> None:
    """One line per episode."""
    meta = LeRobotDataset(repo_id, root=root).meta
    past_and_now = [-interval_in_frames(policy.config, meta.fps) / meta.fps, 0.0]
    offsets = dict.fromkeys(policy.camera_slots.values(), past_and_now)
    offsets["action"] = [step / meta.fps for step in range(policy.config.chunk_size)]
    dataset = LeRobotDataset(repo_id, root=root, delta_timestamps=offsets)
    for episode in episodes:
        errors = open_loop_errors(policy, dataset, episode)
        print(
            f"episode {episode}: {len(errors)} chunks of {errors.shape[1]} actions, "
            f"MSE {errors.square().nanmean():.1e}, MAE {errors.abs().nanmean():.1e}"
        )


def main() -> None:
    if len(sys.argv) > 2:
        checkpoint, data, *episodes = sys.argv[1:]
        root = Path(data) if Path(data).is_dir() else None
        policy = InternVLAA1Policy.from_pretrained(checkpoint)
        report(policy, root, root.name if root else data, [int(e) for e in episodes] or [0, 1, 2])
    else:
        with TemporaryDirectory() as folder:
            root = Path(folder, "toy")
            tiny_dataset(root, episode_lengths=(12, 11), video=False)
            policy = tiny_policy(tiny_config(foresight_interval=3, fps=10.0))
            report(policy, root, "local/tiny", [0, 1])
    print(f"published for {PUBLISHED}")


if __name__ == "__main__":
    main()
