"""The conveyor in MuJoCo: kinematics, belt, grasps, the expert, pictures, and the environment type."""

import subprocess
import sys
import threading
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from mujoco_here import INSTALL, needs_drawing

pytest.importorskip("mujoco", reason=INSTALL)

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.factory import make_env, make_env_config
from lerobot.envs.utils import close_envs, env_to_policy_features, preprocess_observation

from lerobot_internvla.envs.configuration_conveyor import MUJOCO_GYM_ID, ConveyorMujocoEnvConfig
from lerobot_internvla.envs.conveyor.backend import BACKENDS, episode_rng
from lerobot_internvla.envs.conveyor.evaluation import evaluate_scripted, film_expert
from lerobot_internvla.envs.conveyor.mujoco import arm, library, rendering, scene, world
from lerobot_internvla.envs.conveyor.mujoco.expert import GRASP_HEIGHT, LEAD_S, MujocoExpert
from lerobot_internvla.envs.conveyor.mujoco.world import MujocoWorld
from lerobot_internvla.envs.conveyor.recording import dataset_features, record_expert_episodes
from lerobot_internvla.envs.conveyor.task import CAMERAS, SIDES, TASKS, Disturbances, Side, resolve_task
from lerobot_internvla.errors import InternVLAError


@pytest.fixture
def conveyor() -> MujocoWorld:
    """An episode with one parcel at 0.3 m/s."""
    made = MujocoWorld(resolve_task("train", parcels=1, belt_speed=(0.3, 0.3)))
    made.reset(episode_rng(3))
    return made


def until_held(conveyor: MujocoWorld) -> Side:
    """Let the expert work until the named arm has lifted the parcel."""
    expert, side = MujocoExpert(), conveyor.instruction.arm
    while conveyor.target_position[2] < GRASP_HEIGHT + 0.03:
        assert conveyor.ending is None and conveyor.steps < arm.EPISODE_STEPS
        conveyor.step(expert.act(conveyor))
    return side


# ---------------------------------------------------------------------------------------------------------- kinematics


@pytest.mark.parametrize("side", SIDES)
def test_the_forward_kinematics_are_those_of_the_scene(conveyor: MujocoWorld, side: Side):
    random = np.random.default_rng(0)
    for _ in range(10):
        joints = random.uniform(*np.array(list(arm.JOINT_LIMITS.values())).T)
        conveyor.data.qpos[conveyor._joint_addresses[side]] = joints
        library.mujoco.mj_forward(conveyor.model, conveyor.data)
        assert arm.tool_position(side, joints) == pytest.approx(conveyor.tool_position(side), abs=1e-9)


@pytest.mark.parametrize("side", SIDES)
def test_the_inverse_reaches_every_place_of_work_within_the_limits_hand_down(conveyor: MujocoWorld, side: Side):
    places = [(x, y, z) for x in (0.3, 0.55, 0.8) for y in (-0.05, 0.05) for z in (GRASP_HEIGHT, 0.24)]
    places += [(*centre, 0.24) for centre in scene.BIN_CENTRES.values()]  # the other arm's bin as well
    for place in places:
        joints = arm.joints_for(side, np.array(place), yaw=0.1)
        assert arm.tool_position(side, joints) == pytest.approx(place, abs=1e-9), place
        assert np.all(joints >= arm.ACTION_LOW[:6]) and np.all(joints <= arm.ACTION_HIGH[:6]), place
        conveyor.data.qpos[conveyor._joint_addresses[side]] = joints
        library.mujoco.mj_forward(conveyor.model, conveyor.data)
        hand = conveyor.data.body(f"{side}_hand").xmat.reshape(3, 3)
        assert hand[:, 0] == pytest.approx([0.0, 0.0, -1.0], abs=1e-9)
        # The fingers close along the hand's z axis: the world's y axis, turned by the yaw.
        assert abs(hand[:, 2] @ [-np.sin(0.1), np.cos(0.1), 0.0]) == pytest.approx(1.0, abs=1e-9)


def test_a_place_out_of_reach_is_approached_and_nonsense_is_refused():
    joints = arm.joints_for("left", np.array([3.0, 0.32, 0.2]))
    stretched = arm.tool_position("left", joints)
    assert stretched[0] > 1.1 and stretched[1] == pytest.approx(0.32, abs=1e-6)
    with pytest.raises(InternVLAError, match="three finite numbers"):
        arm.joints_for("left", np.array([np.nan, 0.0, 0.0]))


