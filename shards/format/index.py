"""The index next to every shard: an Arrow IPC file with one entry for each sample, memory-mapped, never loaded.

Columns (FORMAT.md is normative):
    key               string
    offset, size      uint64      the sample's bytes in the tar, headers and padding included
    checksum          uint64      xxh3_64 over exactly those bytes
    text_tokens       uint32      tokens that are not image placeholders
    trained_tokens    uint32
    images            uint32
    groups            list<string>
    member_offsets    list<uint64>  where each member's content starts, counted from `offset`
    member_sizes      list<uint64>
    member_checksums  list<uint64>  xxh3_64 over each member's content
    tiles             list<uint32>  only in builds with tiles: of each image, the overview included
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.errors import ShardError

SCHEMA: Mapping[str, pa.DataType] = {
    "key": pa.large_string(),
    "offset": pa.uint64(),
    "size": pa.uint64(),
    "checksum": pa.uint64(),
    "text_tokens": pa.uint32(),
    "trained_tokens": pa.uint32(),
    "images": pa.uint32(),
    "groups": pa.large_list(pa.large_string()),
    "member_offsets": pa.large_list(pa.uint64()),
    "member_sizes": pa.large_list(pa.uint64()),
    "member_checksums": pa.large_list(pa.uint64()),
}

TILES = "tiles"
TILED_SCHEMA: Mapping[str, pa.DataType] = {**SCHEMA, TILES: pa.large_list(pa.uint32())}

_ARROW_SCHEMAS = {pa.schema(schema.items()) for schema in (SCHEMA, TILED_SCHEMA)}
_NUMBERS = ("offset", "size", "checksum", "text_tokens", "trained_tokens", "images")


@dataclass(slots=True)
class IndexWriter:
    """The index of a shard that is being written, column by column."""

    schema: Mapping[str, pa.DataType]
    columns: dict[str, list[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = {name: [] for name in self.schema}

    def add(self, **entry: Any) -> None:
        for name, values in self.columns.items():
            values.append(entry[name])

    def __len__(self) -> int:
        return len(self.columns["key"])

    def write(self, path: Path) -> None:
        """Uncompressed, so that a reader can map it."""
        import polars as pl

        table = pa.table({name: pa.array(self.columns[name], kind) for name, kind in self.schema.items()})
        frame = pl.DataFrame(table)
        frame.write_ipc(path, compression="uncompressed", compat_level=pl.CompatLevel.oldest())


class IndexEntry(NamedTuple):
    """Where a sample is in its shard and what it holds; offsets and sizes in bytes."""

    key: str
    offset: int
    size: int
    checksum: int
    text_tokens: int
    trained_tokens: int
    images: int
    member_offsets: list[int]
    member_sizes: list[int]
    tiles: list[int] | None
    """Of each image; None in builds without tiles"""


class ShardIndex:
    """A mapped index. An entry is read from its own few bytes, so the time for it does not grow with the index."""

    def __init__(self, table: pa.Table, buffer: Any = b"") -> None:
        """buffer: the whole mapped file. Raises ValueError or an Arrow error if a column has holes or does not fit."""
        table.validate()
        chunks = dict(zip(table.schema.names, map(_chunk, table.columns), strict=True))  # a lookup by name takes longer
        if any(chunk.null_count for chunk in chunks.values()):
            raise ValueError("a column has empty fields")
        self.table = table
        self.buffer = buffer
        numbers = {name: chunks[name].to_numpy() for name in _NUMBERS}
        self.text_tokens: npt.NDArray[np.uint32] = numbers["text_tokens"]
        self.images: npt.NDArray[np.uint32] = numbers["images"]
        # Of one element a memoryview makes Python's number faster than NumPy does.
        self._scalars = [column.data for column in numbers.values()]
        keys = chunks["key"]
        _, ends, text = keys.buffers()
        self._key_ends = (np.frombuffer(ends, np.int64)[: len(keys) + 1] if len(keys) else np.zeros(1, np.int64)).data
        self._key_text = memoryview(text if text is not None else b"")
        self._lists = [_lists_of(name, chunks[name]) for name in ("member_offsets", "member_sizes")]
        self._tiles = _lists_of(TILES, chunks[TILES]) if TILES in chunks else None

    @property
    def has_tiles(self) -> bool:
        return self._tiles is not None

    def tiles_of(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tiles of all images of each of these samples, int64 [n]; without tiles, its images.

        Raises ValueError where damaged bytes point nowhere.
        """
        if self._tiles is None:
            return self.images[numbers].astype(np.int64)
        ends, values = map(np.asarray, self._tiles)
        starts, counts = ends[numbers], ends[numbers + 1] - ends[numbers]
        if len(numbers) and (counts.min() < 0 or starts.min() < 0 or (starts + counts).max() > len(values)):
            raise ValueError("a list of tiles is outside its column")
        of_sample = np.repeat(np.arange(len(numbers)), counts)
        within = np.arange(len(of_sample)) - np.repeat(counts.cumsum() - counts, counts)
        sums = np.zeros(len(numbers), np.int64)
        np.add.at(sums, of_sample, values[starts[of_sample] + within])
        return sums

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def entry(self, number: int) -> IndexEntry:
        """What the index says of a sample, without its groups. Raises ValueError where damaged bytes point nowhere."""
        start, end = self._key_ends[number], self._key_ends[number + 1]
        if not 0 <= start <= end <= len(self._key_text):
            raise ValueError(f"the key of entry {number} is outside its column")
        key = bytes(self._key_text[start:end]).decode()
        offset, size, checksum, text_tokens, trained_tokens, images = [column[number] for column in self._scalars]
        starts, sizes = [_list_at(ends, values, number) for ends, values in self._lists]
        tiles = None if self._tiles is None else _list_at(*self._tiles, number)
        return IndexEntry(key, offset, size, checksum, text_tokens, trained_tokens, images, starts, sizes, tiles)

    def find(self, key: str) -> int | None:
        """The number of the entry with this key, or None. The column is searched as one text, without objects."""
        sought = key.encode()
        for match in re.finditer(b"(?=%b)" % re.escape(sought), self._key_text) if sought else ():
            start = match.start()  # keys follow each other without a border, so the text may also be amid two
            number = bisect_left(self._key_ends, start)
            if number < len(self) and self._key_ends[number : number + 2].tolist() == [start, start + len(sought)]:
                return number
        return None


