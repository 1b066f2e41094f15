"""What internvla-check finds: each trouble, by name, before a robot moves."""

from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.evaluation import readiness
from lerobot_internvla.evaluation.loading import LoadedPolicy, load_policy
from lerobot_internvla.robots.config_conveyor import ConveyorRobotConfig
from lerobot_internvla.testing import tiny_config

JOINTS = ("left_x", "left_y", "left_gripper", "right_x", "right_y", "right_gripper")
CAMERAS = ("head", "left_wrist", "right_wrist")


@pytest.fixture
def robot():
    """Built from its configuration, not connected."""
    from lerobot_internvla.robots.conveyor import ConveyorRobot

    return ConveyorRobot(ConveyorRobotConfig(id="test"))


def policy_config(**changes):
    fields = {"action_feature_names": list(JOINTS), "state_feature_names": list(JOINTS), "fps": 10.0, **changes}
    return tiny_config(**{"cameras": CAMERAS, "state_dim": 6, "action_dim": 6, **fields})


def judge(config, around, rename_map=None):
    """(area, verdict) of everything that is compared, and all texts."""
    expected = readiness.expected_here(config, around)
    found = readiness.check_cameras(config, expected, around, rename_map or {})
    found += readiness.check_joints(expected, around)
    return {(finding.area, finding.verdict) for finding in found}, "\n".join(f"{f.text} {f.advice}" for f in found)


def test_a_robot_that_fits_is_ok_without_being_connected(robot):
    around = readiness.surroundings_of_robot(robot, 10.0)
    assert not robot.is_connected
    verdicts, text = judge(policy_config(), around)
    assert verdicts == {("cameras", "ok"), ("joints", "ok")}
    assert "left_wrist -> slot left_wrist, 64 x 64" in text
    assert "state: left_x.pos, left_y.pos" in text


def test_a_missing_camera_is_a_failure_with_the_flag_that_mends_it(robot):
    around = readiness.surroundings_of_robot(robot, 10.0)
    verdicts, text = judge(policy_config(cameras=("top", "left_wrist")), around)
    assert ("cameras", "failure") in verdicts
    assert "reads observation.images.top" in text and '--rename_map=\'{"observation.images.head"' in text
    names = {"observation.images.head": "observation.images.top"}
    verdicts, text = judge(policy_config(cameras=("top", "left_wrist")), around, names)
    assert ("cameras", "failure") not in verdicts
    assert "top (renamed from head) -> slot head" in text and "not used by the policy: right_wrist" in text


def test_another_shape_of_picture_is_a_warning(robot):
    around = readiness.surroundings_of_robot(robot, 10.0)
    verdicts, text = judge(policy_config(image_size=(48, 64)), around)
    assert ("cameras", "warning") in verdicts and "64 x 64; the policy was trained on 48 x 64" in text


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"state_dim": 7, "state_feature_names": None}, "failure", "robot conveyor has 6 dims"),
        ({"state_feature_names": [*JOINTS[3:], *JOINTS[:3]]}, "failure", "the same joints in another order"),
        ({"action_feature_names": [*JOINTS[3:], *JOINTS[:3]]}, "failure", "the same joints in another order"),
        ({"state_feature_names": [f"joint_{i}" for i in range(6)]}, "warning", "other names"),
        ({"state_feature_names": None}, "warning", "order cannot be checked"),
    ],
)
def test_joints_that_do_not_fit(robot, changes, verdict, words):
    verdicts, text = judge(policy_config(**changes), readiness.surroundings_of_robot(robot, 10.0))
    assert ("joints", verdict) in verdicts and words in text


def test_a_policy_of_several_robots_is_held_against_the_one_at_hand(robot):
    from lerobot_internvla.embodiments.registry import get_embodiment
    from lerobot_internvla.embodiments.rows import Row

    rows = {name: Row(get_embodiment(name), 10.0).to_dict() for name in ("conveyor", "aloha")}
    config = policy_config(state_dim=32, action_dim=32, fps=None, foresight_interval_s=0.5, embodiments=rows)
    config.action_feature_names = config.state_feature_names = None
    verdicts, _ = judge(config, readiness.surroundings_of_robot(robot, 10.0))
    assert verdicts == {("cameras", "ok"), ("joints", "ok")}
    assert config.embodiment == "conveyor"


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "ok", "commands are limited, preset conveyor: left_x.pos 0..1 scene"),
        ({"limit_actions": False}, "ok", "not limited: switched off"),
        ({"embodiment": "so101"}, "failure", "describes a robot with the commands shoulder_pan.pos"),
        ({"embodiment": "my_conveyer"}, "failure", "Unknown robot 'my_conveyer'"),
    ],
)
def test_which_limits_commands_will_meet(robot, changes, verdict, words):
    around = readiness.surroundings_of_robot(robot, 10.0)
    (found,) = readiness.check_limits(policy_config(**changes), around)
    assert (found.area, found.verdict) == ("limits", verdict) and words in found.text
    (found,) = readiness.check_limits(policy_config(), replace(around, robot_type="another"))
    assert found.verdict == "warning" and "no limits are known" in found.text
    assert "internvla-embodiments new" in found.advice and "--policy.embodiment=" in found.advice
    assert readiness.check_limits(SimpleNamespace(), around) == [], "another policy"


