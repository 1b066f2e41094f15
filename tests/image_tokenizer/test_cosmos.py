"""Cosmos CI8x8: the reference's numbers at reduced width, the released names and shapes, and what frozen means."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tokenizer.golden_cosmos import (
    FOLDER,
    RELATIVE_TO_MAX,
    TINY,
    golden_tokenizer,
    inputs,
    outputs,
    relative_error,
)
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer
from lerobot_internvla.image_tokenizer.spec import COSMOS_CI8X8

IMAGES = ("image_a", "image_b")  # 2 x 64 x 64 and 1 x 96 x 64
STAGES = sorted(name.removeprefix("stage.image_a.") for name in outputs() if name.startswith("stage."))


def sizes(tokenizer: CosmosImageTokenizer) -> dict[str, Any]:
    """The constructor's arguments, without what diffusers notes beside them."""
    return {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}


@pytest.fixture(scope="module")
def tokenizer() -> CosmosImageTokenizer:
    return golden_tokenizer()


@pytest.fixture(scope="module")
def stages(tokenizer: CosmosImageTokenizer) -> dict[str, torch.Tensor]:
    """The output of every module in one round trip of image_a."""
    seen: dict[str, torch.Tensor] = {}

    def remember(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, output)

    hooks = [module.register_forward_hook(remember(name)) for name, module in tokenizer.named_modules()]
    tokenizer.decode(tokenizer.encode(inputs()["image_a"]))
    for hook in hooks:
        hook.remove()
    return seen


# --- the reference's numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_latents_equal_the_reference(tokenizer: CosmosImageTokenizer, image: str):
    assert relative_error(tokenizer.encode(inputs()[image]), outputs()[f"latent.{image}"]) < RELATIVE_TO_MAX


@pytest.mark.parametrize("image", IMAGES)
def test_reconstructions_equal_the_reference(tokenizer: CosmosImageTokenizer, image: str):
    decoded = tokenizer.decode(outputs()[f"latent.{image}"])
    assert relative_error(decoded, outputs()[f"reconstruction.{image}"]) < RELATIVE_TO_MAX


def test_every_stage_of_the_reference_is_compared():
    assert len(STAGES) == 31


@pytest.mark.parametrize("stage", STAGES)
def test_stages_equal_the_reference(stages: dict[str, torch.Tensor], stage: str):
    reference = outputs()[f"stage.image_a.{stage}"]  # every 8th channel
    assert relative_error(stages[stage][:, ::8], reference) < RELATIVE_TO_MAX


@pytest.mark.parametrize("image", IMAGES)
def test_bfloat16_is_as_near_to_float32_as_the_reference_in_bfloat16(image: str):
    tokenizer = golden_tokenizer(torch.bfloat16)
    latents = tokenizer.encode(inputs()[image])
    answers = {"latent": latents, "reconstruction": tokenizer.decode(latents)}
    for kind, ours in answers.items():
        truth, reference = outputs()[f"{kind}.{image}"], outputs()[f"{kind}_bf16model.{image}"]
        assert ours.dtype == torch.float32
        assert relative_error(ours, truth) < 1.5 * relative_error(reference, truth)
        assert relative_error(ours, reference) < 2 * relative_error(reference, truth)


def test_values_are_not_clamped(tokenizer: CosmosImageTokenizer):
    assert outputs()["reconstruction.image_a"].abs().max() > 1
    assert tokenizer.decode(outputs()["latent.image_a"]).abs().max() > 1


# --- names and sizes --------------------------------------------------------------------------------------------------


