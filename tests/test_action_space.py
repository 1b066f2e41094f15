"""Actions come back as they went in, mean the same joint, and never meet the wrong statistics."""

import copy
import json
from dataclasses import dataclass

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from lerobot_internvla.action_space import (
    CONSTANT_STD,
    EPSILON,
    ActionSpace,
    joint_names,
    mean_std_normalize,
    mean_std_unnormalize,
    relative_mask_for,
)
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.statistics import FeatureStatistics, Statistics

ARM = ["shoulder", "elbow", "wrist", "gripper"]
ARM_MASK = (True, True, True, False)


def feature(mean, std, count=100) -> FeatureStatistics:
    mean, std = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    return FeatureStatistics(mean, std, mean - 3 * std, mean + 3 * std, count)


def statistics(state, action, relative_mask=()) -> Statistics:
    relative = any(relative_mask)
    return Statistics(
        state=state,
        action=action,
        representation="relative" if relative else "absolute",
        relative_mask=tuple(relative_mask) or (False,) * action.dim,
        chunk_size=8 if relative else None,
        source="a test",
        fingerprint="",
    )


def arm_statistics(relative_mask=ARM_MASK, seed=0) -> Statistics:
    rng = np.random.default_rng(seed)
    return statistics(
        feature(rng.normal(size=4), rng.uniform(0.1, 2, 4)),
        feature(rng.normal(size=4), rng.uniform(0.1, 2, 4)),
        relative_mask,
    )


def arm_space(relative_mask=ARM_MASK, **changes) -> ActionSpace:
    representation = "relative" if any(relative_mask) else "absolute"
    sizes = {"state_dim": 4, "action_dim": 4, "max_state_dim": 6, "max_action_dim": 7}
    return ActionSpace(**(sizes | changes), representation=representation, relative_mask=relative_mask)


def ready_arm(relative_mask=ARM_MASK) -> ActionSpace:
    space = arm_space(relative_mask)
    space.set_statistics(arm_statistics(relative_mask))
    return space


# ---------------------------------------------------------------------------------------------- the reference's numbers


@pytest.fixture(scope="module")
def golden(goldens):
    folder = goldens / "preprocess_state_action"
    return load_file(folder / "state_action.safetensors"), json.loads((folder / "config.json").read_text())


def test_normalisation_is_the_references_to_the_last_bit(golden):
    tensors, _ = golden
    x, mean, std = tensors["norm.x"], tensors["norm.mean_f64"].float(), tensors["norm.std_f64"].float()
    normalised = mean_std_normalize(x, mean, std)
    assert torch.equal(normalised, tensors["norm.mean_std.normalized"])
    restored = mean_std_unnormalize(tensors["norm.mean_std.normalized"], mean, std)
    assert torch.equal(restored, tensors["norm.mean_std.unnormalized"])


def test_the_module_differs_from_the_reference_only_in_dims_that_do_not_move(golden):
    tensors, _ = golden
    x, mean, std = (tensors[f"norm.{name}"] for name in ("x", "mean_f64", "std_f64"))
    is_constant = std < CONSTANT_STD
    assert is_constant.nonzero().flatten().tolist() == [3, 7]  # standard deviations 0 and 1e-7
    space = ActionSpace(state_dim=14, action_dim=14, max_state_dim=32, max_action_dim=32, representation="absolute")
    space.set_statistics(statistics(feature(mean, std), feature(mean, std)))
    for out in (space.normalize_state(x), space.encode_actions(x[None], x[:1])[0]):
        expected = tensors["norm.mean_std.normalized"]
        torch.testing.assert_close(out[:, :14][:, ~is_constant], expected[:, ~is_constant], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            out[:, :14][:, is_constant], (x - mean.float())[:, is_constant] / (1 + EPSILON), rtol=1e-6, atol=1e-6
        )
        assert not out[:, 14:].any()


