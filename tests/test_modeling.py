"""InternVLAA1Policy: history, actions, freezing, precision, adapters. Stock commands are tested in tests/contracts."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lerobot_internvla import InternVLAA1Config, InternVLAA1Policy, InternVLAError
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.testing import small_config, tiny_batch, tiny_config, tiny_policy

HEAD = "observation.images.head"


@pytest.fixture(scope="module")
def shared() -> InternVLAA1Policy:
    """For tests that change neither weights nor configuration."""
    return tiny_policy()


@pytest.fixture
def policy(shared: InternVLAA1Policy) -> InternVLAA1Policy:
    shared.reset()
    return shared


def tick_frames(config: InternVLAA1Config, tick: int, environments: int = 1) -> dict[str, Any]:
    """One control tick whose pixels tell the tick and the environment: value = (tick + 50 * environment) / 255."""
    batch = tiny_batch(config, environments, moment="tick")
    for key in config.image_features:
        values = (tick + 50.0 * torch.arange(environments)) / 255
        batch[key] = values[:, None, None, None].expand(batch[key].shape).contiguous()
    return batch


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the model was shown at each prefill: [B, (past, now)] as tick + 50 * environment, of the first camera."""
    shown: list[Tensor] = []
    stock = InternVLAA1.prefill

    def spy(self: InternVLAA1, observation: Any, **kwargs: Any) -> Any:
        shown.append((observation.images[:, 0, :, 0, 0, 0] * 255).round().long())
        return stock(self, observation, **kwargs)

    monkeypatch.setattr(InternVLAA1, "prefill", spy)
    return shown


# -------------------------------------------------------------------------------------------------------------- history


def test_select_action_sees_now_and_exactly_one_interval_ago(policy: InternVLAA1Policy, seen: list[Tensor]):
    """Chunks of 5 are predicted at ticks 0, 5, 10: the past is tick 0 (the first frame), then 2, then 7."""
    for tick in range(11):
        policy.select_action(tick_frames(policy.config, tick))
    assert [s.tolist() for s in seen] == [[[0, 0]], [[2, 5]], [[7, 10]]]


def test_every_environment_of_a_batch_has_its_own_history(policy: InternVLAA1Policy, seen: list[Tensor]):
    for tick in range(6):
        policy.select_action(tick_frames(policy.config, tick, environments=3))
    assert seen[1].tolist() == [[2, 5], [52, 55], [102, 105]]


def test_reset_forgets_frames_and_queue_and_allows_another_batch_size(policy: InternVLAA1Policy, seen: list[Tensor]):
    for tick in range(3):
        policy.select_action(tick_frames(policy.config, tick, environments=2))
    policy.reset()
    policy.select_action(tick_frames(policy.config, 30, environments=1))
    assert seen[-1].tolist() == [[30, 30]], "the first frame after a reset is its own past, as training clamps"


@pytest.mark.parametrize("use_foresight", [True, False])
def test_a_batch_size_that_changes_in_an_episode_is_refused(use_foresight: bool):
    policy = tiny_policy(use_foresight=use_foresight)
    policy.select_action(tick_frames(policy.config, 0, environments=2))
    with pytest.raises(InternVLAError, match=r"policy\.reset"):
        policy.select_action(tick_frames(policy.config, 1, environments=1))


def test_the_past_is_the_camera_picture_to_the_last_bit(policy: InternVLAA1Policy, monkeypatch: pytest.MonkeyPatch):
    """A static scene must look static: the stored frame equals the frame as it comes in."""
    shown: list[Tensor] = []
    stock = InternVLAA1.prefill
    monkeypatch.setattr(InternVLAA1, "prefill", lambda self, o, **k: shown.append(o.images) or stock(self, o, **k))
    levels = torch.arange(64 * 64).reshape(64, 64) % 256
    batch = tick_frames(policy.config, 0)
    batch |= {key: (levels / 255).expand(1, 3, 64, 64) for key in policy.config.image_features}
    for _ in range(6):
        policy.select_action(batch)
    past, now = shown[-1][:, :, 0], shown[-1][:, :, 1]
    assert torch.equal(past, now)
    assert torch.equal(now[0, 0, 0], levels / 255)


