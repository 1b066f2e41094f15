"""The conveyor as a Gymnasium and LeRobot environment: its interface, its cameras, the stock factory."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from lerobot.configs import FeatureType
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env, make_env_config
from lerobot.envs.utils import close_envs, env_to_policy_features, preprocess_observation

import lerobot_internvla.envs  # noqa: F401  (registers the type)
from lerobot_internvla.envs.configuration_conveyor import GYM_ID, ConveyorEnvConfig
from lerobot_internvla.envs.conveyor.backend import BACKENDS, Backend, resolve_backend
from lerobot_internvla.envs.conveyor.evaluation import belt_speed_of_episode, film_expert
from lerobot_internvla.envs.conveyor.gym_env import ConveyorEnv
from lerobot_internvla.envs.conveyor.planar import drawing
from lerobot_internvla.envs.conveyor.planar.expert import PlanarExpert
from lerobot_internvla.envs.conveyor.planar.world import PlanarWorld
from lerobot_internvla.envs.conveyor.task import CAMERAS, TASKS
from lerobot_internvla.errors import InternVLAError


def test_gymnasiums_own_checks_pass():
    check_env(gym.make(GYM_ID).unwrapped, skip_render_check=False)


def test_reset_is_reproducible_and_an_episode_does_not_depend_on_the_one_before():
    env = ConveyorEnv()
    first, _ = env.reset(seed=5)
    for _ in range(7):
        env.step(env.action_space.sample())
    again, _ = env.reset(seed=5)
    np.testing.assert_equal(first, again)
    follow_up, _ = env.reset()
    env.reset(seed=5)
    np.testing.assert_equal(follow_up, env.reset()[0])


def test_the_expert_ends_an_episode_with_reward_one_and_success():
    env = gym.make(GYM_ID, task="fast")
    env.reset(seed=1)
    rewards, expert = [], PlanarExpert()
    while True:
        _, reward, terminated, truncated, info = env.step(expert.act(env.unwrapped._world))
        rewards.append(reward)
        if terminated or truncated:
            break
    assert terminated and info["is_success"] and rewards[-1] == 1.0 and sum(rewards) == 1.0


def test_the_step_limit_is_where_lerobot_looks_for_it():
    env = gym.make(GYM_ID, max_episode_steps=7)
    assert env.get_wrapper_attr("_max_episode_steps") == 7
    assert gym.make(GYM_ID).get_wrapper_attr("_max_episode_steps") == BACKENDS["conveyor"].episode_steps


@pytest.mark.parametrize("size", [64, 96])
def test_pictures_have_the_asked_for_size_and_names(size: int):
    observation, _ = ConveyorEnv(image_size=size).reset(seed=0)
    assert tuple(observation["pixels"]) == CAMERAS
    assert {picture.shape for picture in observation["pixels"].values()} == {(size, size, 3)}


def test_a_quarter_of_a_pixel_of_motion_can_be_seen():
    world = PlanarWorld(TASKS["train"])
    world.reset(np.random.default_rng(0))
    before = drawing.draw_cameras(world, 64)["head"].astype(int)
    world.target.position[0] += 0.25 / 64
    after = drawing.draw_cameras(world, 64)["head"].astype(int)
    assert np.abs(after - before).max() >= 10


def test_parcel_colour_place_and_gripper_opening_can_be_read_off_the_head_picture():
    """What the instruction and the state talk about is where it should be, in the colour it should have."""
    world = PlanarWorld(TASKS["train"])
    world.reset(np.random.default_rng(0))
    world.target.position[:] = 0.25, 0.02
    head = drawing.draw_cameras(world, 64)["head"].astype(int)
    colour = np.array(drawing.PARCEL_COLOURS[world.target.colour])
    rows, columns = np.nonzero(np.abs(head - colour).sum(-1) < 60)
    # Head camera: x from 0 to 1 left to right, y from 0.5 to -0.5 top to bottom.
    assert (columns.mean() + 0.5) / 64 == pytest.approx(0.25, abs=1 / 64)
    assert 0.5 - (rows.mean() + 0.5) / 64 == pytest.approx(0.02, abs=1 / 64)
    world.grippers["left"].opening = 0.0
    assert np.abs(drawing.draw_cameras(world, 64)["head"].astype(int) - head).max() > 60


def test_wrist_cameras_follow_their_gripper():
    world = PlanarWorld(TASKS["train"])
    world.reset(np.random.default_rng(0))
    before = drawing.draw_cameras(world, 64)
    world.grippers["left"].position += [0.1, -0.1]
    after = drawing.draw_cameras(world, 64)
    assert not np.array_equal(before["left_wrist"], after["left_wrist"])
    assert np.array_equal(before["right_wrist"], after["right_wrist"])


def test_the_cameras_of_another_episode_leave_state_and_instruction_true():
    live, other = ConveyorEnv(), ConveyorEnv(camera_feed="other_episode")
    (seen, _), (shown, _) = live.reset(seed=3), other.reset(seed=3)
    for _ in range(20):
        assert live.task_description == other.task_description
        np.testing.assert_equal(seen["agent_pos"], shown["agent_pos"])
        assert not np.array_equal(seen["pixels"]["head"], shown["pixels"]["head"])
        action = seen["agent_pos"]
        seen, shown = live.step(action)[0], other.step(action)[0]


def test_videos_for_people_have_even_edges_and_are_written(tmp_path):
    frame = ConveyorEnv(render_height=240).render()
    assert frame.shape[0] % 2 == 0 and frame.shape[1] % 2 == 0
    assert film_expert(tmp_path / "sub" / "expert.mp4", height=128, task="fast") == "success"
    assert (tmp_path / "sub" / "expert.mp4").stat().st_size > 1000


def test_lerobot_knows_the_type_and_its_features_carry_the_datasets_names():
    from lerobot_internvla.envs.conveyor.recording import dataset_features

    config = make_env_config("conveyor", task="slow", image_size=32)
    assert isinstance(config, ConveyorEnvConfig) and config.type == "conveyor" and config.fps == 10
    features = env_to_policy_features(config)
    recorded = dataset_features(config.backend, 32, as_video=True)
    assert set(features) == set(recorded)
    assert features["observation.images.head"].shape == (3, 32, 32)
    assert features["observation.images.head"].type is FeatureType.VISUAL
    assert features["action"].shape == features["observation.state"].shape == recorded["action"]["shape"]


@pytest.mark.parametrize("use_async", [False, True])
def test_the_stock_factory_makes_vector_environments(use_async: bool):
    config = ConveyorEnvConfig(task="fast", parcels=1, episode_length=30)
    envs = make_env(config, n_envs=2, use_async_envs=use_async)
    env = envs["conveyor"][0]
    try:
        observation, _ = env.reset(seed=[1000, 1001])
        batch = preprocess_observation(observation)
        assert batch["observation.images.left_wrist"].shape == (2, 3, 64, 64)
        assert batch["observation.state"].shape == (2, 6)
        assert all(text.endswith("bin") for text in env.call("task_description"))
        assert env.call("_max_episode_steps") == (30, 30)
        assert env.unwrapped.metadata["render_fps"] == 10
        assert env.call("render")[0].shape[2] == 3
        finished = np.zeros(2, dtype=bool)
        for step in range(30):
            _, _, terminated, truncated, info = env.step(observation["agent_pos"])
            if step == 0:
                wanted = [belt_speed_of_episode(seed, "fast", parcels=1) for seed in (1000, 1001)]
                assert info["belt_speed"] == pytest.approx(wanted)
            if np.any(terminated | truncated):
                assert not np.any(info["final_info"]["is_success"])
            finished |= terminated | truncated
        assert finished.all()
    finally:
        close_envs(envs)


def test_the_configuration_survives_the_command_line():
    import draccus
    from lerobot.configs.eval import EvalPipelineConfig

    arguments = ["--env.type=conveyor", "--env.task=unseen", "--env.parcels=2", "--env.belt_speed=[0.2,0.3]"]
    config = draccus.parse(EvalPipelineConfig, args=arguments)
    assert isinstance(config.env, EnvConfig) and config.env.gym_kwargs["parcels"] == 2
    assert tuple(config.env.gym_kwargs["belt_speed"]) == (0.2, 0.3)


def test_a_configuration_says_everything_that_is_wrong_at_once():
    with pytest.raises(InternVLAError, match=r"fps 30.*obs_type 'all'.*image_size 4 px.*task 'quick'"):
        ConveyorEnvConfig(task="quick", fps=30, obs_type="all", image_size=4)
    with pytest.raises(InternVLAError, match="camera_feed 'dead'"):
        ConveyorEnvConfig(camera_feed="dead")
    with pytest.raises(InternVLAError, match="Known: conveyor"):
        resolve_backend("roller")


def test_a_missing_simulator_is_named_when_it_is_needed():
    numbers = BACKENDS["conveyor"]
    broken = Backend(**{**vars(numbers), "module": "no_such_simulator", "needs": "some-distribution"})
    with pytest.raises(InternVLAError, match='pip install "some-distribution"'):
        broken.make_world(TASKS["train"])


def test_importing_the_plugin_imports_no_simulator():
    code = (
        "import sys, lerobot_internvla\n"
        "heavy = ('gym_env', 'planar.drawing', 'conveyor.recording')\n"
        "loaded = [m for m in sys.modules if m == 'cv2' or m.endswith(heavy)]\n"
        "assert not loaded, loaded\n"
        "from lerobot.envs.configs import EnvConfig\n"
        "assert 'conveyor' in EnvConfig.get_known_choices()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
