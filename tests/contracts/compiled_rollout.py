"""``lerobot-rollout --use_torch_compile=true`` in the clocked world, and every chunk once more without the compiler.

compiled_rollout.py <checkpoint> <flags of lerobot-rollout>; run by test_compiled_rollouts.py in a process of its own,
because the compiler cannot trace the shape checks with which tests run. Prints one JSON object.
"""

import json
import signal
import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from clocked_runs import rollout_flags
from clocked_world import World
from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from stock_commands import lerobot_rollout

COMMANDS = 30


class Watch:
    """Remembers what every chunk was made from and when episodes began."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        """First tick after each reset of the policy."""
        self.ticks: list[tuple[int, int]] = []
        """(past, now) of every chunk."""
        self.calls: list[dict[str, Any]] = []
        self.graphs: list[int] = []
        """How many graphs were compiled by the end of each chunk."""
        self.policy: InternVLAA1Policy | None = None

    def install(self) -> None:
        prefill, sample, reset = InternVLAA1.prefill, InternVLAA1Policy._sample, InternVLAA1Policy.reset
        watch = self

        def see(self: InternVLAA1, observation: Any, **kwargs: Any) -> Any:
            past, now = (observation.images[0, 0, :, 0, 0, 0] * 255).round().long().tolist()
            watch.ticks.append((past, now))
            return prefill(self, observation, **kwargs)

        def remember(
            self: InternVLAA1Policy,
            batch: dict[str, Any],
            prefill: Any,
            noise: Tensor | None,
            left_over: Tensor | None = None,
            inference_delay: int = 0,
        ) -> Tensor:
            if noise is None:
                noise = torch.randn(1, self.config.chunk_size, self.config.architecture.max_action_dim)
            given = {"noise": noise, "left_over": left_over, "inference_delay": inference_delay}
            actions = sample(self, batch, prefill, **given)
            watch.calls.append({"batch": dict(batch), "actions": actions.clone(), **given})
            watch.graphs.append(counters["stats"]["unique_graphs"])
            watch.policy = self
            return actions

        def note(self: InternVLAA1Policy) -> None:
            watch.starts.append(len(World.diary.seen_at))
            reset(self)

        InternVLAA1.prefill, InternVLAA1Policy._sample, InternVLAA1Policy.reset = see, remember, note


def slow_until_the_first_command(_: int) -> None:
    """Nobody knows how long a compiler takes, and a picture can tell 256 ticks apart."""
    if not World.diary.commands:
        time.sleep(1.0)


def stop_after_enough_commands() -> None:
    stock = World.diary.command

    def command(action: Any) -> None:
        stock(action)
        if len(World.diary.commands) == COMMANDS:
            signal.raise_signal(signal.SIGINT)

    World.diary.command = command


def errors_of(watch: Watch, checkpoint: str) -> list[float]:
    """The largest difference of each chunk to that of the same policy without a compiler, in robot units."""
    assert watch.policy is not None
    calls, acting = list(watch.calls), watch.policy.config
    plain = InternVLAA1Policy.from_pretrained(checkpoint)
    assert not plain.config.compile_model
    plain.config.num_inference_steps = acting.num_inference_steps
    plain.config.rtc_config = getattr(acting, "rtc_config", None)
    plain.init_rtc_processor()
    errors: list[float] = []
    for call in calls:
        with torch.no_grad():
            prefill = plain._prefill(call["batch"], with_foresight=False)
            again = plain._sample(**{"prefill": prefill, **{k: v for k, v in call.items() if k != "actions"}})
        errors.append(float((again - call["actions"]).abs().max()))
    return errors


def main(checkpoint: str, *flags: str) -> dict[str, Any]:
    watch = Watch()
    watch.install()
    stock = [flag for flag in rollout_flags(checkpoint) if not flag.startswith("--duration")]
    World.diary.before_tick = slow_until_the_first_command
    stop_after_enough_commands()
    lerobot_rollout(*stock, "--duration=0", *flags, "--strategy.type=base", "--use_torch_compile=true")
    assert watch.policy is not None
    model, acted = watch.policy.model, len(watch.calls)
    report = {
        "ticks": list(watch.ticks),
        "starts": list(watch.starts),
        "graphs": list(watch.graphs),
        "guided": [call["left_over"] is not None for call in watch.calls],
        "chunks": [call["actions"][0].tolist() for call in watch.calls],
        "commands": [(tick, command.tolist()) for tick, command in World.diary.commands],
        "compile_model": watch.policy.config.compile_model,
        "compiled": [name for name in ("sample_actions", "denoise_step") if name in vars(model)],
    }
    return {**report, "errors": errors_of(watch, checkpoint)[:acted]}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
