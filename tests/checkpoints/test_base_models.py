"""Training from scratch starts from published models: small ones of the same families, saved by transformers itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lerobot_internvla import InternVLAError
from lerobot_internvla.checkpoints.base_models import load_base_models
from lerobot_internvla.model.architecture import build_architecture
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.testing import SMALL, small_config, tiny_policy


def text_config(variant: str, part: str, layers: int = 3) -> dict[str, Any]:
    sizes = SMALL[variant]
    return {
        "hidden_size": sizes[part]["hidden"],
        "intermediate_size": sizes[part]["mlp"],
        "num_hidden_layers": layers,
        "num_attention_heads": sizes["query_heads"],
        "num_key_value_heads": sizes["key_value_heads"],
        "head_dim": sizes["head_width"],
        "vocab_size": sizes["vocabulary"],
        "pad_token_id": 0,
    }


def vision_language_model(variant: str) -> nn.Module:
    vision = SMALL[variant]["vision"]
    if variant == "3b":
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        text = text_config("3b", "understanding")
        tower = {
            "depth": vision["depth"],
            "hidden_size": vision["hidden"],
            "intermediate_size": vision["mlp"],
            "num_heads": vision["heads"],
            "patch_size": 16,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": vision["position_embeddings"],
            "deepstack_visual_indexes": vision["deepstack_layers"],
        }
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=tower))
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    tower = {
        "hidden_size": vision["hidden"],
        "intermediate_size": vision["mlp"],
        "num_hidden_layers": vision["depth"],
        "num_attention_heads": vision["heads"],
        "image_size": vision["image_size"],
        "patch_size": [14, 14],
    }
    text = {"model_type": "qwen2", **text_config("2b", "understanding")}
    return InternVLForConditionalGeneration(InternVLConfig(text_config=text, vision_config=tower))


def text_model(variant: str) -> nn.Module:
    if variant == "3b":
        from transformers import Qwen3Config, Qwen3ForCausalLM

        return Qwen3ForCausalLM(Qwen3Config(**text_config("3b", "expert")))
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**text_config("2b", "expert")))


@pytest.fixture(scope="module", params=["3b", "2b"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(variant, folder of the vision-language model, folder of the experts' text model)."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    vision_language_model(request.param).save_pretrained(folder / "base")
    text_model(request.param).save_pretrained(folder / "text")
    return request.param, folder / "base", folder / "text"


def build(variant: str) -> InternVLAA1:
    torch.manual_seed(1)
    return InternVLAA1(build_architecture(variant, SMALL[variant]))


def changed_parts(model: InternVLAA1, before: dict[str, torch.Tensor]) -> set[str]:
    found = set()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            part = name.split(".")
            found.add(part[0] if part[0] != "mixture" else (part[4] if part[1] == "layers" else part[2]))
    return found


def test_understanding_comes_from_the_base_model_and_experts_from_the_text_model(published: tuple[str, Path, Path]):
    variant, base, text = published
    model = build(variant)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_base_models(model, str(base), None)
    assert changed_parts(model, before) == {"vision_language", "understanding"}

    load_base_models(model, None, str(text))
    assert changed_parts(model, before) == {"vision_language", "understanding", "foresight", "action"}
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    image_text, words = (
        AutoModelForImageTextToText.from_pretrained(base).state_dict(),
        AutoModelForCausalLM.from_pretrained(text).state_dict(),
    )
    layer = "layers.2.self_attn.k_proj.weight"
    experts: Any = model.mixture.layers[2].experts
    assert torch.equal(experts["understanding"].self_attn.k_proj.weight, image_text[f"model.language_model.{layer}"])
    for expert in ("foresight", "action"):
        assert torch.equal(experts[expert].self_attn.k_proj.weight, words[f"model.{layer}"])
    assert torch.equal(
        model.vision_language.embed_tokens.weight, image_text["model.language_model.embed_tokens.weight"]
    )


def test_a_policy_is_built_on_them(published: tuple[str, Path, Path]):
    variant, base, text = published
    policy = tiny_policy(small_config(variant, base_model=str(base), expert_warm_start=str(text)))
    other = build(variant)
    load_base_models(other, str(base), str(text))
    ours = policy.model.mixture.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in other.mixture.state_dict().items())


def test_the_ablation_needs_no_foresight_expert(published: tuple[str, Path, Path]):
    variant, _, text = published
    model = InternVLAA1(build_architecture(variant, SMALL[variant]), use_foresight=False)
    load_base_models(model, None, str(text))


def test_another_geometry_is_refused(published: tuple[str, Path, Path]):
    variant, base, text = published
    smaller = {**SMALL[variant], "expert": {"hidden": 32, "mlp": 40}}
    with pytest.raises(InternVLAError, match="geometry of this variant"):
        load_base_models(InternVLAA1(build_architecture(variant, smaller)), None, str(text))
    deeper = {**SMALL[variant], "layers": 4}
    with pytest.raises(InternVLAError, match=r"missing model\.language_model\.layers\.3"):
        load_base_models(InternVLAA1(build_architecture(variant, deeper)), str(base), None)


def test_pickled_weights_are_not_read(published: tuple[str, Path, Path], tmp_path: Path):
    variant, _, text = published
    (tmp_path / "config.json").write_bytes((text / "config.json").read_bytes())
    torch.save(text_model(variant).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InternVLAError, match=r"policy\.expert_warm_start=.*safetensors"):
        load_base_models(build(variant), None, str(tmp_path))


def test_a_model_that_cannot_be_found_is_named(tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"policy\.base_model=.*--policy\.base_model=null"):
        load_base_models(build("3b"), str(tmp_path / "nowhere"), None)
