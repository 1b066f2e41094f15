"""What the benchmarks run: InternVLA-A1 in several sizes and LeRobot's pi0, pi05 and smolvla, all with random weights.

The same work for everyone: batch 1, three cameras, a prompt of 48 tokens of which 30 are real, a chunk of 50 actions,
ten Euler steps. Time starts with images and token ids that are already tensors and ends with normalised actions: no
tokenising of text, no letterboxing, no statistics. Nothing is downloaded.
"""

import contextlib
import dataclasses
import logging
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer
from lerobot_internvla.model.architecture import Architecture, build_architecture
from lerobot_internvla.model.inputs import Observation
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.model.vision_language import build_vision_language

VIEWS = 3
CHUNK = 50
EULER_STEPS = 10
REAL_PROMPT_TOKENS = 30
PROMPT_TOKENS = 48


def medium(grid: int) -> dict[str, Any]:
    """Overrides that turn "3b" into the configuration at which the reference was timed on a CPU (62.6 M parameters).

    Args:
        grid: patches along each side of an image. The released model uses 16 (views resized to 256 pixels); the
            reference's numbers exist for 14 (224 pixels) as well.
    """
    return {
        "name": f"medium_grid{grid}",
        "understanding": {"hidden": 512, "mlp": 1536},
        "expert": {"hidden": 256, "mlp": 768},
        "layers": 8,
        "query_heads": 8,
        "key_value_heads": 4,
        "head_width": 64,
        "rope_sections": [12, 10, 10],
        "vocabulary": 2048,
        "special_tokens": {"vision_start": 2042, "vision_end": 2043, "image": 2040, "pad": 0},
        "vision": {
            "depth": 6,
            "hidden": 256,
            "mlp": 1024,
            "heads": 4,
            "image_size": [16 * grid, 16 * grid],
            "deepstack_layers": [1, 3, 5],
        },
        "image_tokenizer": {"channels": 32, "channels_mult": [1, 2, 2]},
    }


@dataclass
class Case:
    """One model, ready to be counted and timed."""

    name: str
    description: str
    chunk: Callable[[], Any]
    """From tensors to a chunk of normalised actions."""
    weights: list[Tensor]
    stages: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """Parts of ``chunk``, each from ready inputs."""
    dead_parameters: int | None = None
    """Parameters that no output of training depends on (ours only)."""
    flop: dict[str, float] | None = None
    """By formula, per stage and for the chunk (ours only)."""
    model: InternVLAA1 | None = None
    observation: Observation | None = None


# ------------------------------------------------------------------------------------------------------------- ours


