"""The mixture as lerobot-train reads it: an order without state, only a rank's own sources, few of them open."""

import dataclasses
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from lerobot.datasets import EpisodeAwareSampler
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.sampler import compute_sampler_state
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch.utils.data import BatchSampler, DataLoader, default_collate

from lerobot_internvla.data import exact_resume, mixture_dataset
from lerobot_internvla.data.canonical import SampleShape
from lerobot_internvla.data.frame_cache import FrameCachingReader
from lerobot_internvla.data.mixture_dataset import VIRTUAL_LENGTH, MixtureDataset, ReadSettings
from lerobot_internvla.data.sources import Mixture, Source, load_mixture
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.testing import tiny_config

SHAPE = SampleShape.of(tiny_config(chunk_size=5))


@pytest.fixture(scope="module")
def mixture(mixture_file: Path) -> Mixture:
    return load_mixture(mixture_file)


def of_rank(mixture: Mixture, rank: int = 0, world_size: int = 1, *, seed: int = 7, **settings: Any) -> MixtureDataset:
    return MixtureDataset(
        mixture,
        SHAPE,
        repo_id="local/mixture",
        seed=seed,
        batch_size=4,
        rank=rank,
        world_size=world_size,
        settings=ReadSettings(video_backend="pyav", **settings),
    )


def own_positions(dataset: MixtureDataset, draws: int) -> list[int]:
    """Positions of the sampler that belong to the rank, as many as ``draws``, computed the slow way."""
    size, world = dataset.batch_size, dataset.world_size
    return [p for p in range(draws * world + size * world) if p // size % world == dataset.rank][:draws]


def drawn(dataset: MixtureDataset, draws: int) -> list[tuple[str, int]]:
    found = [dataset.locate(position) for position in own_positions(dataset, draws)]
    return [(source.name, frame) for source, frame in found]


# --- order ------------------------------------------------------------------------------------------------------------


def test_workers_change_nothing_and_neither_does_pickling(mixture: Mixture):
    dataset = of_rank(mixture)
    plain = [default_collate([dataset[position] for position in range(b * 4, b * 4 + 4)]) for b in range(5)]
    assert dataset.open_sources, "the next lines send an open dataset to other processes"
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.open_sources == ()
    for other, workers in ((dataset, 1), (dataset, 2), (copy, 0), (copy, 2)):
        loader = DataLoader(other, batch_size=4, sampler=range(20), num_workers=workers)  # type: ignore[arg-type]
        for batch, expected in zip(loader, plain, strict=True):
            assert batch.keys() == expected.keys() and batch["task"] == expected["task"]
            assert all(torch.equal(batch[k], expected[k]) for k in batch if k != "task")


def test_the_order_depends_on_seed_and_rank(mixture: Mixture):
    first = drawn(of_rank(mixture), 60)
    assert first == drawn(of_rank(mixture), 60)
    assert first != drawn(of_rank(mixture, seed=8), 60)
    ranks = [drawn(of_rank(mixture, rank, 2), 60) for rank in range(2)]
    assert ranks[0] != ranks[1]


def test_every_frame_of_a_source_comes_before_one_comes_again(mixture: Mixture):
    order: dict[str, list[int]] = {source.name: [] for source in mixture.sources}
    for name, frame in drawn(of_rank(mixture), 1400):
        order[name].append(frame)
    for source in mixture.sources:
        frames, total = order[source.name], source.num_frames
        assert len(frames) >= 2 * total, "two passes must have been seen"
        assert sorted(frames[:total]) == sorted(frames[total : 2 * total]) == list(range(total))
        assert frames[:total] != frames[total : 2 * total]


def test_shares_are_those_of_the_file(mixture: Mixture):
    counts = Counter(name for name, _ in drawn(of_rank(mixture), 1000))
    for source in mixture.sources:
        assert abs(counts[source.name] - 1000 * source.weight) <= 2
    together = Counter(name for rank in range(3) for name, _ in drawn(of_rank(mixture, rank, 3), 400))
    for source in mixture.sources:
        assert abs(together[source.name] - 1200 * source.weight) <= 6, "at most 2 per rank"


def test_ranks_draw_disjoint_frames_that_together_are_all(mixture: Mixture):
    seen = [set(drawn(of_rank(mixture, rank, 3), 1000)) for rank in range(3)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == sum(source.num_frames for source in mixture.sources)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_lerobots_sampler_and_accelerates_sharding_give_each_rank_its_draws_in_order(mixture: Mixture, world_size: int):
    """The way of lerobot-train: every rank counts through all batches and keeps every world-size-th."""
    exact_resume.install()
    for rank in range(world_size):
        dataset = of_rank(mixture, rank, world_size)
        for resumed_at in (0, 3):
            sampler = EpisodeAwareSampler(
                dataset.meta.episodes["dataset_from_index"],
                dataset.meta.episodes["dataset_to_index"],
                episode_indices_to_use=dataset.episodes,
                shuffle=True,
                seed=7,
                absolute_to_relative_idx=dataset.absolute_to_relative_idx,
            )
            assert len(sampler) == VIRTUAL_LENGTH == len(dataset)
            sampler.load_state_dict(compute_sampler_state(resumed_at, len(sampler), 4, world_size))
            shard = BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), world_size, rank)
            batches = [batch for batch, _ in zip(shard, range(3), strict=False)]
            found = [dataset.locate(position) for batch in batches for position in batch]
            order = [dataset.order(draw) for draw in range(4 * resumed_at, 4 * resumed_at + 12)]
            assert [(s.index, f) for s, f in found] == [(dataset.pieces[piece].source, f) for piece, f in order]


