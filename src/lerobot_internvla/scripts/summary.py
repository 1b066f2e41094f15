"""Print how large each variant is: experts, heads, image tokenizer, dead parameters, memory and tokens.

    internvla-summary                    all variants
    internvla-summary --variant 3b       one
    internvla-summary --json             for programs

Nothing is downloaded and no weights are allocated.
"""

import argparse
import json
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from lerobot_internvla.model.architecture import VARIANTS
from lerobot_internvla.model.summary import ModelSummary, summarize


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


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``internvla-summary``."""
    parser = argparse.ArgumentParser(prog="internvla-summary", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--variant", choices=list(VARIANTS), help="only this one (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args(argv)
    names = [arguments.variant] if arguments.variant else list(VARIANTS)
    summaries = [summarize(VARIANTS[name]) for name in names]
    if arguments.json:
        print(json.dumps({summary.variant: summary.as_dict() for summary in summaries}, indent=2))
        return
    console = Console()
    for summary in summaries:
        console.print(render(summary))
        console.print()


if __name__ == "__main__":
    main()
