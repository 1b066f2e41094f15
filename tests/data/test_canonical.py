"""Samples of every source have one form, and hold what the source's own LeRobotDataset holds at the right moments."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.transforms import ImageTransformConfig, ImageTransforms, ImageTransformsConfig
from torch import Tensor

from lerobot_internvla.data.canonical import (
    CAMERA_KEYS,
    SampleShape,
    canonical_sample,
    delta_timestamps,
    letterbox_bytes,
)
from lerobot_internvla.data.sources import Mixture, Source, load_mixture
from lerobot_internvla.embodiments.matching import SourceFeatures
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.images import content_box, letterbox
from lerobot_internvla.testing import tiny_config, tiny_mixture

CHUNK = 10
SHAPE = SampleShape.of(tiny_config(chunk_size=CHUNK))
NOW_ONLY = SampleShape.of(tiny_config(chunk_size=CHUNK, use_foresight=False))
NAMES = ("arm", "slider", "fast_slider", "people")


@pytest.fixture(scope="module", params=["video", "pictures"])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """The tiny mixture, stored as videos and as pictures in the tables."""
    if request.param == "video":
        return load_mixture(request.getfixturevalue("mixture_file"))
    return load_mixture(tiny_mixture(tmp_path_factory.mktemp("pictures") / "files", video=False))


@pytest.fixture(scope="module")
def of_video(mixture_file: Path) -> Mixture:
    return load_mixture(mixture_file)


def opened(source: Source, shape: SampleShape = SHAPE) -> LeRobotDataset:
    return LeRobotDataset(
        source.repo_id,
        root=source.root,
        delta_timestamps=delta_timestamps(source, shape),
        return_uint8=True,
        video_backend="pyav",
    )


def sample_of(source: Source, frame: int, shape: SampleShape = SHAPE, **more: Any) -> dict[str, Any]:
    return canonical_sample(opened(source, shape)[frame], source, 2, shape, **more)


class Truth:
    """A source's frames, states and actions, one at a time, as stock LeRobot reads them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.stock = LeRobotDataset(source.repo_id, root=source.root, return_uint8=True, video_backend="pyav")
        self.bounds = [
            (int(start), int(start + length))
            for start, length in zip(source.episode_starts, source.episode_lengths, strict=True)
        ]

    def episode(self, frame: int) -> tuple[int, int]:
        return next((first, last) for first, last in self.bounds if first <= frame < last)

    def at(self, frame: int, wanted: int) -> tuple[dict[str, Any], bool]:
        """The row ``wanted``, clamped to the episode of ``frame``, and whether it had to be clamped."""
        first, last = self.episode(frame)
        clamped = min(max(wanted, first), last - 1)
        return self.stock[clamped], clamped != wanted


# Frames of the arm's first episode (40 at 30 fps, interval 15): everything inside, no past, no future; and one of the
# second episode, whose past must not come from the first.
MOMENTS = {"arm": (20, 3, 38, 45), "slider": (12, 1, 28, 31), "fast_slider": (12, 4, 25, 30), "people": (7, 2, 14, 17)}


@pytest.mark.parametrize("name", NAMES)
def test_frames_state_and_actions_are_those_of_the_right_moments(mixture: Mixture, name: str):
    source = next(source for source in mixture.sources if source.name == name)
    dataset, truth = opened(source), Truth(source)
    clamps: list[bool] = []
    for frame in MOMENTS[name]:
        sample = canonical_sample(dataset[frame], source, 1, SHAPE)
        for slot, theirs in source.features.cameras.items():
            moments = [
                truth.at(frame, frame + offset) for offset in (-source.interval_frames, 0, source.interval_frames)
            ]
            frames = torch.stack([row[theirs] for row, _ in moments])
            pictures = letterbox(frames, SHAPE.view_size).mul(255).round().to(torch.uint8)
            levels = (sample[CAMERA_KEYS[slot]].int() - pictures.int()).abs()
            assert levels.max() <= 1 and levels.float().mean() < 0.2, (frame, slot)
            assert sample[f"{CAMERA_KEYS[slot]}_is_pad"].tolist() == [clamped for _, clamped in moments]
            clamps += [clamped for _, clamped in moments]
        state = truth.stock[frame]["observation.state"]
        steps = [truth.at(frame, frame + step * source.frame_stride) for step in range(CHUNK)]
        if name == "people":
            assert not sample["observation.state"].any() and not sample["action"].any()
            assert sample["action_is_pad"].all()
        else:
            dim = len(state)
            assert torch.equal(sample["observation.state"][:dim], state) and not sample["observation.state"][dim:].any()
            actions = torch.stack([row["action"] for row, _ in steps])
            assert torch.equal(sample["action"][:, :dim], actions) and not sample["action"][:, dim:].any()
            assert sample["action_is_pad"].tolist() == [clamped for _, clamped in steps]
        assert sample["task"] == truth.stock[frame]["task"]
        assert int(sample["observation.source_index"]) == source.index
        assert int(sample["observation.embodiment_index"]) == 1
    assert any(clamps) and not all(clamps), "both edges and the middle must have been seen"


