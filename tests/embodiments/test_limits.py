"""Whose limits are taken, and when nobody's are; what the presets say."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_internvla.embodiments.limits import HOW_TO_LIMIT, beyond_limits, find_limits, has_limits
from lerobot_internvla.embodiments.registry import get_embodiment, presets
from lerobot_internvla.embodiments.rows import Row
from lerobot_internvla.embodiments.spec import Dim, Embodiment, Part
from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.testing import tiny_config

SO101 = get_embodiment("so101").action_names
LIFT = 1


def robot(name: str, *dims: Dim) -> Embodiment:
    return Embodiment(
        name=name,
        title=name,
        robot_types=(),
        state=(Part("observation.state", tuple(Dim(dim.name, dim.unit) for dim in dims)),),
        action=(Part("action", dims),),
        cameras={"head": ("top",)},
        gripper="There is none.",
        fps=30.0,
        source="this test",
    )


def several(*robots: Embodiment):
    rows = {one.name: Row(one, 30.0).to_dict() for one in robots}
    return tiny_config(embodiments=rows, foresight_interval_s=0.5)


def test_the_robots_type_and_joints_tell_and_of_several_presets_the_loosest_bounds_act(monkeypatch: pytest.MonkeyPatch):
    """LeRobot calls both SO arms so_follower."""
    found = find_limits(tiny_config(), SO101, robot_type="so_follower")
    assert found.limits is not None and found.limits.source == "preset so100 and so101, the loosest of both"
    lift = found.limits.joints[LIFT]
    assert (lift.name, lift.low, lift.high, lift.speed) == ("shoulder_lift.pos", -115.0, 115.0, 300.0)

    so100 = get_embodiment("so100")
    dims = [replace(dim, range=(-130.0, None), speed=None) for dim in so100.action_dims]
    monkeypatch.setitem(presets(), "so100", replace(so100, action=(Part("action", tuple(dims)),)))
    found = find_limits(tiny_config(), SO101, robot_type="so_follower")
    assert found.limits is not None
    lift = found.limits.joints[LIFT]
    assert (lift.low, lift.high, lift.speed) == (-130.0, float("inf"), float("inf"))


def test_the_order_is_that_of_the_commands_and_names_are_compared_without_what_lerobot_adds():
    backend = BACKENDS["conveyor_mujoco"]
    names = [f"{name}.pos" for name in reversed(backend.action_names)]
    found = find_limits(tiny_config(), names, robot_type="conveyor_mujoco")
    assert found.limits is not None
    assert [joint.name for joint in found.limits.joints] == names
    assert [joint.low for joint in found.limits.joints] == pytest.approx(backend.action_low[::-1])
    assert [joint.high for joint in found.limits.joints] == pytest.approx(backend.action_high[::-1])


@pytest.mark.parametrize("name", list(BACKENDS))
def test_the_simulated_robots_have_the_ranges_of_their_worlds(name: str):
    backend = BACKENDS[name]
    for dim, low, high in zip(get_embodiment(name).action_dims, backend.action_low, backend.action_high, strict=True):
        assert dim.range == pytest.approx((low, high))


@pytest.mark.parametrize("name", ["so100", "so101", "bi_so", "lekiwi"])
def test_an_so_arm_that_was_recorded_from_minus_100_to_100_is_not_cut(name: str):
    for dim in get_embodiment(name).action_dims:
        if dim.unit == "deg":
            assert dim.range is not None and dim.range[0] <= -100 and dim.range[1] >= 100


def test_what_embodiment_names_comes_before_the_type(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    text = (Path(__file__).parents[2] / "src/lerobot_internvla/embodiments/presets/so101.yaml").read_text()
    path.write_text(text.replace("[-115, 115]", "[-45, 45]").replace("name: so101", "name: mine"))
    found = find_limits(tiny_config(embodiment=str(path)), SO101, robot_type="so_follower")
    assert (
        found.limits is not None and found.limits.joints[LIFT].high == 45 and found.limits.source == "embodiment mine"
    )
    assert find_limits(tiny_config(embodiment="koch"), SO101, robot_type="so_follower").text == (
        "embodiment koch has none"
    ), "the one who names the robot knows it"
    with pytest.raises(InternVLAError, match=r"takes a, b\. Its action limits are those of other joints"):
        find_limits(tiny_config(embodiment="so101"), ["a", "b"])
    with pytest.raises(InternVLAError, match="did you mean 'so101'"):
        find_limits(tiny_config(embodiment="so-1O1"), SO101)


def test_switched_off():
    found = find_limits(tiny_config(limit_actions=False, embodiment="so101"), SO101, robot_type="so101")
    assert found.limits is None and "policy.limit_actions=false" in found.text and not found.advice


@pytest.mark.parametrize(
    ("names", "robot_type", "why"),
    [
        (("a", "b"), "so_follower", "type 'so_follower' with these joints"),
        (SO101, "koch_follower", "type 'koch_follower' with these joints"),
        (SO101, "somebody's own", 'type "somebody\'s own" with these joints'),
        (SO101, None, "nobody says which robot this is"),
    ],
    ids=["other joints", "a preset without limits", "an unknown robot", "no type"],
)
def test_nobody_guesses(names: tuple[str, ...], robot_type: str | None, why: str):
    """An SO arm and a Koch have joints of the same names and other units."""
    found = find_limits(tiny_config(), names, robot_type=robot_type)
    assert found.limits is None and why in found.text and found.advice == HOW_TO_LIMIT


def test_a_policy_of_several_robots_takes_those_of_the_one_it_drives():
    slow = robot("slow", Dim("a", "rad", speed=0.1), Dim("b", "rad"))
    wide = robot("wide", Dim("a", "rad", range=(-9.0, 9.0)), Dim("b", "rad"))
    config = several(slow, wide)
    found = find_limits(config, ["b.pos", "a.pos"], robot="slow")
    assert found.limits is not None and found.limits.joints[1].speed == 0.1
    assert found.text == "robot slow of the policy: a.pos 0.1 rad/s; unlimited: b.pos"
    found = find_limits(config, ["x", "y"], robot="wide", robot_type="so101")
    assert found.limits is None and "has limits for a, b, and the one at hand takes x, y" in found.text


@pytest.mark.parametrize(("unit", "is_limited"), [("deg", True), ("unknown", True), ("-100..100", False)])
def test_a_checkpoint_from_before_takes_the_presets_where_the_units_are_theirs(unit: str, is_limited: bool):
    dims = [
        replace(dim, range=None, speed=None, unit=unit if dim.unit == "deg" else dim.unit)
        for dim in get_embodiment("so101").action_dims
    ]
    for name, robot_type in (("so101", None), ("mine", "so_follower")):
        found = find_limits(several(robot(name, *dims)), SO101, robot=name, robot_type=robot_type)
        assert (found.limits is not None) is is_limited, found.text


def test_recorded_actions_beyond_a_range_are_told():
    stats = {"action": {"min": [-130.0, -50, 0, 0, 0, -20], "max": [0.0, 50, 0, 0, 0, 100]}}
    told = beyond_limits(get_embodiment("so101"), stats)
    assert len(told) == 2 and "shoulder_pan.pos was recorded from -130 to 0, and its range is -125..125" in told[0]
    assert "gripper.pos" in told[1] and beyond_limits(get_embodiment("so101"), None) == []
    assert not has_limits(get_embodiment("koch"))


@given(st.sampled_from(sorted(presets())))
def test_every_preset_reads_back_with_its_limits(name: str):
    preset = get_embodiment(name)
    assert Embodiment.from_dict(preset.to_dict()) == preset
