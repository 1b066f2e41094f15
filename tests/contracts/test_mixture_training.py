"""Mixtures in stock ``lerobot-train``: one run over several robots, exact on resume, at one rank and at two.

Then what the checkpoint is good for: each of its robots acts, further ones are added, it is published.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file
from torch import Tensor

from contracts.mixture_rank import watched
from contracts.test_fine_tuning import told
from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.data.sources import load_mixture
from lerobot_internvla.foresight import imagine
from lerobot_internvla.statistics import statistics_from_dataset
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy
from stock_commands import last_checkpoint, lerobot_train

STEPS, BATCH = 6, 4
SOURCES = ("arm", "slider", "fast_slider", "people")
SHARES = dict(zip(SOURCES, (0.4, 0.3, 0.1, 0.2), strict=True))
PER_SOURCE = {
    "share_distance",
    *(f"share/{name}" for name in SOURCES),
    *(f"loss_foresight/{name}" for name in SOURCES),
    *(f"loss_action/{name}" for name in SOURCES if name != "people"),
}


def flags(mixture_file: Path, output: Path, *more: str, steps: int = STEPS) -> list[str]:
    return [
        "--policy.type=internvla_a1",
        "--policy.variant=tiny",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.chunk_size=8",
        "--policy.n_action_steps=4",
        "--policy.num_inference_steps=2",
        "--policy.action_representation=relative",
        "--dataset.repo_id=local/mixture",
        f"--dataset.root={mixture_file}",
        "--dataset.video_backend=pyav",
        *run_flags(output, steps),
        *more,
    ]


def run_flags(output: Path, steps: int) -> list[str]:
    return [
        f"--output_dir={output}",
        f"--steps={steps}",
        f"--batch_size={BATCH}",
        *("--save_freq=3", "--num_workers=0", "--log_freq=1", "--env_eval_freq=0", "--wandb.enable=false"),
    ]


@pytest.fixture(scope="module")
def run(mixture_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """Six steps on one rank, saved after three and six; the output folder, and what was seen."""
    output = tmp_path_factory.mktemp("one") / "run"
    with watched() as seen:
        lerobot_train(*flags(mixture_file, output))
    return output, seen


@pytest.fixture(scope="module")
def checkpoint(run: tuple[Path, dict[str, list[Any]]]) -> Path:
    return last_checkpoint(run[0])


def interrupted(output: Path, copy: Path) -> Path:
    """A copy of a run that was stopped after its third step; its train_config.json, for --config_path."""
    shutil.copytree(output, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / "000006")
    last = copy / "checkpoints" / "last"
    last.unlink()
    last.symlink_to("000003")
    return copy / "checkpoints" / "000003" / "pretrained_model" / "train_config.json"


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(last_checkpoint(folder) / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# --- one rank ---------------------------------------------------------------------------------------------------------


def test_the_log_has_losses_and_shares_of_every_source_at_every_step(run: tuple[Path, dict[str, list[Any]]]):
    metrics = run[1]["metrics"]
    assert len(metrics) == STEPS and all(step.keys() == metrics[0].keys() for step in metrics)
    assert metrics[0].keys() >= PER_SOURCE
    assert not [name for name in metrics[0] if name == "loss_action/people"], "people have no actions to lose on"
    drawn = Counter(sample.split("-")[0] for step in run[1]["samples"] for sample in step)
    total = STEPS * BATCH
    for index, (name, share) in enumerate(SHARES.items()):
        assert metrics[-1][f"share/{name}"] == pytest.approx(drawn[str(index)] / total)
        assert abs(drawn[str(index)] - share * total) < 2, name
        assert metrics[-1][f"loss_foresight/{name}"] > 0
    distance = sum(abs(metrics[-1][f"share/{name}"] - share) for name, share in SHARES.items()) / 2
    assert metrics[-1]["share_distance"] == pytest.approx(distance, abs=1e-6)


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_samples_with_workers_and_from_another_folder(
    run: tuple[Path, dict[str, list[Any]]], mixture_file: Path, tmp_path: Path
):
    """The mixture is recognised by its content: the same datasets at another place are the same mixture."""
    output, uninterrupted = run
    moved = tmp_path / "moved"
    shutil.copytree(mixture_file.parent, moved)
    config = interrupted(output, tmp_path / "copy")
    with watched() as seen:
        lerobot_train(
            f"--config_path={config}",
            "--resume=true",
            f"--output_dir={tmp_path / 'copy'}",
            f"--dataset.root={moved / mixture_file.name}",
            "--num_workers=2",
        )
    assert seen["samples"] == uninterrupted["samples"][3:]
    assert len({sample for step in uninterrupted["samples"] for sample in step}) == STEPS * BATCH, "no repetition yet"
    assert same_weights(tmp_path / "copy", output)


def test_a_changed_mixture_is_not_resumed(run: tuple[Path, dict[str, list[Any]]], mixture_file: Path, tmp_path: Path):
    heavier = mixture_file.with_name("heavier.yaml")
    heavier.write_text(mixture_file.read_text().replace("weight: 0.3", "weight: 0.31"))
    config = interrupted(run[0], tmp_path / "copy")
    with pytest.raises(InternVLAError, match="changed since this run was interrupted"):
        lerobot_train(f"--config_path={config}", "--resume=true", f"--dataset.root={heavier}")


def test_another_batch_size_on_resume_is_explained(run: tuple[Path, dict[str, list[Any]]], tmp_path: Path):
    """Twelve positions were taken: the third batch of five is the first that is new."""
    config = interrupted(run[0], tmp_path / "copy")
    with told() as log, watched() as seen:
        lerobot_train(f"--config_path={config}", "--resume=true", "--batch_size=5", "--steps=4")
    assert "batches of 4 and resumes with batches of 5" in "\n".join(log)
    assert len(seen["samples"]) == 1 and len(seen["samples"][0]) == 5


def test_flags_that_mean_nothing_are_refused_together(mixture_file: Path, tmp_path: Path):
    with pytest.raises(InternVLAError) as caught:
        lerobot_train(
            *flags(
                mixture_file,
                tmp_path / "run",
                "--dataset.eval_split=0.2",
                "--dataset.episodes=[0]",
                "--dataset.revision=main",
                '--policy.camera_slots={"head": "observation.images.top"}',
            )
        )
    message = str(caught.value)
    for flag in ("--dataset.eval_split", "--dataset.episodes", "--dataset.revision", "--policy.camera_slots"):
        assert flag in message
    with pytest.raises(InternVLAError, match="streaming"):
        lerobot_train(*flags(mixture_file, tmp_path / "run", "--dataset.streaming=true"))


def test_other_policies_do_not_train_on_a_mixture(mixture_file: Path, tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"only policy.type=internvla_a1"):
        lerobot_train(
            *("--policy.type=act", "--policy.device=cpu", "--policy.push_to_hub=false"),
            *("--dataset.repo_id=local/mixture", f"--dataset.root={mixture_file}"),
            *run_flags(tmp_path / "run", 1),
        )


# --- two ranks --------------------------------------------------------------------------------------------------------


def two_ranks(report: Path, *command: str) -> list[dict[str, list[Any]]]:
    """``lerobot-train`` under torchrun with gloo; what each rank drew and logged."""
    report.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    tests = Path(__file__).parents[1]
    finished = subprocess.run(
        [*torchrun, str(tests / "contracts" / "mixture_rank.py"), str(report), *command],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])},
        stdin=subprocess.DEVNULL,
    )
    assert finished.returncode == 0, finished.stderr[-6000:]
    return [json.loads((report / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_ranks_share_the_mixture_and_resume_exactly(mixture_file: Path, tmp_path: Path):
    output = tmp_path / "run"
    ranks = two_ranks(tmp_path / "first", *flags(mixture_file, output))

    # Each has its own part: other frames, and the rank with people alone may have batches without any action.
    samples = [{sample for step in rank["samples"] for sample in step} for rank in ranks]
    assert len(samples[0]) == len(samples[1]) == STEPS * BATCH and not samples[0] & samples[1]
    counts = Counter(sample.split("-")[0] for rank in samples for sample in rank)
    for index, share in enumerate(SHARES.values()):
        assert abs(counts[str(index)] - 2 * STEPS * BATCH * share) <= 4
    sources = [{sample.split("-")[0] for sample in rank} for rank in samples]
    assert sources[0] != sources[1], "no rank opens everything"

    # Both log the same numbers by source, and the same names at every step.
    assert ranks[0]["metrics"][0].keys() >= PER_SOURCE
    for one, other in zip(*(rank["metrics"] for rank in ranks), strict=True):
        assert one.keys() == other.keys() == ranks[0]["metrics"][0].keys()
        for name in PER_SOURCE:
            assert one[name] == pytest.approx(other[name], rel=1e-5, nan_ok=True), name
    for index, name in enumerate(SOURCES):
        assert ranks[0]["metrics"][-1][f"share/{name}"] == pytest.approx(counts[str(index)] / (2 * STEPS * BATCH))

    # Stopped after three steps, with and without workers, the same samples follow.
    config = interrupted(output, tmp_path / "copy")
    again = two_ranks(
        tmp_path / "second",
        *(f"--config_path={config}", "--resume=true", f"--output_dir={tmp_path / 'copy'}"),
        *("--num_workers=2", "--dataloader_multiprocessing_context=fork"),  # spawned ones are tested above
    )
    for resumed, uninterrupted in zip(again, ranks, strict=True):
        assert resumed["samples"] == uninterrupted["samples"][3:]
    assert same_weights(tmp_path / "copy", output)

    # Gone on with on one rank, it says what that means.
    config = interrupted(output, tmp_path / "alone")
    with told() as log, watched() as seen:
        lerobot_train(f"--config_path={config}", "--resume=true", f"--output_dir={tmp_path / 'alone'}", "--steps=4")
    story = "\n".join(log)
    assert "interrupted with 2 ranks and resumes with 1" in story and "Resume with 2 ranks" in story
    assert len(seen["samples"]) == 1


# --- robots of a checkpoint -------------------------------------------------------------------------------------------


def observation(state_dim: int, cameras: dict[str, tuple[int, int]], seed: int = 0) -> dict[str, Any]:
    """One control tick of a robot, under the policy's camera names."""
    generator = torch.Generator().manual_seed(seed)
    pictures = {
        f"observation.images.{slot}": torch.rand(1, 3, *size, generator=generator) for slot, size in cameras.items()
    }
    return {**pictures, "observation.state": torch.randn(1, state_dim, generator=generator), "task": "move"}


