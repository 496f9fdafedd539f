"""Which order a loader reads a split in: what was asked for, and what a cache that is smaller than the build allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.build import Build
from shards.errors import ShardError
from shards.format.shard_info import ShardList
from shards.sampling.cache_plan import DEVIATIONS, CachePlan, StoredDataset, plan_cache, plan_for
from shards.sampling.packed_sequences import WINDOW
from shards.sampling.record_draws import common_records, spread_of_shards, table_of
from shards.storage.store import Room

SHUFFLES = ("samples", "shards", "none")

SHUFFLE_SAMPLES = 4096
SHUFFLE_SHARDS = 8
"""`shuffle="shards"` shuffles at least this many samples, and this many times the largest shard, among each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSettings:
    """What decides the order of a split's samples, next to manifest and seed."""

    shuffle: str
    shuffle_window: int | None
    pack_window: int
    open_shards: Mapping[str, int] | None = None
    """Dataset -> shards open at a time, where the cache is smaller than the split"""

    def to_json(self) -> dict[str, Any]:
        """As a state holds them: `open_shards` only if there are any."""
        opened = {} if self.open_shards is None else {"open_shards": dict(self.open_shards)}
        return {
            "shuffle": self.shuffle,
            "shuffle_window": self.shuffle_window,
            "pack_window": self.pack_window,
            **opened,
        }

    @classmethod
    def from_state(cls, saved: Mapping[str, Any], build: Build) -> OrderSettings | None:
        """Those of a state; None if it does not hold settings of this build."""
        shuffle, window, packed, opened = (
            saved.get(name) for name in ("shuffle", "shuffle_window", "pack_window", "open_shards")
        )
        names = {name for name, dataset in build.manifest.datasets.items() if dataset.draws}
        if opened is not None and not (
            isinstance(opened, Mapping) and opened.keys() == names and all(map(_is_count, opened.values()))
        ):
            return None
        has_limit = window is not None or opened is not None
        if shuffle not in SHUFFLES or has_limit != (shuffle == "shards"):
            return None
        if not isinstance(packed, int) or not _is_count(packed):
            return None
        if window is not None and (opened is not None or not _is_count(window)):
            return None
        return cls(shuffle=shuffle, shuffle_window=window, pack_window=packed, open_shards=opened)


def choose_order(
    build: Build, split: str, *, shuffle: str | None, shuffle_window: int | None, pack_window: int | None, ranks: int
) -> OrderSettings:
    """The settings; None as in Loader.

    Raises ShardError for several ranks whose cache is smaller than the split if its limit is that of their disks: ranks
    with different limits would read different orders.
    """
    room = build.store.room()
    if shuffle is None:
        shuffle = "none" if split != "train" else "samples" if room is None else "shards"
    datasets = _larger_than(room, build, split)
    opened = None
    if datasets and room is not None and shuffle != "samples" and shuffle_window is None:
        if ranks > 1 and not room.is_set:
            raise ShardError(
                f"{build.store.location}: the cache of this rank has room for {room.size:,} bytes, less than the split "
                f"{split}, and other ranks may have more, and would read another order: set the same limit for all, "
                "shards.Cache(max_bytes=...) or batch.cache_gb"
            )
        plan = plan_cache(datasets, limit=room.size, pack_window=pack_window or WINDOW, shuffles=shuffle == "shards")
        pack_window = pack_window or plan.pack_window
        opened = plan.open_shards if shuffle == "shards" else None
    if shuffle != "shards":
        shuffle_window = None
    elif opened is None:
        shuffle_window = shuffle_window or max(SHUFFLE_SAMPLES, SHUFFLE_SHARDS * build[split].largest_shard)
    return OrderSettings(
        shuffle=shuffle, shuffle_window=shuffle_window, pack_window=pack_window or WINDOW, open_shards=opened
    )


def cache_plan(build: Build, split: str, settings: OrderSettings) -> CachePlan | None:
    """What reading in this order costs with a cache that is smaller than the split; None if it is not."""
    room = build.store.room()
    datasets = _larger_than(room, build, split)
    if room is None or not datasets:
        return None
    opened = settings.open_shards
    if settings.shuffle == "none":
        opened = {dataset.name: 1 for dataset in datasets if dataset.draws}
    elif settings.shuffle_window is not None:
        opened = {
            dataset.name: 1 + math.ceil(settings.shuffle_window * len(dataset.shard_sizes) / dataset.samples)
            for dataset in datasets
            if dataset.draws
        }
    return plan_for(datasets, opened, limit=room.size, pack_window=settings.pack_window)


def _larger_than(room: Room | None, build: Build, split: str) -> list[StoredDataset]:
    """The datasets of a split that is larger than the room for its copies; else none."""
    if room is None:
        return []
    from shards.storage.remote import PIECE_BYTES  # files are behind a URL, so fsspec is there

    datasets = []
    for name, dataset in build.manifest.datasets.items():
        shards = dataset.shards[split]
        samples = sum(shards.samples)
        sizes = tuple(shards.sizes)
        datasets.append(
            StoredDataset(
                name=name,
                shard_sizes=sizes,
                requests=sum(1 + math.ceil(size / PIECE_BYTES) for size in sizes),
                samples=samples,
                draws=sum(build.epoch_draws(name).values()) if split == "train" else samples,
                index_size=sum(sizes) - sum(shards.tar_sizes),
                spread=_spread(shards) if split == "train" and shards.has_branches else 0,
            )
        )
    return datasets if sum(dataset.size for dataset in datasets) > room.size else []


def _spread(shards: ShardList) -> int:
    columns = [records - 1 for records in common_records(shards.by_records)]
    return spread_of_shards(table_of(shards.by_branches), columns, deviations=DEVIATIONS)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
