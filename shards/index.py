"""The index beside every shard: an Arrow IPC file with one row a sample, memory-mapped, never loaded.

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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

# All but the groups: to check one row of a list of text, pyarrow checks the whole column.
_LOCATION = [name for name in SCHEMA if name != "groups"]


@dataclass(slots=True)
class IndexRows:
    """The index of a shard that is being written, column by column."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SCHEMA})

    def add(self, **row: Any) -> None:
        for name, values in self.columns.items():
            values.append(row[name])

    def __len__(self) -> int:
        return len(self.columns["key"])

    def write(self, path: Path) -> None:
        """Uncompressed, so that a reader can map it."""
        import polars as pl

        table = pa.table({name: pa.array(self.columns[name], kind) for name, kind in SCHEMA.items()})
        frame = pl.DataFrame(table)
        frame.write_ipc(path, compression="uncompressed", compat_level=pl.CompatLevel.oldest())


def open_index(path: Path) -> pa.Table:
    """The mapped table. Raises ShardError if it is missing, damaged, or has other columns."""
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        table.validate()
        got = list(zip(table.schema.names, table.schema.types, strict=True))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ShardError(f"{path}: the index cannot be read ({error})") from None
    if got != list(SCHEMA.items()):
        found = ", ".join(f"{name} {kind}" for name, kind in got)
        wanted = ", ".join(f"{name} {kind}" for name, kind in SCHEMA.items())
        raise ShardError(f"{path}: the index has columns {found}; wanted {wanted}")
    return table


def index_row(table: pa.Table, row: int) -> dict[str, Any]:
    """What the index says of a sample, without its groups. Raises ValueError where damaged bytes point nowhere."""
    one = table.select(_LOCATION).slice(row, 1)
    one.validate(full=True)  # pyarrow itself follows offsets wherever they lead
    found: dict[str, Any] = one.to_pylist()[0]
    if None in found.values():
        raise ValueError(f"row {row} has an empty field")
    return found
