"""Which order a loader reads a split in: what was asked for, and what a cache that is smaller than the build allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.build import Build
from shards.errors import ShardError
from shards.sampling.cache_plan import CachePlan, StoredDataset, least_cache, plan_cache, plan_for
from shards.sampling.packed_sequences import WINDOW

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
        numbers, opened = (saved.get("shuffle_window"), saved.get("pack_window")), saved.get("open_shards")
        limits = dict(opened) if isinstance(opened, Mapping) else {}
        if (
            saved.get("shuffle") != "shards"
            or (numbers[0] is None) == (opened is None)
            or not all(_is_count(number) for number in (*numbers, *limits.values()) if number is not None)
            or numbers[1] is None
            or not limits.keys() <= set(build.datasets)
        ):
            return None
        return cls(
            shuffle="shards",
            shuffle_window=numbers[0],
            pack_window=numbers[1],
            open_shards=None if opened is None else limits,
        )


def choose_order(
    build: Build, split: str, *, shuffle: str | None, shuffle_window: int | None, pack_window: int | None, ranks: int
) -> tuple[OrderSettings, CachePlan | None]:
    """The settings, and the plan for a cache that is smaller than the split, if it is.

    None as in Loader. Raises ShardError if the cache is too small for any plan, and for several ranks if its limit is
    that of their disks: ranks with different limits would read different orders.
    """
    if shuffle is None:
        shuffle = "none" if split != "train" else "samples" if build.store.room() is None else "shards"
    plan = None
    if shuffle_window is None and shuffle != "samples":
        plan = _plan(build, split, pack_window or WINDOW, ranks)
    packed_together = pack_window or (plan.pack_window if plan else WINDOW)
    if shuffle != "shards":
        return OrderSettings(shuffle=shuffle, shuffle_window=None, pack_window=packed_together), plan
    if plan is None:
        shuffle_window = shuffle_window or max(SHUFFLE_SAMPLES, SHUFFLE_SHARDS * build[split].largest_shard)
    opened = None if plan is None else plan.open_shards
    settings = OrderSettings(
        shuffle=shuffle, shuffle_window=shuffle_window, pack_window=packed_together, open_shards=opened
    )
    return settings, plan


def plan_of(build: Build, split: str, settings: OrderSettings) -> CachePlan | None:
    """The plan with settings that another loader chose; None where the cache sets no limit, or none was planned for."""
    room = build.store.room()
    datasets = stored_datasets(build, split)
    if settings.open_shards is None or room is None or sum(dataset.size for dataset in datasets) <= room.size:
        return None
    return plan_for(datasets, settings.open_shards, limit=room.size, pack_window=settings.pack_window)


def stored_datasets(build: Build, split: str) -> list[StoredDataset]:
    """What a plan for a split needs to know."""
    datasets = []
    for name, dataset in build.manifest.datasets.items():
        shards = dataset.shards[split]
        samples = sum(shards.samples)
        draws = sum(build.epoch_draws(name).values()) if split == "train" else samples
        sizes = tuple(shards.sizes)
        datasets.append(StoredDataset(name=name, shard_sizes=sizes, samples=samples, draws=draws))
    return datasets


def _plan(build: Build, split: str, pack_window: int, ranks: int) -> CachePlan | None:
    room = build.store.room()
    if room is None:
        return None
    datasets = stored_datasets(build, split)
    size = sum(dataset.size for dataset in datasets)
    if size <= room.size:
        return None
    where = f"{build.store.location}: its split {split} has {size:,} bytes"
    if ranks > 1 and not room.is_set:
        raise ShardError(
            f"{where}, and the disk of this rank's cache has room for {room.size:,}; other ranks may have more, and "
            "would read another order: set the same limit for all, shards.Cache(max_bytes=...) or batch.cache_gb"
        )
    plan = plan_cache(datasets, limit=room.size, pack_window=pack_window)
    if plan is None:
        raise ShardError(
            f"{where}, and the cache may hold {room.size:,}; expected at least {least_cache(datasets):,}, which is two "
            "shards of each dataset: raise its limit (shards.Cache(max_bytes=...) or batch.cache_gb), or rebuild with "
            "smaller shards"
        )
    return plan


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
