"""internvla-foresight, end to end on a saved policy and a dataset on disk."""

import json
import shutil
import subprocess
import sys

import av
import pytest
import torch
from lerobot.policies.act.configuration_act import ACTConfig

from lerobot_internvla.scripts.foresight import load_config, load_policy, main
from lerobot_internvla.testing import tiny_batch, tiny_config, tiny_dataset, tiny_policy


@pytest.fixture
def run(checkpoint, dataset, tmp_path, capsys):
    """Call the command with a few quick defaults; later flags win. Returns (exit status, stdout, stderr)."""

    def call(*flags, output="out", policy=checkpoint, root=dataset.root):
        defaults = [f"--policy.path={policy}", f"--dataset.repo_id={dataset.repo_id}", f"--dataset.root={root}"]
        status = main([*defaults, f"--output_dir={tmp_path / output}", "--device=cpu", "--n_samples=3", *flags])
        return status, *capsys.readouterr()

    return call


def frames_of(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_it_writes_panels_a_video_and_a_summary_and_prints_where(run, tmp_path):
    status, out, _ = run("--video_every=2", "--episode", "0")
    assert status == 0
    written = sorted((tmp_path / "out").iterdir())
    assert [path.suffix for path in written] == [".mp4", ".png", ".png", ".png", ".json"]
    for path in written:
        assert str(path) in out
    assert frames_of(tmp_path / "out" / "episode_0.mp4") == 6  # every second of 12 frames
    for word in ("prediction", "copy of now", "reconstruction", "PSNR in dB", "0.3 s", "3 moments", "episode 0"):
        assert word in out
    # Random weights: said plainly.
    assert "head: the prediction is WORSE than copying the current frame" in out

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["interval_frames"] == 3
    assert summary["moments"]["cameras"]["head"]["frames"] == 3
    assert summary["video"]["cameras"]["left_wrist"]["frames"] == 5  # frames 0, 2, 4, 6, 8; the last has no future
    frame = summary["moments"]["frames"][0]
    assert (tmp_path / "out" / frame["panel"]).is_file()
    assert frame["panel"] == f"panel_00_episode_0_frame_{frame['frame']}.png"
    assert frame["cameras"]["head"]["prediction"]["psnr_db"] < frame["cameras"]["head"]["reconstruction"]["psnr_db"]


def test_the_same_seed_shows_the_same_moments_and_pictures(run, tmp_path):
    for output in ("one", "two"):
        assert run("--seed=7", "--video=false", output=output)[0] == 0
    assert run("--seed=8", "--video=false", output="other")[0] == 0
    one, two, other = ({p.name: p.read_bytes() for p in (tmp_path / o).iterdir()} for o in ("one", "two", "other"))
    assert one == two
    assert set(one) != set(other)


def test_the_video_is_of_the_first_panels_episode_unless_told_otherwise(run, tmp_path):
    assert run("--dataset.episodes=[1]")[0] == 0
    assert [path.name for path in (tmp_path / "out").glob("*.mp4")] == ["episode_1.mp4"]
    assert frames_of(tmp_path / "out" / "episode_1.mp4") == 9
    assert all("episode_1_" in path.name for path in (tmp_path / "out").glob("*.png"))


def test_it_overwrites_nothing_unless_asked(run, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "panel_09_episode_9_frame_9.png").write_text("old")
    status, _, error = run("--video=false")
    assert status == 2
    assert "exists and is not empty; nothing was written" in error
    assert "--overwrite=true" in error
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "panel_09_episode_9_frame_9.png"]
    assert run("--video=false", "--overwrite=true")[0] == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "panel_09_episode_9_frame_9.png").exists(), "an old panel would be taken for a new one"


