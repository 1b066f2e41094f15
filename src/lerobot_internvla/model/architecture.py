"""The sizes of InternVLA-A1, as rows of a table. No torch in this file.

A variant is one frozen ``Architecture``. Everything else (expert widths, token counts, position rule, image sizes) is
read from it, so that "3b", "2b" and "tiny" run through the same code. Sources: paper Table 1 and section "Architecture"
(arXiv 2601.02456); the released checkpoint's shapes.

Token counts per block for V camera views, T = 2 frames (past, now):

    understanding  V x (image_tokens + delimiters) + prompt_tokens
    foresight      V x 2 x foresight_tokens_per_frame
    state          1
    actions        chunk_size
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.spec import ImageTokenizerSpec as ImageTokenizerSpec

BackboneFamily = Literal["qwen3_vl", "internvl3", "tiny"]
CAMERA_SLOTS: tuple[str, ...] = ("head", "left_wrist", "right_wrist")
"""Canonical camera views, in the order in which the model reads them (paper section "Architecture")."""


@dataclass(frozen=True)
class ExpertWidth:
    """Residual width and MLP width of one expert; head geometry is shared by all experts of a model."""

    hidden: int
    mlp: int


@dataclass(frozen=True)
class VisionTower:
    """The understanding expert's vision tower.

    ``image_size`` is (height, width) in pixels of what the tower sees, after ``Architecture.view_size`` was resized.
    """

    depth: int
    hidden: int
    mlp: int
    heads: int
    patch_size: int
    image_size: tuple[int, int]
    position_embeddings: int = 0
    """Qwen3-VL: entries of the learned position grid (a square number). Unused by the other families."""
    deepstack_layers: tuple[int, ...] = ()
    """Qwen3-VL: layers whose deepstack mergers exist in the checkpoint. Never computed (the released model drops
    them)."""
    attention_bias: bool = False
    """InternVL only. The released 2B geometry has none."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) before the 2x2 merge."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def merged_grid(self) -> tuple[int, int]:
        """Image tokens (rows, columns) after the 2x2 merge (Qwen merger, InternVL pixel shuffle)."""
        rows, columns = self.grid
        return rows // 2, columns // 2


@dataclass(frozen=True)
class SpecialTokens:
    """Text ids that frame an image in the prompt, and the padding id (Qwen3-VL tokenizer)."""

    vision_start: int = 151652
    vision_end: int = 151653
    image: int = 151655
    pad: int = 151643


@dataclass(frozen=True)
class Architecture:
    """One variant of InternVLA-A1: every number needed to build it with random weights."""

    name: str
    family: BackboneFamily
    understanding: ExpertWidth
    expert: ExpertWidth
    """Width of the foresight and of the action expert (always equal)."""
    layers: int
    query_heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    vision: VisionTower
    image_tokenizer: ImageTokenizerSpec
    rope_theta: float
    view_size: tuple[int, int] = (224, 224)
    """Pixels (height, width) of the letterboxed view that the policy hands to the model."""
    rope_sections: tuple[int, int, int] | None = None
    """Interleaved multimodal RoPE: rotary pairs for (time, height, width). None: ordinary 1-D positions."""
    qkv_bias: bool = False
    """Bias on the q, k, v projections (Qwen2 geometry)."""
    qk_norm: bool = True
    """RMSNorm on queries and keys (Qwen3 geometry)."""
    rms_norm_eps: float = 1e-6
    scale_text_embeddings: bool = False
    """Multiply text embeddings by sqrt(width), as the 2B does."""
    untied_lm_head: bool = False
    """The 2B reference checkpoint carries an unused, untied lm_head; recorded for parameter counts and export."""
    foresight_stride: int = 8
    """Latent cells per foresight token along each axis (stride of the down- and upsampling convolution)."""
    prompt_tokens: int = 48
    special_tokens: SpecialTokens = SpecialTokens()
    max_state_dim: int = 32
    max_action_dim: int = 32
    base_model: str | None = None
    """Hub id of the vision-language model that training from scratch starts from."""
    expert_warm_start: str | None = None
    """Hub id of the text model with the experts' geometry."""
    initializer_range: float | None = 0.02
    """Standard deviation of freshly initialised projections; None keeps torch's fan-in default."""

    @property
    def foresight_grid(self) -> tuple[int, int]:
        """Foresight tokens per frame (rows, columns)."""
        rows, columns = self.image_tokenizer.latent_size
        return rows // self.foresight_stride, columns // self.foresight_stride

    @property
    def foresight_tokens_per_frame(self) -> int:
        rows, columns = self.foresight_grid
        return rows * columns

    @property
    def image_tokens(self) -> int:
        """Understanding tokens per view, without delimiters."""
        rows, columns = self.vision.merged_grid
        return rows * columns

    @property
    def view_tokens(self) -> int:
        """Understanding tokens per view, with the two delimiters that Qwen3-VL adds and the keypoint token of tiny."""
        return self.image_tokens + {"qwen3_vl": 2, "internvl3": 0, "tiny": 1}[self.family]