def _chunk(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _lists_of(name: str, column: Any) -> tuple[memoryview, memoryview]:
    """Where each list ends in the values, after a 0, and the values of all."""
    if column.values.null_count:
        raise ValueError(f"{name} has empty fields")
    return column.offsets.to_numpy().data, column.values.to_numpy().data


def _list_at(ends: memoryview, values: memoryview, number: int) -> list[int]:
    start, end = ends[number], ends[number + 1]
    if not 0 <= start <= end <= len(values):
        raise ValueError(f"a list of entry {number} is outside its column")
    items: list[int] = values[start:end].tolist()
    return items


def open_index(path: Path) -> ShardIndex:
    """The mapped index. Raises ShardError if it is missing, damaged, or has other columns."""
    try:
        with pa.memory_map(str(path)) as source:
            buffer = source.read_buffer()
        table = pa.ipc.open_file(pa.BufferReader(buffer)).read_all()
        if table.schema in _ARROW_SCHEMAS:
            return ShardIndex(table, buffer)
        got = list(zip(table.schema.names, table.schema.types, strict=True))
        if got in ([*SCHEMA.items()], [*TILED_SCHEMA.items()]):  # of a writer that says which columns have no holes
            return ShardIndex(table, buffer)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ShardError(f"{path}: the index cannot be read ({error})") from None
    columns = ", ".join(f"{name} {kind}" for name, kind in got)
    expected = ", ".join(f"{name} {kind}" for name, kind in SCHEMA.items())
    raise ShardError(f"{path}: the index has columns {columns}; expected {expected}")
