"""Starting points for training from scratch: the base vision-language model and the experts' text model.

Only called when no checkpoint follows. Both are read by transformers itself, from the Hub or a folder, and copied by
name.
"""

import logging

from torch import Tensor, nn

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.model.vision_language import InternVL3FrontEnd

logger = logging.getLogger(__name__)


def load_base_models(model: InternVLAA1, base_model: str | None, expert_warm_start: str | None) -> None:
    """Initialise the understanding expert, and optionally the other two, from published models.

    Args:
        model: with random weights.
        base_model: Hub id, folder, "auto" (``architecture.base_model``) or None (keep random weights).
        expert_warm_start: likewise for foresight and action experts (``architecture.expert_warm_start``).

    Raises:
        InternVLAError: the model cannot be found, or has other shapes than the architecture.
    """
    architecture = model.architecture
    base = architecture.base_model if base_model == "auto" else base_model
    warm = architecture.expert_warm_start if expert_warm_start == "auto" else expert_warm_start
    if base is not None:
        state = _read(base, "base_model", image_text=True)
        tower = "model.visual." if architecture.family == "qwen3_vl" else "model.vision_tower."
        front = model.vision_language
        _copy(state, tower, front.get_submodule("vision_tower"), base)
        if isinstance(front, InternVL3FrontEnd):
            _copy(state, "model.multi_modal_projector.", front.projector, base)
        _copy(state, "model.language_model.embed_tokens.", front.embed_tokens, base)
        _copy_layers(model, "understanding", state, "model.language_model.", base)
    if warm is not None:
        state = _read(warm, "expert_warm_start", image_text=False)
        for expert in ("foresight", "action"):
            if expert in model.mixture.final_norms:
                _copy_layers(model, expert, state, "model.", warm)


def _read(name: str, field: str, *, image_text: bool) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    logger.info("Loading %s=%s ...", field, name)
    loader = AutoModelForImageTextToText if image_text else AutoModelForCausalLM
    try:
        return loader.from_pretrained(name, dtype="auto", use_safetensors=True).state_dict()  # no pickle, ever
    except (OSError, ValueError) as error:
        raise InternVLAError(
            f"policy.{field}={name!r} could not be loaded: {error}. Pass a Hub id or a local folder, "
            f"--policy.{field}=null for random weights, or fine-tune a checkpoint: --policy.path=<folder or Hub id>."
        ) from error


def _copy_layers(model: InternVLAA1, expert: str, state: dict[str, Tensor], prefix: str, source: str) -> None:
    for index, layer in enumerate(model.mixture.layers_of(expert)):
        _copy(state, f"{prefix}layers.{index}.", layer, source)
    _copy(state, f"{prefix}norm.", model.mixture.final_norms[expert], source)


def _copy(state: dict[str, Tensor], prefix: str, module: nn.Module, source: str) -> None:
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    own = module.state_dict()
    problems = [f"missing {prefix}{name}" for name in own if name not in part]
    problems += [
        f"{prefix}{name} is {tuple(part[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in part and part[name].shape != tensor.shape
    ]
    if problems:
        raise InternVLAError(
            f"{source!r} does not have the geometry of this variant ({len(problems)} problems, first: {problems[0]})."
        )
    module.load_state_dict({name: part[name] for name in own})
