"""Builds on S3 that are larger than the cache: bytes of an epoch and of the first batch, and the order."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards import Cache, ShardError
from shards.storage.locks import locked
from tests.support import small_caches
from tests.support.handmade_builds import JPEG, Handmade, branched_draft
from tests.support.remote_builds import files_at, flip, publish, write_at
from tests.support.s3_server import answered
from tests.support.small_caches import (
    DRAWS,
    IMAGE_BYTES,
    SAMPLES,
    SHARD,
    keys,
    loader,
    opened,
    sent,
    size_of,
    size_of_copies,
)

pytestmark = [
    pytest.mark.usefixtures("cache_home"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

folder = pytest.fixture(scope="module")(small_caches.make_folder)
location = pytest.fixture(scope="module")(small_caches.make_location)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_sends_what_it_draws_at_most_a_fifth_more(location: str, tmp_path: Path, workers: int) -> None:
    build = opened(location, tmp_path)
    batches = list(loader(build, epochs=1, workers=workers))
    bytes_sent, by_dataset = sent(), dict.fromkeys(SAMPLES, 0)
    for name, split, info in build.manifest.shards():
        by_dataset[name] += info.size + info.index_size if split == "train" else 0
    drawn = sum(size * DRAWS[name] / SAMPLES[name] for name, size in by_dataset.items())
    assert bytes_sent <= 1.2 * drawn
    counts = Counter(keys(batches))
    for dataset, samples in SAMPLES.items():
        own = [counts[f"{dataset}-train-{number:05d}"] for number in range(samples)]
        assert sum(own) == DRAWS[dataset]
        assert max(own) - min(own) <= 1


def test_samples_with_branches_send_the_build_once(tmp_path: Path, bucket: str) -> None:
    """Samples with 1, 2, 3 and 4 records are drawn as datasets of their own, out of the same shards."""
    made, records = Handmade(tmp_path / "build"), 0
    for shard in range(40):
        random = np.random.default_rng(shard)
        branches = sorted(random.integers(1, 5, 4 * SHARD).tolist())
        drafts = [branched_draft(4 * SHARD * shard + place, branches=number) for place, number in enumerate(branches)]
        made.add([replace(each, images=(("jpg", JPEG + random.bytes(600)),)) for each in drafts])
        records += sum(branches)
    made.draws = {"alpha": records}
    url = f"{bucket}/{tmp_path.name}"
    publish(made.finish(), url)
    build = opened(url, tmp_path / "cache", share=0.3)
    expected = sorted(sample.key for sample in shards.open(made.folder)["train"])
    assert sorted(keys(list(loader(build, epochs=1)))) == expected
    assert sent() <= 1.2 * size_of(build)


def test_ranks_that_share_a_cache_send_the_build_once(location: str, tmp_path: Path) -> None:
    build = opened(location, tmp_path)
    ranks = [loader(opened(location, tmp_path), rank=rank, world_size=2, epochs=1) for rank in range(2)]
    assert len(list(zip(*ranks, strict=True))) >= 40
    drawn = sum(DRAWS.values()) / sum(SAMPLES.values()) * size_of(build)
    assert sent() <= 1.2 * drawn


def test_the_cache_never_holds_more_than_its_limit(location: str, tmp_path: Path) -> None:
    build = opened(location, tmp_path)
    room = build.store.room()
    assert room is not None
    for _ in loader(build, epochs=1):
        with locked(tmp_path / ".lock"):
            assert size_of_copies(tmp_path) <= room.size


@pytest.mark.parametrize("limited", [True, False])
def test_the_first_batch_of_a_mixture_needs_no_more_than_two_shards(
    location: str, tmp_path: Path, limited: bool
) -> None:
    build = opened(location, tmp_path, share=0.5)
    indexes = max(info.index_size for _, _, info in build.manifest.shards())
    shard = max(info.size for _, _, info in build.manifest.shards())
    if not limited:
        build = shards.open(location, cache=Cache(tmp_path))
    batch = next(iter(loader(build, batch_size=2)))
    gets = answered()
    assert not limited or len({name for sequence in batch.samples for name, _ in sequence}) > 1
    assert sum(get.size for get in gets if ".tar" in get.path) <= 2 * shard
    assert all(get.size <= indexes for get in gets if ".arrow" in get.path)


def test_batches_that_are_read_by_ranges_are_those_of_a_local_build(
    location: str, folder: Path, tmp_path: Path
) -> None:
    remote, local = loader(opened(location, tmp_path, share=0.5), batch_size=2), loader(shards.open(folder))
    state = remote.state_dict()
    local = loader(shards.open(folder), batch_size=2, shuffle="shards")
    local.load_state_dict(state)
    for got, expected in islice(zip(remote, local, strict=True), 3):
        assert got.samples == expected.samples
        assert [bytes(image) for image in got.stored_images] == [bytes(image) for image in expected.stored_images]


def test_a_flipped_bit_in_a_range_is_an_error_that_names_the_sample(folder: Path, memory: str, tmp_path: Path) -> None:
    publish(folder, memory)
    build = shards.open(memory, cache=Cache(tmp_path, max_bytes=size_of(shards.open(folder)) // 2))
    for _, _, info in build.manifest.shards():
        path = f"{memory}/{info.path}"
        data = files_at(memory)[info.path]
        for offset in range(3000, len(data) - 1024, 6656):
            data = flip(data, offset)
        write_at(path, data)
    with pytest.raises(ShardError, match=r"\.tar: sample \S+ is damaged: its bytes do not match the index's checksum"):
        next(iter(loader(build, batch_size=4)))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_and_workers_do_not_change_the_order(
    location: str, tmp_path: Path, world_size: int, workers: int
) -> None:
    build = opened(location, tmp_path)
    expected = [batch.samples for batch in islice(loader(build), 6)]
    parts = [islice(loader(build, rank=rank, world_size=world_size, workers=workers), 6) for rank in range(world_size)]
    assert [sum((batch.samples for batch in batches), ()) for batches in zip(*parts, strict=True)] == expected


def test_an_evaluation_sends_its_split_once(location: str, tmp_path: Path) -> None:
    build = opened(location, tmp_path, share=0.05)
    batches = list(loader(build, split="eval"))
    assert sorted(keys(batches)) == sorted(f"alpha-eval-{number:05d}" for number in range(20 * SHARD))
    assert sent() <= 1.2 * size_of(build, "eval")


def test_a_share_of_a_split_is_read_sample_by_sample(location: str, tmp_path: Path) -> None:
    build = opened(location, tmp_path, share=0.05)
    batches = list(loader(build, split="eval", max_sequences=8))
    tars = [get.size for get in answered() if ".tar" in get.path]
    assert len(tars) <= len(keys(batches))
    assert sum(tars) <= 2 * IMAGE_BYTES * len(keys(batches))


def test_it_is_said_once_how_the_build_is_read(location: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = opened(location, tmp_path)
    with caplog.at_level(logging.WARNING):
        first = loader(build)
        assert not caplog.records
        for _ in range(2):
            next(iter(first))
        next(iter(loader(build, rank=1, world_size=2)))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{location}/train: ")
    assert first.cache_plan is not None
    assert first.cache_plan.describe() in record.getMessage()


def test_nothing_is_said_where_the_cache_holds_the_build(
    location: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for build in (shards.open(folder), shards.open(location, cache=Cache(tmp_path))):
        first = loader(build)
        next(iter(first))
        assert first.cache_plan is None
    assert not caplog.records


@pytest.mark.parametrize("settings", [{}, {"shuffle": "samples"}])
def test_where_shards_do_not_fit_samples_are_read_alone(
    location: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A cache of less than two shards of each dataset; and an order that jumps."""
    build = opened(location, tmp_path, share=0.05)
    first = loader(build, epochs=1, **settings)
    assert first.cache_plan is not None
    assert "each sample is requested by itself" in first.cache_plan.describe()
    assert sum(Counter(keys(list(first))).values()) == sum(DRAWS.values())
    tars = [get.size for get in answered() if ".tar" in get.path]
    assert sum(tars) <= 1.05 * sum(DRAWS.values()) * size_of(build) / sum(SAMPLES.values())


def test_ranks_whose_disks_decide_are_refused(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank's disk may hold the build: it would read another order."""
    monkeypatch.setattr(Cache, "_limit", lambda *_: 600_000)
    build = shards.open(location, cache=Cache(tmp_path))
    assert loader(build).cache_plan is not None
    with pytest.raises(ShardError, match="set the same limit for all"):
        loader(build, world_size=2)
