"""The conveyors as LeRobot robots, and their expert as a teleoperator, without the commands around them."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from lerobot.robots import RobotConfig, make_robot_from_config
from lerobot.teleoperators import make_teleoperator_from_config
from lerobot.utils import keyboard_input

from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.envs.conveyor.task import CAMERAS
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.robots import (
    ConveyorExpertConfig,
    ConveyorMujocoRobotConfig,
    ConveyorRobotConfig,
    simulation,
)
from lerobot_internvla.robots.conveyor import ConveyorExpert, ConveyorMujocoRobot, ConveyorRobot
from mujoco_here import skip_unless_it_draws

Connect = Callable[..., ConveyorRobot]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes robots as LeRobot's commands do, and disconnects them after the test."""
    made: list[ConveyorRobot] = []

    def connect(config: RobotConfig | None = None, **fields: Any) -> ConveyorRobot:
        robot = make_robot_from_config(config or ConveyorRobotConfig(image_size=32, **fields))
        assert isinstance(robot, ConveyorRobot)
        robot.connect()
        made.append(robot)
        return robot

    yield connect
    for robot in made:
        if robot.is_connected:
            robot.disconnect()


@pytest.fixture(params=["conveyor", "conveyor_mujoco"])
def config(request: pytest.FixtureRequest) -> ConveyorRobotConfig:
    if request.param == "conveyor":
        return ConveyorRobotConfig(image_size=32, task="fast")
    skip_unless_it_draws()
    return ConveyorMujocoRobotConfig(image_size=32, task="fast")


def play(robot: ConveyorRobot, steps: int = 200) -> list[dict[str, float]]:
    """Let the expert drive until its episode is over; the actions it took."""
    expert = make_teleoperator_from_config(ConveyorExpertConfig())
    expert.connect()
    actions: list[dict[str, float]] = []
    before = robot.simulation.endings.total()
    while robot.simulation.endings.total() == before and len(actions) < steps:
        robot.get_observation()
        actions.append(expert.get_action())
        robot.send_action(actions[-1])
    return actions


def rest(robot: ConveyorRobot) -> dict[str, float]:
    """Stay where you are."""
    return {key: value for key, value in robot.get_observation().items() if key.endswith(".pos")}


# ----------------------------------------------------------------------------------------------------------- contract


def test_observations_and_actions_are_what_the_features_say(connect: Connect, config: ConveyorRobotConfig):
    robot = connect(config)
    assert isinstance(robot, ConveyorMujocoRobot if config.type == "conveyor_mujoco" else ConveyorRobot)
    assert robot.name == robot.robot_type == config.type and robot.is_calibrated and len(robot.cameras) == 3
    observation = robot.get_observation()
    assert list(observation) == list(robot.observation_features)
    joints = [f"{name}.pos" for name in BACKENDS[config.type].action_names]
    assert list(robot.action_features) == joints and list(robot.observation_features)[: len(joints)] == joints
    assert all(type(observation[joint]) is float for joint in joints)
    for camera in CAMERAS:
        assert observation[camera].shape == robot.observation_features[camera] == (32, 32, 3)
        assert observation[camera].dtype == np.uint8
    assert list(robot.send_action(rest(robot))) == joints


def test_the_expert_drives_either_robot_to_success_and_the_next_episode_begins(
    connect: Connect, config: ConveyorRobotConfig
):
    robot = connect(config)
    actions = play(robot)
    assert robot.simulation.endings == {"success": 1}
    assert set(actions[0]) == set(robot.action_features) == set(ConveyorExpert(ConveyorExpertConfig()).action_features)
    last = robot.simulation.world.state()
    robot.send_action(actions[0])
    assert np.array_equal(robot.simulation.world.state(), last), "the world stands still when an episode is over"
    robot.get_observation()
    assert robot.simulation.number == 1 and robot.simulation.world.steps == 0


def test_recorded_actions_replayed_on_the_same_episode_lead_to_the_same_states(
    connect: Connect, config: ConveyorRobotConfig
):
    robot = connect(config)
    play(robot)
    actions = play(robot)  # episode 1
    state = robot.simulation.world.state()
    robot.disconnect()
    config.first_episode = 1
    again = connect(config)
    for action in actions:
        again.get_observation()
        again.send_action(action)
    np.testing.assert_array_equal(again.simulation.world.state(), state)
    assert again.simulation.endings == {"success": 1}


def test_every_episode_asks_for_the_instruction_of_the_configuration(connect: Connect):
    wanted = "yellow parcel, right arm to left bin"
    robot = connect(instruction=wanted, task="three_parcels")
    for number in range(4):
        robot.simulation._begin(number)
        world = robot.simulation.world
        assert world.instruction.text == wanted and world.target.colour == "yellow"
        assert len({parcel.colour for parcel in world.parcels}) == 3
    robot.disconnect()
    drawn = connect(instruction=None)
    texts = set()
    for number in range(12):
        drawn.simulation._begin(number)
        texts.add(drawn.simulation.world.instruction.text)
    assert len(texts) > 3


