"""An unconverted reference checkpoint, given to LeRobot's own commands: one sentence with the command to type."""

import json
from pathlib import Path

import pytest
from lerobot.configs import PreTrainedConfig

from lerobot_internvla import InternVLAA1Config, InternVLAA1Policy, InternVLAError
from stock_commands import lerobot_eval, lerobot_rollout, lerobot_train


@pytest.fixture(params=["qwena1", "interna1"])
def unconverted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The reference's config.json, with fields that ours does not have."""
    folder = tmp_path / "A1 3B"
    folder.mkdir()
    fields = {"type": request.param, "qwen3_vl_variant": "qwen3_vl_28l", "dtype": "bfloat16", "min_period": 0.004}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def command_for(folder: Path) -> str:
    return f"internvla-convert '{folder}' '{folder}-lerobot'"


def test_lerobot_eval_names_the_convert_command(unconverted: Path):
    with pytest.raises(InternVLAError) as caught:
        lerobot_eval(
            f"--policy.path={unconverted}", "--env.type=conveyor", "--policy.device=cpu", "--policy.n_action_steps=10"
        )
    assert command_for(unconverted) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lerobot_train_names_the_convert_command(unconverted: Path, tmp_path: Path):
    with pytest.raises(InternVLAError) as caught:
        lerobot_train(f"--policy.path={unconverted}", "--dataset.repo_id=me/data", f"--output_dir={tmp_path / 'run'}")
    assert command_for(unconverted) in str(caught.value)


def test_lerobot_rollout_names_the_convert_command(unconverted: Path):
    with pytest.raises(InternVLAError) as caught:
        lerobot_rollout(f"--policy.path={unconverted}", "--robot.type=so101_follower", "--robot.port=/dev/null")
    assert command_for(unconverted) in str(caught.value)


def test_python_users_are_told_as_well(unconverted: Path):
    with pytest.raises(InternVLAError) as caught:
        InternVLAA1Policy.from_pretrained(unconverted)
    assert command_for(unconverted) in str(caught.value)
    with pytest.raises(InternVLAError, match=r"internvla-convert SOURCE DEST.*policy\.type=internvla_a1"):
        PreTrainedConfig.from_pretrained(unconverted)


def test_our_own_type_is_not_touched(tmp_path: Path):
    InternVLAA1Config(variant="tiny", device="cpu").save_pretrained(tmp_path)
    assert type(PreTrainedConfig.from_pretrained(tmp_path)) is InternVLAA1Config
