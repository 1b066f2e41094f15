"""One rank of ``lerobot-train`` on a mixture, and what it drew and logged; run by test_mixture_training.py.

torchrun ... mixture_rank.py <folder for the reports> <flags of lerobot-train>
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lerobot.scripts.lerobot_train  # noqa: F401  # before the plugin, as in the command

from stock_commands import lerobot_train


def sample_ids(batch: dict[str, Any]) -> list[str]:
    """A name for each sample of a batch: its source, and what it holds."""
    names: list[str] = []
    for row in range(len(batch["task"])):
        sha = hashlib.sha256(batch["task"][row].encode())
        for key in sorted(
            key for key, value in batch.items() if key.startswith(("observation.", "action")) and value is not None
        ):
            sha.update(batch[key][row].contiguous().cpu().numpy().tobytes())
        names.append(f"{int(batch['observation.source_index'][row])}-{sha.hexdigest()[:12]}")
    return names


@contextmanager
def watched() -> Iterator[dict[str, list[Any]]]:
    """Every training batch's sample ids and the metrics that the policy returned for it."""
    from lerobot_internvla.modeling_internvla_a1 import InternVLAA1Policy

    seen: dict[str, list[Any]] = {"samples": [], "metrics": []}
    stock = InternVLAA1Policy.forward

    def forward(self: InternVLAA1Policy, batch: dict[str, Any], **kwargs: Any) -> Any:
        loss, metrics = stock(self, batch, **kwargs)
        seen["samples"].append(sample_ids(batch))
        seen["metrics"].append(metrics)
        return loss, metrics

    InternVLAA1Policy.forward = forward
    try:
        yield seen
    finally:
        InternVLAA1Policy.forward = stock


if __name__ == "__main__":
    with watched() as seen:
        lerobot_train(*sys.argv[2:])
    Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(seen))
