"""Losses, against means worked out by hand: what is padded, missing or made up does not count."""

import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed

from lerobot_internvla.model.inputs import Prediction, Targets
from lerobot_internvla.model.losses import LossBreakdown, compute_losses

KEYS = {"loss_action", "loss_foresight", "valid_action_elements", "valid_foresight_elements"}


def case() -> tuple[Prediction, Targets, torch.Tensor]:
    """Two samples, two steps, two dims; two views of 2 channels x 1 x 2 cells. Errors are small whole numbers."""
    error = torch.tensor([[[1.0, 2.0], [3.0, 100.0]], [[4.0, 100.0], [100.0, 100.0]]])
    action_is_valid = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])
    future_error = torch.zeros(2, 2, 2, 1, 2)
    future_error[0, 0, :, 0, 0] = torch.tensor([1.0, 3.0])  # sample 0, view 0: the cell that shows content
    future_error[0, 0, :, 0, 1] = 100.0  # letterbox bar
    future_error[0, 1] = 100.0  # missing camera
    future_error[1, 0] = 100.0  # frame clamped at the end of the episode
    future_error[1, 1, :, 0, 0] = torch.tensor([2.0, 2.0])
    future_error[1, 1, :, 0, 1] = torch.tensor([0.0, 4.0])
    content = torch.ones(2, 2, 1, 2, dtype=torch.bool)
    content[0, 0, 0, 1] = False
    prediction = Prediction(
        velocity=torch.zeros_like(error),
        target_velocity=error,
        future_latents=torch.zeros_like(future_error),
        target_future_latents=future_error,
    )
    targets = Targets(
        actions=torch.zeros(2, 2, 2),
        action_is_valid=action_is_valid,
        future_images=torch.zeros(2, 2, 3, 1, 1),
        future_is_valid=torch.tensor([[True, True], [False, True]]),
        latent_is_content=content,
    )
    camera_is_present = torch.tensor([[True, False], [True, True]])
    return prediction, targets, camera_is_present


def test_only_real_elements_count():
    losses = compute_losses(*case(), lambda_gen=0.5)
    action = (1 + 4 + 9 + 16) / 4
    foresight = (1 + 9 + 4 + 4 + 0 + 16) / 6
    assert losses.action.item() == pytest.approx(action)
    assert losses.foresight.item() == pytest.approx(foresight)
    assert losses.total.item() == pytest.approx(action + 0.5 * foresight)
    assert losses.as_floats() == {
        "loss_action": pytest.approx(action),
        "loss_foresight": pytest.approx(foresight),
        "valid_action_elements": 4.0,
        "valid_foresight_elements": 6.0,
    }


def test_each_sample_is_averaged_over_its_own_elements():
    losses = compute_losses(*case(), lambda_gen=0.5)
    expected = [(1 + 4 + 9) / 3 + 0.5 * (1 + 9) / 2, 16 + 0.5 * (4 + 4 + 0 + 16) / 4]
    assert losses.total_per_sample.tolist() == pytest.approx(expected)


def test_the_reference_averages_over_padding_but_not_over_missing_cameras():
    prediction, targets, present = case()
    losses = compute_losses(prediction, targets, present, lambda_gen=1.0, reference=True)
    assert losses.action.item() == pytest.approx(prediction.target_velocity.square().mean().item())
    kept = prediction.target_future_latents[present]
    assert losses.foresight.item() == pytest.approx(kept.square().mean().item())


def test_masked_elements_may_hold_anything_finite():
    """Even a value whose square overflows changes nothing, and gets no gradient."""
    prediction, targets, present = case()
    error = prediction.target_velocity.masked_fill(~targets.action_is_valid, 1e30).requires_grad_()
    dirty = Prediction(prediction.velocity, error, prediction.future_latents, prediction.target_future_latents)
    losses = compute_losses(dirty, targets, present, lambda_gen=0.5)
    assert losses.action.item() == pytest.approx(7.5)
    losses.total.backward()
    assert torch.equal(error.grad != 0, targets.action_is_valid)


def without_actions(targets: Targets) -> Targets:
    nothing = torch.zeros_like(targets.action_is_valid)
    return Targets(targets.actions, nothing, targets.future_images, targets.future_is_valid, targets.latent_is_content)


def test_a_batch_without_actions_has_a_finite_loss_and_the_same_keys():
    prediction, targets, present = case()
    losses = compute_losses(prediction, without_actions(targets), present, lambda_gen=0.5)
    assert losses.action.item() == 0.0
    assert losses.total.item() == pytest.approx(0.5 * losses.foresight.item())
    assert losses.as_floats().keys() == KEYS
    assert losses.as_floats()["valid_action_elements"] == 0.0


def test_a_policy_without_foresight_has_the_same_keys():
    prediction, targets, present = case()
    bare = Prediction(prediction.velocity, prediction.target_velocity, None, None)
    losses = compute_losses(bare, targets, present, lambda_gen=0.5)
    assert losses.total.item() == pytest.approx(7.5)
    assert losses.as_floats().keys() == KEYS
    assert losses.as_floats()["loss_foresight"] == 0.0


def test_nothing_valid_at_all_is_zero_not_nan():
    prediction, targets, present = case()
    losses: LossBreakdown = compute_losses(
        prediction, without_actions(targets), torch.zeros_like(present), lambda_gen=0.5
    )
    assert losses.total.item() == 0.0
    assert losses.total_per_sample.tolist() == [0.0, 0.0]


