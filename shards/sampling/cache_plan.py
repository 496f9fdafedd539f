"""How a build is read that is larger than its cache: how many shards of each dataset are open at a time.

Rule: of the cache, most is for open shards, between which samples are shuffled; the rest is for those that samples
packed together, batches made ahead, and the next shards add. Every dataset has the same share of its shards open. One
that is drawn several times an epoch is kept whole where it takes no more than half of what is left. Where open shards
and the next do not fit, and in orders that jump, each sample is requested by itself.

A plan is a function of the manifest and of the cache's limit, so all ranks have the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OPEN_SHARE = 0.75
"""Of the cache, for open shards and the next one of each dataset"""

LEAST_PACKED = 8
"""Samples that are packed together even where the cache has no room for the shards that they may need"""

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

    @property
    def size(self) -> int:
        return sum(self.shard_sizes)

    @property
    def passes(self) -> float:
        """How often an epoch draws each sample."""
        return self.draws / max(self.samples, 1)

    def open_size(self, shards: int) -> int:
        """Bytes of that many shards, at most."""
        return min(self.size, shards * max(self.shard_sizes, default=0))


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
    """Draws whose shards the cache holds next to the open ones and those of a packed window"""
    samples_open: int
    """Samples that are shuffled among each other: those of all open shards"""
    limit: int
    split_size: int
    epoch_size: int
    """What an epoch downloads; less from the second on if datasets stay in the cache"""
    epoch_requests: int

    def describe(self) -> str:
        """One line, before the first epoch."""
        if self.by_sample:
            how = "each sample is requested by itself"
        else:
            how = (
                f"{sum(self.open_shards.values()):,} shards are open at a time, {self.samples_open:,} samples are "
                f"shuffled among each other"
            )
        times = self.epoch_size / max(self.split_size, 1)
        return (
            f"{_size(self.split_size)}, and {_size(self.limit)} of cache: {how}, and packed {self.pack_window:,} at a "
            f"time; an epoch downloads {_size(self.epoch_size)} ({times:.2f} times the split) by about "
            f"{self.epoch_requests:,} requests"
        )


def plan_cache(datasets: Sequence[StoredDataset], *, limit: int, pack_window: int, shuffles: bool = True) -> CachePlan:
    """The plan for a cache that holds `limit` bytes.

    pack_window: most samples to pack together. shuffles: False reads the shards as they are stored.
    """
    drawn = [dataset for dataset in datasets if dataset.draws]
    opened = {dataset.name: 1 for dataset in drawn}
    if shuffles and sum(dataset.open_size(2) for dataset in drawn) <= limit:
        kept = _kept(drawn, limit)
        room = limit - sum(dataset.size for dataset in drawn if dataset.name in kept)
        opened |= {dataset.name: len(dataset.shard_sizes) for dataset in drawn if dataset.name in kept}
        opened |= _widths([dataset for dataset in drawn if dataset.name not in kept], room)
    ahead = _draws_ahead(drawn, opened, limit)
    while pack_window > LEAST_PACKED and pack_window > ahead // 2:
        pack_window //= 2
    return plan_for(datasets, opened, limit=limit, pack_window=pack_window)


def plan_for(
    datasets: Sequence[StoredDataset], open_shards: Mapping[str, int] | None, *, limit: int, pack_window: int
) -> CachePlan:
    """The plan with these open shards, as another cache may have given them; None for an order that jumps."""
    drawn = [dataset for dataset in datasets if dataset.draws]
    opened = open_shards or {}
    by_sample = not opened or sum(dataset.open_size(opened[dataset.name] + 1) for dataset in drawn) > limit
    stays = [] if by_sample else [dataset for dataset in drawn if _is_kept(dataset, opened)]
    epoch = [(1.0 if dataset in stays else dataset.passes, dataset) for dataset in drawn]
    return CachePlan(
        open_shards=opened,
        by_sample=by_sample,
        pack_window=pack_window,
        draws_ahead=0 if by_sample else max(0, _draws_ahead(drawn, opened, limit) - pack_window),
        samples_open=sum(
            min(dataset.samples, opened.get(dataset.name, 0) * dataset.samples // len(dataset.shard_sizes))
            for dataset in drawn
        ),
        limit=limit,
        split_size=sum(dataset.size for dataset in datasets),
        epoch_size=sum(int(passes * dataset.size) for passes, dataset in epoch),
        epoch_requests=sum(
            dataset.draws if by_sample else math.ceil(passes * dataset.requests) for passes, dataset in epoch
        ),
    )


def _draws_ahead(drawn: Sequence[StoredDataset], opened: Mapping[str, int], limit: int) -> int:
    """Draws that may need further shards until the cache is full: next to open ones, and one more of each dataset."""
    draws = sum(dataset.draws for dataset in drawn)
    left = limit - sum(dataset.open_size(opened[dataset.name] + 1) for dataset in drawn)
    moving = sum(dataset.passes * dataset.size for dataset in drawn if not _is_kept(dataset, opened))
    return max(0, int(left * draws / moving)) if moving else draws


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
