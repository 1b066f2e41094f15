"""What is remembered while acting: each moment is encoded once, and no bit of any chunk depends on it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lerobot_internvla import InternVLAA1Policy, InternVLAError
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer
from lerobot_internvla.image_tokenizer.spec import COSMOS_CI8X8
from lerobot_internvla.observation_memory import ObservationMemory, PastAndNow
from lerobot_internvla.testing import SMALL, small_config, tiny_batch, tiny_policy

INTERVAL, CHUNK = 6, 12
SCHEDULES = {"interval": INTERVAL, "a third of it": INTERVAL // 3, "no divisor": 7, "chunk": CHUNK, "every tick": 1}


def make_policy(n_action_steps: int = INTERVAL, **changes: Any) -> InternVLAA1Policy:
    return tiny_policy(
        foresight_interval=INTERVAL,
        chunk_size=CHUNK,
        n_action_steps=n_action_steps,
        num_inference_steps=2,
        **changes,
    )


def batch_of(policy: InternVLAA1Policy, tick: int, environments: int = 1, *, is_8_bit: bool = True) -> dict[str, Any]:
    """Noise that differs by tick, camera and environment, as LeRobot gives pictures: float32 in [0, 1]."""
    batch = tiny_batch(policy.config, environments, moment="tick", seed=tick)
    for key in policy.config.image_features:
        levels = batch[key] * 255
        batch[key] = (levels.round() if is_8_bit else levels) / 255
    return batch


def noise_of(policy: InternVLAA1Policy, tick: int, environments: int = 1) -> Tensor:
    shape = (environments, CHUNK, policy.config.architecture.max_action_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(tick))


@contextmanager
def counted(policy: InternVLAA1Policy) -> Iterator[list[int]]:
    """How many pictures each call of the image tokenizer encodes."""
    tokenizer, sizes = policy.model.image_tokenizer, []
    encode = tokenizer.encode
    tokenizer.encode = lambda images: (sizes.append(len(images)), encode(images))[1]  # pyright: ignore
    yield sizes
    del tokenizer.encode


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes policies encode every moment for every chunk."""

    def forget() -> None:
        def encode_both(self: PastAndNow, views: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
            return torch.cat([encode(views[:, :, :1]), encode(views[:, :, 1:])], dim=2)

        monkeypatch.setattr(PastAndNow, "latents", encode_both)

    return forget


def drive(policy: InternVLAA1Policy, ticks: int = 20, environments: int = 1, **kwargs: Any) -> Tensor:
    """Two episodes of ``select_action``; all actions."""
    actions: list[Tensor] = []
    for episode in range(2):
        policy.reset()
        for tick in range(100 * episode, 100 * episode + ticks):
            batch = batch_of(policy, tick, environments, **kwargs)
            actions.append(policy.select_action(batch, noise=noise_of(policy, tick, environments)))
    return torch.stack(actions)


# ------------------------------------------------------------------------------------------------ the same, to the bit


@pytest.mark.parametrize("environments", [1, 3])
@pytest.mark.parametrize("n_action_steps", SCHEDULES.values(), ids=SCHEDULES)
def test_chunks_are_the_same_with_and_without_known_latents(
    n_action_steps: int, environments: int, forgetful: Callable[[], None]
):
    policy = make_policy(n_action_steps)
    with counted(policy) as sizes:
        remembering = drive(policy, environments=environments)
    forgetful()
    with counted(policy) as all_sizes:
        assert torch.equal(drive(policy, environments=environments), remembering)
    assert len(sizes) < len(all_sizes)
    assert set(sizes) == set(all_sizes) == {3 * environments}, "a moment at a time: all its cameras and environments"


@pytest.mark.parametrize("n_action_steps", [INTERVAL // 3, 7])
def test_frames_that_are_no_bytes_are_not_mistaken_for_what_is_remembered(
    n_action_steps: int, forgetful: Callable[[], None]
):
    """A pipeline that resizes pictures gives numbers between bytes: rounded they would have other latents."""
    policy = make_policy(n_action_steps)
    remembering = drive(policy, is_8_bit=False)
    forgetful()
    assert torch.equal(drive(policy, is_8_bit=False), remembering)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def cosmos_policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InternVLAA1Policy:
    """3b at test size with a narrow Cosmos image tokenizer, which computes in float32 or bfloat16."""
    spec = replace(COSMOS_CI8X8, image_size=(64, 64), channels=32, channels_mult=(1, 2, 2))
    folder: Path = tmp_path_factory.mktemp("cosmos")
    build_image_tokenizer(spec).save_pretrained(folder)
    config = small_config(
        "3b",
        architecture_overrides={**SMALL["3b"], "image_tokenizer": asdict(spec)},
        image_tokenizer=str(folder),
        image_tokenizer_dtype=str(request.param).removeprefix("torch."),
        foresight_interval=INTERVAL,
        chunk_size=CHUNK,
        n_action_steps=INTERVAL // 3,
        num_inference_steps=2,
    )
    return tiny_policy(config)


def test_with_cosmos_chunks_are_the_same_too(cosmos_policy: InternVLAA1Policy, forgetful: Callable[[], None]):
    with counted(cosmos_policy) as sizes:
        remembering = drive(cosmos_policy, ticks=9, environments=2)
    assert sizes == 2 * 5 * [6], "chunks at ticks 0, 2, 4, 6 and 8: each encodes its own now, and no past twice"
    forgetful()
    assert torch.equal(drive(cosmos_policy, ticks=9, environments=2), remembering)


def test_latents_by_the_moment_are_those_of_both_at_once(cosmos_policy: InternVLAA1Policy):
    """Whoever passes (past, now) himself gets them encoded together: the same but for the order of additions."""
    model = cosmos_policy.model
    views = torch.rand(2, 3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one_by_one = torch.cat([model.encode_frames(views[:, :, :1]), model.encode_frames(views[:, :, 1:])], dim=2)
    assert one_by_one.shape == (2, 3, 2, 16, 8, 8)
    torch.testing.assert_close(one_by_one, model.encode_frames(views), rtol=1e-5, atol=1e-5)
    assert torch.equal(model.encode_frames(views[:, :, :1]), one_by_one[:, :, :1]), "and twice the same"


# ------------------------------------------------------------------------------------------- what is encoded, and when


@pytest.mark.parametrize(
    ("n_action_steps", "encoded"),
    [
        (INTERVAL, [1, 1, 1, 1]),  # ticks 0, 6, 12, 18: the past is always the now of the chunk before
        (INTERVAL // 3, [1] * 10),  # every second tick: three chunks before
        (7, [1, 2, 2]),  # ticks 0, 7, 14: the pasts 1 and 8 were never seen by the model
        (4, [1, 1, 2, 2, 2]),  # ticks 0, 4, 8, 12, 16: the past of 4 is still the first frame; 2, 6, 10 are news
    ],
)
def test_a_moment_is_encoded_once(n_action_steps: int, encoded: list[int]):
    policy = make_policy(n_action_steps)
    calls: list[int] = []
    with counted(policy) as sizes:
        for tick in range(20):
            before = len(sizes)
            policy.select_action(batch_of(policy, tick))
            calls.append(len(sizes) - before)
    assert [count for tick, count in enumerate(calls) if tick % n_action_steps == 0] == encoded
    assert sum(calls) == sum(encoded), "between chunks nothing is encoded"


def test_latents_are_forgotten_with_their_moment():
    policy = make_policy(1)
    one = 3 * 48 * 16 * 16 * 4  # three cameras, float32
    for tick in range(2 * INTERVAL):
        policy.select_action(batch_of(policy, tick))
        moments = min(tick, INTERVAL) + 1
        assert len(policy.memory.moments) == moments
        assert policy.memory.latent_bytes == moments * one
        assert policy.memory.frame_bytes == moments * 3 * 3 * 64 * 64
    policy.reset()
    assert policy.memory.moments == () and policy.memory.latent_bytes == policy.memory.frame_bytes == 0


def test_imagining_from_a_chunks_observation_encodes_nothing(monkeypatch: pytest.MonkeyPatch):
    """As the live view does, which is offered the observation of every chunk."""
    offered: list[dict[str, Any]] = []

    class View:
        observed, chunk_done, reset = staticmethod(offered.append), staticmethod(lambda: None), staticmethod(bool)

    policy = make_policy(7)
    monkeypatch.setattr(policy, "_live_foresight", View())
    for tick in range(8):
        policy.select_action(batch_of(policy, tick))
    policy.predict_action_chunk(batch_of(policy, 9), tick=9.0)
    assert len(offered) == 3
    with counted(policy) as sizes:
        imagined = [policy.predict_foresight(batch)[0] for batch in offered]
        assert sizes == []
        alone = [{k: v for k, v in batch.items() if k != "observation.past_and_now"} for batch in offered]
        for latents, batch in zip(imagined, alone, strict=True):
            torch.testing.assert_close(latents, policy.predict_foresight(batch)[0])
        assert len(sizes) == 3


# -------------------------------------------------------------------------------------- frames with a time of their own


def act_in_time(policy: InternVLAA1Policy, predicted_at: list[int]) -> list[Tensor]:
    """Every tick's frames are observed as a robot's cameras give them: bytes, colours last in memory."""
    policy.reset()
    chunks: list[Tensor] = []
    for tick in range(max(predicted_at) + 1):
        batch = batch_of(policy, tick)
        pictures = {key: (batch[key] * 255).round().to(torch.uint8) for key in policy.config.image_features}
        stored = {key: p.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for key, p in pictures.items()}
        policy.observe(stored, float(tick))
        if tick in predicted_at:
            chunks.append(policy.predict_action_chunk(batch, noise_of(policy, tick), tick=float(tick)))
    return chunks


def test_moments_addressed_by_time_are_encoded_once_too(forgetful: Callable[[], None]):
    policy = make_policy()
    predicted_at = [0, 2, 6, 8, 11, 12, 12]  # pasts: 0, 0, 0, 2, 5, 6, 6
    with counted(policy) as sizes:
        remembering = act_in_time(policy, predicted_at)
    assert len(sizes) == len([0, 2, 6, 8, 11, 12]) + len([5])
    forgetful()
    for ours, theirs in zip(act_in_time(policy, predicted_at), remembering, strict=True):
        assert torch.equal(ours, theirs)


def test_a_moment_that_the_model_saw_through_another_pipeline_is_not_its_own(forgetful: Callable[[], None]):
    """Observed are the camera's bytes; the chunk is asked for with a brighter picture of the same tick."""
    policy = make_policy()

    def act() -> list[Tensor]:
        policy.reset()
        chunks: list[Tensor] = []
        for tick in (0, INTERVAL):
            batch = batch_of(policy, tick)
            policy.observe({key: batch[key] for key in policy.config.image_features}, float(tick))
            brighter = {k: (v + 1) / 2 if k in policy.config.image_features else v for k, v in batch.items()}
            chunks.append(policy.predict_action_chunk(brighter, noise_of(policy, tick), tick=float(tick)))
        return chunks

    with counted(policy) as sizes:
        remembering = act()
    assert len(sizes) == 3, "the first past, which stays the past, and two moments as the model saw them"
    forgetful()
    for ours, theirs in zip(act(), remembering, strict=True):
        assert torch.equal(ours, theirs)


def test_a_camera_that_was_not_observed_is_named():
    policy = make_policy()
    batch = batch_of(policy, 0)
    policy.observe({"observation.images.head": batch["observation.images.head"]}, 1.0)
    with pytest.raises(InternVLAError, match=r"past of observation\.images\.left_wrist, .*right_wrist is not known"):
        policy.predict_action_chunk(batch, tick=1.0)


def test_a_reset_by_another_thread_ends_nothing_that_is_under_way():
    memory = ObservationMemory()
    first, second = ({"head": torch.full((1, 3, 4, 4), value, dtype=torch.uint8)} for value in (1, 2))
    seen = memory.push(first, 2)
    memory.observe(first, 0.0, 2)
    memory.reset()
    assert torch.equal(seen.frames()["head"], torch.stack([first["head"], first["head"]], dim=1) / 255)
    late = memory.recall(second, 1.0, 2)
    assert late.past is late.now and int(late.past.frames["head"].max()) == 2, "an episode of its own"


def test_what_is_remembered_is_told_once(caplog: pytest.LogCaptureFixture):
    policy = make_policy()
    with caplog.at_level(logging.INFO):
        drive(policy, ticks=3)
    told = [record.message for record in caplog.records if "remembered" in record.message]
    assert told == ["Frames of the last 7 ticks are remembered (3 cameras, one byte per value): 0.3 MB."]
