"""How much memory and time internvla-convert takes at full size, on a random file in the released layout.

    python benchmarks/convert_memory.py --folder /somewhere/with/16GB --output benchmarks/results/convert_3b_cpu

Writes a 3B checkpoint (every name, shape and dtype of the release; random values) into a temporary folder, converts it
in a process of its own, reports that process's peak resident memory, and removes everything.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from math import prod
from pathlib import Path

import torch
from measure import describe_machine  # pyright: ignore[reportMissingImports]  # beside this file

from lerobot_internvla.conversion.key_table import key_table
from lerobot_internvla.conversion.reference_layout import constant_tensor, expected_shapes, reference_config
from lerobot_internvla.model.architecture import build_architecture

PIECE = 8 * 2**20
FLAGS = ("--text-tokenizer", "words", "--actions", "relative")


def released_dtype(name: str) -> str:
    """As in the released 3B: bfloat16, but for layer norms, the understanding expert's final norm, and the heads."""
    norms = ("input_layernorm", "post_attention_layernorm", "language_model.norm")
    inside = ("qwen3_vl_with_expert", "model.cosmos.")
    return "F32" if any(norm in name for norm in norms) or not any(part in name for part in inside) else "BF16"


def write_random_release(folder: Path, variant: str = "3b") -> int:
    """A checkpoint of the reference with random weights; returns its bytes."""
    architecture = build_architecture(variant)
    policy, pixels = expected_shapes(architecture)
    names = key_table(architecture.family).to_reference(policy, pixels, scripted=True)
    shapes = {theirs: policy[ours] for theirs, ours in names.policy.items()}
    shapes |= {theirs: pixels[ours] for theirs, ours in names.image_tokenizer.items()}
    constants = {constant.reference: constant_tensor(constant, torch.bfloat16) for constant in names.constants}
    entries = [(name, released_dtype(name), shape) for name, shape in shapes.items()]
    entries += [(n, "I64" if t.dtype == torch.int64 else "BF16", tuple(t.shape)) for n, t in constants.items()]
    sizes = {"I64": 8, "F32": 4, "BF16": 2}
    entries.sort(key=lambda entry: (-sizes[entry[1]], entry[0]))
    header: dict[str, object] = {"__metadata__": dict(names.aliases)}
    end = 0
    for name, dtype, shape in entries:
        start, end = end, end + sizes[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(PIECE, generator=generator)
    pieces = {"F32": noise.numpy().tobytes(), "BF16": noise.bfloat16().view(torch.int16).numpy().tobytes()}
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, dtype, shape in entries:
            left = sizes[dtype] * prod(shape)
            if name in constants:
                file.write(constants[name].flatten().view(torch.uint8).numpy().tobytes())
                left = 0
            while left > 0:
                piece = pieces[dtype][: min(left, len(pieces[dtype]))]
                file.write(piece)
                left -= len(piece)
    (folder / "config.json").write_text(json.dumps(reference_config(architecture, {"dtype": "bfloat16"})))
    numbers = {"mean": [0.0] * 14, "std": [1.0] * 14, "min": [-1.0] * 14, "max": [1.0] * 14, "count": [1000]}
    statistics = {"aloha": {"observation.state": numbers, "action": numbers}}
    (folder / "stats.json").write_text(json.dumps(statistics))
    return (folder / "model.safetensors").stat().st_size


def write_tokenizer(folder: Path) -> None:
    """Any text tokenizer does: none is part of what is measured."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def run(folder: Path, *flags: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident GB of one conversion in a process of its own."""
    command = [sys.executable, "-m", "lerobot_internvla.scripts.convert", "source", "policy", *FLAGS, *flags]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"The conversion failed with status {os.waitstatus_to_exitcode(status)}.")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the 20 GB go for a while (default: the temporary folder)")
    parser.add_argument("--output", type=Path, help="write <output>.md")
    parser.add_argument("--verify", action="store_true", help="also once with --verify, which runs the whole model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "source").mkdir()
        size = write_random_release(folder / "source")
        write_tokenizer(folder / "words")
        rows = [("", *run(folder))]
        written = sum(file.stat().st_size for file in (folder / "policy").rglob("*") if file.is_file())
        if arguments.verify:
            rows.append((" --overwrite --verify", *run(folder, "--overwrite", "--verify")))
    machine = describe_machine()
    versions = {**machine.versions, "safetensors": version("safetensors")}
    table = "\n".join(
        f"| `internvla-convert source policy ...{flags}` | {peak:.2f} GB | {wall:.0f} s | {cpu:.0f} s |"
        for flags, wall, cpu, peak in rows
    )
    text = f"""# Converting a full-size 3B checkpoint

- command: `python benchmarks/convert_memory.py{" --verify" if arguments.verify else ""}`
- date: {machine.date}
- hardware: {machine.cores} cores of {machine.processor}, {machine.memory_gb:g} GB; load average {machine.load_average}
- versions: {", ".join(f"{package} {number}" for package, number in versions.items())}
- input: random values under every name, shape and dtype of the released file, {size / 1e9:.2f} GB;
  result: {written / 1e9:.2f} GB in all

| command | peak resident memory | wall time | CPU time |
|---|---|---|---|
{table}

Peak resident memory is that of the whole process, mapped files included. Nearly all of it without `--verify` is Python
with its libraries and the image tokenizer: the weights pass through a buffer of 16 MB. With `--verify` one copy of the
model comes on top, and the mapped file that it is filled from, whose pages the system can take back.
"""
    print(text)
    if arguments.output is not None:
        arguments.output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