def test_targets_outside_the_limits_are_clipped_and_said_so(connect: Connect):
    robot = connect()
    sent = robot.send_action({**rest(robot), "left_x.pos": 7.0})
    assert sent["left_x.pos"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"left_x.pos": float("nan")}, "not finite numbers: left_x"), ({"left_x.pos": None}, "no target for left_x.pos")],
)
def test_garbage_does_not_move_the_robot(connect: Connect, change: dict[str, Any], message: str):
    robot = connect()
    action = {key: value for key, value in {**rest(robot), **change}.items() if value is not None}
    with pytest.raises(InternVLAError, match=message):
        robot.send_action(action)
    assert robot.simulation.world.steps == 0


def test_what_is_wrong_with_a_configuration_is_said_at_once():
    with pytest.raises(
        InternVLAError, match=r"clock 'sun'.*image_size 7.*seed -1.*'quick'.*'fetch' is not an instruct"
    ):
        ConveyorRobotConfig(clock="sun", image_size=7, seed=-1, task="quick", instruction="fetch")


def test_devices_that_are_not_connected_say_so(connect: Connect):
    robot = ConveyorRobot(ConveyorRobotConfig())
    with pytest.raises(InternVLAError, match="not connected"):
        robot.get_observation()
    expert = ConveyorExpert(ConveyorExpertConfig())
    expert.connect()  # in lerobot-record it connects before the robot does
    with pytest.raises(InternVLAError, match=r"--robot\.type=conveyor"):
        expert.get_action()
    connect()
    with pytest.raises(InternVLAError, match="connected in this process already"):
        robot.connect()
    assert not robot.is_connected


# -------------------------------------------------------------------------------------------------------------- clocks


def test_the_world_waits_for_the_command_one_tick_per_observation(connect: Connect):
    robot = connect()
    world, action = robot.simulation.world, rest(robot)
    for _ in range(3):
        robot.send_action(action)
    assert world.steps == 1, "LeRobot moves robots between episodes without looking at them"
    robot.get_observation(), robot.get_observation()
    assert world.steps == 1
    robot.send_action(action)
    assert world.steps == 2


def test_with_the_real_clock_the_world_does_not_wait(connect: Connect, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(simulation.time, "perf_counter", lambda: now[0])
    robot = connect(clock="real", belt_speed=(0.2, 0.2), parcels=1)
    world = robot.simulation.world
    action = {**rest(robot), "left_x.pos": 0.9}
    parcel = world.target.position[0]
    now[0] += 0.25
    robot.send_action(action)  # too late for the first two ticks of 0.1 s
    assert world.steps == 2 and world.target.position[0] == pytest.approx(parcel + 0.2 * 0.2)
    before = world.state()[0]
    now[0] += 0.5  # the policy is thinking: the arm moves on towards the last target, and so does the belt
    robot.get_observation()
    assert world.steps == 7 and world.state()[0] > before + 0.3
    assert world.target.position[0] == pytest.approx(parcel + 0.2 * 0.7)
    now[0] += 60.0
    robot.get_observation()
    assert robot.simulation.endings == {"missed": 1}
    now[0] += 5.0  # saving the episode takes time that the next one does not lose
    robot.get_observation()
    assert robot.simulation.number == 1 and world.steps == 0


@pytest.mark.parametrize(("rate", "is_warned"), [(30, True), (10, False), (4, False)])
def test_a_command_that_runs_faster_than_the_world_is_warned(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rate: int, is_warned: bool
):
    now = [0.0]
    monkeypatch.setattr(simulation.time, "perf_counter", lambda: now[0])
    robot = connect(belt_speed=(0.15, 0.15))
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            robot.send_action(rest(robot))
            now[0] += 1 / rate
    assert caplog.text.count("Pass --dataset.fps=10") == is_warned


# ------------------------------------------------------------------------------------------------------------ operator


def listen() -> list[str]:
    """As LeRobot's commands do: install a handler of key presses. What it was called with."""
    pressed: list[str] = []
    keyboard_input.create_key_listener(pressed.append)
    return pressed


def test_the_operator_ends_good_episodes_and_repeats_failed_demonstrations(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    stock = keyboard_input.create_key_listener
    robot = connect(task="fast")
    pressed = listen()
    play(robot)
    assert pressed == ["right"]
    expert = robot.simulation._expert
    monkeypatch.setattr(expert, "act", lambda world: world.state())
    play(robot)
    assert robot.simulation.endings == {"success": 1, "missed": 1} and pressed == ["right", "left"]
    robot.disconnect()
    assert keyboard_input.create_key_listener is stock


def test_the_operator_keeps_what_a_policy_failed_at(connect: Connect):
    robot = connect(task="fast")
    pressed = listen()
    while not robot.simulation.endings:
        robot.send_action(rest(robot))
    assert pressed == ["right"] and robot.simulation.endings == {"missed": 1}


def test_without_the_operator_keys_are_left_to_people(connect: Connect):
    stock = keyboard_input.create_key_listener
    robot = connect(task="fast", press_keys=False)
    assert keyboard_input.create_key_listener is stock
    pressed = listen()
    play(robot)
    assert pressed == [] and robot.simulation.endings == {"success": 1}