ARM = observation(4, {"head": (48, 64), "left_wrist": (48, 64)})
SLIDER = observation(3, {"head": (64, 64)})


def test_one_checkpoint_drives_each_of_its_robots(checkpoint: Path):
    policy = InternVLAA1Policy.from_pretrained(checkpoint)
    noise = torch.zeros(1, 8, policy.config.architecture.max_action_dim)
    policy.act_as("tiny_arm")
    arm = policy.predict_action_chunk(ARM, noise=noise)
    assert arm.shape == (1, 8, 4) and policy._history_ticks() == 15
    policy.act_as("tiny_slider")
    slider = policy.predict_action_chunk(SLIDER, noise=noise)
    assert slider.shape == (1, 8, 3) and policy._history_ticks() == 5
    assert policy.select_action(SLIDER).shape == (1, 3)
    policy.act_as("tiny_arm")
    assert torch.equal(policy.predict_action_chunk(ARM, noise=noise), arm)

    named = policy.config
    named.embodiment = "tiny_slider"
    by_flag = InternVLAA1Policy.from_pretrained(checkpoint, config=named)
    assert torch.equal(by_flag.predict_action_chunk(SLIDER, noise=noise), slider)


def test_it_imagines_the_cameras_of_the_robot_whose_dataset_it_is_shown(checkpoint: Path):
    mixture = load_mixture(Path(json.loads((checkpoint / "train_config.json").read_text())["dataset"]["root"]))
    policy = InternVLAA1Policy.from_pretrained(checkpoint)
    for source, interval in ((mixture.sources[1], 0.5), (mixture.sources[0], 0.5)):
        dataset = LeRobotDataset(source.repo_id, root=source.root)
        theirs = source.features.cameras
        rename = {key: f"observation.images.{slot}" for slot, key in theirs.items()}
        policy.config.embodiment = source.embodiment.name
        (sample,) = imagine(policy, dataset, [6], rename_map=rename)
        assert sample.camera_slots == tuple(theirs) and sample.interval_s == pytest.approx(interval)
        assert sample.predicted.shape[0] == len(theirs) and torch.isfinite(sample.predicted).all()
        # The past that training saw at that frame: clamped to the start, or so many frames before.
        assert bool(sample.past_is_valid[0]) == (source.interval_frames <= 6)


