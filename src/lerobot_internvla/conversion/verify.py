"""The converted folder against the source weights: the same observation through both, compared number by number.

One side is what a user will run: LeRobot's own factory loads the folder, and ``predict_action_chunk`` acts. The other
side knows nothing of the folder's weights, configuration or statistics: the model is filled from the source file, and
state and actions are normalised with the numbers of stats.json. Both compute in the precision in which the weights are
stored, one after the other, so that one copy of the model is in memory at a time.

Then the tensors themselves, bit for bit: some of them (deepstack, the 2B's lm_head) no action depends on.

Both sides share the model's code. That this code computes what the reference computes is another question, answered by
the golden tensors (``internvla-parity``).
"""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_internvla.action_space import mean_std_normalize, mean_std_unnormalize
from lerobot_internvla.checkpoints.tensor_stream import DTYPES, read_header
from lerobot_internvla.conversion.key_table import collapse_indices
from lerobot_internvla.conversion.reference_layout import WEIGHTS, ReferenceCheckpoint
from lerobot_internvla.conversion.released_statistics import Robot
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.cosmos import CosmosImageTokenizer
from lerobot_internvla.model.inputs import Observation
from lerobot_internvla.model.internvla_a1 import InternVLAA1

TASK = "pick up the pen and place it in the box"
_TOLERANCE = 1e-6
"""Of the largest action, in robot units: the same code with the same numbers."""
_ADVICE = (
    "A new folder is not kept; one that was here before belongs to another source, or was changed or damaged: convert "
    "again. If that fails too, it is a defect of the converter: please report it with the source's name and revision."
)


@dataclass(frozen=True)
class Verification:
    """How far the two sides are apart."""

    largest_difference: float
    """Over all actions of one chunk, divided by the largest action."""
    precision: str
    tensors: int
    """Compared bit for bit."""

    def __str__(self) -> str:
        return (
            f"verified in {self.precision}: actions of the converted policy and of the source weights differ by "
            f"{self.largest_difference:.1e} of the largest; {self.tensors} tensors are the same, bit for bit"
        )


@torch.no_grad()
def verify_conversion(folder: Path, reference: ReferenceCheckpoint, robot: Robot) -> Verification:
    """Compare one chunk of actions, and every tensor of the policy.

    Args:
        folder: the converted policy.
        reference: the source, memory-mapped.
        robot: whose statistics normalise; without statistics, model outputs are compared.

    Raises:
        InternVLAError: the folder does not load, or gives other numbers.
    """
    stored = reference.policy_state["mixture.layers.0.experts.action.mlp.gate_proj.weight"].dtype
    precision = "bfloat16" if stored == torch.bfloat16 else "float32"
    config: Any = PreTrainedConfig.from_pretrained(
        folder, cli_overrides=["--device=cpu", f"--dtype={precision}", f"--weights_dtype={precision}"]
    )
    generator = torch.Generator().manual_seed(0)
    architecture = reference.architecture
    state = torch.randn(1, robot.state_dim, generator=generator)
    if robot.state is not None:
        state = state * _tensor(robot.state.std) + _tensor(robot.state.mean)
    noise = torch.randn(1, config.chunk_size, architecture.max_action_dim, generator=generator)

    policy: Any = get_policy_class(config.type).from_pretrained(folder, config=config)
    if robot.state is None:
        policy.action_space.set_identity()
    slots: dict[str, str] = policy.camera_slots
    images = torch.rand(1, len(slots), 2, 3, *architecture.view_size, generator=generator)
    batch: dict[str, Any] = {key: images[:, view] for view, key in enumerate(slots.values())}
    ours = policy.predict_action_chunk({**batch, OBS_STATE: state, "task": [TASK]}, noise=noise)
    prompt_ids, prompt_is_valid = policy.prompt_builder([TASK])
    precisions = {name: parameter.dtype for name, parameter in policy.model.named_parameters()}
    tokenizer = policy.model.image_tokenizer
    del policy
    gc.collect()

    if reference.image_tokenizer_state:  # the source's own, unless it was given from elsewhere
        with torch.device("meta"):
            tokenizer = CosmosImageTokenizer.from_spec(architecture.image_tokenizer)
        tokenizer.load_state_dict(reference.image_tokenizer_state, assign=True)
    with init_empty_weights(include_buffers=False):  # tables of angles and the like are not in any file
        model = InternVLAA1(architecture, chunk_size=config.chunk_size, image_tokenizer=tokenizer)
    model.load_state_dict(
        {name: tensor.to(precisions.get(name, tensor.dtype)) for name, tensor in reference.policy_state.items()},
        assign=True,
    )
    model.eval()
    normalised = state
    if robot.state is not None:
        mean, std = _tensor(robot.state.mean), _tensor(robot.state.std)
        normalised = mean_std_normalize(state, mean, std)
        still = _tensor(robot.state.max - robot.state.min) < 1e-5
        normalised = torch.where(still, state - mean, normalised)
    padding = architecture.max_state_dim - robot.state_dim
    observation = Observation(
        images=images,
        camera_is_present=torch.ones(1, len(slots), dtype=torch.bool),
        prompt_ids=prompt_ids,
        prompt_is_valid=prompt_is_valid,
        state=torch.nn.functional.pad(normalised, (0, padding)),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        theirs = model.sample_actions(model.prefill(observation), noise, config.num_inference_steps)
    theirs = theirs[..., : robot.action_dim].float()
    if robot.action is not None:
        theirs = mean_std_unnormalize(theirs, _tensor(robot.action.mean), _tensor(robot.action.std))
    if robot.representation == "relative":
        anchor = torch.zeros(1, robot.action_dim)
        for dim, is_relative in enumerate(robot.relative):
            if is_relative:
                anchor[:, dim] = state[:, dim]
        theirs = theirs + anchor[:, None]

    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference <= _TOLERANCE:
        raise InternVLAError(
            f"Verification failed: actions of the converted policy differ from those of the source weights by "
            f"{difference:.1e} of the largest action, in {precision}. {_ADVICE}"
        )
    del model
    _compare_tensors(folder, reference)
    return Verification(difference, precision, len(reference.policy_state))


def _compare_tensors(folder: Path, reference: ReferenceCheckpoint) -> None:
    stored = read_header(folder / WEIGHTS)
    different: list[str] = []
    with (folder / WEIGHTS).open(
        "rb"
    ) as file:  # one tensor at a time: a second mapped file would be resident as a whole
        for name, theirs in reference.policy_state.items():
            entry = stored[f"model.{name}"]
            buffer = bytearray(entry.bytes)
            file.seek(entry.start)
            file.readinto(buffer)
            ours = torch.frombuffer(buffer, dtype=torch.uint8)
            if DTYPES[entry.dtype] != theirs.dtype or not torch.equal(ours, theirs.flatten().view(torch.uint8)):
                different.append(name)
    if different:
        listed = "\n  ".join(collapse_indices(different))
        raise InternVLAError(
            f"Verification failed: {len(different)} of {len(reference.policy_state)} tensors are not those of the "
            f"source. {_ADVICE}\n  {listed}"
        )


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
