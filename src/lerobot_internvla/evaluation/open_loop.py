"""Open-loop error: what a policy would do at recorded moments, against what was done.

    demonstration   ---o---------o---------o-------->    every ``stride`` frames the policy sees the recorded
    predictions        \\_____    \\_____    \\_____        observation and predicts a chunk; nothing moves

The error says whether a policy has learnt its demonstrations. It does not say whether the robot succeeds: mistakes do
not add up here, and another good way to do the task counts as an error. To mean something a number needs others beside
it, so two baselines that know nothing are counted at the same steps of the same moments:

    hold the state       stay where the joints are now
    repeat last action   send again what was last commanded; at an episode's first frame, where nothing was, the state

A chunk reaches beyond the end of its episode; those steps are not counted.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.evaluation.joints import UNKNOWN, Joints, describe_joints
from lerobot_internvla.evaluation.loading import LoadedPolicy, expected_by, training_episodes
from lerobot_internvla.evaluation.scores import Errors
from lerobot_internvla.foresight.samples import episode_positions

HOLD, REPEAT = "hold the state", "repeat last action"
BASELINES = (HOLD, REPEAT)
RESTING = 0.01
"""A joint that spreads less than this part of the widest one in its unit rests: its jitter is no yardstick."""


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class PredictedChunk:
    """One prediction, kept for a picture."""

    start: int
    """Frames since the start of the episode."""
    actions: Float[Tensor, "step joint"]


@dataclass(frozen=True)
class PlottedEpisode:
    """A demonstration with what each policy would have done at every start."""

    episode: int
    task: str
    recorded: Float[Tensor, "frame joint"]
    chunks: Mapping[str, tuple[PredictedChunk, ...]]
    """By policy name."""


@dataclass(frozen=True)
class PolicyErrors:
    """One policy on all chosen episodes."""

    name: str
    path: str
    chunk_size: int
    n_action_steps: int
    by_episode: Mapping[int, Errors]
    trained_on: frozenset[int] | None
    """Evaluated episodes that training has seen; None if that cannot be known."""

    @property
    def errors(self) -> Errors:
        """All steps of all chunks."""
        return _sum(self.by_episode)

    @property
    def executed(self) -> Errors:
        """The steps that the robot would execute before the next prediction."""
        return self.errors.first(self.n_action_steps)


@dataclass(frozen=True)
class OpenLoopResult:
    """Everything that the report says, as numbers."""

    dataset: str
    fps: float
    joints: Joints
    spread: Float[Tensor, " joint"]
    """Standard deviation of each joint's recorded actions, from the dataset's statistics; nan if it has none."""
    episodes: tuple[int, ...]
    stride: int
    starts: int
    """Predictions of each policy."""
    seed: int
    baselines: Mapping[str, Mapping[int, Errors]]
    """Name -> episode -> errors, over as many steps as the longest chunk."""
    policies: tuple[PolicyErrors, ...]
    plotted: tuple[PlottedEpisode, ...]

    def baseline(self, name: str, steps: int) -> Errors:
        """One of ``BASELINES`` over the first ``steps`` steps of every chunk."""
        return _sum(self.baselines[name]).first(steps)

    @property
    def is_resting(self) -> tuple[bool, ...]:
        """Joints that hardly move in this dataset, such as the idle arm of two: any error is a thousand spreads.

        None where units are unknown: a gripper's 0..1 is narrow beside degrees, and moves.
        """
        units = [joint.unit for joint in self.joints]
        spreads = self.spread.tolist()
        widest = {unit: max(s for s, u in zip(spreads, units, strict=True) if u == unit) for unit in units}
        return tuple(u != UNKNOWN and s < RESTING * widest[u] for s, u in zip(spreads, units, strict=True))

    @property
    def yardstick(self) -> Float[Tensor, " joint"]:
        """``spread`` for errors in spreads; 0 for joints that are left out of them."""
        return self.spread.masked_fill(torch.tensor(self.is_resting), 0.0)

    @property
    def shared_steps(self) -> int:
        """The first steps of a chunk that every policy executes: on these they can be compared."""
        return min(policy.n_action_steps for policy in self.policies)

    def verdict(self, policy: PolicyErrors) -> str:
        """One plain sentence: is the policy better than doing nothing, and at which joints?"""
        steps = policy.n_action_steps
        ours = policy.executed
        rivals = {name: self.baseline(name, steps) for name in BASELINES}
        counted = {name: errors for name, errors in rivals.items() if bool((errors.count.sum(dim=0) > 0).any())}
        window = "the first step of each chunk" if steps == 1 else f"the first {steps} steps of each chunk"
        error = ours.relative_error(self.yardstick)
        if math.isnan(error) or not counted:
            return f"{policy.name}: nothing to compare with; mean absolute error {ours.mean_absolute_error():.4g}."
        best = torch.stack([errors.mae().nan_to_num(nan=math.inf) for errors in counted.values()]).amin(dim=0)
        mine = ours.mae()
        comparable = best.isfinite() & ~mine.isnan()
        wins = int((mine < best)[comparable].sum())
        total = int(comparable.sum())
        beside = " and ".join(f"{errors.relative_error(self.yardstick):.3f} ({n})" for n, errors in counted.items())
        both = "both baselines" if len(counted) > 1 else "the baseline"
        answer = f"BETTER than {both} at {wins} of {total} joints" if wins else f"NOT BETTER than {both} at any joint"
        return (
            f"{policy.name}: {answer}. Error over {window}, in standard deviations of the recorded actions: "
            f"{error:.3f} against {beside}."
        )


def _sum(by_episode: Mapping[int, Errors]) -> Errors:
    first, *others = by_episode.values()
    return sum(others, start=first)


# ------------------------------------------------------------------------------------------------------------ evaluate


def evaluate_open_loop(
    policies: Sequence[LoadedPolicy],
    dataset: LeRobotDataset,
    *,
    stride: int | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    seed: int = 0,
    n_plots: int = 3,
    embodiment: str | None = None,
    rename_map: Mapping[str, str] | None = None,
    show_progress: bool = True,
) -> OpenLoopResult:
    """Predicted chunks against demonstrations.

    Args:
        policies: one or more, of any kinds; they see the same moments.
        dataset: the episodes to evaluate on. Frames before and after now are read from it as the policies need them.
        stride: frames between two predictions. None: the smallest ``n_action_steps`` of the policies.
        batch_size: moments per forward pass; only the sums and the plotted episodes stay in memory.
        num_workers: processes that read frames.
        seed: of the noise of policies that draw some: a moment's own seed is this plus its position in the dataset.
        n_plots: episodes whose chunks are kept for pictures, spread evenly over the chosen ones.
        embodiment: preset or YAML file that says the units (see ``describe_joints``).
        rename_map: dataset key -> policy key, for messages; the policies' preprocessors rename.

    Raises:
        InternVLAError: a policy that does not fit the dataset, or cannot be asked for chunks; arguments out of range.
    """
    problems = [
        f"{name} is {value}, expected at least {least}"
        for name, value, least in (
            ("stride", 1 if stride is None else stride, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("plots", n_plots, 0),
        )
        if value < least
    ]
    if problems:
        raise InternVLAError(f"{'; '.join(problems)}.")
    if not policies:
        raise InternVLAError("There is no policy to evaluate.")
    meta = dataset.meta
    require_fit(policies, meta, rename_map)
    joints = describe_joints(meta.features, robot_type=meta.robot_type, stats=meta.stats, embodiment=embodiment)
    stride = stride or min(policy.n_action_steps for policy in policies)
    horizon = max(policy.chunk_size for policy in policies)
    frames = sorted({offset for policy in policies for offset in policy.frame_offsets(float(meta.fps))})
    episodes = episode_positions(dataset)
    starts = [position for where in episodes.values() for position in where[::stride]]
    reader = _reader(dataset, frames, horizon)
    loader: Any = DataLoader(Subset(reader, starts), batch_size=batch_size, num_workers=num_workers)

    plotted = set(_spread_evenly(list(episodes), n_plots))
    sums: dict[str, dict[int, Errors]] = {name: {} for name in (*BASELINES, *(policy.name for policy in policies))}
    kept: dict[int, dict[str, list[PredictedChunk]]] = {e: {p.name: [] for p in policies} for e in plotted}
    tasks: dict[int, str] = {}
    done = 0
    with tqdm(total=len(starts), desc="open loop", unit="chunk", disable=not show_progress) as bar:
        for batch in loader:
            size = len(batch["task"])
            positions = starts[done : done + size]
            done += size
            numbers = batch["episode_index"].tolist()
            for episode, task in zip(numbers, batch["task"], strict=True):
                tasks.setdefault(int(episode), task)
            state = _now(batch, frames)
            true, valid, previous = _recorded(batch)
            guesses: dict[str, Tensor] = baseline_chunks(state, previous, joints, horizon)
            for policy in policies:
                wanted = policy.frame_offsets(float(meta.fps))
                seen = _observation(batch, frames, wanted, only_cameras=policy.is_ours)
                chunks = policy.predict(seen, [seed + position for position in positions])
                if chunks.shape[2] != len(joints):
                    raise InternVLAError(
                        f"{policy.name} predicts {chunks.shape[2]} numbers per step, the dataset's actions have "
                        f"{len(joints)}: {', '.join(joint.name for joint in joints)}. They are different robots."
                    )
                guesses[policy.name] = chunks[:, :horizon]
                for row, episode in enumerate(numbers):
                    if episode in plotted:
                        start = int(batch["frame_index"][row])
                        kept[episode][policy.name].append(PredictedChunk(start, chunks[row].clone()))
            for name, chunks in guesses.items():
                steps = chunks.shape[1]
                differences = (chunks - true[:, :steps]).masked_fill(~valid[:, :steps, None], torch.nan)
                for episode in dict.fromkeys(numbers):
                    mine = Errors.of(differences[torch.tensor([n == episode for n in numbers])])
                    before = sums[name].get(episode)
                    sums[name][episode] = mine if before is None else before + mine
            bar.update(size)

    return OpenLoopResult(
        dataset=meta.repo_id,
        fps=float(meta.fps),
        joints=joints,
        spread=_spread(meta, len(joints)),
        episodes=tuple(episodes),
        stride=stride,
        starts=len(starts),
        seed=seed,
        baselines={name: sums[name] for name in BASELINES},
        policies=tuple(
            PolicyErrors(
                name=policy.name,
                path=policy.path,
                chunk_size=next(iter(sums[policy.name].values())).steps,
                n_action_steps=min(policy.n_action_steps, next(iter(sums[policy.name].values())).steps),
                by_episode=sums[policy.name],
                trained_on=_seen(policy, meta, episodes),
            )
            for policy in policies
        ),
        plotted=tuple(
            PlottedEpisode(
                episode=episode,
                task=tasks[episode],
                recorded=_recorded_actions(dataset, episodes[episode]),
                chunks={name: tuple(chunks) for name, chunks in kept[episode].items()},
            )
            for episode in sorted(plotted)
        ),
    )


def baseline_chunks(
    state: Float[Tensor, "batch state_dim"] | None,
    previous: Float[Tensor, "batch joint"],
    joints: Joints,
    steps: int,
) -> dict[str, Float[Tensor, "batch step joint"]]:
    """What both baselines would command, the same at every step; nan where they have nothing to say.

    Args:
        state: now; None if the dataset has none.
        previous: the last action before now; nan at an episode's first frame.
    """
    held = torch.full_like(previous, torch.nan)
    if state is not None:
        for dim, joint in enumerate(joints):
            if joint.state_dim is not None:
                held[:, dim] = state[:, joint.state_dim]
    repeated = torch.where(previous.isnan(), held, previous)
    return {name: now[:, None].expand(-1, steps, -1) for name, now in ((HOLD, held), (REPEAT, repeated))}


def require_fit(
    policies: Sequence[LoadedPolicy], meta: LeRobotDatasetMetadata, rename_map: Mapping[str, str] | None = None
) -> None:
    """Cameras, state, actions and rate of every policy against a dataset.

    Raises:
        InternVLAError: all problems of all policies at once.
    """
    problems = [f"{policy.name}: {problem}" for policy in policies for problem in misfits(policy, meta, rename_map)]
    if problems:
        raise InternVLAError(f"Dataset {meta.repo_id!r} does not fit:\n  - " + "\n  - ".join(problems))


def misfits(
    policy: LoadedPolicy, meta: LeRobotDatasetMetadata, rename_map: Mapping[str, str] | None = None
) -> list[str]:
    """Sentences on what a policy misses in a dataset; empty when it fits."""
    stored_as = {new: old for old, new in (rename_map or {}).items()}
    features = meta.features

    def width(key: str) -> int | None:
        feature = features.get(stored_as.get(key, key))
        return None if feature is None else int(feature["shape"][0])

    try:
        expected = expected_by(policy.config, width(OBS_STATE), width(ACTION))
    except InternVLAError as error:
        return [str(error)]
    cameras = ", ".join(meta.camera_keys) or "none"
    problems = [
        f"it reads {key!r}, which the dataset does not have; its cameras are {cameras}. Rename one: "
        f'--rename_map=\'{{"<dataset key>": "{key}"}}\''
        for key in expected.cameras
        if stored_as.get(key, key) not in features
    ]
    for key, wanted in ((OBS_STATE, expected.state_dim), (ACTION, expected.action_dim)):
        if wanted is not None and width(key) != wanted:
            has = "does not have" if width(key) is None else f"has {width(key)} of"
            problems.append(f"it was trained on {wanted} dims of {key!r}, and the dataset {has} them")
    if expected.fps is not None and abs(expected.fps - meta.fps) > 1e-6:
        problems.append(
            f"its steps are {1 / expected.fps:.4g} s apart ({expected.fps:g} fps), the dataset's {1 / meta.fps:.4g} s "
            f"({meta.fps:g} fps): step i would be compared with another moment"
        )
    return problems


# ------------------------------------------------------------------------------------------------------------- reading


def _reader(dataset: LeRobotDataset, frames: Sequence[int], horizon: int) -> LeRobotDataset:
    """The same episodes, with observations at ``frames`` and actions from the last one before now."""
    fps = dataset.meta.fps
    offsets = {
        key: [frame / fps for frame in frames] for key in dataset.meta.features if key.startswith("observation.")
    }
    offsets[ACTION] = [step / fps for step in range(-1, horizon)]
    return LeRobotDataset(
        dataset.repo_id,
        root=dataset.root,
        episodes=dataset.episodes,
        delta_timestamps=offsets,
        tolerance_s=dataset.tolerance_s,
        revision=dataset.revision,
        video_backend=getattr(dataset, "_video_backend", None),
    )


def _observation(
    batch: Mapping[str, Any], frames: Sequence[int], wanted: Sequence[int], *, only_cameras: bool
) -> dict[str, Any]:
    """What one policy sees of a batch: its own frames, no time axis if that is one, nothing of the future.

    Args:
        only_cameras: a history is wanted of cameras, and of the state the present.
    """
    which = torch.tensor([frames.index(frame) for frame in wanted])
    observation: dict[str, Any] = {"task": list(batch["task"])}
    for key, value in batch.items():
        if key.startswith("observation.") and not key.endswith("_is_pad"):
            chosen = value[:, which]
            keeps_time = len(wanted) > 1 and not (only_cameras and value.ndim < 5)
            observation[key] = chosen if keeps_time else chosen[:, -1]
    return observation


def _now(batch: Mapping[str, Any], frames: Sequence[int]) -> Tensor | None:
    state = batch.get(OBS_STATE)
    return None if state is None else state[:, list(frames).index(0)].float()


def _recorded(
    batch: Mapping[str, Any],
) -> tuple[Float[Tensor, "batch step joint"], Bool[Tensor, "batch step"], Float[Tensor, "batch joint"]]:
    """Actions from now on, which of them lie in the episode, and the last action before now (nan: there is none)."""
    actions, pads = batch[ACTION].float(), batch[f"{ACTION}_is_pad"]
    return actions[:, 1:], ~pads[:, 1:], actions[:, 0].masked_fill(pads[:, :1], torch.nan)


def _recorded_actions(dataset: LeRobotDataset, positions: range) -> Float[Tensor, "frame joint"]:
    rows: Any = dataset.hf_dataset.with_format("torch").select(range(positions.start, positions.stop))
    return torch.stack(list(rows[ACTION])).float()


def _spread(meta: LeRobotDatasetMetadata, joints: int) -> Float[Tensor, " joint"]:
    stats: Any = (meta.stats or {}).get(ACTION, {})
    if "std" not in stats:
        return torch.full((joints,), torch.nan, dtype=torch.float64)
    return torch.as_tensor(stats["std"], dtype=torch.float64).reshape(-1)


def _seen(policy: LoadedPolicy, meta: LeRobotDatasetMetadata, episodes: Mapping[int, range]) -> frozenset[int] | None:
    trained = training_episodes(policy.path, meta)
    return None if trained is None else frozenset(trained & set(episodes))


def _spread_evenly(items: Sequence[int], count: int) -> Iterator[int]:
    """At most ``count`` of ``items``, the first among them, evenly apart."""
    count = min(count, len(items))
    for i in range(count):
        yield items[i * len(items) // count]
