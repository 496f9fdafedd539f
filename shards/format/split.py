"""All samples of one side of a build, as one sequence: datasets in the blend's order, shards by number.

Rule: a sample costs the same wherever it is and however many there are. Shards are opened when they are needed; the
least recently used are closed again.
"""

from __future__ import annotations

import contextlib
import resource
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from shards.errors import ShardError
from shards.format.manifest_file import read_manifest
from shards.format.sample import Sample
from shards.format.shard import Shard
from shards.format.shard_info import ShardInfo, ShardList
from shards.storage.store import Store

OPEN_INDEXES = 16384
"""Most shards open at once: each takes a mapping, of which Linux grants a process 65,530."""

_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

OPEN_TARS = 256 if _FILES == resource.RLIM_INFINITY else min(256, max(1, _FILES // 8))
"""Most of them whose tar is open: a process may open a limited number of files, and may read several splits."""

INDEXES_AT_ONCE = 16
"""Most indexes that are downloaded at the same time"""

TOUCHED_BYTES = 128 << 20
"""After this many bytes of indexes, the pages that were read are released."""


class Counts(NamedTuple):
    """Of samples, each int64 [n]. tiles: of all images of each; an image of a build without tiles is one."""

    text_tokens: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.int64]


class SplitSamples(Sequence[Sample]):
    """`split[i]` reads sample i. `sizes`: dataset -> number of samples."""

    def __init__(self, store: Store, name: str, datasets: Mapping[str, ShardList], manifest_hash: str) -> None:
        self.name = name
        self._manifest_hash = manifest_hash
        self._datasets = datasets
        self.sizes = {dataset: sum(shards.samples) for dataset, shards in datasets.items()}
        self._store = store
        self._names, self._lists = list(datasets), list(datasets.values())
        counts = [count for shards in self._lists for count in shards.samples]
        self._starts = [0, *accumulate(counts)]  # where each shard starts, and the end of all
        self._list_ends = [0, *accumulate(map(len, self._lists))]
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._open_tars: OrderedDict[int, Shard] = OrderedDict()
        self._touched: dict[int, Shard] = {}
        self._touched_bytes = 0

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Raises IndexError for a sample that is not there, ShardError for one that is damaged."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.named(index)[1]

    def named(self, index: int, region: bytes | None = None) -> tuple[str, Sample]:
        """A sample and its dataset. region: its bytes, if they were read already. Raises as `split[index]` does."""
        number, in_shard = self.locate(index)
        try:
            shard = self.shard(number)
            sample = shard[in_shard] if region is None else shard.sample_of(in_shard, region)
        except ShardError as error:
            raise self._explained(error) from None
        if region is None:
            self._note_tar(number, shard)
        self._touch(number, shard)
        return self._names[bisect_right(self._list_ends, number) - 1], sample

    def __reduce__(self) -> tuple[type[SplitSamples], tuple[Store, str, Mapping[str, ShardList], str]]:
        """For worker processes: open shards do not travel, they are opened again."""
        return SplitSamples, (self._store, self.name, self._datasets, self._manifest_hash)

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the shard, number in it). Raises IndexError."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"no sample {index}; the split {self.name} has {len(self)}")
        index %= len(self)
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def shard(self, number: int) -> Shard:
        """Raises ShardError if it cannot be opened."""
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = Shard(self._store, self.info(number))
            if len(self._open) > OPEN_INDEXES:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return shard

    def info(self, number: int) -> ShardInfo:
        """What the manifest says of a shard."""
        dataset = bisect_right(self._list_ends, number) - 1
        return self._lists[dataset][number - self._list_ends[dataset]]

    def shards_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The numbers of the shards of samples, int64 [n]."""
        return np.array(self._starts, np.int64).searchsorted(indices, side="right") - 1

    def shard_starts(self) -> Iterator[tuple[int, int]]:
        """(number of a shard, its first sample), in order."""
        return enumerate(self._starts[:-1])

    def counts(self, indices: npt.NDArray[np.int64]) -> Counts:
        """Of samples. Only indexes are read, no sample. Raises ShardError."""
        numbers = self.shards_of(indices)
        in_shard = indices - np.array(self._starts, np.int64)[numbers]
        text, images, tiles = (np.empty(len(indices), np.int64) for _ in range(3))
        self._fetch_indexes(np.unique(numbers).tolist())
        by_shard = np.argsort(numbers, kind="stable")
        borders = np.flatnonzero(np.diff(numbers[by_shard], prepend=-1, append=-1))
        for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            members = by_shard[start:end]
            number = int(numbers[members[0]])
            try:
                shard = self.shard(number)
                tiles[members] = shard.tiles_of(in_shard[members])
            except ShardError as error:
                raise self._explained(error) from None
            text[members] = shard.index.text_tokens[in_shard[members]]
            images[members] = shard.index.images[in_shard[members]]
            self._touch(number, shard)
        return Counts(text, images, tiles)

    @property
    def size_bytes(self) -> int:
        """Of all its shards, with their indexes."""
        return sum(sum(shards.sizes) for shards in self._lists)

    @property
    def has_branches(self) -> bool:
        return any(shards.has_branches for shards in self._lists)

    @property
    def has_tiles(self) -> bool:
        return any(shards.has_tiles for shards in self._lists)

    @property
    def largest_shard(self) -> int:
        """Samples of the largest shard."""
        return max(np.diff(self._starts).tolist(), default=0)

    def lengths(
        self, indices: npt.NDArray[np.int64], image_tokens: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Lengths (text tokens + tiles x image_tokens) and tiles of samples, both int64 [n]."""
        counts = self.counts(indices)
        return counts.text_tokens + counts.tiles * image_tokens, counts.tiles

    def check_index(self, index: int) -> None:
        """Compare the index that holds this sample with its digest. Raises ShardError."""
        self.shard(self.locate(index)[0]).check_index()

    def where(self, index: int) -> str:
        """Shard and key of a sample, for messages."""
        number, in_shard = self.locate(index)
        shard = self.shard(number)
        try:
            return f"{shard.name}: sample {shard.index.entry(in_shard).key}"
        except ValueError as error:
            raise ShardError(f"{shard.name}: its index is damaged: {error}") from None

    def _fetch_indexes(self, numbers: list[int]) -> None:
        """Download those that are not here at the same time; errors are raised where an index is opened."""
        infos = [self.info(number) for number in numbers if number not in self._open] if self._store.evicts else []
        if len(infos) < 2:
            return

        def fetch(info: ShardInfo) -> None:
            with contextlib.suppress(ShardError):
                self._store.fetch_ahead(info.index, size=info.index_size, sha256=info.index_sha256)

        with ThreadPoolExecutor(min(len(infos), INDEXES_AT_ONCE)) as threads:
            list(threads.map(fetch, infos))

    def _explained(self, error: ShardError) -> ShardError:
        """A shard that is gone or changed may be no damage: another build took its place."""
        if error.__cause__ is not None:  # a network or a disk that failed; asking it once more would only take longer
            return error
        try:
            replaced = read_manifest(self._store).hash != self._manifest_hash
        except ShardError:
            return error
        if not replaced:
            return error
        return ShardError(
            f"{self._store.location}: the build was replaced while it was read ({error}); open it again; a run that "
            "began with the old build needs it back"
        )

    def _note_tar(self, number: int, shard: Shard) -> None:
        """Its tar is open. Those are closed that were removed from a cache and, if they are too many, the oldest."""
        if self._open_tars.get(number) is shard:
            return
        if self._store.evicts:
            for other in [other for other, opened in self._open_tars.items() if opened.was_removed]:
                self._open_tars.pop(other).close_tar()
        self._open_tars[number] = shard
        if len(self._open_tars) > OPEN_TARS:
            _, oldest = self._open_tars.popitem(last=False)
            oldest.close_tar()

    def _touch(self, number: int, shard: Shard) -> None:
        if self._touched.get(number) is shard:
            return
        self._touched[number] = shard
        self._touched_bytes += shard.info.index_size
        if self._touched_bytes > TOUCHED_BYTES:
            touched, self._touched, self._touched_bytes = list(self._touched.values()), {}, 0
            for read_shard in touched:  # of a list: another thread may read too
                read_shard.forget_index()
