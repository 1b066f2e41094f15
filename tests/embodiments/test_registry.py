"""Presets are package data, found by any spelling; they agree with LeRobot's robots and the released checkpoint."""

from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from embodiments.features import dataset_of, numbers
from lerobot_internvla.camera_slots import short_name
from lerobot_internvla.embodiments.matching import infer_embodiment, match_features
from lerobot_internvla.embodiments.registry import embodiment_names, get_embodiment, presets
from lerobot_internvla.embodiments.released import RELEASED_EMBODIMENTS
from lerobot_internvla.embodiments.spec import Embodiment, load_embodiment
from lerobot_internvla.envs.conveyor.backend import BACKENDS
from lerobot_internvla.envs.conveyor.task import CAMERAS
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.architecture import CAMERA_SLOTS, VARIANTS

FOLDER = resources.files("lerobot_internvla.embodiments") / "presets"


def test_the_robots_of_the_documentation_are_there():
    wanted = "so100 so101 koch lekiwi aloha arx_lift2 arx_ac_one split_aloha genie1 a2d franka r1lite openarm"
    assert {*wanted.split(), "libero_panda", "human_video", "conveyor"} <= set(embodiment_names())
    assert list(embodiment_names()) == sorted(embodiment_names())


def test_every_file_is_a_preset_named_like_it():
    files = [item.name for item in FOLDER.iterdir()]
    assert sorted(files) == [f"{name}.yaml" for name in embodiment_names()]


@pytest.mark.parametrize("name", embodiment_names())
def test_a_preset_fits_the_model_and_explains_itself(name: str):
    robot = get_embodiment(name)
    assert max(robot.state_dim, robot.action_dim) <= VARIANTS["3b"].max_state_dim
    assert len(robot.source) > 40
    # Fast to say, easy to get wrong: only the released 'panda' moves its gripper relative to the state.
    relative_grippers = [
        dim for dim, relative in zip(robot.action_names, robot.relative_mask, strict=True) if relative and "grip" in dim
    ]
    assert not relative_grippers


@pytest.mark.parametrize("spelling", ["so101", "SO-101", "so 101", "So101_Follower", "so101follower"])
def test_any_spelling_of_a_name_or_a_robot_type(spelling: str):
    assert get_embodiment(spelling).name == "so101"


