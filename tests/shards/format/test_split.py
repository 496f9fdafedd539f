"""All samples of one side of a build as one sequence, and the counts of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shards
from shards import Build, ShardError, SplitSamples
from tests.support import handmade_builds, split_samples
from tests.support.handmade_builds import draft
from tests.support.split_samples import DRAFTS, NAMES, content, read_all, stored

build = pytest.fixture(split_samples.make_build)
split = pytest.fixture(split_samples.train_split)


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
    assert [counts.tolist() for counts in split.counts(np.zeros(0, np.int64))] == [[], [], []]
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
    text, images, _ = split.counts(np.arange(len(split)))
    assert text.dtype == images.dtype == np.int64
    assert images.tolist() == [len(sample.images) for sample in split]
    assert text.tolist() == [len(sample.ids) - len(sample.images) for sample in split]


def test_counts_come_in_the_order_asked_for(split: SplitSamples) -> None:
    text, images, _ = split.counts(np.arange(len(split)))
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
