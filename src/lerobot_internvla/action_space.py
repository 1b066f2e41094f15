"""What a robot's numbers mean to the model: the one owner of normalisation and of relative <-> absolute actions.

    state   [B, D], robot units  -> normalise -> zero-pad                         -> [B, max_state_dim]     the model
    actions [B, K, A], absolute  -> minus state at the chunk's start -> normalise -> zero-pad -> [B, K, max_action_dim]
    and back: cut padding -> un-normalise -> plus state at the chunk's start      -> [B, K, A], absolute, robot units

Actions enter training absolute and leave the policy absolute, on every path (eval, rollout, notebook): nothing outside
this file subtracts or adds a state. "Relative" means relative to the state at the *start of the chunk*, for all K steps
of it, not to the previous step; grippers and listed joints stay absolute.

Statistics are buffers, saved with the weights, always float32 (also under autocast and after ``.to(bfloat16)``).
Formulas as in the reference (model facts 2.9): relative first, then (x - mean) / (std + 1e-6), zeros appended last.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.statistics import FeatureStatistics, Representation, Statistics

logger = logging.getLogger(__name__)

EPSILON = 1e-6
"""Added to every standard deviation, as the reference does."""
CONSTANT_STD = 1e-5
"""A dim whose standard deviation, or whose whole range, is below this (in robot units) does not move: it is an idle
joint, a constant, or noise below any encoder's resolution. Dividing by its standard deviation would amplify the
smallest deviation on the robot up to a million times, so it is centred and scaled by 1 instead."""
DEFAULT_ABSOLUTE_NAMES: tuple[str, ...] = ("gripper",)
"""Joints that stay absolute unless told otherwise: opening a gripper "by 0.3" means nothing to a policy."""


# ----------------------------------------------------------------------------------------------------- pure functions


def mean_std_normalize(
    x: Float[Tensor, "*#any dim"], mean: Float[Tensor, "*#any dim"], std: Float[Tensor, "*#any dim"]
) -> Float[Tensor, "*#any dim"]:
    """(x - mean) / (std + 1e-6), the reference's formula to the last bit when all are float32.

    ``mean`` and ``std`` are one robot's [dim], or broadcast to ``x`` where every sample has its own.
    """
    return (x - mean) / (std + EPSILON)


def mean_std_unnormalize(
    x: Float[Tensor, "*any dim"], mean: Float[Tensor, " dim"], std: Float[Tensor, " dim"]
) -> Float[Tensor, "*any dim"]:
    """Inverse of ``mean_std_normalize``."""
    return x * (std + EPSILON) + mean


def joint_names(feature: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """One name per dim of a LeRobot feature; None where the dataset does not name every dim.

    LeRobot datasets store names as a list, as one or more lists in a dictionary (``{"motors": [...]}``), or as a
    dictionary from name to index.
    """
    if feature is None:
        return None
    names = feature.get("names")
    if isinstance(names, Mapping):
        if names and all(isinstance(value, int) for value in names.values()):
            names = [name for name, _ in sorted(names.items(), key=lambda item: item[1])]
        else:
            names = [name for group in names.values() if isinstance(group, list | tuple) for name in group]
    if not isinstance(names, list | tuple) or len(names) != feature["shape"][-1]:
        return None
    return tuple(str(name) for name in names)


def relative_mask_for(
    action_names: Sequence[str] | None,
    state_names: Sequence[str] | None,
    absolute_names: Sequence[str] = DEFAULT_ABSOLUTE_NAMES,
    *,
    absolute_indices: Sequence[int] | None = None,
    action_dim: int | None = None,
    state_dim: int | None = None,
) -> tuple[bool, ...]:
    """Which action dims are relative to the state: True for every dim but the listed ones.

    Subtracting a state from an action only makes sense when dim i of both is the same joint. Names prove that: every
    relative dim must have the same name in the state. Extra state dims (velocities, say) may follow. Where a dataset
    has no names, or different ones for the same joints, the user vouches for the order by listing indices.

    Args:
        absolute_names: joints that stay absolute: names or parts of names, upper and lower case alike.
        absolute_indices: action dims that stay absolute, instead of names. ``[]`` means: all dims are relative.
        action_dim, state_dim: needed only where the names are unknown.

    Raises:
        InternVLAError: names differ, unknown names without indices, a pattern or an index that matches nothing.
    """
    action_dim = len(action_names) if action_names is not None else action_dim
    state_dim = len(state_names) if state_names is not None else state_dim
    if absolute_indices is not None:
        return _mask_from_indices(absolute_indices, action_dim, state_dim)
    if action_names is None or state_names is None:
        unnamed = [name for name, names in (("action", action_names), ("state", state_names)) if names is None]
        raise InternVLAError(
            "Relative actions need to know which action dim is which joint, but the dataset names no "
            f"{' and no '.join(unnamed)} dims. Check that dim i of action and state is the same joint, then list the "
            "action dims that stay absolute (grippers) by index; an empty list makes all of them relative. Or use "
            "absolute actions."
        )
    patterns = [pattern.lower() for pattern in absolute_names]
    mask = tuple(not any(pattern in name.lower() for pattern in patterns) for name in action_names)
    unused = [
        pattern for pattern in absolute_names if not any(pattern.lower() in name.lower() for name in action_names)
    ]
    if unused and tuple(absolute_names) == DEFAULT_ABSOLUTE_NAMES:
        logger.warning(
            "No action dim has %r in its name (%s): all of them are relative. List the joints that should stay "
            "absolute if one of these is a gripper.",
            DEFAULT_ABSOLUTE_NAMES[0],
            ", ".join(action_names),
        )
    elif unused:
        raise InternVLAError(
            f"No action dim matches {', '.join(map(repr, unused))}, listed as absolute. "
            f"Names: {', '.join(action_names)}."
        )
    state_of = dict(enumerate(state_names))
    if any(relative and state_of.get(dim) != action_names[dim] for dim, relative in enumerate(mask)):
        raise InternVLAError(
            "Relative actions subtract the state from the action dim by dim, but their dims are not the same joints:\n"
            + _side_by_side(action_names, state_names, mask)
            + "\nUse absolute actions, or, if dim i is the same joint under another name, list the action dims that "
            "stay absolute by index: that skips this comparison."
        )
    return mask


def _mask_from_indices(absolute: Sequence[int], action_dim: int | None, state_dim: int | None) -> tuple[bool, ...]:
    if action_dim is None or state_dim is None:
        raise InternVLAError("Listing absolute action dims by index needs action_dim and state_dim.")
    problems: list[str] = []
    if outside := [index for index in absolute if not 0 <= index < action_dim]:
        problems.append(f"indices {outside} are outside 0 to {action_dim - 1}")
    mask = tuple(dim not in absolute for dim in range(action_dim))
    if beyond := [dim for dim in range(state_dim, action_dim) if mask[dim]]:
        problems.append(f"action dims {beyond} would be relative, but the state has only {state_dim} dims")
    if problems:
        raise InternVLAError(f"Absolute action dims {list(absolute)} do not fit the robot: {'; '.join(problems)}.")
    return mask


def _side_by_side(actions: Sequence[str], states: Sequence[str], mask: Sequence[bool]) -> str:
    lines = [f"  {'dim':>3}  {'action':<32}{'state':<32}"]
    for dim, (action, state) in enumerate(zip_longest(actions, states, fillvalue="-")):
        is_relative = dim < len(mask) and mask[dim]
        note = "" if not is_relative else "relative" if action == state else "relative: NOT THE SAME"
        lines.append(f"  {dim:>3}  {action:<32}{state:<32}{note}".rstrip())
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- the module


class ActionSpace(nn.Module):
    """Robot units <-> the model's numbers, for one robot. Parameter-free; the statistics are buffers.

    Args:
        state_dim, action_dim: the robot's dims (D, A).
        max_state_dim, max_action_dim: the model's; the rest is padding, zero in the model's numbers.
        representation: how the model sees actions.
        relative_mask: per action dim, True where it is relative to the same dim of the state (``relative_mask_for``);
            empty for absolute actions.

    NaN or infinite states are not looked for: that would cost a device synchronisation per control tick. They pass
    through the arithmetic and come out as NaN actions.

    Raises:
        InternVLAError: sizes, mask and representation do not fit together; all problems at once.
    """

    state_mean: Float[Tensor, " max_state"]
    state_std: Float[Tensor, " max_state"]
    action_mean: Float[Tensor, " max_action"]
    action_std: Float[Tensor, " max_action"]
    action_is_relative: Bool[Tensor, " max_action"]
    state_dim_is_valid: Bool[Tensor, " max_state"]
    action_dim_is_valid: Bool[Tensor, " max_action"]
    """True for the robot's own dims, False for padding. Both are saved: statistics of a robot with other dims are not
    these statistics."""
    statistics_are_set: Bool[Tensor, ""]

    def __init__(
        self,
        *,
        state_dim: int,
        action_dim: int,
        max_state_dim: int,
        max_action_dim: int,
        representation: Representation,
        relative_mask: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        mask = tuple(bool(value) for value in relative_mask)
        if representation == "absolute" and not mask:
            mask = (False,) * action_dim
        problems: list[str] = []
        for name, dim, limit in (("state", state_dim, max_state_dim), ("action", action_dim, max_action_dim)):
            if not 1 <= dim <= limit:
                problems.append(f"the robot has {dim} {name} dims, the model takes 1 to {limit}")
        if representation not in ("absolute", "relative"):
            problems.append(f"representation {representation!r} is neither 'absolute' nor 'relative'")
        if len(mask) != action_dim:
            problems.append(f"relative_mask has {len(mask)} entries for {action_dim} action dims")
        if representation == "absolute" and any(mask):
            problems.append("absolute actions cannot have relative dims")
        if representation == "relative" and not any(mask):
            problems.append("no dim is relative: these are absolute actions")
        if beyond := [dim for dim, is_relative in enumerate(mask) if is_relative and dim >= state_dim]:
            problems.append(f"action dims {beyond} are relative, but the state has only {state_dim} dims")
        if problems:
            raise InternVLAError("This action space does not fit the robot: " + "; ".join(problems) + ".")
        self.state_dim = state_dim
        self.action_dim = action_dim
        self.max_state_dim = max_state_dim
        self.max_action_dim = max_action_dim
        self.representation: Representation = representation
        self.relative_mask = mask
        self.register_buffer("state_mean", torch.zeros(max_state_dim))
        self.register_buffer("state_std", torch.ones(max_state_dim))
        self.register_buffer("action_mean", torch.zeros(max_action_dim))
        self.register_buffer("action_std", torch.ones(max_action_dim))
        self.register_buffer("action_is_relative", torch.tensor(mask + (False,) * (max_action_dim - action_dim)))
        self.register_buffer("state_dim_is_valid", torch.arange(max_state_dim) < state_dim)
        self.register_buffer("action_dim_is_valid", torch.arange(max_action_dim) < action_dim)
        self.register_buffer("statistics_are_set", torch.tensor(False))
        # The buffer's value on the Python side: asking the buffer itself would synchronise with the device.
        self._ready = False
        self._keeps_own_statistics = False

    # ------------------------------------------------------------------------------------------------------ hot path

    def normalize_state(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch max_state"]:
        """State in robot units -> the model's input. Float32, padded with zeros after normalisation."""
        self._check("state", state, ("B", self.state_dim))
        dim = self.state_dim
        normalised = mean_std_normalize(state.float(), self.state_mean[:dim], self.state_std[:dim])
        return F.pad(normalised, (0, self.max_state_dim - dim))

    def encode_actions(
        self, actions: Float[Tensor, "batch chunk action"], state: Float[Tensor, "batch state"]
    ) -> Float[Tensor, "batch chunk max_action"]:
        """Absolute actions and the state at the chunk's start, in robot units -> what the model learns to produce."""
        self._check("actions", actions, ("B", "K", self.action_dim))
        self._check("state", state, (actions.shape[0], self.state_dim))
        dim = self.action_dim
        offsets = actions.float()
        if self.representation == "relative":
            offsets = offsets - self._anchor(state)
        normalised = mean_std_normalize(offsets, self.action_mean[:dim], self.action_std[:dim])
        return F.pad(normalised, (0, self.max_action_dim - dim))

    def decode_actions(
        self, normalised: Float[Tensor, "batch chunk max_action"], state: Float[Tensor, "batch state"]
    ) -> Float[Tensor, "batch chunk action"]:
        """The model's output and the state at the chunk's start -> absolute actions in robot units.

        The inverse of ``encode_actions``. ``state`` must be the one that the chunk was predicted from, also when a
        step of the chunk is executed later.
        """
        self._check("normalised actions", normalised, ("B", "K", self.max_action_dim))
        self._check("state", state, (normalised.shape[0], self.state_dim))
        dim = self.action_dim
        actions = mean_std_unnormalize(normalised[..., :dim].float(), self.action_mean[:dim], self.action_std[:dim])
        if self.representation == "relative":
            actions = actions + self._anchor(state)
        return actions

    def _anchor(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch 1 action"]:
        """What relative dims are relative to; zero elsewhere, whatever the state holds there."""
        state = F.pad(state.float(), (0, max(0, self.action_dim - self.state_dim)))[:, : self.action_dim]
        # Not state * mask: a NaN in a dim that stays absolute would spread to its action.
        return torch.where(self.action_is_relative[: self.action_dim], state, 0.0)[:, None]

    def _check(self, name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
        """Statistics are there, and ``tensor`` has the expected shape; letters stand for any size. No device access."""
        self.require_statistics()
        shape = tuple(tensor.shape)
        if len(shape) != len(expected) or any(
            isinstance(e, int) and e != s for e, s in zip(expected, shape, strict=True)
        ):
            raise InternVLAError(
                f"The {name} came in shape {list(shape)}, expected [{', '.join(map(str, expected))}]: this policy was "
                f"built for {self.state_dim} state dims and {self.action_dim} action dims (padded to "
                f"{self.max_state_dim} and {self.max_action_dim} inside). Use the robot, dataset or environment that "
                "it was trained on, or train it on this one."
            )

    # ---------------------------------------------------------------------------------------------------- statistics

    def require_statistics(self) -> None:
        """Do nothing, without reading the device, where there are statistics.

        Raises:
            InternVLAError: there are none yet.
        """
        if self._ready:
            return
        # Buffers can be filled behind our back (accelerate, a broadcast): look at the truth once, then remember it.
        self._ready = bool(self.statistics_are_set)
        if not self._ready:
            raise InternVLAError(
                "This policy has no statistics (mean and standard deviation of states and actions), so it can neither "
                "read a state nor produce an action. Expected them from a dataset or from trained weights. Train with "
                "`lerobot-train --policy.type=internvla_a1 --dataset.repo_id=...`, which computes and saves them; or "
                "load a trained checkpoint; or pass dataset_stats; or call action_space.set_identity() if states and "
                "actions are already normalised."
            )

    def set_statistics(self, statistics: Statistics) -> None:
        """Replace the buffers. Dims that do not move (``CONSTANT_STD``) are scaled by 1.

        Raises:
            InternVLAError: the statistics are those of another robot or of another action representation.
        """
        problems: list[str] = []
        for name, found, expected in (
            ("state dims", statistics.state.dim, self.state_dim),
            ("action dims", statistics.action.dim, self.action_dim),
        ):
            if found != expected:
                problems.append(f"they have {found} {name}, the policy has {expected}")
        if statistics.representation != self.representation:
            problems.append(
                f"they describe {statistics.representation} actions, the policy works with {self.representation} ones"
            )
        elif len(statistics.relative_mask) == self.action_dim and statistics.relative_mask != self.relative_mask:
            problems.append(_mask_difference(statistics.relative_mask, self.relative_mask, "in them", "in the policy"))
        if problems:
            raise InternVLAError(
                f"The statistics of {statistics.source} do not fit this policy: {'; '.join(problems)}. Compute them "
                "for this policy: statistics_from_dataset(meta, representation=action_space.representation, "
                "relative_mask=action_space.relative_mask, chunk_size=...)."
            )
        self._fill("state", statistics.state)
        self._fill("action", statistics.action)
        self._declare_set()

    def set_identity(self) -> None:
        """Mean 0 and standard deviation 1: for states and actions that are normalised already (tests, benchmarks).

        Relative dims stay relative.
        """
        with torch.no_grad():
            for name in ("state", "action"):
                self.get_buffer(f"{name}_mean").zero_()
                self.get_buffer(f"{name}_std").fill_(1.0)
        self._declare_set()

    @torch.no_grad()
    def _fill(self, name: str, feature: FeatureStatistics) -> None:
        is_constant = np.minimum(feature.std, feature.max - feature.min) < CONSTANT_STD
        mean, std = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std")
        mean.zero_()[: feature.dim] = torch.from_numpy(feature.mean.astype(np.float32))
        std.fill_(1.0)[: feature.dim] = torch.from_numpy(np.where(is_constant, 1.0, feature.std).astype(np.float32))
        if is_constant.any():
            logger.info("%s dims %s are constant: centred, not scaled.", name, np.flatnonzero(is_constant).tolist())

    def _declare_set(self) -> None:
        self.statistics_are_set.fill_(True)
        self._ready = True

    # ---------------------------------------------------------------------------------------- saving, loading, moving

    @contextmanager
    def keeping_own_statistics(self) -> Iterator[None]:
        """While active, ``load_state_dict`` leaves this module as it is.

        For fine-tuning: the weights come from the checkpoint, the statistics from the new dataset.
        """
        self._keeps_own_statistics = True
        try:
            yield
        finally:
            self._keeps_own_statistics = False

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Refuse statistics of another robot or representation, and statistics that lost their digits in bfloat16."""
        if self._keeps_own_statistics:
            return
        self._refuse_foreign(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if (are_set := state_dict.get(f"{prefix}statistics_are_set")) is not None:
            self._ready = bool(are_set)

    def _refuse_foreign(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        problems: list[str] = []
        stored: dict[str, list[bool]] = {}
        for name in ("action_is_relative", "state_dim_is_valid", "action_dim_is_valid"):
            tensor = state_dict.get(prefix + name)
            if tensor is not None:
                stored[name] = tensor.flatten().tolist()
        for name, dim in (("state", self.state_dim), ("action", self.action_dim)):
            valid = stored.get(f"{name}_dim_is_valid")
            if valid is not None and sum(valid) != dim:
                problems.append(f"they were saved for {sum(valid)} {name} dims, this policy has {dim}")
        mask = stored.get("action_is_relative", [])[: self.action_dim]
        if len(mask) == self.action_dim and tuple(mask) != self.relative_mask:
            problems.append(_mask_difference(mask, self.relative_mask, "in the checkpoint", "in this policy"))
        for name in ("state_mean", "state_std", "action_mean", "action_std"):
            tensor = state_dict.get(prefix + name)
            if tensor is not None and tensor.dtype not in (torch.float32, torch.float64):
                problems.append(f"{name} is stored as {tensor.dtype}, which rounds robot units; expected float32")
        if problems:
            raise InternVLAError(
                f"The statistics in this checkpoint ({prefix}*) do not fit this policy: {'; '.join(problems)}. To use "
                "the checkpoint as it is, keep its action settings, and take the robot or environment that it was "
                "trained for (its dims come from there). To train it on another robot or with another action "
                "representation: lerobot-train --policy.pretrained_path=<checkpoint> --dataset.repo_id=<its data>; in "
                "Python, load the weights inside `with action_space.keeping_own_statistics():` and set statistics "
                "from the new dataset."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ActionSpace":
        """``.to(device)`` moves the buffers; ``.to(bfloat16)`` and ``.half()`` leave them float32.

        bfloat16 has 8 bits: a mean of 3 rad would be off by up to 0.008 rad.
        """

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def extra_repr(self) -> str:
        relative = [dim for dim, is_relative in enumerate(self.relative_mask) if is_relative]
        return (
            f"state {self.state_dim} of {self.max_state_dim}, action {self.action_dim} of {self.max_action_dim}, "
            f"{self.representation}{f' in dims {relative}' if relative else ''}, "
            f"statistics {'set' if self._ready else 'missing'}"
        )


def _mask_difference(found: Sequence[bool], expected: Sequence[bool], there: str, here: str) -> str:
    word = {True: "relative", False: "absolute"}
    return ", ".join(
        f"action dim {dim} is {word[a]} {there} and {word[b]} {here}"
        for dim, (a, b) in enumerate(zip(found, expected, strict=True))
        if a != b
    )
