"""``internvla-conveyor``: record expert episodes, evaluate the expert or doing nothing, watch an episode.

    internvla-conveyor record   --root=outputs/conveyor --episodes=400
    internvla-conveyor evaluate --policy=expert --episodes=200 --json=expert.json
    internvla-conveyor watch    --seed=7 --output=conveyor.mp4

A trained policy is evaluated by LeRobot's own ``lerobot-eval --env.type=conveyor``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.envs.conveyor.task import TASKS
from lerobot_internvla.scripts.messages import says_what_is_wrong


@says_what_is_wrong("internvla-conveyor")
def main(argv: list[str] | None = None) -> int:
    """Entry point of ``internvla-conveyor``."""
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--env", default="conveyor", choices=BACKENDS, help="which simulator")
    shared.add_argument("--task", default="train", choices=TASKS, help="speed range and difficulty")
    shared.add_argument("--parcels", type=int, help="exactly this many parcels (default: as in the task)")
    shared.add_argument(
        "--belt_speed", type=float, nargs=2, metavar=("SLOWEST", "FASTEST"), help="belt lengths per second"
    )

    parser = argparse.ArgumentParser(
        prog="internvla-conveyor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    record = commands.add_parser("record", parents=[shared], help="expert episodes as a LeRobotDataset with video")
    record.add_argument("--root", type=Path, required=True, help="folder to create")
    record.add_argument("--repo_id", default="local/conveyor", help="name of the dataset; nothing is uploaded")
    record.add_argument("--episodes", type=int, default=400)
    record.add_argument("--seed", type=int, default=0)
    record.add_argument("--image_size", type=int, help="pixels per edge of each camera (64; conveyor_mujoco: 128)")
    record.set_defaults(run=_record)

    evaluate = commands.add_parser("evaluate", parents=[shared], help="success of the expert, or of doing nothing")
    evaluate.add_argument("--policy", default="expert", choices=("expert", "idle"))
    evaluate.add_argument("--episodes", type=int, default=200)
    evaluate.add_argument("--seed", type=int, default=1000, help="of the first episode, as in lerobot-eval")
    evaluate.add_argument("--json", type=Path, help="also write the result here")
    evaluate.set_defaults(run=_evaluate)

    watch = commands.add_parser("watch", parents=[shared], help="one episode of the expert as a video")
    watch.add_argument("--seed", type=int, default=1000)
    watch.add_argument("--output", type=Path, default=Path("conveyor.mp4"))
    watch.add_argument("--height", type=int, default=528, help="pixels")
    watch.set_defaults(run=_watch)
    return parser


def _task_options(arguments: argparse.Namespace) -> dict[str, Any]:
    belt_speed = None if arguments.belt_speed is None else tuple(arguments.belt_speed)
    return {"task": arguments.task, "parcels": arguments.parcels, "belt_speed": belt_speed, "backend": arguments.env}


def _record(arguments: argparse.Namespace) -> None:
    from lerobot_internvla.envs.conveyor.recording import record_expert_episodes

    summary = record_expert_episodes(
        arguments.root,
        arguments.repo_id,
        arguments.episodes,
        arguments.seed,
        image_size=arguments.image_size,
        **_task_options(arguments),
    )
    print(
        f"Kept {summary.n_episodes} successful episodes of {summary.n_attempts} attempts: {summary.n_frames} frames in "
        f"{summary.seconds:.0f} s, in {summary.root}"
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from lerobot_internvla.envs.conveyor.evaluation import evaluate_scripted

    summary = evaluate_scripted(
        arguments.policy, n_episodes=arguments.episodes, seed=arguments.seed, progress=True, **_task_options(arguments)
    )
    print(f"{'belt speed':>12}  success  95 % interval  episodes")
    for name, row in {**summary.by_speed, "all": summary.overall}.items():
        low, high = row.interval
        print(f"{name:>12}  {row.rate:7.1%}  {low:5.1%} - {high:6.1%}  {row.successes} of {row.episodes}")
    print(f"endings: {', '.join(f'{ending} {count}' for ending, count in summary.endings.items())}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(summary.as_dict(), indent=2) + "\n")


def _watch(arguments: argparse.Namespace) -> None:
    from lerobot_internvla.envs.conveyor.evaluation import film_expert

    ending = film_expert(arguments.output, arguments.seed, height=arguments.height, **_task_options(arguments))
    print(f"{arguments.output}: {ending}")


if __name__ == "__main__":
    raise SystemExit(main())
