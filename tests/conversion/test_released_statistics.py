"""Which robot a stats.json is about: inferred where nothing is in doubt, asked for where something is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversion.released_files import robot_statistics
from lerobot_internvla.action_space import mean_std_normalize, relative_mask_for
from lerobot_internvla.camera_slots import resolve_camera_slots
from lerobot_internvla.conversion.released_statistics import UNNAMED, describe_robot, read_statistics
from lerobot_internvla.embodiments.released import RELEASED_EMBODIMENTS, ReleasedEmbodiment, embodiment_named
from lerobot_internvla.errors import InternVLAError

ALOHA = robot_statistics({"observation.state": 14, "action": 14})


def features_of(row: ReleasedEmbodiment) -> dict[str, int]:
    return {key: dim or 3 for key, dim in (*row.state, *row.action)}


@pytest.mark.parametrize("row", RELEASED_EMBODIMENTS, ids=lambda row: row.name)
def test_a_row_is_consistent(row: ReleasedEmbodiment):
    assert resolve_camera_slots(list(row.cameras.values())) == row.cameras
    if row.names is not None:
        assert len(row.names) == row.dims(row.state) == row.dims(row.action) == len(row.relative or ())
        assert relative_mask_for(row.names, row.names) == row.relative
    assert all(embodiment_named(name.upper().replace("_", "-")) is row for name in (row.name, *row.aliases))


@pytest.mark.parametrize("row", RELEASED_EMBODIMENTS, ids=lambda row: row.name)
def test_a_known_robot_type_decides(row: ReleasedEmbodiment):
    entry = robot_statistics(features_of(row))
    robot = describe_robot({row.name: entry}, actions=None if row.relative is None else "relative")
    assert robot.embodiment is row
    assert robot.representation == ("absolute" if row.relative is None else "relative")
    assert robot.state is not None
    first = row.state[0][0]
    assert robot.state.mean[: len(entry[first]["mean"])].tolist() == entry[first]["mean"]


def test_keys_and_dims_decide_for_an_unknown_robot_type():
    genie = features_of(next(row for row in RELEASED_EMBODIMENTS if row.name == "genie1"))
    robot = describe_robot({"my_humanoid": robot_statistics(genie)})
    assert robot.embodiment.name == "genie1"
    assert robot.statistics_key == "my_humanoid"


def test_several_candidates_are_listed():
    with pytest.raises(InternVLAError, match="can be read for 3 robots") as caught:
        describe_robot({"my_robot": ALOHA})
    for name in ("aloha", "split_aloha", "generic"):
        assert f"--embodiment {name}\n" in f"{caught.value}\n"
    assert describe_robot({"my_robot": ALOHA}, embodiment="aloha").embodiment.name == "aloha"


def test_several_robot_types_are_listed_with_their_keys():
    franka = robot_statistics(features_of(next(r for r in RELEASED_EMBODIMENTS if r.name == "franka")))
    entries = {"aloha": ALOHA, "Franka": franka}
    with pytest.raises(InternVLAError) as caught:
        describe_robot(entries)
    assert "--embodiment franka --stats-key 'Franka'" in str(caught.value)
    assert describe_robot(entries, embodiment="franka").action_dim == 8
    assert describe_robot(entries, statistics_key="Franka").embodiment.name == "franka"
    with pytest.raises(InternVLAError, match=r"has no robot type 'ur5'\. It has: 'aloha', 'Franka'"):
        describe_robot(entries, statistics_key="ur5")


def test_statistics_that_fit_no_robot_say_why():
    entry = robot_statistics({"observation.state": 16, "action": 14})
    with pytest.raises(InternVLAError, match=r"'aloha' is not aloha: observation\.state has 16 dims, expected 14"):
        describe_robot({"aloha": entry})
    with pytest.raises(InternVLAError, match=r"hand\.pose \(4\)"):
        describe_robot({"hand": robot_statistics({"hand.pose": 4})})


def test_numbers_tell_relative_from_absolute_actions_when_they_are_far_apart():
    assert describe_robot({"aloha": ALOHA}).representation == "relative"
    absolute = robot_statistics({"observation.state": 14, "action": 14}, relative=False)
    assert describe_robot({"aloha": absolute}).representation == "absolute"


def test_numbers_that_prove_nothing_lead_to_a_question():
    entry = robot_statistics({"observation.state": 14, "action": 14})
    entry["observation.state"]["mean"] = [0.0] * 14
    with pytest.raises(InternVLAError, match="--actions relative or --actions absolute"):
        describe_robot({"aloha": entry})
    assert describe_robot({"aloha": entry}, actions="absolute").relative == (False,) * 14
    said = describe_robot({"aloha": entry}, train_config={"dataset": {"action_mode": "delta"}})
    assert said.representation == "relative"
    assert said.reasons[1] == "relative actions: dataset.action_mode in train_config.json"


def test_absolute_actions_have_no_list_of_absolute_dims():
    entries = {"aloha": robot_statistics({"observation.state": 14, "action": 14})}
    with pytest.raises(InternVLAError, match="no meaning with --actions absolute"):
        describe_robot(entries, actions="absolute", absolute_dims=(6,))


def test_dims_that_stay_absolute_can_be_listed():
    entry = robot_statistics({"observation.state": 5, "action": 5})
    with pytest.raises(InternVLAError, match="has no list of relative dims"):
        describe_robot({"pusht": entry}, actions="relative")
    robot = describe_robot({"pusht": entry}, actions="relative", absolute_dims=(4,))
    assert robot.relative == (True, True, True, True, False)
    with pytest.raises(InternVLAError, match=r"\[7\] are outside 0 to 4"):
        describe_robot({"pusht": entry}, actions="relative", absolute_dims=(7,))


def test_normalisation_is_the_references_also_where_a_dim_hardly_moves():
    entry = robot_statistics({"observation.state": 14, "action": 14})
    entry["action"]["std"][0] = 2e-6  # the weights have learned numbers that were divided by this
    still = entry["observation.state"]
    still["std"][3], still["min"][3], still["max"][3] = 0.0, still["mean"][3], still["mean"][3]
    space = describe_robot({"aloha": entry}, actions="absolute").action_space(32, 32)
    assert float(space.action_std[0]) == pytest.approx(2e-6)
    state = torch.tensor([still["mean"]]) + 0.01
    normalised = space.normalize_state(state)[0, :14]
    assert float(normalised[3]) == pytest.approx(0.01, rel=1e-3)  # never moved: not divided by 1e-6
    expected = mean_std_normalize(state, torch.tensor(still["mean"]), torch.tensor(still["std"]))[0]
    moving = torch.arange(14) != 3
    assert torch.equal(normalised[moving], expected[moving])


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"aloha": {"action": [1]}}', '{"a": {"mean": 1}, "b": 2}'])
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str):
    (tmp_path / "stats.json").write_text(content)
    with pytest.raises(InternVLAError, match=r"stats\.json"):
        read_statistics(tmp_path / "stats.json")


def test_a_file_of_one_robot_may_lack_the_robot_type(tmp_path: Path):
    (tmp_path / "stats.json").write_text(json.dumps(ALOHA))
    entries = read_statistics(tmp_path / "stats.json")
    assert list(entries) == [UNNAMED]
    assert describe_robot(entries, embodiment="aloha").statistics_key is None


@pytest.mark.parametrize("broken", [{"std": None}, {"mean": ["x"] * 14}, {"std": [np.nan] * 14}, {"min": [0.0]}])
def test_numbers_that_are_none_are_refused(broken: dict[str, Any]):
    entry = {**ALOHA, "action": {**ALOHA["action"], **broken}}
    with pytest.raises(InternVLAError, match="statistics of 'aloha' cannot be used"):
        describe_robot({"aloha": entry})
