"""What cached latents save: whole training steps of one mixture, with and without them, in turns in one run.

    python benchmarks/mixture.py latents

A step is everything that happens per batch: reading the samples in this process, collation, forward, backward, AdamW.
Cosmos has the size of the released CI8x8 (76.8 M parameters) with random numbers in it: time does not depend on them.
"""

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lerobot.configs import FeatureType
from lerobot.utils.constants import ACTION, OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features
from measure import Table, count_work, interleave, pretend_accelerator, time_once
from recordings import CAMERAS, quiet, say
from torch.utils.data import default_collate
from training import Step

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.data.canonical import CAMERA_KEYS, SampleShape
from lerobot_internvla.data.latent_cache import LatentCache, LatentRecipe, open_latents
from lerobot_internvla.data.latent_writing import plan_latents, verify_latents, write_latents
from lerobot_internvla.data.mixture_dataset import MixtureDataset, ReadSettings
from lerobot_internvla.data.sources import Mixture, load_mixture
from lerobot_internvla.data.stock_mixture import image_tokenizer_of
from lerobot_internvla.embodiments.spec import Dim, Embodiment, Part
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer
from lerobot_internvla.image_tokenizer.spec import COSMOS_CI8X8
from lerobot_internvla.model.architecture import build_architecture
from lerobot_internvla.testing import SMALL, small_config, tiny_dataset

SIZE = (240, 320)
JOINTS = ("shoulder", "elbow", "wrist", "gripper")
SETTINGS = ReadSettings(video_backend="pyav")


@dataclass(frozen=True)
class Case:
    """A policy whose training is timed."""

    about: str
    variant: str
    cosmos: bool
    episode_frames: int
    batch: int


CASES = {
    "tiny": Case("tiny, Haar", "tiny", cosmos=False, episode_frames=60, batch=8),
    "cosmos": Case("3b at test size, Cosmos CI8x8 in full size", "3b", cosmos=True, episode_frames=6, batch=1),
}


def configure(case: Case, folder: Path) -> InternVLAA1Config:
    """The policy's configuration; the image tokenizer is made in ``folder``."""
    changes: dict[str, Any] = {"chunk_size": 50, "n_action_steps": 50, "image_tokenizer_dtype": "float32"}
    if case.cosmos:
        build_image_tokenizer(COSMOS_CI8X8).save_pretrained(folder / "tokenizer")
        changes["architecture_overrides"] = {**SMALL[case.variant], "image_tokenizer": asdict(COSMOS_CI8X8)}
        changes["image_tokenizer"] = str(folder / "tokenizer")
    return small_config(case.variant, latent_cache=True, **changes)


def record(case: Case, folder: Path) -> Mixture:
    """One short episode of three cameras, as a mixture of one."""
    dims = tuple(Dim(name, "-1..1") for name in JOINTS)
    robot = Embodiment(
        name="benchmark_arm",
        title="an arm",
        robot_types=("benchmark_arm",),
        state=(Part(OBS_STATE, dims),),
        action=(Part(ACTION, dims),),
        cameras={camera: (camera,) for camera in CAMERAS},
        gripper="none",
        fps=30.0,
        source="benchmark",
    )
    with quiet():
        tiny_dataset(
            folder / "arm",
            episode_lengths=(case.episode_frames,),
            cameras=dict.fromkeys(CAMERAS, SIZE),
            joint_names=JOINTS,
            fps=30,
        )
    (folder / "robot.yaml").write_text(yaml.safe_dump(robot.to_dict(), sort_keys=False))
    file = folder / "mixture.yaml"
    file.write_text("sources:\n  arm: {root: arm, embodiment: robot.yaml, weight: 1}\n")
    return load_mixture(file, progress=False)


def open_dataset(mixture: Mixture, config: InternVLAA1Config, batch: int, cache: LatentCache | None) -> MixtureDataset:
    shape = replace(SampleShape.of(config), cached_latents=cache is not None)
    return MixtureDataset(
        mixture, shape, repo_id="local/benchmark", seed=0, batch_size=batch, settings=SETTINGS, latents=cache
    )


