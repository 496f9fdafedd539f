"""Samples of two builds are matched by content, whatever their keys are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from preprocess.views.diff_match import Matched, ReadIds, Samples, match_samples, read_samples, shared_shards
from shards import ShardError
from shards.format.index import IndexWriter
from tests.support.handmade_builds import Handmade, draft

SAMPLES = st.lists(st.tuples(*[st.integers(0, 3)] * 4), max_size=8)
"""(key, metadata, tokens, images); few values, so that copies are common"""


def samples(rows: list[tuple[int, ...]]) -> Samples:
    columns = np.array(rows, np.uint64).reshape(-1, 4).T
    place = np.arange(len(rows))
    names = ("key", "metadata", "tokens", "images")
    return Samples(
        split=place.astype(np.uint8) * 0,
        index=place,
        branch=place * 0 - 1,
        records=place * 0 + 1,
        **dict(zip(names, columns, strict=True)),
    )


def ids(values: list[int]) -> ReadIds:
    return lambda rows: (np.array(values, np.uint64)[rows], np.array(values, np.uint64)[rows])


def match(old: list[tuple[int, ...]], new: list[tuple[int, ...]], *, by_key: bool = False) -> Matched:
    """With ids that no two samples share."""
    read = ids([100 + number for number in range(8)]), ids([200 + number for number in range(8)])
    return match_samples(samples(old), samples(new), by_key=by_key, read_ids=read)


@given(SAMPLES, SAMPLES)
def test_every_sample_is_matched_once_and_as_many_as_possible_with_an_equal_one(
    old: list[tuple[int, ...]], new: list[tuple[int, ...]]
) -> None:
    matched = match(old, new)
    assert sorted([*matched.old, *matched.removed]) == [*range(len(old))]
    assert sorted([*matched.new, *matched.added]) == [*range(len(new))]
    equal = sum(old[a][1:] == new[b][1:] for a, b in zip(matched.old, matched.new, strict=True))
    assert equal == (Counter(row[1:] for row in old) & Counter(row[1:] for row in new)).total()
    assert [*matched.new] == sorted(matched.new)


def test_a_sample_whose_text_changed_is_found_by_its_metadata_and_one_with_new_metadata_by_its_content() -> None:
    matched = match([(0, 1, 5, 0), (1, 2, 6, 0)], [(0, 9, 6, 0), (1, 1, 7, 0)])
    assert [*zip(matched.old, matched.new, strict=True)] == [(1, 0), (0, 1)]


def test_copies_in_the_same_place_are_matched_with_each_other() -> None:
    matched = match([(0, 1, 5, 0), (1, 2, 5, 0)], [(1, 8, 5, 0), (0, 9, 5, 0)])
    assert [*zip(matched.old, matched.new, strict=True)] == [(1, 0), (0, 1)]


def test_keys_decide_alone_where_the_rows_are_the_same() -> None:
    matched = match([(0, 1, 5, 0), (1, 2, 6, 0)], [(0, 2, 6, 0), (2, 1, 5, 0)], by_key=True)
    assert [*zip(matched.old, matched.new, strict=True)] == [(0, 0)]
    assert ([*matched.removed], [*matched.added]) == ([1], [1])


def test_samples_with_nothing_else_in_common_are_matched_by_id_which_is_read_only_then() -> None:
    old, new = samples([(0, 1, 5, 0), (1, 2, 6, 0)]), samples([(0, 9, 7, 0), (1, 2, 6, 0)])
    read = Mock(side_effect=ids([4, 5])), Mock(side_effect=ids([4, 9]))
    matched = match_samples(old, new, by_key=False, read_ids=read)
    assert [*zip(matched.old, matched.new, strict=True)] == [(0, 0), (1, 1)]
    assert [reader.call_args.args[0].tolist() for reader in read] == [[0], [0]]


def test_shards_that_both_builds_have_are_not_opened(tmp_path: Path) -> None:
    for name in "ab":
        build = Handmade(tmp_path / name)
        build.add([draft(number) for number in range(4)])
        build.add([draft(9, text=6 if name == "a" else 8, num_images=2)])
        build.finish()
    old, new = shards.open(tmp_path / "a"), shards.open(tmp_path / "b")
    (left, skipped), (right, _) = (read_samples(build, "alpha", shared_shards(old, new)) for build in (old, new))
    assert (skipped, left.index.tolist(), right.index.tolist()) == (4, [4], [4])
    assert old["train"][4].key == "alpha-train-00009"


def test_the_order_of_images_is_part_of_a_sample(tmp_path: Path) -> None:
    build = Handmade(tmp_path)
    sample = draft(1, num_images=2)
    build.add([sample])
    build.add([replace(sample, key="other", images=sample.images[::-1])])
    read, _ = read_samples(shards.open(build.finish()), "alpha", set())
    assert read.tokens[0] == read.tokens[1]
    assert read.images[0] != read.images[1]


def test_an_index_without_the_checksums_of_a_sample_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = IndexWriter.add
    monkeypatch.setattr(IndexWriter, "add", lambda index, **entry: add(index, **(entry | {"member_checksums": [1]})))
    build = Handmade(tmp_path)
    build.add([draft(0)])
    with pytest.raises(ShardError, match="has samples without metadata or tokens"):
        read_samples(shards.open(build.finish()), "alpha", set())
