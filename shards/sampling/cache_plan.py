"""How a build is read that is larger than its cache: how many shards of each dataset are open at a time.

Rule: of the cache, most is for open shards, between which samples are shuffled; the rest is for those that samples
packed together, batches made ahead, and the next shards add. Every dataset has the same share of its shards open. One
that is drawn several times an epoch is kept whole where it takes no more than half of what is left. Where open shards
and the next do not fit, and in orders that jump, each sample is requested by itself.

Bound: from the packed window of the oldest batch that is not read yet to the end of what is downloaded ahead are
2 * pack_window + draws_ahead draws. Draws of a dataset that are `q` shards' worth need at most `width + 1 + q` of its
shards (shards.sampling.shard_windows), and of `k` draws in a row a dataset with share `s` has `k * s`, give or take
2 * sqrt(k * s * (1 - s)). A plan whose cache holds all that downloads each shard once in a pass.

A plan is a function of the manifest and of the cache's limit, so all ranks have the same.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

OPEN_SHARE = 0.75
"""Of the cache, for open shards and the next one of each dataset"""

LEAST_PACKED = 8
"""Samples that are packed together where the cache is small; where it has no room for them, none are"""

DEVIATIONS = 2
"""By how many standard deviations the draws of a dataset may differ from its share without a shard being missed"""

LEAST_SAVED = 0.15
"""If more than this part of the samples were in shards that are not open, all samples are requested by themselves"""

_STEPS = 40  # of a bisection


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """A dataset behind a URL. draws: samples of it in an epoch. Sizes in bytes, with indexes."""

    name: str
    shard_sizes: tuple[int, ...]
    requests: int
    """That download each shard and its index once"""
    samples: int
    draws: int
    index_size: int = 0
    """Bytes of all indexes, which are in `shard_sizes`"""
    spread: int = 0
    """Further shards that are open at a time because samples with other numbers of records are ahead or behind"""

    @property
    def size(self) -> int:
        return sum(self.shard_sizes)

    @property
    def passes(self) -> float:
        """How often an epoch draws each sample."""
        return self.draws / max(self.samples, 1)

    @property
    def epoch_size(self) -> int:
        """Bytes that an epoch downloads of whole shards, at most: a pass that is not whole is cut at both ends."""
        cuts = 0 if self.draws % max(self.samples, 1) == 0 else 2 + self.spread
        return int(self.passes * self.size) + cuts * max(self.shard_sizes, default=0)

    def epoch_size_by_sample(self, *, keeps_indexes: bool) -> int:
        """Bytes that an epoch downloads of indexes and single samples; a little more with what is between them.

        keeps_indexes: False where the cache cannot hold them, and each draw may need the index of another shard.
        """
        indexes = 1 if keeps_indexes else max(1.0, self.draws / len(self.shard_sizes))
        return int(indexes * self.index_size + self.passes * (self.size - self.index_size))

    def open_size(self, shards: int) -> int:
        """Bytes of that many shards and the spread, at most."""
        return min(self.size, (shards + self.spread) * max(self.shard_sizes, default=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """What is read in which order, and what it costs. Sizes in bytes."""

    open_shards: Mapping[str, int]
    """Dataset -> shards that are open at a time"""
    by_sample: bool
    """Whether each sample is requested by itself, since open shards do not fit"""
    pack_window: int
    """Samples that are packed together"""
    draws_ahead: int
    """Draws whose shards the cache holds next to the open ones and those of two packed windows"""
    has_spread: bool
    """Whether the cache holds what samples with other numbers of records than most need as well"""
    samples_open: int
    """Samples that are shuffled among each other: those of all open shards"""
    limit: int
    split_size: int
    epoch_size: int
    """What an epoch downloads, at most; less from the second on if datasets stay in the cache"""
    epoch_requests: int
    lacks_bytes: int
    """By how much the cache is too small even for the indexes, which an order that jumps then downloads again"""
    by_sample_size: int
    """What an epoch downloads if each sample is requested by itself"""
    by_sample_requests: int

    def with_strays(self, share: float) -> CachePlan:
        """The plan if this share of the samples is requested by itself, since their shards are not open."""
        if self.by_sample or not share:
            return self
        size = self.epoch_size + int(share * self.by_sample_size)
        requests = self.epoch_requests + math.ceil(share * self.by_sample_requests)
        if share > LEAST_SAVED and size > self.by_sample_size:
            return replace(self, by_sample=True, epoch_size=self.by_sample_size, epoch_requests=self.by_sample_requests)
        return replace(self, epoch_size=size, epoch_requests=requests)

    def describe(self) -> str:
        """One line, before the first epoch."""
        if self.by_sample:
            how = "each sample is requested by itself"
            if self.lacks_bytes:
                how += f", and often an index, since the cache lacks {_size(self.lacks_bytes)} to keep all of them"
        else:
            how = (
                f"{sum(self.open_shards.values()):,} shards are open at a time, {self.samples_open:,} samples are "
                f"shuffled among each other"
            )
        times = self.epoch_size / max(self.split_size, 1)
        return (
            f"{_size(self.split_size)}, and {_size(self.limit)} of cache: {how}, and packed {self.pack_window:,} at a "
            f"time; an epoch downloads at most {_size(self.epoch_size)} ({times:.2f} times the split) by about "
            f"{self.epoch_requests:,} requests"
        )


def plan_cache(datasets: Sequence[StoredDataset], *, limit: int, pack_window: int, shuffles: bool = True) -> CachePlan:
    """The plan for a cache that holds `limit` bytes.

    pack_window: most samples to pack together. shuffles: False reads the shards as they are stored.
    """
    drawn = _drawn(datasets, dict.fromkeys((dataset.name for dataset in datasets), 1), limit)
    opened = {dataset.name: 1 for dataset in drawn}
    if shuffles and _needed(drawn, opened) <= limit:
        kept = _kept(drawn, limit)
        room = limit - sum(dataset.size for dataset in drawn if dataset.name in kept)
        opened |= {dataset.name: len(dataset.shard_sizes) for dataset in drawn if dataset.name in kept}
        opened |= _widths([dataset for dataset in drawn if dataset.name not in kept], room)
    ahead = _draws_ahead(drawn, opened, limit)
    while pack_window > LEAST_PACKED and 5 * pack_window > 2 * ahead:
        pack_window //= 2
    return plan_for(datasets, opened, limit=limit, pack_window=pack_window)


def plan_for(
    datasets: Sequence[StoredDataset], open_shards: Mapping[str, int] | None, *, limit: int, pack_window: int
) -> CachePlan:
    """The plan with these open shards, as another cache may have given them; None for an order that jumps."""
    opened = open_shards or {}
    drawn = _drawn(datasets, opened, limit)
    ahead = _draws_ahead(drawn, opened, limit) - 2 * pack_window if opened else -1
    ahead, by_sample = min(ahead, sum(dataset.draws for dataset in drawn)), ahead < 0
    stays = [] if by_sample else [dataset for dataset in drawn if _is_kept(dataset, opened)]
    sizes = [dataset.size if dataset in stays else dataset.epoch_size for dataset in drawn]
    requests = [dataset.requests * size / max(dataset.size, 1) for dataset, size in zip(drawn, sizes, strict=True)]
    indexes = sum(dataset.index_size for dataset in drawn)
    keeps_indexes = bool(opened) or indexes <= limit
    by_sample_size = sum(dataset.epoch_size_by_sample(keeps_indexes=keeps_indexes) for dataset in drawn)
    by_sample_requests = sum(
        dataset.draws + (len(dataset.shard_sizes) if keeps_indexes else dataset.draws) for dataset in drawn
    )
    return CachePlan(
        open_shards=opened,
        by_sample=by_sample,
        pack_window=pack_window,
        draws_ahead=max(0, ahead),
        has_spread=any(dataset.spread for dataset in drawn),
        samples_open=sum(
            min(dataset.samples, opened.get(dataset.name, 0) * dataset.samples // len(dataset.shard_sizes))
            for dataset in drawn
        ),
        limit=limit,
        lacks_bytes=0 if keeps_indexes else indexes - limit,
        split_size=sum(dataset.size for dataset in datasets),
        epoch_size=by_sample_size if by_sample else sum(sizes),
        epoch_requests=by_sample_requests if by_sample else sum(map(math.ceil, requests)),
        by_sample_size=by_sample_size,
        by_sample_requests=by_sample_requests,
    )


def _drawn(datasets: Sequence[StoredDataset], opened: Mapping[str, int], limit: int) -> list[StoredDataset]:
    """Those that an epoch draws; without their spread where the cache has no room for it."""
    drawn = [dataset for dataset in datasets if dataset.draws]
    if not opened or _needed(drawn, opened) <= limit:
        return drawn
    return [replace(dataset, spread=0) for dataset in drawn]


def _needed(drawn: Sequence[StoredDataset], opened: Mapping[str, int]) -> int:
    """Bytes of the open shards, and one more of each dataset."""
    return sum(dataset.open_size(opened[dataset.name] + 1) for dataset in drawn)


def _draws_ahead(drawn: Sequence[StoredDataset], opened: Mapping[str, int], limit: int) -> int:
    """Draws that may need further shards until the cache is full; negative if the open ones do not fit."""
    draws = sum(dataset.draws for dataset in drawn)
    left = limit - _needed(drawn, opened)
    if left < 0:
        return -1
    mean = deviation = 0.0  # of k draws: k * mean + sqrt(k) * deviation bytes
    for dataset in drawn:
        if not _is_kept(dataset, opened):
            share, per_draw = dataset.draws / draws, dataset.size / dataset.samples
            mean += share * per_draw
            deviation += DEVIATIONS * math.sqrt(share * (1 - share)) * per_draw
    if not mean:
        return sys.maxsize
    return int(((math.sqrt(deviation**2 + 4 * mean * left) - deviation) / (2 * mean)) ** 2)


def _is_kept(dataset: StoredDataset, opened: Mapping[str, int]) -> bool:
    return opened[dataset.name] >= len(dataset.shard_sizes)


def _kept(drawn: Sequence[StoredDataset], limit: int) -> set[str]:
    """Datasets that fit whole next to two shards of all others."""
    kept, left = set(), limit - sum(dataset.open_size(2) for dataset in drawn)
    for dataset in sorted(drawn, key=lambda dataset: -dataset.passes):
        more = dataset.size - dataset.open_size(2)
        if (dataset.passes > 1 and more <= left / 2) or more == 0:
            kept.add(dataset.name)
            left -= more
    return kept


def _widths(windowed: Sequence[StoredDataset], room: int) -> dict[str, int]:
    """Open shards of each dataset: the same share of all, at least one."""

    def at(share: float) -> dict[str, int]:
        return {dataset.name: max(1, int(share * len(dataset.shard_sizes))) for dataset in windowed}

    def size(share: float) -> int:
        return sum(dataset.open_size(at(share)[dataset.name] + 1) for dataset in windowed)

    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if size(middle) <= OPEN_SHARE * room:
            low = middle
        else:
            high = middle
    return at(low)


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
