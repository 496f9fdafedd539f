"""Opening a run's build: behind a URL with the cache that the config allows, the same on all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import shards
from shards import Build, Cache
from trainer.config.run import TrainConfig

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from trainer.distributed.ranks import Ranks


def open_build(config: TrainConfig) -> Build:
    """The build at `config.build`. Raises ShardError."""
    limit = config.batch.cache_gb
    return shards.open(config.build, cache=None if limit is None else Cache(max_bytes=int(limit * 1e9)))


def with_same_cache(build: Build, ranks: Ranks) -> Build:
    """The build with the cache of the rank that has least room: the order of samples may depend on it."""
    rooms = [room for room in ranks.gather(build.store.room()) if room is not None]
    if ranks.world_size == 1 or all(room.is_set for room in rooms):
        return build
    return shards.open(build.store.location, cache=Cache(max_bytes=min(room.size for room in rooms)))