@pytest.mark.parametrize("robot", ["aloha", "arx_lift2", "genie1", "a2d", "franka"])
def test_relative_actions_and_padding_are_the_references(golden, robot):
    tensors, config = golden
    case = config["state_action"][f"delta.{robot}"]
    inputs = {
        name: torch.cat(
            [tensors[f"delta.{robot}.in.{key}"].reshape(*shape, -1) for key in case["mapping"][name]], dim=-1
        )
        for name, shape in (("observation.state", ()), ("action", (10,)))
    }
    state, actions = inputs["observation.state"][None], inputs["action"][None]
    dim = sum(case["dims"])
    space = ActionSpace(
        state_dim=dim,
        action_dim=dim,
        max_state_dim=32,
        max_action_dim=32,
        representation="relative",
        relative_mask=[bool(value) for value in case["mask"]],
    )
    unscaled = feature(np.zeros(dim), np.full(dim, 1 - EPSILON))  # x / (std + epsilon) is x
    space.set_statistics(statistics(unscaled, unscaled, space.relative_mask))
    torch.testing.assert_close(
        space.encode_actions(actions, state)[0], tensors[f"delta.{robot}.padded.action"], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        space.normalize_state(state)[0], tensors[f"delta.{robot}.padded.state"], rtol=0, atol=1e-6
    )
    assert space.action_is_relative[:dim].tolist() == tensors[f"delta.{robot}.mask"].tolist()
    restored = space.decode_actions(tensors[f"delta.{robot}.padded.action"][None], state)
    torch.testing.assert_close(restored, actions, rtol=0, atol=1e-6)


def test_the_whole_chain_on_a_franka_sample_is_the_references(goldens):
    """Relative, then normalised per key, then concatenated, then padded."""
    tensors = load_file(goldens / "preprocess_state_action" / "pipeline_3b.safetensors")

    def joined(pattern: str) -> torch.Tensor:
        return torch.cat([tensors[pattern.format(part)] for part in ("joint", "gripper")], dim=-1)

    state, actions = joined("in.states.{}.position"), joined("in.actions.{}.position")
    mask = (True,) * 7 + (False,)
    space = ActionSpace(
        state_dim=8,
        action_dim=8,
        max_state_dim=32,
        max_action_dim=32,
        representation="relative",
        relative_mask=mask,
    )
    of_state, of_action = (
        feature(joined(f"stats.{kind}.{{}}.position.mean"), joined(f"stats.{kind}.{{}}.position.std"))
        for kind in ("states", "actions")
    )
    space.set_statistics(statistics(of_state, of_action, mask))
    torch.testing.assert_close(
        space.normalize_state(state[None])[0], tensors["out.observation.state"], rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        space.encode_actions(actions[None], state[None])[0], tensors["out.action"], rtol=1e-6, atol=1e-6
    )


# ---------------------------------------------------------------------------------------------------------- properties


@dataclass(frozen=True)
class Robot:
    """A ready action space, and states and actions of the size that its statistics speak of."""

    space: ActionSpace
    scale: float
    rng: np.random.Generator

    @classmethod
    def drawn(cls, seed: int, scale: float) -> "Robot":
        rng = np.random.default_rng(seed)
        state_dim, action_dim = rng.integers(1, 9, size=2).tolist()
        mask = [bool(dim < state_dim and rng.integers(2)) for dim in range(action_dim)]
        space = ActionSpace(
            state_dim=state_dim,
            action_dim=action_dim,
            max_state_dim=state_dim + int(rng.integers(5)),
            max_action_dim=action_dim + int(rng.integers(5)),
            representation="relative" if any(mask) else "absolute",
            relative_mask=mask,
        )
        state, action = (
            feature(scale * rng.normal(size=dim), scale * rng.uniform(0.05, 2, size=dim))
            for dim in (state_dim, action_dim)
        )
        space.set_statistics(statistics(state, action, mask))
        return cls(space, scale, rng)

    def sample(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.scale * self.rng.normal(size=shape)).float()


seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e-2, 1.0, 300.0])


