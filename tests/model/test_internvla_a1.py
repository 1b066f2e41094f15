"""The model as a whole: who influences whom, one prefill for all steps, no host synchronisation, every variant.

Inputs are made by hand, so that a padded prompt and a missing camera are in every batch: sample 0 is complete, sample 1
lacks its last camera and half of its prompt.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer
from lerobot_internvla.image_tokenizer.haar import HaarImageTokenizer
from lerobot_internvla.model.architecture import build_architecture
from lerobot_internvla.model.inputs import Observation, Targets
from lerobot_internvla.model.internvla_a1 import InternVLAA1
from lerobot_internvla.testing import SMALL

CHUNK = 5


def build(variant: str = "tiny", *, use_foresight: bool = True) -> InternVLAA1:
    architecture = build_architecture(variant, SMALL[variant])
    torch.manual_seed(0)
    tokenizer = build_image_tokenizer(architecture.image_tokenizer)
    model = InternVLAA1(architecture, use_foresight=use_foresight, chunk_size=CHUNK, image_tokenizer=tokenizer)
    with torch.no_grad():
        # The released initialisation is so small that effects would drown in rounding.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.7 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=["3b", "2b", "tiny"])
def model(request: pytest.FixtureRequest) -> InternVLAA1:
    return build(request.param)


@pytest.fixture(scope="module")
def tiny() -> InternVLAA1:
    return build("tiny")


def inputs(model: InternVLAA1, views: int = 3, seed: int = 0) -> tuple[Observation, Targets, Tensor, Tensor]:
    """Observation, targets, noise and time of two samples."""
    architecture = model.architecture
    generator = torch.Generator().manual_seed(seed)
    present = torch.ones(2, views, dtype=torch.bool)
    present[1, -1] = views == 1  # a lone camera is always there
    words = torch.arange(architecture.prompt_tokens) < torch.tensor([[20], [10]])
    frames = torch.rand(2, views, 3, 3, *architecture.view_size, generator=generator)
    observation = Observation(
        images=frames[:, :, :2] if model.use_foresight else frames[:, :, 1:2],
        camera_is_present=present,
        prompt_ids=torch.randint(0, 256, words.shape, generator=generator),
        prompt_is_valid=words,
        state=torch.randn(2, architecture.max_state_dim, generator=generator),
    )
    rows, columns = architecture.image_tokenizer.latent_size
    shape = (2, CHUNK, architecture.max_action_dim)
    targets = Targets(
        actions=torch.randn(shape, generator=generator),
        action_is_valid=torch.ones(shape, dtype=torch.bool),
        future_images=frames[:, :, 2] if model.use_foresight else None,
        future_is_valid=torch.ones(2, views, dtype=torch.bool) if model.use_foresight else None,
        latent_is_content=torch.ones(2, views, rows, columns, dtype=torch.bool) if model.use_foresight else None,
    )
    return observation, targets, torch.randn(shape, generator=generator), torch.tensor([0.3, 0.8])


def changed(observation: Observation, **values: Tensor) -> Observation:
    return dataclasses.replace(observation, **values)


# ---------------------------------------------------------------------------------------------------------- one prefill


@torch.no_grad()
def test_prefill_and_denoise_equal_the_training_pass(model: InternVLAA1):
    observation, targets, noise, time = inputs(model)
    prediction = model.predict(observation, targets, noise, time)
    prefill = model.prefill(observation, with_foresight=True)
    at = time[:, None, None]
    velocity = model.denoise_step(prefill, at * noise + (1 - at) * targets.actions, time)
    torch.testing.assert_close(velocity, prediction.velocity, rtol=1e-4, atol=2e-5)
    latents, present = model.predict_foresight(prefill), observation.camera_is_present
    torch.testing.assert_close(latents[present], prediction.future_latents[present], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_several_draws_equal_as_many_passes(tiny: InternVLAA1):
    observation, targets, noise, time = inputs(tiny)
    more_noise, more_time = torch.randn_like(noise), torch.tensor([0.9, 0.1])
    noises, times = torch.stack([noise, more_noise], 1).flatten(0, 1), torch.stack([time, more_time], 1).flatten()
    together = tiny.compute_loss(observation, targets, noises, times, lambda_gen=0.1)
    first = tiny.compute_loss(observation, targets, noise, time, lambda_gen=0.1)
    second = tiny.compute_loss(observation, targets, more_noise, more_time, lambda_gen=0.1)
    torch.testing.assert_close(together.action, (first.action + second.action) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.foresight, first.foresight)


@torch.no_grad()
def test_euler_steps_follow_the_velocity(tiny: InternVLAA1):
    observation, _, noise, _ = inputs(tiny)
    prefill = tiny.prefill(observation)
    once = noise - tiny.denoise_step(prefill, noise, torch.ones(2))
    torch.testing.assert_close(tiny.sample_actions(prefill, noise, 1), once)
    halfway = noise - 0.5 * tiny.denoise_step(prefill, noise, torch.ones(2))
    twice = halfway - 0.5 * tiny.denoise_step(prefill, halfway, torch.full((2,), 0.5))
    torch.testing.assert_close(tiny.sample_actions(prefill, noise, 2), twice)


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet(model: InternVLAA1):
    """Two samples together give what each gives alone."""
    observation, _, noise, _ = inputs(model)
    together = model.sample_actions(model.prefill(observation), noise, 2)
    for row in range(2):
        alone = Observation(*(getattr(observation, f.name)[row : row + 1] for f in dataclasses.fields(observation)))
        actions = model.sample_actions(model.prefill(alone), noise[row : row + 1], 2)
        torch.testing.assert_close(actions[0], together[row], rtol=1e-4, atol=2e-5)


# -------------------------------------------------------------------------------------------------- who influences whom


@torch.no_grad()
def test_every_real_input_changes_the_actions(model: InternVLAA1):
    observation, _, noise, _ = inputs(model)
    before = model.sample_actions(model.prefill(observation), noise, 1)
    images = observation.images
    past = images.clone()
    past[:, 0, 0] = 1 - past[:, 0, 0]
    now = images.clone()
    now[:, 1, 1] = 1 - now[:, 1, 1]
    words = observation.prompt_ids.clone()
    words[:, 3] = (words[:, 3] + 1) % 256
    for name, other in {
        "past frame": changed(observation, images=past),
        "current frame": changed(observation, images=now),
        "prompt": changed(observation, prompt_ids=words),
        "state": changed(observation, state=observation.state + 1),
    }.items():
        after = model.sample_actions(model.prefill(other), noise, 1)
        assert (after != before).flatten(1).any(dim=1).all(), name


@torch.no_grad()
def test_what_is_masked_changes_nothing(model: InternVLAA1):
    """Pixels of a missing camera and ids of padding: bit for bit the same actions and the same imagined future."""
    observation, targets, noise, time = inputs(model)
    images, words = observation.images.clone(), observation.prompt_ids.clone()
    images[1, -1] = 1 - images[1, -1]
    words[~observation.prompt_is_valid] = 7
    other = changed(observation, images=images, prompt_ids=words)
    present = observation.camera_is_present
    ours, theirs = (model.prefill(o, with_foresight=True) for o in (observation, other))
    assert torch.equal(model.sample_actions(ours, noise, 2), model.sample_actions(theirs, noise, 2))
    assert torch.equal(model.predict_foresight(ours)[present], model.predict_foresight(theirs)[present])
    a, b = (model.predict(o, targets, noise, time) for o in (observation, other))
    assert torch.equal(a.velocity, b.velocity)
    assert torch.equal(a.future_latents[present], b.future_latents[present])


@torch.no_grad()
def test_a_missing_camera_is_as_if_it_were_not_there(model: InternVLAA1):
    """Masked third slot = a robot with two cameras: positions close up, so the actions agree."""
    observation, _, noise, _ = inputs(model)
    pick = slice(1, 2)
    three = Observation(*(getattr(observation, f.name)[pick] for f in dataclasses.fields(observation)))
    two = changed(three, images=three.images[:, :2], camera_is_present=three.camera_is_present[:, :2])
    a = model.sample_actions(model.prefill(three), noise[pick], 2)
    b = model.sample_actions(model.prefill(two), noise[pick], 2)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_the_future_is_imagined_without_state_and_actions(model: InternVLAA1):
    observation, targets, noise, time = inputs(model)
    before = model.predict(observation, targets, noise, time)
    other = dataclasses.replace(targets, actions=targets.actions + 1)
    after = model.predict(changed(observation, state=observation.state + 1), other, noise, time)
    assert torch.equal(before.future_latents, after.future_latents)
    assert not torch.equal(before.velocity, after.velocity)


@torch.no_grad()
def test_the_state_does_not_see_the_actions(model: InternVLAA1):
    """That is why it may be prefilled: its keys and values are the same whatever the actions are."""
    observation, targets, noise, time = inputs(model)
    caches = []
    for actions in (targets.actions, targets.actions + 1):
        trace: dict = {}
        model.predict(observation, dataclasses.replace(targets, actions=actions), noise, time, trace)
        caches.append(trace["cache"])
    tokens = caches[0][0][0].shape[2] - CHUNK
    for (key, value), (other_key, other_value) in zip(*caches, strict=True):
        assert torch.equal(key[:, :, :tokens], other_key[:, :, :tokens])
        assert torch.equal(value[:, :, :tokens], other_value[:, :, :tokens])
    assert not torch.equal(caches[0][-1][0][:, :, tokens:], caches[1][-1][0][:, :, tokens:])


def test_masked_inputs_get_no_gradient_and_real_ones_a_finite_one(model: InternVLAA1):
    observation, targets, noise, time = inputs(model)
    images = observation.images.clone().requires_grad_()
    losses = model.compute_loss(changed(observation, images=images), targets, noise, time, lambda_gen=1.0)
    losses.total.backward()
    assert torch.isfinite(images.grad).all()
    present = observation.camera_is_present
    assert not images.grad[~present].any()
    assert images.grad[present][:, 1].flatten(1).any(dim=1).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def test_a_sample_without_any_input_stays_finite(model: InternVLAA1):
    """No camera and an empty instruction in one sample of a batch: useless, but no NaN that spreads."""
    observation, targets, noise, time = inputs(model)
    present, valid = observation.camera_is_present.clone(), observation.prompt_is_valid.clone()
    present[1], valid[1] = False, False
    empty = changed(observation, camera_is_present=present, prompt_is_valid=valid)
    assert torch.isfinite(model.sample_actions(model.prefill(empty), noise, 2)).all()
    assert torch.isfinite(model.compute_loss(empty, targets, noise, time, lambda_gen=1.0).total)


# ------------------------------------------------------------------------------------------------------------ gradients


def test_dead_parameters_are_exactly_those_without_a_gradient(model: InternVLAA1):
    """Neither fewer (DDP would wait for them) nor more (they would stop learning)."""
    observation, targets, noise, time = inputs(model)
    model.zero_grad(set_to_none=True)
    model.compute_loss(observation, targets, noise, time, lambda_gen=1.0).total.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {name for name, _ in model.dead_parameters()}
    model.zero_grad(set_to_none=True)


@pytest.fixture
def calls_of(monkeypatch: pytest.MonkeyPatch):
    """Count the forward calls of modules: ``calls_of(modules)`` returns the growing list."""
    handles = []

    def count(modules: Iterator[nn.Module]) -> list[nn.Module]:
        calls: list[nn.Module] = []
        handles.extend(m.register_forward_pre_hook(lambda module, _: calls.append(module)) for m in modules)
        return calls

    yield count
    for handle in handles:
        handle.remove()


def tower_leaves(model: InternVLAA1) -> list[nn.Module]:
    """Modules inside the vision tower's blocks that are called once per pass."""
    tower = model.vision_language.vision_tower
    blocks = tower.encoder.layer if hasattr(tower, "encoder") else tower.blocks
    return [next(m for m in block.modules() if isinstance(m, nn.Linear | nn.Conv2d)) for block in blocks]


