"""Open-loop error against arithmetic by hand, and what policies are shown while it is measured."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.evaluation.joints import Joint, Joints
from lerobot_internvla.evaluation.loading import distinct_names, load_policy, training_episodes
from lerobot_internvla.evaluation.open_loop import HOLD, REPEAT, evaluate_open_loop
from lerobot_internvla.evaluation.report import as_dict, build_page
from scripted_policy import INTERVAL, JOINTS, LENGTHS, Oracle, Scripted, loaded, scripted


def evaluate(policies, dataset, **options):
    return evaluate_open_loop(policies, dataset, show_progress=False, **options)


def by_hand(recorded, answer, stride, steps):
    """Mean absolute error per joint of ``answer(episode, start)`` over the first ``steps``; ends of episodes cut."""
    errors = []
    for episode, (_, actions) in enumerate(recorded):
        for start in range(0, len(actions), stride):
            true = actions[start : start + steps]
            errors.append((answer(episode, start) - true).abs())
    return torch.cat(errors).double().mean(dim=0)


def test_errors_are_those_computed_by_hand_and_end_with_the_episode(dataset, recorded):
    result = evaluate([scripted(0.25)], dataset, stride=4, batch_size=3)
    assert result.starts == 3 + 3 + 2
    errors = result.policies[0].errors
    torch.testing.assert_close(errors.mae(), by_hand(recorded, lambda e, s: 0.25, 4, 6), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        result.policies[0].executed.mae(), by_hand(recorded, lambda e, s: 0.25, 4, 3), atol=1e-6, rtol=1e-5
    )
    # Steps 0 to 5 of starts 0, 4, 8 of 12 frames; 0, 4, 8 of 9; 0, 4 of 7.
    assert errors.count[:, 0].tolist() == [8, 7, 7, 6, 5, 4]


def test_baselines_are_those_computed_by_hand(dataset, recorded):
    result = evaluate([scripted()], dataset, stride=3)
    held = by_hand(recorded, lambda e, s: recorded[e][0][s], 3, 6)
    torch.testing.assert_close(result.baseline(HOLD, 6).mae(), held, atol=1e-6, rtol=1e-5)

    def last(episode, start):  # where nothing was commanded yet, the state stands in
        states, actions = recorded[episode]
        return actions[start - 1] if start else states[0]

    repeated = by_hand(recorded, last, 3, 6)
    torch.testing.assert_close(result.baseline(REPEAT, 6).mae(), repeated, atol=1e-6, rtol=1e-5)


def test_a_policy_sees_the_present_and_nothing_else(dataset):
    policy = scripted()
    evaluate([policy], dataset, stride=5, batch_size=2)
    shown = policy.policy.shown[0]
    assert set(shown) == {"task", "observation.state", "observation.images.head", "observation.images.left_wrist"}
    torch.testing.assert_close(shown["observation.state"][1], dataset[5]["observation.state"])
    torch.testing.assert_close(shown["observation.images.head"][1], dataset[5]["observation.images.head"])


def test_a_policy_with_a_history_sees_it_in_order(dataset):
    policy = scripted(observation_delta_indices=[-1, 0, 1, 2])  # TD-MPC and others also train on the future
    evaluate([policy, loaded(Scripted(), "other")], dataset, stride=5, batch_size=2)
    shown = policy.policy.shown[0]["observation.state"]
    torch.testing.assert_close(shown[1], torch.stack([dataset[i]["observation.state"] for i in (4, 5)]))
    torch.testing.assert_close(shown[0], torch.stack([dataset[0]["observation.state"]] * 2))


def test_ours_sees_the_frame_of_an_interval_ago_and_the_present_state(dataset, ours, monkeypatch):
    policy = load_policy(str(ours))
    shown, original = [], policy.policy.predict_action_chunk
    monkeypatch.setattr(
        policy.policy, "predict_action_chunk", lambda batch, **kw: (shown.append(batch), original(batch, **kw))[1]
    )
    evaluate([policy], dataset, stride=5, batch_size=2)
    for key in ("observation.images.head", "observation.images.left_wrist"):
        pair = torch.stack([dataset[5 - INTERVAL][key], dataset[5][key]])
        torch.testing.assert_close(shown[0][key][1], pair)
    torch.testing.assert_close(shown[0]["observation.state"][1], dataset[5]["observation.state"])


@pytest.mark.parametrize("kind", ["ours", "act"])
def test_chunks_are_those_of_lerobots_own_pipeline(kind, dataset, request):
    """One observation at a time through preprocessor, policy and postprocessor, as a robot would get them."""
    policy = load_policy(str(request.getfixturevalue(kind)))
    result = evaluate([policy], dataset, stride=6, batch_size=4, seed=7, n_plots=3)
    for plotted, first in zip(result.plotted, (0, 12, 21), strict=True):
        chunk = plotted.chunks[policy.name][1]
        index = first + chunk.start
        batch = {key: value for key, value in dataset[index].items() if key.startswith("observation.")}
        options = {}
        if kind == "ours":
            past = dataset[index - INTERVAL]
            for key in [key for key in batch if "images" in key]:
                batch[key] = torch.stack([past[key], batch[key]])[None]
            generator = torch.Generator().manual_seed(7 + index)
            options["noise"] = policy.config.noise_scale * torch.randn(10, 32, generator=generator)[None]
        batch["task"] = dataset[index]["task"]
        expected = policy.postprocess(policy.policy.predict_action_chunk(policy.preprocess(batch), **options))[0]
        torch.testing.assert_close(chunk.actions, expected, atol=1e-4, rtol=1e-4)
        # In the dataset's units: statistics have been undone.
        assert (chunk.actions.mean(dim=0) - plotted.recorded.mean(dim=0)).abs().max() < 6 * result.spread.max()


def test_ours_does_not_depend_on_the_batch_size(dataset, ours):
    policy = load_policy(str(ours))
    one, many = (evaluate([policy], dataset, batch_size=size).policies[0].errors for size in (1, 8))
    torch.testing.assert_close(one.absolute, many.absolute, atol=1e-3, rtol=1e-4)
    other = evaluate([policy], dataset, seed=5).policies[0].errors
    assert not torch.allclose(other.absolute, many.absolute, atol=1e-3)


def test_policies_of_different_chunks_are_compared_on_the_steps_that_both_execute(dataset, ours, act):
    names = distinct_names([str(ours), str(act)], ["internvla_a1", "act"])
    policies = [load_policy(str(path), name=name) for path, name in zip((ours, act), names, strict=True)]
    result = evaluate(policies, dataset)
    assert (result.stride, result.shared_steps) == (4, 4)
    assert [(p.name, p.errors.steps) for p in result.policies] == [("internvla_a1", 10), ("act", 8)]
    for policy in result.policies:
        assert policy.errors.count[0, 0] == result.baseline(HOLD, 10).count[0, 0] == result.starts


def test_some_episodes_of_a_dataset(dataset, recorded):
    some = LeRobotDataset(dataset.repo_id, root=dataset.root, episodes=[1, 2])
    result = evaluate([scripted(0.25)], some, stride=4)
    expected = by_hand(recorded[1:], lambda e, s: 0.25, 4, 6)
    torch.testing.assert_close(result.policies[0].errors.mae(), expected, atol=1e-6, rtol=1e-5)
    assert list(result.policies[0].by_episode) == [1, 2]
    assert [plotted.episode for plotted in result.plotted] == [1, 2]
    torch.testing.assert_close(result.plotted[0].recorded, recorded[1][1])


def test_the_verdict_says_whether_a_policy_has_learnt_anything(dataset, recorded):
    """Both ends of the scale; steps beyond an episode's end, where the oracle talks nonsense, do not count."""
    result = evaluate([loaded(Oracle(recorded), "oracle"), scripted(50.0)], dataset)
    oracle, constant = result.policies
    assert oracle.errors.mean_absolute_error() == pytest.approx(0, abs=1e-6)
    assert result.verdict(oracle).startswith("oracle: BETTER than both baselines at 4 of 4 joints.")
    assert result.verdict(constant).startswith("scripted: NOT BETTER than both baselines at any joint.")


