"""Raw text in, fixed-length prompts out; saved tokenizers load offline; lost text is named."""

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import VARIANTS
from lerobot_internvla.text_tokenizer import (
    ByteTextTokenizer,
    HuggingFaceTextTokenizer,
    PromptBuilder,
    load_text_tokenizer,
)


@pytest.fixture
def word_tokenizer_folder(tmp_path: Path) -> Path:
    """A small Hugging Face tokenizer that, like many, frames every text with begin and end tokens by default."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "fold", "the", "red", "towel", "user"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.chat_template = "user {{ messages[0]['content'] }}"
    folder = tmp_path / "tokenizer"
    wrapped.save_pretrained(folder)
    return folder


# Bytes


@given(st.text("a Z\n\x00é漢🤖"))
def test_bytes_are_the_ids_and_come_back(text: str) -> None:
    tokenizer = ByteTextTokenizer()
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_byte_tokenizer_fits_the_tiny_variant() -> None:
    tokenizer, sizes = ByteTextTokenizer(), VARIANTS["tiny"]
    assert tokenizer.vocabulary_size == sizes.vocabulary
    assert tokenizer.pad_id == sizes.special_tokens.pad


def test_the_byte_tokenizer_is_found_again_in_its_folder(tmp_path: Path) -> None:
    load_text_tokenizer("byte").save_pretrained(tmp_path / "new" / "folder")
    assert isinstance(load_text_tokenizer(tmp_path / "new" / "folder"), ByteTextTokenizer)


# Hugging Face


def test_text_is_encoded_raw(word_tokenizer_folder: Path) -> None:
    tokenizer = load_text_tokenizer(word_tokenizer_folder)
    assert isinstance(tokenizer, HuggingFaceTextTokenizer)
    # No begin, end or chat template, although the tokenizer has all three.
    assert tokenizer.encode("fold the red towel") == [4, 5, 6, 7]
    assert tokenizer.decode([6, 7]) == "red towel"
    assert tokenizer.pad_id == 0
    assert tokenizer.vocabulary_size == 9


def test_a_saved_tokenizer_loads_offline(word_tokenizer_folder: Path, tmp_path: Path) -> None:
    load_text_tokenizer(word_tokenizer_folder).save_pretrained(tmp_path / "checkpoint")
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (tmp_path / "checkpoint").iterdir()}
    again = load_text_tokenizer(str(tmp_path / "checkpoint"))  # conftest forbids the Hub
    assert again.encode("fold the red towel") == [4, 5, 6, 7]
    assert again.pad_id == 0


def test_a_hub_tokenizer_is_loaded_only_when_it_is_used() -> None:
    tokenizer = load_text_tokenizer("nobody/has-this-tokenizer")
    with pytest.raises(InternVLAError, match=r"Hub repository 'nobody/has-this-tokenizer'.*local folder"):
        tokenizer.encode("fold")


def test_a_tokenizer_without_padding_is_refused(word_tokenizer_folder: Path) -> None:
    config_file = word_tokenizer_folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    del config["pad_token"]
    config_file.write_text(json.dumps(config))
    with pytest.raises(InternVLAError, match="no padding token"):
        load_text_tokenizer(word_tokenizer_folder).pad_id


def test_a_corrupt_tokenizer_is_named(word_tokenizer_folder: Path) -> None:
    (word_tokenizer_folder / "tokenizer.json").write_text("{")
    with pytest.raises(InternVLAError, match=r"Cannot load the text tokenizer from the folder.*tokenizer\.json"):
        load_text_tokenizer(word_tokenizer_folder).encode("fold")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InternVLAError, match=r"tokenizer_config\.json is missing \(found: model\.safetensors\)"):
        load_text_tokenizer(tmp_path)


def test_a_broken_tokenizer_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InternVLAError, match="not a JSON object"):
        load_text_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "~/nothing-here", "outputs/train/checkpoint"])
def test_a_mistyped_path_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(InternVLAError, match="There is no folder"):
        load_text_tokenizer(name)


# Prompts


def test_prompts_are_padded_on_the_right() -> None:
    ids, is_valid = PromptBuilder(ByteTextTokenizer(), length=4)(["hi", "", "full"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[104, 105, 259, 259], [259] * 4, list(b"full")]
    assert is_valid.tolist() == [[True, True, False, False], [False] * 4, [True] * 4]


def test_a_long_prompt_is_cut_and_the_lost_text_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    build = PromptBuilder(ByteTextTokenizer(), length=8)
    with caplog.at_level(logging.WARNING):
        ids, is_valid = build(["pick up the cube", "pick up the cube"])
        build(["pick up the cube", "short"])
        assert len(caplog.records) == 1
        build(["pick up the ball"])
    assert bytes(ids[0].tolist()) == b"pick up "
    assert is_valid.all()
    first, second = (record.getMessage() for record in caplog.records)
    assert "'pick up the cube' has 16 tokens" in first
    assert "Lost: 'the cube'" in first
    assert "Lost: 'the ball'" in second


def test_a_prompt_that_just_fits_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        PromptBuilder(ByteTextTokenizer(), length=4)(["fold"])
    assert not caplog.records


@pytest.mark.parametrize("tasks", ["fold", [None], [["fold"]]])
def test_tasks_that_are_not_a_list_of_strings_are_refused(tasks: object) -> None:
    build = PromptBuilder(ByteTextTokenizer(), length=4)
    call = getattr(build.__call__, "__wrapped__", None)  # around the type check that pytest switches on
    with pytest.raises(InternVLAError, match="list of task strings"):
        call(build, tasks) if call else build(tasks)  # type: ignore[arg-type]
