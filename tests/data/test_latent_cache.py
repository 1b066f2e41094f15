"""Cached latents: the same training to the last bit, never the wrong latents, and writing that goes on after a kill."""

import dataclasses
import json
import pickle
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import lerobot.scripts.lerobot_train  # noqa: F401  # before the plugin, as in the command
import pytest
import torch
from lerobot.configs import FeatureType
from lerobot.utils.feature_utils import dataset_to_policy_features
from safetensors.torch import load_file, save_file
from torch.utils.data import default_collate

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.batch_keys import CACHED_LATENTS, CAMERA_IS_PRESENT
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.data import latent_cache, latent_writing, stock_training
from lerobot_internvla.data.canonical import CAMERA_KEYS, SampleShape, letterbox_bytes
from lerobot_internvla.data.latent_cache import LatentCache, LatentRecipe, find_latents, latent_places, open_latents
from lerobot_internvla.data.latent_writing import encode_views, plan_latents, verify_latents, write_latents
from lerobot_internvla.data.mixture_dataset import MixtureDataset, ReadSettings
from lerobot_internvla.data.sources import Mixture, load_mixture
from lerobot_internvla.data.stock_mixture import image_tokenizer_of, latents_of_run
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.image_tokenizer.factory import build_image_tokenizer
from lerobot_internvla.image_tokenizer.protocol import ImageTokenizer
from lerobot_internvla.scripts.mixture import main
from lerobot_internvla.testing import SMALL, small_config, tiny_dataset
from stock_commands import lerobot_train

SETTINGS = ReadSettings(video_backend="pyav")
COSMOS = {
    **{"kind": "cosmos_ci8x8", "image_size": [128, 128], "latent_channels": 16, "compression": 8},
    **{"channels": 32, "channels_mult": [1, 1], "num_res_blocks": 1},
}


def small(**changes: Any) -> InternVLAA1Config:
    """Views of 56 x 56, so that letterboxing changes every camera, and a tokenizer that resizes them again."""
    return small_config("2b", chunk_size=5, latent_cache=True, **changes)


def copied(mixture_file: Path, folder: Path) -> Mixture:
    shutil.copytree(mixture_file.parent, folder)
    return load_mixture(folder / mixture_file.name)


def written(mixture: Mixture, config: InternVLAA1Config, batch_size: int = 7) -> tuple[LatentCache, ImageTokenizer]:
    tokenizer = image_tokenizer_of(config)
    plan = plan_latents(mixture, LatentRecipe.of(tokenizer, config.architecture))
    write_latents(plan, tokenizer, batch_size=batch_size, video_backend="pyav", progress=False)
    return latents_of_run(mixture, config), tokenizer


def dataset_of(mixture: Mixture, config: InternVLAA1Config, latents: LatentCache | None) -> MixtureDataset:
    shape = dataclasses.replace(SampleShape.of(config), cached_latents=latents is not None)
    fixed: dict[str, Any] = {"repo_id": "local/mixture", "seed": 3, "batch_size": 4, "settings": SETTINGS}
    return MixtureDataset(mixture, shape, **fixed, latents=latents)


@pytest.fixture(autouse=True)
def lerobot_train_is_ours() -> None:
    stock_training.install()  # the command imports the plugin last; here other tests may have imported it first


Whole = namedtuple("Whole", "mixture config latents tokenizer plain cached")