def test_a_joint_that_rests_is_no_yardstick(dataset):
    """The idle arm of two would be a thousand of its own spreads off, and drown the arm that works."""
    result = evaluate([scripted(0.5)], dataset)
    spread = torch.tensor([1.0, 2.0, 1e-4, 1e-4], dtype=torch.float64)
    joints = [Joint(name, unit, None) for name, unit in zip(JOINTS, ("rad", "rad", "rad", "0..1"), strict=True)]
    one_rests = dataclasses.replace(result, spread=spread, joints=Joints(tuple(joints), ()))
    assert one_rests.is_resting == (False, False, True, False), "the gripper is the only one in its unit"
    assert one_rests.yardstick.tolist() == [1.0, 2.0, 0.0, 1e-4]
    assert dataclasses.replace(result, spread=spread).is_resting == (False,) * 4, "units are unknown here"
    page = build_page(one_rests, []).to_markdown()
    assert f"Hardly moving in this dataset, and left out of errors in spreads: {JOINTS[2]}." in page
    assert as_dict(one_rests)["joints"][2]["is_resting"] is True


def test_a_policy_of_another_robot_is_refused_with_all_differences(dataset):
    strange = scripted(
        image_features={"observation.images.top": None},
        robot_state_feature=SimpleNamespace(shape=(7,)),
        action_feature=SimpleNamespace(shape=(6,)),
        fps=25.0,
    )
    with pytest.raises(InternVLAError) as caught:
        evaluate([strange], dataset)
    for words in (
        "observation.images.top",
        "--rename_map",
        "7 dims of 'observation.state'",
        "6 dims of 'action'",
        "25",
    ):
        assert words in str(caught.value)


