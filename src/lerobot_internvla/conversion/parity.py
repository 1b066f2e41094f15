"""Our numbers against the reference's, tensor by tensor.

A golden folder holds small random-weight models of the reference with inputs, intermediate tensors, outputs and
gradients. ``check`` runs our model on the same inputs and reports the error of every tensor beside its tolerance; the
tests and ``make parity GOLDEN=<folder>`` are the same code. Errors are max |ours - golden| / max |golden| over the
entries that mean something (rows of masked tokens do not). Missing tensors are skipped and counted, never assumed
equal.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lerobot_internvla.action_space import mean_std_normalize, mean_std_unnormalize
from lerobot_internvla.conversion.key_table import key_table
from lerobot_internvla.conversion.reference_layout import read_reference
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.images import letterbox
from lerobot_internvla.model.action_head import MAX_PERIOD, MIN_PERIOD
from lerobot_internvla.model.flow import euler_times
from lerobot_internvla.model.inputs import Observation, Targets
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.model.losses import compute_losses
from lerobot_internvla.model.prompt_layout import prompt_layout
from lerobot_internvla.model.qwen_pixels import qwen_patches, qwen_pixels
from lerobot_internvla.model.token_blocks import following_positions, understanding_positions

INTERMEDIATE = 2e-5
"""Relative to the largest entry: several times the reference's own fp32 error against fp64."""
SAMPLED = 1e-4
"""Sampled actions: ten dependent steps."""
LOSS_ENTRIES = 3e-4
"""Unreduced squared errors: differences of nearly equal numbers."""
BFLOAT16 = 3e-2
"""bfloat16 image tokenizer: the reference itself is this far from its float32 (golden config, other_dtypes)."""
EXACT = 0.0


@dataclass
class Report:
    """Errors by tensor; ``skipped`` counts what the folder does not hold."""

    folder: str
    rows: list[tuple[str, float, float]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[tuple[str, float, float]]:
        """Rows beyond their tolerance (NaN counts as beyond)."""
        return [row for row in self.rows if not row[1] <= row[2]]

    def compare(
        self, name: str, ours: Tensor, golden: Tensor | None, tolerance: float, valid: Tensor | None = None
    ) -> None:
        """Add one row; ``valid`` selects the leading-axes entries that mean something."""
        if golden is None:
            self.skipped.append(name)
            return
        if ours.shape != golden.shape:
            self.rows.append((f"{name}: shape {tuple(ours.shape)} for {tuple(golden.shape)}", float("inf"), tolerance))
            return
        ours, golden = ours.detach().double(), golden.double()
        if valid is not None:
            ours, golden = ours[valid], golden[valid]
        scale = golden.abs().max().clamp(min=1e-12) if tolerance > 0 else torch.ones(())
        self.rows.append((name, float((ours - golden).abs().max() / scale), tolerance))


def check(folder: Path) -> list[Report]:
    """Check one golden folder, or every golden folder inside ``folder``.

    Raises:
        InternVLAError: nothing in ``folder`` looks like golden data.
    """
    kinds: dict[str, Callable[[Path], Report]] = {
        "model.safetensors+inputs.safetensors": check_model,
        "image_processor.safetensors": check_preprocessing,
        "resize_with_pad.safetensors": check_preprocessing,
        "euler_times.safetensors": check_schedule,
    }
    reports: list[Report] = []
    candidates = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())] if folder.is_dir() else []
    for candidate in candidates:
        for marks, run in kinds.items():
            if all((candidate / mark).is_file() for mark in marks.split("+")):
                config = json.loads((candidate / "config.json").read_text())
                reports.append(check_image_tokenizer(candidate) if "kwargs" in config else run(candidate))
                break
    if not reports:
        raise InternVLAError(
            f"No golden data in {str(folder)!r}: expected a folder with config.json, model.safetensors and "
            "inputs.safetensors (a model), image_processor.safetensors (preprocessing) or euler_times.safetensors "
            "(schedule), or a folder of such."
        )
    return reports


def _optional(file: Path) -> dict[str, Tensor]:
    return load_file(file) if file.is_file() else {}


# ---------------------------------------------------------------------------------------------------- whole models


