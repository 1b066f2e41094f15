"""internvla-embodiments lists, shows, checks a dataset on disk, and writes a file that then fits it."""

from pathlib import Path

import pytest

from lerobot_internvla.embodiments.registry import embodiment_names, get_embodiment
from lerobot_internvla.embodiments.spec import UNITS, load_embodiment
from lerobot_internvla.scripts.embodiments import main
from lerobot_internvla.testing import tiny_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "reach"
    tiny_dataset(folder, cameras=("top", "wrist", "side"), episode_lengths=(4,), video=False)
    return folder


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_list_and_show(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in embodiment_names())
    assert main(["show", "SO-101"]) == 0
    out = capsys.readouterr().out
    for part in ("shoulder_pan.pos", "deg", "gripper: 0 and 100", "so101_follower", "source: LeRobot 0.6.1"):
        assert part in out, part
    assert main(["show", "koch", "--yaml"]) == 0
    (tmp_path / "copy.yaml").write_text(capsys.readouterr().out)
    assert load_embodiment(tmp_path / "copy.yaml") == get_embodiment("koch")
    assert main(["show", "kosh"]) == 2
    assert "did you mean 'koch'?" in capsys.readouterr().err


def test_the_documentation_has_the_presets_as_they_are(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "--markdown"]) == 0
    page = (Path(__file__).parents[2] / "docs" / "embodiments.md").read_text()
    assert capsys.readouterr().out in page, "paste the output of `internvla-embodiments list --markdown` into the page"
    for unit, meaning in UNITS.items():
        assert f"| `{unit}` | {meaning} |" in page


def test_the_file_in_the_documentation_is_one(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "embodiments.md").read_text()
    (tmp_path / "page.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    robot = load_embodiment(tmp_path / "page.yaml")
    assert robot.relative_mask == (True, True, False)


def test_an_unknown_robot_is_refused_then_described_then_fits(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["check", str(root)]) == 2
    assert "internvla-embodiments new" in capsys.readouterr().err

    mine = tmp_path / "my_robot.yaml"
    assert main(["new", str(root), "--output", str(mine)]) == 2  # "side" could be a wrist
    assert "--camera-map head=" in capsys.readouterr().err and not mine.exists()
    cameras = ["--camera-map", "head=top", "left_wrist=wrist"]
    assert main(["new", str(root), "--output", str(mine), *cameras]) == 0
    assert "'unknown' until you fill them in" in capsys.readouterr().out
    assert "# Also in the dataset, not used: observation.images.side" in mine.read_text()
    assert str(root) not in mine.read_text()  # a checkpoint carries the file on

    assert main(["check", str(root), "--embodiment", str(mine)]) == 0
    out = capsys.readouterr().out
    assert "observation.images.top" in out and "the unit of 8 dims is unknown" in out and out.endswith("FITS\n")
    assert main(["new", str(root), "--output", str(mine), *cameras]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_check_prints_what_does_not_fit_and_ends_with_1(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(root), "--embodiment", "so101"]) == 1
    out = capsys.readouterr().out
    assert "4 dims of 6" in out and "PROBLEM: action: expected 6 dims" in out
    assert out.endswith("DOES NOT FIT: 2 problems\n")
    assert (
        main(["check", str(root), "--embodiment", "human_video", "--foresight-only", "--camera-map", "head=top"]) == 0
    )
    assert "left out" in capsys.readouterr().out


def test_a_check_doubts_units_and_another_robots_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "arm"
    names = get_embodiment("so101").action_names
    tiny_dataset(root, joint_names=names, cameras=("top",), episode_lengths=(4,), video=False)
    info = root / "meta" / "info.json"
    info.write_text(info.read_text().replace('"tiny"', '"so101_follower"'))
    assert main(["check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "embodiment: so101, by the dataset's robot_type 'so101_follower'" in out
    assert "no joint goes beyond" in out and "degrees. Radians?" in out
    assert main(["check", str(root), "--embodiment", "koch"]) == 0
    assert "robot_type 'so101_follower' is that of so101" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "no/such/folder"], "neither a folder nor a Hub id"),
        (["check", "ROOT", "--camera-map", "head"], "expected SLOT=CAMERA"),
        (["check", "ROOT", "--embodiment", "so101", "--camera-map", "head=top", "head=wrist"], "given twice"),
        (["new", "ROOT", "--output", "robot.txt"], r"ends in .yaml"),
        (["new", "ROOT", "--output", "9.yaml", "--camera-map", "head=top"], "expected lower case letters"),
    ],
)
def test_wrong_input(arguments: list[str], message: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = [str(root) if argument == "ROOT" else argument for argument in arguments]
    if arguments[-1] == "head":
        arguments[2:2] = ["--embodiment", "so101"]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
