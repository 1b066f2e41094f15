"""internvla-openloop, end to end on saved policies and a dataset on disk."""

import json
import subprocess
import sys

import pytest
from lerobot.policies.factory import make_pre_post_processors

from lerobot_internvla.scripts.open_loop import main, policy_paths
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("openloop")
    tiny_dataset(root / "data", cameras=["head"], episode_lengths=(10, 8), fps=10, video=False)
    for name, seed in (("one", 0), ("two", 1)):
        policy = tiny_policy(tiny_config(cameras=["head"], fps=10.0), seed=seed)
        policy.save_pretrained(root / name)
        for pipeline in make_pre_post_processors(policy.config):
            pipeline.save_pretrained(root / name)
    return root


@pytest.fixture
def run(place, tmp_path, capsys):
    def call(*flags, policies=("one",), root=None):
        paths = [f"--policy.path={place / name}" for name in policies]
        data = ["--dataset.repo_id=local/tiny", f"--dataset.root={root or place / 'data'}"]
        status = main([*paths, *data, f"--output_dir={tmp_path / 'out'}", "--foresight_samples=3", *flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_two_policies_on_one_page(run, tmp_path):
    status, out, _ = run("--dataset.episodes=[1]", "--names=[young,old]", policies=("one", "two"))
    assert status == 0
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [policy["name"] for policy in document["policies"]] == ["young", "old"]
    assert document["episodes"] == [1] and set(document["foresight"]) == {"young", "old"}
    for words in ("young: ", "old: ", "hold the state", str(tmp_path / "out" / "report.html"), "unknown"):
        assert words in out
    page = (tmp_path / "out" / "report.md").read_text()
    assert "foresight_young_0.png" in page and "episode_1.png" in page


def test_the_same_seed_gives_the_same_numbers(run, tmp_path):
    def numbers(*flags):
        assert run("--overwrite=true", "--plots=0", *flags)[0] == 0
        return json.loads((tmp_path / "out" / "report.json").read_text())["policies"][0]["executed"]

    first = numbers()
    assert numbers() == first
    assert numbers("--seed=3") != first


def test_policy_flags_reach_the_checkpoint(run, tmp_path):
    assert run("--policy.n_action_steps=2", "--plots=0")[0] == 0
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["policies"][0]["n_action_steps"] == document["stride"] == 2


@pytest.mark.parametrize(
    ("flags", "policies", "message"),
    [
        (["--dataset.episodes=[0,9]"], ["one"], "There is no episode 9 in 'local/tiny'; it has 0 to 1"),
        (["--policy.n_action_steps=2"], ["one", "two"], "with several policies it is not clear whose"),
        (["--names=[a]"], ["one", "two"], "1 different names for 2 policies"),
        (["--stride=0"], ["one"], "stride is 0, expected at least 1"),
        ([], ["nowhere"], "There is no checkpoint folder"),
        (["--embodiment=conveyor"], ["one"], "not those of embodiment 'conveyor'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(run, tmp_path, flags, policies, message):
    status, _, error = run(*flags, policies=policies)
    assert status == 2 and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_other_cameras_are_refused_and_can_be_renamed(run, tmp_path):
    tiny_dataset(tmp_path / "other", cameras=["top"], episode_lengths=(8,), fps=10, video=False)
    status, _, error = run(root=tmp_path / "other")
    assert status == 2 and "reads 'observation.images.head'" in error and "--rename_map" in error
    names = {"observation.images.top": "observation.images.head"}
    assert run(f"--rename_map={json.dumps(names)}", root=tmp_path / "other")[0] == 0


def test_a_policy_is_asked_for(capsys):
    assert main(["--dataset.repo_id=local/tiny"]) == 2
    assert "--policy.path=" in capsys.readouterr().err
    assert policy_paths(["--policy.path=a", "--x=1", "--policy.path", "b", "--policy.device=cpu"]) == ["a", "b"]


def test_help_names_every_flag_in_a_fresh_process():
    command = [sys.executable, "-m", "lerobot_internvla.scripts.open_loop", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in ("--policy.path", "--dataset.repo_id", "--stride", "--plots", "--embodiment", "--output_dir"):
        assert flag in text