def test_dataset_batches_with_all_frames_can_be_acted_on(policy: InternVLAA1Policy, seen: list[Tensor]):
    """5-D input, as a dataset gives it: now is the middle frame; predict_action_chunk takes its past from the batch."""
    frames = [tick_frames(policy.config, tick) for tick in (4, 7, 10)]
    batch = {**frames[1], **{k: torch.stack([f[k] for f in frames], 1) for k in policy.config.image_features}}
    batch["observation.state"] = torch.stack([f["observation.state"] for f in frames], 1)
    policy.predict_action_chunk(batch)
    policy.select_action(batch)
    assert [s.tolist() for s in seen] == [[[4, 7]], [[7, 7]]]


def test_a_chunk_from_single_frames_says_that_the_past_is_missing(seen: list[Tensor], caplog: pytest.LogCaptureFixture):
    policy = tiny_policy()
    with caplog.at_level(logging.WARNING):
        for tick in (5, 6):
            policy.predict_action_chunk(tick_frames(policy.config, tick))
    assert [s.tolist() for s in seen] == [[[5, 5]], [[6, 6]]]
    assert len([r for r in caplog.records if "single frames" in r.message]) == 1, "once is enough"


def test_a_camera_with_and_one_without_time_meet_at_now(policy: InternVLAA1Policy, seen: list[Tensor]):
    batch = tick_frames(policy.config, 9)
    batch[HEAD] = torch.stack([tick_frames(policy.config, tick)[HEAD] for tick in (3, 9, 15)], dim=1)
    policy.predict_action_chunk(batch)
    assert seen[-1].tolist() == [[9, 9]]


def test_the_ablation_keeps_no_history(seen: list[Tensor]):
    policy = tiny_policy(use_foresight=False)
    for tick in range(6):
        policy.select_action(tick_frames(policy.config, tick))
    assert [s.tolist() for s in seen] == [[[0]], [[5]]]


# ------------------------------------------------------------------------------------------------------------ the queue


