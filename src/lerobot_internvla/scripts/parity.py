"""``internvla-parity FOLDER``: our numbers against golden data of the reference (``make parity GOLDEN=FOLDER``)."""

import argparse
from pathlib import Path

import torch

from lerobot_internvla.scripts.messages import says_what_is_wrong


@says_what_is_wrong("internvla-parity")
def main() -> int:
    """Entry point of ``internvla-parity``; returns 1 when a number is beyond its tolerance."""
    parser = argparse.ArgumentParser(prog="internvla-parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="a golden folder, or a folder of golden folders")
    parser.add_argument("--quiet", action="store_true", help="print failures and totals only")
    arguments = parser.parse_args()

    from lerobot_internvla.conversion.parity import check, lines

    torch.set_num_threads(1)
    torch.manual_seed(0)
    reports = check(arguments.folder)
    for report in reports:
        print(f"\n{report.folder}")
        for line in lines(report):
            if not arguments.quiet or not line.endswith("  ok"):
                print("  " + line)
        total, beyond, absent = len(report.rows), len(report.failures), len(report.skipped)
        print(f"  {total} tensors, {beyond} beyond tolerance, {absent} not in the folder")
    return 1 if any(report.failures for report in reports) else 0


if __name__ == "__main__":
    raise SystemExit(main())