def test_your_own_file_by_path(tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text((FOLDER / "koch.yaml").read_text().replace("name: koch", "name: mine"))
    assert get_embodiment(str(mine)) == get_embodiment(mine) == load_embodiment(mine)
    assert get_embodiment(mine).name == "mine"
    with pytest.raises(InternVLAError, match=r"There is no file '.*absent\.yaml'"):
        get_embodiment(str(tmp_path / "absent.yaml"))


def test_unknown_and_shared_names():
    with pytest.raises(InternVLAError, match=r"Unknown robot 'lekivi' \(did you mean 'lekiwi'\?\).*new <dataset>"):
        get_embodiment("lekivi")
    with pytest.raises(InternVLAError, match="several embodiments: so100, so101"):
        get_embodiment("so_follower")


# ----------------------------------------------------------------------------------------------------- LeRobot's robots


class Bus:
    """Stands where LeRobot's motor bus talks to hardware, and keeps the motors that it was given."""

    def __init__(self, port: str, motors: dict[str, Any], **others: Any) -> None:
        self.motors = motors


def follower(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """LeRobot's robot behind a preset, with default settings and no hardware, and its motors by feature name."""
    from lerobot.robots.bi_openarm_follower import BiOpenArmFollower, BiOpenArmFollowerConfig
    from lerobot.robots.bi_so_follower import BiSOFollower, BiSOFollowerConfig
    from lerobot.robots.koch_follower import KochFollower, KochFollowerConfig, koch_follower
    from lerobot.robots.lekiwi import LeKiwi, LeKiwiConfig, lekiwi
    from lerobot.robots.openarm_follower import OpenArmFollower, OpenArmFollowerConfig, openarm_follower
    from lerobot.robots.openarm_follower.config_openarm_follower import OpenArmFollowerConfigBase
    from lerobot.robots.so_follower import SOFollower, SOFollowerConfig, SOFollowerRobotConfig, so_follower

    monkeypatch.setattr(so_follower, "FeetechMotorsBus", Bus)
    monkeypatch.setattr(lekiwi, "FeetechMotorsBus", Bus)
    monkeypatch.setattr(koch_follower, "DynamixelMotorsBus", Bus)
    monkeypatch.setattr(openarm_follower, "DamiaoMotorsBus", Bus)
    so, openarm = SOFollowerConfig(port=""), OpenArmFollowerConfigBase(port="")
    here: dict[str, Any] = {"calibration_dir": folder}
    robot: Any = {
        "so100": lambda: SOFollower(SOFollowerRobotConfig(port="", **here)),
        "so101": lambda: SOFollower(SOFollowerRobotConfig(port="", **here)),
        "koch": lambda: KochFollower(KochFollowerConfig(port="", **here)),
        "lekiwi": lambda: LeKiwi(LeKiwiConfig(cameras={}, **here)),
        "openarm": lambda: OpenArmFollower(OpenArmFollowerConfig(port="", **here)),
        "bi_so": lambda: BiSOFollower(BiSOFollowerConfig(left_arm_config=so, right_arm_config=so, **here)),
        "bi_openarm": lambda: BiOpenArmFollower(
            BiOpenArmFollowerConfig(left_arm_config=openarm, right_arm_config=openarm, **here)
        ),
    }[name]()
    if hasattr(robot, "bus"):
        return robot, {f"{motor}.pos": value for motor, value in robot.bus.motors.items()}
    arms = {"left": robot.left_arm, "right": robot.right_arm}
    return robot, {
        f"{side}_{motor}.pos": value for side, arm in arms.items() for motor, value in arm.bus.motors.items()
    }


@pytest.mark.parametrize("name", ["so100", "so101", "bi_so", "koch", "lekiwi", "openarm", "bi_openarm"])
def test_presets_agree_with_lerobots_robots(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    robot, motors = follower(name, tmp_path, monkeypatch)
    preset = get_embodiment(name)
    assert robot.name in preset.robot_types  # what lerobot-record writes as the dataset's robot_type
    assert preset.action_names == tuple(robot.action_features)
    assert preset.state_names == tuple(robot.observation_features)
    units = {"degrees": "deg", "range_0_100": "0..100", "range_m100_100": "-100..100"}
    for dim in (*preset.state[0].dims, *preset.action[0].dims):
        if dim.name in motors:
            assert dim.unit == units[motors[dim.name].norm_mode.value], dim
        else:
            assert dim.name.endswith(".vel") and not dim.relative


def test_the_client_of_a_lekiwi_and_its_cameras():
    from lerobot.robots.lekiwi import LeKiwiClient, LeKiwiConfig

    preset = get_embodiment("lekiwi")
    assert LeKiwiClient.name in preset.robot_types
    assert {names[0] for names in preset.cameras.values()} == set(LeKiwiConfig().cameras)


def test_the_panda_agrees_with_lerobots_libero():
    from lerobot.envs.configs import LiberoEnv
    from lerobot.processor.env_processor import LiberoProcessorStep

    preset = get_embodiment("libero_panda")
    env = LiberoEnv()
    made = LiberoProcessorStep().transform_features({})
    (state,) = (feature for features in made.values() for feature in features.values())
    assert (preset.state_dim,) == state.shape
    assert (preset.action_dim,) == env.features["action"].shape
    cameras = {short_name(key) for key in env.features_map.values() if "images" in key}
    assert {names[0] for names in preset.cameras.values()} == cameras
    assert not any(preset.relative_mask)


def test_aloha_agrees_with_lerobots_environments():
    from lerobot.envs.configs import AlohaEnv, RoboTwinEnvConfig

    preset = get_embodiment("aloha")
    for env, cameras in ((AlohaEnv(), ["top"]), (RoboTwinEnvConfig(), ["head_camera", "left_camera", "right_camera"])):
        assert env.features["action"].shape == env.features["agent_pos"].shape == (preset.action_dim,)
        keys = {short_name(key) for key in env.features_map.values() if key.startswith("observation.images")}
        assert keys == set(cameras)
        for camera, slot in zip(cameras, CAMERA_SLOTS, strict=False):
            assert camera in preset.cameras[slot]


@pytest.mark.parametrize("name", BACKENDS)
def test_the_conveyors_agree_with_our_own_environments(name: str):
    preset, backend = get_embodiment(name), BACKENDS[name]
    assert preset.robot_types == (backend.name,) and preset.fps == backend.fps
    assert preset.state_names == preset.action_names == backend.action_names
    assert dict(preset.cameras) == {camera: (camera,) for camera in CAMERAS}
    for dim, low, high in zip(preset.action[0].dims, backend.action_low, backend.action_high, strict=True):
        assert dim.relative == (dim.unit in ("scene", "rad")) == ("gripper" not in dim.name)
        assert dim.relative or (low, high) == (0, 1)
    # LeRobot's robot commands append ".pos".
    recorded = dataset_of(preset, [f"observation.images.{camera}" for camera in CAMERAS])
    for key in ("observation.state", "action"):
        recorded[key] = numbers(*(f"{joint}.pos" for joint in backend.action_names))
    assert len(match_features(infer_embodiment(backend.name, recorded), recorded).cameras) == 3


# ------------------------------------------------------------------------------------------- the released checkpoint

WITHOUT_PRESET = {
    "split_aloha": "that robot type with one key per state and action, and one camera, is the reference's fallback; "
    "the robot itself is 'AgileX Split Aloha', whose preset is split_aloha",
    "frankarobotiq": "the reference's fallback layout, known only from its mask of relative dims",
    "generic": "what the reference takes for any robot that it does not know; here such a robot is refused",
}
SAME_LAYOUT = {"piper": ("piper", "arx_lift2", "arx_ac_one", "split_aloha")}


@pytest.mark.parametrize("row", RELEASED_EMBODIMENTS, ids=lambda row: row.name)
def test_presets_agree_with_the_released_checkpoints_robots(row: Any):
    if row.name in WITHOUT_PRESET:
        return
    for name in SAME_LAYOUT.get(row.name, (row.name,)):
        preset = get_embodiment(name)
        for ours, theirs in ((preset.state, row.state), (preset.action, row.action)):
            assert [part.key for part in ours] == [key for key, _ in theirs]
            # r1lite: the reference leaves the widths to the statistics; the preset has Galaxea's own.
            assert all(width in (None, len(part.dims)) for part, (_, width) in zip(ours, theirs, strict=True))
            assert row.name == "r1lite" or None not in [width for _, width in theirs]
        # No relative form in the reference (r1lite): none in the preset. 'panda' moves its last dim, a gripper, too.
        assert preset.relative_mask == (row.relative or (False,) * preset.action_dim)
        assert {slot: short_name(names[0]) for slot, names in preset.cameras.items()} == {
            slot: short_name(key) for slot, key in row.cameras.items()
        }


def test_every_released_robot_has_a_preset_or_a_reason():
    covered = {preset for row in RELEASED_EMBODIMENTS for preset in SAME_LAYOUT.get(row.name, (row.name,))}
    assert covered - set(WITHOUT_PRESET) <= set(presets())
    spellings = [alias for row in RELEASED_EMBODIMENTS for alias in row.aliases if row.name not in WITHOUT_PRESET]
    for alias in spellings:
        assert isinstance(get_embodiment(alias), Embodiment)
