"""internvla-check, end to end: exit codes, the table, JSON; robots that are not connected."""

import json
import shutil

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors

from lerobot_internvla.evaluation import readiness
from lerobot_internvla.scripts.check import main
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy

JOINTS = ("left_x", "left_y", "left_gripper", "right_x", "right_y", "right_gripper")
CAMERAS = ("head", "left_wrist", "right_wrist")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A policy for the simulated conveyor, and a dataset of another robot."""
    root = tmp_path_factory.mktemp("check")
    tiny_dataset(root / "data", cameras=["top"], episode_lengths=(8,), fps=30, video=False)
    config = tiny_config(cameras=CAMERAS, state_dim=6, action_dim=6, fps=10.0)
    config.action_feature_names = config.state_feature_names = list(JOINTS)
    policy = tiny_policy(config)
    policy.save_pretrained(root / "policy")
    for pipeline in make_pre_post_processors(policy.config):
        pipeline.save_pretrained(root / "policy")
    return root


@pytest.fixture
def run(capsys, monkeypatch):
    # A process of its own takes seconds; tests/evaluation/test_readiness.py has it.
    monkeypatch.setattr(readiness, "check_plugin", lambda: [readiness.Finding("plugin", "ok", "as if")])

    def call(*flags):
        status = main(["--repetitions=1", *map(str, flags)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def failures(out):
    return {f["area"] for f in json.loads(out)["findings"] if f["verdict"] == "failure"}


def test_without_a_policy_it_looks_at_the_installation(run):
    status, out, _ = run()
    assert status == 0 and "READY" in out
    for area in ("versions", "plugin", "device"):
        assert area in out


def test_a_policy_and_the_robot_that_it_was_trained_for(run, place):
    status, out, _ = run(f"--policy.path={place / 'policy'}", "--robot.type=conveyor", "--fps=10", "--json=true")
    assert status == 0 and failures(out) == set()
    found = json.loads(out)["findings"]
    assert json.loads(out)["ready"] is True
    assert {f["area"] for f in found} >= {"checkpoint", "cameras", "joints", "limits", "rate", "latency", "memory"}


def test_a_policy_and_another_robots_dataset(run, place):
    flags = [f"--policy.path={place / 'policy'}", f"--dataset.root={place / 'data'}"]
    status, out, _ = run(*flags, "--json=true")
    assert status == 1 and failures(out) == {"cameras", "joints", "rate"}
    status, out, _ = run(*flags)
    assert status == 1 and "NOT READY: 4 things will fail" in out and "next:" in out


def test_a_broken_checkpoint_is_a_finding(run, place, tmp_path):
    status, out, _ = run("--policy.path=/no/such/folder", "--json=true")
    assert status == 1 and failures(out) == {"checkpoint"}
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text((place / "policy" / "config.json").read_text())
    status, out, _ = run(f"--policy.path={tmp_path}", "--json=true")
    assert status == 1 and failures(out) == {"checkpoint"}


def test_a_robot_that_cannot_be_built_is_a_finding(run, monkeypatch):
    from lerobot.robots import utils

    def fails(config):
        raise ImportError("its SDK is missing")

    monkeypatch.setattr(utils, "make_robot_from_config", fails)
    status, out, _ = run("--robot.type=conveyor", "--json=true")
    assert status == 1 and failures(out) == {"robot"} and "its SDK is missing" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="for computers without a GPU")
@pytest.mark.parametrize("flag", ["--device=cuda", "--policy.device=cuda", "--device=cudaa"])
def test_a_device_that_was_asked_for_and_is_not_here_is_a_failure(run, place, flag):
    """LeRobot would take the CPU instead, with a warning that nobody reads among the others."""
    status, out, _ = run(f"--policy.path={place / 'policy'}", flag, "--json=true")
    assert status == 1 and "device" in failures(out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for computers without a GPU")
def test_a_checkpoint_from_another_computer_warns_of_its_device(run, place, tmp_path):
    shutil.copytree(place / "policy", tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    (tmp_path / "policy" / "config.json").write_text(json.dumps({**config, "device": "cuda"}))
    status, out, _ = run(f"--policy.path={tmp_path / 'policy'}", "--json=true")
    assert status == 0 and "device" in {f["area"] for f in json.loads(out)["findings"] if f["verdict"] == "warning"}
    assert "saved for cuda, which is not here: LeRobot takes cpu" in out


def test_a_dataset_that_is_not_there_is_a_finding(run):
    status, out, _ = run("--dataset.root=/no/such/dataset", "--json=true")
    assert status == 1 and failures(out) == {"dataset"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fps=-3"], "fps is -3, expected more than 0"),
        (["--policy.device=cpu"], "which policy?"),
        (["--nonsense=1"], "nonsense"),
    ],
)
def test_wrong_command_lines_end_with_two(run, flags, message):
    try:
        status, _, error = run(*flags)
    except SystemExit as end:  # argparse's own
        status, error = end.code, message
    assert status == 2 and message in error