def test_gradient_checkpointing_recomputes_layers_and_tower_and_changes_nothing(model: InternVLAA1, calls_of):
    observation, targets, noise, time = inputs(model)
    tower, layers = calls_of(tower_leaves(model)), calls_of(model.mixture.layers)
    depth = model.architecture.vision.depth

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        tower.clear(), layers.clear()
        model.zero_grad(set_to_none=True)
        loss = model.compute_loss(observation, targets, noise, time, lambda_gen=0.5).total
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    loss, gradients = run()
    assert (len(tower), len(layers)) == (depth, 3)
    model.mixture.gradient_checkpointing = model.vision_language.gradient_checkpointing = True
    try:
        same_loss, same_gradients = run()
        assert (len(tower), len(layers)) == (2 * depth, 6)
    finally:
        model.mixture.gradient_checkpointing = model.vision_language.gradient_checkpointing = False
    assert torch.equal(loss, same_loss)
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    model.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------ speed that must not be lost


class HostReads(TorchDispatchMode):
    """Everything that would make a GPU wait for the host, or the host for a GPU."""

    NAMES = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.operations += 1
        if any(name.startswith(read) for read in self.NAMES):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_nothing_is_read_back_from_the_device(model: InternVLAA1):
    observation, _, noise, _ = inputs(model)
    with HostReads() as prefilling:
        prefill = model.prefill(observation, with_foresight=True)
        model.predict_foresight(prefill)
    assert prefilling.operations > 100 and prefilling.found == []
    with HostReads() as sampling:
        model.sample_actions(prefill, noise, 4)
    assert sampling.operations > 100 and sampling.found == []
    with HostReads() as proof:
        bool(noise.sum() > 0)
    assert proof.found, "the counter must notice a read"


