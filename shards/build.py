"""Open a build and read its samples.

build = shards.open("build")
len(build["train"]), build["train"][0].ids
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from shards.errors import ShardError
from shards.manifest import SPLITS, Manifest, read_manifest
from shards.shard import Shard
from shards.split import Split
from shards.store import Store, open_store


class Build:
    """A finished build: its manifest, and its samples by split. Opening it reads the manifest and nothing else."""

    splits = SPLITS

    def __init__(self, store: Store) -> None:
        self.store = store
        self.manifest: Manifest = read_manifest(store)
        self._split = lru_cache(self._open_split)

    @property
    def datasets(self) -> tuple[str, ...]:
        """In the blend's order."""
        return tuple(self.manifest.shards)

    def __len__(self) -> int:
        """Samples of all splits."""
        return sum(len(self[split]) for split in self.splits)

    def __getitem__(self, split: str) -> Split:
        """Raises ShardError for an unknown split."""
        if split not in self.splits:
            raise ShardError(f"{self.store.location}: no split {split!r}; it has {', '.join(self.splits)}")
        return self._split(split)

    def shards(self, *, dataset: str | None = None, split: str | None = None) -> Iterator[tuple[str, str, Shard]]:
        """(dataset, split, shard), in the manifest's order. Raises ShardError for an unknown dataset."""
        if dataset is not None and dataset not in self.manifest.shards:
            raise ShardError(f"{self.store.location}: no dataset {dataset!r}; it has {', '.join(self.datasets)}")
        for name, splits in self.manifest.shards.items():
            if dataset in (None, name):
                for split_name, shards in splits.items():
                    if split in (None, split_name):
                        for info in shards:
                            yield name, split_name, Shard(self.store, info)

    def _open_split(self, split: str) -> Split:
        return Split(self.store, split, {name: splits[split] for name, splits in self.manifest.shards.items()})


def open_build(location: str | Path) -> Build:
    """Raises ShardError if there is no finished build of a version this program reads."""
    return Build(open_store(location))