def check_model(folder: Path) -> Report:
    """Training forward, losses, gradients, inference in both position conventions, imagined images."""
    report = Report(str(folder))
    reference = read_reference(folder)
    architecture, settings = reference.architecture, reference.policy_config
    from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer

    tokenizer = CosmosImageTokenizer.from_spec(architecture.image_tokenizer)
    tokenizer.load_state_dict(reference.image_tokenizer_state)
    model = InternVLAA1(architecture, chunk_size=settings["chunk_size"], image_tokenizer=tokenizer)
    model.load_state_dict(reference.policy_state)
    model.float().eval()

    inputs, golden = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    observation, future = golden_observation(architecture, inputs)
    present = observation.camera_is_present
    targets = Targets(
        actions=inputs["actions"],
        action_is_valid=torch.ones_like(inputs["actions"], dtype=torch.bool),
        future_images=future,
        future_is_valid=torch.ones_like(present),
        latent_is_content=torch.ones(*present.shape, *architecture.image_tokenizer.latent_size, dtype=torch.bool),
    )
    _check_training(report, model, observation, targets, inputs, golden, settings)
    _check_gradients(report, model, observation, targets, inputs, folder, settings)
    _check_inference(report, model, observation, inputs, golden)
    _check_images(report, model, observation, golden)
    _check_released_precision(report, model, observation, inputs, folder)
    return report


def golden_observation(architecture: Any, inputs: dict[str, Tensor]) -> tuple[Observation, Tensor]:
    """The typed input of a golden folder, and its future frames [B, V, 3, H, W]."""
    images = inputs["images"]
    if images.dtype == torch.uint8:
        images = images.float() / 255
    present = inputs["img_masks"]
    if "input_ids" in inputs:
        text = present.shape[1] * architecture.view_tokens
        prompt_ids, prompt_is_valid = inputs["input_ids"][:, text:], inputs["attention_mask"][:, text:].bool()
    else:
        prompt_ids, prompt_is_valid = inputs["lang_tokens"], inputs["lang_masks"].bool()
    observation = Observation(images[:, :, :2], present, prompt_ids, prompt_is_valid, inputs["state"])
    return observation, images[:, :, 2]


@torch.no_grad()
def _check_training(
    report: Report,
    model: InternVLAA1,
    observation: Observation,
    targets: Targets,
    inputs: dict[str, Tensor],
    golden: dict[str, Tensor],
    settings: dict[str, Any],
) -> None:
    architecture, get = model.architecture, golden.get
    trace: dict[str, Any] = {}
    prediction = model.predict(observation, targets, inputs["noise"], inputs["time"], trace)
    present = observation.camera_is_present
    context = trace["context"]
    lengths = [h.shape[1] for h in trace["hidden"]]
    valid = torch.cat([context.valid, torch.ones(len(present), lengths[3], dtype=torch.bool)], dim=1)
    understanding, foresight, _, _ = valid.split(lengths, dim=1)
    suffix = torch.ones(len(present), lengths[2] + lengths[3], dtype=torch.bool)

    image_tokens = model.vision_language.encode_images(observation.images[:, :, -1].flatten(0, 1))
    image_tokens = image_tokens.unflatten(0, present.shape)
    if "input_ids" in inputs:
        patches = qwen_patches(
            qwen_pixels(observation.images[:, :, -1].flatten(0, 1), architecture.vision.image_size),
            architecture.vision.patch_size,
        )
        patches = patches.unflatten(0, (*present.shape, -1))
        pixel_values = inputs.get("pixel_values")
        if pixel_values is not None:
            pixel_values = pixel_values.unflatten(1, (present.shape[1], -1))
        report.compare("pixel_values", patches, pixel_values, 1e-6, present)
        embeddings = get("image_embs")
        if embeddings is not None:
            embeddings = embeddings.unflatten(0, (*present.shape, -1))
        report.compare("image_embs", image_tokens, embeddings, INTERMEDIATE, present)
        ids, mask = prompt_layout(architecture, present, observation.prompt_ids, observation.prompt_is_valid)
        report.compare("input_ids", ids, inputs["input_ids"], EXACT)
        report.compare("attention_mask", mask, inputs["attention_mask"], EXACT)
    for view in range(present.shape[1]):
        if f"image_embs.view{view}" in golden:
            report.compare(f"image_embs.view{view}", image_tokens[:, view], get(f"image_embs.view{view}"), INTERMEDIATE)

    masks = {"prefix": understanding, "middle": foresight, "suffix": suffix}
    for name, valid in masks.items():
        report.compare(f"{name}_pad_masks", valid, get(f"{name}_pad_masks"), EXACT)

    def streams(hidden: list[Tensor]) -> dict[str, Tensor]:
        return {"prefix": hidden[0], "middle": hidden[1], "suffix": torch.cat(hidden[2:], dim=1)}

    for name, ours in streams(trace["hidden"]).items():
        report.compare(f"{name}_embs", ours, get(f"{name}_embs"), INTERMEDIATE, masks[name])
    for index, layer in enumerate(trace["layers"]):
        for name, ours in streams(layer).items():
            report.compare(f"layer{index}.{name}", ours, get(f"layer{index}.{name}"), INTERMEDIATE, masks[name])
    for name, ours in streams(trace["out"]).items():
        report.compare(f"{name}_out", ours, get(f"{name}_out"), INTERMEDIATE, masks[name])

    _compare_mask(report, "att_2d_masks", trace["blocks"], context.valid, lengths, get("att_2d_masks"))
    text_positions, start = understanding_positions(architecture, present, observation.prompt_is_valid)
    tail = following_positions(start, torch.cat([foresight, suffix], dim=1))
    positions = torch.cat([text_positions, tail[None].expand(text_positions.shape[0], -1, -1)], dim=2)
    expected = get("position_ids")
    if expected is not None:
        valid = torch.cat([understanding, foresight, suffix], dim=1)
        expected = expected if expected.ndim == 3 else expected[None]
        report.compare("position_ids", positions.permute(1, 2, 0), expected.permute(1, 2, 0), EXACT, valid)

    report.compare("x_t", trace["noisy_actions"], get("x_t"), 1e-6)
    report.compare("u_t", prediction.target_velocity, get("u_t"), 1e-6)
    report.compare("v_t", prediction.velocity, get("v_t"), INTERMEDIATE)
    report.compare(
        "loss_action", (prediction.target_velocity - prediction.velocity).square(), get("loss_action"), LOSS_ENTRIES
    )
    assert prediction.target_future_latents is not None and prediction.future_latents is not None
    report.compare("cosmos_features_past_now", trace["latents"], get("cosmos_features_past_now"), INTERMEDIATE)
    report.compare(
        "cosmos_features_future", prediction.target_future_latents, get("cosmos_features_future"), INTERMEDIATE
    )
    report.compare(
        "pred_cosmos_features", prediction.future_latents, get("pred_cosmos_features"), INTERMEDIATE, present
    )
    losses = compute_losses(prediction, targets, present, lambda_gen=settings["lambda_gen"], reference=True)
    report.compare("loss_gen", losses.foresight, get("loss_gen"), INTERMEDIATE)