@pytest.mark.slow
def test_the_sampler_compiles_without_a_graph_break():
    """In a process of its own: the compiler cannot trace the shape checks with which tests run."""
    finished = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.split() == list(SMALL)


@torch.no_grad()
def compile_every_sampler() -> None:
    """``fullgraph=True`` raises at the first graph break; the compiled sampler computes the same."""
    for variant in SMALL:
        model = build(variant)
        observation, _, noise, _ = inputs(model)
        prefill = model.prefill(observation)
        torch.compiler.reset()
        compiled = torch.compile(model.sample_actions, fullgraph=True, backend="aot_eager")
        expected = model.sample_actions(prefill, noise, 2)
        torch.testing.assert_close(compiled(prefill, noise, 2), expected, rtol=1e-4, atol=1e-5)
        print(variant)


# ------------------------------------------------------------------------------------------------------------- variants


@torch.no_grad()
def test_shapes_of_every_variant(model: InternVLAA1):
    observation, _, noise, _ = inputs(model)
    prefill = model.prefill(observation, with_foresight=True)
    spec = model.architecture.image_tokenizer
    latents = model.predict_foresight(prefill)
    assert latents.shape == (2, 3, spec.latent_channels, *spec.latent_size)
    images = model.decode_latents(latents)
    assert images.shape == (2, 3, 3, *spec.image_size)
    assert images.min() >= 0 and images.max() <= 1
    assert model.sample_actions(prefill, noise, 2).shape == (2, CHUNK, model.architecture.max_action_dim)
    architecture = model.architecture
    tokens = 3 * architecture.view_tokens + architecture.prompt_tokens + 6 * architecture.foresight_tokens_per_frame + 1
    assert prefill.cache[0][0].shape[2] == tokens
    assert len(prefill.cache) == architecture.layers