@pytest.fixture(scope="module")
def whole(mixture_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A mixture whose latents are all there; not to be changed."""
    mixture, config = copied(mixture_file, tmp_path_factory.mktemp("latents") / "files"), small()
    latents, tokenizer = written(mixture, config)
    plain, cached = dataset_of(mixture, config, None), dataset_of(mixture, config, latents)
    return Whole(mixture, config, latents, tokenizer, plain, pickle.loads(pickle.dumps(cached)))


def as_trained(dataset: MixtureDataset, positions: range) -> dict[str, Any]:
    """A batch as ``lerobot-train`` hands it to the policy."""
    batch = default_collate([dataset[position] for position in positions])
    return {key: value / 255.0 if key in CAMERA_KEYS.values() else value for key, value in batch.items()}


def policy_of(dataset: MixtureDataset, config: InternVLAA1Config) -> InternVLAA1Policy:
    features = dataset_to_policy_features(dataset.meta.features)
    config.output_features = {key: f for key, f in features.items() if f.type is FeatureType.ACTION}
    config.input_features = {key: f for key, f in features.items() if key not in config.output_features}
    torch.manual_seed(0)
    return InternVLAA1Policy(config, dataset_meta=dataset.meta).train()


def learned(policy: InternVLAA1Policy, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of an evaluation-mode pass with fixed noise, and all gradients."""
    policy.eval().zero_grad()
    torch.manual_seed(1)
    loss, _ = policy.forward(batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


# --- the same training ------------------------------------------------------------------------------------------------


def test_a_cached_sample_is_the_plain_one_with_latents_for_frames(whole: Whole):
    for source in whole.mixture.sources:
        first_length, interval = int(source.episode_lengths[0]), source.interval_frames
        last = source.num_frames - 1
        for frame in {0, 1, interval - 1, interval, first_length - interval, first_length - 1, first_length, last}:
            plain, cached = whole.plain.sample(source, frame), whole.cached.sample(source, frame)
            assert cached.keys() == plain.keys() | {CACHED_LATENTS}
            views = torch.stack([plain[key] for key in CAMERA_KEYS.values()])
            for key in CAMERA_KEYS.values():
                assert torch.equal(cached.pop(key), plain.pop(key)[1:2]), "only the frame now is decoded"
            latents = cached.pop(CACHED_LATENTS)
            fresh = encode_views(views.flatten(0, 1), whole.tokenizer, whole.latents.recipe, torch.device("cpu"))
            assert torch.equal(latents.flatten(0, 1), fresh), "also at the edges, and black where there is no camera"
            assert latents.shape[:2] == (3, 3) and latents.isfinite().all()
            assert cached.pop("task") == plain.pop("task")
            assert all(torch.equal(cached[key], plain[key]) for key in plain), "masks, state and actions"
            is_present = plain[CAMERA_IS_PRESENT]
            assert is_present.any() and not is_present.all()


def test_loss_and_gradients_are_equal_to_the_last_bit(whole: Whole, monkeypatch: pytest.MonkeyPatch):
    policy = policy_of(whole.cached, whole.config)
    encoded: list[int] = []
    encode = type(whole.tokenizer).encode
    monkeypatch.setattr(type(whole.tokenizer), "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    loss, gradients = learned(policy, as_trained(whole.plain, range(6)))
    assert sum(encoded) == 6 * 9
    encoded.clear()
    from_cache, gradients_from_cache = learned(policy, as_trained(whole.cached, range(6)))
    assert encoded == [], "the image tokenizer does not run"
    assert torch.equal(loss, from_cache) and loss > 0
    assert gradients.keys() == gradients_from_cache.keys()
    assert all(torch.equal(gradients[name], gradients_from_cache[name]) for name in gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cosmos_latents_are_kept_in_its_own_precision(mixture_file: Path, tmp_path: Path, dtype: str):
    architecture = {**SMALL["2b"], "image_tokenizer": COSMOS}
    config = small(
        architecture_overrides=architecture, image_tokenizer_dtype=dtype, image_tokenizer=str(tmp_path / "t")
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        build_image_tokenizer(config.architecture.image_tokenizer).save_pretrained(tmp_path / "t")
    mixture = copied(mixture_file, tmp_path / "files")
    latents, tokenizer = written(mixture, config, batch_size=9)
    cached = dataset_of(mixture, config, latents)
    plain = dataset_of(mixture, config, None)
    # Batches of nine pictures, as training encodes a sample: all of them, whatever the batch size was.
    found = verify_latents(mixture, latents, tokenizer, SampleShape.of(config), samples=8, settings=SETTINGS)
    assert cached[0][CACHED_LATENTS].dtype is getattr(torch, dtype)
    assert found.relative < (1e-5 if dtype == "float32" else 0.02)
    policy = policy_of(cached, config)
    loss, from_cache = (learned(policy, as_trained(dataset, range(4)))[0] for dataset in (plain, cached))
    assert torch.allclose(loss, from_cache, rtol=1e-5 if dtype == "float32" else 2e-3, atol=0)


def test_letterboxing_does_not_depend_on_how_many_frames_come_at_once():
    frames = torch.randint(0, 256, (9, 3, 48, 70), dtype=torch.uint8)
    together = letterbox_bytes(frames, (56, 56))
    assert all(torch.equal(letterbox_bytes(frames[i : i + 1], (56, 56))[0], together[i]) for i in range(9))


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_stopped(whole: Whole, mixture_file: Path, tmp_path: Path, monkeypatch: Any):
    mixture, recipe = copied(mixture_file, tmp_path / "files"), whole.latents.recipe
    total = sum(s.num_episodes * len(s.features.cameras) for s in mixture.sources)
    assert plan_latents(mixture, recipe).files == total
    publish = latent_writing._publish
    published: list[Path] = []

    def killed(draft: Path, path: Path) -> None:
        if "episode" in path.name and sum("episode" in p.name for p in published) == 3:
            raise KeyboardInterrupt  # its draft is complete, but the file is not there
        publish(draft, path)
        published.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(latent_writing, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            written(mixture, small(), batch_size=5)
    with pytest.raises(InternVLAError, match=r"arm: 1 of 4 files are missing; the first is episode 1 of observation"):
        latents_of_run(mixture, small())
    plan = plan_latents(mixture, recipe)
    # Two cameras of one episode are whole; of the other, one camera was written.
    assert plan.present_files == 2 and plan.files == total - 2
    kept = {path: path.stat().st_mtime_ns for path in published[:2] if "episode-000000" in path.name}
    latents, _ = written(mixture, small(), batch_size=5)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert plan_latents(mixture, recipe).files == 0
    for ours, theirs in zip(latents.folders, whole.latents.folders, strict=True):
        files = sorted(path.relative_to(theirs) for path in theirs.rglob("*.safetensors"))
        assert files and not list(ours.rglob("*.unfinished"))
        for file in files:  # whatever the batch size
            assert torch.equal(load_file(ours / file)["latents"], load_file(theirs / file)["latents"])


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(whole: Whole, mixture_file: Path, tmp_path: Path):
    mixture = copied(mixture_file, tmp_path / "files")
    plan = plan_latents(mixture, whole.latents.recipe)
    pictures = sum(source.num_frames * len(source.features.cameras) for source in mixture.sources)
    assert plan.bytes == pictures * 48 * 16 * 16 * 4
    usage = namedtuple("usage", "total used free")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_writing.shutil, "disk_usage", lambda path: usage(0, 0, plan.bytes - 1))
        with pytest.raises(InternVLAError, match=r"do not fit(.|\n)* are needed (.|\n)*Nothing was written"):
            write_latents(plan, whole.tokenizer, video_backend="pyav", progress=False)
    assert not list((tmp_path / "files").rglob("latents"))
    written_bytes = sum(
        path.stat().st_size for folder in whole.latents.folders for path in folder.glob("*/*.safetensors")
    )
    assert plan.bytes <= written_bytes <= 1.01 * plan.bytes


def test_where_latents_go(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latent_cache.constants, "HF_HOME", str(tmp_path))
    source = whole.mixture.sources[0]
    assert latent_places(source)[0] == source.root / "latents"
    hub = dataclasses.replace(source, from_hub=True, revision="abc", repo_id="owner/name")
    assert latent_places(hub) == [tmp_path / "lerobot_internvla" / "latents" / "owner--name-abc"]
    read_only = dataclasses.replace(whole.mixture, sources=(dataclasses.replace(source, root=tmp_path / "dataset"),))
    other = dataclasses.replace(whole.latents.recipe, pixels="another way")
    monkeypatch.setattr(latent_writing.os, "access", lambda path, mode: path == tmp_path)
    (tmp_path / "dataset").mkdir()
    (place,) = {plan.folder.parent for plan in plan_latents(read_only, other).sources}
    assert place.parent == tmp_path / "lerobot_internvla" / "latents" and place.name.startswith("local--arm-")


# --- never the wrong latents ------------------------------------------------------------------------------------------


def test_everything_that_latents_depend_on_is_in_the_fingerprint(whole: Whole):
    architecture = whole.config.architecture
    recipe = LatentRecipe.of(whole.tokenizer, architecture)
    assert recipe.fingerprint == whole.latents.recipe.fingerprint
    cosmos = dataclasses.replace(architecture.image_tokenizer, kind="cosmos_ci8x8", channels=32, channels_mult=(1, 1))
    cosmos = dataclasses.replace(cosmos, latent_channels=16, compression=8, num_res_blocks=1)
    first = build_image_tokenizer(cosmos)
    seen = {
        recipe.fingerprint,
        dataclasses.replace(recipe, view_size=(64, 64)).fingerprint,
        dataclasses.replace(recipe, image_size=(128, 128)).fingerprint,
        dataclasses.replace(recipe, pixels="another way").fingerprint,
        LatentRecipe.of(first, architecture).fingerprint,
        LatentRecipe.of(build_image_tokenizer(cosmos), architecture).fingerprint,  # other random weights
    }
    assert LatentRecipe.of(first, architecture).fingerprint in seen
    assert LatentRecipe.of(build_image_tokenizer(cosmos, dtype=torch.bfloat16), architecture).dtype is torch.bfloat16
    seen.add(LatentRecipe.of(first.to(torch.bfloat16), architecture).fingerprint)  # type: ignore[arg-type]
    assert len(seen) == 7


def test_latents_that_are_missing_or_of_something_else_are_refused(whole: Whole, mixture_file: Path, tmp_path: Path):
    mixture = copied(mixture_file, tmp_path / "files")
    with pytest.raises(InternVLAError) as none:
        latents_of_run(mixture, small())
    text = str(none.value)
    assert all(f"{source.name}: there are none" in text for source in mixture.sources)
    assert f"internvla-mixture cache-latents {mixture.path} --variant=2b" in text
    shutil.copytree(whole.latents.folders[1], mixture.sources[1].root / "latents" / whole.latents.folders[1].name)
    views = {**SMALL["2b"], "image_tokenizer": {**SMALL["2b"]["image_tokenizer"], "image_size": [96, 96]}}
    other = small_config("2b", architecture_overrides=views)
    with pytest.raises(InternVLAError, match=r"slider: only others are there: \w{16} \(image_size \[64, 64\] instead"):
        open_latents(mixture, LatentRecipe.of(whole.tokenizer, other.architecture), command="x")


def test_a_policy_with_another_image_tokenizer_refuses_the_dataset(whole: Whole):
    recipe = dataclasses.replace(whole.latents.recipe, view_size=(8, 8))
    foreign = dataclasses.replace(whole.latents, recipe=recipe)
    dataset = dataset_of(whole.mixture, whole.config, foreign)
    with pytest.raises(InternVLAError, match=r"these differ: view_size \[8, 8\] instead of \[56, 56\]"):
        policy_of(dataset, small())


def test_files_of_another_recording_are_refused(whole: Whole, mixture_file: Path, tmp_path: Path):
    mixture = copied(mixture_file, tmp_path / "files")
    latents, tokenizer = written(mixture, small())
    cached = dataset_of(mixture, small(), latents)
    source = mixture.sources[1]
    file = next(latents.folders[1].glob("*/episode-000000.safetensors"))
    content = load_file(file)["latents"]
    save_file({"latents": content.flip(0).contiguous()}, file)
    with pytest.raises(InternVLAError, match=r"are not the latents of their frames:\n  - slider, frame"):
        verify_latents(mixture, latents, tokenizer, SampleShape.of(small()), samples=16, settings=SETTINGS)
    save_file({"latents": content[:-1].contiguous()}, file)
    with pytest.raises(InternVLAError, match=r"another recording\?\. Remove the file"):
        cached.sample(source, 0)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InternVLAError, match="Cannot read cached latents"):
        cached.sample(source, 0)
    file.unlink()
    with pytest.raises(InternVLAError, match="Cannot read cached latents"):
        cached.sample(source, 0)


def test_latents_without_augmentation_and_with_foresight_only(whole: Whole):
    augmented = dataclasses.replace(SETTINGS, image_transforms=lambda frames: frames)
    fixed: dict[str, Any] = {"repo_id": "x", "seed": 0, "batch_size": 1}
    with pytest.raises(InternVLAError, match="image transforms would change the frames"):
        MixtureDataset(whole.mixture, SampleShape.of(whole.config), **fixed, settings=augmented, latents=whole.latents)
    with pytest.raises(InternVLAError, match="latents are not given"):
        MixtureDataset(whole.mixture, SampleShape.of(whole.config), **fixed)
    with pytest.raises(InternVLAError, match="latent_cache=true needs use_foresight=true"):
        small(use_foresight=False)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_one_command_then_training_without_the_image_tokenizer(
    mixture_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    mixture = copied(mixture_file, tmp_path / "files")
    command = ["cache-latents", str(mixture.path), "--variant=tiny", "--device=cpu", "--video-backend=pyav"]
    flags = [
        *("--policy.type=internvla_a1", "--policy.variant=tiny", "--policy.device=cpu", "--policy.push_to_hub=false"),
        *("--policy.chunk_size=4", "--policy.n_action_steps=4", "--dataset.repo_id=local/mixture"),
        *(f"--dataset.root={mixture.path}", "--dataset.video_backend=pyav", "--batch_size=3", "--num_workers=0"),
        *("--steps=2", "--save_freq=2", "--log_freq=1", "--seed=5"),
    ]
    cached = [*flags, "--policy.latent_cache=true"]
    with pytest.raises(InternVLAError, match=r"internvla-mixture cache-latents .*mixture\.yaml --variant=tiny"):
        lerobot_train(*cached, f"--output_dir={tmp_path / 'refused'}")
    with pytest.raises(InternVLAError, match="image transforms would change the frames"):
        lerobot_train(*cached, "--dataset.image_transforms.enable=true", f"--output_dir={tmp_path / 'refused'}")

    assert main([*command, "--dry-run"]) == 0
    assert "0 files are there, 10 are missing: 301 frames" in capsys.readouterr().out
    assert not list(mixture.path.parent.rglob("latents"))
    assert main([*command, "--num-workers=1", "--verify=4"]) == 0
    said = capsys.readouterr()
    assert "4 samples verified: equal to the last bit" in said.out and "301/301" in said.err
    for source in mixture.sources:
        manifest = json.loads((find_latents_of_tiny(source) / "manifest.json").read_text())
        assert manifest["recipe"]["view_size"] == [64, 64] and manifest["dataset"] == source.repo_id
    assert main(command) == 0
    assert "10 files are there, 0 are missing" in capsys.readouterr().out

    losses: dict[str, list[float]] = {}
    forward = InternVLAA1Policy.forward
    for name, given in (("plain", flags), ("cached", cached)):
        seen = losses.setdefault(name, [])

        def spy(self: Any, batch: dict[str, Any], seen: list[float] = seen, **more: Any) -> Any:
            loss, metrics = forward(self, batch, **more)
            seen.append(float(loss))
            return loss, metrics

        with monkeypatch.context() as patch:
            patch.setattr(InternVLAA1Policy, "forward", spy)
            if name == "cached":
                patch.setattr("lerobot_internvla.image_tokenizer.haar.haar", None)  # would fail if it ran
            lerobot_train(*given, f"--output_dir={tmp_path / name}")
    assert losses["plain"] == losses["cached"] and len(losses["plain"]) == 2
    saved = tmp_path / "cached" / "checkpoints" / "last" / "pretrained_model"
    assert json.loads((saved / "config.json").read_text())["latent_cache"] is False, "that of a computer, not a policy"
    assert json.loads((saved / "train_config.json").read_text())["policy"]["latent_cache"] is True, "a resumed run's"
    # The checkpoint has the same image tokenizer, so its latents are there.
    assert main(["cache-latents", str(mixture.path), f"--policy.path={saved}", "--verify=0"]) == 0
    assert "10 files are there, 0 are missing" in capsys.readouterr().out
    for wrong in ("--policy.path=./nowhere", "--policy.path=no/body", f"--policy.path={mixture.path.parent}"):
        assert main(["cache-latents", str(mixture.path), wrong]) == 2
        assert wrong.removeprefix("--policy.path=") in capsys.readouterr().err
    assert main([*command, "--batch-size=0"]) == 2


def find_latents_of_tiny(source: Any) -> Path:
    config = InternVLAA1Config(variant="tiny", device="cpu")
    folder = find_latents(source, LatentRecipe.of(image_tokenizer_of(config), config.architecture).fingerprint)
    assert folder is not None and folder.parent == source.root / "latents"
    return folder


def test_a_single_dataset_is_told_to_be_a_mixture_of_one(tmp_path: Path):
    tiny_dataset(tmp_path / "one", episode_lengths=(4,), cameras=["top"])
    with pytest.raises(InternVLAError, match="Write a mixture file with this dataset as its one source"):
        lerobot_train(
            *("--policy.type=internvla_a1", "--policy.variant=tiny", "--policy.device=cpu"),
            *("--policy.push_to_hub=false", "--policy.latent_cache=true", "--dataset.repo_id=local/one"),
            *(f"--dataset.root={tmp_path / 'one'}", f"--output_dir={tmp_path / 'out'}", "--steps=1"),
        )