def test_wrong_arguments_are_refused_together(dataset):
    with pytest.raises(InternVLAError, match="stride is 0, expected at least 1; batch_size is 0"):
        evaluate([scripted()], dataset, stride=0, batch_size=0)
    with pytest.raises(InternVLAError, match="no policy"):
        evaluate([], dataset)


def test_answers_that_are_no_chunks_are_refused(dataset):
    policy = scripted()
    policy.policy.predict_action_chunk = lambda batch: torch.zeros(len(batch["task"]), len(JOINTS))
    with pytest.raises(InternVLAError, match="needs a policy that predicts chunks"):
        evaluate([policy], dataset)
    policy.policy.predict_action_chunk = lambda batch: batch["no such key"]
    with pytest.raises(InternVLAError, match=r"cannot predict chunks from this dataset\. KeyError"):
        evaluate([policy], dataset)


def test_what_training_has_seen_is_read_from_its_configuration(dataset, tmp_path):
    def says(**changes):
        entry = {"repo_id": dataset.repo_id, "root": str(dataset.root), "episodes": None, "eval_split": 0.0, **changes}
        (tmp_path / "train_config.json").write_text(json.dumps({"dataset": entry}))
        return training_episodes(str(tmp_path), dataset.meta)

    assert says() == {0, 1, 2}
    assert says(episodes=[0, 2]) == {0, 2}
    assert says(repo_id="someone/else") is None
    assert says(root="/another/folder") is None
    # Tasks alternate, so episodes 0 and 2 share one: the last half of each task is held out, and a single one is too.
    assert says(eval_split=0.5) == {0}
    (tmp_path / "train_config.json").unlink()
    assert training_episodes(str(tmp_path), dataset.meta) is None


def test_the_same_name_with_other_frames_is_another_dataset(dataset, tmp_path):
    entry = {"repo_id": dataset.repo_id, "root": "/moved/since", "episodes": None}
    (tmp_path / "train_config.json").write_text(json.dumps({"dataset": entry}))
    for frames, expected in ((sum(LENGTHS), {0, 1, 2}), (999, None)):
        lineage = {"datasets": [{"repo_id": dataset.repo_id, "frames": frames}]}
        (tmp_path / "lineage.json").write_text(json.dumps(lineage))
        assert training_episodes(str(tmp_path), dataset.meta) == expected


def test_names_tell_policies_apart():
    paths = ["runs/a/checkpoints/001/pretrained_model", "runs/b/checkpoints/001/pretrained_model", "runs/c"]
    assert distinct_names(paths, ["act", "act", "pi0"]) == ["act a", "act b", "pi0"]
    assert distinct_names(["x", "x"], ["act", "act"]) == ["act (1)", "act (2)"]
