"""Our checkpoints load whole or not at all: every misfit is named, all of them at once, nothing is half-loaded."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.checkpoints.safe_loading import load_weights
from lerobot_internvla.configuration_internvla_a1 import FORMAT_VERSION
from lerobot_internvla.testing import tiny_batch, tiny_policy
from stock_commands import lerobot_eval

HEAD = "model.action_head.action_out_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_policy().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refusal(folder: Path, **kwargs: Any) -> str:
    with pytest.raises(InternVLAError) as caught:
        InternVLAA1Policy.from_pretrained(folder, **kwargs)
    return str(caught.value)


def misfit(weights: dict[str, Tensor]) -> None:
    """One tensor of every kind of misfit."""
    del weights[f"{HEAD}.bias"]
    weights["model.surplus"] = torch.zeros(1)
    weights["model.action_head.action_in_proj.weight"] = torch.zeros(3, 3)
    weights["model.action_head.state_proj.weight"] = weights["model.action_head.state_proj.weight"].to(torch.int32)
    weights["action_space.state_mean"] = weights["action_space.state_mean"].half()
    weights["model.action_head.state_proj.bias"] = weights["model.action_head.state_proj.bias"].double()


MISFITS = (
    f"missing: {HEAD}.bias",
    "unexpected: model.surplus (1,)",
    "wrong shape: model.action_head.action_in_proj.weight is (3, 3)",
    "wrong type: model.action_head.state_proj.weight is torch.int32, expected torch.float32 or torch.bfloat16",
    "wrong type: action_space.state_mean is torch.float16, expected torch.float32",
    "wrong type: model.action_head.state_proj.bias is torch.float64",
)


def test_every_misfit_is_listed_at_once(folder: Path):
    edit(folder, misfit)
    message = refusal(folder)
    assert [line for line in MISFITS if line not in message] == []
    assert f"({len(MISFITS)} problems)" in message
    assert "strict=False" in message


def test_weights_that_are_not_finite_are_refused(folder: Path):
    """A diverged run, or a damaged file: a robot must not be sent NaN."""

    def diverge(weights: dict[str, Tensor]) -> None:
        weights[f"{HEAD}.weight"][0, 0] = float("nan")
        weights[f"{HEAD}.bias"] = torch.full_like(weights[f"{HEAD}.bias"], float("-inf"))

    edit(folder, diverge)
    message = refusal(folder)
    assert f"not finite: {HEAD}.weight has 1 NaN or infinite values" in message
    assert f"not finite: {HEAD}.bias has 32 NaN or infinite values of 32" in message
    assert "diverged" in message


def test_nothing_is_replaced_when_something_does_not_fit(folder: Path):
    edit(folder, lambda weights: weights[f"{HEAD}.weight"].fill_(float("inf")))
    policy = tiny_policy(seed=1)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with pytest.raises(InternVLAError, match="not finite"):
        load_weights(policy, folder / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_another_precision_are_cast_and_it_is_said(
    folder: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
):
    edit(folder, lambda weights: weights.update({f"{HEAD}.weight": weights[f"{HEAD}.weight"].to(dtype)}))
    with caplog.at_level(logging.INFO):
        policy = InternVLAA1Policy.from_pretrained(folder)
    assert policy.model.action_head.action_out_proj.weight.dtype == torch.float32
    assert f"Cast while loading: 1 tensors, {str(dtype).removeprefix('torch.')} -> float32." in caplog.text


def test_loading_what_fits_is_an_explicit_choice_with_a_list(folder: Path, caplog: pytest.LogCaptureFixture):
    edit(folder, misfit)
    with caplog.at_level(logging.WARNING):
        policy = InternVLAA1Policy.from_pretrained(folder, strict=False)
    (warning,) = [r.getMessage() for r in caplog.records if "strict=False" in r.getMessage()]
    assert [line for line in MISFITS if line not in warning] == []
    weights = load_file(folder / "model.safetensors")
    name = "model.vision_language.vision_tower.position"
    assert torch.equal(policy.state_dict()[name], weights[name]), "what fits is loaded"
    policy.action_space.set_identity()
    assert policy.select_action(tiny_batch(policy.config, moment="tick")).isfinite().all()


def test_an_unreadable_file_is_an_error_even_when_not_strict(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in refusal(folder, strict=False)


@pytest.mark.parametrize("place", [0, 3, 8, 20, 400])
def test_a_damaged_header_is_refused(folder: Path, place: int):
    """The header holds names, types and places of all tensors; a few bytes of it are overwritten."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[place : place + 4] = b"\xff\xfe\x00\x01"
    file.write_bytes(data)
    assert str(file) in refusal(folder)


# ------------------------------------------------------------------------------------------------------ format version


def rewrite_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_checkpoint_says_which_format_it_has(folder: Path):
    assert json.loads((folder / "config.json").read_text())["format_version"] == FORMAT_VERSION == 1
    assert PreTrainedConfig.from_pretrained(folder).format_version == FORMAT_VERSION


def test_a_configuration_from_a_newer_version_is_refused_before_anything_else(folder: Path):
    """Fields that this version cannot know must not be what the user is told about."""
    rewrite_config(folder, format_version=2, invented_later=True)
    for load in (InternVLAA1Policy.from_pretrained, PreTrainedConfig.from_pretrained):
        with pytest.raises(InternVLAError, match=r"format version 2.*reads up to 1.*newer version.*Upgrade"):
            load(folder)


def test_lerobot_eval_says_in_one_line_that_the_checkpoint_is_newer(folder: Path, capsys: pytest.CaptureFixture[str]):
    rewrite_config(folder, format_version=7, invented_later=True)
    with pytest.raises(SystemExit):
        lerobot_eval(f"--policy.path={folder}", "--env.type=conveyor")
    assert "\nerror: This checkpoint has format version 7" in "\n" + capsys.readouterr().err


@pytest.mark.parametrize("version", ["new", 0, -1, True, 1.5])
def test_a_format_version_that_is_none_is_refused(folder: Path, version: object):
    rewrite_config(folder, format_version=version)
    assert "expected a whole number from 1 to 1" in refusal(folder)


def test_a_field_of_the_future_within_the_same_format_is_named(folder: Path):
    rewrite_config(folder, invented_later=True)
    message = refusal(folder)
    assert "invented_later" in message and "newer version" in message


def test_a_checkpoint_without_a_version_is_of_the_first(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    del config["format_version"]
    (folder / "config.json").write_text(json.dumps(config))
    assert InternVLAA1Policy.from_pretrained(folder).config.format_version == 1
