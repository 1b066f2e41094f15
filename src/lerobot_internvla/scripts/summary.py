"""Print how large each variant is: experts, heads, image tokenizer, dead parameters, memory and tokens.

    internvla-summary                    all variants
    internvla-summary --variant 3b       one
    internvla-summary --json             for programs
    internvla-summary --memory FILE      peak GPU memory of a lerobot-train configuration, by arithmetic

Nothing is downloaded and no weights are allocated.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import VARIANTS
from lerobot_internvla.model.memory import MemoryEstimate, TrainingPlan, training_memory
from lerobot_internvla.model.summary import ModelSummary, summarize
from lerobot_internvla.scripts.messages import says_what_is_wrong


def _amount(parameters: int) -> str:
    """As in the paper's Table 1: billions with two digits; smaller parts in millions or thousands."""
    unit, scale = next(u for u in (("B", 1e9), ("M", 1e6), ("K", 1e3)) if parameters >= u[1] / 10 or u[0] == "K")
    return f"{parameters / scale:.2f} {unit}"


def render(summary: ModelSummary) -> Table:
    """One table per variant, parameters per row."""
    table = Table(title=f"InternVLA-A1 {summary.variant}", title_justify="left", caption_justify="left")
    table.add_column("part", no_wrap=True)
    for heading in ("layers", "width", "MLP", "parameters", "exactly"):
        table.add_column(heading, justify="right")

    def row(part: str, parameters: int, layers: str = "", width: str = "", mlp: str = "") -> None:
        table.add_row(part, layers, width, mlp, _amount(parameters), f"{parameters:,}")

    for expert in summary.experts:
        row(f"{expert.name} expert", expert.parameters, str(expert.layers), str(expert.hidden), str(expert.mlp))
        if expert.name == "understanding":
            for part, parameters in summary.understanding_parts.items():
                row(f"  {part.replace('_', ' ')}", parameters)
    row("foresight head", summary.foresight_head)
    row("action head", summary.action_head)
    row(f"image tokenizer ({summary.image_tokenizer_kind}, frozen)", summary.image_tokenizer)
    table.add_section()
    row("total", summary.total)
    row("  of which dead (frozen)", sum(summary.dead.values()))
    for part, parameters in summary.dead.items():
        row(f"    {part.replace('_', ' ')}", parameters)
    tokens = ", ".join(f"{block} {count}" for block, count in summary.tokens.items())
    table.caption = (
        f"heads: {summary.query_heads} query, {summary.key_value_heads} key/value, width {summary.head_width}\n"
        f"tokens (3 cameras): {tokens}; {sum(summary.tokens.values())} in all\n"
        f"weights: {summary.gigabytes(torch.float32):.2f} GB in fp32, "
        f"{summary.gigabytes(torch.bfloat16):.2f} GB in bf16"
    )
    return table


def memory_of(train_config: Path) -> MemoryEstimate:
    """Peak GPU memory of the run that a ``lerobot-train --config_path`` file describes (model/memory.py).

    Three cameras and a rank of 16 are assumed where the file says nothing of them.

    Raises:
        InternVLAError: no such file, or another policy.
    """
    import draccus
    from lerobot.configs.train import TrainPipelineConfig

    if not train_config.is_file():
        raise InternVLAError(f"There is no file {str(train_config)!r}. Pass a lerobot-train configuration (YAML).")
    try:
        config = draccus.parse(TrainPipelineConfig, config_path=train_config, args=["--dataset.repo_id=any/dataset"])
    except draccus.utils.ParsingError as error:
        raise InternVLAError(f"{str(train_config)!r} is no lerobot-train configuration: {error}") from error
    policy = config.policy
    if not isinstance(policy, InternVLAA1Config):
        raise InternVLAError(f"{str(train_config)!r} does not train internvla_a1.")
    adapts = config.peft is not None
    experts = tuple(policy.peft_experts) if adapts else policy.trained_experts
    plan = TrainingPlan(
        batch_size=config.batch_size,
        trained=tuple(name for name in experts if name != "foresight" or policy.use_foresight),
        freeze_vision_encoder=policy.freeze_vision_encoder,
        lora_rank=(config.peft.r or 16) if config.peft is not None else None,
        use_foresight=policy.use_foresight,
        weights_bytes=2 if policy.weights_dtype == "bfloat16" else 4,
        gradient_checkpointing=policy.gradient_checkpointing,
        chunk_size=policy.chunk_size,
    )
    return training_memory(policy.architecture, plan)


@says_what_is_wrong("internvla-summary")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-summary``."""
    parser = argparse.ArgumentParser(prog="internvla-summary", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--variant", choices=list(VARIANTS), help="only this one (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--memory", type=Path, metavar="FILE", help="a lerobot-train configuration")
    arguments = parser.parse_args(argv)
    if arguments.memory is not None:
        print(f"{arguments.memory}: {memory_of(arguments.memory)}; computed, not measured")
        return 0
    names = [arguments.variant] if arguments.variant else list(VARIANTS)
    summaries = [summarize(VARIANTS[name]) for name in names]
    if arguments.json:
        print(json.dumps({summary.variant: summary.as_dict() for summary in summaries}, indent=2))
        return 0
    console = Console()
    for summary in summaries:
        console.print(render(summary))
        console.print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
