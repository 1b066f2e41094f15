"""The 2-D conveyor: determinism, physics, the expert. No pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_internvla.envs.conveyor.evaluation import (
    DEFAULT_SEED,
    Successes,
    belt_speed_of_episode,
    evaluate_scripted,
)
from lerobot_internvla.envs.conveyor.planar.expert import PlanarExpert
from lerobot_internvla.envs.conveyor.planar.world import (
    ACTION_HIGH,
    ACTION_LOW,
    BIN_CENTRES,
    CATCH_RADIUS,
    EPISODE_STEPS,
    FOLLOW,
    FPS,
    HOLDING_OPENING,
    MAX_FINGER_STEP,
    MAX_STEP,
    PARCEL_SPACING,
    PlanarWorld,
    place_at,
)
from lerobot_internvla.envs.conveyor.task import (
    COLOURS,
    MAX_INSTRUCTION_BYTES,
    SIDES,
    TASKS,
    Disturbances,
    Instruction,
    resolve_task,
    speed_band,
)
from lerobot_internvla.errors import InternVLAError


def new_world(seed: int = 0, task: str = "train", **disturbances: float) -> PlanarWorld:
    world = PlanarWorld(TASKS[task], disturbances=Disturbances(**disturbances))
    world.reset(np.random.default_rng(seed))
    return world


def play_expert(world: PlanarWorld) -> list[np.ndarray]:
    """States of an episode, from reset to its end."""
    states, expert = [world.state()], PlanarExpert()
    while world.ending is None and world.steps < EPISODE_STEPS:
        world.step(expert.act(world))
        states.append(world.state())
    return states


def hold_still(world: PlanarWorld) -> np.ndarray:
    return world.state()


def test_the_same_seed_gives_the_same_episode_and_another_seed_another_one():
    first = play_expert(new_world(3, bumps_per_second=1.0, slip_probability=0.2))
    again = play_expert(new_world(3, bumps_per_second=1.0, slip_probability=0.2))
    other = play_expert(new_world(4, bumps_per_second=1.0, slip_probability=0.2))
    assert np.array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)


def test_a_world_can_be_reset_without_remembering_the_episode_before():
    used = new_world(11)
    play_expert(used)
    used.reset(np.random.default_rng(3))
    assert np.array_equal(play_expert(used), play_expert(new_world(3)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_action_breaks_the_speed_limits_or_leaves_the_workspace(seed: int):
    rng, world = np.random.default_rng(seed), new_world(seed)
    for _ in range(30):
        before = world.state().astype(float).reshape(2, 3)
        world.step(rng.uniform(-3, 3, 6))
        after = world.state().astype(float).reshape(2, 3)
        assert np.all(np.linalg.norm(after[:, :2] - before[:, :2], axis=1) <= MAX_STEP + 1e-6)
        assert np.all(np.abs(after[:, 2] - before[:, 2]) <= MAX_FINGER_STEP + 1e-6)
        assert np.all(after.ravel() >= ACTION_LOW - 1e-6) and np.all(after.ravel() <= ACTION_HIGH + 1e-6)


def test_the_belt_moves_every_parcel_at_its_speed():
    world = new_world(5, "three_parcels")
    start = np.array([parcel.position for parcel in world.parcels])
    for _ in range(4):
        world.step(hold_still(world))
    moved = np.array([parcel.position for parcel in world.parcels]) - start
    assert moved == pytest.approx(np.tile([4 * world.belt_speed / FPS, 0.0], (3, 1)))


@pytest.mark.parametrize(("distance", "is_caught"), [(0.9 * CATCH_RADIUS, True), (1.1 * CATCH_RADIUS, False)])
@pytest.mark.parametrize("angle", [0.0, 1.0, 4.0])
def test_a_parcel_is_caught_only_within_the_catch_radius_when_the_fingers_close(distance, is_caught, angle):
    world = new_world(1, "slow")
    gripper = world.grippers[world.instruction.arm]
    close_both = hold_still(world)
    close_both[[2, 5]] = 0.0
    # Two ticks until the fingers are closed, during which the belt moves on.
    travel = np.array([2 * world.belt_speed / FPS, 0.0])
    for parcel in world.parcels[1:]:
        parcel.place = "gone"
    world.target.position = gripper.position - travel + distance * np.array([np.cos(angle), np.sin(angle)])
    world.step(close_both)
    assert gripper.held is None, "half closed fingers hold nothing"
    world.step(close_both)
    assert (gripper.held is world.target) == is_caught
    opening = world.state()[2 if gripper.side == "left" else 5]
    assert opening == pytest.approx(HOLDING_OPENING if is_caught else 0.0), "the state tells a catch from a miss"


def test_of_two_parcels_within_reach_the_nearest_is_caught():
    world = new_world(1, "three_parcels")
    gripper = world.grippers["left"]
    world.parcels[1].position = gripper.position + np.array([0.02, 0.0])
    world.parcels[2].position = gripper.position + np.array([-0.05, 0.0])
    closed = hold_still(world)
    closed[2] = 0.0
    world.belt_speed = 0.0
    world.step(closed)
    world.step(closed)
    assert gripper.held is world.parcels[1]


@pytest.mark.parametrize("bin_side", SIDES)
def test_success_is_the_named_parcel_in_the_named_bin(bin_side: str):
    world = new_world(2)
    parcel, gripper = world.target, world.grippers[world.instruction.arm]
    parcel.place, gripper.held, gripper.is_closed, gripper.opening = "left gripper", parcel, True, 0.3
    gripper.position = BIN_CENTRES[bin_side].copy()
    action = world.state()
    action[[2, 5]] = 1.0
    world.step(action)
    assert world.ending == ("success" if bin_side == world.instruction.bin else "wrong place")


def test_a_parcel_let_go_elsewhere_lies_on_the_belt_or_on_the_floor():
    assert place_at(np.array([0.5, 0.0])) == "belt"
    assert place_at(np.array([0.5, 0.3])) == "floor"


def test_doing_nothing_misses_the_parcel():
    world = new_world(0, "fast")
    while world.ending is None:
        world.step(hold_still(world))
    assert world.ending == "missed"


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds(task: str):
    """At every task, the unseen faster speeds included; the full 200 episodes are in the benchmark results."""
    summary = evaluate_scripted("expert", task, 25)
    assert summary.overall.rate >= 0.95
    assert summary.mean_duration_s * FPS <= EPISODE_STEPS


def test_the_expert_succeeds_under_the_disturbances_of_a_recording():
    from lerobot_internvla.envs.conveyor.recording import RECORDING_DISTURBANCES

    endings = []
    for seed in range(40):
        world = PlanarWorld(TASKS["train"], disturbances=RECORDING_DISTURBANCES)
        world.reset(np.random.default_rng(seed))
        play_expert(world)
        endings.append(world.ending)
    assert endings.count("success") >= 0.9 * len(endings)


def test_the_expert_gets_ready_without_knowing_the_speed_and_leads_the_parcel_once_it_matters():
    """Two belts that differ only in speed: the same targets at first, and later a target ahead by the lag's worth."""
    actions: dict[float, list[float]] = {}
    for speed in (0.2, 0.4):
        world, expert = new_world(8), PlanarExpert()
        world.belt_speed = speed
        arm = SIDES.index(world.instruction.arm)
        actions[speed] = []
        while world.target.place == "belt":
            action = expert.act(world)
            target_x, _, opening = action.reshape(2, 3)[arm]
            actions[speed].append(target_x)
            if opening == 0.0:  # closing: it is over the parcel, and its target ahead of it by what the lag costs
                assert target_x == pytest.approx(world.target.position[0] + speed / FPS / FOLLOW)
            world.step(action)
        assert world.grippers[world.instruction.arm].held is world.target
    assert actions[0.2][:3] == actions[0.4][:3]


