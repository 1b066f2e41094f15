"""The model card says what the files say, admits what they do not, and never guesses a licence."""

import dataclasses
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from lerobot_internvla import InternVLAA1Config, InternVLAA1Policy, InternVLAError
from lerobot_internvla.publishing.lineage import (
    Ancestor,
    DatasetFacts,
    Lineage,
    decide_licence,
    read_lineage,
)
from lerobot_internvla.publishing.model_card import (
    NOT_RECORDED,
    CardFacts,
    Evaluation,
    complete_facts,
    read_card_facts,
    render_card,
    wilson_interval,
)
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy

A1 = Ancestor("checkpoint", "InternRobotics/InternVLA-A1-3B", "v202602_real_sim_human", "cc-by-nc-sa-4.0")
UNKNOWN = Ancestor("checkpoint", "someone/finetune")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of a policy with random weights."""
    place = tmp_path / "policy"
    policy = tiny_policy(
        cameras=["top", "wrist"],
        action_representation="relative",
        action_feature_names=["shoulder", "elbow", "wrist", "gripper"],
        state_feature_names=["shoulder", "elbow", "wrist", "gripper"],
        fps=10.0,
    )
    policy.action_space.action_mean[:4] = torch.tensor([0.25, 0.5, -0.125, 8.0])
    policy.save_pretrained(place)
    return place


def facts_of(**changes: Any) -> CardFacts:
    lineage = changes.pop("lineage", Lineage(complete=True))
    facts = complete_facts(tiny_config(), lineage)
    return dataclasses.replace(facts, **changes)


def rows(card: ModelCard, heading: str) -> list[list[str]]:
    """The cells of all tables under a heading, without the header lines."""
    section = card.text.split(f"\n## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = {index for index, line in enumerate(cells) if set("".join(line)) == {"-"}}
    return [line for index, line in enumerate(cells) if index not in rules and index + 1 not in rules]


# ------------------------------------------------------------------------------------------------------------- origin


def test_random_weights_are_ours_to_license(folder: Path):
    lineage = read_lineage(folder)
    assert lineage is not None
    assert lineage.complete
    assert lineage.ancestors == ()
    assert decide_licence(lineage).id == "apache-2.0"
    assert decide_licence(lineage, "mit").id == "mit"


@pytest.mark.parametrize(
    ("variant", "base", "licence"), [("3b", "Qwen/Qwen3-VL-2B-Instruct", "apache-2.0"), ("2b", "OpenGVLab/", "mit")]
)
def test_training_from_a_base_model_names_it_and_nvidias_image_tokenizer(variant: str, base: str, licence: str):
    lineage = Lineage.of_new_weights(InternVLAA1Config(variant=variant, expert_warm_start="auto"))
    roles = {ancestor.role: ancestor for ancestor in lineage.ancestors}
    assert set(roles) == {"base model", "expert warm start", "image tokenizer"}
    assert roles["base model"].name.startswith(base)
    assert roles["base model"].licence == licence
    decided = decide_licence(lineage)
    assert decided.id == "other"
    assert "nvidia" in str(decided.link)
    assert base in decided.reason
    without = Lineage.of_new_weights(InternVLAA1Config(variant=variant, use_foresight=False))
    assert decide_licence(without).id == "apache-2.0"


def test_a_base_model_in_a_local_folder_is_of_unknown_licence_and_its_path_is_not_told(tmp_path: Path):
    lineage = Lineage.of_new_weights(InternVLAA1Config(variant="3b", base_model=str(tmp_path)))
    assert decide_licence(lineage).id == "unknown"
    assert str(tmp_path) not in json.dumps(lineage.as_dict())


def test_what_derives_from_a1_stays_under_its_licence():
    lineage = Lineage(complete=True, ancestors=(A1,))
    assert decide_licence(lineage).id == "cc-by-nc-sa-4.0"
    assert decide_licence(lineage, "cc-by-nc-sa-4.0").id == "cc-by-nc-sa-4.0"
    with pytest.raises(InternVLAError, match=r"InternVLA-A1-3B.*share alike.*apache-2\.0"):
        decide_licence(lineage, "apache-2.0")


@pytest.mark.parametrize(
    "lineage", [None, Lineage(complete=False), Lineage(complete=True, ancestors=(UNKNOWN,))], ids=str
)
def test_an_unknown_origin_is_called_unknown_until_the_publisher_declares_a_licence(lineage: Lineage | None):
    assert decide_licence(lineage).id == "unknown"
    declared = decide_licence(lineage, "mit")
    assert declared.id == "mit"
    assert "Declared by the publisher" in declared.reason
    card = render_card(dataclasses.replace(facts_of(), lineage=lineage, licence=decide_licence(lineage)))
    assert card.data.license == "unknown"
    assert "not recorded" in card.text.split("## Licence")[1].split("##")[0]


def test_a_converted_checkpoint_and_what_is_fine_tuned_from_it_derive_from_a1(converted: Path, tmp_path: Path):
    lineage = read_lineage(converted)
    assert lineage is not None
    assert decide_licence(lineage).id == "cc-by-nc-sa-4.0"
    assert any(ancestor.name == "nvidia/Cosmos-Tokenizer-CI8x8" for ancestor in lineage.ancestors)
    policy = InternVLAA1Policy.from_pretrained(converted)
    policy.save_pretrained(tmp_path / "one")
    InternVLAA1Policy.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert read_lineage(tmp_path / "two") == lineage
    text = (tmp_path / "two" / "lineage.json").read_text()
    assert str(converted.parent) not in text


def test_a_licence_shown_at_conversion_holds(tmp_path: Path):
    source = {"name": "hxma/finetune", "revision": "abc", "from": "hub"}
    (tmp_path / "provenance.json").write_text(json.dumps({"format": 1, "source": source, "licence": "mit"}))
    lineage = read_lineage(tmp_path)
    assert lineage is not None
    assert lineage.ancestors[0] == Ancestor("checkpoint", "hxma/finetune", "abc", "mit")
    decided = decide_licence(lineage)
    assert (decided.id, decided.weights) == ("other", "mit")  # and NVIDIA's beside it


def test_a_public_checkpoint_becomes_an_ancestor_and_a_resumed_run_does_not(folder: Path, tmp_path: Path):
    config = tiny_config()
    assert Lineage.of_checkpoint(folder, config).ancestors == ()
    snapshot = tmp_path / "models--me--first" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    itself = Ancestor("checkpoint", "me/first", "0123abc", "apache-2.0")
    assert Lineage.of_checkpoint(snapshot, config).ancestors == (itself,)
    (snapshot / "lineage.json").unlink()
    unrecorded = Lineage.of_checkpoint(snapshot, config)
    assert unrecorded.ancestors == (dataclasses.replace(itself, licence=None),)
    assert not unrecorded.complete


def test_a_public_policy_with_nvidias_image_tokenizer_passes_its_licence_on(tmp_path: Path):
    snapshot = tmp_path / "models--me--first" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    config = InternVLAA1Config(variant="3b")
    Lineage.of_new_weights(config).save(snapshot)
    child = Lineage.of_checkpoint(snapshot, config)
    assert child.ancestors[0] == Ancestor("checkpoint", "me/first", "0123abc", "apache-2.0")
    assert decide_licence(child).weights == "apache-2.0"


def test_a_damaged_or_newer_record_is_refused(tmp_path: Path):
    for text in ("{", "[]", '{"format": 1}'):
        (tmp_path / "lineage.json").write_text(text)
        with pytest.raises(InternVLAError, match="where the weights come from"):
            read_lineage(tmp_path)
    (tmp_path / "lineage.json").write_text('{"format": 2}')
    with pytest.raises(InternVLAError, match="newer version"):
        read_lineage(tmp_path)


def test_training_is_written_down_without_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = tiny_dataset(tmp_path / "data", repo_id="me/reach", cameras=["top"], episode_lengths=(12, 14))
    monkeypatch.setattr("sys.argv", ["/opt/bin/lerobot-train", f"--dataset.root={tmp_path}", "--steps=3"])
    policy = InternVLAA1Policy(tiny_config(cameras=["top"]), dataset_meta=dataset.meta)
    policy.save_pretrained(tmp_path / "policy")
    lineage = read_lineage(tmp_path / "policy")
    assert lineage == policy.lineage
    facts = lineage.datasets[0]
    assert (facts.repo_id, facts.robot_type, facts.episodes, facts.frames, facts.fps) == ("me/reach", "tiny", 2, 26, 10)
    assert "move the square to the left" in facts.tasks
    assert lineage.statistics == "me/reach"
    assert lineage.command == ("lerobot-train", "--dataset.root=<path>", "--steps=3")
    assert lineage.ranks == 1
    assert {"lerobot", "torch"} <= set(lineage.software)
    assert str(tmp_path) not in (tmp_path / "policy" / "lineage.json").read_text()
    monkeypatch.setattr("sys.argv", ["lerobot-train", "--config_path=x.json", "--resume=true"])
    again = lineage.trained_on(dataset.meta)
    assert len(again.datasets) == 1  # a resumed run is not another dataset
    assert again.command == lineage.command


# --------------------------------------------------------------------------------------------------------- the card


def test_the_front_matter_is_valid_for_the_hub_and_survives_its_parser(folder: Path):
    card = render_card(read_card_facts(folder, repo_id="me/reach"))
    read = ModelCard(str(card)).data
    assert read.license == "apache-2.0"
    assert read.library_name == "lerobot"
    assert read.pipeline_tag == "robotics"
    assert {"robotics", "lerobot", "internvla_a1"} <= set(read.tags or [])
    assert read.base_model is None
    assert "datasets" not in read.to_dict()


def test_base_models_and_public_datasets_are_linked_and_local_ones_are_not():
    lineage = Lineage(complete=True, ancestors=(A1,), datasets=(DatasetFacts("local/tiny"), DatasetFacts("me/reach")))
    card = render_card(facts_of(lineage=lineage, licence=decide_licence(lineage)))
    assert card.data.base_model == ["InternRobotics/InternVLA-A1-3B"]
    assert card.data.datasets == ["me/reach"]
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert "Not for commercial use" in card.text
    assert "local/tiny (not on the Hub)" in card.text


def test_every_dim_has_a_name_a_kind_a_unit_and_its_scale(folder: Path):
    table = rows(render_card(read_card_facts(folder)), "Robot")
    actions, states = table[:4], table[4:]
    assert [line[:3] for line in actions] == [
        ["0", "shoulder", "relative"],
        ["1", "elbow", "relative"],
        ["2", "wrist", "relative"],
        ["3", "gripper", "absolute"],
    ]
    assert {line[3] for line in actions} == {"as recorded in the dataset"}
    assert [line[4] for line in actions] == ["0.25", "0.5", "-0.125", "8"]
    assert [line[1] for line in states] == ["shoulder", "elbow", "wrist", "gripper"]


def test_cameras_rates_and_the_foresight_interval_are_told_in_frames_and_seconds(folder: Path):
    card = render_card(read_card_facts(folder))
    assert [line[:2] for line in rows(card, "Cameras")] == [
        ["head", "`observation.images.top`"],
        ["left_wrist", "`observation.images.wrist`"],
    ]
    assert "Foresight interval: 3 frames = 0.3 s" in card.text
    assert "chunks of 10 actions, of which 5 are executed before the next one (0.5 s)" in card.text
    config = tiny_config(use_foresight=False)
    assert "without foresight" in render_card(complete_facts(config, None)).text


def test_what_no_file_says_is_not_invented():
    card = render_card(complete_facts(tiny_config(), None))
    assert "frame rate not recorded" in card.text
    assert "Not evaluated" in card.text
    assert "No picture was given" in card.text
    assert "cannot act before it was fine-tuned" in card.text  # no statistics
    assert {line[1] for line in rows(card, "Robot")} == {NOT_RECORDED}
    training = dict(rows(card, "Training"))
    assert training["steps"] == training["effective batch"] == training["versions and commit"] == NOT_RECORDED


@pytest.mark.parametrize(
    ("ranks", "accelerator", "expected"),
    [
        (1, None, "8 = 8 per device x 1 device(s) x 1 accumulated"),
        (4, {"gradient_accumulation": {"steps": 2}}, "64 = 8 per device x 4 device(s) x 2 accumulated"),
        (None, None, "8 per device x 1 accumulated; number of devices not recorded"),
    ],
)
def test_the_effective_batch_multiplies_devices_and_accumulation(ranks: int | None, accelerator: Any, expected: str):
    train_config = {"batch_size": 8, "steps": 100, "accelerator": accelerator}
    card = render_card(facts_of(train_config=train_config, ranks=ranks, steps=60))
    training = dict(rows(card, "Training"))
    assert training["effective batch"] == expected
    assert training["steps"] == "60"


def test_ranks_and_steps_come_from_the_training_state_beside_the_checkpoint(folder: Path):
    (folder / "train_config.json").write_text(json.dumps({"batch_size": 4, "steps": 100}))
    assert "not recorded; 100 were planned" in render_card(read_card_facts(folder)).text
    state = folder.parent / "training_state"
    state.mkdir()
    (state / "training_step.json").write_text(json.dumps({"step": 70, "num_processes": 2, "batch_size": 4}))
    training = dict(rows(render_card(read_card_facts(folder)), "Training"))
    assert training["steps"] == "70"
    assert training["effective batch"].startswith("8 =")


def test_a_mixture_shows_its_shares():
    mixed = (DatasetFacts("a/x", share=0.25), DatasetFacts("b/y", share=0.75))
    card = render_card(facts_of(lineage=Lineage(complete=True, datasets=mixed)))
    assert [line[1] for line in rows(card, "Training")[:2]] == ["25 %", "75 %"]


def test_an_evaluation_comes_with_episodes_and_an_interval(folder: Path, tmp_path: Path):
    group = {"pc_success": 54.0, "n_episodes": 50, "avg_sum_reward": 0.54}
    info = {"per_group": {"conveyor": group}, "overall": group}
    (tmp_path / "evaluated").mkdir()
    (tmp_path / "evaluated" / "eval_info.json").write_text(json.dumps(info))
    card = render_card(read_card_facts(folder, repo_id="me/x", eval_info=[tmp_path / "evaluated"]))
    assert rows(card, "Evaluation") == [["conveyor", "54.0 %", "50", "40 to 67 %"]]
    (result,) = ModelCard(str(card)).data.eval_results or []
    assert (result.metric_value, result.dataset_name) == (54.0, "conveyor")
    assert "50 episodes" in str(result.metric_name)
    (folder / "eval_info.json").write_text(json.dumps(info))
    assert read_card_facts(folder).evaluations == (Evaluation("conveyor", 54.0, 50),)
    with pytest.raises(InternVLAError, match="No evaluation at"):
        read_card_facts(folder, eval_info=[tmp_path / "nowhere.json"])
    (tmp_path / "other.json").write_text('{"per_group": {"x": {"score": 1}}}')
    with pytest.raises(InternVLAError, match=r"not an eval_info\.json"):
        read_card_facts(folder, eval_info=[tmp_path / "other.json"])


def test_the_wilson_interval_behaves_at_its_ends():
    assert wilson_interval(0.54, 50) == pytest.approx((40.4, 67.0), abs=0.1)
    assert wilson_interval(0.0, 50) == pytest.approx((0.0, 7.1), abs=0.1)
    assert wilson_interval(1.0, 50) == pytest.approx((92.9, 100.0), abs=0.1)


def test_a_foresight_report_gives_a_picture_and_numbers_per_camera(folder: Path, tmp_path: Path):
    report = tmp_path / "imagined"
    report.mkdir()
    with pytest.raises(InternVLAError, match="panel_"):
        read_card_facts(folder, foresight=report)
    Image.new("RGB", (8, 8)).save(report / "panel_00_episode_0_frame_3.png")
    head = {"frames": 8, "prediction": {"psnr_db": 22.9}, "copy_of_now": {"psnr_db": 19.9}, "reconstruction": {}}
    (report / "summary.json").write_text(json.dumps({"moments": {"cameras": {"head": head}}}))
    card = render_card(read_card_facts(folder, foresight=report))
    assert "](foresight.png)" in card.text
    assert rows(card, "Foresight") == [["head", "22.9", "19.9", NOT_RECORDED]]
    assert "8 frames per camera" in card.text


def test_names_from_datasets_cannot_break_the_card():
    nasty = DatasetFacts("me/x", tasks=("a | b\n## Licence\n<script>",), robot_type="<b>")
    card = render_card(facts_of(lineage=Lineage(complete=True, datasets=(nasty,))))
    assert "<script" not in card.text
    assert "<b" not in card.text
    assert card.text.count("\n## Licence") == 1


def test_an_adapter_names_its_base(folder: Path):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base"}))
    card = render_card(read_card_facts(folder))
    assert card.data.base_model == ["me/base"]
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "loaded over `me/base`" in card.text


def test_an_adapter_without_a_record_takes_the_origin_of_its_base_and_not_its_run(folder: Path, tmp_path: Path):
    base = Lineage(complete=True, ancestors=(A1,), datasets=(DatasetFacts("me/old"),), statistics="me/old", ranks=4)
    (tmp_path / "base").mkdir()
    base.save(tmp_path / "base")
    (folder / "lineage.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    (folder / "train_config.json").write_text(json.dumps({"dataset": {"repo_id": "me/new"}, "batch_size": 2}))
    facts = read_card_facts(folder)
    assert facts.licence.id == "cc-by-nc-sa-4.0"
    assert facts.ranks is None
    card = render_card(facts)
    assert card.data.datasets == ["me/old", "me/new"]
    assert dict(line[:2] for line in rows(card, "Model"))["statistics from"] == NOT_RECORDED


def test_the_policy_writes_its_card_as_lerobots_main_asks_for_it_and_without_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def refuse(*args: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    policy = tiny_policy()
    policy.save_pretrained(tmp_path)
    card = policy.generate_model_card("local/tiny", "internvla_a1", None, ["bench"])
    assert card.data.license == "apache-2.0"
    assert "Trained from random weights" in card.text
    assert rows(card, "Robot")[0][-2:] == ["0", "1"]  # identity statistics