def test_policy_flags_reach_the_checkpoint(run, tmp_path):
    status, _, error = run("--policy.fps=25")
    assert status == 2
    assert "3 frames at 25 fps ahead" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy.path=/no/such/folder"], "There is no checkpoint folder '/no/such/folder'"),
        (["--policy.path=nobody/nothing"], "nobody/nothing"),
        (["--dataset.root=/no/such/dataset"], "There is no dataset in '/no/such/dataset'"),
        (["--dataset.episodes=[1,77]"], "There is no episode 77 in 'local/tiny'; it has 0 to 2"),
        (["--episode=5"], "There is no episode 5 in 'local/tiny'; it has 0 to 2"),
        (["--dataset.episodes=[0]", "--episode=1"], "Episode 1 is not among those of the dataset: 0 to 0"),
        (["--episode=2"], "No episode of 'local/tiny' is longer than the policy's interval of 3 frames"),
        (["--n_samples=0"], "n_samples is 0; expected at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(run, tmp_path, flags, message):
    names = {flag.split("=")[0] for flag in flags}
    paths = {flag.split("=")[0]: flag.split("=")[1] for flag in flags}
    changes = {}
    if "--policy.path" in names:
        changes["policy"] = paths["--policy.path"]
    if "--dataset.root" in names:
        changes["root"] = paths["--dataset.root"]
    status, _, error = run(*(f for f in flags if f.split("=")[0] not in ("--policy.path", "--dataset.root")), **changes)
    assert status == 2
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_policy_is_asked_for(capsys):
    assert main(["--dataset.repo_id=local/tiny"]) == 2
    assert "--policy.path=" in capsys.readouterr().err


def test_policies_that_imagine_nothing_are_refused(run, tmp_path):
    tiny_policy(tiny_config(cameras=["head", "left_wrist"], use_foresight=False)).save_pretrained(tmp_path / "blind")
    status, _, error = run(policy=tmp_path / "blind")
    assert (status, "use_foresight=false" in error) == (2, True)

    (tmp_path / "act").mkdir()
    ACTConfig(device="cpu", push_to_hub=False).save_pretrained(tmp_path / "act")
    status, _, error = run(policy=tmp_path / "act")
    assert status == 2
    assert "holds a policy of type 'act'; foresight needs one of type 'internvla_a1'" in error


def test_a_broken_checkpoint_is_refused(run, tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{ not json")
    status, _, error = run(policy=tmp_path / "broken")
    assert (status, "Cannot read the policy" in error) == (2, True)
    (tmp_path / "broken" / "config.json").unlink()
    status, _, error = run(policy=tmp_path / "broken")
    assert (status, "is no checkpoint" in error) == (2, True)


def test_other_cameras_are_refused_and_can_be_renamed(run, tmp_path):
    tiny_dataset(tmp_path / "other", cameras=["top", "gripper"], episode_lengths=(8,))
    status, _, error = run("--video=false", root=tmp_path / "other")
    assert status == 2
    for word in ("observation.images.top, observation.images.gripper", "head = observation.images.head"):
        assert word in error
    names = {
        "observation.images.top": "observation.images.head",
        "observation.images.gripper": "observation.images.left_wrist",
    }
    assert run("--video=false", f"--rename_map={json.dumps(names)}", root=tmp_path / "other")[0] == 0


def test_an_adapter_is_loaded_over_its_base(run, tmp_path, checkpoint):
    """Fine-tuned with --peft.*: the folder holds the adapter and names the base policy."""
    pytest.importorskip("peft")
    config = load_config(str(checkpoint), [])
    adapted = load_policy(config).wrap_with_peft(peft_cli_overrides={"r": 2})
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "action_space" not in name:
                parameter.add_(0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.config.save_pretrained(tmp_path / "adapter")

    loaded = load_policy(load_config(str(tmp_path / "adapter"), []))
    batch = tiny_batch(loaded.config, moment="tick")
    latents, _ = loaded.predict_foresight(batch)
    torch.testing.assert_close(latents, adapted.predict_foresight(batch)[0])
    base, _ = load_policy(load_config(str(checkpoint), [])).predict_foresight(batch)
    assert (latents - base).abs().max() > 0.01
    assert run("--video=false", policy=tmp_path / "adapter")[0] == 0


def test_help_names_every_flag_in_a_fresh_process():
    command = [sys.executable, "-m", "lerobot_internvla.scripts.foresight", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in ("--policy.path", "--dataset.repo_id", "--dataset.root", "--episode", "--n_samples", "--output_dir"):
        assert flag in text
