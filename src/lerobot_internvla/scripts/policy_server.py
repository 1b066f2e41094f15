"""Serve a policy to a robot that has no GPU: LeRobot's policy server, admitting InternVLA-A1.

    internvla-policy-server                                     listens on 127.0.0.1:8080
    internvla-policy-server --port=9000 --fps=30                LeRobot's own flags
    internvla-policy-server --rename_map='{"observation.images.top": "observation.images.head"}'

The robot's computer runs LeRobot's client as it is, through an ssh tunnel (docs/robots.md):

    python -m lerobot.async_inference.robot_client --policy_type=internvla_a1 --chunk_size_threshold=1.0 ...
"""

import argparse
import sys
from collections.abc import Sequence

import draccus

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.scripts.messages import says_what_is_wrong


@says_what_is_wrong("internvla-policy-server", argparse.ArgumentError, draccus.utils.DecodingError)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    try:
        from lerobot_internvla.serving.policy_server import InternVLAPolicyServerConfig, serve
    except ImportError as error:
        raise InternVLAError(
            f"The policy server needs grpc ({error}). Install it: pip install 'lerobot_policy_internvla_a1[async]'."
        ) from error
    import lerobot_internvla  # noqa: F401  # registers the policy

    arguments = sys.argv[1:] if argv is None else list(argv)
    serve(draccus.parse(InternVLAPolicyServerConfig, args=arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