# ------------------------------------------------------------------------------------------------------------- physics


def test_the_belt_carries_parcels_at_its_speed(conveyor: MujocoWorld):
    rest, start = conveyor.state(), conveyor.target_position.copy()
    for _ in range(arm.FPS):
        conveyor.step(rest)
    way = conveyor.target_position - start
    assert way[0] == pytest.approx(0.3, rel=0.01) and np.abs(way[1:]).max() < 2e-3
    assert conveyor.belt_offset % 1 == pytest.approx((conveyor.belt_offset - 0.3) % 1 + 0.3, abs=1e-6)


def test_a_target_that_leads_by_the_lag_keeps_the_hand_over_a_moving_parcel(conveyor: MujocoWorld):
    for step in range(30):
        x = 0.3 + 0.3 * step / arm.FPS
        if step > 10:
            tool = conveyor.tool_position("left")
            assert abs(tool[0] - x) < 4e-3 and abs(tool[1]) < 4e-3
        joints = arm.joints_for("left", np.array([x + 0.3 * LEAD_S, 0.0, 0.25]))
        conveyor.step(np.array([*joints, 1.0, *conveyor.state()[7:]]))


def test_joints_are_no_faster_than_their_limit_and_targets_are_clipped(conveyor: MujocoWorld):
    before = conveyor.state()[0]
    conveyor.step(np.full(14, 100.0))
    assert 0.0 < conveyor.state()[0] - before <= world.MAX_JOINT_SPEED / arm.FPS
    for _ in range(60):
        conveyor.step(np.full(14, 100.0))
    assert conveyor.state()[0] == pytest.approx(arm.ACTION_HIGH[0], abs=0.02)


def test_a_parcel_is_held_by_contact_and_falls_when_the_fingers_open(conveyor: MujocoWorld):
    side = until_held(conveyor)
    colour = conveyor.instruction.colour
    assert conveyor.holds(side, colour) and not conveyor.holds("right" if side == "left" else "left", colour)
    # Fingers around a parcel of 5 cm, of 9 cm when open: the state tells a catch from a miss.
    assert conveyor.opening(side) == pytest.approx(5 / 9, abs=0.05)
    still = conveyor.state()
    still[SIDES.index(side) * 7 + 6] = 0.0
    for _ in range(10):
        conveyor.step(still)
    assert conveyor.holds(side, colour), "it slips"
    still[SIDES.index(side) * 7 + 6] = 1.0
    for _ in range(10):
        conveyor.step(still)
    assert not conveyor.holds(side, colour) and conveyor.target_position[2] < GRASP_HEIGHT


@pytest.mark.parametrize(
    ("place", "ending"),
    [
        ((*scene.BIN_CENTRES["left"], 0.04), "success"),
        ((*scene.BIN_CENTRES["right"], 0.04), "wrong place"),
        ((0.3, 0.3, 0.025), "wrong place"),
        ((1.02, 0.0, 0.14), "missed"),
        ((1.20, 0.0, 0.025), "missed"),
        ((0.50, 0.0, 0.145), None),
        ((*scene.BIN_CENTRES["left"], 0.2), None),
    ],
)
def test_where_the_parcel_is_decides_how_the_episode_ends(place: tuple[float, ...], ending: str | None):
    made = MujocoWorld(resolve_task("train", instruction="red parcel, right arm to left bin"))
    made.data.joint("red").qpos[:3] = place
    library.mujoco.mj_forward(made.model, made.data)
    assert made.ending == ending


def test_a_parcel_that_is_still_held_is_not_delivered(conveyor: MujocoWorld):
    until_held(conveyor)
    x, y = scene.BIN_CENTRES[conveyor.instruction.bin]
    # The bin's walls are not in the way of a hand that is put there.
    offset = conveyor.tool_position(conveyor.instruction.arm) - conveyor.target_position
    joints = arm.joints_for(conveyor.instruction.arm, np.array([x, y, 0.06]) + offset)
    conveyor.data.qpos[conveyor._joint_addresses[conveyor.instruction.arm]] = joints
    conveyor.data.joint(conveyor.instruction.colour).qpos[:3] = x, y, 0.06
    library.mujoco.mj_forward(conveyor.model, conveyor.data)
    assert conveyor.holds(conveyor.instruction.arm, conveyor.instruction.colour)
    assert conveyor.ending is None


