"""imagine: the right frames, nothing of the future given away, clamped and missing ones excluded, clear refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy

from lerobot_internvla import InternVLAError
from lerobot_internvla.foresight import (
    check_dataset,
    choose_frames,
    draw_panel,
    error_map,
    imagine,
    interval_in_frames,
    summarize,
)
from lerobot_internvla.images import letterbox
from lerobot_internvla.testing import tiny_config, tiny_dataset, tiny_policy

HEAD, WRIST = "observation.images.head", "observation.images.left_wrist"


def view(dataset, index, key):
    """The letterboxed frame of one camera, as LeRobot gives it without delta timestamps."""
    return letterbox(dataset[index][key], (64, 64))


def predict_the_truth(policy, dataset, interval=3):
    """Make the policy's prediction exact: the true latents of the frame one interval ahead, found by the state."""
    states = torch.stack([dataset[i]["observation.state"] for i in range(len(dataset))])

    def predict_foresight(batch):
        now = [int((states - state).abs().sum(1).argmin()) for state in batch["observation.state"]]
        frames = [torch.stack([view(dataset, i + interval, key) for key in (HEAD, WRIST)]) for i in now]
        latents = policy.model.encode_frames(torch.stack(frames)[:, :, None])[:, :, 0]
        return latents, policy.model.decode_latents(latents)

    policy.predict_foresight = predict_foresight


# ------------------------------------------------------------------------------------------------------------ pictures


def test_past_now_and_true_are_the_frames_one_interval_apart(policy, dataset):
    sample = imagine(policy, dataset, [4])[0]
    for slot, key in enumerate((HEAD, WRIST)):
        torch.testing.assert_close(sample.past[slot], view(dataset, 1, key))
        torch.testing.assert_close(sample.now[slot], view(dataset, 4, key))
        torch.testing.assert_close(sample.true[slot], view(dataset, 7, key))
    assert sample.camera_slots == ("head", "left_wrist")
    assert sample.interval_s == pytest.approx(0.3)
    assert (sample.moment.episode, sample.moment.frame, sample.moment.index) == (0, 4, 4)
    assert sample.moment.time_s == pytest.approx(0.4)
    assert sample.moment.task == dataset[4]["task"]


def test_the_prediction_is_the_policys(policy, dataset):
    sample = imagine(policy, dataset, [4])[0]
    batch = {key: torch.stack([dataset[1][key], dataset[4][key]])[None] for key in (HEAD, WRIST)}
    batch |= {"observation.state": dataset[4]["observation.state"][None], "task": [dataset[4]["task"]]}
    _, images = policy.predict_foresight(batch)
    torch.testing.assert_close(sample.predicted, images[0], atol=1e-5, rtol=0)


def test_the_policy_is_shown_past_and_now_only(policy, dataset):
    shown = []
    original = policy.predict_foresight
    policy.predict_foresight = lambda batch: (shown.append(batch), original(batch))[1]
    imagine(policy, dataset, [2, 4])
    assert shown[0][HEAD].shape[:2] == (2, 2)
    assert not [key for key in shown[0] if key.startswith("action")]


def test_errors_are_those_of_prediction_copy_and_reconstruction(policy, dataset):
    sample = imagine(policy, dataset, [4])[0]
    # The head camera is 48 x 64: rows 8 to 55 show the scene.
    assert sample.scene == ((8, 0, 56, 64), (0, 0, 64, 64))
    scene = [(slice(8, 56), 0), (slice(0, 64), 1)]
    for method, images in (("prediction", sample.predicted), ("copy_of_now", sample.now)):
        for rows, slot in scene:
            by_hand = (images[slot, :, rows] - sample.true[slot, :, rows]).square().mean()
            assert getattr(sample.errors, method)[slot] == pytest.approx(float(by_hand), rel=1e-5)
            assert sample.errors.psnr_db(method, slot) == pytest.approx(-10 * np.log10(float(by_hand)), abs=1e-3)
    assert all(sample.errors.psnr_db("reconstruction", slot) > 100 for slot in (0, 1)), "Haar is invertible"


def test_the_batch_size_changes_nothing(policy, dataset):
    indices = [0, 3, 5, 13, 20]
    for one, other in zip(imagine(policy, dataset, indices, 1), imagine(policy, dataset, indices, 4), strict=True):
        torch.testing.assert_close(one.predicted, other.predicted, atol=1e-5, rtol=0)
        assert one.moment == other.moment


