"""All samples of one side of a build as one sequence, whatever is open, closed or released on the way."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import shards
import shards.format.split
from shards import Build, Sample, Shard, ShardError, SplitSamples
from tests.support import handmade_builds
from tests.support.handmade_builds import Draft, draft
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S

TRAIN = {
    "alpha": [
        [draft(number, num_images=number % 4) for number in range(4)],
        [draft(number, num_images=number % 4) for number in range(4, 5)],
        [draft(number, num_images=2) for number in range(5, 11)],
    ],
    "without_train": [],
    "beta": [[draft(number, dataset="beta", num_images=0) for number in range(3)]],
    "gamma": [[draft(number, dataset="gamma", text=30)] for number in range(3)],
}
SHARDS = [made for of_dataset in TRAIN.values() for made in of_dataset]
DRAFTS = [one for made in SHARDS for one in made]
NAMES = [name for name, of_dataset in TRAIN.items() for made in of_dataset for _ in made]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    made = handmade_builds.Handmade(tmp_path)
    for dataset, of_dataset in TRAIN.items():
        for drafts in of_dataset:
            made.add(drafts, dataset=dataset)
        if dataset != "beta":
            made.add(
                [draft(number, dataset=dataset, split="eval") for number in range(2)], dataset=dataset, split="eval"
            )
    return shards.open(made.finish())


@pytest.fixture
def split(build: Build) -> SplitSamples:
    return build["train"]


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


def content(sample: Sample) -> tuple[str, list[int], list[int], list[bytes]]:
    return sample.key, sample.ids.tolist(), sample.labels.tolist(), [bytes(image) for image in sample.images]


def stored(one: Draft) -> tuple[str, list[int], list[int], list[bytes]]:
    return one.key, one.tokens[0].tolist(), one.tokens[1].tolist(), [data for _, data in one.images]


def read_all(split: SplitSamples) -> list[tuple[str, list[int], list[int], list[bytes]]]:
    return [content(sample) for sample in split]


# As a sequence


def test_a_split_is_the_samples_of_its_shards_in_the_manifests_order(build: Build, split: SplitSamples) -> None:
    assert len(split) == len(DRAFTS) == 17
    assert read_all(split) == [stored(one) for one in DRAFTS]
    in_shards = [shard[row] for _, _, shard in build.shards(split="train") for row in range(len(shard))]
    assert read_all(split) == [content(sample) for sample in in_shards]
    assert split.sizes == {"alpha": 11, "without_train": 0, "beta": 3, "gamma": 3}
    assert list(split.sizes) == list(build.datasets)
    assert [sample.metadata["dataset"] for sample in split] == NAMES


@pytest.mark.parametrize("index", [0, 3, 4, 5, 10, 11, 13, 14, 16])
def test_a_number_counts_from_the_front_or_from_the_end(split: SplitSamples, index: int) -> None:
    assert content(split[index]) == content(split[index - 17]) == stored(DRAFTS[index])
    name, sample = split.named(index)
    assert (name, content(sample)) == (NAMES[index], stored(DRAFTS[index]))
    assert split.named(index - 17)[0] == NAMES[index]


@pytest.mark.parametrize(
    "part",
    [slice(None), slice(3, 12), slice(-4, None), slice(None, None, -1), slice(12, 2, -3), slice(5, 5), slice(9, 99)],
    ids=str,
)
def test_a_slice_is_a_list_of_samples(split: SplitSamples, part: slice) -> None:
    actual = split[part]
    assert isinstance(actual, list)
    assert [content(sample) for sample in actual] == [stored(one) for one in DRAFTS[part]]


@pytest.mark.parametrize("ask", [SplitSamples.__getitem__, SplitSamples.named, SplitSamples.locate, SplitSamples.where])
@pytest.mark.parametrize("index", [17, -18, 10**9])
def test_a_number_out_of_range_is_an_index_error(
    split: SplitSamples, ask: Callable[[SplitSamples, int], object], index: int
) -> None:
    with pytest.raises(IndexError, match=f"no sample {index}; the split train has 17"):
        ask(split, index)


def test_a_split_without_samples_is_empty(tmp_path: Path) -> None:
    made = handmade_builds.Handmade(tmp_path)
    made.add([draft(0)])
    split = shards.open(made.finish())["eval"]
    assert len(split) == 0
    assert list(split) == split[:] == []
    assert [counts.tolist() for counts in split.counts(np.zeros(0, np.int64))] == [[], []]
    for index in (0, -1):
        with pytest.raises(IndexError, match=f"no sample {index}; the split eval has 0"):
            split[index]


def test_each_split_holds_its_own_samples(build: Build) -> None:
    assert [sample.key for sample in build["eval"]] == [
        f"{dataset}-eval-{number:05d}" for dataset in ("alpha", "without_train", "gamma") for number in range(2)
    ]
    assert [build["eval"].named(index)[0] for index in range(6)] == [
        *["alpha"] * 2,
        *["without_train"] * 2,
        *["gamma"] * 2,
    ]
    assert len(build) == 17 + 6


def test_an_unknown_split_is_an_error_that_names_the_known_ones(build: Build) -> None:
    with pytest.raises(ShardError, match="no split 'validation'; it has train, eval"):
        build["validation"]


def test_a_sample_is_named_by_its_shard_and_key(split: SplitSamples) -> None:
    assert split.where(4) == f"{split.shard(1).name}: sample alpha-train-00004"
    assert split.where(-1) == f"{split.shard(6).name}: sample gamma-train-00002"
    assert [split.locate(index) for index in (0, 3, 4, 10, 11, 14, 16, -1)] == [
        (0, 0),
        (0, 3),
        (1, 0),
        (2, 5),
        (3, 0),
        (4, 0),
        (6, 0),
        (6, 0),
    ]


# Counts


def test_counts_are_what_reading_every_sample_gives(split: SplitSamples) -> None:
    text, images = split.counts(np.arange(len(split)))
    assert text.dtype == images.dtype == np.int64
    assert images.tolist() == [len(sample.images) for sample in split]
    assert text.tolist() == [len(sample.ids) - len(sample.images) for sample in split]


def test_counts_come_in_the_order_asked_for(split: SplitSamples) -> None:
    text, images = split.counts(np.arange(len(split)))
    asked = np.random.default_rng(0).integers(0, len(split), 100)
    actual = split.counts(asked)
    assert actual[0].tolist() == text[asked].tolist()
    assert actual[1].tolist() == images[asked].tolist()


def test_counts_need_the_indexes_alone(build: Build, split: SplitSamples) -> None:
    expected = [counts.tolist() for counts in split.counts(np.arange(17))]
    for tar in Path(build.store.location).rglob("*.tar"):
        tar.unlink()
    assert [counts.tolist() for counts in shards.open(build.store.location)["train"].counts(np.arange(17))] == expected
    with pytest.raises(ShardError, match=r"alpha.*\.tar: cannot be read"):
        shards.open(build.store.location)["train"][0]


# Open shards


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
    text, images = split.counts(np.array(numbers))
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