@pytest.mark.parametrize("views", [1, 2, 3])
def test_any_number_of_cameras(tiny: InternVLAA1, views: int):
    observation, targets, noise, time = inputs(tiny, views)
    losses = tiny.compute_loss(observation, targets, noise, time, lambda_gen=0.01)
    assert torch.isfinite(losses.total)
    cells = tiny.architecture.image_tokenizer.latent_size
    counted = int(observation.camera_is_present.sum()) * 48 * cells[0] * cells[1]
    assert losses.foresight_elements.item() == counted
    with torch.no_grad():
        assert tiny.sample_actions(tiny.prefill(observation), noise, 1).shape == noise.shape


@pytest.mark.parametrize("variant", ["3b", "2b", "tiny"])
def test_the_ablation_has_no_generation_expert(variant: str):
    model = build(variant, use_foresight=False)
    assert not [name for name, _ in model.named_parameters() if "foresight" in name]
    observation, targets, noise, time = inputs(model)
    losses = model.compute_loss(observation, targets, noise, time, lambda_gen=0.0)
    losses.total.backward()
    assert losses.foresight.item() == 0.0
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {name for name, _ in model.dead_parameters()}
    with torch.no_grad():
        prefill = model.prefill(observation)
        assert torch.isfinite(model.sample_actions(prefill, noise, 2)).all()
    with pytest.raises(InternVLAError, match="use_foresight=false"):
        model.predict_foresight(prefill)


@torch.no_grad()
def test_foresight_must_be_asked_for(tiny: InternVLAA1):
    with pytest.raises(InternVLAError, match="with_foresight=True"):
        tiny.predict_foresight(tiny.prefill(inputs(tiny)[0]))


def test_a_model_without_image_tokenizer_says_what_is_missing():
    model = InternVLAA1(build_architecture("tiny"))
    with pytest.raises(InternVLAError, match=r"policy\.image_tokenizer"):
        model.prefill(inputs(model)[0])


def test_the_image_tokenizer_is_frozen_and_outside_the_module_tree(tiny: InternVLAA1):
    class Scaled(HaarImageTokenizer):
        def __init__(self) -> None:
            super().__init__(levels=2)
            self.scale = nn.Parameter(torch.ones(1))

    model = InternVLAA1(tiny.architecture, image_tokenizer=Scaled())
    tokenizer = model.image_tokenizer
    assert not [name for name, _ in model.named_parameters() if "tokenizer" in name or "scale" in name]
    assert not [name for name in model.state_dict() if "scale" in name]
    tokenizer.eval()
    model.train()
    assert not tokenizer.training
    model.to(torch.bfloat16)
    assert tokenizer.scale.dtype == torch.float32, "it keeps its own precision"


@pytest.mark.parametrize("variant", ["3b", "2b", "tiny"])
@torch.no_grad()
def test_bfloat16_autocast_stays_close_and_time_stays_float32(variant: str):
    model = build(variant)
    observation, targets, noise, time = inputs(model)
    exact = model.predict(observation, targets, noise, time)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.predict(observation, targets, noise, time)
        prefill = model.prefill(observation, with_foresight=True)
        sampled = model.sample_actions(prefill, noise, 2)
        assert model.action_head.embed_time(time).dtype == torch.float32
    assert prefill.cache[0][0].dtype == torch.bfloat16, "the keys must be half the size"
    assert rounded.velocity.dtype == sampled.dtype == torch.float32
    error = (rounded.velocity - exact.velocity).abs().max() / exact.velocity.abs().max()
    assert 0 < error < 0.1


if __name__ == "__main__":
    compile_every_sampler()
