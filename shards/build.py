"""Open a build folder and read its samples.

Rule: a sample's bytes are compared with the index's checksum before anybody sees them; damage raises ShardError naming
the shard and the sample's key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import xxhash

from shards.container import decode_tokens, members
from shards.errors import ShardError
from shards.index import index_row, open_index
from shards.manifest import Manifest, read_manifest
from shards.writer import ShardInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One tokenized conversation: ids and labels int32 [T], images as stored bytes in placeholder order."""

    key: str
    metadata: dict[str, Any]
    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    images: tuple[bytes, ...]


class Shard:
    """An open shard: its mapped tar and index."""

    def __init__(self, build: Path, info: ShardInfo) -> None:
        self.path = build / info.path
        self.info = info
        self._check_size(self.path, info.size)
        self._check_size(build / info.index, info.index_size)
        self.index: pa.Table = open_index(build / info.index)
        if self.index.num_rows != info.samples:
            raise ShardError(
                f"{build / info.index}: has {self.index.num_rows} rows, the manifest says {info.samples}; "
                "it is the index of another shard"
            )
        try:
            self._bytes = pa.memory_map(str(self.path)).read_buffer()
        except OSError as error:
            raise ShardError(f"{self.path}: the shard cannot be read ({error})") from None

    def __len__(self) -> int:
        return self.info.samples

    def sample_keys(self) -> list[str]:
        """All samples' keys, in order. Raises ShardError if the index is damaged."""
        keys = self.index.select(["key"])
        try:
            keys.validate(full=True)
        except (ValueError, pa.ArrowException) as error:
            raise ShardError(f"{self.path}: its index {self.info.index} is damaged: {error}") from None
        found: list[str] = keys.column("key").to_pylist()
        return found

    def region(self, row: int) -> tuple[str, memoryview, list[memoryview]]:
        """Key, all bytes of the sample, and the contents of its members, checked against the index.

        Raises ShardError for damage in the sample or in its row of the index, IndexError for a row that is not there.
        """
        at = self._row(row)
        return at["key"], *self._located(at)

    def __getitem__(self, row: int) -> Sample:
        at = self._row(row)
        _, contents = self._located(at)
        try:
            tokens = decode_tokens(contents[1])
            metadata = orjson.loads(contents[0])
        except (IndexError, ValueError) as error:
            raise ShardError(f"{self.path}: sample {at['key']} cannot be decoded: {error}") from None
        images = tuple(bytes(content) for content in contents[2:])
        got = (tokens.shape[1] - len(images), len(images))
        if got != (at["text_tokens"], at["images"]):
            raise ShardError(
                f"{self.path}: sample {at['key']} has {got[0]} text tokens and {got[1]} images, its index says "
                f"{at['text_tokens']} and {at['images']}"
            )
        return Sample(key=at["key"], metadata=metadata, ids=tokens[0], labels=tokens[1], images=images)

    @staticmethod
    def _check_size(path: Path, wanted: int) -> None:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); rebuild to write it anew") from None
        if size != wanted:
            raise ShardError(f"{path}: has {size} bytes, the manifest says {wanted}; it was cut or swapped")

    def _row(self, row: int) -> dict[str, Any]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"{self.path}: no sample {row}; it has {len(self)}")
        try:
            return index_row(self.index, row % len(self))
        except (ValueError, pa.ArrowException) as error:
            raise ShardError(f"{self.path}: its index {self.info.index} is damaged in row {row}: {error}") from None

    def _located(self, at: Mapping[str, Any]) -> tuple[memoryview, list[memoryview]]:
        region = memoryview(self._bytes)[at["offset"] : at["offset"] + at["size"]]
        if len(region) != at["size"] or xxhash.xxh3_64_intdigest(region) != at["checksum"]:
            raise ShardError(f"{self.path}: sample {at['key']} is damaged: its bytes do not match the index's checksum")
        try:
            return region, members(at["key"], region, at["member_offsets"], at["member_sizes"])
        except ValueError as error:
            raise ShardError(f"{self.path}: sample {at['key']} is damaged: {error}") from None


class Build:
    """A finished build: its manifest, and the shards of each dataset and split."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def shards(self, *, dataset: str | None = None, split: str | None = None) -> Iterator[tuple[str, str, Shard]]:
        """(dataset, split, shard), in the manifest's order. Raises ShardError for an unknown dataset."""
        if dataset is not None and dataset not in self.manifest.shards:
            raise ShardError(f"{self.path}: no dataset {dataset!r}; it has {', '.join(self.manifest.shards)}")
        for name, splits in self.manifest.shards.items():
            if dataset in (None, name):
                for split_name, shards in splits.items():
                    if split in (None, split_name):
                        for info in shards:
                            yield name, split_name, Shard(self.path, info)


def open_build(path: str | Path) -> Build:
    """Raises ShardError if there is no finished build of a version this program reads."""
    return Build(Path(path), read_manifest(Path(path)))
