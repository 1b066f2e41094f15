"""One function builds an image tokenizer from its specification, one loads it from a folder; neither guesses."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tokenizer.golden_cosmos import TINY, golden_tokenizer, inputs
from image_tokenizer.test_cosmos_weights import write_jit_pair
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer, load_image_tokenizer
from lerobot_internvla.image_tokenizer.haar import HaarImageTokenizer
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer
from lerobot_internvla.image_tokenizer.spec import ImageTokenizerSpec
from lerobot_internvla.model.architecture import VARIANTS

HAAR = ImageTokenizerSpec("haar", (64, 64), latent_channels=48, compression=4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gets_the_latents_that_it_promises(variant: str):
    spec = VARIANTS[variant].image_tokenizer
    with torch.device("meta"):
        tokenizer = build_image_tokenizer(spec)
        latents = tokenizer.encode(torch.zeros(2, 3, *spec.image_size))
    assert isinstance(tokenizer, ImageTokenizer)
    assert latents.shape == (2, spec.latent_channels, *spec.latent_size)
    assert (tokenizer.latent_channels, tokenizer.compression) == (spec.latent_channels, spec.compression)


def test_cosmos_is_built_in_the_dtype_asked_for():
    for dtype in (None, torch.bfloat16):
        tokenizer = build_image_tokenizer(TINY, dtype=dtype)
        assert isinstance(tokenizer, CosmosImageTokenizer)
        assert {parameter.dtype for parameter in tokenizer.parameters()} == {dtype or torch.float32}


@pytest.mark.parametrize(
    "change", [{"latent_channels": 16}, {"compression": 8}, {"compression": 3}, {"compression": 1}]
)
def test_a_haar_specification_that_contradicts_itself_is_refused(change: dict[str, int]):
    with pytest.raises(InternVLAError, match=r"3 \* 4\*\*L .* the specification says"):
        build_image_tokenizer(dataclasses.replace(HAAR, **change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_cosmos_is_loaded_in_its_stored_dtype_unless_told_otherwise(tmp_path: Path, dtype: torch.dtype):
    saved = golden_tokenizer(dtype)
    saved.save_pretrained(tmp_path / "image_tokenizer")
    by_subfolder = load_image_tokenizer(tmp_path, subfolder="image_tokenizer")
    by_folder = load_image_tokenizer(str(tmp_path / "image_tokenizer"))
    for loaded in (by_subfolder, by_folder):
        assert isinstance(loaded, CosmosImageTokenizer)
        assert loaded.quant_conv.weight.dtype == dtype
        assert torch.equal(loaded.encode(inputs()["image_b"]), saved.encode(inputs()["image_b"]))
    converted = load_image_tokenizer(tmp_path / "image_tokenizer", dtype=torch.float16)
    assert isinstance(converted, CosmosImageTokenizer)
    assert converted.quant_conv.weight.dtype == torch.float16


def test_a_saved_haar_is_loaded(tmp_path: Path):
    build_image_tokenizer(HAAR).save_pretrained(tmp_path)
    loaded = load_image_tokenizer(tmp_path, dtype=torch.bfloat16)
    assert isinstance(loaded, HaarImageTokenizer)
    assert loaded.levels == 2


def test_a_folder_with_nvidia_files_is_read_as_the_released_size(tmp_path: Path):
    write_jit_pair(tmp_path, torch.bfloat16)
    (tmp_path / "config.json").write_text('{"architectures": ["CosmosTokenizer"]}')
    # These files are small, so the way is right if the refusal is about their size.
    with pytest.raises(InternVLAError, match=r"encoder\.jit.*\(32, 48, 3, 3\) instead of \(128, 48, 3, 3\)"):
        load_image_tokenizer(tmp_path)


def test_nvidia_files_of_another_size_load_if_the_model_expects_that_size(tmp_path: Path):
    write_jit_pair(tmp_path, torch.float32)
    loaded = load_image_tokenizer(tmp_path, spec=TINY)
    assert torch.equal(loaded.encode(inputs()["image_b"]), golden_tokenizer().encode(inputs()["image_b"]))


def test_a_tokenizer_with_other_latents_than_the_model_expects_is_refused(tmp_path: Path):
    golden_tokenizer().save_pretrained(tmp_path)
    assert load_image_tokenizer(tmp_path, spec=TINY)
    with pytest.raises(InternVLAError, match=r"16 latent channels.* 8 pixels; the model expects 48 and 4 \(haar\)"):
        load_image_tokenizer(tmp_path, spec=HAAR)


def test_mixed_stored_dtypes_need_a_decision(tmp_path: Path):
    golden_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({n: t.half() if "decoder" in n else t for n, t in load_file(file).items()}, file)
    with pytest.raises(InternVLAError, match=r"stores the dtypes F16, F32.*Pass dtype"):
        load_image_tokenizer(tmp_path)
    assert load_image_tokenizer(tmp_path, dtype=torch.float32)


def test_what_is_not_an_image_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(InternVLAError, match="neither a folder nor a Hub id"):
        load_image_tokenizer(tmp_path / "absent")
    with pytest.raises(InternVLAError, match=r"there is no folder .*absent"):
        load_image_tokenizer(tmp_path, subfolder="absent")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(InternVLAError, match=r"CosmosImageTokenizer, HaarImageTokenizer \(it is 'AutoencoderKL'\)"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InternVLAError, match=r"Cannot read the image tokenizer's .*config\.json"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "CosmosImageTokenizer"}')
    with pytest.raises(InternVLAError, match="Cannot read the image tokenizer's weights"):
        load_image_tokenizer(tmp_path)


def test_without_the_hub_a_hub_id_is_an_error_that_names_it():
    with pytest.raises(InternVLAError, match=r"'nobody/nothing' is not a local folder, and the Hub says"):
        load_image_tokenizer("nobody/nothing", revision="main")  # conftest.py switches the Hub off


def test_a_missing_diffusers_is_named_when_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    golden_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for need in (lambda: build_image_tokenizer(TINY), lambda: load_image_tokenizer(tmp_path)):
        with pytest.raises(InternVLAError, match="needs the package diffusers, which is not installed"):
            need()
    assert build_image_tokenizer(HAAR)


LIGHT = """
import sys
import lerobot_internvla.model.architecture
ours = "lerobot_internvla.image_tokenizer."
assert [name for name in sys.modules if name.startswith(ours)] == [ours + "spec"]
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer
build_image_tokenizer(lerobot_internvla.model.architecture.VARIANTS["tiny"].image_tokenizer)
# LeRobot imports diffusers itself, for its schedulers; what costs seconds are the models.
assert ours + "cosmos" not in sys.modules
assert "diffusers.models.modeling_utils" not in sys.modules
print("light")
"""


def test_only_cosmos_imports_diffusers():
    finished = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=600)
    assert finished.stdout.strip() == "light", finished.stderr