VARIANTS: dict[str, Architecture] = {
    "3b": Architecture(
        name="3b",
        family="qwen3_vl",
        understanding=ExpertWidth(2048, 6144),
        expert=ExpertWidth(1024, 3072),
        layers=28,
        query_heads=16,
        key_value_heads=8,
        head_width=128,
        vocabulary=151936,
        vision=VisionTower(
            depth=24,
            hidden=1024,
            mlp=4096,
            heads=16,
            patch_size=16,
            # The released image processor upsamples 224 to 256 (shortest_edge 65536): 64 tokens, not 49.
            image_size=(256, 256),
            position_embeddings=2304,
            deepstack_layers=(5, 11, 17),
        ),
        image_tokenizer=ImageTokenizerSpec("cosmos_ci8x8", (256, 256), latent_channels=16, compression=8),
        rope_theta=5_000_000.0,
        rope_sections=(24, 20, 20),
        base_model="Qwen/Qwen3-VL-2B-Instruct",
        expert_warm_start="Qwen/Qwen3-0.6B",
    ),
    "2b": Architecture(
        name="2b",
        family="internvl3",
        understanding=ExpertWidth(896, 4864),
        expert=ExpertWidth(896, 4864),
        layers=24,
        query_heads=14,
        key_value_heads=2,
        head_width=64,
        vocabulary=151674,
        vision=VisionTower(depth=24, hidden=1024, mlp=4096, heads=16, patch_size=14, image_size=(448, 448)),
        image_tokenizer=ImageTokenizerSpec("cosmos_ci8x8", (256, 256), latent_channels=16, compression=8),
        # The backbone was pre-trained with 1e6; the reference builds it with 1e4 (kept for parity through overrides).
        rope_theta=1_000_000.0,
        view_size=(448, 448),
        qkv_bias=True,
        qk_norm=False,
        scale_text_embeddings=True,
        untied_lm_head=True,
        base_model="OpenGVLab/InternVL3-1B-hf",
        expert_warm_start="Qwen/Qwen2.5-0.5B",
    ),
    "tiny": Architecture(
        name="tiny",
        family="tiny",
        understanding=ExpertWidth(64, 128),
        expert=ExpertWidth(64, 128),
        layers=3,
        query_heads=4,
        key_value_heads=2,
        head_width=32,
        vocabulary=260,
        vision=VisionTower(depth=1, hidden=64, mlp=128, heads=4, patch_size=8, image_size=(64, 64)),
        image_tokenizer=ImageTokenizerSpec("haar", (64, 64), latent_channels=48, compression=4),
        rope_theta=10_000.0,
        view_size=(64, 64),
        special_tokens=SpecialTokens(vision_start=256, vision_end=257, image=258, pad=259),
        initializer_range=None,
    ),
}


def _replace(node: Any, changes: dict[str, Any], path: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(node)}
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            raise InternVLAError(
                f"Unknown architecture field {path + key!r}. Known here: {', '.join(sorted(known))}. "
                "Fix policy.architecture_overrides."
            )
        current = getattr(node, key)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            value = _replace(current, value, f"{path}{key}.")  # pyright: ignore[reportUnknownArgumentType]  # from JSON
        elif isinstance(value, list):
            value = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        values[key] = value
    return dataclasses.replace(node, **values)


def build_architecture(variant: str, overrides: dict[str, Any] | None = None) -> Architecture:
    """Look up ``variant`` and apply nested ``overrides`` (plain JSON data, lists become tuples).

    Raises:
        InternVLAError: unknown variant, unknown field, or sizes that do not fit together; all problems at once.
    """
    if variant not in VARIANTS:
        raise InternVLAError(
            f"Unknown variant {variant!r}. Known: {', '.join(VARIANTS)}. Pass --policy.variant=<one of them>."
        )
    architecture: Architecture = _replace(VARIANTS[variant], overrides or {}, "")
    problems: list[str] = []
    if architecture.query_heads % architecture.key_value_heads:
        problems.append(
            f"query_heads {architecture.query_heads} is not a multiple of "
            f"key_value_heads {architecture.key_value_heads}"
        )
    if architecture.rope_sections is not None and sum(architecture.rope_sections) * 2 != architecture.head_width:
        problems.append(
            f"rope_sections {architecture.rope_sections} must sum to head_width / 2 = {architecture.head_width // 2}"
        )
    for axis, latent in zip(("height", "width"), architecture.image_tokenizer.latent_size, strict=True):
        if latent % architecture.foresight_stride:
            problems.append(
                f"latent {axis} {latent} is not a multiple of foresight_stride {architecture.foresight_stride}"
            )
    for axis, pixels in zip(("height", "width"), architecture.vision.image_size, strict=True):
        if pixels % (2 * architecture.vision.patch_size):
            problems.append(
                f"vision image {axis} {pixels} px is not a multiple of "
                f"2 x patch_size = {2 * architecture.vision.patch_size}"
            )
    if problems:
        raise InternVLAError(f"The architecture for variant {variant!r} does not fit together: " + "; ".join(problems))
    return architecture
