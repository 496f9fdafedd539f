"""The shards that a split keeps open: few files, few pages, and none that goes to another process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import shards
import shards.format.split
from shards import Build, Shard, ShardError, SplitSamples
from tests.support import handmade_builds, split_samples
from tests.support.handmade_builds import draft
from tests.support.paths import ROOT
from tests.support.split_samples import DRAFTS, content, read_all, stored
from tests.support.waiting import LIMIT_S

build = pytest.fixture(split_samples.make_build)
split = pytest.fixture(split_samples.train_split)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that a split opens, in turn."""
    names: list[str] = []

    class Watched(Shard):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            names.append(Path(self.info.path).name[: len("train-00000")] + " of " + Path(self.info.path).parent.name)

    monkeypatch.setattr(shards.format.split, "Shard", Watched)
    return names


def test_a_shard_is_opened_when_it_is_needed_and_once(split: SplitSamples, opened: list[str]) -> None:
    assert opened == []
    split[4], split[4], split[16], split[4]
    assert opened == ["train-00001 of alpha", "train-00002 of gamma"]


def test_the_least_recently_used_shard_is_closed_first(
    split: SplitSamples, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.format.split, "OPEN_INDEXES", 2)
    first, second, third = 0, 4, 5  # of three shards
    for index in (first, second, first, third):
        split[index]
    opened.clear()
    split[first], split[third]
    assert opened == []
    split[second]
    assert opened == ["train-00001 of alpha"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_with_few_shards_open_everything_is_still_read_right(
    split: SplitSamples, opened: list[str], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(shards.format.split, "OPEN_INDEXES", limit)
    numbers = random.Random(limit).choices(range(17), k=200)
    kept = [split[number] for number in numbers]
    assert [content(sample) for sample in kept] == [stored(DRAFTS[number]) for number in numbers]
    assert len(opened) > 50
    text, images, _ = split.counts(np.array(numbers))
    assert images.tolist() == [len(sample.images) for sample in kept]
    assert text.tolist() == [len(sample.ids) - len(sample.images) for sample in kept]


@pytest.mark.parametrize("touched_bytes", [0, 3000, 10_000])
def test_reading_continues_correctly_after_pages_were_let_go(
    split: SplitSamples, monkeypatch: pytest.MonkeyPatch, touched_bytes: int
) -> None:
    monkeypatch.setattr(shards.format.split, "TOUCHED_BYTES", touched_bytes)
    let_go: list[str] = []
    forget = Shard.forget_index

    def watched(shard: Shard) -> None:
        let_go.append(shard.name)
        forget(shard)

    monkeypatch.setattr(Shard, "forget_index", watched)
    numbers = random.Random(0).choices(range(17), k=200)
    kept = [split[number] for number in numbers]
    assert [content(sample) for sample in kept] == [stored(DRAFTS[number]) for number in numbers]
    assert {split.shard(number).name for number in range(7)} == set(let_go)


def test_pages_are_let_go_of_closed_shards_too(split: SplitSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go: list[str] = []
    monkeypatch.setattr(Shard, "forget_index", lambda shard: let_go.append(shard.name))
    monkeypatch.setattr(shards.format.split, "OPEN_INDEXES", 1)
    names = [split.shard(number).name for number in range(7)]
    list(split)
    assert let_go == []
    monkeypatch.setattr(shards.format.split, "TOUCHED_BYTES", 0)
    split[0]
    assert sorted(let_go) == sorted(names)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted as Linux reports them")
@pytest.mark.parametrize("limit", [1, 3])
def test_few_tars_stay_open_and_everything_is_still_read_right(
    build: Build, split: SplitSamples, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(shards.format.split, "OPEN_TARS", limit)
    for number in random.Random(limit).choices(range(17), k=100):
        assert content(split[number]) == stored(DRAFTS[number])
        open_tars = [name for name in open_files() if name.startswith(build.store.location) and name.endswith(".tar")]
        assert 1 <= len(open_tars) <= limit
        assert len(set(open_tars)) == len(open_tars)


def test_a_kept_sample_needs_its_shard_no_more(build: Build, split: SplitSamples) -> None:
    kept = list(split)
    for path in Path(build.store.location).rglob("*.tar"):
        os.truncate(path, 0)
    assert [content(sample) for sample in kept] == [stored(one) for one in DRAFTS]


def test_a_shard_that_is_cut_while_it_is_open_is_reported_and_ends_no_process(
    build: Build, split: SplitSamples
) -> None:
    assert split[0].key
    (path,) = (split.shard(0).path,)
    os.truncate(path, 700)
    with pytest.raises(ShardError, match=rf"{path}: sample {split.shard(0).sample_keys()[1]} is damaged"):
        split[1]


def open_files() -> list[str]:
    names = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            names.append(os.readlink(f"/proc/self/fd/{entry}"))
    return names


# Other processes


def test_a_split_reads_the_same_in_a_process_that_was_just_started(split: SplitSamples) -> None:
    here = read_all(split)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(read_all, split).result(timeout=LIMIT_S) == here


def test_no_open_shard_travels_with_a_split_or_a_build(build: Build, split: SplitSamples, opened: list[str]) -> None:
    closed = pickle.dumps(split)
    expected = read_all(split)
    assert len(pickle.dumps(split)) == len(closed)
    opened.clear()
    copy = pickle.loads(pickle.dumps(split))
    assert opened == []
    assert (copy.name, copy.sizes, read_all(copy)) == (split.name, split.sizes, expected)
    other = pickle.loads(pickle.dumps(build))
    assert other.manifest.hash == build.manifest.hash
    assert read_all(other["train"]) == expected


# Memory


@pytest.fixture(scope="module")
def hundred_megabytes() -> Iterator[Path]:
    """4000 samples of 25 kB in 10 shards."""
    image = handmade_builds.JPEG + random.Random(0).randbytes(22_000)
    with tempfile.TemporaryDirectory() as folder:
        made = handmade_builds.Handmade(Path(folder))
        for start in range(0, 4000, 400):
            drafts = [draft(number, num_images=0) for number in range(start, start + 400)]
            made.add([replace(one, images=(("jpg", image),)) for one in drafts])
        yield made.finish()


MEASURE = """
import random, sys
import numpy as np
import shards, shards.format.split

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

shards.format.split.TOUCHED_BYTES = int(sys.argv[2])
split = shards.open(sys.argv[1])["train"]
split.counts(np.arange(len(split)))
numbers = list(range(len(split)))
if sys.argv[3] == "at random":
    random.Random(0).shuffle(numbers)
split[0]
before, most, size = resident(), 0, 0
for number in numbers:
    sample = split[number]
    size += sum(len(image) for image in sample.images)
    most = max(most, resident())
print(size, most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read as Linux reports it")
@pytest.mark.parametrize("how", ["in order", "at random"])
def test_a_process_holds_little_more_than_the_pages_it_lately_touched(hundred_megabytes: Path, how: str) -> None:
    touched = 16 << 20
    command = [sys.executable, "-c", MEASURE, str(hundred_megabytes), str(touched), how]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    size, growth = map(int, done.stdout.split())
    assert size > 85_000_000
    assert growth < 1.5 * touched + (4 << 20)
