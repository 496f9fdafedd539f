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
from shards import Build, Cache, ShardError
from shards.loader import Batch, Loader
from shards.storage.locks import locked
from tests.support.handmade_builds import JPEG, MAX_LENGTH, Draft, Handmade, branched_draft, draft
from tests.support.remote_builds import files_at, flip, publish, write_at
from tests.support.s3_server import answered

pytestmark = [
    pytest.mark.usefixtures("cache_home"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

SHARD = 12
IMAGE_BYTES = 4000
SAMPLES = {"alpha": 30 * SHARD, "beta": 10 * SHARD, "often": 2 * SHARD}
DRAWS = {"alpha": SAMPLES["alpha"], "beta": SAMPLES["beta"] // 2, "often": 5 * SAMPLES["often"] // 2}


def heavy(number: int, dataset: str, split: str = "train") -> Draft:
    image = JPEG + np.random.default_rng(number).bytes(IMAGE_BYTES)
    return replace(draft(number, dataset=dataset, split=split, text=8 + number % 20), images=(("jpg", image),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Handmade(tmp_path_factory.mktemp("remote"))
    for dataset, samples in SAMPLES.items():
        for start in range(0, samples, SHARD):
            made.add([heavy(number, dataset) for number in range(start, start + SHARD)], dataset=dataset)
    for start in range(0, 20 * SHARD, SHARD):
        made.add([heavy(number, "alpha", "eval") for number in range(start, start + SHARD)], split="eval")
    made.draws = DRAWS
    return made.finish()


@pytest.fixture(scope="module")
def location(folder: Path, bucket: str) -> str:
    url = f"{bucket}/{folder.name}"
    publish(folder, url)
    return url


def size_of_copies(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if not file.name.startswith(".lock"))


def size_of(build: Build, split: str = "train") -> int:
    infos = [info for _, name, info in build.manifest.shards() if name == split]
    return sum(info.size + info.index_size for info in infos)


def opened(location: str, cache: Path, share: float = 0.15) -> Build:
    limit = int(share * size_of(shards.open(location)))
    build = shards.open(location, cache=Cache(cache, max_bytes=limit))
    answered()
    return build


def loader(build: Build, **settings: Any) -> Loader:
    return Loader(build, **{"batch_size": 4, "max_length": MAX_LENGTH, "decode": "none", **settings})


def sent() -> int:
    return sum(get.size for get in answered())


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for sequence in batch.samples for _, key in sequence]


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


def test_samples_with_branches_send_the_build_once(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples with 1, 2, 3 and 4 records are drawn as datasets of their own, out of the same shards."""
    monkeypatch.setattr("shards.format.sample_ranges.GAP_BYTES", 0)
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
        next(iter(loader(build, batch_size=2)))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_and_workers_do_not_change_the_order(
    location: str, tmp_path: Path, world_size: int, workers: int
) -> None:
    build = opened(location, tmp_path)
    expected = [batch.samples for batch in islice(loader(build), 6)]
    parts = [islice(loader(build, rank=rank, world_size=world_size, workers=workers), 6) for rank in range(world_size)]
    assert [sum((batch.samples for batch in batches), ()) for batches in zip(*parts, strict=True)] == expected


@pytest.mark.parametrize("stop", [1, 20, 60])
def test_a_run_resumes_amid_an_epoch(location: str, tmp_path: Path, stop: int) -> None:
    build = opened(location, tmp_path)
    whole = loader(build)
    batches = iter(whole)
    for _ in range(stop):
        next(batches)
    state = whole.state_dict()
    expected = [batch.samples for batch in islice(batches, 5)]
    resumed = loader(build)
    resumed.load_state_dict(state)
    assert [batch.samples for batch in islice(resumed, 5)] == expected


def test_a_run_resumes_in_its_order_with_another_cache(location: str, folder: Path, tmp_path: Path) -> None:
    first = loader(opened(location, tmp_path / "first"))
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    expected = [batch.samples for batch in islice(batches, 5)]
    unlimited = shards.open(location, cache=Cache(tmp_path / "large"))
    for build in (opened(location, tmp_path / "second", share=0.4), unlimited, shards.open(folder)):
        resumed = loader(build, shuffle="shards")
        resumed.load_state_dict(state)
        assert [batch.samples for batch in islice(resumed, 5)] == expected
        assert resumed.state_dict()["sequences"] == state["sequences"]


def test_a_run_with_enough_cache_resumes_in_its_order_with_a_small_one(location: str, tmp_path: Path) -> None:
    first = loader(shards.open(location, cache=Cache(tmp_path / "large")))
    batches = iter(first)
    next(batches)
    assert first.state_dict()["sequences"].keys().isdisjoint({"open_shards"})
    resumed = loader(opened(location, tmp_path / "small"))
    resumed.load_state_dict(first.state_dict())
    assert [batch.samples for batch in islice(resumed, 2)] == [batch.samples for batch in islice(batches, 2)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("open_shards", {"alpha": 0}), ("open_shards", {"gamma": 1}), ("open_shards", 3), ("pack_window", True)],
)
def test_a_state_with_an_order_that_cannot_be_is_refused(
    location: str, tmp_path: Path, key: str, value: object
) -> None:
    first = loader(opened(location, tmp_path))
    state = first.state_dict()
    state["sequences"][key] = value
    with pytest.raises(ShardError, match=key):
        first.load_state_dict(state)


def test_windows_that_were_asked_for_stay(location: str, tmp_path: Path) -> None:
    first = loader(opened(location, tmp_path))
    asked = loader(opened(location, tmp_path), shuffle="shards", shuffle_window=100)
    assert asked.cache_plan is not None
    assert asked.cache_plan.by_sample, "a window of 100 samples is of nine shards of each dataset"
    with pytest.raises(ShardError, match="shuffle_window is None, this loader has 100"):
        asked.load_state_dict(first.state_dict())


def test_an_evaluation_sends_its_split_once(location: str, tmp_path: Path) -> None:
    build = opened(location, tmp_path, share=0.05)
    batches = list(loader(build, split="eval"))
    assert sorted(keys(batches)) == sorted(f"alpha-eval-{number:05d}" for number in range(20 * SHARD))
    assert sent() <= 1.2 * size_of(build, "eval")


def test_a_share_of_a_split_is_read_sample_by_sample(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.format.sample_ranges.GAP_BYTES", 0)
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
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """A cache of less than two shards of each dataset; and an order that jumps."""
    monkeypatch.setattr("shards.format.sample_ranges.GAP_BYTES", 0)
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
