"""internvla-bundle: a folder with everything, and a check that finds whatever is wrong with it on the robot."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.publishing.bundle import (
    DISTRIBUTION,
    Pin,
    check_bundle,
    installed_pins,
    make_bundle,
    version_differences,
    write_own_wheel,
)
from lerobot_internvla.scripts.bundle import main
from lerobot_internvla.testing import small_config, tiny_batch, tiny_config, tiny_policy

PHRASE = "move the square to the left"


def text_tokenizer_files(folder: Path) -> Path:
    """A Hugging Face tokenizer as a base model brings it along, made here: words of one sentence, and padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *sorted(set(PHRASE.split()))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


def checkpoint(variant: str, root: Path) -> Path:
    """What training leaves behind: "tiny" with bytes as text, "3b" with a Hugging Face tokenizer."""
    config = tiny_config(cameras=["top"]) if variant == "tiny" else small_config(variant, cameras=["top"])
    if variant != "tiny":
        config.text_tokenizer = str(text_tokenizer_files(root / "words"))
    tiny_policy(config).save_pretrained(root / "checkpoint")
    (root / "checkpoint" / "train_config.json").write_text('{"output_dir": "/home/somebody/secret"}')
    (root / "checkpoint" / "old_weights.bin").write_bytes(b"a pickle")
    return root / "checkpoint"


