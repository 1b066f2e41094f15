"""Released checkpoints in small: the golden models in the released key set and dtypes, with statistics and a tokenizer.

The weights are the goldens' own, so what is converted can be compared with the reference's outputs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from conversion.reference_files import key_list

CONSTANTS = {"wavelets": [0.5**0.5] * 2, "_arange": [0, 1]}


def write_released(golden: Path, folder: Path, *, released_dtypes: bool = True) -> Path:
    """A complete golden model folder -> the reference's release: model.safetensors, config.json, stats.json.

    Args:
        released_dtypes: bfloat16 with float32 norms and heads, and the buffers of a scripted image tokenizer; False
            leaves all in float32, so that float32 goldens can be reproduced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(golden / "model.safetensors")
    with safe_open(golden / "model.safetensors", framework="pt") as file:
        metadata = file.metadata() or {}
    metadata.pop("format", None)
    if released_dtypes:
        listed = key_list(golden.name.split("_")[1], "tiny")["tensors"]
        for name, (dtype, shape) in listed.items():
            known = CONSTANTS.get(name.rsplit(".", 1)[-1])
            tensor = weights[name] if known is None else torch.tensor(known).reshape(shape)
            weights[name] = tensor.to(getattr(torch, dtype))
        assert weights.keys() == listed.keys()
    save_file(weights, folder / "model.safetensors", metadata=metadata or None)
    (folder / "config.json").write_text((golden / "config.json").read_text())
    (folder / "stats.json").write_text(json.dumps({"aloha": robot_statistics({"observation.state": 14, "action": 14})}))
    return folder


def robot_statistics(dims: dict[str, int], *, relative: bool = True, seed: int = 0) -> dict[str, Any]:
    """One robot's entry of stats.json; states are far from zero, so that relative actions can be told from absolute."""
    draw = np.random.default_rng(seed)
    entry: dict[str, Any] = {}
    for key, dim in dims.items():
        centre = 0.0 if relative and "action" in key else 1.0
        mean, std = centre + draw.uniform(-0.02, 0.02, dim), draw.uniform(0.1, 0.4, dim)
        numbers = {"mean": mean, "std": std, "min": mean - 3 * std, "max": mean + 3 * std}
        entry[key] = {**{name: values.tolist() for name, values in numbers.items()}, "count": [1000]}
    return entry


def write_text_tokenizer(folder: Path) -> Path:
    """A Hugging Face tokenizer of a few words, small enough for the golden vocabularies."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = "pick up the pen and place it in a box move square to left right"
    words = ["[PAD]", "[UNK]", *text.split()]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def tensors_of(file: Path) -> dict[str, Tensor]:
    return load_file(file)
