"""03: what does the policy imagine?

Records two tiny episodes, lets an untrained policy imagine the frame 0.3 s ahead at three moments, and draws panels:
past, now, predicted, true, error. With random weights the prediction is noise and far worse than copying the current
frame; the summary says so. On a trained policy the same call shows what it has learned (docs/foresight.md).

Run:    python examples/03_foresight_panel.py
Takes:  about 20 seconds on one CPU core, most of them imports. No network.
Prints (numbers vary):

    3 panels, 1 video
    head: the prediction is WORSE than copying the current frame (5.3 against 20.1 dB, 3 frames).

Next: internvla-foresight --policy.path=<checkpoint> --dataset.repo_id=<dataset> --output_dir=imagined
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from lerobot_internvla.foresight import write_report
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy


def main() -> None:
    cameras = {"head": (48, 64), "left_wrist": (64, 64)}
    policy = tiny_policy(tiny_config(cameras=list(cameras), foresight_interval=3, fps=10.0))
    with TemporaryDirectory() as folder:
        dataset = tiny_dataset(Path(folder, "dataset"), cameras=cameras, episode_lengths=(12, 9), fps=10, video=False)
        output = Path("imagined")
        write_report(policy, dataset, output, n_samples=3, overwrite=True)
    print(f"{len(list(output.glob('*.png')))} panels, {len(list(output.glob('*.mp4')))} video")
    summary = json.loads((output / "summary.json").read_text())
    print(summary["moments"]["cameras"]["head"]["verdict"])


if __name__ == "__main__":
    main()
