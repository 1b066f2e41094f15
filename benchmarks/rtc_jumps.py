"""How far commands jump where one chunk ends and the next begins: RTC, appending, synchronous; at several delays.

    python benchmarks/rtc_jumps.py --policy outputs/demo/training/checkpoints/last/pretrained_model
    python benchmarks/rtc_jumps.py --policy ... --n_action_steps 2 --horizon 4 --noise_scale 0 --episodes 30

The planar conveyor, whose belt moves on while the policy thinks. Time is simulated: a chunk that is asked for on tick n
arrives on tick n + delay, whatever the computer does meanwhile, so the numbers are reproducible. What is LeRobot's is
LeRobot's: ``ActionQueue`` (replacing and appending), ``RTCProcessor`` and their defaults; only the threads are gone.

    sync     the arms wait for every chunk, then execute n_action_steps of it (lerobot-rollout --inference.type=sync)
    append   chunks are asked for early and queued behind each other (--inference.rtc.enabled=false)
    cut      a new chunk replaces the queue, without guidance: what RTC is without its guidance (no LeRobot mode)
    rtc      the same under guidance by what is left (--inference.type=rtc)

A jump is the largest change of an arm's target (grippers left out) from one tick to the next, in robot units, at a seam
between chunks; beside it stands the median change within chunks, which is what the arms do anyway.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from lerobot.policies.rtc import ActionQueue
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.envs.conveyor.gym_env import ConveyorEnv

Mode = Literal["sync", "append", "cut", "rtc"]
MODES: tuple[Mode, ...] = ("sync", "append", "cut", "rtc")
COLOURS = {"sync": "tab:gray", "append": "tab:red", "cut": "tab:orange", "rtc": "tab:blue"}


@dataclass
class Trace:
    """One episode: the command of every tick, whether a chunk began there, and how it ended."""

    commands: np.ndarray
    is_seam: np.ndarray
    success: bool


@dataclass
class Row:
    """One line of the table."""

    mode: str
    delay_ms: float
    seams: int
    jump_mean: float
    jump_p95: float
    within_median: float
    successes: int
    episodes: int


def observation(policy: InternVLAA1Policy, frames: dict[str, Any], task: str) -> dict[str, Any]:
    """LeRobot's batch of one tick."""
    batch: dict[str, Any] = {"observation.state": torch.tensor(frames["agent_pos"])[None].float(), "task": [task]}
    for name, picture in frames["pixels"].items():
        batch[f"observation.images.{name}"] = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
    return batch


def chunk_of(
    policy: InternVLAA1Policy, batch: dict[str, Any], tick: int, generator: torch.Generator, **rtc: Any
) -> Tensor:
    config = policy.config
    shape = (1, config.chunk_size, config.architecture.max_action_dim)
    noise = config.noise_scale * torch.randn(shape, generator=generator)
    return policy.predict_action_chunk(batch, noise, tick=float(tick), **rtc)[0]


def run_episode(
    policy: InternVLAA1Policy, env: ConveyorEnv, mode: Mode, delay: int, seed: int, threshold: int, max_ticks: int
) -> Trace:
    """One episode under simulated time."""
    policy.reset()
    queue = ActionQueue(RTCConfig(enabled=mode != "append"))
    generator = torch.Generator().manual_seed(seed)
    frames, info = env.reset(seed=seed)
    in_flight: tuple[int, int, Tensor] | None = None  # (arrives at tick, index of the queue before, chunk)
    held = frames["agent_pos"].copy()
    commands, seams, count, executing = [], [], 0, 0.0
    for tick in range(max_ticks):
        batch = observation(policy, frames, env.task_description)
        policy.observe({key: batch[key] for key in policy.config.image_features}, float(tick))
        wanted = queue.empty() if mode == "sync" else queue.qsize() <= threshold
        if in_flight is None and wanted:
            left = queue.get_left_over()
            guide: dict[str, Any] = {}
            if mode == "rtc" and left is not None:
                guide = {"prev_chunk_left_over": left, "inference_delay": delay}
            in_flight = (tick + delay, queue.get_action_index(), chunk_of(policy, batch, tick, generator, **guide))
        if in_flight is not None and tick >= in_flight[0]:
            _, index_before, chunk = in_flight
            chunk = chunk[: policy.config.n_action_steps] if mode == "sync" else chunk
            count += 1
            numbered = torch.cat([chunk, torch.full((len(chunk), 1), float(count))], dim=1)
            # Cut what the robot executed meanwhile: less than the delay while there was nothing to execute.
            queue.merge(chunk, numbered, queue.get_action_index() - index_before)
            in_flight = None
        action = queue.get()
        if action is not None:
            seams.append(executing not in (0.0, float(action[-1])))
            held, executing = action[:-1].numpy(), float(action[-1])
        else:
            seams.append(False)
        commands.append(held.copy())
        frames, _, done, _, info = env.step(held)
        if done:
            break
    return Trace(np.stack(commands), np.array(seams), bool(info["is_success"]))