@given(st.integers(0, 2**32 - 1), st.integers(1, 700), st.integers(1, 700), st.sampled_from([(224, 224), (64, 96)]))
@settings(max_examples=30, deadline=None)
def test_letterboxing_bytes_is_within_one_level_of_the_policys_own(seed: int, height: int, width: int, size: Any):
    """Of noise and of black and white, which are the worst cases for rounding."""
    noise = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(seed))
    frames = torch.stack([noise[0], (noise[1] > 127) * 255]).to(torch.uint8)
    pictures = letterbox_bytes(frames, size)
    assert pictures.dtype == torch.uint8 and pictures.is_contiguous()
    expected = letterbox(frames, size).mul(255).round().int()
    assert (pictures.int() - expected).abs().max() <= 1
    top, left, bottom, right = content_box(height, width, size)
    bars = torch.ones(size, dtype=torch.bool)
    bars[top:bottom, left:right] = False
    assert not pictures[..., bars].any()


def test_moments_in_seconds_and_steps_in_periods_of_the_source(of_video: Mixture):
    """Half a second is 15 frames at 30 fps, 5 at 10, 10 at 20; a source used at half its rate steps two frames."""
    for source, interval, period in zip(
        of_video.sources, (15, 5, 10, 5), (1 / 30, 1 / 10, 1 / 10, 1 / 10), strict=True
    ):
        deltas = delta_timestamps(source, SHAPE)
        camera = next(iter(source.features.cameras.values()))
        assert deltas[camera] == pytest.approx([-0.5, 0.0, 0.5])
        assert [round(second * source.dataset_fps) for second in deltas[camera]] == [-interval, 0, interval]
        if source.trains_actions:
            assert deltas["action"] == pytest.approx([step * period for step in range(CHUNK)])
        else:
            assert "action" not in deltas
        assert set(deltas) <= {*source.features.cameras.values(), "action"}, "unused cameras are not asked for"
        assert delta_timestamps(source, NOW_ONLY)[camera] == [0.0]


@pytest.mark.parametrize("shape", [SHAPE, NOW_ONLY], ids=["foresight", "now"])
def test_all_sources_give_the_same_keys_shapes_and_types(mixture: Mixture, shape: SampleShape):
    samples = [sample_of(source, 3, shape) for source in mixture.sources]
    forms = [{key: (tuple(v.shape), v.dtype) for key, v in s.items() if isinstance(v, Tensor)} for s in samples]
    assert all(form == forms[0] for form in forms)
    assert all(sample.keys() == samples[0].keys() and isinstance(sample["task"], str) for sample in samples)
    frames = 3 if shape.use_foresight else 1
    assert forms[0] == {
        **{f"observation.images.{slot}": ((frames, 3, *shape.view_size), torch.uint8) for slot in CAMERA_KEYS},
        **{f"observation.images.{slot}_is_pad": ((frames,), torch.bool) for slot in CAMERA_KEYS},
        "observation.camera_is_present": ((3,), torch.bool),
        "observation.latent_is_content": ((3, *shape.latent_size), torch.bool),
        "observation.state": ((shape.max_state_dim,), torch.float32),
        "action": ((CHUNK, shape.max_action_dim), torch.float32),
        "action_is_pad": ((CHUNK,), torch.bool),
        "observation.embodiment_index": ((), torch.int64),
        "observation.source_index": ((), torch.int64),
    }
    batch = torch.utils.data.default_collate(samples)
    assert batch["action"].shape == (4, CHUNK, shape.max_action_dim) and len(batch["task"]) == 4


def test_a_policy_without_foresight_gets_the_frame_now(of_video: Mixture):
    for source in of_video.sources:
        sample, truth = sample_of(source, 8, NOW_ONLY), Truth(source)
        for slot, theirs in source.features.cameras.items():
            picture = letterbox(truth.stock[8][theirs], SHAPE.view_size).mul(255).round().to(torch.uint8)
            assert torch.equal(sample[CAMERA_KEYS[slot]][0], picture)


def test_cameras_that_a_robot_does_not_have_are_black_and_masked(of_video: Mixture):
    found = {source.name: sample_of(source, 3) for source in of_video.sources}
    present = {name: sample["observation.camera_is_present"].tolist() for name, sample in found.items()}
    assert present == {
        "arm": [True, True, False],
        "slider": [True, False, False],
        "fast_slider": [True, False, False],
        "people": [True, False, False],
    }
    for name, sample in found.items():
        for there, key in zip(present[name], CAMERA_KEYS.values(), strict=True):
            assert bool(sample[key].any()) == there
            assert there or sample[f"{key}_is_pad"].all(), "a future that does not exist is no target"


