"""Bad input gets one clear message: what was wrong, what was expected, what to do. Nothing is lost or half-loaded."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy
from safetensors.torch import load_file, save_file

from lerobot_internvla import InternVLAA1Config, InternVLAA1Policy, InternVLAError
from lerobot_internvla.testing import small_config, tiny_batch, tiny_config, tiny_dataset, tiny_policy
from stock_commands import lerobot_eval, lerobot_rollout, lerobot_train, training_flags


def told(act: Callable[[], Any], *parts: str) -> str:
    """The message of the InternVLAError that ``act`` raises; it must contain all ``parts``."""
    with pytest.raises(InternVLAError) as caught:
        act()
    message = str(caught.value)
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"
    return message


@pytest.fixture(scope="module")
def policy() -> InternVLAA1Policy:
    return tiny_policy()


@pytest.fixture
def checkpoint(policy: InternVLAA1Policy, tmp_path: Path) -> Path:
    policy.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


# -------------------------------------------------------------------------------------------------------------- batches


def test_wrong_camera_names(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config, moment="tick")
    batch["observation.images.top"] = batch.pop("observation.images.head")
    told(
        lambda: policy.select_action(batch),
        "Missing cameras: observation.images.head",
        "observation.images.top",  # what there is
        "rename_map",
    )


def test_wrong_dims(policy: InternVLAA1Policy):
    training, tick = tiny_batch(policy.config), tiny_batch(policy.config, moment="tick")
    training["action"] = torch.zeros(2, 10, 6)
    tick["observation.state"] = torch.zeros(2, 9)
    policy.reset()
    told(lambda: policy.forward(training), "[2, 10, 6]", "4 action dims", "trained on")
    told(lambda: policy.select_action(tick), "[2, 9]", "4 state dims", "trained on")


def test_no_state(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config)
    del batch["observation.state"]
    told(lambda: policy.forward(batch), "no 'observation.state'", "action")


def test_a_chunk_of_another_length(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config)
    batch["action"] = batch["action"][:, :7]
    told(lambda: policy.forward(batch), "7 actions", "chunk_size is 10")


def test_wrong_number_of_frames(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config)
    batch["observation.images.head"] = batch["observation.images.head"][:, :2]
    told(lambda: policy.forward(batch), "3 frames", "[-3, 0, 3]", "'head': 2", "delta_timestamps")
    told(lambda: policy.forward(tiny_batch(policy.config, moment="tick")), "3 frames", "'head': 1")
    batch["observation.state"] = torch.zeros(2, 5, 4)
    policy.reset()
    told(lambda: policy.select_action(batch), "5 frames", "3 (past, now, future)")


def test_images_that_are_no_images(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config, moment="tick")
    policy.reset()
    normalised = {**batch, "observation.images.head": batch["observation.images.head"] * 4 - 2}
    told(lambda: policy.select_action(normalised), "do not look like images", "[0, 1]")
    channels_last = {**batch, "observation.images.head": batch["observation.images.head"].movedim(1, -1)}
    told(lambda: policy.predict_action_chunk(channels_last), "3, height, width", "movedim")


def test_missing_statistics():
    policy = InternVLAA1Policy(tiny_config())
    told(lambda: policy.forward(tiny_batch(policy.config)), "no statistics", "lerobot-train", "set_identity")


def test_as_many_tasks_as_samples(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config, 3)
    batch["task"] = batch["task"][:1]
    told(lambda: policy.forward(batch), "3 samples but 1 tasks")


def test_a_long_instruction_is_told_once_with_the_lost_text(
    policy: InternVLAA1Policy, caplog: pytest.LogCaptureFixture
):
    limit = policy.config.architecture.prompt_tokens
    batch = tiny_batch(policy.config, 1)
    batch["task"] = ["put the red cube " + "carefully " * 3 + "into the box on the left, not into the blue one"]
    assert len(batch["task"][0]) > limit
    with caplog.at_level(logging.WARNING):
        loss, _ = policy.forward(batch)
        policy.forward(batch)
    warnings = [r.getMessage() for r in caplog.records if "Lost" in r.getMessage()]
    assert len(warnings) == 1
    assert repr(batch["task"][0][limit:]) in warnings[0]
    assert str(limit) in warnings[0]
    assert torch.isfinite(loss)


def test_a_text_tokenizer_of_another_model(tmp_path: Path):
    """Ids beyond the vocabulary would read foreign memory on a GPU."""
    config = small_config("tiny")
    config.architecture_overrides = {**config.architecture_overrides, "vocabulary": 100}
    policy = tiny_policy(config)
    told(lambda: policy.forward(tiny_batch(config)), "knows 100 ids", "text_tokenizer")


# ---------------------------------------------------------------------------------------------------------- checkpoints


def load(folder: Path | str, **kwargs: Any) -> Callable[[], InternVLAA1Policy]:
    return lambda: InternVLAA1Policy.from_pretrained(folder, **kwargs)


def test_no_such_folder(tmp_path: Path):
    told(load(tmp_path / "nowhere"), "no checkpoint folder", "nowhere", "checkpoints/last/pretrained_model")
    told(load("./outputs/run"), "no checkpoint folder")


def test_a_folder_without_weights_or_configuration(checkpoint: Path, tmp_path: Path):
    config = InternVLAA1Config.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    told(load(checkpoint), "no model.safetensors", "config.json", "checkpoints/last/pretrained_model")
    (checkpoint / "config.json").unlink()
    told(load(checkpoint), "config.json not found")
    told(load(tmp_path, config=config), "no model.safetensors")


@pytest.mark.parametrize("size", [0, 7, 4_000, -1])
def test_a_truncated_file(checkpoint: Path, size: int):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    told(load(checkpoint), "cannot be read as safetensors", "truncated", "copy or download it again")


def test_a_file_that_is_something_else(checkpoint: Path):
    (checkpoint / "model.safetensors").write_bytes(b"PK\x03\x04" + b"\0" * 200)
    told(load(checkpoint), "cannot be read as safetensors", "not a checkpoint")


def edit_weights(checkpoint: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    edit(weights)
    save_file(weights, checkpoint / "model.safetensors")


def test_all_misfits_are_listed_at_once(checkpoint: Path):
    def edit(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.action_head.state_proj.bias"]
        weights["model.action_head.surplus"] = torch.zeros(1)
        weights["model.action_head.action_out_proj.weight"] = torch.zeros(3, 3)

    edit_weights(checkpoint, edit)
    told(
        load(checkpoint),
        "3 problems",
        "missing: model.action_head.state_proj.bias",
        "unexpected: model.action_head.surplus",
        "wrong shape: model.action_head.action_out_proj.weight is (3, 3)",
        "config.json",
    )


def test_a_checkpoint_of_the_reference_implementation(checkpoint: Path):
    save_file(
        {"model.qwen3_vl_with_expert.und_expert.lm_head.weight": torch.zeros(2)}, checkpoint / "model.safetensors"
    )
    told(load(checkpoint), "reference implementation", "converted")


def test_a_checkpoint_of_another_policy(checkpoint: Path):
    from lerobot.policies.act.configuration_act import ACTConfig

    ACTConfig(device="cpu").save_pretrained(checkpoint)
    told(load(checkpoint), "'act'", "'internvla_a1'")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "type": "somebodys"}))
    told(load(checkpoint), "'somebodys'", "not registered")
    (checkpoint / "config.json").write_text("{")
    told(load(checkpoint), "cannot be used")


def test_a_configuration_that_does_not_belong_to_the_weights(checkpoint: Path):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architecture_overrides": {"layers": 6}}))
    told(load(checkpoint), "missing: model.mixture.layers.3", "architecture_overrides")
    path.write_text(json.dumps({**config, "chunk_size": 3}))
    told(load(checkpoint), "n_action_steps=5", "chunk_size=3")


def test_statistics_of_another_robot_or_representation(checkpoint: Path):
    """Loading 4-joint statistics for 6 joints, or absolute statistics for relative actions, is refused."""
    told(load(checkpoint, config=tiny_config(action_dim=6)), "saved for 4 action dims", "has 6")
    relative = tiny_config(action_representation="relative", absolute_joint_indices=[])
    told(load(checkpoint, config=relative), "absolute in the checkpoint and relative in this policy")


def test_nothing_is_half_loaded(checkpoint: Path, policy: InternVLAA1Policy):
    from lerobot_internvla.checkpoints.safe_loading import load_weights

    edit_weights(checkpoint, lambda weights: weights.pop("model.action_head.state_proj.bias"))
    other = tiny_policy(seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    told(lambda: load_weights(other, checkpoint / "model.safetensors"), "1 problems")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


# ------------------------------------------------------------------------------------------------------------- datasets


def trained_on(dataset: LeRobotDataset, **changes: Any) -> Callable[[], Any]:
    """What ``lerobot-train`` does with a dataset before its first step."""
    config = tiny_config(**{"input_features": {}, "output_features": {}, **changes})
    return lambda: make_policy(config, ds_meta=dataset.meta)


def without_video(root: Path, **changes: Any) -> LeRobotDataset:
    return tiny_dataset(root / "data", **{"episode_lengths": (6,), "video": False, **changes})


def test_a_dataset_without_cameras(tmp_path: Path):
    told(trained_on(without_video(tmp_path, cameras=[])), "no camera", "observation.state", "Record the dataset with")


def test_cameras_whose_names_say_nothing(tmp_path: Path):
    data = without_video(tmp_path, cameras=["cam0", "cam1"])
    told(trained_on(data), "observation.images.cam0", "head, left_wrist, right_wrist", "--policy.camera_slots=")
    slots = {"head": "cam1", "left_wrist": "cam0"}
    assert trained_on(data, camera_slots=slots)().camera_slots["head"] == "observation.images.cam1"


def test_too_many_joints(tmp_path: Path):
    data = without_video(tmp_path, joint_names=[f"joint_{i}" for i in range(33)])
    told(trained_on(data), "'observation.state' has 33 dims", "'action' has 33 dims", "at most 32")


def test_relative_actions_need_joints_that_agree(tmp_path: Path):
    data = without_video(tmp_path, joint_names=["a", "b"], state_names=["b", "a"])
    relative = {"action_representation": "relative", "absolute_joint_names": []}
    told(trained_on(data, **relative), "NOT THE SAME", "--policy.absolute_joint_indices")
    assert trained_on(data, **relative, absolute_joint_indices=[0])().action_space.relative_mask == (False, True)


def test_a_frame_rate_that_contradicts_the_dataset(tmp_path: Path):
    data = without_video(tmp_path, fps=10)
    told(
        trained_on(data, foresight_interval_s=0.5, fps=30.0),
        "policy.fps is 30.0",
        "10 fps",
        "--policy.fps=10",
    )


# --------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--policy.n_action_steps=11", "n_action_steps=11 is larger than chunk_size=10"),
        ("--policy.variant=huge", "Unknown variant 'huge'. Known: 3b, 2b, tiny"),
        ("--policy.foresight_interval_s=0.25", "needs the frame rate: pass --policy.fps"),
    ],
)
def test_the_command_line_shows_the_reason(
    flag: str, says: str, dataset: LeRobotDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """draccus hides the text of a ValueError behind "Couldn't instantiate class"; ours must reach the user."""
    with pytest.raises(SystemExit):
        lerobot_train(*training_flags(dataset.root, tmp_path / "run", steps=1), flag)
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_line_shows_why_a_checkpoint_cannot_be_run_so(checkpoint: Path):
    with pytest.raises(InternVLAError, match="n_action_steps=11 is larger than chunk_size=10"):
        lerobot_eval(f"--policy.path={checkpoint}", "--policy.n_action_steps=11", "--env.type=conveyor")


def test_an_interval_at_the_wrong_rate_stops_before_the_first_step(dataset: LeRobotDataset, tmp_path: Path):
    flags = training_flags(dataset.root, tmp_path / "run", steps=1)
    with pytest.raises(InternVLAError, match=r"--policy\.fps=10"):
        lerobot_train(*flags, "--policy.foresight_interval_s=0.5", "--policy.fps=30")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--dataset.root={tmp}/nowhere"], ["'local/tiny' cannot be opened", "nowhere' holds no meta/info.json"]),
        (["--dataset.episodes=[0,7]"], ["there is no episode 7", "it has 0 to 2"]),
        (["--dataset.streaming=true"], ["--dataset.streaming=true", "future frames", "use_foresight=false"]),
        (["--policy.pretrained_path={tmp}/nowhere"], ["no checkpoint folder", "checkpoints/last/pretrained_model"]),
        (["--dataset.root={tmp}/mix.yaml"], ["no file", "mix.yaml"]),
        (['--policy.camera_slots={{"hed": "observation.images.head"}}'], ["did you mean 'head'?"]),
        (
            ['--policy.camera_slots={{"head": "phone"}}'],
            ["'phone'", "observation.images.head", "--policy.camera_slots"],
        ),
    ],
)
def test_training_on_what_is_not_there(flags: list[str], parts: list[str], dataset: LeRobotDataset, tmp_path: Path):
    """Nothing is written but a log folder, and LeRobot's own search of the Hub is not the last word."""
    given = [flag.format(tmp=tmp_path) for flag in flags]
    named = {flag.partition("=")[0] for flag in given}
    usual = [f for f in training_flags(dataset.root, tmp_path / "run", steps=1) if f.partition("=")[0] not in named]
    told(lambda: lerobot_train(*usual, *given), *parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


# ------------------------------------------------------------------------------------------------------- on the robot


@pytest.fixture(scope="module")
def conveyor_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conveyor") / "policy"
    tiny_policy(state_dim=6, action_dim=6, fps=10.0).save_pretrained(folder)
    return folder


def roll_out(policy: Path, *flags: str) -> None:
    usual = ("--robot.type=conveyor", "--task=x", "--fps=10", "--duration=1", "--device=cpu")
    lerobot_rollout(f"--policy.path={policy}", *usual, "--return_to_initial_position=false", *flags)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--robot.task=trian"], ["unknown task 'trian', known are train", "--robot.task"]),
        (["--robot.belt_speed=[0.5,0.2]"], ["(0.5, 0.2)", "0 < slowest <= fastest <= 1"]),
        (["--robot.instruction=fetch"], ["'fetch' is not an instruction", "red parcel, left arm to left bin"]),
        (["--inference.type=rtc", "--inference.rtc.execution_horizon=0"], ["execution_horizon=0", "at least 1"]),
        (["--policy.n_action_steps=100"], ["n_action_steps=100 is larger than chunk_size=10"]),
        (
            ['--rename_map={"observation.images.head": "observation.images.top"}'],
            ["Missing cameras: observation.images.head", "observation.images.top", "--rename_map"],
        ),
    ],
)
def test_a_rollout_that_cannot_work_says_why(
    flags: list[str], parts: list[str], conveyor_policy: Path, capsys: pytest.CaptureFixture[str]
):
    """Some are found while the command line is read, some before the robot connects, none after it has moved."""
    with pytest.raises((InternVLAError, SystemExit)) as ended:
        roll_out(conveyor_policy, *flags)
    said = str(ended.value) + capsys.readouterr().err
    assert not [part for part in parts if part not in said], said


def test_a_policy_of_another_robot_says_so_before_anything_moves(policy: InternVLAA1Policy, checkpoint: Path):
    told(lambda: roll_out(checkpoint), "4 state dims and 4 action dims", "[1, 6]", "the robot")
    told(
        lambda: lerobot_eval(f"--policy.path={checkpoint}", "--env.type=conveyor", "--eval.n_episodes=1"),
        "saved for 4 action dims, this policy has 6",
        "take the robot or environment that it was trained for",
    )
