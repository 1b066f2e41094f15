"""The benchmarks: counters that count what they say, formulas that agree with them, scripts that run."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # scripts, not a package

import cases  # noqa: E402
import measure  # noqa: E402
from cases import medium  # noqa: E402

from lerobot_internvla.model.architecture import build_architecture  # noqa: E402
from lerobot_internvla.model.internvla_a1 import InternVLAA1  # noqa: E402

SMALL = {
    **medium(14),
    "layers": 2,
    "vision": {**medium(14)["vision"], "depth": 1, "deepstack_layers": [], "image_size": [64, 64]},
    "image_tokenizer": {"image_size": [64, 64], "channels": 32, "channels_mult": [1, 2, 2]},
    "view_size": [64, 64],
}
"""The structure of 3b, small enough to run."""


@pytest.mark.filterwarnings("ignore")
def test_the_counter_knows_work_from_views_and_sees_who_waits():
    weight, unused = torch.ones(8, 4), torch.ones(3)

    def work() -> None:
        out = torch.ones(2, 8) @ weight  # ones, mm
        out = out.view(4, 2).t().relu()  # relu
        out.sum().item()  # sum, a scalar read
        out[out > 0].tolist()  # gt, index with a boolean mask (nonzero), a list

    counted = measure.count_work(work, [weight, unused])
    assert counted.ops["mm"] == counted.ops["relu"] == counted.ops["ones"] == 1
    assert counted.views == 2
    assert counted.host_syncs == {"scalar read": 1, "nonzero": 1, "tolist": 1}
    assert counted.flop == 2 * 2 * 8 * 4
    assert counted.weight_bytes == 8 * 4 * 4
    assert counted.parameters_read == {0}


def test_attention_counts_once_and_costs_four_times_queries_keys_width():
    query, key = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 7, 16)
    counted = measure.count_work(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key))
    assert counted.attention_calls == 1
    assert counted.flop == 4 * 2 * 5 * 7 * 16


@pytest.mark.parametrize("build", [lambda: cases.internvla("tiny"), lambda: cases.internvla("3b", SMALL)])
def test_counting_without_memory_gives_what_real_tensors_give(build: Any):
    counts: list[dict[str, Any]] = []
    for surroundings in (measure.pretend_accelerator("cpu"), torch.no_grad()):
        with surroundings, torch.no_grad():
            case = build()
            counts.append(measure.count_work(case.chunk, case.weights).as_dict())
    assert counts[0] == counts[1]


def test_formulas_agree_with_the_counter():
    with torch.no_grad(), measure.pretend_accelerator("cpu"):
        case = cases.internvla("3b", SMALL)
        assert case.flop is not None
        for name, stage in {**case.stages, "chunk": case.chunk}.items():
            assert measure.count_work(stage, case.weights).flop == pytest.approx(case.flop[name], rel=0.01), name


def test_a_chunk_never_waits_for_the_device():
    with torch.no_grad(), measure.pretend_accelerator("cuda"):
        case = cases.internvla("3b", SMALL, device="cuda")
        assert measure.count_work(case.chunk, case.weights).host_syncs == {}


def test_an_euler_step_issues_at_most_24_operations_per_layer():
    """CUDA dispatch, float32: 7 products, 4 norms, 3 to rotate, 3 to join, 1 attention, 1 copy, 4 elementwise."""
    ops: list[int] = []
    for layers in (2, 3):
        with torch.no_grad(), measure.pretend_accelerator("cuda"):
            case = cases.internvla("3b", {**SMALL, "layers": layers}, device="cuda")
            ops.append(measure.count_work(case.stages["one Euler step"]).non_view_ops)
    assert ops[1] - ops[0] <= 24


def test_the_medium_configuration_has_the_reference_s_parameters():
    architecture = build_architecture("3b", medium(16))
    with torch.device("meta"):
        model = InternVLAA1(architecture)
        tokenizer: Any = cases.build_image_tokenizer(architecture.image_tokenizer)
    counted = [sum(p.numel() for p in module.parameters()) for module in (model, tokenizer)]
    assert counted == [63_862_320 - 1_252_352, 1_252_352]


def test_a_model_that_was_never_held_in_another_precision_has_the_right_tables_and_dtypes():
    architecture = build_architecture("3b", SMALL)
    model = cases.random_model(architecture, torch.bfloat16)
    for name, table in InternVLAA1(architecture).named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[name], table, rtol=0, atol=0)
    layer: Any = model.mixture.layers[0]
    expert = layer.experts["action"]
    assert expert.self_attn.q_proj.weight.dtype == torch.bfloat16
    assert expert.input_layernorm.weight.dtype == model.action_head.state_proj.weight.dtype == torch.float32
    assert all(torch.isfinite(p).all() and not p.is_meta for p in model.parameters())


def test_stages_take_turns():
    turns: list[str] = []
    clocks = measure.interleave({name: lambda name=name: turns.append(name) for name in "ab"}, rounds=2, warmup=1)
    assert turns == list("ababab")
    assert [len(clock.wall_s) for clock in clocks.values()] == [2, 2]


def run_script(name: str, *arguments: str, output: Path) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments, f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert output.with_suffix(".md").read_text().startswith("# ")
    return json.loads(output.with_suffix(".json").read_text())


def check_machine(report: dict[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(measure.Machine)}
    assert fields | {"load_average_at_end"} == set(report["machine"])
    assert report["command"].startswith("python benchmarks/")
    assert all(rate > 0 for rate in report["machine"]["gemm_gflops"].values())


@pytest.mark.slow
def test_inference_script(tmp_path: Path):
    arguments = ("--cases=tiny", "--peers", "--graphs=tiny", "--threads=1", "--rounds=1", "--passes=2")
    report = run_script("inference", *arguments, output=tmp_path / "inference")
    check_machine(report)
    tiny = report["results"]["tiny"]
    assert "not_counted" not in tiny and "skipped" not in tiny
    for device in ("cpu", "cuda"):
        chunk = tiny["work"][device]["chunk"]
        assert chunk["non_view_ops"] > 0 and chunk["host_syncs"] == 0 and chunk["gflop"] > 0
        assert tiny["work"][device]["dead_parameters"] > 0
    assert tiny["graph"] == {"graphs": 1, "graph_breaks": 0, "fullgraph": True}
    clocks = tiny["latency"]["1"]
    assert set(clocks) == {"vision and prompt", "image tokenizer", "prefill layers", "one Euler step", "chunk"}
    assert all(clock["rounds"] == 2 and 0 < clock["wall_min_s"] <= clock["wall_median_s"] for clock in clocks.values())
    assert tiny["peak_rss_mb"] > tiny["rss_before_mb"] > 0


@pytest.mark.slow
def test_training_script(tmp_path: Path):
    arguments = ("--cases=tiny", "--counted", "--batch=2", "--threads=1", "--rounds=1")
    report = run_script("training", *arguments, output=tmp_path / "training")
    check_machine(report)
    tiny = report["results"]["tiny"]
    plain, checkpointed = (tiny["work"][f"{how}, 1 draw"] for how in ("plain", "checkpointed"))
    assert plain["host_syncs"] == 1  # the metrics
    assert checkpointed["phases"]["backward"]["non_view_ops"] > plain["phases"]["backward"]["non_view_ops"]
    assert checkpointed["saved_for_backward_mb"] < plain["saved_for_backward_mb"]
    timed = tiny["latency"]["1"]
    assert set(timed) == set(tiny["work"]) and len(timed) == 4
    for setting in timed.values():
        assert set(setting["phases"]) == {"forward", "metrics", "backward", "optimizer"}
        assert setting["samples_per_s"] > 0 and setting["peak_rss_mb"] > 0