def test_statistics_of_a_robot_decide_about_its_actions(checkpoint: Path):
    """The same model's numbers, in the units of each robot."""
    policy = InternVLAA1Policy.from_pretrained(checkpoint)
    mixture = load_mixture(Path(json.loads((checkpoint / "train_config.json").read_text())["dataset"]["root"]))
    meta = LeRobotDataset(mixture.sources[0].repo_id, root=mixture.sources[0].root).meta
    mask = mixture.embodiments[0].relative_mask
    expected = statistics_from_dataset(meta, representation="relative", relative_mask=mask, chunk_size=8)
    space = policy.action_space.of("tiny_arm")
    torch.testing.assert_close(space.action_mean[:4], torch.from_numpy(expected.action.mean).float())
    assert not torch.equal(space.action_mean, policy.action_space.of("tiny_slider").action_mean)


def test_without_a_name_widths_decide_and_ambiguity_lists_the_candidates(checkpoint: Path):
    policy = InternVLAA1Policy.from_pretrained(checkpoint)
    assert policy.predict_action_chunk(SLIDER).shape == (1, 8, 3), "only one robot has a state of three"
    policy = InternVLAA1Policy.from_pretrained(checkpoint)
    with pytest.raises(InternVLAError, match=r"None of the robots.*tiny_arm.*tiny_slider.*--policy.embodiment="):
        policy.predict_action_chunk(observation(5, {"head": (64, 64)}))
    policy.rows = {**policy.rows, "twin": policy.rows["tiny_arm"]}
    with pytest.raises(InternVLAError, match=r"Several of the robots.*tiny_arm, twin.*so say which one it is"):
        policy.predict_action_chunk(ARM)


