"""Cosmos weights come from every released layout, complete and under our names, or an error says all that is wrong."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from image_tokenizer.golden_cosmos import (
    RELATIVE_TO_MAX,
    TINY,
    golden_tokenizer,
    inputs,
    outputs,
    relative_error,
    trace_jit_pair,
    weights,
)
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.image_tokenizer.cosmos_weights import (
    DROPPED_NAMES,
    cosmos_state_dict_from,
    load_cosmos_weights,
)
from lerobot_internvla.image_tokenizer.spec import COSMOS_CI8X8

ENCODER_PARTS, DECODER_PARTS = ("encoder.", "quant_conv."), ("decoder.", "post_quant_conv.")


def write_jit_pair(folder: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    """The golden weights as ``encoder.jit`` and ``decoder.jit``."""
    return trace_jit_pair(golden_tokenizer(dtype), folder)


def halves(prefix: str = "", dtype: torch.dtype = torch.float32) -> tuple[dict[str, torch.Tensor], ...]:
    """The golden weights as the two halves that are released, with the buffers that they carry."""
    all_weights = {name: tensor.to(dtype) for name, tensor in weights().items()}
    buffers = {name: torch.arange(2) if "arange" in name else torch.full((2,), 0.7) for name in DROPPED_NAMES}
    tensors = all_weights | buffers
    return tuple(
        {f"{prefix}{name}": tensor for name, tensor in tensors.items() if name.startswith(parts)}
        for parts in (ENCODER_PARTS, DECODER_PARTS)
    )


def checkpoint(prefix: str) -> dict[str, torch.Tensor]:
    """An InternVLA-A1 checkpoint: the image tokenizer among other things."""
    encoder, decoder = halves()
    return {
        **{f"{prefix}_enc_model.{name}": tensor for name, tensor in encoder.items()},
        **{f"{prefix}_dec_model.{name}": tensor for name, tensor in decoder.items()},
        "model.action_in_proj.weight": torch.zeros(3),
        "model.cosmos_in_proj.weight": torch.zeros(3),
    }


def assert_golden(tokenizer: CosmosImageTokenizer) -> None:
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert not tokenizer.training
    assert all(torch.equal(tensor, weights()[name]) for name, tensor in tokenizer.state_dict().items())
    assert relative_error(tokenizer.encode(inputs()["image_b"]), outputs()["latent.image_b"]) < RELATIVE_TO_MAX


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nvidia_jit_files_are_imported_in_their_dtype(tmp_path: Path, dtype: torch.dtype):
    encoder, decoder = write_jit_pair(tmp_path, dtype)
    assert "encoder.patcher.wavelets" in torch.jit.load(encoder).state_dict()
    for source in ((encoder, decoder), (str(decoder), str(encoder)), tmp_path):
        tokenizer = load_cosmos_weights(source, spec=TINY)
        for name, tensor in tokenizer.state_dict().items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, weights()[name].to(dtype)), name
    answer = torch.jit.load(encoder)(inputs()["image_b"].to(dtype)).float()
    assert relative_error(tokenizer.encode(inputs()["image_b"]), answer) < RELATIVE_TO_MAX


def test_the_dtype_can_be_chosen(tmp_path: Path):
    tokenizer = load_cosmos_weights(write_jit_pair(tmp_path, torch.bfloat16), spec=TINY, dtype=torch.float32)
    assert {parameter.dtype for parameter in tokenizer.parameters()} == {torch.float32}


def test_a_pair_of_safetensors_is_imported(tmp_path: Path):
    for name, half in zip(("encoder", "decoder"), halves(), strict=True):
        save_file(half, tmp_path / f"{name}.safetensors")
    pair = (tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors")
    assert_golden(load_cosmos_weights(pair, spec=TINY))
    assert_golden(load_cosmos_weights(tmp_path, spec=TINY))


@pytest.mark.parametrize("prefix", ["model.cosmos.", "model.cosmos_tokenizer."])
def test_a_checkpoint_of_the_policy_is_imported(tmp_path: Path, prefix: str):
    save_file(checkpoint(prefix), tmp_path / "model.safetensors")
    assert_golden(load_cosmos_weights(tmp_path / "model.safetensors", spec=TINY))
    assert_golden(load_cosmos_weights(tmp_path, spec=TINY))


def test_one_plain_file_and_our_own_folder_are_imported(tmp_path: Path):
    save_file(weights(), tmp_path / "cosmos.safetensors")
    assert_golden(load_cosmos_weights(tmp_path / "cosmos.safetensors", spec=TINY))
    golden_tokenizer().save_pretrained(tmp_path / "image_tokenizer")
    assert_golden(load_cosmos_weights(tmp_path / "image_tokenizer", spec=TINY))


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_released_names_are_complete_without_reading_a_number():
    with torch.device("meta"):
        plain = CosmosImageTokenizer.from_spec(COSMOS_CI8X8).state_dict()
    prefixed = {
        f"model.cosmos._{'enc' if name.startswith(ENCODER_PARTS) else 'dec'}_model.{name}": tensor
        for name, tensor in plain.items()
    }
    picked = cosmos_state_dict_from(prefixed | {"model.unrelated": torch.zeros(1)})
    assert list(picked) == list(plain)
    assert all(picked[name] is plain[name] for name in plain)


def test_everything_that_is_wrong_is_listed_at_once():
    tensors = dict(weights())
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"][:, :12]
    del tensors["decoder.norm_out.bias"]
    tensors["encoder.attn.extra"] = torch.zeros(1)
    tensors["quant_conv.bias"] = torch.zeros(16, dtype=torch.int64)
    tensors["_dec_model.decoder.conv_in.bias"] = torch.zeros(64)
    with pytest.raises(InternVLAError) as refusal:
        cosmos_state_dict_from(tensors, spec=TINY)
    for part in (
        "shape of encoder.conv_in.weight: (32, 12, 3, 3) instead of (32, 48, 3, 3)",
        "missing: decoder.norm_out.bias",
        "unknown: encoder.attn.extra",
        "dtype of quant_conv.bias: torch.int64",
        "decoder.conv_in.bias and _dec_model.decoder.conv_in.bias are both decoder.conv_in.bias",
    ):
        assert part in str(refusal.value)


def test_half_of_the_model_is_reported_as_such(tmp_path: Path):
    encoder, decoder = write_jit_pair(tmp_path, torch.float32)
    with pytest.raises(InternVLAError, match=r"encoder\.jit.*all 108 tensors of decoder \(pass the encoder and"):
        load_cosmos_weights(encoder, spec=TINY)
    with pytest.raises(InternVLAError, match="in more than one of"):
        load_cosmos_weights((decoder, decoder), spec=TINY)


def test_another_size_or_another_model_is_refused(tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"\(32, 48, 3, 3\) instead of \(128, 48, 3, 3\)"):
        cosmos_state_dict_from(weights())
    with pytest.raises(InternVLAError, match=r"No weights of the Cosmos image tokenizer among 1 tensors \(lm_head"):
        cosmos_state_dict_from({"lm_head.weight": torch.zeros(1)})
    with pytest.raises(InternVLAError, match="among 0 tensors"):
        cosmos_state_dict_from({})


def test_mixed_dtypes_need_a_decision(tmp_path: Path):
    save_file(
        {name: t.bfloat16() if "decoder" in name else t for name, t in weights().items()},
        tmp_path / "mixed.safetensors",
    )
    with pytest.raises(InternVLAError, match=r"mix the dtypes torch\.bfloat16, torch\.float32"):
        load_cosmos_weights(tmp_path / "mixed.safetensors", spec=TINY)
    assert load_cosmos_weights(tmp_path / "mixed.safetensors", spec=TINY, dtype=torch.float32)


def test_files_that_are_not_there_or_not_weights_are_named(tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"No such file: .*nowhere\.jit"):
        load_cosmos_weights(tmp_path / "nowhere.jit")
    with pytest.raises(InternVLAError, match=r"No Cosmos weights in .*encoder\.jit with decoder\.jit.*Found: nothing"):
        load_cosmos_weights(tmp_path)
    (tmp_path / "encoder.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InternVLAError, match="Git LFS pointer"):
        load_cosmos_weights(tmp_path / "encoder.safetensors")