@pytest.mark.parametrize(
    ("trained", "fps", "verdicts", "words"),
    [
        (10.0, 10.0, ["ok", "ok"], "past frame is 3 ticks old: 0.3 s"),
        (10.0, 20.0, ["failure", "ok"], "every motion runs 2.00 times as fast"),
        (10.0, 25.0, ["failure", "failure"], "not a whole number"),
        (10.0, None, ["warning"], "control rate is not given"),
    ],
)
def test_rates(trained, fps, verdicts, words):
    found = readiness.check_rate(policy_config(fps=trained), trained, fps)
    assert [finding.verdict for finding in found] == verdicts
    assert any(words in finding.text for finding in found)


@pytest.mark.parametrize(
    ("seconds", "rtc", "verdicts", "words"),
    [
        (0.02, True, ["ok", "ok"], "a chunk is ready within one tick (33.3 ms): the arm does not wait"),
        (0.12, True, ["ok", "warning", "ok"], "the arm would wait 120 ms every 1.7 s (50 actions at 30 fps)"),
        (0.12, False, ["ok", "warning"], "120 ms"),
        (1.2, True, ["ok", "warning", "ok"], "36 of 50 actions pass during a prediction"),
        (1.8, True, ["ok", "warning", "failure"], "it stands still more than it moves"),
    ],
)
def test_what_a_latency_means_for_the_arm(seconds, rtc, verdicts, words):
    config = SimpleNamespace(n_action_steps=50, chunk_size=50, device="cpu")
    found = readiness.check_latency(config, [seconds, seconds, 3 * seconds], 30.0, supports_rtc=rtc)
    assert [finding.verdict for finding in found] == verdicts
    assert any(words in finding.text for finding in found)
    if len(verdicts) > 1 and verdicts[1] == "warning":
        assert ("rtc" in found[1].advice) is rtc


@pytest.mark.parametrize("kind", ["ours", "act"])
def test_the_latency_of_any_policy_is_measured(kind, request):
    policy = load_policy(str(request.getfixturevalue(kind)))
    times = readiness.measure_chunk_s(policy, 2)
    assert len(times) == 2 and min(times) > 0
    (memory,) = readiness.check_memory(policy)
    count = sum(parameter.numel() for parameter in policy.policy.parameters())
    assert memory.text.startswith(f"{count / 1e6:.1f} million parameters")


def test_a_policy_that_predicts_nan_is_stopped_here(ours):
    policy = load_policy(str(ours))
    broken = LoadedPolicy(policy.name, "", policy.policy, policy.preprocess, lambda chunks: chunks * torch.nan)
    with pytest.raises(InternVLAError, match="NaN or infinite"):
        readiness.measure_chunk_s(broken, 1)


def test_the_plugin_must_be_installed_under_its_exact_name(monkeypatch):
    """pip treats dashes and underscores alike; LeRobot does not."""
    found = SimpleNamespace(metadata={"Name": "lerobot-policy-internvla-a1"})
    monkeypatch.setattr(metadata, "distributions", lambda: [found])
    (finding,) = readiness.check_plugin()
    assert finding.verdict == "failure" and "'lerobot-policy-internvla-a1'" in finding.text
    monkeypatch.setattr(metadata, "distributions", lambda: [])
    assert "not at all" in readiness.check_plugin()[0].text


def test_the_installed_plugin_is_found_as_lerobots_commands_find_it():
    (finding,) = readiness.check_plugin()
    assert finding.verdict == "ok", finding


def test_versions_are_held_against_what_this_package_asks_for(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.5.0" if name == "lerobot" else real(name))
    found = readiness.check_versions()
    assert [f.text for f in found if f.verdict == "failure"] == [
        next(f.text for f in found if f.text.startswith("lerobot 0.5.0, and lerobot_policy_internvla_a1"))
    ]


def test_a_device_that_is_not_here_is_a_failure():
    verdicts = [finding.verdict for finding in readiness.check_device("cpu")]
    assert "failure" not in verdicts
    if not torch.cuda.is_available():
        assert [finding.verdict for finding in readiness.check_device("cuda")] == ["ok", "failure"]


def test_depth_cameras_and_unknown_sizes():
    camera = SimpleNamespace(
        name="arm",
        observation_features={"a.pos": float, "top": (None, None, 3), "top_depth": (48, 64, 1), "torque": float},
        action_features={"a.pos": float},
    )
    around = readiness.surroundings_of_robot(camera, 30.0)
    assert around.cameras == ["observation.images.top"]
    assert around.features["observation.state"]["names"] == ["a.pos"]
    config = tiny_config(cameras=["top"], state_dim=1, action_dim=1)
    _, text = judge(config, around)
    assert "its size is known when the robot is connected" in text


def test_a_policy_without_names_or_rate_is_checked_by_widths():
    """LeRobot's own policies note neither."""
    features = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 48, 64))}
    config = SimpleNamespace(
        **{"type": "act", "input_features": features, "image_features": features},
        robot_state_feature=PolicyFeature(FeatureType.STATE, (2,)),
        action_feature=PolicyFeature(FeatureType.ACTION, (2,)),
    )
    around = readiness.Surroundings(
        "dataset x",
        {
            "observation.images.top": {"dtype": "video", "shape": (48, 64, 3)},
            "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
            "action": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
        },
        30.0,
        None,
        "dataset",
    )
    verdicts, _ = judge(config, around)
    assert verdicts == {("cameras", "ok"), ("joints", "warning")}