def test_letterbox_bars_of_the_prediction_are_black(policy, dataset):
    predicted = imagine(policy, dataset, [4])[0].predicted
    assert predicted[0, :, :8].abs().max() < 1e-6
    assert predicted[0, :, 56:].abs().max() < 1e-6
    assert predicted[0, :, 8:56].abs().max() > 0.1


def test_an_exact_prediction_has_no_error(policy, dataset):
    predict_the_truth(policy, dataset)
    sample = imagine(policy, dataset, [4])[0]
    for slot in (0, 1):
        assert sample.errors.psnr_db("prediction", slot) > 100
        assert error_map(sample.predicted[slot], sample.true[slot]).max() < 1e-6
    assert "BETTER" in summarize([sample]).verdicts[0]
    # The last tile of each row, the error map, is black all over: nothing else in the panel is.
    panel = np.asarray(draw_panel(sample))
    assert (panel == 0).all(axis=2).sum() >= 144 * 192 + 192 * 192


# --------------------------------------------------------------------------------------------------- ends and absences


def test_a_future_beyond_the_episode_is_marked_and_has_no_error(policy, dataset):
    reaches, ends = imagine(policy, dataset, [8, 9])  # the first episode has frames 0 to 11
    assert reaches.future_is_valid.all()
    assert not reaches.errors.prediction.isnan().any()
    assert not ends.future_is_valid.any()
    for errors in (ends.errors.prediction, ends.errors.copy_of_now, ends.errors.reconstruction):
        assert errors.isnan().all()
    assert summarize([reaches, ends]).cameras[0].frames == 1


def test_the_first_frames_of_an_episode_have_no_past(policy, dataset):
    clamped, real = imagine(policy, dataset, [2, 3])
    assert not clamped.past_is_valid.any()
    assert real.past_is_valid.all()
    torch.testing.assert_close(clamped.past[1], view(dataset, 0, WRIST))


def test_missing_cameras_have_no_error(tmp_path, policy):
    """Datasets that mix robots say which cameras a frame has."""
    picture = {"dtype": "image", "names": ["height", "width", "channels"]}
    features = {
        HEAD: {**picture, "shape": (48, 64, 3)},
        WRIST: {**picture, "shape": (64, 64, 3)},
        "observation.camera_is_present": {"dtype": "bool", "shape": (2,), "names": None},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": None},
    }
    dataset = LeRobotDataset.create("local/mixed", fps=10, features=features, root=tmp_path / "d", use_videos=False)
    for _ in range(8):
        dataset.add_frame(
            {
                HEAD: np.full((48, 64, 3), 200, np.uint8),
                WRIST: np.zeros((64, 64, 3), np.uint8),
                "observation.camera_is_present": np.array([True, False]),
                "observation.state": np.zeros(4, np.float32),
                "action": np.zeros(4, np.float32),
                "task": "wait",
            }
        )
    dataset.save_episode()
    dataset.finalize()
    sample = imagine(policy, LeRobotDataset("local/mixed", root=tmp_path / "d"), [1])[0]
    assert sample.camera_is_present.tolist() == [True, False]
    assert sample.errors.prediction.isnan().tolist() == [False, True]
    summary = summarize([sample])
    assert [camera.frames for camera in summary.cameras] == [1, 0]
    assert summary.verdicts[1] == "left_wrist: no frame to compare with."


# ------------------------------------------------------------------------------------------------------------- choice


def test_chosen_frames_have_a_future_and_depend_on_the_seed_alone(dataset):
    frames = choose_frames(dataset, 3, 8, seed=1)
    assert frames == choose_frames(dataset, 3, 8, seed=1)
    assert frames != choose_frames(dataset, 3, 8, seed=2)
    assert len(set(frames)) == 8
    # 12, 9 and 2 frames: 9 and 6 have a future, and the last episode none.
    assert choose_frames(dataset, 3, 100, seed=0) == [*range(9), *range(12, 18)]


def test_chosen_frames_of_some_episodes_are_positions_in_the_opened_dataset(dataset):
    second = LeRobotDataset(dataset.repo_id, root=dataset.root, episodes=[1])
    assert choose_frames(second, 3, 100, seed=0) == list(range(6))


