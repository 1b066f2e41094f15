"""What must never become a command: numbers that are none, frames that are not there.

Checked on the host. Reading a value back from a GPU waits for everything queued on it, so states that live there are
looked at once per chunk, when the robot waits for the device anyway; states on the CPU on every tick.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lerobot_internvla.embodiments.matching import in_another_order
from lerobot_internvla.errors import InternVLAError


def _named(bad: Tensor, names: Sequence[str] | None) -> str:
    """The dims of [..., D] in which something is wrong, by name where there are names."""
    dims = bad.flatten(0, -2).any(dim=0).nonzero().flatten().tolist()
    return ", ".join(f"dim {dim}" + (f" ({names[dim]})" if names and dim < len(names) else "") for dim in dims)


def refuse_joints_in_another_order(policy: Any, state: Sequence[str] | None, action: Sequence[str] | None) -> None:
    """Nothing, where the robot's joints stand in the order that ``policy`` (an ``InternVLAA1Policy``) learned.

    LeRobot 0.6.1 hands a policy the state in the robot's order, and the number i of an action to the robot's joint i
    (RTC alone sends by name). Other names say nothing: a robot may call the same joints otherwise.

    Args:
        state, action: the robot's names, in its order; None where unknown.

    Raises:
        InternVLAError: the same joints in another order.
    """
    trained = policy.driven_joints()
    wrong = [
        f"{side}: {', '.join(theirs or ())}; the policy: {', '.join(ours or ())}"
        for side, theirs, ours in (("state", state, trained[0]), ("action", action, trained[1]))
        if in_another_order(theirs, ours)
    ]
    if wrong:
        raise InternVLAError(
            f"The robot has the joints of the training data in another order, so each would move as another was meant "
            f"to ({'; '.join(wrong)}). Bring the robot's motors into the order of the recordings in its configuration, "
            "or fine-tune on recordings of this robot."
        )


def refuse_unusable_state(state: Tensor, names: Sequence[str] | None = None) -> None:
    """Nothing, where all of ``state`` [B, D] is finite.

    Raises:
        InternVLAError: NaN or infinite values; names the joints.
    """
    bad = ~torch.isfinite(state)
    if bool(bad.any()):
        raise InternVLAError(
            f"The robot's state is not a number in {_named(bad, names)}. No action is computed from it. Look for a "
            "loose motor cable, a lost encoder or a failed calibration, then start again."
        )


def refuse_unusable_actions(actions: Tensor, names: Sequence[str] | None = None) -> None:
    """Nothing, where all of ``actions`` [B, K, A] is finite.

    Raises:
        InternVLAError: NaN or infinite values; the chunk must not reach a robot.
    """
    bad = ~torch.isfinite(actions)
    if bool(bad.any()):
        raise InternVLAError(
            f"The policy computed actions that are not numbers in {_named(bad, names)}; none of this chunk is "
            "executed. The weights or their precision are broken (a training that diverged?); try an earlier "
            "checkpoint, or --policy.dtype=float32 --policy.weights_dtype=float32."
        )


def refuse_unusable_observation(
    observation: Mapping[str, Any], cameras: Mapping[str, str], joints: Sequence[str]
) -> None:
    """Nothing, where a robot's observation, as LeRobot's ``Robot.get_observation`` gives it, is whole.

    Args:
        cameras: the robot's name of a camera -> the policy's.
        joints: names of the state's dims.

    Raises:
        InternVLAError: missing frames, frames that are no pictures, joints that are missing or not numbers; all of
            them at once.
    """
    problems: list[str] = []
    for name, policy_name in cameras.items():
        frame = observation.get(name)
        if frame is None:
            problems.append(f"camera {name!r} ({policy_name}) delivered no frame")
        elif not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            shape = getattr(frame, "shape", type(frame).__name__)
            problems.append(f"camera {name!r} delivered {shape}, expected a picture [height, width, 3]")
    for joint in joints:
        value = observation.get(joint)
        if value is None:
            problems.append(f"joint {joint!r} has no position")
        elif not np.isfinite(value):
            problems.append(f"joint {joint!r} is at {value}")
    if problems:
        raise InternVLAError(
            f"The observation is unusable: {'; '.join(problems)}. No action is computed from it. Check cables, USB "
            "bandwidth and the camera's rate, then start again; what was recorded so far is kept."
        )