def plan(policy: InternVLAA1Policy, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let the model "sample" known normalised actions: chunk c, step k, dim d = 100 c + 10 k + d."""
    config = policy.config
    chunks: list[Tensor] = []

    def sample(prefill: Any, noise: Tensor, num_steps: int) -> Tensor:
        steps, dims = torch.arange(config.chunk_size)[:, None], torch.arange(noise.shape[2])
        chunk = (100.0 * len(chunks) + 10 * steps + dims).expand(noise.shape).contiguous()
        chunks.append(chunk)
        return chunk

    monkeypatch.setattr(policy.model, "sample_actions", sample)
    return chunks


def test_a_chunk_is_executed_for_n_action_steps(policy: InternVLAA1Policy, monkeypatch: pytest.MonkeyPatch):
    chunks = plan(policy, monkeypatch)
    taken = [policy.select_action(tick_frames(policy.config, tick, environments=2)) for tick in range(11)]
    assert len(chunks) == 3
    assert all(action.shape == (2, 4) for action in taken)
    first = [action[0, 0].item() for action in taken]
    assert first == pytest.approx([0, 10, 20, 30, 40, 100, 110, 120, 130, 140, 200])


def relative_policy(action_dim: int = 4, state_dim: int = 4) -> InternVLAA1Policy:
    names = ["shoulder", "elbow", "wrist", "gripper"]
    return tiny_policy(
        state_dim=state_dim,
        action_dim=action_dim,
        action_representation="relative",
        action_feature_names=names,
        state_feature_names=[*names, *(f"velocity_{i}" for i in range(state_dim - 4))],
    )


def test_relative_actions_stay_anchored_to_the_chunks_start_while_the_robot_moves(monkeypatch: pytest.MonkeyPatch):
    """The known trap: adding the *current* state to a queued offset. Absolute targets must be exact on every tick."""
    policy = relative_policy(state_dim=6)
    mean, std = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.5, 1.0, 2.0, 4.0])
    policy.action_space.action_mean[:4], policy.action_space.action_std[:4] = mean, std
    chunks = plan(policy, monkeypatch)
    for tick in range(10):
        batch = tick_frames(policy.config, tick, environments=2)
        batch["observation.state"] = torch.randn(2, 6, generator=torch.Generator().manual_seed(tick))
        if tick % 5 == 0:
            anchor = batch["observation.state"][:, :4] * torch.tensor([1.0, 1.0, 1.0, 0.0])
        target = policy.select_action(batch)
        expected = chunks[-1][:, tick % 5, :4] * (std + 1e-6) + mean + anchor
        torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-5)
    assert len(chunks) == 2


def test_relative_targets_in_training_undo_what_select_action_does(monkeypatch: pytest.MonkeyPatch):
    policy = relative_policy()
    batch = tiny_batch(policy.config)
    kept: list[Any] = []
    stock = InternVLAA1.compute_loss
    monkeypatch.setattr(
        policy.model, "forward", lambda o, t, *a, **k: kept.append(t) or stock(policy.model, o, t, *a, **k)
    )
    policy.forward(batch)
    now = batch["observation.state"][:, 1]
    offset = batch["action"] - torch.where(torch.tensor([True, True, True, False]), now, 0.0)[:, None]
    torch.testing.assert_close(kept[0].actions[..., :4], offset / (1 + 1e-6))
    assert not kept[0].actions[..., 4:].any()
    torch.testing.assert_close(policy.action_space.decode_actions(kept[0].actions, now), batch["action"])


def test_a_second_thread_is_told_instead_of_served_from_the_wrong_queue(policy: InternVLAA1Policy):
    """``lerobot-eval --env.max_parallel_tasks=2`` runs two rollouts on one policy object."""
    errors: list[Exception] = []

    def rollout() -> None:
        try:
            policy.select_action(tick_frames(policy.config, 0))
        except InternVLAError as error:
            errors.append(error)

    policy.select_action(tick_frames(policy.config, 0))
    thread = threading.Thread(target=rollout)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "max_parallel_tasks=1" in str(errors[0])
    policy.reset()
    thread = threading.Thread(target=rollout)
    thread.start()
    thread.join()
    assert len(errors) == 1, "after a reset another thread may take over"
    with pytest.raises(InternVLAError, match="Two threads"):
        policy.select_action(tick_frames(policy.config, 1))


def test_noise_decides_the_actions(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config, moment="tick")
    noise = torch.randn(2, 10, 32)
    first = policy.predict_action_chunk(batch, noise=noise)
    assert first.shape == (2, 10, 4)
    assert torch.equal(first, policy.predict_action_chunk(batch, noise=noise))
    assert not torch.equal(first, policy.predict_action_chunk(batch, noise=noise + 1))
    torch.manual_seed(0)
    drawn = policy.predict_action_chunk(batch)
    torch.manual_seed(0)
    assert torch.equal(drawn, policy.predict_action_chunk(batch)), "an eval with a seed must be repeatable"


def test_select_action_executes_the_chunk_that_predict_action_chunk_gives(policy: InternVLAA1Policy):
    batch, noise = tick_frames(policy.config, 3, environments=2), torch.randn(2, 10, 32)
    chunk = policy.predict_action_chunk(batch, noise=noise)
    taken = [policy.select_action(batch, noise=noise) for _ in range(5)]
    torch.testing.assert_close(torch.stack(taken, dim=1), chunk[:, :5])


# ------------------------------------------------------------------------------------------------------ imagined future


def test_foresight_as_latents_and_images(policy: InternVLAA1Policy):
    latents, images = policy.predict_foresight(tiny_batch(policy.config, 3, moment="tick"))
    assert latents.shape == (3, 3, 48, 16, 16) and latents.dtype == torch.float32
    assert images.shape == (3, 3, 3, 64, 64)
    assert images.min() >= 0 and images.max() <= 1


# ------------------------------------------------------------------------------------------------------------- training


def test_padded_steps_and_padded_dims_do_not_train(policy: InternVLAA1Policy, monkeypatch: pytest.MonkeyPatch):
    batch = tiny_batch(policy.config)
    batch["action_is_pad"][0, 7:] = True
    _, metrics = forward_seeded(policy, batch)
    assert metrics["valid_action_elements"] == (7 + 10) * 4
    batch["action"][0, 7:] = 1000.0  # LeRobot repeats some action beyond the end of the episode
    _, metrics = forward_seeded(policy, batch)
    assert metrics["loss_action"] < 100
    monkeypatch.setattr(policy.config, "reference_loss", True)
    _, metrics = forward_seeded(policy, batch)
    assert metrics["loss_action"] > 10_000


def forward_seeded(policy: InternVLAA1Policy, batch: dict[str, Any], **kwargs: Any) -> tuple[Tensor, dict[str, float]]:
    torch.manual_seed(0)
    return policy.forward(batch, **kwargs)


def test_clamped_future_frames_and_letterbox_bars_do_not_train():
    policy = tiny_policy(image_size=(32, 64))
    batch = tiny_batch(policy.config)
    _, metrics = forward_seeded(policy, batch)
    shown = 8 * 16 + 2 * 16  # the middle half of 16 rows, and the rows that touch it
    cells = metrics["valid_foresight_elements"] / (2 * 3 * 48)
    assert 8 * 16 <= cells <= shown
    for key in policy.config.image_features:
        batch[f"{key}_is_pad"][0, 2] = True
    _, clamped = forward_seeded(policy, batch)
    assert clamped["valid_foresight_elements"] == metrics["valid_foresight_elements"] / 2


def test_the_mask_of_a_renamed_camera_is_found():
    """LeRobot 0.6.1 renames a camera and leaves its mask under the old name."""
    policy = tiny_policy()
    batch = tiny_batch(policy.config)
    for key in policy.config.image_features:
        mask = batch.pop(f"{key}_is_pad")
        mask[0, 2] = True
        batch[key.replace("images.", "images.old_") + "_is_pad"] = mask
    del batch["observation.state_is_pad"]
    _, metrics = forward_seeded(policy, batch)
    assert metrics["valid_foresight_elements"] == 3 * 48 * 16 * 16


def test_missing_cameras_of_a_sample_do_not_train_and_change_nothing(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config)
    batch["observation.camera_is_present"] = torch.tensor([[True, True, True], [True, False, False]])
    loss, metrics = forward_seeded(policy, batch)
    assert metrics["valid_foresight_elements"] == 4 * 48 * 16 * 16
    for key in list(policy.camera_slots.values())[1:]:
        batch[key][1] = 1 - batch[key][1]
    other, _ = forward_seeded(policy, batch)
    assert torch.equal(loss, other)


def test_a_batch_without_actions_trains_the_foresight_path():
    policy = tiny_policy()
    batch = tiny_batch(policy.config)
    _, usual = policy.forward(batch)
    del batch["action"], batch["action_is_pad"]
    loss, metrics = policy.forward(batch)
    assert metrics.keys() == usual.keys()
    assert metrics["loss_action"] == 0.0 and metrics["valid_action_elements"] == 0.0
    assert loss.item() == pytest.approx(0.01 * metrics["loss_foresight"], rel=1e-5)
    loss.backward()
    moved = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert "model.foresight_head.out_proj.weight" in moved
    assert "model.vision_language.embed_tokens.weight" in moved
    assert not [name for name in moved if "action_head" in name or "experts.action" in name]


def test_reduction_none_gives_one_loss_per_sample(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config, 4)
    mean, _ = forward_seeded(policy, batch)
    each, _ = forward_seeded(policy, batch, reduction="none")
    assert each.shape == (4,)
    torch.testing.assert_close(each.mean(), mean, rtol=1e-4, atol=1e-5)
    with pytest.raises(InternVLAError, match="'sum'"):
        policy.forward(batch, reduction="sum")


def test_metrics_are_plain_floats_with_fixed_names(policy: InternVLAA1Policy):
    """LeRobot ignores tensors, and hangs when a rank has a key that another lacks."""
    for p in (policy, tiny_policy(use_foresight=False)):
        _, metrics = p.forward(tiny_batch(p.config))
        assert set(metrics) == {"loss_action", "loss_foresight", "valid_action_elements", "valid_foresight_elements"}
        assert all(type(value) is float for value in metrics.values())


def test_the_foresight_weight_is_lambda(policy: InternVLAA1Policy, monkeypatch: pytest.MonkeyPatch):
    batch = tiny_batch(policy.config)
    loss, metrics = forward_seeded(policy, batch)
    assert loss.item() == pytest.approx(metrics["loss_action"] + 0.01 * metrics["loss_foresight"], rel=1e-5)
    monkeypatch.setattr(policy.config, "lambda_gen", 0.5)
    loss, metrics = forward_seeded(policy, batch)
    assert loss.item() == pytest.approx(metrics["loss_action"] + 0.5 * metrics["loss_foresight"], rel=1e-5)


def test_several_draws_per_observation_train_too():
    policy = tiny_policy(flow_draws=3)
    loss, metrics = policy.forward(tiny_batch(policy.config))
    assert torch.isfinite(loss) and metrics["valid_action_elements"] == 2 * 10 * 4
    each, _ = policy.forward(tiny_batch(policy.config), reduction="none")
    assert each.shape == (2,)


def test_evaluation_mode_and_no_grad_compute_the_same_loss(policy: InternVLAA1Policy, monkeypatch: pytest.MonkeyPatch):
    """LeRobot's held-out loss calls forward under no_grad in eval mode. Given the same noise: it draws its own."""
    batch = tiny_batch(policy.config)
    policy.train()
    with monkeypatch.context() as patch:
        patch.setattr(type(policy.noise_seeds), "forward", lambda self: int(torch.randint(2**62, ())))
        training, _ = forward_seeded(policy, batch)
    policy.eval()
    with torch.no_grad():
        held_out, _ = forward_seeded(policy, batch)
    assert torch.equal(training.detach(), held_out)


# ------------------------------------------------------------------------------------------------------------- freezing

VISION = "model.vision_language.vision_tower."


def part_of(name: str) -> str:
    if name.startswith(VISION):
        return "vision"
    if "vision_language" in name or ".understanding." in name:
        return "understanding"
    return "foresight" if "foresight" in name else "action"


@pytest.mark.parametrize(
    ("switches", "trained"),
    [
        ({}, {"vision", "understanding", "foresight", "action"}),
        ({"freeze_vision_encoder": True}, {"understanding", "foresight", "action"}),
        ({"freeze_understanding": True}, {"foresight", "action"}),
        ({"freeze_foresight": True}, {"vision", "understanding", "action"}),
        ({"freeze_action": True}, {"vision", "understanding", "foresight"}),
        ({"train_expert_only": True}, {"foresight", "action"}),
        ({"train_vlm_only": True}, {"vision", "understanding"}),
        ({"train_expert_only": True, "freeze_foresight": True}, {"action"}),
        ({"use_foresight": False}, {"vision", "understanding", "action"}),
        ({"use_foresight": False, "train_expert_only": True}, {"action"}),
    ],
)
def test_frozen_parts_do_not_move_and_all_others_do(switches: dict[str, bool], trained: set[str]):
    """Heads included; and nothing that LeRobot's optimizer is given lacks a gradient."""
    policy = tiny_policy(architecture_overrides={"layers": 2}, **switches).train()
    handed_over = policy.get_optim_params()
    names = {id(p): name for name, p in policy.named_parameters()}
    assert {part_of(names[id(p)]) for p in handed_over} == trained
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer = policy.config.get_optimizer_preset().build(handed_over)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    policy.forward(tiny_batch(policy.config))[0].backward()
    assert not [names[id(p)] for p in handed_over if p.grad is None], "these would make DDP wait"
    optimizer.step()
    dead = {f"model.{name}" for name, _ in policy.model.dead_parameters()}
    for name, parameter in policy.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (part_of(name) in trained and name not in dead), name


# ------------------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("variant", ["3b", "2b", "tiny"])
@pytest.mark.parametrize("weights_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_precision_trains_and_acts(variant: str, weights_dtype: str, dtype: str):
    policy = tiny_policy(small_config(variant, dtype=dtype, weights_dtype=weights_dtype))
    kept = policy.model.mixture.layers[0].experts["action"].self_attn.q_proj.weight.dtype
    assert kept == getattr(torch, weights_dtype)
    assert policy.action_space.state_mean.dtype == torch.float32
    loss, _ = policy.forward(tiny_batch(policy.config))
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.get_optim_params())
    action = policy.select_action(tiny_batch(policy.config, moment="tick"))
    assert action.dtype == torch.float32 and torch.isfinite(action).all()
    latents, images = policy.predict_foresight(tiny_batch(policy.config, moment="tick"))
    assert latents.dtype == images.dtype == torch.float32


@pytest.mark.parametrize("variant", ["3b", "2b", "tiny"])
def test_bfloat16_weights_survive_a_checkpoint(variant: str, tmp_path: Path):
    policy = tiny_policy(small_config(variant, weights_dtype="bfloat16"))
    policy.save_pretrained(tmp_path)
    loaded = InternVLAA1Policy.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(policy.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


def test_the_policy_works_inside_accelerates_autocast():
    """LeRobot 0.6.1 wraps forward in its own autocast when dtype is bfloat16; twice must be once."""
    policy = tiny_policy(dtype="bfloat16")
    batch = tiny_batch(policy.config)
    alone, _ = forward_seeded(policy, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = forward_seeded(policy, batch)
    torch.testing.assert_close(alone, inside)


# --------------------------------------------------------------------------------------------------- cameras and robots


@pytest.mark.parametrize(
    ("cameras", "slots"),
    [
        (["anything"], {"head": "observation.images.anything"}),
        (["wrist", "top"], {"head": "observation.images.top", "left_wrist": "observation.images.wrist"}),
        (["head", "right_wrist"], {"head": HEAD, "right_wrist": "observation.images.right_wrist"}),
    ],
)
@pytest.mark.parametrize("image_size", [(48, 64), (31, 17), (240, 320)])
def test_one_to_three_cameras_of_any_size(cameras: list[str], slots: dict[str, str], image_size: tuple[int, int]):
    policy = tiny_policy(cameras=cameras, image_size=image_size, state_dim=7, action_dim=32)
    assert policy.camera_slots == slots
    loss, _ = policy.forward(tiny_batch(policy.config, 1))
    assert torch.isfinite(loss)
    assert policy.select_action(tiny_batch(policy.config, 1, moment="tick")).shape == (1, 32)
    assert policy.predict_foresight(tiny_batch(policy.config, 1, moment="tick"))[1].shape[1] == len(cameras)


def test_cameras_may_have_different_sizes():
    config = tiny_config(cameras=["top", "wrist"])
    policy = tiny_policy(config)
    batch, tick = tiny_batch(config), tiny_batch(config, moment="tick")
    batch["observation.images.wrist"] = torch.rand(2, 3, 3, 30, 40)
    tick["observation.images.wrist"] = torch.rand(2, 3, 30, 40)
    assert torch.isfinite(policy.forward(batch)[0])
    for _ in range(6):
        policy.select_action(tick)


def test_8_bit_frames_equal_their_floating_point_form(policy: InternVLAA1Policy):
    batch = tiny_batch(policy.config, moment="tick")
    noise = torch.randn(2, 10, 32)
    as_bytes = {k: (v * 255).round().to(torch.uint8) if "images" in k else v for k, v in batch.items()}
    as_floats = {k: v / 255 if "images" in k else v for k, v in as_bytes.items()}
    taken = []
    for form in (as_bytes, as_floats):
        policy.reset()
        taken.append(policy.select_action(form, noise=noise))
    assert torch.equal(*taken)


def test_ticks_between_chunks_do_not_walk_over_all_modules(policy: InternVLAA1Policy, monkeypatch: pytest.MonkeyPatch):
    """Walking took longer than everything else of such a tick; what predicts is in evaluation mode all the same."""
    walks: list[bool] = []
    evaluate = policy.eval
    monkeypatch.setattr(policy, "eval", lambda: (walks.append(True), evaluate())[1])
    policy.train()
    for tick in range(policy.config.n_action_steps + 1):
        policy.select_action(tick_frames(policy.config, tick))
        assert not policy.training
    assert len(walks) == 2, "once per chunk"


def test_the_history_stores_frames_as_bytes(policy: InternVLAA1Policy):
    for tick in range(9):
        policy.select_action(tick_frames(policy.config, tick))
    assert policy.memory.frame_bytes == 4 * 3 * 3 * 64 * 64, "interval + 1 frames of three cameras, one byte per value"


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_whole_and_loads_to_the_same_policy(tmp_path: Path):
    policy = tiny_policy(cameras=["top", "wrist"], action_representation="relative", absolute_joint_indices=[3])
    policy.action_space.action_mean[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    policy.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    weights, tokenizers = {"config.json", "model.safetensors", "lineage.json"}, {"text_tokenizer", "image_tokenizer"}
    assert names == weights | tokenizers | {"policy_preprocessor.json", "policy_postprocessor.json"}
    loaded = InternVLAA1Policy.from_pretrained(tmp_path)
    assert loaded.config == policy.config
    assert loaded.camera_slots == policy.camera_slots
    assert loaded.action_space.relative_mask == (True, True, True, False)
    for (name, ours), theirs in zip(policy.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    batch, noise = tiny_batch(policy.config, moment="tick"), torch.randn(2, 10, 32)
    assert torch.equal(policy.predict_action_chunk(batch, noise=noise), loaded.predict_action_chunk(batch, noise=noise))
    assert not loaded.training


def test_the_ablation_can_start_from_a_full_checkpoint(tmp_path: Path):
    tiny_policy().save_pretrained(tmp_path)
    config = tiny_config(use_foresight=False)
    policy = InternVLAA1Policy.from_pretrained(tmp_path, config=config)
    assert not [name for name in policy.state_dict() if "foresight" in name]
    policy.forward(tiny_batch(config))


def test_building_never_touches_base_weights_when_a_checkpoint_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lerobot_internvla import modeling_internvla_a1

    tiny_policy().save_pretrained(tmp_path)
    monkeypatch.setattr(modeling_internvla_a1, "load_base_models", lambda *_: pytest.fail("base weights were read"))
    InternVLAA1Policy.from_pretrained(tmp_path, config=tiny_config(base_model="somebody/something"))
    with pytest.raises(pytest.fail.Exception, match="base weights"):
        InternVLAA1Policy(tiny_config(base_model="somebody/something"))


@pytest.mark.parametrize(("statistics", "mean"), [("dataset", 1.0), ("checkpoint", 5.0)])
def test_fine_tuning_takes_the_statistics_that_the_configuration_names(base: Path, statistics: str, mean: float):
    of_four = {"mean": [1.0] * 4, "std": [2.0] * 4, "min": [0.0] * 4, "max": [9.0] * 4, "count": [10]}
    given = {"observation.state": of_four, "action": of_four}
    policy = InternVLAA1Policy.from_pretrained(base, config=tiny_config(statistics=statistics), dataset_stats=given)
    assert policy.action_space.action_mean[:4].tolist() == [mean] * 4


def test_relative_actions_refuse_absolute_statistics():
    stats = {"mean": [0.0] * 4, "std": [1.0] * 4, "min": [0.0] * 4, "max": [1.0] * 4, "count": [10]}
    config = tiny_config(action_representation="relative", absolute_joint_indices=[])
    with pytest.raises(InternVLAError, match="hold absolute ones"):
        InternVLAA1Policy(config, dataset_stats={"observation.state": stats, "action": stats})


def test_compile_model_compiles_the_sampler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    compiled: list[tuple[str, str]] = []
    monkeypatch.setattr(torch, "compile", lambda f, mode: compiled.append((f.__name__, mode)) or f)
    policy = tiny_policy(compile_model=True, compile_mode="reduce-overhead")
    assert compiled == [("sample_actions", "reduce-overhead")]
    policy.save_pretrained(tmp_path)
    InternVLAA1Policy.from_pretrained(tmp_path)
    assert len(compiled) == 2


def test_gradient_checkpointing_is_one_flag_for_everything():
    loss, gradients = [], []
    for flag in (False, True):
        policy = tiny_policy(gradient_checkpointing=flag)
        assert policy.model.mixture.gradient_checkpointing is flag
        assert policy.model.vision_language.gradient_checkpointing is flag
        value, _ = forward_seeded(policy, tiny_batch(policy.config))
        value.backward()
        loss.append(value.item())
        gradients.append(policy.model.vision_language.vision_tower.position.grad)
    assert loss[0] == loss[1]
    torch.testing.assert_close(*gradients)


def test_joint_layers_are_the_units_of_fsdp(policy: InternVLAA1Policy):
    units = {type(m).__name__ for m in policy.modules()}
    assert InternVLAA1Policy._fsdp_wrap_modules == ["JointLayer"]
    assert set(InternVLAA1Policy._fsdp_wrap_modules) <= units


# ------------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained checkpoint (as far as anybody can tell) with statistics of its own."""
    folder = tmp_path_factory.mktemp("base")
    policy = tiny_policy()
    policy.action_space.action_mean[:4] = 5.0
    policy.save_pretrained(folder)
    return folder


def fine_tuned(policy: Any) -> Any:
    """One large step of whatever may move."""
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=0.5)
    policy.train()
    policy.forward(tiny_batch(policy.config))[0].backward()
    optimizer.step()
    return policy.eval()


def test_lora_trains_adapters_and_heads_and_leaves_the_base_alone(base: Path, tmp_path: Path):
    pytest.importorskip("peft")
    from lerobot.policies.factory import get_policy_class
    from peft import PeftConfig, PeftModel

    config = tiny_config(pretrained_path=base)
    plain = InternVLAA1Policy.from_pretrained(base, config=config)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    policy = plain.wrap_with_peft(peft_cli_overrides={"r": 4})
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or "_head.modules_to_save" in name for name in trained)
    adapted = {name.split("experts.")[1].split(".lora")[0] for name in trained if "lora_A" in name}
    assert {expert.split(".")[0] for expert in adapted} == {"understanding", "foresight", "action"}
    # Statistics of the new robot, as adopting a dataset would set them.
    policy.action_space.action_mean[:4] = 9.0

    fine_tuned(policy)
    assert not [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    after = policy.base_model.model.state_dict()
    for name, tensor in before.items():
        if name.startswith(("action_space", "noise_seeds")):  # saved with the adapter
            continue
        head, _, rest = name.rpartition(".")
        found = next(
            after[key]
            for key in (name, f"{head}.base_layer.{rest}", original(name))
            if key is not None and key in after
        )
        assert torch.equal(tensor, found), name

    policy.save_pretrained(tmp_path)
    policy.config.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size

    # As lerobot-eval and lerobot-rollout load it.
    loaded_config = InternVLAA1Config.from_pretrained(tmp_path)
    assert loaded_config.use_peft
    adapter = PeftConfig.from_pretrained(str(tmp_path))
    reloaded = get_policy_class("internvla_a1").from_pretrained(adapter.base_model_name_or_path, config=loaded_config)
    reloaded = PeftModel.from_pretrained(reloaded, str(tmp_path), config=adapter)
    batch, noise = tiny_batch(config, moment="tick"), torch.randn(2, 10, 32)
    ours, theirs = (p.predict_action_chunk(batch, noise=noise) for p in (policy, reloaded))
    torch.testing.assert_close(ours, theirs)
    assert (theirs - InternVLAA1Policy.from_pretrained(base).predict_action_chunk(batch, noise=noise)).abs().min() > 1
    assert torch.equal(reloaded.action_space.action_mean[:4], torch.full((4,), 9.0))


def original(name: str) -> str | None:
    """Where PEFT keeps the untouched copy of a module that it trains in full."""
    for head in ("model.foresight_head.", "model.action_head."):
        if name.startswith(head):
            return f"{head}original_module.{name.removeprefix(head)}"
    return None


def test_adapters_follow_peft_experts(base: Path):
    pytest.importorskip("peft")
    config = tiny_config(pretrained_path=base, peft_experts=["action"])
    policy = InternVLAA1Policy.from_pretrained(base, config=config).wrap_with_peft()
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert all("experts.action" in name or "action_head" in name for name in trained)


def test_an_adapter_for_another_robot_loads_on_a_base_of_other_dims(base: Path, tmp_path: Path):
    """7 joints instead of 4: the base's statistics do not fit, and are not needed."""
    pytest.importorskip("peft")
    from peft import PeftConfig, PeftModel

    config = tiny_config(pretrained_path=base, cameras=["top"], state_dim=7, action_dim=7, use_peft=True)
    policy = InternVLAA1Policy.from_pretrained(base, config=config)
    with pytest.raises(InternVLAError, match="no statistics"):
        policy.select_action(tiny_batch(config, moment="tick"))
    policy.action_space.set_identity()
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"full_training_modules": ["model.action_head"]})
    wrapped.save_pretrained(tmp_path)
    again = InternVLAA1Policy.from_pretrained(base, config=config)
    again = PeftModel.from_pretrained(again, str(tmp_path), config=PeftConfig.from_pretrained(str(tmp_path)))
    assert again.select_action(tiny_batch(config, moment="tick")).shape == (2, 7)


def test_chunks_of_an_untrained_length_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    policy = tiny_policy()
    policy.save_pretrained(tmp_path)
    trained = policy.config.chunk_size
    for wanted, told in ((trained, 0), (trained - 2, 1)):
        caplog.clear()
        config = InternVLAA1Config.from_pretrained(tmp_path)
        config.chunk_size, config.n_action_steps = wanted, 1
        InternVLAA1Policy.from_pretrained(tmp_path, config=config)
        found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(found) == told and all(f"trained with chunks of {trained}" in message for message in found)