def test_episodes_too_short_for_any_future_are_refused(dataset):
    short = LeRobotDataset(dataset.repo_id, root=dataset.root, episodes=[2])
    with pytest.raises(InternVLAError, match="longer than the policy's interval of 3 frames"):
        choose_frames(short, 3, 8, seed=0)


# ---------------------------------------------------------------------------------------------------------- interval


def test_the_interval_is_kept_in_seconds():
    config = tiny_config(foresight_interval=15, fps=30.0)
    assert interval_in_frames(config, 30.0) == 15
    assert interval_in_frames(config, 10.0) == 5
    assert interval_in_frames(config, 60.0) == 30
    assert interval_in_frames(tiny_config(foresight_interval=4), 25.0) == 4, "without a frame rate: the frames"


def test_a_frame_rate_that_does_not_fit_is_refused(dataset, policy):
    policy.config.fps = 25.0  # 3 frames at 25 fps are 1.2 frames at the dataset's 10 fps
    with pytest.raises(InternVLAError, match=r"3 frames at 25 fps ahead, 0\.12 s.*10 fps that is 1\.200 frames"):
        imagine(policy, dataset, [0])


def test_another_frame_rate_of_the_same_time_fits(dataset, policy):
    policy.config.fps, policy.config.foresight_interval = 30.0, 9  # 0.3 s
    sample = imagine(policy, dataset, [4])[0]
    torch.testing.assert_close(sample.true[1], view(dataset, 7, WRIST))


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_policy_without_foresight_is_refused(dataset):
    blind = tiny_policy(cameras=["head", "left_wrist"], use_foresight=False)
    with pytest.raises(InternVLAError, match="use_foresight=false: it has no generation expert"):
        imagine(blind, dataset, [0])


def test_another_policy_is_refused_by_name(dataset):
    act = ACTPolicy(
        ACTConfig(
            device="cpu",
            input_features={WRIST: PolicyFeature(FeatureType.VISUAL, (3, 64, 64))},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
            pretrained_backbone_weights=None,
            dim_model=16,
            n_heads=2,
            dim_feedforward=16,
        )
    )
    with pytest.raises(InternVLAError, match="this one is ACTPolicy"):
        imagine(act, dataset, [0])


def test_other_cameras_are_refused_with_both_sides(dataset):
    other = tiny_policy(cameras=["top", "hand"])
    with pytest.raises(InternVLAError) as error:
        imagine(other, dataset, [0])
    for word in (HEAD, WRIST, "head = observation.images.top", "left_wrist = observation.images.hand", "--rename_map"):
        assert word in str(error.value)


def test_the_rename_map_of_the_message_works(dataset, policy):
    other = tiny_policy(tiny_config(cameras=["top", "hand"], fps=10.0))
    names = {HEAD: "observation.images.top", WRIST: "observation.images.hand"}
    renamed = imagine(other, dataset, [4], rename_map=names)[0]
    torch.testing.assert_close(renamed.predicted, imagine(policy, dataset, [4])[0].predicted)


def test_every_misfit_is_named_at_once(tmp_path, policy):
    bare = tiny_dataset(tmp_path / "bare", cameras={}, joint_names=("one", "two"))
    with pytest.raises(InternVLAError) as error:
        check_dataset(policy.config, policy.camera_slots, bare.meta)
    assert "it has no camera" in str(error.value)
    assert "its state has shape (2,); the policy was trained on (4,)" in str(error.value)


def test_frames_outside_the_dataset_are_refused(dataset, policy):
    with pytest.raises(InternVLAError, match=r"Frames \[-1, 23\] are not in the dataset; it has 0 to 22"):
        imagine(policy, dataset, [-1, 5, 23])
    with pytest.raises(InternVLAError, match="batch_size=0"):
        imagine(policy, dataset, [0], batch_size=0)


def test_video_datasets_give_the_same_moments(tmp_path, policy):
    """The frames of a video are those of its pictures, up to the codec."""
    pictures = tiny_dataset(tmp_path / "p", cameras=["head", "left_wrist"], episode_lengths=(8,), video=False)
    video = tiny_dataset(tmp_path / "v", cameras=["head", "left_wrist"], episode_lengths=(8,), video=True)
    exact, coded = imagine(policy, pictures, [3])[0], imagine(policy, video, [3])[0]
    for name in ("past", "now", "true"):
        assert (getattr(exact, name) - getattr(coded, name)).abs().mean() < 0.02
    assert json.loads(Path(video.root, "meta/info.json").read_text())["fps"] == 10