@settings(deadline=None, max_examples=60)
@given(seed=seeds, scale=scales, batch=st.integers(1, 3), chunk=st.integers(1, 5))
def test_decoding_undoes_encoding(seed, scale, batch, chunk):
    robot = Robot.drawn(seed, scale)
    space = robot.space
    actions, state = robot.sample(batch, chunk, space.action_dim), robot.sample(batch, space.state_dim)
    encoded = space.encode_actions(actions, state)
    assert encoded.shape == (batch, chunk, space.max_action_dim)
    assert not encoded[..., space.action_dim :].any()
    assert not space.normalize_state(state)[:, space.state_dim :].any()
    torch.testing.assert_close(space.decode_actions(encoded, state), actions, rtol=1e-5, atol=1e-5 * scale)


@settings(deadline=None, max_examples=60)
@given(seed=seeds, scale=scales)
def test_relative_dims_move_with_the_robot_and_absolute_dims_do_not(seed, scale):
    robot = Robot.drawn(seed, scale)
    space = robot.space
    actions, state, shift = (
        robot.sample(*shape) for shape in ((2, 4, space.action_dim), (2, space.state_dim), (2, space.state_dim))
    )
    is_relative = space.action_is_relative[: space.action_dim]
    normalised = space.encode_actions(actions, state)
    decoded = space.decode_actions(normalised, state + shift)
    # Absolute dims: not a bit of the state reaches them, in either direction.
    from_elsewhere = space.encode_actions(actions, state + shift)
    absolute = ~is_relative
    assert torch.equal(
        from_elsewhere[..., : space.action_dim][..., absolute], normalised[..., : len(absolute)][..., absolute]
    )
    assert torch.equal(decoded[..., absolute], space.decode_actions(normalised, state)[..., absolute])
    # Relative dims: the same offsets from another start end just as far away.
    for dim in is_relative.nonzero().flatten().tolist():
        expected = actions[..., dim] + shift[:, None, dim]
        torch.testing.assert_close(decoded[..., dim], expected, rtol=1e-5, atol=1e-5 * scale)


def test_every_step_of_the_chunk_has_the_same_anchor():
    space = ready_arm()
    state = torch.randn(2, 4)
    same_target = torch.randn(2, 1, 4).expand(2, 5, 4)
    encoded = space.encode_actions(same_target, state)
    assert torch.equal(encoded, encoded[:, :1].expand_as(encoded))


def test_a_broken_gripper_reading_does_not_reach_the_gripper_command():
    space = ready_arm()
    state = torch.randn(1, 4)
    state[0, 3] = torch.nan
    actions = space.decode_actions(torch.zeros(1, 2, 7), state)
    assert torch.isfinite(actions).all()
    state[0, 0] = torch.nan  # a joint the actions are relative to: NaN in, NaN out
    assert torch.isnan(space.decode_actions(torch.zeros(1, 2, 7), state)[..., 0]).all()


def test_a_joint_that_never_moved_is_centred_but_not_blown_up():
    still = feature([0.5, 3.0, -1.0, 2.0], [0.0, 1e-7, 0.9 * CONSTANT_STD, 1.0])
    rounding = FeatureStatistics(still.mean, still.std + 7e-4, still.mean, still.mean, 10)  # float32 statistics
    for action in (still, rounding):
        space = arm_space(relative_mask=(False,) * 4)
        space.set_statistics(statistics(still, action))
        state = torch.tensor([[0.6, 3.1, -0.9, 3.0]])
        torch.testing.assert_close(space.normalize_state(state)[0, :3], torch.full((3,), 0.1), rtol=1e-3, atol=0)
        encoded = space.encode_actions(state[:, None], state)
        torch.testing.assert_close(encoded[0, 0, :3], torch.full((3,), 0.1), rtol=1e-3, atol=0)
        torch.testing.assert_close(space.decode_actions(encoded, state)[:, 0], state)


def test_padding_is_declared():
    space = arm_space()
    assert space.action_dim_is_valid.tolist() == [True] * 4 + [False] * 3
    assert space.action_is_relative.tolist() == [True, True, True, False] + [False] * 3