def test_an_episode_is_a_pure_function_of_generator_and_actions():
    def play(made: MujocoWorld, seed: int) -> list[np.ndarray]:
        made.reset(episode_rng(seed))
        expert, states = MujocoExpert(), []
        for _ in range(40):
            made.step(expert.act(made))
            states += [made.state(), made.data.qpos.copy()]
        return states

    disturbances = Disturbances(bumps_per_second=3.0, slip_probability=0.5)
    one, two = (MujocoWorld(TASKS["three_parcels"], disturbances=disturbances) for _ in range(2))
    first = play(one, 5)
    play(two, 6)  # what came before must not matter
    for a, b in zip(first, play(two, 5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bumps_push_the_named_hand_and_slips_leave_the_parcel_on_the_belt():
    task = resolve_task("train", parcels=1, belt_speed=(0.2, 0.2))
    bumped = MujocoWorld(task, disturbances=Disturbances(bumps_per_second=1000.0))
    bumped.reset(episode_rng(0))
    rest, side = bumped.state(), bumped.instruction.arm
    before = bumped.tool_position(side).copy()
    bumped.step(rest)
    assert np.linalg.norm(bumped.tool_position(side) - before) > 0.005

    slippery, expert = MujocoWorld(task, disturbances=Disturbances(slip_probability=1.0)), MujocoExpert()
    slippery.reset(episode_rng(0))
    closed = 0
    while slippery.ending is None and slippery.steps < arm.EPISODE_STEPS:
        closed += slippery.opening(side) < 0.6
        slippery.step(expert.act(slippery))
        assert slippery.target_position[2] < scene.BELT_TOP + 0.06
    assert slippery.ending == "missed" and closed > 3, "the expert tried again and again"


# -------------------------------------------------------------------------------------------------------------- expert


@pytest.mark.parametrize(("task", "episodes"), [("train", 20), ("unseen", 10), ("three_parcels", 10), ("any_bin", 10)])
def test_the_expert_succeeds(task: str, episodes: int):
    summary = evaluate_scripted("expert", task, episodes, backend="conveyor_mujoco")
    assert summary.overall.rate >= 0.9, summary.endings


def test_doing_nothing_does_not():
    summary = evaluate_scripted("idle", "fast", 5, backend="conveyor_mujoco")
    assert summary.endings == {"missed": 5}


# ------------------------------------------------------------------------------------------------------------ pictures


def count_like(picture: np.ndarray, rgb: tuple[int, int, int], tolerance: float = 0.12) -> int:
    """Pixels whose hue is that of ``rgb``, whatever the light."""
    pixels = picture.reshape(-1, 3) / np.maximum(picture.reshape(-1, 3).sum(-1, keepdims=True), 1)
    bright = picture.reshape(-1, 3).max(-1) > 60
    return int((bright & (np.abs(pixels - np.array(rgb) / sum(rgb)).sum(-1) < tolerance)).sum())


@needs_drawing
def test_parcels_bins_and_arms_can_be_seen_in_their_colours(conveyor: MujocoWorld):
    until_held(conveyor)
    pictures = rendering.draw_cameras(conveyor, 128)
    assert tuple(pictures) == CAMERAS
    assert all(picture.shape == (128, 128, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    rgb = {"red": (222, 46, 51), "blue": (31, 102, 235), "yellow": (250, 204, 31)}
    side = conveyor.instruction.arm
    assert count_like(pictures[f"{side}_wrist"], rgb[conveyor.instruction.colour]) > 600
    for colour in ((242, 143, 59), (138, 92, 196)):  # the arms, and the far walls of their bins
        assert count_like(pictures["head"], colour) > 150


@needs_drawing
def test_motion_is_visible_from_frame_to_frame(conveyor: MujocoWorld):
    before = rendering.draw_cameras(conveyor, 96)
    conveyor.step(conveyor.state())
    after = rendering.draw_cameras(conveyor, 96)
    assert all(not np.array_equal(before[camera], after[camera]) for camera in CAMERAS)


@needs_drawing
def test_worlds_share_a_renderer_without_seeing_each_other(conveyor: MujocoWorld):
    other = MujocoWorld(TASKS["three_parcels"])
    before = rendering.draw_cameras(conveyor, 64)
    rendering.draw_cameras(other, 64)
    np.testing.assert_equal(rendering.draw_cameras(conveyor, 64), before)


@needs_drawing
def test_another_thread_may_draw(conveyor: MujocoWorld):
    here, there = rendering.draw_cameras(conveyor, 64), []
    thread = threading.Thread(target=lambda: there.append(rendering.draw_cameras(conveyor, 64)))
    thread.start()
    thread.join(60)
    np.testing.assert_equal(there, [here])


def test_a_machine_that_cannot_draw_is_told_what_to_install(conveyor: MujocoWorld, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise ImportError("Cannot initialize a EGL device display")

    monkeypatch.setattr(rendering, "make_context", fails)
    with pytest.raises(InternVLAError, match=r"EGL device display.*apt-get install libegl1"):
        rendering.draw_cameras(conveyor, 70)


def test_the_way_to_draw_is_chosen_by_what_is_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for devices, osmesa, chosen in ((1, None, "egl"), (0, "libOSMesa.so.8", "osmesa"), (0, None, None)):
        monkeypatch.setattr(library, "_count_egl_devices", lambda devices=devices: devices)
        monkeypatch.setattr(library.ctypes.util, "find_library", lambda _, osmesa=osmesa: osmesa)
        assert library.offscreen_library() == chosen
    monkeypatch.setattr(sys, "platform", "darwin")
    assert library.offscreen_library() is None


def test_without_mujoco_the_error_says_how_to_install_it():
    code = (
        "import sys\n"
        "sys.modules['mujoco'] = None\n"
        "from lerobot_internvla import InternVLAError, envs\n"
        "from lerobot.envs.factory import make_env\n"
        "try:\n"
        "    make_env(envs.ConveyorMujocoEnvConfig(), n_envs=1)\n"
        "except InternVLAError as error:\n"
        "    assert 'pip install \"lerobot_policy_internvla_a1[mujoco]\"' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------- environment and dataset


def test_lerobot_knows_the_type_and_its_features_carry_the_datasets_names():
    config = make_env_config("conveyor_mujoco", task="slow", image_size=32)
    assert isinstance(config, ConveyorMujocoEnvConfig) and config.fps == 20 and config.gym_id == MUJOCO_GYM_ID
    features = env_to_policy_features(config)
    recorded = dataset_features(config.backend, 32, as_video=True)
    assert set(features) == set(recorded) and features["action"].shape == (14,)
    assert recorded["action"]["names"][:7] == [f"left_{joint}" for joint in (*arm.JOINTS, "gripper")]
    assert make_env_config("conveyor_mujoco").image_size == BACKENDS["conveyor_mujoco"].image_size == 128


@needs_drawing
def test_the_stock_factory_makes_vector_environments_and_the_expert_succeeds_in_one():
    envs = make_env(ConveyorMujocoEnvConfig(task="fast", image_size=64), n_envs=2)
    env = envs["conveyor_mujoco"][0]
    try:
        observation, _ = env.reset(seed=[1000, 1001])
        batch = preprocess_observation(observation)
        assert batch["observation.images.left_wrist"].shape == (2, 3, 64, 64)
        assert batch["observation.state"].shape == (2, 14)
        assert env.call("_max_episode_steps") == (arm.EPISODE_STEPS,) * 2
        assert env.unwrapped.metadata["render_fps"] == 20
    finally:
        close_envs(envs)
    single = gym.make(MUJOCO_GYM_ID, task="fast", image_size=64)
    single.reset(seed=1)
    expert, done = MujocoExpert(), False
    while not done:
        _, reward, terminated, truncated, info = single.step(expert.act(single.unwrapped._world))
        done = terminated or truncated
    assert terminated and info["is_success"] and reward == 1.0


@needs_drawing
def test_episodes_are_recorded_and_filmed(tmp_path: Path):
    summary = record_expert_episodes(
        tmp_path / "data", "local/mujoco", 1, task="fast", backend="conveyor_mujoco", progress=False
    )
    dataset = LeRobotDataset("local/mujoco", root=summary.root, video_backend="pyav")
    assert dataset.fps == 20 and dataset.meta.robot_type == "conveyor_mujoco" and dataset.num_episodes == 1
    assert dataset[0]["observation.images.head"].shape == (3, 128, 128) and dataset[0]["action"].shape == (14,)
    film = tmp_path / "film.mp4"
    assert film_expert(film, height=128, task="fast", backend="conveyor_mujoco") == "success"
    assert film.stat().st_size > 1000