def test_the_other_arm_rests():
    world = new_world(8)
    expert, other = PlanarExpert(), 1 - SIDES.index(world.instruction.arm)
    targets = []
    while world.ending is None:
        action = expert.act(world)
        targets.append(action.reshape(2, 3)[other])
        world.step(action)
    assert np.ptp(targets, axis=0) == pytest.approx(0.0)


def test_a_slip_shows_a_recovery():
    """When the parcel slips through the fingers, the expert opens them and tries again."""
    world = new_world(0, "slow", slip_probability=0.5)
    closings, gripper = 0, world.grippers[world.instruction.arm]
    expert = PlanarExpert()
    for seed in range(20):
        world.reset(np.random.default_rng(seed))
        gripper, was_closed = world.grippers[world.instruction.arm], False
        closings = 0
        while world.ending is None and world.steps < EPISODE_STEPS:
            world.step(expert.act(world))
            closings += gripper.is_closed and not was_closed
            was_closed = gripper.is_closed
        if closings > 1 and world.ending == "success":
            return
    pytest.fail("no episode showed a miss followed by a success")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 100_000), task=st.sampled_from(sorted(TASKS)))
def test_what_is_drawn_lies_within_the_task(seed: int, task: str):
    world = new_world(seed, task)
    spec = TASKS[task]
    assert spec.min_belt_speed <= world.belt_speed <= spec.max_belt_speed
    assert spec.min_parcels <= len(world.parcels) <= spec.max_parcels
    assert len({parcel.colour for parcel in world.parcels}) == len(world.parcels)
    assert world.target.colour == world.instruction.colour
    assert spec.any_bin or world.instruction.arm == world.instruction.bin
    x = np.sort([parcel.position[0] for parcel in world.parcels])
    assert np.all(np.diff(x) >= PARCEL_SPACING - 1e-9)