def random_model(
    architecture: Architecture, weights_dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> InternVLAA1:
    """InternVLA-A1 with random weights, in the precision in which the policy keeps them, never held in another one.

    In bfloat16 these are the matrices of towers and experts and the image tokenizer; norms of the experts and the heads
    stay float32 (``InternVLAA1Policy`` with ``weights_dtype="bfloat16"``).
    """
    with torch.device("meta"), _default_dtype(weights_dtype):
        tokenizer = build_image_tokenizer(architecture.image_tokenizer)
    with torch.device("meta"):
        model = InternVLAA1(architecture, chunk_size=CHUNK, image_tokenizer=tokenizer)
    for name, parameter in model.named_parameters():
        is_matrix_of_an_expert = name.startswith("mixture.") and parameter.ndim > 1
        if is_matrix_of_an_expert or name.startswith("vision_language."):
            parameter.data = parameter.data.to(weights_dtype)
    # Tables that are not parameters depend on neither depth nor vocabulary: take them from a small front end.
    vision = dataclasses.replace(architecture.vision, depth=1, deepstack_layers=())
    small = build_vision_language(dataclasses.replace(architecture, vision=vision, vocabulary=1))
    for name, table in small.named_buffers():
        _set_buffer(model.vision_language, name, table)
    materialise(model, device)
    if isinstance(tokenizer, nn.Module):
        materialise(tokenizer, device)
    return model.eval()


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def materialise(model: nn.Module, device: str) -> None:
    """Give parameters that have no memory some, with random numbers, each in its own dtype; shared ones stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
    fill_with_random_numbers(model)
    for name, buffer in list(model.named_buffers()):
        _set_buffer(model, name, buffer.to(device))


def _set_buffer(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._buffers[leaf] = value


@torch.no_grad()
def fill_with_random_numbers(model: nn.Module) -> None:
    """Normal matrices of standard deviation 0.02, unit gains, zero biases; one block of numbers, repeated."""
    block = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0)) * 0.02
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        numbers = block.to(device=parameter.device, dtype=parameter.dtype)
        for piece in parameter.view(-1).split(len(numbers)):
            piece.copy_(numbers[: len(piece)])


def random_observation(
    architecture: Architecture, batch: int = 1, views: int = VIEWS, device: str | torch.device = "cpu"
) -> Observation:
    """Random images, state and prompt; every camera present."""
    generator = torch.Generator().manual_seed(0)
    prompt = architecture.prompt_tokens
    highest = min(architecture.vocabulary, 256)
    observation = Observation(
        images=torch.rand(batch, views, 2, 3, *architecture.view_size, generator=generator),
        camera_is_present=torch.ones(batch, views, dtype=torch.bool),
        prompt_ids=torch.randint(0, highest, (batch, prompt), generator=generator),
        prompt_is_valid=(torch.arange(prompt) < REAL_PROMPT_TOKENS).expand(batch, -1).clone(),
        state=torch.randn(batch, architecture.max_state_dim, generator=generator),
    )
    fields = (f.name for f in dataclasses.fields(Observation))
    return Observation(**{name: getattr(observation, name).to(device) for name in fields})


def internvla(
    variant: str,
    overrides: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    steps: int = EULER_STEPS,
) -> Case:
    """InternVLA-A1 as a case, with its stages."""
    architecture = build_architecture(variant, overrides)
    model = random_model(architecture, dtype, device)
    observation = random_observation(architecture, device=device)
    noise = torch.randn(1, CHUNK, architecture.max_action_dim, device=device)
    time = torch.ones(1, device=device)
    with torch.no_grad():
        latents = model.encode_frames(observation.images)
        context = model.embed(observation, latents)
        prefill = model.prefill(observation)
    nothing = [False] * len(context.blocks)
    now = observation.images[:, :, -1]
    stages = {
        "vision and prompt": lambda: model.vision_language(now, observation.prompt_ids),
        "image tokenizer": lambda: model.encode_frames(observation.images),
        "prefill layers": lambda: model.mixture(context.hidden, context.blocks, needs_output=nothing),
        "one Euler step": lambda: model.denoise_step(prefill, noise, time),
    }
    total = sum(p.numel() for p in model.parameters())
    tokens = sum(hidden.shape[1] for hidden in context.hidden)
    return Case(
        name=architecture.name,
        description=f"{total / 1e6:,.1f} M parameters, {str(dtype)[6:]} weights, {tokens} + {CHUNK} tokens",
        chunk=lambda: model.sample_actions(model.prefill(observation), noise, steps),
        weights=list(model.parameters()),
        stages=stages,
        dead_parameters=sum(p.numel() for _, p in model.dead_parameters()),
        flop=flop_by_formula(architecture, steps),
        model=model,
        observation=observation,
    )


def flop_by_formula(architecture: Architecture, steps: int, views: int = VIEWS) -> dict[str, float] | None:
    """Floating-point operations per stage at batch 1: two per multiply-add of a matrix product or convolution.

    A decoder layer of width h and MLP m has h Nq d + 2 h Nkv d + Nq d h + 3 h m weights; every token passes all of them
    once, and attention costs 4 q kv Nq d. The last layer of a prefilled block computes keys and values only. None for
    "tiny", whose convolutional tower is not worth a formula.
    """
    a, vision, spec = architecture, architecture.vision, architecture.image_tokenizer
    if a.family != "qwen3_vl":
        return None
    keys, queries = a.key_value_heads * a.head_width, a.query_heads * a.head_width

    def layer(width: int, mlp: int) -> int:
        return 2 * width * queries + 2 * width * keys + 3 * width * mlp

    def block(tokens: int, seen: int, width: int, mlp: int) -> float:
        """A prefilled block: all layers but the last, and keys and values of the last."""
        weights = (a.layers - 1) * layer(width, mlp) + 2 * width * keys
        return 2 * tokens * weights + 4 * tokens * seen * queries * (a.layers - 1)

    patches, images, h = vision.grid[0] * vision.grid[1], views, vision.hidden
    merged = 4 * h
    tower = (
        2 * images * patches * (3 * 2 * vision.patch_size**2 * h + vision.depth * (4 * h * h + 2 * h * vision.mlp))
        + 4 * images * patches * patches * h * vision.depth
        + 2 * images * patches // 4 * (merged * merged + merged * a.understanding.hidden)
    )
    understanding = views * a.view_tokens + a.prompt_tokens
    foresight = 2 * views * a.foresight_tokens_per_frame
    prefix = understanding + foresight + 1
    width, mlp = a.expert.hidden, a.expert.mlp
    layers = (
        block(understanding, understanding, a.understanding.hidden, a.understanding.mlp)
        + block(foresight, understanding + foresight, width, mlp)
        + block(1, prefix, width, mlp)
    )
    cells = a.foresight_stride**2
    # The folded 1x1 and strided convolutions (weights, bias, tokens), and the state.
    heads = 2 * spec.latent_channels * width * width * cells + 2 * width * width * cells
    heads += 2 * foresight * spec.latent_channels * cells * width + 2 * a.max_state_dim * width
    step = (
        2 * CHUNK * a.layers * layer(width, mlp)
        + 4 * CHUNK * (prefix + CHUNK) * queries * a.layers
        + 2 * CHUNK * (2 * a.max_action_dim * width + 2 * width * width)
        + 2 * width * width
    )
    tokenizer = 2 * views * _cosmos_encoder_flop(architecture)
    return {
        "vision and prompt": tower,
        "image tokenizer": tokenizer,
        "prefill layers": layers,
        "one Euler step": step,
        "chunk": tower + tokenizer + layers + heads + steps * step,
    }


def _cosmos_encoder_flop(architecture: Architecture) -> float:
    """One image through the Cosmos encoder: convolutions of a Haar-patched image, and attention in the middle."""
    spec = architecture.image_tokenizer
    side = [length // 4 for length in spec.image_size]
    widths = [spec.channels * factor for factor in spec.channels_mult]
    total, fan_in, cells = 0.0, spec.channels, side[0] * side[1]
    total += 2 * cells * 9 * 3 * 16 * fan_in
    for level, width in enumerate(widths):
        for _ in range(spec.num_res_blocks):
            total += 2 * cells * 9 * (fan_in * width + width * width)
            total += 2 * cells * fan_in * width if fan_in != width else 0
            fan_in = width
        if level < spec.compression.bit_length() - 3:  # Haar already gave a factor of 4
            cells //= 4
            total += 2 * cells * 9 * width * width
    total += 2 * 2 * cells * 9 * 2 * fan_in * fan_in + 2 * cells * 4 * fan_in * fan_in + 4 * cells * cells * fan_in
    return total + 2 * cells * (9 * fan_in + spec.latent_channels) * spec.latent_channels


# ------------------------------------------------------------------------------------------------------------ peers


@contextlib.contextmanager
def _unfilled_parameters() -> Iterator[None]:
    """Parameters without memory and without initialisation; buffers stay real."""
    from accelerate import init_empty_weights
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with unset_fake_temporarily(), init_empty_weights(include_buffers=False):
            yield
    finally:
        logging.disable(level)


def _language(device: str) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 256, (1, PROMPT_TOKENS), device=device)
    return ids, (torch.arange(PROMPT_TOKENS, device=device) < REAL_PROMPT_TOKENS)[None]


def _peer(name: str, description: str, model: Any, arguments: tuple[Any, ...]) -> Case:
    weights = list(model.parameters())
    total = sum(p.numel() for p in weights)
    return Case(
        name=name,
        description=f"LeRobot's {name}: {total / 1e6:,.1f} M parameters, {description}",
        chunk=lambda: model.sample_actions(*arguments),
        weights=weights,
    )


def pi(name: str, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> Case:
    """LeRobot's pi0 or pi05 at full size, in the mixed precision that ``dtype="bfloat16"`` means there."""
    kwargs = {"dtype": str(dtype)[6:], "chunk_size": CHUNK, "num_inference_steps": EULER_STEPS, "device": device}
    if name == "pi0":
        from lerobot.policies.pi0.configuration_pi0 import PI0Config as Config
        from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch as Model
    else:
        from lerobot.policies.pi05.configuration_pi05 import PI05Config as Config
        from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch as Model
    with _unfilled_parameters():
        model = Model(Config(**kwargs))
    materialise(model, device)
    model = model.eval()
    images = [torch.rand(1, 3, 224, 224, device=device) * 2 - 1 for _ in range(VIEWS)]
    present = [torch.ones(1, dtype=torch.bool, device=device) for _ in range(VIEWS)]
    state = (torch.randn(1, 32, device=device),) if name == "pi0" else ()
    arguments = (images, present, *_language(device), *state)
    return _peer(name, f"LeRobot's {str(dtype)[6:]} mode, 224-pixel views", model, arguments)


def smolvla(device: str = "cpu") -> Case:
    """LeRobot's smolvla at full size, float32 as it is built. The backbone's published sizes are written out below."""
    from lerobot.policies.smolvla import modeling_smolvla, smolvlm_with_expert
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from transformers import SmolVLMConfig

    backbone = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "vocab_size": 49280,
        },
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        scale_factor=4,
    )
    tokens = types.SimpleNamespace(tokenizer=types.SimpleNamespace(fake_image_token_id=1, global_image_token_id=2))
    with (
        mock.patch.object(smolvlm_with_expert.AutoConfig, "from_pretrained", return_value=backbone),
        mock.patch.object(smolvlm_with_expert.AutoProcessor, "from_pretrained", return_value=tokens),
        _unfilled_parameters(),
    ):
        config = SmolVLAConfig(chunk_size=CHUNK, num_steps=EULER_STEPS, device=device)
        model = modeling_smolvla.VLAFlowMatching(config)
    materialise(model, device)
    model = model.eval()
    images = [torch.rand(1, 3, 512, 512, device=device) * 2 - 1 for _ in range(VIEWS)]
    present = [torch.ones(1, dtype=torch.bool, device=device) for _ in range(VIEWS)]
    arguments = (images, present, *_language(device), torch.randn(1, 32, device=device))
    return _peer("smolvla", "float32, 512-pixel views", model, arguments)


@dataclass(frozen=True)
class Recipe:
    """How to build a case and what it needs."""

    build: Callable[..., Case]
    memory_gb: float
    """Needed to build and run it."""
    is_large: bool = False
    """Seconds per chunk on a CPU: fewer rounds."""


OURS: dict[str, Recipe] = {
    "tiny": Recipe(lambda device="cpu": internvla("tiny", device=device), 1.0),
    "medium_grid14": Recipe(lambda device="cpu": internvla("3b", medium(14), device=device), 2.0),
    "medium_grid16": Recipe(lambda device="cpu": internvla("3b", medium(16), device=device), 2.0),
    "3b": Recipe(lambda device="cpu": internvla("3b", dtype=torch.bfloat16, device=device), 9.5, is_large=True),
}
PEERS: dict[str, Recipe] = {
    "pi0": Recipe(lambda device="cpu": pi("pi0", device=device), 11.0, is_large=True),
    "pi05": Recipe(lambda device="cpu": pi("pi05", device=device), 11.0, is_large=True),
    "smolvla": Recipe(lambda device="cpu": smolvla(device=device), 4.0, is_large=True),
}