def test_several_draws_of_one_sample_are_averaged():
    """The draws of one sample follow each other; two draws with errors 0 and e average to e^2 / 2."""
    prediction, targets, present = case()
    doubled = Prediction(
        velocity=torch.zeros(4, 2, 2),
        target_velocity=torch.stack([prediction.target_velocity, torch.zeros(2, 2, 2)], dim=1).flatten(0, 1),
        future_latents=prediction.future_latents,
        target_future_latents=prediction.target_future_latents,
    )
    losses = compute_losses(doubled, targets, present, lambda_gen=0.5)
    assert losses.action.item() == pytest.approx(7.5 / 2)
    assert losses.total_per_sample.shape == (2,)
    assert losses.as_floats()["valid_action_elements"] == 4.0


# --- several ranks ----------------------------------------------------------------------------------------------------

# What rank 1 lacks; rank 0 always has everything that a mixture can give it.
LACKING = ("nothing", "actions", "foresight", "everything", "a foresight expert")


def part_of_rank(rank: int, lacking: str) -> tuple[Prediction, Targets, torch.Tensor, list[torch.Tensor]]:
    """A rank's batch, with its own numbers of valid elements; and two weights that all ranks share."""
    generator = torch.Generator().manual_seed(rank)
    weights = [torch.tensor(0.5, requires_grad=True), torch.tensor(2.0, requires_grad=True)]
    batch, chunk, dims, views = 3, 4, 5, 2

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    action_is_valid = draw(batch, chunk, dims) > (-0.5 if rank == 0 else 1.0)
    future_is_valid = draw(batch, views) > (-1.0 if rank == 0 else 0.5)
    if rank == 1 and lacking in ("actions", "everything"):
        action_is_valid = torch.zeros_like(action_is_valid)
    if rank == 1 and lacking in ("foresight", "everything"):
        future_is_valid = torch.zeros_like(future_is_valid)
    shows = lacking != "a foresight expert"
    latents = draw(batch, views, 3, 2, 2), draw(batch, views, 3, 2, 2)
    prediction = Prediction(
        velocity=weights[0] * draw(batch, chunk, dims),
        target_velocity=draw(batch, chunk, dims),
        future_latents=weights[1] * latents[0] if shows else None,
        target_future_latents=latents[1] if shows else None,
    )
    content = draw(batch, views, 2, 2) > -1
    targets = Targets(
        torch.zeros(batch, chunk, dims), action_is_valid, torch.zeros(batch, views, 3, 1, 1), future_is_valid, content
    )
    return prediction, targets, torch.ones(batch, views, dtype=torch.bool), weights


def mean_gradients_over_two_ranks(rank: int, meeting_place: str) -> dict[str, list[float]]:
    """What data-parallel training makes of the ranks' losses; run in two processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found: dict[str, list[float]] = {}
    for lacking in LACKING:
        prediction, targets, present, weights = part_of_rank(rank, lacking)
        losses = compute_losses(prediction, targets, present, lambda_gen=0.3, across_ranks=True)
        losses.total.backward()
        numbers = torch.stack(
            [w.grad if w.grad is not None else torch.zeros(()) for w in weights]
            + [losses.total.detach(), losses.action.detach(), losses.foresight.detach()]
        )
        torch.distributed.all_reduce(numbers)
        found[lacking] = (numbers / 2).tolist()
    alone = compute_losses(*part_of_rank(rank, "nothing")[:3], lambda_gen=0.3, across_ranks=False)
    found["alone"] = [float(alone.total.detach())]
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    """``mean_gradients_over_two_ranks`` of each rank."""
    meeting_place = tmp_path_factory.mktemp("ranks") / "store"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(meeting_place)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-2000:] + outputs[1][1][-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.parametrize("lacking", LACKING)
def test_two_ranks_learn_what_one_rank_with_both_batches_would(two_ranks: list[dict[str, list[float]]], lacking: str):
    """The mean of the ranks' gradients, which is what DDP makes, is that of the joined batch."""
    parts = [part_of_rank(rank, lacking) for rank in range(2)]
    predictions, targets, present = ([part[i] for part in parts] for i in range(3))

    def joined(items: list[Prediction] | list[Targets], name: str) -> torch.Tensor | None:
        tensors = [getattr(item, name) for item in items]
        return None if tensors[0] is None else torch.cat(tensors)

    losses = compute_losses(
        Prediction(**{f: joined(predictions, f) for f in Prediction.__dataclass_fields__}),  # type: ignore[arg-type]
        Targets(**{f: joined(targets, f) for f in Targets.__dataclass_fields__}),  # type: ignore[arg-type]
        torch.cat(present),
        lambda_gen=0.3,
    )
    losses.total.backward()
    gradients = [
        sum(float(part[3][i].grad) if part[3][i].grad is not None else 0.0 for part in parts) for i in range(2)
    ]
    expected = [*gradients, *(float(value.detach()) for value in (losses.total, losses.action, losses.foresight))]
    for of_rank in two_ranks:
        assert of_rank[lacking] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_without_counting_across_ranks_two_ranks_would_learn_something_else(two_ranks: list[dict[str, list[float]]]):
    """A rank with few valid elements would weigh as much as one with many; each term by itself says so."""
    mean_of_means = sum(of_rank["alone"][0] for of_rank in two_ranks) / 2
    assert abs(mean_of_means - two_ranks[0]["nothing"][2]) > 0.01


if __name__ == "__main__":
    print(json.dumps(mean_gradients_over_two_ranks(int(sys.argv[1]), sys.argv[2])), flush=True)
    # Gloo's threads may still run when the interpreter takes itself apart, and abort a process that has its result.
    os._exit(0)