def test_latent_cells_of_letterbox_bars_are_masked(of_video: Mixture):
    """Against a white frame sent the same way: view, tokenizer's picture, cells."""
    for name, height, width in (("arm", 48, 64), ("slider", 64, 64), ("people", 64, 48)):
        sample = sample_of(next(source for source in of_video.sources if source.name == name), 3)
        view = letterbox(torch.ones(1, 3, height, width), SHAPE.view_size)
        picture = F.interpolate(view, size=SHAPE.image_size, mode="bilinear", align_corners=False)
        expected = F.adaptive_max_pool2d(picture[:, :1], SHAPE.latent_size)[0, 0] > 0
        assert torch.equal(sample["observation.latent_is_content"][0], expected)
        assert bool(expected.all()) == (height == width)


# ------------------------------------------------------------------------------------------------ made by hand


def by_hand(source: Source, **changes: Any) -> dict[str, Any]:
    """A sample of the slider as LeRobot would give it; all three frames are the same picture."""
    generator = torch.Generator().manual_seed(0)
    camera = source.features.cameras["head"]
    picture = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
    return {
        camera: picture.expand(3, 3, 64, 64),
        f"{camera}_is_pad": torch.zeros(3, dtype=torch.bool),
        "observation.state": torch.arange(3.0),
        "action": torch.arange(3.0 * CHUNK).reshape(CHUNK, 3),
        "action_is_pad": torch.zeros(CHUNK, dtype=torch.bool),
        "task": "slide",
        **changes,
    }


def test_augmentation_is_drawn_once_per_camera_and_is_the_same_in_its_three_frames(of_video: Mixture):
    slider = of_video.sources[1]
    item = by_hand(slider)
    plain = canonical_sample(item, slider, 0, SHAPE)[CAMERA_KEYS["head"]]
    augment = ImageTransforms(
        ImageTransformsConfig(
            enable=True,
            tfs={
                "brightness": ImageTransformConfig(type="ColorJitter", kwargs={"brightness": (0.5, 0.8)}),
                "affine": ImageTransformConfig(type="RandomAffine", kwargs={"degrees": (-30.0, 30.0)}),
            },
        )
    )
    seen: list[tuple[int, ...]] = []

    def counted(frames: Tensor) -> Tensor:
        seen.append(tuple(frames.shape))
        return augment(frames)

    augmented = [canonical_sample(item, slider, 0, SHAPE, counted)[CAMERA_KEYS["head"]] for _ in range(2)]
    assert seen == [(3, 3, 64, 64)] * 2
    for frames in augmented:
        assert torch.equal(frames[0], frames[1]) and torch.equal(frames[1], frames[2])
        assert not torch.equal(frames, plain)
    assert not torch.equal(*augmented)
    arm_calls: list[int] = []
    sample = sample_of(of_video.sources[0], 20, image_transforms=lambda frames: (arm_calls.append(1), frames)[1])
    assert len(arm_calls) == 2 and not sample[CAMERA_KEYS["right_wrist"]].any(), "an absent camera stays black"


def test_several_features_are_joined_in_the_order_of_the_robot(of_video: Mixture):
    """LeRobot gives a vector of one as a plain number."""
    slider = of_video.sources[1]
    features = SourceFeatures(("state.arm", "state.gripper"), ("go.gripper", "go.arm"), slider.features.cameras)
    item = by_hand(slider) | {
        "state.arm": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "state.gripper": torch.tensor(3.0),
        "go.gripper": torch.arange(10.0),
        "go.gripper_is_pad": torch.zeros(CHUNK, dtype=torch.bool),
        "go.arm": torch.full((CHUNK, 2), 7.0),
        "go.arm_is_pad": torch.zeros(CHUNK, dtype=torch.bool),
    }
    sample = canonical_sample(item, dataclasses.replace(slider, features=features), 0, SHAPE)
    assert sample["observation.state"][:4].tolist() == [1, 2, 3, 0]
    assert sample["action"][2, :4].tolist() == [2, 7, 7, 0]
    assert sample["observation.state"].dtype == torch.float32


def test_a_camera_without_colour_is_refused(of_video: Mixture):
    slider = of_video.sources[1]
    item = by_hand(slider)
    item[slider.features.cameras["head"]] = torch.zeros(3, 1, 64, 64, dtype=torch.uint8)
    with pytest.raises(InternVLAError, match="Depth and grey cameras cannot be used"):
        canonical_sample(item, slider, 0, SHAPE)


def test_a_robot_that_acts_elsewhere_still_shows_its_state_where_only_foresight_is_trained(
    mixture_file: Path, tmp_path: Path, of_video: Mixture
):
    text = mixture_file.read_text().replace("fps: 10}", "fps: 10, supervision: foresight}")
    file = mixture_file.with_name("watching.yaml")
    file.write_text(text)
    fast = load_mixture(file).sources[2]
    assert not fast.trains_actions
    sample, truth = sample_of(fast, 12), Truth(fast)
    assert torch.equal(sample["observation.state"][:3], truth.stock[12]["observation.state"])
    assert sample["action_is_pad"].all() and not sample["action"].any()
