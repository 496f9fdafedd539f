"""Which sample of one build is which of another, from their indexes alone where possible.

A key names a position, so it is proof only if both builds read the same records (`diff_manifest.same_rows`). Otherwise
a sample is found again by its content: an index has a checksum of each member of a sample, and no key is part of it.
In this order, within a dataset, each sample at most once:

    rows are the same     key
    else                  all members; tokens and images; metadata (id, sources, names of images)
                          and, for what is left on both sides, the id, then the sources, from the samples' metadata

Shards that both builds have, by their digests, are not opened. Memory: about 100 bytes for each other sample.
preprocess.views.diff_records takes samples with branches apart; their records are matched by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import polars as pl

from preprocess.views.member_hashes import U64, content_of, hash_members
from shards import Build, Shard
from shards.format.records import records_each
from shards.sampling.permutation import mix

I64 = npt.NDArray[np.int64]
ReadIds = Callable[[I64], tuple[U64, U64]]
"""Rows of Samples -> hashes of their id and of their sources, uint64 [rows]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples of a dataset whose shards differ, in the build's order; every field is an array [n].

    Or their records: then branch is the number of each in its sample, from 0, and else -1. records: of the sample.
    split: 0 train, 1 eval. index: in the split, as in build["train"][index]. The others are hashes: of the key, of the
    metadata, of the tokens, and of the images in their order.
    """

    split: npt.NDArray[np.uint8]
    index: I64
    branch: I64
    records: I64
    key: U64
    metadata: U64
    tokens: U64
    images: U64

    def __len__(self) -> int:
        return len(self.key)

    @property
    def content(self) -> U64:
        return content_of(self.tokens, self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Rows of two Samples, int64 [n]: pairs of the same sample in the new build's order, and what has no partner."""

    old: I64
    new: I64
    removed: I64
    added: I64


def shared_shards(old: Build, new: Build) -> set[tuple[str, str]]:
    """Digests (tar, index) of the shards that are in both builds."""
    first, second = (
        {(info.sha256, info.index_sha256) for _, _, info in build.manifest.shards()} for build in (old, new)
    )
    return first & second


def read_samples(build: Build, dataset: str | None, skip: set[tuple[str, str]]) -> tuple[Samples, int]:
    """The samples of a dataset, and the number of records in shards that are skipped. None has no samples.

    A sample without branches is one record.

    Raises ShardError if an index is damaged.
    """
    starts = dict.fromkeys(build.splits, 0)
    parts, skipped = [_empty()], 0
    for name, split, info in build.manifest.shards():
        start = starts[split]
        starts[split] += info.samples
        if name != dataset or not info.samples:
            continue
        if (info.sha256, info.index_sha256) in skip:
            skipped += int(records_each(info).sum())
            continue
        shard = Shard(build.store, info)
        shard.check_index()
        parts.append(_of_shard(shard, build.splits.index(split), start))
        shard.forget_index()
    columns = (field.name for field in fields(Samples))
    return Samples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}), skipped


def match_samples(old: Samples, new: Samples, *, by_key: bool, read_ids: tuple[ReadIds, ReadIds]) -> Matched:
    """The samples of two builds that are the same. by_key: equal keys are the same conversation.

    read_ids: for the old build and the new one; called only if the indexes leave samples on both sides.
    """
    left, right = np.arange(len(old)), np.arange(len(new))
    pairs = [(left[:0], right[:0])]
    for first, second in _steps(old, new, by_key):
        left, right = _take(left, right, first[left], second[right], pairs)
    if not by_key and len(left) and len(right):
        hashes = read_ids[0](left), read_ids[1](right)
        rows = left, right
        for first, second in zip(*hashes, strict=True):
            known = first[np.isin(rows[0], left)], second[np.isin(rows[1], right)]
            left, right = _take(left, right, *known, pairs)
    found_old, found_new = (np.concatenate(side) for side in zip(*pairs, strict=True))
    order = np.argsort(found_new)
    return Matched(old=found_old[order], new=found_new[order], removed=left, added=right)


def without_equal(old: Samples, new: Samples) -> tuple[I64, I64, int]:
    """The rows of both that have no equal sample in the other, and how many records the equal samples have."""
    pairs: list[tuple[I64, I64]] = []
    first, second = old.content + old.metadata, new.content + new.metadata
    left, right = _take(np.arange(len(old)), np.arange(len(new)), first, second, pairs)
    return left, right, int(old.records[pairs[0][0]].sum())


def _steps(old: Samples, new: Samples, by_key: bool) -> Iterator[tuple[U64, U64]]:
    """The hashes by which samples are compared, the strictest first."""
    if by_key:
        yield old.key, new.key
        return
    first, second = old.content, new.content
    yield first + old.metadata, second + new.metadata
    yield first + mix(old.key), second + mix(new.key)  # copies in one place before copies anywhere
    yield first, second
    yield old.metadata, new.metadata


def _take(left: I64, right: I64, first: U64, second: U64, pairs: list[tuple[I64, I64]]) -> tuple[I64, I64]:
    """Add pairs of rows with equal hashes, the n-th of a hash with its n-th; give the rows that are left."""
    by_first, by_second = np.argsort(first, kind="stable"), np.argsort(second, kind="stable")
    ours, theirs = first[by_first], second[by_second]
    nth = np.arange(len(ours)) - np.searchsorted(ours, ours)
    place = np.searchsorted(theirs, ours) + nth
    equal = np.flatnonzero(place < len(theirs))
    equal = equal[theirs[place[equal]] == ours[equal]]
    used_left, used_right = by_first[equal], by_second[place[equal]]
    pairs.append((left[used_left], right[used_right]))
    return np.delete(left, used_left), np.delete(right, used_right)


def _empty() -> Samples:
    none = np.zeros(0, np.uint64)
    count = none.astype(np.int64)
    return Samples(
        split=none.astype(np.uint8),
        index=count,
        branch=count,
        records=count,
        key=none,
        metadata=none,
        tokens=none,
        images=none,
    )


def _of_shard(shard: Shard, split: int, start: int) -> Samples:
    hashes = hash_members(shard)
    keys = pl.Series(pl.from_arrow(shard.index.table.select(["key"]))["key"])  # type: ignore[index]
    return Samples(
        split=np.full(len(shard), split, np.uint8),
        index=np.arange(start, start + len(shard)),
        branch=np.full(len(shard), -1),
        records=records_each(shard.info),
        key=keys.hash().to_numpy(),
        metadata=hashes.metadata,
        tokens=hashes.tokens,
        images=hashes.images,
    )