def jumps(traces: list[Trace], arms: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(at seams, within chunks): largest change of an arm's target per tick."""
    at_seams: list[float] = []
    within: list[float] = []
    for trace in traces:
        change = np.abs(np.diff(trace.commands[:, arms], axis=0)).max(axis=1)
        at_seams += change[trace.is_seam[1:]].tolist()
        within += change[~trace.is_seam[1:]].tolist()
    return np.array(at_seams), np.array([value for value in within if value > 0])  # zero: held, nothing to execute


def measure(
    policy: InternVLAA1Policy,
    delays_ms: list[float],
    episodes: int,
    horizon: int,
    max_ticks: int,
    modes: list[Mode],
) -> Iterator[tuple[Row, np.ndarray, Trace]]:
    fps = policy.config.fps or 10.0
    threshold = policy.config.chunk_size - policy.config.n_action_steps
    names = policy.config.action_feature_names or []
    arms = [i for i, name in enumerate(names) if "gripper" not in name]
    policy.config.rtc_config = RTCConfig(execution_horizon=horizon)  # pyright: ignore[reportAttributeAccessIssue]
    policy.init_rtc_processor()
    env = ConveyorEnv()
    for delay_ms in delays_ms:
        delay = round(delay_ms / 1000 * fps)
        for mode in modes:
            traces = [run_episode(policy, env, mode, delay, 7000 + e, threshold, max_ticks) for e in range(episodes)]
            at_seams, within = jumps(traces, arms)
            row = Row(
                mode,
                delay_ms,
                len(at_seams),
                float(at_seams.mean()),
                float(np.quantile(at_seams, 0.95)),
                float(np.median(within)),
                sum(trace.success for trace in traces),
                episodes,
            )
            print(row, flush=True)
            yield row, at_seams, traces[0]


def draw(rows: list[Row], samples: list[np.ndarray], traces: list[Trace], names: list[str], path: Path) -> None:
    """Left: jumps at the seams by delay and mode. Right: one joint's targets in one episode at the longest delay."""
    delays = sorted({row.delay_ms for row in rows})
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=(1, 1.3))
    for offset, mode in enumerate(MODES):
        chosen = [(row, sample) for row, sample in zip(rows, samples, strict=True) if row.mode == mode]
        places = np.arange(len(delays)) * 5 + offset
        if not chosen:
            continue
        boxes = left.boxplot(
            [sample for _, sample in chosen], positions=places, widths=0.8, showfliers=False, patch_artist=True
        )
        for box in boxes["boxes"]:
            box.set_facecolor(COLOURS[mode])
        left.plot([], [], color=COLOURS[mode], linewidth=6, label=mode)
    left.axhline(float(np.median([r.within_median for r in rows])), color="black", linestyle=":", label="within chunks")
    left.set_xticks(np.arange(len(delays)) * 5 + 1.5, [f"{delay:g} ms" for delay in delays])
    left.set_xlabel("inference delay")
    left.set_ylabel("change of an arm's target at a seam, scene units")
    left.legend(fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    joint = 0
    for row, trace in zip(rows, traces, strict=True):
        if row.delay_ms == delays[-1] and row.mode in ("sync", "append", "rtc"):
            right.plot(trace.commands[:, joint], color=COLOURS[row.mode], label=row.mode, linewidth=1.3)
            seams = np.flatnonzero(trace.is_seam)
            right.plot(seams, trace.commands[seams, joint], "o", color=COLOURS[row.mode], markersize=4)
    right.set_xlabel("tick (0.1 s)")
    right.set_ylabel(f"target of {names[joint]}, scene units")
    right.set_title(f"one episode, {delays[-1]:g} ms; dots: a chunk begins", fontsize=10)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(rows: list[Row], policy: InternVLAA1Policy, horizon: int) -> str:
    config = policy.config
    lines = [
        "# Command jumps between chunks",
        "",
        f"Planar conveyor, {rows[0].episodes} episodes per row, simulated delay, {config.fps:g} Hz, chunks of "
        f"{config.chunk_size}, a new one after {config.n_action_steps}, execution horizon {horizon}, "
        f"{config.num_inference_steps} Euler steps, noise {config.noise_scale:g}, {config.action_representation} "
        "actions. Jump: largest change of an arm's target in one tick, in the scene's units, where a chunk begins. "
        "`cut` is RTC without its guidance. Successes are few episodes: no ranking. "
        "Made by `benchmarks/rtc_jumps.py`.",
        "",
        "| delay | mode | seams | mean jump | 95 % | median within chunks | jump / within | successes |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row.delay_ms:g} ms | {row.mode} | {row.seams} | {row.jump_mean:.4f} | {row.jump_p95:.4f} | "
            f"{row.within_median:.4f} | {row.jump_mean / row.within_median:.2f} | {row.successes}/{row.episodes} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", required=True, help="checkpoint folder of a policy trained on the conveyor")
    parser.add_argument("--delays_ms", nargs="+", type=float, default=[0, 100, 300])
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--horizon", type=int, default=None, help="RTC execution horizon; default: n_action_steps")
    parser.add_argument("--n_action_steps", type=int, default=None, help="a new chunk after so many; default: policy's")
    parser.add_argument("--noise_scale", type=float, default=1.0, help="of sampling; 1 as in training")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--max_ticks", type=int, default=150)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/rtc_jumps"), help="without extension")
    arguments = parser.parse_args(argv)
    policy = InternVLAA1Policy.from_pretrained(arguments.policy)
    policy.config.noise_scale = arguments.noise_scale
    policy.config.n_action_steps = arguments.n_action_steps or policy.config.n_action_steps
    horizon = arguments.horizon or policy.config.n_action_steps
    episodes, max_ticks = arguments.episodes, arguments.max_ticks
    found = list(measure(policy, arguments.delays_ms, episodes, horizon, max_ticks, arguments.modes))
    rows = [row for row, _, _ in found]
    names = policy.config.action_feature_names or [str(i) for i in range(32)]
    draw(
        rows,
        [sample for _, sample, _ in found],
        [trace for *_, trace in found],
        names,
        arguments.output.with_suffix(".png"),
    )
    arguments.output.with_suffix(".md").write_text(table(rows, policy, horizon))
    arguments.output.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
