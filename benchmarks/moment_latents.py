"""What a chunk costs when the latents of its past are known already, and when they are not.

Part of ``benchmarks/rollout.py``. One policy acts, synchronously, with a chunk on every fifth of fifteen ticks, so that
the past of a chunk is the "now" of the third chunk before. Before every second chunk all latents are taken away from
what is remembered; chunks with and without follow each other, and a ratio is of two neighbours. Models:

    tiny      Haar, which has no weights: encoding a moment is next to nothing
    medium    3b with narrow layers (cases.medium, 62.6 M parameters): Cosmos and all other parts as in 3b, and nearly
              the same share of the work in each, with random weights

Time includes everything that ``select_action`` does on a tick that predicts a chunk, from float32 frames on.
"""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cases import CHUNK, EULER_STEPS, VIEWS, flop_by_formula, medium
from measure import Table

from lerobot_internvla import InternVLAA1Config, InternVLAA1Policy
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer
from lerobot_internvla.model.architecture import Architecture, build_architecture
from lerobot_internvla.testing import small_config, tiny_batch, tiny_policy

MODELS = ("tiny", "medium")
INTERVAL, N_ACTION_STEPS = 15, 5
CAMERA = (480, 640)


def configure(model: str, folder: str) -> InternVLAA1Config:
    """The policy's configuration; ``folder`` gets an image tokenizer with random weights."""
    fields: dict[str, Any] = {
        "image_size": CAMERA,
        "chunk_size": CHUNK,
        "n_action_steps": N_ACTION_STEPS,
        "num_inference_steps": EULER_STEPS,
        "foresight_interval": INTERVAL,
        "fps": 30.0,
    }
    if model == "tiny":
        return small_config("tiny", **fields)
    overrides = medium(16)
    build_image_tokenizer(build_architecture("3b", overrides).image_tokenizer).save_pretrained(folder)
    return small_config(
        "3b",
        architecture_overrides=overrides,
        image_tokenizer=folder,
        image_tokenizer_dtype="float32",
        **fields,
    )


def chunk_ms(policy: InternVLAA1Policy, pairs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of chunks whose past was known, and of as many whose past was not, in turn."""
    known: list[float] = []
    unknown: list[float] = []
    batch = tiny_batch(policy.config, 1, moment="tick")
    batch = {key: (v * 255).round() / 255 if "images" in key else v for key, v in batch.items()}
    policy.reset()
    warm_up = 2 * (INTERVAL // N_ACTION_STEPS)
    for number in range(warm_up + 2 * pairs):
        is_known = number % 2 == 0
        remembered = [] if is_known else [(moment, moment.latents) for moment in policy.memory.moments]
        for moment, _ in remembered:
            moment.latents = None
        start = time.perf_counter()
        policy.select_action(batch)
        passed = 1e3 * (time.perf_counter() - start)
        for moment, latents in remembered:  # the next chunk shall find what it would have found
            moment.latents = latents
        if number >= warm_up:
            (known if is_known else unknown).append(passed)
        for _ in range(N_ACTION_STEPS - 1):
            policy.select_action(batch)
    return known, unknown


def share_of_past(architecture: Architecture) -> float | None:
    """Of a chunk's floating-point operations, those that encode the past; None where there is no formula."""
    flop = flop_by_formula(architecture, EULER_STEPS)
    return None if flop is None else flop["image tokenizer"] / 2 / flop["chunk"]


def measure(models: Sequence[str], pairs: int) -> list[dict[str, Any]]:
    """One row per model."""
    rows: list[dict[str, Any]] = []
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            policy = tiny_policy(configure(model, folder))
        with torch.inference_mode():
            known, unknown = chunk_ms(policy, pairs)
        ratios = np.array(known) / np.array(unknown)
        rows.append(
            {
                "model": model,
                "pairs": pairs,
                "known_ms": round(float(np.median(known)), 3),
                "unknown_ms": round(float(np.median(unknown)), 3),
                "ratio": {f"p{q}": round(float(np.quantile(ratios, q / 100)), 4) for q in (25, 50, 75)},
                "share_of_past": share_of_past(policy.config.architecture),
                "latent_bytes": policy.memory.latent_bytes,
                "frame_bytes": policy.memory.frame_bytes,
            }
        )
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows, and of 3b what can be said without running it."""
    table = Table(
        "Latents of the past, known or encoded anew: one chunk",
        ["model", "pairs of chunks", "encoded anew p50 ms", "known p50 ms", "known / anew p50", "p25", "p75",
         "share of the past in the FLOP of a chunk", "latents remembered", "frames remembered"],
    )  # fmt: skip
    for row in rows:
        share = row["share_of_past"]
        table.add(
            row["model"], row["pairs"], f"{row['unknown_ms']:.1f}", f"{row['known_ms']:.1f}",
            *(f"{row['ratio'][q]:.3f}" for q in ("p50", "p25", "p75")), "" if share is None else f"{share:.1%}",
            f"{row['latent_bytes'] / 1e6:.2f} MB", f"{row['frame_bytes'] / 1e6:.1f} MB",
        )  # fmt: skip
    architecture = build_architecture("3b")
    share, spec = share_of_past(architecture), architecture.image_tokenizer
    known = INTERVAL // N_ACTION_STEPS * VIEWS * spec.latent_channels * spec.latent_size[0] * spec.latent_size[1]
    table.add("3b", "", "", "", "", "", "", f"{share:.1%}", f"{4 * known / 1e6:.2f} MB (by formula)")
    table.note = (
        f"select_action on ticks that predict a chunk, three {CAMERA[0]} x {CAMERA[1]} cameras, {N_ACTION_STEPS} "
        f"actions per chunk, {INTERVAL} ticks between past and now. Chunks with and without known latents follow each "
        "other in one process; a ratio is of two neighbours. The actions are the same to the last bit."
    )
    return table
