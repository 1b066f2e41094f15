"""The arithmetic of training memory: parameters exactly as they are trained, activations near what PyTorch keeps."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.model.architecture import VARIANTS
from lerobot_internvla.model.memory import EXPERTS, TrainingPlan, training_memory
from lerobot_internvla.model.summary import summarize
from lerobot_internvla.scripts.summary import main, memory_of
from lerobot_internvla.testing import SMALL, small_config, tiny_batch, tiny_policy

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "configs" / "posttrain").glob("*.yaml"))


def actual(policy: Any) -> tuple[int, int, int]:
    """(trained parameters, all parameters, bytes of all)."""
    parameters = list(policy.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


@pytest.mark.parametrize("variant", ["3b", "2b"])
@pytest.mark.parametrize("weights_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("switches", "trained"),
    [
        ({}, EXPERTS),
        ({"train_expert_only": True}, ("foresight", "action")),
        ({"train_expert_only": True, "freeze_foresight": True}, ("action",)),
        ({"train_vlm_only": True}, ("understanding",)),
        ({"freeze_vision_encoder": True}, EXPERTS),
        ({"use_foresight": False}, ("understanding", "action")),
    ],
)
def test_parameters_are_counted_as_the_policy_trains_them(
    variant: str, weights_dtype: str, switches: dict[str, bool], trained: tuple[str, ...]
):
    config = small_config(variant, weights_dtype=weights_dtype, **switches)
    estimate = training_memory(
        config.architecture,
        TrainingPlan(
            trained=trained,
            freeze_vision_encoder=config.freeze_vision_encoder,
            use_foresight=config.use_foresight,
            weights_bytes=4 if weights_dtype == "float32" else 2,
            chunk_size=config.chunk_size,
        ),
    )
    policy = tiny_policy(config)
    moved, count, size = actual(policy)
    assert (estimate.trained, estimate.trained + estimate.frozen, estimate.weights) == (moved, count, size)
    gradients = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    assert (estimate.gradients, estimate.optimizer) == (gradients, 2 * gradients)


@pytest.mark.parametrize("experts", [EXPERTS, ("action",)])
@pytest.mark.parametrize("weights_dtype", ["float32", "bfloat16"])
def test_adapters_are_counted_as_peft_makes_them(experts: tuple[str, ...], weights_dtype: str, tmp_path: Path):
    pytest.importorskip("peft")
    tiny_policy(small_config("3b")).save_pretrained(tmp_path)
    config = small_config("3b", pretrained_path=tmp_path, peft_experts=list(experts), weights_dtype=weights_dtype)
    policy = InternVLAA1Policy.from_pretrained(tmp_path, config=config).wrap_with_peft(peft_cli_overrides={"r": 4})
    plan = TrainingPlan(trained=experts, lora_rank=4, weights_bytes=4 if weights_dtype == "float32" else 2)
    estimate = training_memory(config.architecture, plan)
    moved, count, size = actual(policy)
    assert (estimate.trained, estimate.trained + estimate.frozen, estimate.weights) == (moved, count, size)


@pytest.mark.parametrize("variant", ["3b", "2b"])
def test_full_sizes_agree_with_the_summary(variant: str):
    summary = summarize(VARIANTS[variant])
    estimate = training_memory(VARIANTS[variant], TrainingPlan())
    assert estimate.trained == summary.model - sum(summary.dead.values())
    assert estimate.frozen == sum(summary.dead.values())
    assert estimate.weights == 4 * summary.model + 2 * summary.image_tokenizer
    assert estimate.peak_gb > 16 * estimate.trained / 1e9, "weights, gradients, two moments"


def kept_by_pytorch(layers: int, depth: int, **changes: Any) -> tuple[int, Any]:
    """Bytes that a forward pass of two samples keeps for the backward pass, and the architecture."""
    sizes = {
        **SMALL["3b"],
        "understanding": {"hidden": 256, "mlp": 768},
        "expert": {"hidden": 128, "mlp": 384},
        "layers": layers,
        "head_width": 64,
        "rope_sections": [12, 10, 10],
        "vision": {**SMALL["3b"]["vision"], "depth": depth, "hidden": 128, "mlp": 512, "deepstack_layers": []},
    }
    config = small_config("3b", architecture_overrides=sizes, dtype="bfloat16", chunk_size=50, **changes)
    policy = tiny_policy(config).train()
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.forward(tiny_batch(config, 2))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), config.architecture


@pytest.mark.parametrize("weights_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trained", [EXPERTS, ("foresight", "action")])
def test_activations_of_a_layer_are_near_what_pytorch_keeps(weights_dtype: str, trained: tuple[str, ...]):
    """The CPU's RMSNorm keeps more than the fused one of a GPU: a third is allowed."""
    changes = {"weights_dtype": weights_dtype, "train_expert_only": len(trained) < 3}
    plan = TrainingPlan(
        batch_size=2,
        trained=trained,
        weights_bytes=4 if weights_dtype == "float32" else 2,
        gradient_checkpointing=False,
    )

    def by_formula(architecture: Any) -> int:
        estimate = training_memory(architecture, plan)
        return estimate.activations + estimate.casts

    (two, small), (four, large) = (kept_by_pytorch(layers, 1, **changes) for layers in (2, 4))
    assert by_formula(large) - by_formula(small) == pytest.approx(four - two, rel=1 / 3)
    if len(trained) == 3:
        deep, deeper = kept_by_pytorch(2, 3, **changes)
        assert by_formula(deeper) - by_formula(small) == pytest.approx(deep - two, rel=0.1)