def _compare_mask(
    report: Report, name: str, blocks: list[Any], valid: Tensor, lengths: list[int], golden: Tensor | None
) -> None:
    """The mask that our blocks amount to, on rows of real queries."""
    total = sum(lengths)
    queries = torch.cat([valid, torch.ones(len(valid), total - valid.shape[1], dtype=torch.bool)], dim=1)
    rows = [
        nn.functional.pad(block.visible_keys[:, 0], (0, total - block.visible_keys.shape[-1])).expand(-1, length, -1)
        for block, length in zip(blocks, lengths, strict=True)
    ]
    report.compare(name, torch.cat(rows, dim=1), golden, EXACT, queries)


def _check_gradients(
    report: Report,
    model: InternVLAA1,
    observation: Observation,
    targets: Targets,
    inputs: dict[str, Tensor],
    folder: Path,
    settings: dict[str, Any],
) -> None:
    if not (folder / "grads.json").is_file():
        report.skipped.append("gradients")
        return
    described = json.loads((folder / "grads.json").read_text())
    full = _optional(folder / "grads.safetensors")
    model.zero_grad(set_to_none=True)
    losses = model.compute_loss(
        observation, targets, inputs["noise"], inputs["time"], lambda_gen=settings["lambda_gen"], reference_loss=True
    )
    report.compare("loss", losses.total, torch.tensor(described["loss"]), INTERMEDIATE)
    losses.total.backward()
    table = key_table(model.architecture.family)
    parameters = dict(model.named_parameters())
    dead = {name for name, _ in model.dead_parameters()}
    norms = described["l2_norm"]
    largest = max(norms.values())
    # A tied tensor is described under either of its names.
    other_name = {stored: alias for alias, stored in table.aliases.items()}
    for theirs, ours in table.to_reference(parameters).policy.items():
        theirs = theirs if theirs in norms else other_name.get(theirs, theirs)
        gradient = parameters[ours].grad
        if theirs not in norms or norms[theirs] == 0.0:
            # The reference gives no or zero gradient: exactly our dead parameters.
            wrong = ours not in dead and gradient is not None and bool(gradient.abs().max() > 0)
            report.rows.append((f"grad {theirs}: none", float("inf") if wrong else 0.0, EXACT))
            continue
        norm = gradient.norm() if gradient is not None else torch.tensor(float("nan"))
        # Norms are stored with 8 digits; tiny ones carry the rounding of the whole backward pass.
        report.rows.append(
            (f"|grad| {theirs}", abs(float(norm) - norms[theirs]) / max(norms[theirs], 1e-3 * largest), 1e-4)
        )
        if theirs in full and gradient is not None:
            scale = max(float(full[theirs].abs().max()), 1e-4 * largest)
            report.rows.append((f"grad {theirs}", float((gradient - full[theirs]).abs().max()) / scale, 1e-4))
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def _check_inference(
    report: Report, model: InternVLAA1, observation: Observation, inputs: dict[str, Tensor], golden: dict[str, Tensor]
) -> None:
    get, noise = golden.get, inputs["noise"]
    prefill = model.prefill(observation, with_foresight=True, reference_positions=True)
    present = observation.camera_is_present
    latents = model.encode_frames(observation.images)
    context = model.embed(observation, latents, reference_positions=True)
    lengths = [h.shape[1] for h in context.hidden]
    understanding, foresight, _ = context.valid.split(lengths, dim=1)
    before_state = torch.cat([understanding, foresight], dim=1)
    for index, (key, value) in enumerate(prefill.cache):
        # The reference prefills two blocks and recomputes the state in every step; ours holds the state too.
        for name, ours in (("key", key), ("value", value)):
            kept = ours[:, :, :-1].transpose(1, 2)
            expected = get(f"infer.kv_after_middle.layer{index}.{name}")
            expected = expected.transpose(1, 2) if expected is not None else None
            report.compare(f"infer.kv_after_middle.layer{index}.{name}", kept, expected, INTERMEDIATE, before_state)
    assert prefill.foresight_hidden is not None
    report.compare("infer.middle_out", prefill.foresight_hidden, get("infer.middle_out"), INTERMEDIATE, foresight)
    hidden, _ = model.mixture(context.hidden, context.blocks)
    report.compare("infer.prefix_out", hidden[0], get("infer.prefix_out"), INTERMEDIATE, understanding)

    count = model.architecture.rope_sections is not None
    _, start = understanding_positions(model.architecture, present, observation.prompt_is_valid)
    middle = following_positions(start, foresight, count_padding=count)
    suffix = following_positions(
        context.next_position - 1, torch.ones(len(present), 1 + noise.shape[1], dtype=torch.bool)
    )
    for name, ours, valid in (("middle", middle, foresight), ("suffix", suffix, None)):
        expected = get(f"infer.{name}_position_ids")
        if expected is not None and expected.ndim == 3:
            expected = expected[0]
        report.compare(f"infer.{name}_position_ids", ours, expected, EXACT, valid)

    for steps, tolerance in ((4, SAMPLED), (10, SAMPLED)):
        report.compare(
            f"sample_actions_{steps}",
            model.sample_actions(prefill, noise, steps),
            get(f"sample_actions_{steps}"),
            tolerance,
        )
    step = 0
    while f"infer.step{step}.x_t" in golden:
        name = f"infer.step{step}"
        at, time = golden[f"{name}.x_t"], golden[f"{name}.time"]
        report.compare(f"{name}.time", euler_times(10, noise.device)[step].expand_as(time), time, EXACT)
        report.compare(f"{name}.v_t", model.denoise_step(prefill, at, time), golden[f"{name}.v_t"], INTERMEDIATE)
        step += 1