def test_numbers_stay_float32_whatever_surrounds_them():
    space = ready_arm()
    actions, state = torch.randn(2, 3, 4) + 3, torch.randn(2, 4) + 3
    expected = space.encode_actions(actions, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(space.encode_actions(actions, state), expected)
    policy = nn.ModuleDict({"space": space, "layer": nn.Linear(2, 2)}).to(torch.bfloat16)
    assert policy["layer"].weight.dtype == torch.bfloat16
    assert torch.equal(space.encode_actions(actions, state), expected)
    assert torch.equal(space.half().encode_actions(actions, state), expected)
    assert space.normalize_state(state.double()).dtype == torch.float32
    assert space.decode_actions(expected.bfloat16(), state).dtype == torch.float32
    assert space.to("meta").action_mean.device.type == "meta"  # devices still change


def test_the_hot_path_compiles_without_a_graph_break(monkeypatch):
    space = ready_arm()
    actions, state = torch.randn(2, 3, 4), torch.randn(2, 4)

    def there_and_back(actions, state):
        return space.normalize_state(state), space.decode_actions(space.encode_actions(actions, state), state)

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the shape checker itself breaks graphs
    compiled = torch.compile(there_and_back, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(actions, state)[1], actions)
    torch.compiler.reset()


# ----------------------------------------------------------------------------------------------------- wrong statistics


def test_without_statistics_nothing_works_and_the_error_says_what_to_do():
    space = arm_space()
    state, chunk = torch.zeros(1, 4), torch.zeros(1, 2, 4)
    for use in (
        lambda: space.normalize_state(state),
        lambda: space.encode_actions(chunk, state),
        lambda: space.decode_actions(torch.zeros(1, 2, 7), state),
    ):
        with pytest.raises(InternVLAError, match=r"no statistics.*lerobot-train.*dataset_stats.*set_identity"):
            use()
    space.set_identity()
    torch.testing.assert_close(space.normalize_state(state + 2)[0, :4], torch.full((4,), 2.0), rtol=2e-6, atol=0)
    torch.testing.assert_close(space.encode_actions(chunk + 5, state + 2)[0, 0, :4], torch.tensor([3.0, 3, 3, 5]))


def test_relative_and_absolute_statistics_cannot_be_mixed_up():
    absolute = (False,) * 4
    with pytest.raises(InternVLAError, match="describe absolute actions, the policy works with relative ones"):
        arm_space().set_statistics(arm_statistics(relative_mask=absolute))
    with pytest.raises(InternVLAError, match="describe relative actions, the policy works with absolute ones"):
        arm_space(absolute).set_statistics(arm_statistics())
    with pytest.raises(
        InternVLAError,
        match="action dim 0 is absolute in them and relative in the policy, "
        "action dim 3 is relative in them and absolute in the policy",
    ):
        arm_space().set_statistics(arm_statistics(relative_mask=(False, True, True, True)))
    space = arm_space()
    with pytest.raises(InternVLAError, match=r"4 action dims.*"):
        arm_space(relative_mask=(*ARM_MASK, False), action_dim=5).set_statistics(arm_statistics())
    assert not space.statistics_are_set


def test_a_checkpoint_brings_its_statistics(tmp_path):
    trained = ready_arm()
    save_model(nn.ModuleDict({"action_space": trained}), str(tmp_path / "model.safetensors"))
    loaded = arm_space()
    missing, unexpected = load_model(nn.ModuleDict({"action_space": loaded}), str(tmp_path / "model.safetensors"))
    assert not missing
    assert not unexpected
    actions, state = torch.randn(2, 3, 4), torch.randn(2, 4)
    assert torch.equal(loaded.encode_actions(actions, state), trained.encode_actions(actions, state))
    assert torch.equal(copy.deepcopy(loaded).normalize_state(state), trained.normalize_state(state))
    loaded.load_state_dict(arm_space().state_dict())  # a checkpoint without statistics takes them away again
    with pytest.raises(InternVLAError, match="no statistics"):
        loaded.normalize_state(state)


def test_buffers_filled_from_outside_are_noticed():
    space, trained = arm_space(), ready_arm()
    for name, buffer in trained.named_buffers():
        space.get_buffer(name).copy_(buffer)
    state = torch.randn(1, 4)
    assert torch.equal(space.normalize_state(state), trained.normalize_state(state))


def test_a_checkpoint_of_another_action_space_is_refused_by_name():
    absolute = arm_space((False,) * 4)
    with pytest.raises(InternVLAError, match=r"action dim 1 is relative in the checkpoint and absolute in this policy"):
        absolute.load_state_dict(ready_arm().state_dict())
    assert not absolute.statistics_are_set
    other_robot = arm_space(relative_mask=ARM_MASK[:3], action_dim=3, state_dim=3)
    with pytest.raises(InternVLAError, match=r"4 state dims, this policy has 3; .* 4 action dims, this policy has 3"):
        nn.ModuleDict({"action_space": other_robot}).load_state_dict(
            nn.ModuleDict({"action_space": ready_arm()}).state_dict()
        )
    rounded = {
        name: buffer.bfloat16() if buffer.is_floating_point() else buffer
        for name, buffer in ready_arm().state_dict().items()
    }
    with pytest.raises(InternVLAError, match=r"action_mean is stored as torch\.bfloat16"):
        arm_space().load_state_dict(rounded)


def test_fine_tuning_takes_the_weights_and_keeps_the_new_datasets_statistics():
    space = arm_space((False,) * 4)
    space.set_statistics(arm_statistics((False,) * 4, seed=9))
    policy = nn.ModuleDict({"action_space": space, "layer": nn.Linear(2, 2)})
    base = nn.ModuleDict({"action_space": ready_arm(), "layer": nn.Linear(2, 2)})
    before = copy.deepcopy(space.state_dict())
    with space.keeping_own_statistics():
        policy.load_state_dict(base.state_dict(), strict=True)
    assert torch.equal(policy.get_parameter("layer.weight"), base.get_parameter("layer.weight"))
    assert all(torch.equal(before[name], buffer) for name, buffer in space.state_dict().items())
    with pytest.raises(InternVLAError):
        policy.load_state_dict(base.state_dict())


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("use", "found", "expected"),
    [
        (lambda space: space.normalize_state(torch.zeros(2, 7)), "[2, 7]", "[B, 4]"),
        (lambda space: space.normalize_state(torch.zeros(2, 40)), "[2, 40]", "[B, 4]"),
        (lambda space: space.encode_actions(torch.zeros(2, 3, 6), torch.zeros(2, 4)), "[2, 3, 6]", "[B, K, 4]"),
        (lambda space: space.decode_actions(torch.zeros(2, 3, 4), torch.zeros(2, 4)), "[2, 3, 4]", "[B, K, 7]"),
    ],
)
def test_wrong_dims_are_named_with_the_expected_ones(use, found, expected):
    with pytest.raises(InternVLAError) as error:
        use(ready_arm())
    assert found in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "use",
    [
        lambda space: space.normalize_state(torch.zeros(2, 3, 4)),  # a stack of states over time
        lambda space: space.encode_actions(torch.zeros(2, 4), torch.zeros(2, 4)),
        lambda space: space.encode_actions(torch.zeros(2, 3, 4), torch.zeros(1, 4)),  # must not broadcast
        lambda space: space.decode_actions(torch.zeros(2, 3, 7), torch.zeros(1, 4)),
    ],
)
def test_wrong_axes_are_refused(use):
    with pytest.raises((InternVLAError, TypeCheckError)):  # the latter only under pytest's shape checker
        use(ready_arm())


