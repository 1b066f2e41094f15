"""Publishing, to a Hub that lives in this process: the right files, nothing private, nothing lost when it fails."""

import dataclasses
import hashlib
import io
import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, RepoUrl
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from safetensors.torch import save_file

from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.publishing.following import follow_lerobot
from lerobot_internvla.publishing.lineage import Ancestor, Lineage
from lerobot_internvla.publishing.model_card import MARKER
from lerobot_internvla.publishing.privacy import (
    find_private,
    find_private_in_file,
    is_local_path,
    redact_arguments,
    redact_json,
)
from lerobot_internvla.publishing.upload import plan_upload, publish, publish_training
from lerobot_internvla.scripts.publish import main
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy
from stock_commands import last_checkpoint, lerobot_train, training_flags

A1 = Ancestor("checkpoint", "InternRobotics/InternVLA-A1-3B", None, "cc-by-nc-sa-4.0")
TOKEN = "hf_" + "abcdEFGH1234" * 3


class FakeHub:
    """Stands behind ``HfApi``: remembers commits, or fails."""

    def __init__(self) -> None:
        self.commits: list[dict[str, bytes]] = []
        self.created: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """The repository after all commits."""
        return {name: data for commit in self.commits for name, data in commit.items()}

    def create_repo(self, api: HfApi, repo_id: str, **settings: Any) -> RepoUrl:
        self.created.append({"repo_id": repo_id, "token": api.token, **settings})
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(
        self, api: HfApi, repo_id: str, operations: list[CommitOperationAdd], **settings: Any
    ) -> CommitInfo:
        if self.failure is not None:
            raise self.failure
        self.commits.append({op.path_in_repo: _content(op) for op in operations})
        return CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/0123",
            commit_message=settings["commit_message"],
            commit_description="",
            oid="0123",
        )

    def upload_folder(self, api: HfApi, *, folder_path: Path, repo_id: str, **settings: Any) -> CommitInfo:
        """What LeRobot's own processors use."""
        files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        operations = [CommitOperationAdd(str(path.relative_to(folder_path)), str(path)) for path in files]
        return self.create_commit(api, repo_id, operations, **settings)