def test_unknown_robots_and_robots_known_from_videos_are_refused(checkpoint: Path):
    policy = InternVLAA1Policy.from_pretrained(checkpoint)
    for name in ("crane", "tiny_people"):
        with pytest.raises(InternVLAError, match=rf"policy.embodiment='{name}'.*It knows: tiny_arm.*tiny_slider"):
            policy.act_as(name)
    config = policy.config
    config.embodiment = "crane"
    with pytest.raises(InternVLAError, match=r"policy.embodiment='crane'"):
        InternVLAA1Policy.from_pretrained(checkpoint, config=config)


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crane(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """A third robot: five joints, one camera, 20 frames per second."""
    return tiny_dataset(
        tmp_path_factory.mktemp("crane") / "data",
        repo_id="local/crane",
        cameras={"head": (48, 48)},
        joint_names=("turn", "lift", "reach", "tilt", "gripper"),
        fps=20,
        episode_lengths=(30, 26),
        video=False,
        seed=9,
    )


def fine_tune(checkpoint: Path, root: Path, output: Path, *more: str) -> Path:
    """Two steps with learning rate 0: the model's weights stay what they were."""
    lerobot_train(
        f"--policy.path={checkpoint}",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/fine",
        f"--dataset.root={root}",
        "--dataset.video_backend=pyav",
        *("--policy.lr_schedule=constant", "--policy.optimizer_lr=0", "--policy.input_features=null"),
        *run_flags(output, 2),
        *more,
    )
    return last_checkpoint(output)


def rows_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """robot -> its statistics, by name."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.startswith("action_space.robots."):
            _, _, robot, buffer = name.split(".")
            found.setdefault(robot, {})[buffer] = tensor
    return found


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def model_of(folder: Path) -> dict[str, Tensor]:
    return {name: t for name, t in load_file(folder / "model.safetensors").items() if name.startswith("model.")}


def test_a_new_robot_adds_a_row_and_leaves_the_others_as_they_were(
    checkpoint: Path, crane: LeRobotDataset, tmp_path: Path
):
    tuned = fine_tune(checkpoint, crane.root, tmp_path / "run", "--policy.embodiment=crane", "--policy.fps=20")
    before, after = rows_of(checkpoint), rows_of(tuned)
    assert after.keys() == {"tiny_arm", "tiny_slider", "crane"}
    assert all(equal(before[name], after[name]) for name in before)
    assert equal(model_of(checkpoint), model_of(tuned))
    expected = statistics_from_dataset(
        crane.meta, representation="relative", relative_mask=(True,) * 4 + (False,), chunk_size=8
    )
    torch.testing.assert_close(after["crane"]["action_mean"][:5], torch.from_numpy(expected.action.mean).float())

    policy = InternVLAA1Policy.from_pretrained(tuned)
    assert policy.robot == "crane" and policy._history_ticks() == 10
    assert policy.predict_action_chunk(observation(5, {"head": (48, 48)})).shape == (1, 8, 5)
    policy.act_as("tiny_slider")
    assert policy._history_ticks() == 5, "every robot keeps its own rate"


def test_a_known_robot_gets_new_statistics_and_the_others_keep_theirs(
    checkpoint: Path, mixture_file: Path, tmp_path: Path
):
    more = tiny_dataset(
        tmp_path / "data",
        cameras={"head": (48, 64)},
        joint_names=("x", "y", "gripper"),
        fps=10,
        episode_lengths=(24,),
        video=False,
        seed=5,
    )
    tuned = fine_tune(checkpoint, more.root, tmp_path / "run", "--policy.embodiment=tiny_slider")
    before, after = rows_of(checkpoint), rows_of(tuned)
    assert after.keys() == before.keys() and equal(before["tiny_arm"], after["tiny_arm"])
    assert not equal(before["tiny_slider"], after["tiny_slider"])
    kept = fine_tune(
        checkpoint, more.root, tmp_path / "kept", "--policy.embodiment=tiny_slider", "--policy.statistics=checkpoint"
    )
    assert equal(rows_of(kept)["tiny_slider"], before["tiny_slider"])


def test_whose_dataset_it_is_must_be_said(checkpoint: Path, crane: LeRobotDataset, tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"tiny_arm, tiny_slider, tiny_people.*Pass --policy.embodiment=<name>"):
        fine_tune(checkpoint, crane.root, tmp_path / "run", "--policy.fps=20")
    with pytest.raises(InternVLAError, match=r"state 4 and action 4.*has 5 and 5: another robot"):
        fine_tune(checkpoint, crane.root, tmp_path / "run", "--policy.embodiment=tiny_arm", "--policy.fps=20")
    with pytest.raises(InternVLAError, match=r"runs at 20 fps.*Pass --policy.fps=20"):
        fine_tune(checkpoint, crane.root, tmp_path / "run", "--policy.embodiment=crane")


def test_a_policy_of_one_robot_goes_on_with_a_mixture(mixture_file: Path, tmp_path: Path):
    single = tmp_path / "single"
    policy = tiny_policy(tiny_config(fps=10.0, chunk_size=8, n_action_steps=4))
    policy.save_pretrained(single)
    from lerobot.policies import make_pre_post_processors

    for pipeline in make_pre_post_processors(policy.config):
        pipeline.save_pretrained(single)
    tuned = fine_tune(single, mixture_file, tmp_path / "run")
    assert rows_of(tuned).keys() == {"tiny_arm", "tiny_slider"}
    assert equal(model_of(single), model_of(tuned))
    again = InternVLAA1Policy.from_pretrained(tuned)
    again.act_as("tiny_slider")
    assert again.predict_action_chunk(SLIDER).shape == (1, 8, 3)


def test_a_mixture_checkpoint_goes_on_with_a_smaller_mixture_and_keeps_all_robots(
    checkpoint: Path, mixture_file: Path, tmp_path: Path
):
    """The order of robots in a batch is that of the new mixture; rows are found by name."""
    fewer = mixture_file.with_name("fewer.yaml")
    kept = [line for line in mixture_file.read_text().splitlines() if "  arm:" not in line and "  fast" not in line]
    fewer.write_text("\n".join(kept))
    with watched() as seen:
        tuned = fine_tune(checkpoint, fewer, tmp_path / "run")
    assert {name.split("/")[1] for name in seen["metrics"][0] if name.startswith("share/")} == {"slider", "people"}
    before, after = rows_of(checkpoint), rows_of(tuned)
    assert after.keys() == before.keys() and equal(before["tiny_arm"], after["tiny_arm"])
    assert not equal(before["tiny_slider"], after["tiny_slider"]), "one dataset of it instead of two"
    policy = InternVLAA1Policy.from_pretrained(tuned)
    assert list(policy.rows) == ["tiny_slider", "tiny_people", "tiny_arm"]
    policy.act_as("tiny_arm")
    assert policy.predict_action_chunk(ARM).shape == (1, 8, 4)


def test_an_adapter_over_a_mixture_checkpoint(checkpoint: Path, mixture_file: Path, tmp_path: Path):
    peft = pytest.importorskip("peft")
    adapter = fine_tune(checkpoint, mixture_file, tmp_path / "run", "--peft.method_type=LORA", "--peft.r=2")
    assert (adapter / "adapter_model.safetensors").is_file() and not (adapter / "model.safetensors").exists()
    stored = load_file(adapter / "adapter_model.safetensors")
    for name, row in rows_of(checkpoint).items():
        mean = next(t for key, t in stored.items() if key.endswith(f"robots.{name}.action_mean"))
        assert torch.equal(mean, row["action_mean"]), "the adapter brings the statistics of all robots"

    plain, adapted = InternVLAA1Policy.from_pretrained(checkpoint), InternVLAA1Policy.from_pretrained(checkpoint)
    peft.PeftModel.from_pretrained(adapted, adapter)
    noise = torch.zeros(1, 8, plain.config.architecture.max_action_dim)
    for robot, batch in (("tiny_slider", SLIDER), ("tiny_arm", ARM)):
        for policy in (plain, adapted):
            policy.act_as(robot)
        chunks = [policy.predict_action_chunk(batch, noise=noise) for policy in (plain, adapted)]
        torch.testing.assert_close(*chunks)


# --- publishing -------------------------------------------------------------------------------------------------------


def test_the_card_of_a_mixture_names_its_sources_and_robots(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    from lerobot_internvla.publishing.lineage import read_lineage
    from lerobot_internvla.scripts.publish import main

    lineage = read_lineage(checkpoint)
    assert lineage is not None and lineage.statistics == "local/mixture"
    assert [(d.repo_id, d.robot_type, d.share, d.fps) for d in lineage.datasets] == [
        ("local/arm", "tiny_arm", pytest.approx(0.4), 30),
        ("local/slider", "tiny_slider", pytest.approx(0.3), 10),
        ("local/fast_slider", "tiny_slider", pytest.approx(0.1), 10),
        ("local/people", "tiny_people", pytest.approx(0.2), 10),
    ]
    card = checkpoint.parent / "card.md"
    assert main([str(checkpoint), "--repo_id=me/mixed", "--dry_run", f"--card={card}"]) == 0
    text = card.read_text()
    for part in (
        "Robot: tiny_arm, tiny_people, tiny_slider",
        "`tiny_arm`",
        "shoulder (relative), elbow (relative), wrist (relative), gripper",
        "none, videos only",
        "local/fast_slider (not on the Hub) | 10 %",
        "0.5 s, at the rate of each robot",
        "--policy.embodiment=<name>",
    ):
        assert part in text, text
    assert "local/mixture (not on the Hub)" not in text, "the mixture is no dataset"
    assert "cannot act" not in text
    policy = InternVLAA1Policy.from_pretrained(checkpoint)
    assert "`tiny_slider`" in str(policy.generate_model_card())
    capsys.readouterr()