def test_a_robot_that_does_not_fit_is_told_every_reason():
    with pytest.raises(InternVLAError) as error:
        ActionSpace(
            state_dim=2,
            action_dim=33,
            max_state_dim=32,
            max_action_dim=32,
            representation="absolute",
            relative_mask=(False, False, True),
        )
    for problem in (
        "33 action dims, the model takes 1 to 32",
        "relative_mask has 3 entries for 33",
        "absolute actions cannot have relative dims",
        "action dims [2] are relative, but the state has only 2 dims",
    ):
        assert problem in str(error.value)
    with pytest.raises(InternVLAError, match="no dim is relative"):
        ActionSpace(
            state_dim=2,
            action_dim=2,
            max_state_dim=4,
            max_action_dim=4,
            representation="relative",
            relative_mask=(False, False),
        )


# ---------------------------------------------------------------------------------------------------- which joint is it


def test_grippers_and_listed_joints_stay_absolute():
    names = ["left_arm_0", "left_arm_1", "Left_Gripper.pos", "right_arm_0", "right_arm_1", "right_gripper.pos"]
    assert relative_mask_for(names, names) == (True, True, False, True, True, False)
    assert relative_mask_for(names, names, ["gripper", "right_arm_1"]) == (True, True, False, True, False, False)
    assert relative_mask_for(names, names, []) == (True,) * 6


