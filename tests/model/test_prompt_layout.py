"""The written-out prompt equals the reference, for present and missing cameras."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lerobot_internvla.model.architecture import VARIANTS, Architecture
from lerobot_internvla.model.prompt_layout import prompt_layout
from lerobot_internvla.text_tokenizer import PromptBuilder

CASES = ["all3_64x96", "miss3_64x96", "miss23_64x64", "released_224_miss3"]


class StubTokenizer:
    """The reference's stand-in: one id per character."""

    pad_id = VARIANTS["3b"].special_tokens.pad
    vocabulary_size = VARIANTS["3b"].vocabulary

    def encode(self, text: str) -> list[int]:
        return [10 + ord(character) % 90 for character in text]

    def decode(self, ids: object) -> str:
        return "<lost>"

    def save_pretrained(self, folder: object) -> None: ...


def with_tower_size(height: int, width: int) -> Architecture:
    sizes = VARIANTS["3b"]
    return dataclasses.replace(sizes, vision=dataclasses.replace(sizes.vision, image_size=(height, width)))


def laid_out(sizes: Architecture, present: list[int], task: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, is_valid = PromptBuilder(StubTokenizer(), sizes.prompt_tokens)([task])
    return prompt_layout(sizes, torch.tensor([present]).bool(), ids, is_valid)


@pytest.mark.parametrize("name", CASES)
def test_prompt_equals_the_reference(name: str, goldens: Path) -> None:
    tensors = load_file(goldens / "preprocess" / "prompt_transform.safetensors")
    cases = json.loads((goldens / "preprocess" / "config.json").read_text())["prompt_transform"]["cases"]
    case = next(case for case in cases if case["name"] == name)
    # Those named after the released settings upsample 224 to 256; the others keep the size in their name.
    size = (256, 256) if "224" in name else tuple(int(side) for side in name.split("_")[1].split("x"))

    ids, mask = laid_out(with_tower_size(*size), case["present"], case["task"])

    assert ids.shape == (1, case["n_prefix_tokens"])
    assert torch.equal(ids[0], tensors[f"{name}.input_ids"])
    assert torch.equal(mask[0].long(), tensors[f"{name}.attention_mask"])


def test_prompt_of_the_whole_preprocessing_chain_equals_the_reference(goldens: Path) -> None:
    tensors = load_file(goldens / "preprocess" / "pipeline_3b.safetensors")
    task = json.loads((goldens / "preprocess" / "config.json").read_text())["pipeline_3b"]["task"]
    present = [int(tensors[f"out.observation.images.image{view}_mask"]) for view in range(3)]
    ids, mask = laid_out(with_tower_size(64, 64), present, task)
    assert torch.equal(ids[0], tensors["out.observation.input_ids"])
    assert torch.equal(mask[0].long(), tensors["out.observation.attention_mask"])


def test_families_without_delimiters_have_image_tokens_only() -> None:
    sizes = VARIANTS["2b"]
    ids, mask = laid_out(sizes, [1, 0, 1], "go")
    assert ids.shape == mask.shape == (1, 3 * 256 + 48)
    assert (ids[0, : 3 * 256] == sizes.special_tokens.image).all()
    assert mask[0].tolist() == [True] * 256 + [False] * 256 + [True] * 256 + [True] * 2 + [False] * 46