@torch.no_grad()
def _check_images(report: Report, model: InternVLAA1, observation: Observation, golden: dict[str, Tensor]) -> None:
    if not any(name.startswith("recon_images") for name in golden):
        report.skipped.append("recon_images")
        return
    present = observation.camera_is_present
    prefill = model.prefill(observation, with_foresight=True, reference_positions=True)
    latents = model.predict_foresight(prefill)
    images = model.image_tokenizer.decode(latents.flatten(0, 1)).unflatten(0, present.shape)
    report.compare(
        "recon_images.strided4", images[..., ::4, ::4], golden.get("recon_images.strided4"), INTERMEDIATE, present
    )
    report.compare("recon_images.b0v0", images[0, 0], golden.get("recon_images.b0v0"), INTERMEDIATE)


@torch.no_grad()
def _check_released_precision(
    report: Report, model: InternVLAA1, observation: Observation, inputs: dict[str, Tensor], folder: Path
) -> None:
    """float32 with a bfloat16 image tokenizer, as the released model is evaluated.

    bf16 convolutions differ by machine.
    """
    golden = _optional(folder / "outputs_other_dtypes.safetensors")
    name = "eval_fp32_cosmos_bf16.sample_actions_10"
    if name not in golden:
        report.skipped.append(name)
        return
    tokenizer = model.image_tokenizer
    assert isinstance(tokenizer, nn.Module)
    tokenizer.bfloat16()
    prefill = model.prefill(observation, reference_positions=True)
    report.compare(name, model.sample_actions(prefill, inputs["noise"], 10), golden[name], BFLOAT16)
    tokenizer.float()


