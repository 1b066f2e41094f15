"""The released model's numbers, within the tolerances of the golden data."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from safetensors.torch import load_file, save_file

from lerobot_internvla import InternVLAA1Config
from lerobot_internvla.conversion import parity
from lerobot_internvla.conversion.reference_layout import read_reference
from lerobot_internvla.modeling_internvla_a1 import InternVLAA1Policy

EXPECTED = {
    "layer0.prefix", "layer2.suffix", "prefix_embs", "middle_embs", "suffix_embs", "prefix_out", "middle_out",
    "suffix_out", "att_2d_masks", "position_ids", "x_t", "u_t", "v_t", "loss_action", "loss_gen", "loss",
    "cosmos_features_past_now", "cosmos_features_future", "pred_cosmos_features", "infer.kv_after_middle.layer2.key",
    "infer.kv_after_middle.layer0.value", "infer.middle_position_ids", "infer.suffix_position_ids", "infer.step0.v_t",
    "infer.step9.v_t", "infer.step9.time", "sample_actions_4", "sample_actions_10",
    "eval_fp32_cosmos_bf16.sample_actions_10",
}  # fmt: skip


def assert_within(report: parity.Report) -> None:
    assert not report.failures, "\n".join(parity.lines(report))


def test_model_reproduces_the_reference(golden_model: Path):
    report = parity.check_model(golden_model)
    assert_within(report)
    names = {name for name, _, _ in report.rows}
    assert names >= EXPECTED, EXPECTED - names
    assert sum(name.startswith("|grad|") for name in names) > 100
    if "3b" in golden_model.name:
        assert {"image_embs", "recon_images.strided4", "input_ids"} <= names


def test_small_parts_reproduce_the_reference(goldens: Path):
    for run, folder, at_least in (
        (parity.check_schedule, "schedule", 15),
        (parity.check_preprocessing, "preprocess", 6),
        (parity.check_preprocessing, "preprocess_state_action", 2),
    ):
        report = run(goldens / folder)
        assert_within(report)
        assert len(report.rows) >= at_least


def test_a_wrong_weight_is_noticed(golden_model: Path, tmp_path: Path):
    """The check can fail: one value projection, changed by one percent, is beyond tolerance."""
    import shutil

    folder = tmp_path / golden_model.name
    shutil.copytree(golden_model, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in sorted(weights) if "und_expert" in n and n.endswith("layers.0.self_attn.v_proj.weight"))
    weights[name] = weights[name] * 1.01
    save_file(weights, folder / "model.safetensors")
    failures = {name for name, _, _ in parity.check_model(folder).failures}
    assert "layer0.prefix" in failures
    assert "prefix_embs" not in failures


def policy_from(folder: Path, **changes: Any) -> InternVLAA1Policy:
    """Our policy with a golden folder's weights, real dims as in the golden batch."""
    reference = read_reference(folder)
    spec = json.loads((folder / "config.json").read_text())["spec"]
    image_tokenizer = str(folder.parent / f"{folder.name}_image_tokenizer")
    config = InternVLAA1Config(
        variant="3b" if "3b" in folder.name else "2b",
        architecture_overrides=dataclasses.asdict(reference.architecture),
        device="cpu",
        base_model=None,
        text_tokenizer="byte",
        image_tokenizer=image_tokenizer,
        image_tokenizer_dtype="float32",
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (spec["policy"]["state_dim"],)),
            **{
                f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
                for c in ("head", "left_wrist", "right_wrist")
            },
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (spec["policy"]["action_dim"],))},
        **changes,
    )
    from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer

    tokenizer = CosmosImageTokenizer.from_spec(reference.architecture.image_tokenizer)
    tokenizer.load_state_dict(reference.image_tokenizer_state)
    tokenizer.save_pretrained(image_tokenizer)
    policy = InternVLAA1Policy(config)
    policy.model.load_state_dict(reference.policy_state)
    policy.action_space.set_identity()
    return policy.eval()


