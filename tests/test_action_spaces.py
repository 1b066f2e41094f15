"""Several robots in one batch: every sample gets exactly what its own robot's action space gives it."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lerobot_internvla.action_space import ActionSpace
from lerobot_internvla.action_spaces import ActionSpaces
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.statistics import FeatureStatistics, Statistics

S, A, K = 9, 8, 5
ORDER = ("arm", "people", "slider", "crane")


def statistics(space: ActionSpace, seed: int) -> Statistics:
    draw = np.random.default_rng(seed)

    def feature(dim: int) -> FeatureStatistics:
        mean, std = draw.normal(0, 3, dim), draw.uniform(0.1, 2, dim)
        return FeatureStatistics(mean, std, mean - 9, mean + 9, 100)

    return Statistics(
        state=feature(space.state_dim),
        action=feature(space.action_dim),
        representation=space.representation,
        relative_mask=space.relative_mask,
        chunk_size=K if space.representation == "relative" else None,
        source="drawn",
        fingerprint=str(seed),
    )


def space(state_dim: int, action_dim: int, relative: tuple[bool, ...] = (), seed: int | None = 0) -> ActionSpace:
    representation = "relative" if relative else "absolute"
    made = ActionSpace(
        state_dim=state_dim,
        action_dim=action_dim,
        max_state_dim=S,
        max_action_dim=A,
        representation=representation,
        relative_mask=relative,
    )
    if seed is not None:
        made.set_statistics(statistics(made, seed))
    return made


def spaces(order: tuple[str, ...] = ORDER, *, seed: int | None = 0) -> ActionSpaces:
    """A relative robot with more state than action, an absolute one with less, and a relative one of full width."""
    robots = {
        "arm": space(5, 4, (True, True, True, False), seed),
        "slider": space(2, 3, (), None if seed is None else seed + 1),
        "crane": space(9, 8, (True,) * 7 + (False,), None if seed is None else seed + 2),
    }
    return ActionSpaces(
        order, {name: robots[name] for name in order if name in robots}, max_state_dim=S, max_action_dim=A
    )


def mixed_batch(known: ActionSpaces, names: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """State [B, S] and actions [B, K, A], padded with zeros, and the robots [B]."""
    generator = torch.Generator().manual_seed(3)
    state, actions = torch.zeros(len(names), S), torch.zeros(len(names), K, A)
    for row, name in enumerate(names):
        if name != "people":
            own = known.of(name)
            state[row, : own.state_dim] = 4 * torch.randn(own.state_dim, generator=generator)
            actions[row, :, : own.action_dim] = 4 * torch.randn(K, own.action_dim, generator=generator)
    return state, actions, torch.tensor([known.order.index(name) for name in names])


NAMES = ["slider", "arm", "people", "crane", "arm", "people", "slider"]


def test_every_sample_gets_what_its_own_robot_gives_bit_for_bit():
    known = spaces()
    state, actions, robot = mixed_batch(known, NAMES)
    encoded, normalised = known.encode_actions(actions, state, robot), known.normalize_state(state, robot)
    valid = known.action_dim_is_valid(robot)
    assert encoded.shape == (len(NAMES), K, A) and normalised.shape == (len(NAMES), S)
    for row, name in enumerate(NAMES):
        if name == "people":
            continue
        own = known.of(name)
        its_state, its_actions = state[row : row + 1, : own.state_dim], actions[row : row + 1, :, : own.action_dim]
        assert torch.equal(encoded[row : row + 1], own.encode_actions(its_actions, its_state))
        assert torch.equal(normalised[row : row + 1], own.normalize_state(its_state))
        assert torch.equal(valid[row], own.action_dim_is_valid)
        assert not torch.equal(encoded[row, :, : own.action_dim], its_actions[0]), "statistics must have an effect"


def test_a_robot_without_actions_is_all_padding_whatever_its_sample_holds():
    known = spaces()
    robot = torch.tensor([ORDER.index("people")] * 2)
    state = torch.full((2, S), torch.nan)
    assert torch.equal(known.normalize_state(state, robot), torch.zeros(2, S))
    assert torch.equal(known.encode_actions(torch.ones(2, K, A), state, robot), torch.zeros(2, K, A))
    assert not known.action_dim_is_valid(robot).any()


def test_padding_stays_zero_even_if_a_sample_is_not():
    known = spaces()
    robot = torch.tensor([ORDER.index("slider")])
    dirty_state, dirty = torch.full((1, S), 7.0), torch.full((1, K, A), 7.0)
    assert known.normalize_state(dirty_state, robot)[0, 2:].eq(0).all()
    assert known.encode_actions(dirty, dirty_state, robot)[0, :, 3:].eq(0).all()


def test_a_policy_of_people_alone_has_no_rows_and_works():
    known = ActionSpaces(("people", "hands"), {}, max_state_dim=S, max_action_dim=A)
    robot = torch.tensor([1, 0])
    assert known.state_dict() == {}
    assert torch.equal(known.normalize_state(torch.ones(2, S), robot), torch.zeros(2, S))
    assert torch.equal(known.encode_actions(torch.ones(2, K, A), torch.ones(2, S), robot), torch.zeros(2, K, A))
    assert known.action_dim_is_valid(robot).dtype == torch.bool


def test_an_unknown_robot_and_one_without_actions_are_different_mistakes():
    known = spaces()
    with pytest.raises(InternVLAError, match=r"'lift' is unknown.*arm, slider, crane"):
        known.of("lift")
    with pytest.raises(InternVLAError, match="'people' is known from videos only"):
        known.of("people")


def test_widths_other_than_the_padded_ones_are_refused():
    known = spaces()
    state, actions, robot = mixed_batch(known, NAMES)
    with pytest.raises(InternVLAError, match=f"state of a mixed batch have 5 dims, expected {S}"):
        known.normalize_state(state[:, :5], robot)
    with pytest.raises(InternVLAError, match=f"actions of a mixed batch have 4 dims, expected {A}"):
        known.encode_actions(actions[..., :4], state, robot)
    with pytest.raises(InternVLAError, match=f"state of a mixed batch have 5 dims, expected {S}"):
        known.encode_actions(actions, state[:, :5], robot)


def test_robots_that_do_not_fit_together_are_refused_at_once():
    narrow = ActionSpace(state_dim=2, action_dim=2, max_state_dim=4, max_action_dim=4, representation="absolute")
    with pytest.raises(InternVLAError, match=r"not in the list of robots: \['lift'\].*other dims.*\['narrow'\]"):
        ActionSpaces(("narrow",), {"narrow": narrow, "lift": space(2, 2)}, max_state_dim=S, max_action_dim=A)


def test_without_statistics_nothing_is_normalised():
    known = spaces(seed=None)
    state, actions, robot = mixed_batch(known, NAMES)
    with pytest.raises(InternVLAError, match="no statistics"):
        known.normalize_state(state, robot)
    with pytest.raises(InternVLAError, match="no statistics"):
        known.encode_actions(actions, state, robot)


def test_rows_are_saved_and_loaded_by_name_in_any_order():
    known = spaces()
    stored = known.state_dict()
    assert {name.split(".")[1] for name in stored} == {"arm", "slider", "crane"}
    assert "robots.arm.action_mean" in stored
    turned = spaces(("crane", "slider", "people", "arm"), seed=None)
    turned.load_state_dict(stored)
    state, actions, robot = mixed_batch(known, NAMES)
    theirs = torch.tensor([turned.order.index(name) for name in NAMES])
    assert not torch.equal(robot, theirs)
    assert torch.equal(turned.encode_actions(actions, state, theirs), known.encode_actions(actions, state, robot))
    assert torch.equal(turned.normalize_state(state, theirs), known.normalize_state(state, robot))


def test_statistics_of_another_robot_are_not_loaded_as_ones_own():
    stored = spaces().state_dict()
    swapped = {
        name.replace("arm", "X").replace("slider", "arm").replace("X", "slider"): t for name, t in stored.items()
    }
    with pytest.raises(InternVLAError):
        spaces(seed=None).load_state_dict(swapped)


def test_inside_a_peft_wrapper_the_copy_that_is_saved_is_the_one_that_is_used():
    from peft.utils import ModulesToSaveWrapper

    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces()

    policy, plain = Policy(), spaces()
    state, actions, robot = mixed_batch(plain, NAMES)
    expected = plain.encode_actions(actions, state, robot)
    wrapper = ModulesToSaveWrapper(policy.action_space, "default")
    policy.action_space = wrapper
    assert torch.equal(wrapper.encode_actions(actions, state, robot), expected)
    assert torch.equal(wrapper.normalize_state(state, robot), plain.normalize_state(state, robot))
    assert wrapper.of("slider").action_dim == 3
    changed = copy.deepcopy(statistics(plain.of("arm"), 99))
    wrapper.of("arm").set_statistics(changed)
    plain.of("arm").set_statistics(changed)
    assert torch.equal(wrapper.encode_actions(actions, state, robot), plain.encode_actions(actions, state, robot))
    assert not torch.equal(wrapper.encode_actions(actions, state, robot), expected)