# ------------------------------------------------------------------------------------------------------ small parts


@torch.no_grad()
def check_image_tokenizer(folder: Path) -> Report:
    """Cosmos encode, decode and Haar on a golden folder."""
    from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer

    report = Report(str(folder))
    kwargs = json.loads((folder / "config.json").read_text())["kwargs"]
    accepted = (
        "channels",
        "channels_mult",
        "num_res_blocks",
        "latent_channels",
        "z_channels",
        "patch_size",
        "spatial_compression",
    )
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items() if k in accepted}
    tokenizer = CosmosImageTokenizer(**sizes)
    tokenizer.load_state_dict(load_file(folder / "model.safetensors"))
    inputs, golden = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    for name, images in inputs.items():
        latents = tokenizer.encode(images)
        report.compare(f"latent.{name}", latents, golden.get(f"latent.{name}"), INTERMEDIATE)
        report.compare(
            f"reconstruction.{name}", tokenizer.decode(latents), golden.get(f"reconstruction.{name}"), INTERMEDIATE
        )
    return report


def check_schedule(folder: Path) -> Report:
    """Time embedding and Euler times."""
    from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding

    report = Report(str(folder))
    for name, expected in load_file(folder / "euler_times.safetensors").items():
        times = torch.stack(euler_times(int(name.split(".")[1]), torch.device("cpu")))
        report.compare(f"euler {name}", times, expected, EXACT)
    embedding = _optional(folder / "time_embedding.safetensors")
    for name, expected in embedding.items():
        kind, _, dim = name.partition(".dim")
        if kind == "emb_f32" and dim.isdigit():
            time = embedding["t"]
            device: Any = time.device  # LeRobot's default of "cpu" makes it look like a string
            ours = create_sinusoidal_pos_embedding(time, int(dim), MIN_PERIOD, MAX_PERIOD, device).float()
            report.compare(f"time {name}", ours, expected, 1e-6)
    return report


def check_preprocessing(folder: Path) -> Report:
    """Letterbox, Qwen patches, normalisation."""
    report = Report(str(folder))
    resize = _optional(folder / "resize_with_pad.safetensors")
    described = json.loads((folder / "config.json").read_text())
    for index, case in enumerate(described.get("resize_with_pad", {}).get("cases", [])):
        frames = resize.get(f"{index}.input_u8")
        if frames is None:
            report.skipped.append(f"resize_with_pad {index}")
            continue
        ours = letterbox(frames, tuple(case["target"]))
        whole, strided = (resize.get(f"{index}.{name}") for name in ("output", "output_strided3"))
        if whole is None:
            ours, whole = ours[..., ::3, ::3], strided
        report.compare(f"resize_with_pad {index}", ours, whole, 1e-6)
    processor = _optional(folder / "image_processor.safetensors")
    for case in described.get("image_processor", {}).get("cases", []):
        frames, settings = processor.get(f"{case['name']}.input_u8"), case["settings"]
        if frames is None:
            report.skipped.append(f"image_processor {case['name']}")
            continue
        frames = (frames if frames.ndim == 4 else frames[None]).float() / 255
        pixels = qwen_pixels(frames, tuple(case["smart_resize"]))
        ours = qwen_patches(pixels, settings["patch_size"], settings["merge_size"], settings["temporal_patch_size"])
        whole, rows = (processor.get(f"{case['name']}.pixel_values{end}") for end in ("", ".rows_strided7"))
        if whole is None:
            ours, whole = ours[::7], rows
        report.compare(f"image_processor {case['name']}", ours, whole, 1e-6)
    norm = _optional(folder / "state_action.safetensors")
    if "norm.x" in norm:
        statistics = (norm["norm.mean_f64"].float(), norm["norm.std_f64"].float())
        normalised = mean_std_normalize(norm["norm.x"], *statistics)
        report.compare("mean_std normalised", normalised, norm.get("norm.mean_std.normalized"), 1e-6)
        restored = mean_std_unnormalize(norm["norm.mean_std.normalized"], *statistics)
        report.compare("mean_std unnormalised", restored, norm.get("norm.mean_std.unnormalized"), 1e-6)
    return report


def lines(report: Report) -> Iterator[str]:
    """One line per tensor: name, error, tolerance, verdict."""
    width = max((len(name) for name, _, _ in report.rows), default=10)
    for name, error, tolerance in report.rows:
        verdict = "ok" if error <= tolerance else "BEYOND"
        yield f"{name.ljust(width)}  {error:9.2e}  {tolerance:7.0e}  {verdict}"