def golden_batch(folder: Path, policy: InternVLAA1Policy, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The golden inputs as a LeRobot batch; noise, time and prompt ids are the golden ones."""
    from lerobot_internvla import modeling_internvla_a1 as modeling

    inputs = load_file(folder / "inputs.safetensors")
    observation, future = parity.golden_observation(policy.config.architecture, inputs)
    images = torch.cat([observation.images, future[:, :, None]], dim=2)
    state_dim, action_dim = policy.action_space.state_dim, policy.action_space.action_dim
    monkeypatch.setattr(modeling, "draw_noise_and_time", lambda *_, **__: (inputs["noise"], inputs["time"]))
    monkeypatch.setattr(policy, "prompt_builder", lambda _: (observation.prompt_ids, observation.prompt_is_valid))
    return {
        "observation.state": inputs["state"][:, :state_dim],
        "action": inputs["actions"][..., :action_dim],
        "task": ["golden"] * len(images),
        modeling.CAMERA_IS_PRESENT: observation.camera_is_present,
        **{key: images[:, view] for view, key in enumerate(policy.camera_slots.values())},
    }


def test_policy_reproduces_the_reference_policy(golden_model: Path, monkeypatch: pytest.MonkeyPatch):
    """forward and predict_action_chunk at the level of a LeRobot batch: real dims only, zero padding beyond."""
    policy = policy_from(golden_model, reference_positions=True)
    batch = golden_batch(golden_model, policy, monkeypatch)
    golden = load_file(golden_model / "policy_outputs.safetensors")
    loss, metrics = policy.forward(batch)
    # Our default (padded dims masked) is what the reference's policy reports once it cuts to the real dims.
    torch.testing.assert_close(loss, golden["loss"], rtol=1e-4, atol=0)
    described = json.loads((golden_model / "config.json").read_text())["policy_level"]["loss_dict"]
    assert metrics["loss_action"] == pytest.approx(described["loss_action"], rel=1e-4)
    assert metrics["loss_foresight"] == pytest.approx(described["loss_gen"], rel=1e-4)

    noise = load_file(golden_model / "inputs.safetensors")["noise"]
    chunk = policy.predict_action_chunk(batch, noise=noise)
    error = (chunk - golden["predict_action_chunk"]).abs().max() / golden["predict_action_chunk"].abs().max()
    assert error < parity.SAMPLED


def test_positions_differ_from_the_reference_only_for_missing_cameras(
    golden_model: Path, monkeypatch: pytest.MonkeyPatch
):
    """The default numbers tokens at inference as in training: same actions with all cameras, others without one."""
    if "2b" in golden_model.name:
        pytest.skip("the 2B numbers tokens alike in training and at inference")
    policy = policy_from(golden_model)
    batch = golden_batch(golden_model, policy, monkeypatch)
    noise = load_file(golden_model / "inputs.safetensors")["noise"]
    golden = load_file(golden_model / "policy_outputs.safetensors")["predict_action_chunk"]
    chunk = policy.predict_action_chunk(batch, noise=noise)
    error = (chunk - golden).abs().amax(dim=(1, 2)) / golden.abs().max()
    assert error[0] < parity.SAMPLED, "sample 0 has all cameras"
    assert error[1] > 10 * parity.SAMPLED, "sample 1 lacks one: the default must not follow the reference"


def test_reference_loss_counts_padding(golden_model: Path, monkeypatch: pytest.MonkeyPatch):
    """The parity switch averages over all 32 dims; its action loss is the golden one over the padded batch."""
    policy = policy_from(golden_model)
    batch = golden_batch(golden_model, policy, monkeypatch)
    masked, metrics = policy.forward(batch)
    assert metrics["valid_action_elements"] == 2 * 50 * policy.action_space.action_dim
    policy.config.reference_loss = True
    padded, metrics = policy.forward(batch)
    assert metrics["valid_action_elements"] == 2 * 50 * 32
    assert abs(float(padded - masked)) > 1e-3


@pytest.mark.skipif(
    "INTERNVLA_GOLDEN" not in os.environ, reason="set INTERNVLA_GOLDEN=<folder> for the complete golden data"
)
def test_complete_golden_data():
    for report in parity.check(Path(os.environ["INTERNVLA_GOLDEN"])):
        assert_within(report)
