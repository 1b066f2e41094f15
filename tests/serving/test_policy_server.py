"""Where the policy server listens, and what it says without grpc."""

import builtins
from typing import Any

import pytest

from lerobot_internvla.scripts.policy_server import main


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
