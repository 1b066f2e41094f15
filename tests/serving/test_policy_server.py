"""Where the policy server listens, what it says without grpc, and what it does otherwise than LeRobot's."""

import builtins
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lerobot.policies import make_pre_post_processors
from lerobot.utils.feature_utils import hw_to_dataset_features

from lerobot_internvla import InternVLAError
from lerobot_internvla.embodiments.registry import get_embodiment
from lerobot_internvla.scripts.policy_server import main
from lerobot_internvla.testing import tiny_policy


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # LeRobot's server makes a folder for logs where it is imported


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "robot.example.org", ""])
def test_other_computers_are_refused_unless_asked_for(host: str, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("grpc")
    assert main([f"--host={host}", "--port=9009"]) == 2
    told = capsys.readouterr().err
    assert "unpickles" in told and "ssh -N -L 9009:127.0.0.1:9009" in told and "--allow_any_peer=true" in told


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--port=99999", ["between 1 and 65535", "99999"]),
        ("--fps=0", ["--fps=0", "more than 0"]),
        ("--rename_map=top", ["--rename_map=top", "expected a map", "'{"]),
        ("--fps=fast", ["`fps`", "'fast'"]),
    ],
)
def test_wrong_settings_are_told_without_a_traceback(flag: str, parts: list[str], capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("grpc")
    assert main([flag]) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in parts) and "Traceback" not in told


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_this_computer_is_always_allowed(host: str):
    pytest.importorskip("grpc")
    from lerobot_internvla.serving.policy_server import InternVLAPolicyServerConfig, refuse_public_address

    refuse_public_address(host, 8080)
    assert InternVLAPolicyServerConfig().host == "127.0.0.1"
    assert InternVLAPolicyServerConfig(host="0.0.0.0", allow_any_peer=True).host == "0.0.0.0"


def test_a_missing_grpc_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    stock = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("lerobot_internvla.serving.policy_server"):
            raise ModuleNotFoundError("No module named 'grpc'")
        return stock(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main([]) == 2
    assert "lerobot_policy_internvla_a1[async]" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- one robot, no network

JOINTS = ("a.pos", "b.pos", "c.pos", "grip.pos")
SIZE = (90, 120, 3)
"""Of the robot's one camera, ``top``; the policy was trained on 48 x 64."""


def serve(folder: Path, trained_joints: tuple[str, ...] | None = None, **settings: Any) -> Any:
    """A server that a client has told which policy to load, one that was trained on these joints."""
    pytest.importorskip("grpc")
    from lerobot.async_inference.helpers import RemotePolicyConfig

    from lerobot_internvla.serving.policy_server import InternVLAPolicyServer, InternVLAPolicyServerConfig

    policy = tiny_policy(cameras=["head"], image_size=(48, 64))
    policy.config.state_feature_names = None if trained_joints is None else list(trained_joints)
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config):
        pipeline.save_pretrained(folder)
    features = hw_to_dataset_features({**dict.fromkeys(JOINTS, float), "top": SIZE}, "observation")
    server: Any = InternVLAPolicyServer(InternVLAPolicyServerConfig(fps=30, **settings))
    client = SimpleNamespace(peer=lambda: "a robot")
    server.Ready(None, client)
    told = RemotePolicyConfig("internvla_a1", str(folder), features, 10)
    server.SendPolicyInstructions(SimpleNamespace(data=pickle.dumps(told)), client)
    return server


def observation(step: int, picture: int) -> Any:
    """The arm rests; the picture does not."""
    from lerobot.async_inference.helpers import TimedObservation

    joints = dict.fromkeys(JOINTS, 0.25)
    return TimedObservation(step / 30, step, {**joints, "top": np.full(SIZE, picture, np.uint8), "task": "wait"})


HEAD = {"observation.images.top": "observation.images.head"}


def test_a_world_that_moves_around_a_resting_arm_is_seen(tmp_path: Path):
    """LeRobot drops observations whose joints have moved by less than 1; for other policies it still does."""
    server = serve(tmp_path / "policy", rename_map=HEAD)
    assert server._enqueue_observation(observation(0, 0))
    server._predict_action_chunk(server.observation_queue.get())
    server.last_processed_obs = observation(0, 0)
    assert server._enqueue_observation(observation(1, 200))
    assert server._obs_sanity_checks(observation(2, 90), observation(1, 200))
    server._view = None
    server.policy.config.input_features = {}
    assert not server._obs_sanity_checks(observation(2, 90), observation(1, 200))


def test_pictures_reach_the_policy_as_the_camera_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """LeRobot stretches them to the size of the training data; the policy letterboxes, as in training."""
    server = serve(tmp_path / "policy", rename_map=HEAD)
    shown: list[Any] = []
    stock = server.policy.predict_action_chunk
    monkeypatch.setattr(
        server.policy, "predict_action_chunk", lambda batch, **kw: (shown.append(batch), stock(batch, **kw))[1]
    )
    server._enqueue_observation(observation(0, 51))
    assert len(server._predict_action_chunk(server.observation_queue.get())) == 10
    picture = shown[0]["observation.images.head"]
    assert picture.shape[-2:] == SIZE[:2] and float(picture.max()) == pytest.approx(51 / 255)


def test_cameras_of_other_names_are_told_with_the_flag_that_renames_them(tmp_path: Path):
    with pytest.raises(InternVLAError, match=r"observation.images.head.*--rename_map="):
        serve(tmp_path / "policy")


def test_joints_in_another_order_are_refused_when_the_client_says_who_it_is(tmp_path: Path):
    others = (JOINTS[1], JOINTS[0], *JOINTS[2:])
    with pytest.raises(InternVLAError, match=r"another order.*a.pos, b.pos.*the policy: b.pos, a.pos"):
        serve(tmp_path / "policy", trained_joints=others, rename_map=HEAD)
    assert serve(tmp_path / "same", trained_joints=("a", "b", "c", "grip"), rename_map=HEAD).policy is not None


def test_limits_are_looked_up_by_the_robot_of_the_training_data(tmp_path: Path):
    """The client does not tell what it drives, and Koch and SO arms have joints of the same names in other units."""
    so = get_embodiment("so101")
    server = serve(tmp_path / "policy", rename_map=HEAD)
    server.policy.config.action_feature_names = list(so.action_names)
    for robot_type, limited in ((None, False), ("koch_follower", False), ("so_follower", True)):
        server._limits_looked_up, server._limiter, server.policy.config.robot_type = False, None, robot_type
        limiter = server._find_limiter()
        assert (limiter is not None) == limited
        assert limiter is None or "so101" in limiter.limits.source
