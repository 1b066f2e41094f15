"""10: RoboTwin 2.0, all tasks, easy and hard, in one table, with LeRobot's own environment and lerobot-eval.

One command per task after the protocol of the released checkpoint: 100 episodes from seed 100000, 30 of 50 predicted
steps executed open loop, float32. ``--run`` runs those that have no result yet; without arguments nothing runs.

Run:    python examples/10_robotwin_evaluation.py
        python examples/10_robotwin_evaluation.py --policy=<converted checkpoint> --robotwin=<RoboTwin's folder> --run
Takes:  about 15 seconds of one CPU core without arguments, no network. A real run needs RoboTwin and a GPU.
Prints (numbers vary):

    $ LEROBOT_ROBOTWIN_INSTRUCTION_TYPE=unseen lerobot-eval --policy.path=checkpoint --policy.n_action_steps=30
    MADE-UP numbers, to show the table:
    | task | easy | hard |
    | adjust_bottle | 93.0 (86.3 to 96.6) | – |
    | **mean over tasks** | **90.67** (86.8 to 93.5), 3 of 50 tasks | **94.00** (87.5 to 97.2), 1 of 50 tasks |

LeRobot 0.6.1's environment is not the whole protocol: do not put its numbers beside published ones.
- Grippers are not binarised at 0.5 before they are sent: the policy's own values are.
- Seeds on which RoboTwin's scripted expert fails are not skipped: some episodes may have no solution.
- The instruction is the task's name ("click bell"); only blocks_ranking_* get one of RoboTwin's "unseen" instructions.
- Every task may take 1200 steps; --limits=<YAML file of task: steps> gives the tasks' own.
- Scenes are those of demo_clean (easy). For hard copy RoboTwin's folder, in it task_config/demo_randomized.yml over
  demo_clean.yml, and pass --setting=hard --robotwin=<the copy>. Neither was run here, where there is no RoboTwin.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from lerobot.envs.robotwin import ROBOTWIN_TASKS

from lerobot_internvla.evaluation.success_table import SuccessTable, read_folder

SETTINGS = ("easy", "hard")
CAMERAS = {"head_camera": "cam_high", "left_camera": "cam_left_wrist", "right_camera": "cam_right_wrist"}
EVAL = """LEROBOT_ROBOTWIN_INSTRUCTION_TYPE=unseen lerobot-eval --policy.path={policy} --policy.n_action_steps=30
    --policy.dtype=float32 --env.type=robotwin --env.task={task} --env.episode_length={steps}
    --rename_map={rename} --seed=100000 --eval.n_episodes={episodes} --eval.batch_size=1 --output_dir={output}"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--policy", type=Path, help="converted checkpoint")
    parser.add_argument("--robotwin", type=Path, help="RoboTwin's folder: its assets are found from there")
    parser.add_argument("--setting", choices=SETTINGS, default="easy")
    parser.add_argument("--tasks", default=",".join(ROBOTWIN_TASKS))
    parser.add_argument("--cameras", default=",".join(CAMERAS.values()), help="the checkpoint's head, left and right")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--limits", type=Path, help="YAML file of task: steps")
    parser.add_argument("--output", type=Path, default=Path("outputs/robotwin"))
    parser.add_argument("--run", action="store_true")
    wanted = parser.parse_args()
    if wanted.policy is None:
        print("$", command(Path("checkpoint"), "click_bell", Path("outputs/robotwin/easy/click_bell"), wanted))
        return show_made_up_table()
    if wanted.run:
        check_setting(wanted.robotwin, wanted.setting)
    for task in wanted.tasks.split(","):
        output = (wanted.output / wanted.setting / task).resolve()
        line = command(wanted.policy.resolve(), task, output, wanted)
        print("$", line, flush=True)
        if wanted.run and not (output / "eval_info.json").exists():
            setting, program, *flags = shlex.split(line)
            paths = f"{wanted.robotwin.resolve()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            environment = {**os.environ, **dict([setting.split("=")]), "PYTHONPATH": paths}
            words = [Path(sys.executable).parent / program, *flags]
            subprocess.run(words, cwd=wanted.robotwin, env=environment, check=True)
    if wanted.run:
        show_table(wanted.output)


def command(policy: Path, task: str, output: Path, wanted: argparse.Namespace) -> str:
    limits = yaml.safe_load(wanted.limits.read_text()) if wanted.limits else {}
    names = zip(CAMERAS, wanted.cameras.split(","), strict=True)
    rename = json.dumps({f"observation.images.{theirs}": f"observation.images.{ours}" for theirs, ours in names})
    values = {"policy": policy, "task": task, "output": output, "rename": rename, "episodes": wanted.episodes}
    values |= {"steps": limits.get(task, 1200)}
    return " ".join(EVAL.format(**{name: shlex.quote(str(value)) for name, value in values.items()}).split())


def check_setting(robotwin: Path | None, setting: str) -> None:
    if robotwin is None or not (robotwin / "envs").is_dir():
        sys.exit("RoboTwin is not there: pass --robotwin=<folder with envs/, task_config/ and assets/>.")
    clean, random = (robotwin / "task_config" / f"demo_{name}.yml" for name in ("clean", "randomized"))
    found = "hard" if clean.read_bytes() == random.read_bytes() else "easy"
    if found != setting:
        sys.exit(f"{clean} is that of the setting {found}, not {setting}. See the top of this page.")


def show_table(output: Path) -> None:
    columns = {setting: read_folder(output / setting) for setting in SETTINGS if (output / setting).is_dir()}
    table = SuccessTable(columns, ROBOTWIN_TASKS)
    (output / "table.md").write_text(table.markdown() + "\n")
    (output / "table.csv").write_text(table.csv())
    print(table.markdown())


def show_made_up_table() -> None:
    print("MADE-UP numbers, to show the table:")
    made_up = {"easy": {"adjust_bottle": 93, "click_bell": 98, "lift_pot": 81}, "hard": {"click_bell": 94}}
    with tempfile.TemporaryDirectory() as folder:
        for setting, tasks in made_up.items():
            for task, successes in tasks.items():
                outcomes = {"successes": [episode < successes for episode in range(100)]}
                info = {"per_task": [{"task_group": task, "task_id": 0, "metrics": outcomes}]}
                Path(folder, setting, task).mkdir(parents=True)
                Path(folder, setting, task, "eval_info.json").write_text(json.dumps(info))
        show_table(Path(folder))


if __name__ == "__main__":
    main()