def _content(operation: CommitOperationAdd) -> bytes:
    with operation.as_file() as stream:
        assert isinstance(stream, io.IOBase)
        return stream.read()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    for name in ("create_repo", "create_commit", "upload_folder"):
        method = getattr(fake, name)
        monkeypatch.setattr(HfApi, name, lambda api, *args, _method=method, **kw: _method(api, *args, **kw))
    return fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as lerobot-train leaves it, with the paths that LeRobot writes into it."""
    place = tmp_path / "run" / "pretrained_model"
    policy = tiny_policy(cameras=["top"])
    policy.config.base_model = str(tmp_path / "base")
    policy.lineage = Lineage.of_new_weights(policy.config)
    policy.save_pretrained(place)
    train_config = {
        "dataset": {"repo_id": "me/reach", "root": str(tmp_path / "data")},
        "policy": {"type": "internvla_a1", "pretrained_path": str(tmp_path / "before")},
        "output_dir": str(tmp_path / "run"),
        "wandb": {"entity": "jane.doe", "run_id": "3x4mpl3", "project": "lerobot"},
        "batch_size": 2,
        "steps": 3,
    }
    (place / "train_config.json").write_text(json.dumps(train_config))
    return place


def fingerprints(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------------------------ privacy


@pytest.mark.parametrize(
    "text",
    [
        "/home/jane/data", "see /tmp/x/y.txt", "/root", "(/Users/jane/a)", "~/outputs/run", "C:\\Users\\jane\\x",
        "file:///etc/x", '"root": "/mnt/disk1/set"', "--output_dir=/scratch/jane", TOKEN, "ghp_" + "a1" * 15,
        "https://jane:secret99@host/x", '"api_key": "0123456789abcdef"', "-----BEGIN RSA PRIVATE KEY-----",
        "wandb_api_key=0123456789abcdef",
    ],
)  # fmt: skip
def test_private_text_is_found(text: str):
    assert find_private("README.md", f"line one\n{text}\n")


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/home/user", "and/or", "left/right arm", "10 m/s", "</think>", "input / output",
        "outputs/train/run", '"bos_token": "<|endoftext|>"', '"eos_token": "<|im_end|>"', "1/2", "docs/publishing.md",
        "owner/name", "a token of 8 letters", "0123456789012345678901234567890123456789", "//comment",
        '"additional_special_tokens": ["<|vision_start|>"]', "#/definitions/x",
    ],
)  # fmt: skip
def test_harmless_text_is_left_alone(text: str):
    assert find_private("README.md", text) == []
    assert not is_local_path(text) or text == "//comment"


def test_a_vocabulary_may_hold_any_word_but_not_this_computers_folders(tmp_path: Path):
    assert find_private("text_tokenizer/tokenizer.json", '{"/home": 1, "/usr/bin/": 2}') == []
    assert find_private("text_tokenizer/tokenizer.json", json.dumps({"path": f"{Path.home()}/x"}))
    assert find_private("config.json", '{"/home": 1}')


def test_the_header_of_weights_is_searched_too(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(2)}, file, metadata={"format": "pt"})
    assert find_private_in_file("model.safetensors", file) == []
    save_file({"x": torch.zeros(2)}, file, metadata={"made_from": "/home/jane/a.pt"})
    assert "/home/jane/a.pt" in str(find_private_in_file("model.safetensors", file))
    file.write_bytes(file.read_bytes()[:20])
    assert "truncated" in str(find_private_in_file("model.safetensors", file))


def test_redaction_keeps_everything_but_paths():
    tree = {"root": "/data/x", "repo_id": "me/x", "n": [1, "~/y"], "base_model": "/m", "steps": 3, "none": None}
    changed, redactions = redact_json("config.json", tree)
    words = "local folder (path removed)"  # null would mean random weights
    assert changed == {"root": None, "repo_id": "me/x", "n": [1, words], "base_model": words, "steps": 3, "none": None}
    assert [redaction.field for redaction in redactions] == ["root", "n.1", "base_model"]
    assert tree["root"] == "/data/x"


def test_a_command_keeps_its_flags():
    arguments = ("--dataset.root=/data/x", "/tmp/a.yaml", "--policy.camera_slots={'head': 'x.y'}", f"--token={TOKEN}")
    assert redact_arguments(arguments) == (
        "--dataset.root=<path>", "<path>", "--policy.camera_slots={'head': 'x.y'}", "--token=<secret>",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- one folder


def test_the_right_files_go_and_nothing_private_goes_with_them(hub: FakeHub, folder: Path, tmp_path: Path):
    for stray in ("events.log", "optimizer_state.safetensors", "weights.pt", ".hidden.json", "eval_info.json"):
        (folder / stray).write_text("{}")
    group = {"pc_success": 50.0, "n_episodes": 2, "video_paths": [str(tmp_path / "episode.mp4")]}
    (folder / "eval_info.json").write_text(json.dumps({"per_group": {"conveyor": group}}))
    before = fingerprints(folder)
    publish(plan_upload(folder, "me/reach", licence="mit"))
    assert set(hub.files) == {
        "README.md", "config.json", "lineage.json", "model.safetensors", "train_config.json",
        "image_tokenizer/config.json", "text_tokenizer/tokenizer_config.json",
        "policy_preprocessor.json", "policy_postprocessor.json",
    }  # fmt: skip
    for name, data in hub.files.items():
        assert str(tmp_path).encode() not in data, name
        assert b"jane.doe" not in data, name
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    published = json.loads(hub.files["train_config.json"])
    assert published["dataset"] == {"repo_id": "me/reach", "root": None}
    assert published["steps"] == 3
    assert fingerprints(folder) == before
    assert str(tmp_path) in (folder / "train_config.json").read_text()  # the local copy still works for --resume


def test_what_was_published_loads_again(hub: FakeHub, folder: Path, tmp_path: Path):
    publish(plan_upload(folder, "me/reach", licence="mit"))
    for name, data in hub.files.items():
        (tmp_path / "downloaded" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "downloaded" / name).write_bytes(data)
    ours, theirs = (InternVLAA1Policy.from_pretrained(p).state_dict() for p in (folder, tmp_path / "downloaded"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", f"My notes. Use token {TOKEN}.\n"),
        ("README.md", "My data is in /home/jane/data.\n"),
        ("text_tokenizer/notes.txt", "made in /scratch/jane\n"),
        ("policy_preprocessor.json", json.dumps({"note": f"token {TOKEN}"})),
    ],
)
def test_what_cannot_be_redacted_stops_the_upload_before_anything_is_sent(
    hub: FakeHub, folder: Path, file: str, text: str
):
    (folder / file).write_text(text)
    (folder / "NOTES.md").write_text("and ~/another/one")
    with pytest.raises(InternVLAError, match=r"2 thing\(s\).*nothing was sent") as raised:
        plan_upload(folder, "me/reach")
    assert file in str(raised.value)
    assert "NOTES.md, line 1" in str(raised.value)  # all problems at once
    assert TOKEN not in str(raised.value)
    assert hub.created == hub.commits == []


def test_a_failed_upload_leaves_the_folder_whole_and_says_how_to_repeat(
    hub: FakeHub, folder: Path, capsys: pytest.CaptureFixture[str]
):
    before = fingerprints(folder)
    hub.failure = ConnectionError("connection reset by peer")
    flags = [str(folder), "--repo_id=me/reach", "--license=mit"]
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert "connection reset by peer" in message
    assert f"internvla-publish {folder} --repo_id=me/reach" in message
    assert "hf auth login" in message
    assert "--license=mit" in message
    assert hub.commits == []
    assert fingerprints(folder) == before
    hub.failure = None
    assert main(flags) == 0
    assert len(hub.commits) == 1


def test_without_the_network_the_message_is_the_same(folder: Path):
    with pytest.raises(InternVLAError, match=r"(?s)Publishing to 'me/reach' failed: Offline.*internvla-publish"):
        publish(plan_upload(folder, "me/reach"))


def test_a_dry_run_needs_no_hub_and_shows_everything(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    card = tmp_path / "card.md"
    assert main([str(folder), "--repo_id=me/reach", "--dry-run", f"--card={card}"]) == 0
    shown = capsys.readouterr().out
    for word in ("model.safetensors", "train_config.json", "dataset.root", "nothing was sent", "licence unknown"):
        assert word in shown
    assert ModelCard.load(card).data.license == "unknown"


def test_a_card_of_ones_own_is_kept_and_a_generated_one_is_renewed(hub: FakeHub, folder: Path):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    publish(plan_upload(folder, "me/reach"))
    assert b"My own words" in hub.files["README.md"]
    assert main([str(folder), "--repo_id=me/reach", "--new_card"]) == 0
    assert MARKER.encode() in hub.files["README.md"]
    (folder / "README.md").write_bytes(hub.files["README.md"] + b"\nstale\n")
    publish(plan_upload(folder, "me/reach"))
    assert b"stale" not in hub.files["README.md"]


def test_what_is_no_checkpoint_of_ours_is_refused_with_the_folder_that_may_be_meant(folder: Path, tmp_path: Path):
    last = tmp_path / "out" / "checkpoints" / "last"
    last.mkdir(parents=True)
    folder.rename(last / "pretrained_model")
    with pytest.raises(InternVLAError, match=r"Did you mean '.*last.pretrained_model'"):
        plan_upload(tmp_path / "out", "me/x")
    with pytest.raises(InternVLAError, match="expected owner/name"):
        plan_upload(last / "pretrained_model", "x")
    with pytest.raises(InternVLAError, match="--base_policy is for adapters"):
        plan_upload(last / "pretrained_model", "me/x", base_policy="me/base")
    config = last / "pretrained_model" / "config.json"
    config.write_text('{"type": "act"}')
    with pytest.raises(InternVLAError, match="type 'act'"):
        plan_upload(last / "pretrained_model", "me/x")


def test_a_policy_in_a_notebook_publishes_itself(hub: FakeHub):
    policy = tiny_policy()
    url = policy.push_to_hub("me/notebook", private=True, token="secret", commit_message="First")
    assert url.startswith("https://huggingface.co/me/notebook/commit/")
    assert hub.created == [{"repo_id": "me/notebook", "token": "secret", "private": True, "exist_ok": True}]
    assert {"README.md", "model.safetensors", "lineage.json", "policy_preprocessor.json"} <= set(hub.files)
    hub.failure = OSError("disk")
    with pytest.raises(InternVLAError, match=r"policy\.push_to_hub\('me/notebook'\)"):
        policy.push_to_hub("me/notebook")


def test_a_converted_checkpoint_can_be_published_whole(hub: FakeHub, converted: Path):
    assert main([str(converted), "--repo_id=me/converted", "--new_card"]) == 0
    names = {str(path.relative_to(converted)) for path in converted.rglob("*") if path.is_file()}
    assert set(hub.files) == names | {"README.md"}
    assert ModelCard(hub.files["README.md"].decode()).data.license == "cc-by-nc-sa-4.0"


# ------------------------------------------------------------------------------------------------- the end of training


@pytest.fixture
def cfg(tmp_path: Path) -> TrainPipelineConfig:
    """Of a run that ends now; nothing was saved yet."""
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="me/reach", root=str(tmp_path / "data")),
        policy=tiny_config(repo_id="me/reach", license=None),
        output_dir=tmp_path / "out",
        steps=7,
        batch_size=3,
    )


def test_lerobot_train_publishes_policy_card_and_processors(hub: FakeHub, tmp_path: Path):
    tiny_dataset(tmp_path / "data")
    flags = training_flags(tmp_path / "data", tmp_path / "out", steps=2)
    flags = [flag for flag in flags if "push_to_hub" not in flag]
    lerobot_train(*flags, "--policy.push_to_hub=true", "--policy.repo_id=me/tiny", "--policy.private=true")
    first = hub.commits[0]
    assert {
        "README.md", "config.json", "lineage.json", "model.safetensors", "train_config.json",
        "policy_preprocessor.json", "policy_postprocessor.json", "text_tokenizer/tokenizer_config.json",
    } <= set(first)  # fmt: skip
    assert hub.created[0]["private"] is True
    for name, data in hub.files.items():
        assert str(tmp_path).encode() not in data, name
    card = ModelCard(first["README.md"].decode())
    assert card.data.license == "apache-2.0"
    for fact in ("| steps | 2 |", "2 = 2 per device x 1 device(s)", "lerobot-train", "--dataset.root=<path>", "| 37 |"):
        assert fact in card.text
    assert not (tmp_path / "out" / "to_publish").exists()
    assert str(tmp_path / "data") in (last_checkpoint(tmp_path / "out") / "train_config.json").read_text()


def test_a_failure_after_training_keeps_all_that_was_to_be_published(hub: FakeHub, cfg: TrainPipelineConfig):
    cfg.policy.private = True  # pyright: ignore[reportOptionalMemberAccess]
    hub.failure = ConnectionError("no route to host")
    with pytest.raises(InternVLAError, match="internvla-publish") as raised:
        tiny_policy(cfg.policy).push_model_to_hub(cfg)  # pyright: ignore[reportArgumentType]
    kept = Path(str(cfg.output_dir)) / "to_publish"
    assert f"internvla-publish {kept} --repo_id=me/reach --private" in str(raised.value)
    assert (kept / "policy_preprocessor.json").is_file()  # without them LeRobot's commands cannot use the policy
    hub.failure = None
    assert main([str(kept), "--repo_id=me/reach"]) == 0
    assert hub.created[-1]["private"] is True  # from config.json
    assert "model.safetensors" in hub.files


def test_a_licence_that_the_origin_forbids_stops_the_upload_and_loses_nothing(hub: FakeHub, cfg: TrainPipelineConfig):
    policy = tiny_policy(dataclasses.replace(cfg.policy, license="apache-2.0"))  # pyright: ignore
    policy.lineage = dataclasses.replace(policy.lineage, ancestors=(A1,))
    with pytest.raises(InternVLAError, match=r"(?s)share alike.*internvla-publish"):
        policy.push_model_to_hub(cfg)
    assert hub.created == []
    assert (Path(str(cfg.output_dir)) / "to_publish" / "model.safetensors").is_file()


def test_an_adapter_needs_a_public_base(hub: FakeHub, cfg: TrainPipelineConfig, tmp_path: Path):
    pytest.importorskip("peft")
    base = tmp_path / "base"
    tiny_policy(cfg.policy).save_pretrained(base)  # pyright: ignore[reportArgumentType]
    config = dataclasses.replace(cfg.policy, pretrained_path=base)  # pyright: ignore
    policy = InternVLAA1Policy.from_pretrained(base, config=config)  # pyright: ignore[reportArgumentType]
    adapter = policy.wrap_with_peft(peft_cli_overrides={"r": 2})
    with pytest.raises(InternVLAError, match="--base_policy"):
        adapter.push_model_to_hub(cfg, peft_model=adapter)
    kept = Path(str(cfg.output_dir)) / "to_publish"
    assert main([str(kept), "--repo_id=me/reach_lora", "--base_policy=me/base"]) == 0
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "lineage.json"} <= set(hub.files)
    assert "model.safetensors" not in hub.files
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.base_model == ["me/base"]
    for name, data in hub.files.items():
        assert str(tmp_path).encode() not in data, name


# ---------------------------------------------------------------------------------------------------- LeRobot's main


@pytest.fixture
def lerobot_main(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """LeRobot after 0.6.1: a function publishes, and lerobot-train has imported it by name. Returns its calls."""
    calls: list[Any] = []

    def publish_trained_model(
        cfg: Any, model: Any, preprocessor: Any, postprocessor: Any, dataset_meta: Any, *, peft_model: Any = None
    ) -> None:
        calls.append(model)

    import lerobot.common.train_utils as train_utils

    command = ModuleType("lerobot_train_of_main")
    for module in (train_utils, command):
        monkeypatch.setattr(module, "publish_trained_model", publish_trained_model, raising=False)
    monkeypatch.setitem(sys.modules, command.__name__, command)
    return calls


def test_on_lerobots_main_ours_is_published_by_us_and_others_as_before(
    hub: FakeHub,
    cfg: TrainPipelineConfig,
    lerobot_main: list[Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO)
    from lerobot.policies.factory import make_pre_post_processors

    dataset = tiny_dataset(tmp_path / "data", repo_id="me/reach")
    policy = InternVLAA1Policy(cfg.policy, dataset_meta=dataset.meta)  # pyright: ignore[reportArgumentType]
    follow_lerobot()  # twice makes no difference
    command: Any = sys.modules["lerobot_train_of_main"]
    command.publish_trained_model(cfg, policy, *make_pre_post_processors(policy.config), dataset.meta)
    assert lerobot_main == []
    assert "Model pushed to https://huggingface.co/me/reach" in caplog.text  # LeRobot's remote jobs wait for this line
    (commit,) = hub.commits
    assert {"README.md", "train_config.json", "policy_preprocessor.json", "model.safetensors"} <= set(commit)
    for name, data in commit.items():
        assert str(tmp_path).encode() not in data, name
    other = SimpleNamespace(name="act")
    command.publish_trained_model(cfg, other, None, None, None)
    assert lerobot_main == [other]


def test_on_0_6_1_nothing_of_lerobot_is_wrapped():
    import lerobot.common.train_utils as train_utils

    before = dict(vars(train_utils))
    follow_lerobot()
    assert vars(train_utils) == before


def test_only_the_first_rank_uploads(hub: FakeHub, cfg: TrainPipelineConfig, monkeypatch: pytest.MonkeyPatch):
    from lerobot_internvla.publishing import upload as publishing

    monkeypatch.setattr(publishing, "is_main_process", lambda: False)
    assert publish_training(tiny_policy(cfg.policy), cfg) is None  # pyright: ignore[reportArgumentType]
    assert hub.created == hub.commits == []
