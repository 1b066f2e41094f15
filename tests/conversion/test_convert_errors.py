"""What internvla-convert refuses, what it says, and that nothing is left behind when it stops."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.released_files import robot_statistics
from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.checkpoints import staging
from lerobot_internvla.checkpoints.tensor_stream import copy_tensors, read_header
from lerobot_internvla.conversion import convert as convert_module
from lerobot_internvla.conversion.convert import convert
from lerobot_internvla.scripts.convert import main


def leftovers(folder: Path) -> list[str]:
    """Everything in a folder but sources that the test made."""
    return sorted(path.name for path in folder.iterdir() if path.name != "source")


@pytest.fixture
def source(released_3b: Path, tmp_path: Path) -> Path:
    """A copy that the test may spoil."""
    return shutil.copytree(released_3b, tmp_path / "source")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")


def change_json(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text())
    data["resolved"]["policy_config"].update(changes)
    file.write_text(json.dumps(data))


def refused(source: Path, words: Path, match: str, **options: Any) -> str:
    destination = source.parent / "policy"
    with pytest.raises(InternVLAError, match=match) as caught:
        convert(source, destination, text_tokenizer=words, **options)
    assert leftovers(source.parent) == []
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------- sources


def test_unknown_and_missing_tensors_are_listed_together(source: Path, words: Path):
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.lora.weight"] = torch.zeros(1)
        del weights["model.state_proj.bias"]
        weights["model.action_in_proj.bias"] = torch.zeros(3)

    change_weights(source, spoil)
    message = refused(source, words, "does not fit")
    for part in ("model.lora.weight", "model.state_proj.bias", "model.action_in_proj.bias is 3, expected 32"):
        assert part in message


def test_a_truncated_file(source: Path, words: Path):
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-1000])
    refused(source, words, "Cannot read .*model.safetensors")


def test_no_such_folder_and_no_such_repository(tmp_path: Path, words: Path):
    with pytest.raises(InternVLAError, match=r"There is no checkpoint folder '\./nowhere'"):
        convert("./nowhere", tmp_path / "policy")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InternVLAError, match=r"is a file\. Pass the folder that it lies in"):
        convert(tmp_path / "model.safetensors", tmp_path / "policy")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InternVLAError, match=r"'nobody/nothing' at revision 'v2' .*cannot be had from the Hub"):
        convert("nobody/nothing", tmp_path / "policy", revision="v2")
    assert leftovers(tmp_path) == []


def test_a_revision_is_for_the_hub(source: Path, words: Path):
    refused(source, words, "is a folder; --revision v1 is for Hub repositories", revision="v1")


def test_settings_that_our_model_cannot_follow(source: Path, words: Path):
    change_json(source / "config.json", empty_cameras=1, n_obs_steps=2)
    message = refused(source, words, "cannot be converted")
    assert "empty_cameras is 1" in message
    assert "n_obs_steps is 2" in message


def test_unknown_settings_are_said(source: Path, words: Path, tmp_path: Path):
    change_json(source / "config.json", lora_rank=8)
    done = convert(source, tmp_path / "policy", text_tokenizer=words)
    assert any("not followed: lora_rank" in note for note in done.notes)
    record = json.loads((tmp_path / "policy" / "provenance.json").read_text())
    assert any("lora_rank" in line for line in record["decisions"])


def test_our_own_checkpoint_needs_no_conversion(tmp_path: Path, words: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text('{"type": "internvla_a1"}')
    (tmp_path / "source" / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "source", words, "belongs to a checkpoint of this library")


# -------------------------------------------------------------------------------------------------------- tokenizers


def test_a_text_tokenizer_that_is_not_there(source: Path):
    with pytest.raises(InternVLAError, match=r"--text-tokenizer <folder or Hub id>"):
        convert(source, source.parent / "policy")  # the base model's, and the Hub is switched off
    with pytest.raises(InternVLAError, match="byte tokenizer belongs to the tiny variant"):
        convert(source, source.parent / "policy", text_tokenizer="byte")
    assert leftovers(source.parent) == []


def test_a_text_tokenizer_of_another_model(source: Path, tmp_path_factory: pytest.TempPathFactory):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("large")
    model = Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=model, pad_token="w1").save_pretrained(folder)
    refused(source, folder, "has 300 ids, the model embeds only 200")


def without_image_tokenizer(source: Path) -> dict[str, torch.Tensor]:
    """Take it out of the policy file; returns its tensors under NVIDIA's names."""
    taken: dict[str, torch.Tensor] = {}

    def take(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith("model.cosmos.")]:
            tensor = weights.pop(name)
            taken[name.removeprefix("model.cosmos._enc_model.").removeprefix("model.cosmos._dec_model.")] = tensor

    change_weights(source, take)
    return taken