def test_the_first_frame_does_not_tell_the_speed():
    """Where the named parcel enters is drawn independently of how fast the belt is."""
    worlds = [new_world(seed) for seed in range(400)]
    correlation = np.corrcoef([w.belt_speed for w in worlds], [w.target.position[0] for w in worlds])[0, 1]
    assert abs(correlation) < 0.15


def test_every_instruction_fits_the_shortest_prompt_and_differs_by_one_letter_per_word():
    texts = [Instruction(c, arm, b).text for c in COLOURS for arm in SIDES for b in SIDES]
    assert len(set(texts)) == len(COLOURS) * 4
    assert max(len(text.encode()) for text in texts) <= MAX_INSTRUCTION_BYTES
    assert "blue parcel, left arm to left bin" in texts


def test_tasks_can_be_narrowed_and_say_everything_that_is_wrong_at_once():
    task = resolve_task("train", parcels=2, belt_speed=(0.2, 0.2))
    assert (task.min_parcels, task.max_parcels, task.min_belt_speed) == (2, 2, 0.2)
    with pytest.raises(InternVLAError, match=r"'quick'.*7 parcels.*\(0.5, 0.1\)"):
        resolve_task("quick", parcels=7, belt_speed=(0.5, 0.1))


def test_evaluation_reports_speeds_and_plays_the_episodes_that_lerobot_eval_plays():
    summary = evaluate_scripted("idle", "train", 12)
    assert summary.overall == Successes(12, 0)
    assert summary.overall.interval[0] == 0.0 and 0.2 < summary.overall.interval[1] < 0.3
    speeds = [belt_speed_of_episode(DEFAULT_SEED + i) for i in range(12)]
    for band, row in summary.by_speed.items():
        assert row.episodes == sum(speed_band(speed) == band for speed in speeds)
    assert summary.as_dict()["overall"]["rate"] == 0.0
    with pytest.raises(InternVLAError, match="at least 1"):
        evaluate_scripted("idle", n_episodes=0)