def test_the_released_size_has_the_released_names_and_shapes():
    released = json.loads((FOLDER / "full_size_shapes.json").read_text())
    with torch.device("meta"):
        tokenizer = CosmosImageTokenizer.from_spec(COSMOS_CI8X8)
        by_default = CosmosImageTokenizer()
    ours = {name: list(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    assert ours == released["shapes"]
    assert len(ours) == 198
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == released["n_params"] == 76_789_472
    assert sizes(by_default) == sizes(tokenizer)
    assert COSMOS_CI8X8.latent_size == (32, 32)


def test_impossible_sizes_are_all_named_at_once():
    with pytest.raises(InternVLAError) as refusal:
        CosmosImageTokenizer(channels=20, channels_mult=(1, 2), patch_size=3)
    for part in ("patch_size 3 is not a power of two", "width of 20", "width of 40"):
        assert part in str(refusal.value)
    with pytest.raises(InternVLAError, match=r"spatial_compression 64 needs 4 halvings.*3 levels"):
        CosmosImageTokenizer(spatial_compression=64)
    with pytest.raises(InternVLAError, match="needs -1 halvings"):
        CosmosImageTokenizer(spatial_compression=2)


@pytest.mark.parametrize(("patch_size", "compression"), [(1, 4), (2, 16), (4, 4), (4, 32)])
def test_other_compressions_give_the_promised_latent_size(patch_size: int, compression: int):
    tokenizer = CosmosImageTokenizer(
        channels=32, channels_mult=(1, 1, 1), num_res_blocks=1, patch_size=patch_size, spatial_compression=compression
    )
    latents = tokenizer.encode(torch.zeros(1, 3, 64, 32))
    assert latents.shape == (1, 16, 64 // compression, 32 // compression)
    assert tokenizer.decode(latents).shape == (1, 3, 64, 32)


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_it_is_an_image_tokenizer(tokenizer: CosmosImageTokenizer):
    assert isinstance(tokenizer, ImageTokenizer)
    assert (tokenizer.latent_channels, tokenizer.compression) == (16, 8)


@pytest.mark.parametrize("count", range(6))
def test_any_number_of_images_gives_the_answers_of_one_at_a_time(tokenizer: CosmosImageTokenizer, count: int):
    images = torch.rand(count, 3, 48, 32, generator=torch.Generator().manual_seed(count)) * 2 - 1
    latents = tokenizer.encode(images)
    assert latents.shape == (count, 16, 6, 4)
    assert tokenizer.decode(latents).shape == images.shape
    for index in range(count):
        torch.testing.assert_close(latents[index], tokenizer.encode(images[index : index + 1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("argument", [torch.float32, torch.bfloat16, torch.float16])
def test_the_answer_has_the_dtype_of_the_argument(weights: torch.dtype, argument: torch.dtype):
    tokenizer = CosmosImageTokenizer.from_spec(TINY).to(weights)
    latents = tokenizer.encode(torch.zeros(1, 3, 16, 16, dtype=argument))
    assert latents.dtype == argument
    assert tokenizer.decode(latents).dtype == argument
    assert tokenizer.quant_conv.weight.dtype == weights


def test_autocast_changes_nothing(tokenizer: CosmosImageTokenizer):
    images = inputs()["image_a"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = tokenizer.encode(images)
        decoded = tokenizer.decode(latents)
    assert torch.equal(latents, tokenizer.encode(images))
    assert torch.equal(decoded, tokenizer.decode(latents))


def test_channels_last_gives_the_same_answers_contiguous():
    plain, channels_last = golden_tokenizer(), golden_tokenizer().to(memory_format=torch.channels_last)
    assert not channels_last.encoder.conv_in.weight.is_contiguous()
    latents = channels_last.encode(inputs()["image_b"])
    decoded = channels_last.decode(latents)
    assert latents.is_contiguous()
    assert decoded.is_contiguous()
    assert relative_error(latents, plain.encode(inputs()["image_b"])) < RELATIVE_TO_MAX
    assert relative_error(decoded, plain.decode(latents)) < RELATIVE_TO_MAX


def test_bad_images_and_latents_are_named(tokenizer: CosmosImageTokenizer):
    with pytest.raises(InternVLAError, match=r"\(1, 3, 60, 0\).*height 60 .* multiple of 8.*width 0 .* multiple of 8"):
        tokenizer.encode(torch.zeros(1, 3, 60, 0))
    with pytest.raises(InternVLAError, match=r"expected \[n, 16, h, w\]"):
        tokenizer.decode(torch.zeros(1, 48, 8, 8))


# --- frozen -----------------------------------------------------------------------------------------------------------


def test_it_is_frozen_from_the_start_and_train_does_not_thaw_it(tmp_path: Path):
    built = CosmosImageTokenizer.from_spec(TINY)
    built.save_pretrained(tmp_path)
    for tokenizer in (built, CosmosImageTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.train() is tokenizer
        assert not any(module.training for module in tokenizer.modules())
        assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert not built.encode(torch.zeros(1, 3, 16, 16)).requires_grad


def test_gradients_pass_through_decode_to_the_latents(tokenizer: CosmosImageTokenizer):
    latents = outputs()["latent.image_b"].clone().requires_grad_()
    tokenizer.decode(latents).square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_round_trip_also_in_a_subfolder(tmp_path: Path, dtype: torch.dtype):
    saved = golden_tokenizer(dtype)
    saved.save_pretrained(tmp_path / "image_tokenizer")
    loaded = CosmosImageTokenizer.from_pretrained(tmp_path, subfolder="image_tokenizer", torch_dtype=dtype)
    assert sizes(loaded) == sizes(saved)
    for name, tensor in saved.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_loaded_tokenizer_does_not_remember_folders_of_this_machine(tmp_path: Path):
    CosmosImageTokenizer.from_spec(TINY).save_pretrained(tmp_path / "first")
    CosmosImageTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second" / "config.json").read_text()


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_incomplete_folders_are_refused(tmp_path: Path, damage: str):
    CosmosImageTokenizer.from_spec(TINY).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    weight = tensors.pop("decoder.conv_in.weight")
    if damage == "unexpected":
        tensors |= {"decoder.conv_in.weight": weight, "decoder.extra.decoder.conv_in.weight": weight.clone()}
    if damage == "shape":
        tensors["decoder.conv_in.weight"] = weight[:, :8].contiguous()
    save_file(tensors, file)
    with pytest.raises(InternVLAError, match=r"does not fit its config\.json.*decoder\.conv_in\.weight"):
        CosmosImageTokenizer.from_pretrained(tmp_path)


# --- compiled ---------------------------------------------------------------------------------------------------------

COMPILE = """
import torch
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.image_tokenizer.haar import HaarImageTokenizer

torch.manual_seed(0)
images = torch.rand(2, 3, 32, 16) * 2 - 1
cosmos = CosmosImageTokenizer(channels=32, channels_mult=(1, 2), num_res_blocks=1)
for tokenizer in (cosmos, cosmos.to(torch.bfloat16), HaarImageTokenizer(2)):
    encode = torch.compile(tokenizer.encode, fullgraph=True, backend="eager")
    decode = torch.compile(tokenizer.decode, fullgraph=True, backend="eager")
    latents = tokenizer.encode(images)
    torch.testing.assert_close(encode(images), latents)
    torch.testing.assert_close(decode(latents), tokenizer.decode(latents))
print("compiled")
"""


def test_encode_and_decode_compile_to_one_graph():
    # In a process of its own: the shape checks of the test session are no part of the library's graph.
    finished = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=600)
    assert finished.stdout.strip() == "compiled", finished.stderr
