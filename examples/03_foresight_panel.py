"""03: what does the policy imagine?

Records two tiny episodes, lets an untrained policy imagine the frame 0.3 s ahead at three moments, and draws panels:
past, now, predicted, true, error. A bright square moves in front of each camera; with random weights the prediction is
noise, and far worse than copying the current frame: the label is red, and the summary says so. On a trained policy the
same call shows what it has learned (docs/foresight.md).

Run:    python examples/03_foresight_panel.py
Takes:  about 10 seconds of one CPU core, most of them imports. No network.
Prints (numbers vary):

    head: the prediction is WORSE than copying the current frame (4.6 against 17.8 dB, 3 frames).
    left_wrist: the prediction is WORSE than copying the current frame (5.5 against 19.3 dB, 3 frames).
    imagined/panel_00_episode_0_frame_3.png
    imagined/episode_0.mp4
    imagined/summary.json

Next: internvla-foresight --policy.path=<checkpoint> --dataset.repo_id=<dataset> --output_dir=imagined
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from lerobot_internvla.foresight import write_report
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy


def main() -> None:
    cameras = {"head": (48, 64), "left_wrist": (64, 64)}
    policy = tiny_policy(tiny_config(cameras=list(cameras), foresight_interval=3, fps=10.0))
    with TemporaryDirectory() as folder:
        dataset = tiny_dataset(Path(folder, "dataset"), cameras=cameras, episode_lengths=(12, 9), fps=10, video=False)
        report = write_report(policy, dataset, "imagined", n_samples=3, overwrite=True)
    print(*report.moments.verdicts, sep="\n")
    print(*report.paths, sep="\n")


if __name__ == "__main__":
    main()
