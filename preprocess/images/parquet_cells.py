"""Images in a Parquet file behind a URL: their keys without their bytes, and the bytes of single cells.

Rules: no copy of the file is made. The index is made from the columns of names alone, where there are some. A cell is
read with the batches around it, since a Parquet file has no place from which one cell could be read; recent batches
stay in memory, up to a limit, and images come about in the order of their rows, so most of the file is requested once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.containers.image_columns import image_cells, image_columns, readable_cells, texts
from preprocess.containers.remote_requests import changed
from preprocess.containers.table_damage import damage_named
from preprocess.containers.tables import parquet_batches, parquet_file
from preprocess.errors import DataError
from preprocess.images.base64_json import decode_base64
from preprocess.images.index import PROBLEMS, ArchiveIndexBuilder, Packing
from preprocess.images.tables import has_base64, is_row_key, key_column

_NAMES_AT_ONCE = 4096
KEPT_BYTES = 64 << 20
"""Of batches that were read, for each column"""


def index_cells(path: Path, index: ArchiveIndexBuilder) -> None:
    """Add the keys of all images; the offset of an entry is its row, its size the place in a list.

    Raises DataError for a damaged file.
    """
    with damage_named(path, "Parquet"):
        with parquet_file(path) as file:
            schema, leaves = file.schema_arrow, [file.schema.column(number).path for number in range(len(file.schema))]
        if has_base64(schema):
            keys, column = key_column(path, schema), schema.names.index("base64")
            batches = parquet_batches(path, lambda schema: [keys], rows=_NAMES_AT_ONCE)
            for row, key in enumerate(key for batch in batches for key in texts(batch.column(keys))):
                if key is not None:
                    index.add(str(key), row, 0, Packing.CELL_BASE64, column)
            return
        for name in image_columns(schema):
            leaf = next((leaf for leaf in leaves if leaf.startswith(f"{name}.") and leaf.endswith(".path")), None)
            for row, cell in enumerate(_cells(path, name, leaf)):
                for place, image in enumerate(cell if isinstance(cell, list) else [cell]):
                    _add(index, image, (row, name, place), schema.names.index(name))


def _add(index: ArchiveIndexBuilder, image: Any, where: tuple[int, str, int], column: int) -> None:
    if image is None:
        return
    row, name, place = where
    own = image.get("path") if isinstance(image, dict) else None
    # A path in the form of a row's key would hide that row.
    for key in (f"{row}/{name}/{place}", *([own] if own and not is_row_key(own) else [])):
        index.add(key, row, place, Packing.CELL, column)


def _cells(path: Path, name: str, leaf: str | None) -> Iterator[Any]:
    """The values of a column of images. leaf: the only part of it that is read; None: all."""
    rows = None if leaf is None else _NAMES_AT_ONCE
    for batch in parquet_batches(path, lambda schema: [leaf or name], rows=rows):
        yield from readable_cells(batch.column(name))


class ParquetCells:
    """The cells of a file. state: size and mark that it had when it was indexed. Threads may share it."""

    def __init__(self, path: Path, state: tuple[int, int]) -> None:
        self._path = path
        self._state = state
        self._columns: dict[int, _Column] = {}
        self._lock = threading.Lock()

    def read(self, row: int, place: int, column: int, packing: int) -> bytes:
        """The bytes of an image. Raises ValueError for a text that is not base64, OSError, and DataError for damage."""
        with self._lock, damage_named(self._path, "Parquet"):
            if column not in self._columns:
                status = self._path.stat()
                if (status.st_size, status.st_mtime_ns) != self._state:
                    raise changed(str(self._path))
                self._columns[column] = _Column(self._path, column)
            cells = self._columns[column].cell(row)
        if packing == Packing.CELL_BASE64:
            try:
                return decode_base64((texts(cells)[0] or "").encode())  # a lone surrogate is a ValueError
            except ValueError:
                raise ValueError(PROBLEMS[Packing.NOT_TEXT]) from None
        cell = image_cells(cells)[0]
        image = cell[place] if isinstance(cell, list) else cell
        data = image.get("bytes") if isinstance(image, dict) else image
        return bytes(data or b"")


class _Column:
    """One column, read forward by its own connection to the file."""

    def __init__(self, path: Path, column: int) -> None:
        self._path = path
        self._file = parquet_file(path)
        self._name = self._file.schema_arrow.names[column]
        groups = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self._group = -1
        self._next = 0
        self._batches: Iterator[Any] = iter(())
        self._recent: OrderedDict[int, Any] = OrderedDict()

    def cell(self, row: int) -> pa.Array:
        """The column's value in a row, as an array of one."""
        while True:
            for start, values in self._recent.items():
                if start <= row < start + len(values):
                    return values.slice(row - start, 1)
            self._read_on(row)

    def _read_on(self, row: int) -> None:
        """Read the next batch, or begin with the row group of a row."""
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        if group != self._group or row < self._next:
            self._group, self._next = group, int(self._starts[group])
            self._batches = self._file.iter_batches(16, row_groups=[group], columns=[self._name])
        batch = next(self._batches, None)
        if batch is None:
            raise DataError(f"{self._path}: row group {group} has lost rows: it is damaged; write it again")
        values = batch.column(self._name)
        self._recent[self._next] = values
        self._recent.move_to_end(self._next)
        self._next += len(values)
        while len(self._recent) > 1 and sum(values.nbytes for values in self._recent.values()) > KEPT_BYTES:
            self._recent.popitem(last=False)