class Training:
    """Steps of a policy over batches of a dataset, one after the other."""

    def __init__(self, policy: InternVLAA1Policy, dataset: MixtureDataset, optimizer: torch.optim.Optimizer) -> None:
        self.policy, self.dataset, self.optimizer = policy, dataset, optimizer
        self.position = 0

    def read(self) -> dict[str, Any]:
        size = self.dataset.batch_size
        positions = range(self.position, self.position + size)
        self.position += size
        batch = default_collate([self.dataset[position] for position in positions])
        return {key: value / 255.0 if key in CAMERA_KEYS.values() else value for key, value in batch.items()}

    def step(self) -> None:
        loss, _ = self.policy.forward(self.read())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def run_case(case: Case, rounds: int) -> dict[str, Any]:
    """Writing, verification, and the clocks of reading and of steps, with and without the cache."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        config, mixture = configure(case, folder), record(case, folder)
        tokenizer = image_tokenizer_of(config)
        recipe = LatentRecipe.of(tokenizer, config.architecture)
        plan = plan_latents(mixture, recipe)
        say(f"{case.about}: writing {plan.pictures} latents")
        write = functools.partial(write_latents, plan, tokenizer, video_backend="pyav", progress=False)
        writing = time_once(functools.partial(write, batch_size=min(32, case.episode_frames)))
        cache = open_latents(mixture, recipe, command="")
        verified = verify_latents(mixture, cache, tokenizer, SampleShape.of(config), samples=2, settings=SETTINGS)
        plain, cached = (open_dataset(mixture, config, case.batch, latents) for latents in (None, cache))
        features = dataset_to_policy_features(cached.meta.features)
        config.output_features = {key: f for key, f in features.items() if f.type is FeatureType.ACTION}
        config.input_features = {key: f for key, f in features.items() if key not in config.output_features}
        policy = InternVLAA1Policy(config, dataset_meta=cached.meta).train()
        optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-5)
        say(f"{case.about}: {rounds} rounds")
        stages: dict[str, Callable[[], Any]] = {}
        for name, dataset in (("plain", plain), ("cached", cached)):
            stages[f"{name}, reading"] = Training(policy, dataset, optimizer).read
            stages[f"{name}, step"] = Training(policy, dataset, optimizer).step
        clocks = interleave(stages, rounds=rounds)
        ratios = [
            slow / fast for slow, fast in zip(clocks["plain, step"].wall_s, clocks["cached, step"].wall_s, strict=True)
        ]
        return {
            "about": case.about,
            "batch": case.batch,
            "parameters": sum(p.numel() for p in policy.parameters()),
            "pictures": plan.pictures,
            "bytes_per_picture": recipe.bytes_per_frame,
            "writing_s": writing.wall_s[0],
            "verified": asdict(verified),
            "stages": {name: clock.as_dict(torch.get_num_threads()) for name, clock in clocks.items()},
            "step_ratio_median": statistics.median(ratios),
        }


def count_in_full_size() -> dict[str, float]:
    """GFLOP of one training sample of 3b, forward and backward, counted on tensors without memory."""
    counted: dict[str, float] = {}
    with pretend_accelerator("cpu"):
        architecture = build_architecture("3b", {})
        step = Step(architecture, 1)
        spec = architecture.image_tokenizer
        latents = torch.randn(1, 3, 3, spec.latent_channels, *spec.latent_size)

        def forward(latents: torch.Tensor | None) -> None:
            step.losses = step.model(
                step.observation, step.targets, step.noise, step.time, lambda_gen=0.01, latents=latents
            )

        for name, given in (("plain", None), ("cached", latents)):
            flop = count_work(functools.partial(forward, given), step.model.parameters()).flop
            counted[name] = (flop + count_work(step.backward, step.model.parameters()).flop) / 1e9
    return counted


def run_latents(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every case, and the arithmetic for the real size."""
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"threads": arguments.threads, "cases": {}}
    for name in arguments.cases:
        case = CASES[name]
        results["cases"][name] = run_case(case, arguments.rounds if not case.cosmos else min(arguments.rounds, 4))
    say("3b: counting")
    results["gflop_per_sample"] = count_in_full_size()
    return results


def latents_tables(results: dict[str, Any]) -> list[Table]:
    """Training with and without cached latents; work in the real size."""
    table = Table(
        "Cached latents: training steps with and without",
        [
            "policy",
            "latents",
            "batch",
            "reading ms",
            "step ms",
            "samples/s",
            "gain",
            "step CPU ms",
            "CPU gain",
            "kB per picture",
        ],
    )
    for case in results["cases"].values():
        for name in ("plain", "cached"):
            reading, step = (case["stages"][f"{name}, {part}"] for part in ("reading", "step"))
            table.add(
                case["about"],
                "computed" if name == "plain" else "cached",
                case["batch"],
                f"{1e3 * reading['wall_median_s']:.0f}",
                f"{1e3 * step['wall_median_s']:.0f}",
                f"{case['batch'] / step['wall_median_s']:.3g}",
                "1.00" if name == "plain" else f"{case['step_ratio_median']:.3g}",
                f"{1e3 * step['cpu_median_s']:.0f}",
                f"{case['stages']['plain, step']['cpu_median_s'] / step['cpu_median_s']:.3g}",
                "" if name == "plain" else f"{case['bytes_per_picture'] / 1e3:.0f}",
            )
    notes = [
        f"{case['about']}: {case['pictures']} latents written in {case['writing_s']:.1f} s; of "
        f"{case['verified']['samples']} verified samples {case['verified']['identical']} are equal to the last bit, "
        f"the largest difference is {case['verified']['largest']:.2g}"
        for case in results["cases"].values()
    ]
    table.note = (
        f"Medians, {results['threads']} thread; three cameras of 240 x 320, H.264, pyav, read in the same process. A "
        "step: reading (also shown alone), collation, forward, backward, AdamW; both kinds take turns. Gain: time "
        "without the cache divided by time with it, in the same round, the median over rounds; CPU gain: of the "
        "median CPU times, which a busy machine disturbs less. Beside Cosmos the test-size model is nothing: that gain "
        "says what the tokenizer costs, not what 3b gains; for that see the next table. " + ". ".join(notes) + "."
    )
    work = Table("Cached latents: work of one training sample of 3b", ["latents", "TFLOP", "gain"])
    counted = results["gflop_per_sample"]
    for name in ("plain", "cached"):
        gain = counted["plain"] / counted[name]
        work.add("computed" if name == "plain" else "cached", f"{counted[name] / 1e3:.3f}", f"{gain:.2f}")
    work.note = (
        "Matrix products, convolutions and attention of forward and backward, counted, not timed: the most that a "
        "computer whose speed is all arithmetic can gain. Decoding one frame per camera instead of three comes on top "
        "where the loader is what a step waits for."
    )
    return [table, work]
