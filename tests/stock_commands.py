"""LeRobot's own commands, run inside the test process: a command costs a second instead of ten for its imports.

Each function takes flags exactly as they are typed in a shell, so a failing test can be repeated by hand.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest


@contextmanager
def _typed(program: str, flags: tuple[str, ...]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *flags])
        yield


def lerobot_train(*flags: str) -> None:
    """``lerobot-train <flags>``."""
    from accelerate.state import AcceleratorState
    from lerobot.scripts import lerobot_train as command

    # Accelerate keeps its precision for the whole process; a command line user starts a new one each time.
    AcceleratorState._reset_state(reset_partial_state=True)
    with _typed("lerobot-train", flags):
        command.main()


def lerobot_eval(*flags: str) -> None:
    """``lerobot-eval <flags>``."""
    from lerobot.scripts import lerobot_eval as command

    with _typed("lerobot-eval", flags):
        command.main()


def lerobot_rollout(*flags: str) -> None:
    """``lerobot-rollout <flags>``."""
    command: ModuleType
    from lerobot.scripts import lerobot_rollout as command

    with _typed("lerobot-rollout", flags):
        command.main()


def lerobot_record(*flags: str) -> None:
    """``lerobot-record <flags>``."""
    from lerobot.scripts import lerobot_record as command

    with _typed("lerobot-record", flags):
        command.main()


def lerobot_replay(*flags: str) -> None:
    """``lerobot-replay <flags>``."""
    from lerobot.scripts import lerobot_replay as command

    with _typed("lerobot-replay", flags):
        command.main()


def training_flags(dataset_root: Path, output: Path, *, steps: int) -> list[str]:
    """The shortest offline training of the tiny policy on a local dataset."""
    return [
        "--policy.type=internvla_a1",
        "--policy.variant=tiny",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.chunk_size=10",
        "--policy.n_action_steps=5",
        "--policy.num_inference_steps=2",
        "--policy.foresight_interval=3",
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={dataset_root}",
        f"--output_dir={output}",
        f"--steps={steps}",
        "--batch_size=2",
        "--num_workers=0",
        "--log_freq=1",
        "--env_eval_freq=0",
        "--wandb.enable=false",
    ]


def last_checkpoint(output: Path) -> Path:
    """The folder for ``--policy.path``."""
    return output / "checkpoints" / "last" / "pretrained_model"