def test_checkpointing_batch_and_freezing_move_the_sum_the_right_way():
    def peak(**changes: Any) -> float:
        return training_memory(VARIANTS["3b"], TrainingPlan(**changes)).peak_gb

    assert peak(batch_size=256) > peak(batch_size=8)
    assert peak(batch_size=64, gradient_checkpointing=False) > peak(batch_size=64)
    assert peak(trained=("foresight", "action")) < peak(freeze_vision_encoder=True) < peak()
    assert peak(lora_rank=16, weights_bytes=2) < peak(lora_rank=16) < peak(trained=("action",))


def test_nothing_trained_is_refused():
    for trained in ((), ("hands",)):
        with pytest.raises(InternVLAError, match="expected some of understanding, foresight, action"):
            training_memory(VARIANTS["tiny"], TrainingPlan(trained=trained))


# -------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_parses_and_says_what_it_needs(preset: Path):
    """With LeRobot's own parser; the number in its head is the one that the formula gives, and fits the card."""
    text = preset.read_text()
    said = re.search(
        r"^# Computed: ([\d.]+) GB at the peak \(docs/memory.md\)\. Not measured yet\.$", text, re.MULTILINE
    )
    assert said, "a preset says that its number is computed"
    assert memory_of(preset).peak_gb == pytest.approx(float(said[1]), abs=0.051)
    assert f"--config_path=configs/posttrain/{preset.name} " in text
    if card := re.search(r"_(\d+)gb", preset.stem):
        assert float(said[1]) < float(card[1]) * 2**30 / 1e9
    assert yaml.safe_load(text)["policy"]["variant"] == "3b"


def test_there_are_presets_for_24_16_and_8_gb():
    names = {path.stem for path in PRESETS}
    assert {"3b_full", "3b_experts", "3b_lora_24gb", "3b_lora_16gb", "3b_lora_8gb"} <= names


def test_the_table_in_the_docs_is_what_the_formula_gives():
    rows = re.findall(r"^\| `(\w+)` .*\| \*\*([\d.]+)\*\* \|$", (ROOT / "docs" / "memory.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {path.stem for path in PRESETS}
    for name, number in rows:
        assert memory_of(ROOT / "configs" / "posttrain" / f"{name}.yaml").peak_gb == pytest.approx(
            float(number), abs=0.051
        )


def test_the_command_prints_the_sum(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    main(["--memory", str(PRESETS[0])])
    assert "GB at the peak (weights" in capsys.readouterr().out
    assert main(["--memory", str(tmp_path / "nothing.yaml")]) == 2
    assert "internvla-summary: There is no file" in capsys.readouterr().err
    for text in ("policy: [", "steps: many", "speed: 3"):
        (tmp_path / "wrong.yaml").write_text(text)
        assert main(["--memory", str(tmp_path / "wrong.yaml")]) == 2
        assert "is no lerobot-train configuration" in capsys.readouterr().err
