"""Which parts of the model are trained, which are adapted, and in which precision the weights are kept."""

from typing import Any

import torch
from torch import nn

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.model.internvla_a1 import InternVLAA1


def round_weights(model: InternVLAA1, dtype: torch.dtype) -> None:
    """Cast the weights of towers and experts; heads, norms and statistics stay float32 as in the released model."""
    front_end = model.vision_language
    rounded = [model.mixture, *([front_end] if front_end.may_be_rounded else [])]
    for part in rounded:
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.modules.conv._ConvNd | nn.LayerNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
    for parameter in front_end.parameters() if front_end.may_be_rounded else ():
        parameter.data = parameter.data.to(dtype)


def freeze_parts(model: InternVLAA1, config: InternVLAA1Config) -> None:
    """Take gradients from the experts that ``config`` freezes, their heads included, and from dead parameters."""
    parts: dict[str, list[nn.Module]] = {
        "understanding": [model.vision_language],
        "foresight": [model.foresight_head] if model.foresight_head is not None else [],
        "action": [model.action_head],
    }
    for name, modules in parts.items():
        if name in config.trained_experts or (name == "foresight" and not config.use_foresight):
            continue
        for module in [*modules, *model.mixture.layers_of(name), model.mixture.final_norms[name]]:
            module.requires_grad_(False)
    if config.freeze_vision_encoder:
        model.vision_language.get_submodule("vision_tower").requires_grad_(False)
    for _, parameter in model.dead_parameters():
        parameter.requires_grad_(False)


def lora_targets(model: InternVLAA1, config: InternVLAA1Config) -> dict[str, Any]:
    """Attention and MLP projections of ``config.peft_experts``; their heads are trained in full. Arguments for PEFT."""
    experts = [name for name in config.peft_experts if name != "foresight" or config.use_foresight]
    projections = r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    last = len(model.mixture.layers) - 1
    dead = rf"layers\.{last}\.experts\.understanding\.(self_attn\.[qo]_proj|mlp)"  # see dead_parameters
    heads = {"foresight": "model.foresight_head", "action": "model.action_head"}
    return {
        "target_modules": rf"model\.mixture\.(?!{dead})layers\.\d+\.experts\.({'|'.join(experts)})\.{projections}",
        "modules_to_save": [heads[name] for name in experts if name in heads],
    }
