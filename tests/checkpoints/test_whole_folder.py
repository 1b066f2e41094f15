"""A checkpoint folder is whole at every moment, brings its own tokenizers, and names no path of this machine."""

import json
from pathlib import Path

import pytest
import torch

from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.checkpoints.whole_folder import whole_folder, whole_steps, why_not_whole
from lerobot_internvla.testing import small_config, tiny_batch, tiny_policy


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files_appear_together_and_other_files_stay(tmp_path: Path):
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "train_config.json").write_text("LeRobot's")
    (tmp_path / "text_tokenizer").mkdir()
    (tmp_path / "text_tokenizer" / "vocabulary").write_text("old")
    with whole_folder(tmp_path) as draft:
        (draft / "config.json").write_text("new")
        (draft / "text_tokenizer").mkdir()
        (draft / "text_tokenizer" / "merges").write_text("new")
        assert (tmp_path / "config.json").read_text() == "old"
    assert names(tmp_path) == {"config.json", "train_config.json", "text_tokenizer/merges"}
    assert (tmp_path / "config.json").read_text() == "new"


def test_an_exception_leaves_the_folder_as_it_was(tmp_path: Path):
    (tmp_path / "config.json").write_text("old")
    with pytest.raises(IsADirectoryError), whole_folder(tmp_path) as draft:
        (draft / "config.json").write_text("new") and draft.write_text("fails, as on a full disk")
    assert names(tmp_path) == {"config.json"} and (tmp_path / "config.json").read_text() == "old"


def test_a_rank_that_writes_no_configuration_changes_nothing(tmp_path: Path):
    with whole_folder(tmp_path) as draft:
        (draft / "model.safetensors").write_text("half of it")
    assert names(tmp_path) == set()


def test_the_configuration_is_the_last_file_to_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped between two renames, the folder has no config.json, and its reader says why."""
    stock, moved = Path.replace, []

    def stop_after_one(self: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(self.name)
        return stock(self, target)

    monkeypatch.setattr(Path, "replace", stop_after_one)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # a killed process cleans nothing up
    with pytest.raises(KeyboardInterrupt):
        tiny_policy(seed=1).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert moved and not (tmp_path / "config.json").exists()
    with pytest.raises(InternVLAError, match=r"was being written when its process was stopped.*checkpoints/last"):
        InternVLAA1Policy.from_pretrained(tmp_path)
    tiny_policy().save_pretrained(tmp_path)  # the next attempt sweeps up
    assert why_not_whole(tmp_path) is None
    InternVLAA1Policy.from_pretrained(tmp_path)
    assert not list(tmp_path.glob(".unfinished*"))


def test_a_missing_last_link_names_the_whole_steps(tmp_path: Path):
    """LeRobot removes the link before it makes the new one; a process may die between the two."""
    checkpoints = tmp_path / "checkpoints"
    for step in ("000100", "000200", "000300"):
        tiny_policy().save_pretrained(checkpoints / step / "pretrained_model")
        (checkpoints / step / "training_state").mkdir()
        if step != "000300":
            (checkpoints / step / "training_state" / "training_step.json").write_text("{}")
    assert whole_steps(checkpoints) == ["000100", "000200"]
    with pytest.raises(InternVLAError, match=r"Whole ones beside it: 000100, 000200\. Pass .*000200/pretrained_model"):
        InternVLAA1Policy.from_pretrained(checkpoints / "last" / "pretrained_model")


def test_tokenizers_named_by_path_are_carried_along_and_their_paths_forgotten(tmp_path: Path):
    """The image tokenizer of a run often lies in some folder of the training machine; a robot does not have that."""
    config = small_config("3b", device="cpu")
    tiny_policy(config).model.image_tokenizer.save_pretrained(tmp_path / "haar")
    policy = tiny_policy(small_config("3b", image_tokenizer=str(tmp_path / "haar")))
    policy.save_pretrained(tmp_path / "checkpoint")
    assert policy.config.image_tokenizer == str(tmp_path / "haar"), "the run's own configuration is left alone"
    saved = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert saved["image_tokenizer"] is None and saved["text_tokenizer"] is None
    (tmp_path / "haar").rename(tmp_path / "elsewhere")
    loaded = InternVLAA1Policy.from_pretrained(tmp_path / "checkpoint")
    batch, noise = tiny_batch(policy.config, moment="tick"), torch.randn(2, 10, 32)
    assert torch.equal(policy.predict_action_chunk(batch, noise=noise), loaded.predict_action_chunk(batch, noise=noise))