def test_extra_state_dims_may_follow_the_joints():
    assert relative_mask_for(ARM, [*ARM, "shoulder_velocity", "elbow_velocity"]) == ARM_MASK


def test_a_dim_that_stays_absolute_needs_no_partner_in_the_state():
    assert relative_mask_for(ARM, ARM[:3]) == ARM_MASK
    assert relative_mask_for(ARM, [*ARM[:3], "finger_width"]) == ARM_MASK


@pytest.mark.parametrize(
    "state", [["elbow", "shoulder", "wrist", "gripper"], ["shoulder", "elbow"], ["base", *ARM], ["x", "y", "z", "w"]]
)
def test_different_joints_are_listed_side_by_side(state):
    with pytest.raises(InternVLAError) as error:
        relative_mask_for(ARM, state)
    lines = str(error.value).splitlines()
    assert any("NOT THE SAME" in line for line in lines)
    for dim, action in enumerate(ARM):
        partner = state[dim] if dim < len(state) else "-"
        assert any(line.split()[:3] == [str(dim), action, partner] for line in lines)


def test_unknown_names_need_explicit_indices():
    with pytest.raises(InternVLAError, match="names no action and no state dims"):
        relative_mask_for(None, None, action_dim=4, state_dim=4)
    with pytest.raises(InternVLAError, match="names no state dims"):
        relative_mask_for(ARM, None, state_dim=4)
    assert relative_mask_for(None, None, absolute_indices=[3], action_dim=4, state_dim=6) == ARM_MASK
    assert relative_mask_for(ARM, ["a", "b", "c", "d"], absolute_indices=[3]) == ARM_MASK  # the user vouches
    with pytest.raises(InternVLAError) as error:
        relative_mask_for(None, None, absolute_indices=[9], action_dim=4, state_dim=3)
    assert "indices [9] are outside 0 to 3" in str(error.value)
    assert "action dims [3] would be relative, but the state has only 3 dims" in str(error.value)
    with pytest.raises(InternVLAError, match="needs action_dim and state_dim"):
        relative_mask_for(None, None, absolute_indices=[])


def test_a_pattern_that_matches_nothing_is_a_typo(caplog):
    with pytest.raises(InternVLAError, match=r"No action dim matches 'griper'.*shoulder, elbow"):
        relative_mask_for(ARM, ARM, ["griper"])
    arm = ARM[:3]
    assert relative_mask_for(arm, arm) == (True, True, True)  # the default on an arm without a gripper: said aloud
    assert "all of them are relative" in caplog.text


def test_names_are_found_however_a_dataset_spells_them():
    assert joint_names({"shape": (2,), "names": ["a", "b"]}) == ("a", "b")
    assert joint_names({"shape": (2,), "names": {"motors": ["a", "b"]}}) == ("a", "b")
    assert joint_names({"shape": (3,), "names": {"left": ["a"], "right": ["b", "c"]}}) == ("a", "b", "c")
    assert joint_names({"shape": (2,), "names": {"b": 1, "a": 0}}) == ("a", "b")
    for unnamed in (None, {"shape": (2,)}, {"shape": (2,), "names": None}, {"shape": (2,), "names": ["action"]}):
        assert joint_names(unnamed) is None