@pytest.fixture(scope="module", params=["tiny", "3b"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    made = make_bundle(checkpoint(request.param, root), root / "bundle")
    shutil.rmtree(root / "checkpoint")  # nothing in the bundle may point back
    shutil.rmtree(root / "words", ignore_errors=True)
    return made


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    return make_bundle(checkpoint("tiny", tmp_path), tmp_path / "bundle")


# --------------------------------------------------------------------------------------------------------------- making


def test_a_bundle_holds_everything_and_nothing_private(bundle: Path):
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert names >= {
        "README.md",
        "manifest.json",
        "requirements.txt",
        "wheels.txt",
        "policy/config.json",
        "policy/model.safetensors",
        "policy/policy_preprocessor.json",
        "policy/policy_postprocessor.json",
        "policy/text_tokenizer/tokenizer_config.json",
        "policy/image_tokenizer/config.json",
    }
    assert not [name for name in names if "train_config" in name or name.endswith(".bin")]
    written = "".join(path.read_text() for path in bundle.rglob("*") if path.suffix in (".json", ".md", ".txt"))
    assert str(bundle.parent) not in written and "/home/" not in written
    assert json.loads((bundle / "policy" / "config.json").read_text())["device"] == "cuda"  # not this computer's
    listed = json.loads((bundle / "manifest.json").read_text())["files"]
    assert set(listed) == names - {"manifest.json"}


def test_versions_of_all_packages_are_pinned_as_installed(bundle: Path):
    lines = (bundle / "requirements.txt").read_text().splitlines()[1:]
    pinned = dict(line.split("  #")[0].split("==") for line in lines)
    assert {"torch", "lerobot", "safetensors", "transformers", "numpy", DISTRIBUTION} <= set(pinned)
    assert not {"pytest", "ruff", "beartype"} & set(pinned), "development tools are not needed on a robot"
    for name, version in pinned.items():
        assert metadata.version(name).split("+")[0] == version
    wheels = (bundle / "wheels.txt").read_text()
    assert f"lerobot=={metadata.version('lerobot')} " in wheels and "py3-none-any" in wheels


def test_the_readme_has_the_commands(bundle: Path):
    readme = (bundle / "README.md").read_text()
    for command in (
        "pip download --only-binary=:all: --find-links wheels --dest wheels --requirement requirements.txt",
        "pip install --no-index --find-links wheels --requirement requirements.txt",
        "internvla-bundle --check .",
        "HF_HUB_OFFLINE=1 environment/bin/lerobot-rollout --policy.path=policy",
    ):
        assert command in readme
    assert "`observation.images.top`" in readme and "4 state dims" in readme


def test_the_own_wheel_is_the_code_that_runs_here(tmp_path: Path):
    first, second = write_own_wheel(tmp_path / "a"), write_own_wheel(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        here = Path(str(sys.modules["lerobot_internvla"].__file__)).parent
        assert archive.read("lerobot_internvla/errors.py") == (here / "errors.py").read_bytes()
        metadata_file = archive.read(f"{first.name.split('-py3')[0]}.dist-info/METADATA").decode()
    assert f"Name: {DISTRIBUTION}" in metadata_file and "Requires-Dist: lerobot" in metadata_file


def test_a_checkpoint_that_is_not_whole_is_refused_with_all_that_is_missing(tmp_path: Path):
    folder = checkpoint("tiny", tmp_path)
    shutil.rmtree(folder / "text_tokenizer")
    shutil.rmtree(folder / "image_tokenizer")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InternVLAError) as caught:
        make_bundle(folder, tmp_path / "bundle")
    for part in ("model.safetensors is missing", "text_tokenizer/", "image_tokenizer/", "save_pretrained"):
        assert part in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_folders_that_are_no_policies_of_ours(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"resolved": {}}')
    with pytest.raises(InternVLAError, match="is no policy of this library"):
        make_bundle(tmp_path, tmp_path.parent / "bundle")
    (tmp_path / "config.json").write_text('{"type": "qwena1"}')
    with pytest.raises(InternVLAError, match="internvla-convert SOURCE DEST"):
        make_bundle(tmp_path, tmp_path.parent / "bundle")


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = checkpoint("tiny", tmp_path)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").touch()
    with pytest.raises(InternVLAError, match="left alone"):
        make_bundle(folder, tmp_path / "bundle")
    monkeypatch.setattr("lerobot_internvla.publishing.bundle._readme", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_bundle(folder, tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "checkpoint"}


def test_wheels_that_cannot_be_downloaded_are_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # as without a network, but at once
    with pytest.raises(InternVLAError, match=r"pip could not download the wheels: ERROR.*without --download-wheels"):
        make_bundle(checkpoint("tiny", tmp_path), tmp_path / "bundle", download_wheels=True)
    assert not (tmp_path / "bundle").exists()


def test_packages_without_a_version_are_all_named(monkeypatch: pytest.MonkeyPatch):
    stock = metadata.distribution

    def without(name: str) -> Any:
        if name in ("torch", "safetensors"):
            raise metadata.PackageNotFoundError(name)
        return stock(name)

    monkeypatch.setattr(metadata, "distribution", without)
    with pytest.raises(InternVLAError, match=r"safetensors \(needed by .*torch \(needed by"):
        installed_pins()


def test_an_adapter_is_merged_into_its_base(tmp_path: Path):
    pytest.importorskip("peft")
    base = checkpoint("tiny", tmp_path)
    config = tiny_config(cameras=["top"], pretrained_path=base)
    policy = InternVLAA1Policy.from_pretrained(base, config=config).wrap_with_peft(peft_cli_overrides={"r": 2})
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    policy.eval()
    policy.save_pretrained(tmp_path / "adapter")
    policy.config.save_pretrained(tmp_path / "adapter")
    made = make_bundle(tmp_path / "adapter", tmp_path / "bundle")
    batch, noise = tiny_batch(config, moment="tick"), torch.randn(2, 10, 32)
    expected = policy.predict_action_chunk(batch, noise=noise)
    shutil.rmtree(base)
    merged = InternVLAA1Policy.from_pretrained(made / "policy")
    assert not merged.config.use_peft and merged.config.pretrained_path is None
    torch.testing.assert_close(merged.predict_action_chunk(batch, noise=noise), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InternVLAError, match="which is not here"):
        make_bundle(tmp_path / "adapter", tmp_path / "again")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InternVLAError, match=r"Pickled weights \(adapter_model.bin\) are not read"):
        make_bundle(tmp_path / "adapter", tmp_path / "again")


# ------------------------------------------------------------------------------------------------------------- checking


def test_the_check_loads_offline_and_acts(bundle: Path, capsys: pytest.CaptureFixture[str]):
    """In a process whose home is empty, whose Hub is switched off and whose sockets refuse to connect."""
    assert main(["--check", str(bundle), "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert "predicted 10 actions of 4 dims" in out and "on cpu" in out
    assert out.splitlines()[-1] == "READY"


def test_something_that_needs_the_network_is_found(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """A bundle whose tokenizer would come from the Hub (made by hand, or by a bug) does not pass."""
    config = json.loads((tiny_bundle / "policy" / "config.json").read_text())
    (tiny_bundle / "policy" / "config.json").write_text(json.dumps({**config, "text_tokenizer": "somebody/words"}))
    monkeypatch.setattr("lerobot_internvla.publishing.bundle._file_problems", lambda *_: [])
    check = check_bundle(tiny_bundle, device="cpu")
    assert check.run is None and not check.ready
    assert "somebody/words" in str(check.run_problem)


def test_every_damage_is_listed(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]):
    policy = tiny_bundle / "policy"
    (policy / "policy_preprocessor.json").unlink()
    weights = bytearray((policy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (policy / "model.safetensors").write_bytes(weights)
    (tiny_bundle / "requirements.txt").write_text("")
    (policy / "extra.json").touch()
    assert main(["--check", str(tiny_bundle)]) == 1
    out = capsys.readouterr().out
    for part in (
        "policy/policy_preprocessor.json is missing",
        "policy/model.safetensors has other contents",
        "requirements.txt has 0 bytes",
        "policy/extra.json does not belong",
        "not tried",
    ):
        assert part in out
    assert out.splitlines()[-1].startswith("NOT READY: 5 problems")


def test_wheels_may_be_added_after_the_bundle_was_made(tiny_bundle: Path):
    (tiny_bundle / "wheels" / "numpy-1.0-py3-none-any.whl").touch()
    assert not check_bundle(tiny_bundle, device="cpu").file_problems


def test_all_version_differences_are_listed(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]):
    path = tiny_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    packages = {pin["name"]: pin for pin in manifest["made_with"]["packages"]}
    packages["torch"]["version"] = "1.0"
    packages["numpy"]["version"] += "+special"
    packages["safetensors"]["name"] = "no-such-package"
    manifest["made_with"]["python"] = "3.99.0"
    path.write_text(json.dumps(manifest))
    assert main(["--check", str(tiny_bundle), "--device=cpu"]) == 1
    out = capsys.readouterr().out
    assert "bundle was made with 1.0" in out and "no-such-package" in out and "is not installed" in out
    assert "(no problem) numpy is the build" in out and "(no problem) Python is" in out
    assert out.splitlines()[-1] == "NOT READY: 2 problems"
    assert main(["--check", str(tiny_bundle), "--device=cpu", "--allow-other-versions"]) == 0
    assert "bundle was made with 1.0" in capsys.readouterr().out


def test_a_build_for_another_device_is_the_same_version():
    torch_version = metadata.version("torch").split("+")[0]
    differences, builds = version_differences([Pin("torch", f"{torch_version}+cu999", ())])
    assert not differences and len(builds) == 1


def test_folders_that_are_no_bundles(tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--check", str(tmp_path / "nowhere")]) == 2
    assert "is no bundle: manifest.json is missing" in capsys.readouterr().err
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    (tiny_bundle / "manifest.json").write_text(json.dumps({**manifest, "bundle_version": 9}))
    with pytest.raises(InternVLAError, match=r"version 9.*reads up to 1"):
        check_bundle(tiny_bundle)
    (tiny_bundle / "manifest.json").write_text("{")
    with pytest.raises(InternVLAError, match="damaged"):
        check_bundle(tiny_bundle)


@pytest.mark.parametrize("flags", [[], ["checkpoint"], ["checkpoint", "dest", "--check", "dest"]])
def test_the_command_asks_for_what_it_needs(flags: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(flags)
    assert "--check FOLDER" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- without any caches


def load_and_act_elsewhere(folder: Path, home: Path) -> list[int]:
    """The ids of ``PHRASE``, from a process that has never seen this machine's caches."""
    code = (
        "import sys, torch\n"
        "from lerobot_internvla import InternVLAA1Policy\n"
        "from lerobot_internvla.testing import tiny_batch\n"
        "policy = InternVLAA1Policy.from_pretrained(sys.argv[1])\n"
        "batch = tiny_batch(policy.config, moment='tick')\n"
        "assert torch.isfinite(policy.select_action(batch)).all()\n"
        "print(*policy.prompt_builder.tokenizer.encode(sys.argv[2]))\n"
    )
    home.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    finished = subprocess.run(
        [sys.executable, "-c", code, folder, PHRASE],
        cwd=home,
        env={**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return [int(number) for number in finished.stdout.split()]


@pytest.mark.parametrize("variant", ["tiny", "3b"])
def test_a_checkpoint_folder_loads_with_a_clean_home_and_no_hub(variant: str, tmp_path: Path):
    """The folder alone, moved elsewhere."""
    folder = tmp_path / "policy"
    checkpoint(variant, tmp_path).rename(folder)
    shutil.rmtree(tmp_path / "words", ignore_errors=True)
    ids = load_and_act_elsewhere(folder, tmp_path / "home")
    assert len(ids) == (len(PHRASE) if variant == "tiny" else len(PHRASE.split()))


def test_a_converted_folder_loads_with_a_clean_home_and_no_hub(converted: Path, tmp_path: Path):
    shutil.copytree(converted, tmp_path / "policy")
    assert len(load_and_act_elsewhere(tmp_path / "policy", tmp_path / "home")) == len(PHRASE.split())