def test_resumed_with_other_ranks_every_rank_still_starts_with_a_batch_of_its_own(mixture: Mixture):
    """Three steps of one rank end in the middle of a step of two ranks, and of one with batches of another size."""
    exact_resume.install()
    for rank in range(2):
        dataset = of_rank(mixture, rank, 2)
        episodes = dataset.meta.episodes
        sampler = EpisodeAwareSampler(episodes["dataset_from_index"], episodes["dataset_to_index"], shuffle=True)
        for batch_size, ranks in ((4, 1), (3, 1), (1, 7), (4, 2)):
            sampler.load_state_dict(compute_sampler_state(3, len(sampler), batch_size, ranks))
            shard = BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), 2, rank)
            first = next(iter(shard))
            assert {position // 4 % 2 for position in first} == {rank}
            assert first[0] >= 3 * batch_size * ranks, "nothing is drawn twice"
            dataset.locate(first[0])


def test_a_position_of_another_rank_is_refused(mixture: Mixture):
    dataset = of_rank(mixture, 1, 2)
    dataset.locate(4)
    with pytest.raises(InternVLAError, match=r"Rank 1 of 2 was asked for position 3.*belongs to rank 0"):
        dataset[3]


# --- what is opened, and what is read ---------------------------------------------------------------------------------


def test_a_source_is_opened_when_a_frame_of_it_is_due(mixture: Mixture):
    dataset = of_rank(mixture)
    assert dataset.open_sources == ()
    due: list[str] = []
    for position in range(12):
        due.append(dataset.locate(position)[0].name)
        dataset[position]
        assert set(dataset.open_sources) == set(due)
    assert set(due) == {source.name for source in mixture.sources}


def test_open_sources_are_bounded_and_the_least_recently_used_goes(mixture: Mixture, monkeypatch: pytest.MonkeyPatch):
    plain = of_rank(mixture)
    samples = [plain[position] for position in range(16)]
    few = of_rank(mixture, max_open_sources=2)
    opened: list[str] = []
    stock = MixtureDataset._open_source

    def counted(self: MixtureDataset, source: Source) -> Any:
        opened.append(source.name)
        return stock(self, source)

    monkeypatch.setattr(MixtureDataset, "_open_source", counted)
    recent: list[str] = []
    expected: list[str] = []
    for position, sample in enumerate(samples):
        name = few.locate(position)[0].name
        expected += [name] if name not in recent else []
        recent = [*(other for other in recent if other != name), name][-2:]
        again = few[position]
        assert list(few.open_sources) == recent
        assert all(torch.equal(again[k], sample[k]) for k in sample if k != "task")
    assert opened == expected and len(opened) > len(mixture.sources), "some were closed and opened again"


def test_a_rank_opens_only_its_own_pieces(mixture: Mixture):
    names = []
    for rank in range(4):
        dataset = of_rank(mixture, rank, 4)
        own = {mixture.sources[piece.source].name for piece in dataset.pieces}
        for position in own_positions(dataset, 24):
            dataset[position]
        assert set(dataset.open_sources) == own and own != {source.name for source in mixture.sources}
        names += own
    assert set(names) == {source.name for source in mixture.sources}
    assert len(names) <= len(mixture.sources) + 4 - 1


def test_from_the_hub_only_the_episodes_of_the_rank_are_fetched(mixture: Mixture, monkeypatch: pytest.MonkeyPatch):
    """Both ranks together ask for all episodes, and at most one episode (one that is cut) is asked for twice."""
    asked: list[tuple[int, ...] | None] = []

    class Stop(Exception):
        pass

    def remember(source: Source, places: list[int] | None, **arguments: Any) -> None:
        asked.append(None if places is None else tuple(source.episodes[place] for place in places))
        raise Stop

    monkeypatch.setattr(mixture_dataset, "SourceReader", remember)
    sources = [dataclasses.replace(source, from_hub=True) for source in mixture.sources]
    for source in sources:
        asked.clear()
        for rank in range(2):
            dataset = of_rank(mixture, rank, 2)
            if any(piece.source == source.index for piece in dataset.pieces):
                with pytest.raises(Stop):
                    dataset._open_source(source)
        found = [episode for episodes in asked for episode in episodes or ()]
        assert set(found) == set(source.episodes) and len(found) <= len(source.episodes) + 1
        asked.clear()
        with pytest.raises(Stop):
            of_rank(mixture)._open_source(mixture.sources[source.index])
        assert asked == [None], "a folder is there anyway"


def test_cameras_that_no_slot_takes_are_not_decoded(mixture: Mixture, monkeypatch: pytest.MonkeyPatch):
    decoded: list[str] = []
    stock = DatasetReader._query_videos

    def counted(self: DatasetReader, query_timestamps: dict[str, list[float]], ep_idx: int) -> Any:
        decoded.extend(query_timestamps)
        return stock(self, query_timestamps, ep_idx)

    monkeypatch.setattr(DatasetReader, "_query_videos", counted)
    dataset = of_rank(mixture)
    fast = next(p for p in range(100) if dataset.locate(p)[0].name == "fast_slider")
    dataset[fast]
    assert "observation.images.unused" in dataset._open[2].reader._meta.camera_keys
    assert set(decoded) == {"observation.images.front"}


def test_with_the_frame_cache_samples_are_the_same(mixture: Mixture):
    plain, cached = of_rank(mixture), of_rank(mixture, cache_frames_gb=0.1)
    for position in range(8):
        ours, theirs = cached[position], plain[position]
        assert all(torch.equal(ours[k], theirs[k]) for k in ours if k != "task")
    readers = [dataset.reader for dataset in cached._open.values()]
    limits = [reader.limit_bytes for reader in readers if isinstance(reader, FrameCachingReader)]
    assert len(limits) == len(readers) and sum(limits) <= 0.1 * 1e9 * 1.001, "the limit is of the process"


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_is_what_lerobots_commands_ask_for(mixture: Mixture):
    dataset = of_rank(mixture, 1, 2)
    meta = dataset.meta
    assert (dataset.num_frames, dataset.num_episodes) == (73 + 54 + 64 + 37, 8)
    assert (meta.repo_id, meta.has_language_columns, dataset.episodes) == ("local/mixture", False, None)
    features = dataset_to_policy_features(meta.features)
    assert {name: (feature.type.name, feature.shape) for name, feature in features.items()} == {
        **{f"observation.images.{slot}": ("VISUAL", (3, 64, 64)) for slot in ("head", "left_wrist", "right_wrist")},
        "observation.state": ("STATE", (SHAPE.max_state_dim,)),
        "action": ("ACTION", (SHAPE.max_action_dim,)),
    }
    assert meta.camera_keys == [f"observation.images.{slot}" for slot in ("head", "left_wrist", "right_wrist")]
    for key in ("observation.state", "action"):
        assert not meta.stats[key]["mean"].any() and (meta.stats[key]["std"] == 1).all()
    sample = dataset[4]
    for key, feature in meta.features.items():
        shape = tuple(sample[key].shape)
        assert shape[-1] == (feature["shape"][-1] if feature["dtype"] == "float32" else feature["shape"][1])
    assert pickle.loads(pickle.dumps(meta)).episodes["dataset_from_index"].positions_per_step == 8
