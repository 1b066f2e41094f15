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

Next: internvla-openloop, for a page with pictures and baselines (docs/evaluation.md).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors

from lerobot_internvla.evaluation.loading import LoadedPolicy, load_policy
from lerobot_internvla.evaluation.open_loop import evaluate_open_loop
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy

DIMS = 16
"""Of the published numbers: both arms and grippers of the Genie-1."""
PUBLISHED = "genie1/Genie1-Place_Markpen, episodes 0 to 2, float32: MSE 2.72e-05, 3.26e-05, 6.24e-06"
"""Checkpoint Jia-Zeng/InternVLA-A1-3B-FineTuned-Place_Markpen, every 50 frames, 10 Euler steps (reported, not ours)."""


def report(policy: LoadedPolicy, root: Path | None, repo_id: str, episodes: Sequence[int]) -> None:
    """One line per episode."""
    dataset = LeRobotDataset(repo_id, root=root, episodes=list(episodes))
    result = evaluate_open_loop([policy], dataset, stride=policy.chunk_size, n_plots=0)
    for episode, errors in result.policies[0].by_episode.items():
        chunks, steps = int(errors.count[0, 0]), errors.steps
        mse, mae = errors.mse()[:DIMS].mean(), errors.mae()[:DIMS].mean()
        print(f"episode {episode}: {chunks} chunks of {steps} actions, MSE {mse:.1e}, MAE {mae:.1e}")


def main() -> None:
    if len(sys.argv) > 2:
        checkpoint, data, *episodes = sys.argv[1:]
        root = Path(data) if Path(data).is_dir() else None
        report(load_policy(checkpoint), root, root.name if root else data, [int(e) for e in episodes] or [0, 1, 2])
    else:
        with TemporaryDirectory() as folder:
            root = Path(folder, "toy")
            tiny_dataset(root, episode_lengths=(12, 11), video=False)
            policy = tiny_policy(tiny_config(foresight_interval=3, fps=10.0, chunk_size=5))
            report(
                LoadedPolicy("toy", "", policy, *make_pre_post_processors(policy.config)), root, "local/tiny", [0, 1]
            )
    print(f"published for {PUBLISHED}")


if __name__ == "__main__":
    main()
