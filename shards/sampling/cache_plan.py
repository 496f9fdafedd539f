"""How a build is read that is larger than its cache: how many shards of each dataset are open at a time.

Rule: of the cache, most is for open shards, between which samples are shuffled; the rest is for those that samples
packed together, batches made ahead, and the next shards add. Every dataset has the same share of its shards open. One
that is drawn several times an epoch is kept whole where it takes no more than half of what is left.

A plan is a function of the manifest and of the cache's limit, so all ranks have the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OPEN_SHARE = 0.75
"""Of the cache, for open shards and the next one of each dataset"""

LEAST_PACKED = 32
"""Samples that are packed together even where the cache has no room for the shards that they may need"""

_STEPS = 40  # of a bisection


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """A dataset behind a URL. draws: samples of it in an epoch. Sizes in bytes, with indexes."""

    name: str
    shard_sizes: tuple[int, ...]
    samples: int
    draws: int

    @property
    def size(self) -> int:
        return sum(self.shard_sizes)

    @property
    def largest(self) -> int:
        return max(self.shard_sizes, default=0)

    @property
    def passes(self) -> float:
        """How often an epoch draws each sample."""
        return self.draws / max(self.samples, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """What is read in which order, and what it costs. Sizes in bytes."""

    open_shards: Mapping[str, int]
    """Dataset -> shards that are open at a time"""
    kept: tuple[str, ...]
    """Datasets that stay in the cache whole"""
    pack_window: int
    """Samples that are packed together"""
    draws_ahead: int
    """Draws whose shards the cache holds next to the open ones and those of a packed window"""
    samples_open: int
    """Of all open shards: so many are shuffled among each other"""
    limit: int
    split_size: int
    split_shards: int
    epoch_size: int
    """What an epoch downloads; less from the second on if datasets are kept"""
    epoch_shards: int
    """Shards among it"""

    def describe(self) -> str:
        """One line, before the first epoch."""
        times = self.epoch_size / max(self.split_size, 1)
        return (
            f"{_size(self.split_size)} in {self.split_shards:,} shards, {_size(self.limit)} of cache: "
            f"{sum(self.open_shards.values()):,} shards are open at a time, {self.samples_open:,} samples are shuffled "
            f"among each other and packed {self.pack_window:,} at a time; an epoch downloads {_size(self.epoch_size)} "
            f"({times:.2f} times the split) in {self.epoch_shards:,} shards"
        )


def plan_cache(datasets: Sequence[StoredDataset], *, limit: int, pack_window: int) -> CachePlan | None:
    """The plan for a cache that holds `limit` bytes; None if two shards of each dataset do not fit.

    pack_window: most samples to pack together.
    """
    drawn = [dataset for dataset in datasets if dataset.draws]
    if sum(map(_least, drawn)) > limit:
        return None
    kept = _kept(drawn, limit)
    room = limit - sum(dataset.size for dataset in drawn if dataset.name in kept)
    widths = _widths([dataset for dataset in drawn if dataset.name not in kept], room)
    opened = {dataset.name: widths.get(dataset.name, len(dataset.shard_sizes)) for dataset in drawn}
    ahead = _draws_ahead(datasets, opened, limit)
    while pack_window > LEAST_PACKED and pack_window > ahead // 2:
        pack_window //= 2
    return plan_for(datasets, opened, limit=limit, pack_window=pack_window)


def plan_for(
    datasets: Sequence[StoredDataset], open_shards: Mapping[str, int], *, limit: int, pack_window: int
) -> CachePlan:
    """The plan with these open shards, as another cache may have given them."""
    drawn = [dataset for dataset in datasets if dataset.draws]
    kept = [dataset for dataset in drawn if open_shards[dataset.name] >= len(dataset.shard_sizes)]
    epoch = [(1.0 if dataset in kept else dataset.passes, dataset) for dataset in drawn]
    return CachePlan(
        open_shards=open_shards,
        kept=tuple(dataset.name for dataset in kept),
        pack_window=pack_window,
        draws_ahead=max(0, _draws_ahead(datasets, open_shards, limit) - pack_window),
        samples_open=sum(
            dataset.samples * min(open_shards[dataset.name], len(dataset.shard_sizes)) // len(dataset.shard_sizes)
            for dataset in drawn
        ),
        limit=limit,
        split_size=sum(dataset.size for dataset in datasets),
        split_shards=sum(len(dataset.shard_sizes) for dataset in datasets),
        epoch_size=sum(int(passes * dataset.size) for passes, dataset in epoch),
        epoch_shards=sum(math.ceil(passes * len(dataset.shard_sizes)) for passes, dataset in epoch),
    )


def least_cache(datasets: Sequence[StoredDataset]) -> int:
    """Bytes of the smallest cache that there is a plan for."""
    return sum(_least(dataset) for dataset in datasets if dataset.draws)


def _draws_ahead(datasets: Sequence[StoredDataset], open_shards: Mapping[str, int], limit: int) -> int:
    """Draws that may need further shards until the cache is full: next to open ones, and one more of each dataset."""
    drawn = [dataset for dataset in datasets if dataset.draws]
    draws = sum(dataset.draws for dataset in drawn)
    left = limit - sum(_open_size(dataset, open_shards[dataset.name] + 1) for dataset in drawn)
    moving = sum(
        dataset.passes * dataset.size for dataset in drawn if open_shards[dataset.name] < len(dataset.shard_sizes)
    )
    return max(0, int(left * draws / moving)) if moving else draws


def _least(dataset: StoredDataset) -> int:
    """One shard that is open, and the next."""
    return _open_size(dataset, 2)


def _open_size(dataset: StoredDataset, shards: int) -> int:
    return min(dataset.size, shards * dataset.largest)


def _kept(drawn: Sequence[StoredDataset], limit: int) -> tuple[str, ...]:
    kept, left = [], limit - sum(map(_least, drawn))
    for dataset in sorted(drawn, key=lambda dataset: -dataset.passes):
        more = dataset.size - _least(dataset)
        if (dataset.passes > 1 and more <= left / 2) or more == 0:
            kept.append(dataset.name)
            left -= more
    return tuple(kept)


def _widths(windowed: Sequence[StoredDataset], room: int) -> dict[str, int]:
    """Open shards of each dataset: the same share of all, at least one."""

    def at(share: float) -> dict[str, int]:
        return {dataset.name: max(1, int(share * len(dataset.shard_sizes))) for dataset in windowed}

    def size(share: float) -> int:
        return sum(_open_size(dataset, at(share)[dataset.name] + 1) for dataset in windowed)

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
