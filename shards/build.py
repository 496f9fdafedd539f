"""Open a build and read its samples.

build = shards.open("build")
len(build["train"]), build["train"][0].ids
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from shards.errors import ShardError
from shards.format.manifest import SPLITS, Manifest
from shards.format.manifest_file import NAME, read_manifest
from shards.format.shard import Shard
from shards.format.shard_info import ShardList
from shards.format.split import SplitSamples
from shards.sampling.dataset_draws import Draws
from shards.sampling.order import Order
from shards.sampling.record_draws import common_records, draws_by_records, table_of
from shards.storage.cache import Cache
from shards.storage.store import Store, open_store

TOKENIZER = "tokenizer"
"""The folder of a build with the files that transformers and the trainer load its tokenizer from."""


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
        return tuple(self.manifest.datasets)

    def tokenizer_folder(self) -> Path:
        """A local folder with the build's tokenizer. Raises ShardError if a file is missing or not the pinned one."""
        files = {path: digest for path, digest in self.manifest.files.items() if path.startswith(f"{TOKENIZER}/")}
        if not files:
            raise ShardError(f"{self.store.name(NAME)}: names no tokenizer; rebuild to write it again")
        return self.store.folder(TOKENIZER, files)

    def __len__(self) -> int:
        """Samples of all splits."""
        return sum(len(self[split]) for split in self.splits)

    def __getitem__(self, split: str) -> SplitSamples:
        """Raises ShardError for an unknown split."""
        if split not in self.splits:
            raise ShardError(f"{self.store.location}: no split {split!r}; it has {', '.join(self.splits)}")
        return self._split(split)

    def shards(self, *, dataset: str | None = None, split: str | None = None) -> Iterator[tuple[str, str, Shard]]:
        """(dataset, split, shard), in the manifest's order, each with its index checked.

        Raises ShardError for an unknown dataset, and for an index that is not the pinned one.
        """
        if dataset is not None and dataset not in self.manifest.datasets:
            raise ShardError(f"{self.store.location}: no dataset {dataset!r}; it has {', '.join(self.datasets)}")
        for name, split_name, info in self.manifest.shards():
            if dataset in (None, name) and split in (None, split_name):
                shard = Shard(self.store, info)
                shard.check_index()
                yield name, split_name, shard

    def order(
        self,
        split: str = "train",
        *,
        seed: int = 0,
        window: int | None = None,
        open_shards: Mapping[str, int] | None = None,
    ) -> Order:
        """The endless order of a split: for train datasets mixed as the blend says, for eval each sample once an epoch.

        window: see Order. open_shards: dataset -> how many of its shards may be open at a time; see
        shards.sampling.shard_windows. Raises ShardError if there is nothing to draw.
        """
        seed = operator.index(seed)  # numpy's numbers are written otherwise, and the key is made of text
        drawn: list[Draws] = []
        start = first_shard = 0
        for name, size in self[split].sizes.items():
            dataset = self.manifest.datasets[name]
            shards, count = dataset.shards[split], dataset.draws if split == "train" else size
            parts = [Draws(name, tuple(shards.samples), count)]
            if split == "train" and shards.has_branches:
                parts = [*_by_records(name, shards, self.epoch_draws(name), start)]
            opened = None if open_shards is None else open_shards.get(name)
            most = max(parts, key=lambda part: part.count)
            drawn += [replace(part, open_shards=opened, first_shard=first_shard, leads=part is most) for part in parts]
            start += size
            first_shard += len(shards)
        if not any(draws.count for draws in drawn):
            raise ShardError(f"{self.store.location}: nothing to draw from the split {split}; see dsvl-prep stats")
        return Order(drawn, key=(self.manifest.hash, seed), window=window)

    def epoch_draws(self, dataset: str) -> dict[int, int]:
        """Number of records of a sample -> draws of such samples in an epoch of the train split.

        A number is 0 if samples with so many records are too rare for the draws of the dataset: no epoch has them.
        """
        info = self.manifest.datasets[dataset]
        shards = info.shards["train"]
        return draws_by_records(info.draws, shards.by_records) if shards.has_branches else {1: info.draws}

    def __reduce__(self) -> tuple[type[Build], tuple[Store]]:
        return Build, (self.store,)

    def _open_split(self, split: str) -> SplitSamples:
        datasets = {name: dataset.shards[split] for name, dataset in self.manifest.datasets.items()}
        return SplitSamples(self.store, split, datasets, self.manifest.hash)


def _by_records(name: str, shards: ShardList, draws: Mapping[int, int], start: int) -> Iterator[Draws]:
    """The samples with 1, 2, 3, ... records, each as a dataset of its own; in a shard they follow each other."""
    counts = table_of(shards.by_branches)
    shard_starts = np.array([*accumulate(shards.samples, initial=start)][:-1])
    starts = shard_starts[:, None] + counts.cumsum(1) - counts
    common = common_records(shards.by_records)
    for each, count in draws.items():
        sizes, firsts = (tuple(table[:, each - 1].tolist()) for table in (counts, starts))
        yield Draws(name, sizes, count, key=f"{name}/{each}", shard_starts=firsts, is_common=each in common)


def open_build(location: str | Path, *, cache: Cache | None = None) -> Build:
    """The build in a folder or at a URL such as s3://bucket/build, whose files are kept in `cache` once they were read.

    Raises ShardError if there is no finished build of a version this program reads.
    """
    return Build(open_store(location, cache))
