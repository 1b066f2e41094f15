"""Publish a checkpoint on the Hugging Face Hub, with a model card and without anything private.

    internvla-publish outputs/my_task/checkpoints/last/pretrained_model --repo_id=me/my_policy --dry_run
    internvla-publish outputs/my_task/checkpoints/last/pretrained_model --repo_id=me/my_policy \\
                      --eval_info=outputs/eval/.../eval_info.json --foresight=outputs/foresight

For checkpoints that were trained with --policy.push_to_hub=false, and to repeat an upload that failed. The folder is
only read. --dry_run prints what would be sent and needs no network.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lerobot_internvla.scripts.messages import says_what_is_wrong


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvla-publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="checkpoint folder: config.json, weights, tokenizers")
    parser.add_argument("--repo_id", required=True, help="owner/name on the Hub; is made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", help="licence, where the checkpoint does not record the origin of its weights")
    parser.add_argument(
        "--eval_info", type=Path, action="append", default=[], help="eval_info.json of lerobot-eval; may be repeated"
    )
    parser.add_argument("--foresight", type=Path, help="a picture, or a folder that internvla-foresight wrote")
    parser.add_argument("--base_policy", help="of an adapter: Hub id of the policy that it was trained over")
    parser.add_argument(
        "--new_card", action="store_true", help="replace a README.md of your own by a generated one (in the upload)"
    )
    parser.add_argument("--card", type=Path, help="also write the card to this file, to read it first")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print what would be sent, send nothing")
    return parser


@says_what_is_wrong("internvla-publish")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``internvla-publish``."""
    arguments = _parser().parse_args(argv)
    from lerobot_internvla.publishing.upload import plan_upload, publish

    plan = plan_upload(
        arguments.folder,
        arguments.repo_id,
        private=True if arguments.private else None,
        licence=arguments.license,
        eval_info=arguments.eval_info,
        foresight=arguments.foresight,
        base_policy=arguments.base_policy,
        keep_card=False if arguments.new_card else None,
    )
    print(plan)
    if arguments.card is not None:
        plan.card.save(arguments.card)
        print(f"Card: {arguments.card}")
    if arguments.dry_run:
        print("Dry run: nothing was sent.")
        return 0
    typed = sys.argv[1:] if argv is None else argv
    info = publish(plan, retry=shlex.join(["internvla-publish", *typed]))
    print(f"Published: {info.repo_url.url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