def test_a_policy_file_without_image_tokenizer_asks_for_one(source: Path, words: Path):
    without_image_tokenizer(source)
    refused(source, words, r"holds no image tokenizer.*--image-tokenizer with NVIDIA's encoder\.jit and decoder\.jit")


@pytest.mark.parametrize("given_as", ["two files", "folder"])
def test_an_image_tokenizer_from_safetensors(source: Path, words: Path, given_as: str, tmp_path_factory: Any):
    taken = without_image_tokenizer(source)
    folder = tmp_path_factory.mktemp("cosmos")
    halves = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}
    for half, starts in halves.items():
        part = {n: t.contiguous() for n, t in taken.items() if n.startswith(starts)}
        save_file(part, folder / f"{half}.safetensors")
    files = [folder / "encoder.safetensors", folder / "decoder.safetensors"] if given_as == "two files" else [folder]
    done = convert(source, source.parent / "policy", text_tokenizer=words, image_tokenizer=files, verify=True)
    stored = load_file(done.folder / "image_tokenizer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, taken[name]) for name, tensor in stored.items())
    record = json.loads((done.folder / "provenance.json").read_text())["image_tokenizer"]
    assert set(record["files"]) == {"encoder.safetensors", "decoder.safetensors"}
    # and the export leaves out what the source did not have
    assert main([str(done.folder), str(source.parent / "back"), "--export-reference"]) == 0
    assert (source.parent / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_an_image_tokenizer_from_nvidias_jit_pair(source: Path, words: Path, tmp_path_factory: Any):
    from image_tokenizer.golden_cosmos import trace_jit_pair
    from lerobot_internvla.conversion.reference_layout import read_reference
    from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer

    reference = read_reference(source)
    tokenizer = CosmosImageTokenizer.from_spec(reference.architecture.image_tokenizer).bfloat16()
    wanted = {name: tensor.clone() for name, tensor in reference.image_tokenizer_state.items()}
    tokenizer.load_state_dict(wanted)
    without_image_tokenizer(source)
    files = trace_jit_pair(tokenizer, tmp_path_factory.mktemp("cosmos"))
    done = convert(source, source.parent / "policy", text_tokenizer=words, image_tokenizer=files)
    stored = load_file(done.folder / "image_tokenizer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in stored.items())


def test_an_image_tokenizer_of_other_sizes(source: Path, words: Path, tmp_path_factory: Any):
    from image_tokenizer.golden_cosmos import golden_tokenizer

    folder = tmp_path_factory.mktemp("cosmos")
    golden_tokenizer().save_pretrained(folder)
    refused(source, words, "other sizes than this checkpoint's", image_tokenizer=[folder])


# ------------------------------------------------------------------------------------------------------- the command


def test_the_command_says_what_is_wrong_in_one_line_and_ends_with_2(source: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(source), str(source.parent / "policy"), "--embodiment", "alhoa"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("internvla-convert: Unknown embodiment 'alhoa'. Did you mean 'aloha'?")
    assert "genie1" in said
    cameras = ["head", "heda=observation.images.top", "head=top", *["left_wrist=observation.images.hand"] * 2]
    flags = [flag for camera in cameras for flag in ("--camera", camera)]
    assert main([str(source), str(source.parent / "policy"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("expected SLOT=KEY") == 3
    assert "left_wrist is observation.images.hand already; slots are head, left_wrist, right_wrist" in said
    assert main([str(source), str(source.parent / "policy"), *flags[-2:]]) == 2
    assert "head is missing" in capsys.readouterr().err
    assert main([str(source), str(source.parent / "policy"), "--export-reference", "--verify"]) == 2
    assert "--verify: no meaning with --export-reference" in capsys.readouterr().err


def test_no_statistics_is_an_error_and_not_a_default(source: Path, words: Path):
    (source / "stats.json").unlink()
    refused(source, words, r"--statistics <stats\.json>, or convert for fine-tuning only with --without-statistics")


def test_without_statistics_the_policy_says_that_it_cannot_act(source: Path, words: Path):
    convert(
        source, source.parent / "policy", text_tokenizer=words, without_statistics=True, embodiment="aloha",
        actions="relative",
    )  # fmt: skip
    policy = InternVLAA1Policy.from_pretrained(source.parent / "policy")
    with pytest.raises(InternVLAError, match="has no statistics"):
        policy.action_space.normalize_state(torch.zeros(1, 14))


# ------------------------------------------------------------------------------------- destinations, disks, interrupts


def test_an_existing_destination_is_safe(source: Path, words: Path):
    destination = source.parent / "policy"
    convert(source, destination, text_tokenizer=words)
    before = (destination / "model.safetensors").stat().st_ino
    with pytest.raises(InternVLAError, match=r"exists\. Pass --overwrite"):
        convert(source, destination, text_tokenizer=words)
    change_weights(source, lambda weights: weights.update({"model.state_proj.bias": torch.zeros(1)}))
    with pytest.raises(InternVLAError, match="state_proj"):
        convert(source, destination, text_tokenizer=words, overwrite=True)
    assert (destination / "model.safetensors").stat().st_ino == before
    assert leftovers(source.parent) == ["policy"]


def test_overwriting_replaces_it(source: Path, words: Path):
    destination = source.parent / "policy"
    convert(source, destination, text_tokenizer=words)
    (destination / "old").touch()
    convert(source, destination, text_tokenizer=words, overwrite=True)
    assert not (destination / "old").exists()
    assert leftovers(source.parent) == ["policy"]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(source: Path, words: Path):
    destination = source.parent / "home"
    destination.mkdir()
    (destination / "thesis.tex").touch()
    with pytest.raises(InternVLAError, match=r"is no checkpoint \(it holds thesis.tex\): it is left alone"):
        convert(source, destination, text_tokenizer=words, overwrite=True)
    with pytest.raises(InternVLAError, match="overlap"):
        convert(source, source, text_tokenizer=words, overwrite=True)
    with pytest.raises(InternVLAError, match="overlap"):
        convert(source, source / "policy", text_tokenizer=words)


def test_a_full_disk_is_said_before_the_first_byte(source: Path, words: Path, monkeypatch: pytest.MonkeyPatch):
    size = (source / "model.safetensors").stat().st_size
    usage = type("Usage", (), {"free": size // 2})
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(convert_module, "copy_tensors", lambda *a, **k: pytest.fail("a byte was written"))
    refused(source, words, r"needs 0\.00 GB, but the disk of .* Nothing was written")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_breaks_off_leaves_nothing(
    source: Path, words: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    convert(source, source.parent / "older", text_tokenizer=words)
    files = {file: file.read_bytes() for file in (source.parent / "older").rglob("*") if file.is_file()}
    monkeypatch.setattr(convert_module, "write_card", fail)
    for name in ("policy", "older"):
        with pytest.raises(type(error)):
            convert(source, source.parent / name, text_tokenizer=words, overwrite=True)
    assert leftovers(source.parent) == ["older"]
    assert files == {file: file.read_bytes() for file in (source.parent / "older").rglob("*") if file.is_file()}


_SLOW = """
import sys, time
from lerobot_internvla.conversion import convert as module
from lerobot_internvla.scripts.convert import main

def slow(*arguments, **options):
    print("writing", flush=True)
    time.sleep(60)

module.write_card = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_conversion_leaves_no_destination(source: Path, words: Path, how: signal.Signals):
    """Killed while everything but the model card is on the disk. What SIGKILL leaves is swept up by the next run."""
    destination = source.parent / "policy"
    flags = [str(source), str(destination), "--text-tokenizer", str(words)]
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(how)
    code = process.wait(timeout=60)
    assert not destination.exists()
    if how is not signal.SIGKILL:
        assert code == 130
        assert leftovers(source.parent) == []
    else:
        assert leftovers(source.parent) == [f".policy.unfinished-{process.pid}"]
    time.sleep(0.1)
    assert main(flags) == 0
    assert leftovers(source.parent) == ["policy"]


def test_a_run_that_was_killed_between_its_two_renames_is_undone(source: Path, words: Path):
    destination = source.parent / "policy"
    convert(source, destination, text_tokenizer=words)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    destination.rename(source.parent / f".policy.replaced-{dead.pid}")
    staging.check_destination(destination, overwrite=True)
    assert (destination / "config.json").is_file()
    assert leftovers(source.parent) == ["policy"]


def test_verification_fails_when_the_folder_says_something_else(
    source: Path, words: Path, monkeypatch: pytest.MonkeyPatch
):
    """One head, shifted on its way into the folder: no result is kept."""

    def spoil(*arguments: Any, **options: Any) -> str:
        checksum = copy_tensors(*arguments, **options)
        change_weights(
            arguments[1].parent, lambda weights: weights["model.action_head.action_out_proj.bias"].add_(1e-3)
        )
        return checksum

    monkeypatch.setattr(convert_module, "copy_tensors", spoil)
    refused(source, words, "Verification failed", verify=True)


def test_a_folder_of_before_is_verified_as_it_is(source: Path, words: Path, capsys: pytest.CaptureFixture[str]):
    """Nothing is converted again, and tensors that no action depends on are compared as well."""
    destination = source.parent / "policy"
    flags = [str(source), str(destination)]
    choices = ["--text-tokenizer", str(words), "--actions", "relative", "--absolute-dims", "0"]
    assert main([*flags, *choices]) == 0
    before = {file: file.stat().st_mtime_ns for file in destination.rglob("*")}
    assert "model.safetensors: 100%" in capsys.readouterr().err  # the progress bar of the conversion
    assert main([*flags, "--verify"]) == 0
    said = capsys.readouterr().out
    assert (
        "verified in bfloat16" in said and "tensors are the same, bit for bit" in said and "nothing was written" in said
    )
    assert main([*flags, "--verify", *choices[:4]]) == 2
    said = capsys.readouterr().err
    assert "--actions, --text-tokenizer: no meaning" in said and "--overwrite converts it" in said
    assert before == {file: file.stat().st_mtime_ns for file in destination.rglob("*")}

    unused = "model.vision_language.vision_tower.deepstack_merger_list.1.norm.bias"
    change_weights(destination, lambda weights: weights[unused].add_(1))
    assert main([*flags, "--verify"]) == 2
    said = capsys.readouterr().err
    assert " tensors are not those of the source" in said and unused.removeprefix("model.") in said
    (destination / "provenance.json").unlink()
    assert main([*flags, "--verify"]) == 2
    assert "exists. Pass --overwrite to replace it" in capsys.readouterr().err


def test_verification_looks_at_the_statistics_too(source: Path, words: Path, monkeypatch: pytest.MonkeyPatch):
    original = convert_module.describe_robot

    def other(entries: Any, **choices: Any) -> Any:
        robot = original(entries, **choices)
        space = robot.action_space(32, 32)
        space.action_mean += 0.01
        object.__setattr__(robot, "action_space", lambda *sizes: space)
        return robot

    monkeypatch.setattr(convert_module, "describe_robot", other)
    refused(source, words, "Verification failed", verify=True)


# ------------------------------------------------------------------------------------------------------------- export


def test_what_cannot_be_exported(tmp_path: Path, released_3b: Path, capsys: pytest.CaptureFixture[str]):
    from lerobot_internvla.testing import tiny_policy

    tiny_policy().save_pretrained(tmp_path / "tiny")
    for folder, words in (
        (tmp_path / "tiny", "There is no reference checkpoint for the 'tiny' family"),
        (tmp_path / "nowhere", "There is no config.json"),
        (released_3b, "config.json"),
    ):
        assert main([str(folder), str(tmp_path / "back"), "--export-reference"]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_a_policy_that_was_trained_on_is_exported_with_its_statistics(released_3b: Path, words: Path, tmp_path: Path):
    """As after lerobot-train: no provenance, float32 weights, statistics in the buffers alone."""
    convert(released_3b, tmp_path / "policy", text_tokenizer=words)
    policy = InternVLAA1Policy.from_pretrained(tmp_path / "policy")
    with torch.no_grad():
        policy.model.action_head.action_out_proj.bias.add_(1.0)
    policy.save_pretrained(tmp_path / "trained")
    (tmp_path / "trained" / "provenance.json").unlink(missing_ok=True)
    assert main([str(tmp_path / "trained"), str(tmp_path / "back"), "--export-reference"]) == 2  # which robot?
    flags = [str(tmp_path / "trained"), str(tmp_path / "back"), "--export-reference", "--embodiment", "aloha"]
    assert main(flags) == 0
    statistics = json.loads((tmp_path / "back" / "stats.json").read_text())["aloha"]
    original = robot_statistics({"observation.state": 14, "action": 14})
    assert statistics["action"]["mean"] == pytest.approx(original["action"]["mean"])
    assert statistics["observation.state"]["std"] == pytest.approx(original["observation.state"]["std"])
    again = convert(
        tmp_path / "back", tmp_path / "again", text_tokenizer=words, actions="relative",
        statistics=released_3b / "stats.json",
    )  # fmt: skip
    ours = load_file(again.folder / "model.safetensors")["model.action_head.action_out_proj.bias"]
    assert torch.equal(ours, policy.model.action_head.action_out_proj.bias)


# -------------------------------------------------------------------------------------------------------- tensor files


def test_copied_tensors_start_where_their_type_allows(tmp_path: Path):
    save_file({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(2)}, tmp_path / "in")
    added = {"flag": torch.tensor(True), "wide": torch.arange(3)}
    copy_tensors(tmp_path / "in", tmp_path / "out", {"x": "a", "y": "b"}, added, metadata={"format": "pt"})
    for entry in read_header(tmp_path / "out").values():
        assert entry.start % {"BF16": 2, "F32": 4, "BOOL": 1, "I64": 8}[entry.dtype] == 0
    result = load_file(tmp_path / "out")
    assert result["x"].tolist() == [1, 1, 1]
    assert result["wide"].tolist() == [0, 1, 2]
    assert bool(result["flag"])


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x10\0\0\0\0\0\0\0{not json at all"])
def test_a_file_that_is_no_safetensors_is_said_to_be_none(tmp_path: Path, content: bytes):
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(InternVLAError, match="cannot be read as safetensors"):
        read_header(tmp_path / "in")
