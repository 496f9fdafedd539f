"""The rows of Parquet and Arrow files, a few at a time.

Rules: memory holds a few rows, however large a row group or a record batch is, and of Parquet a page of each column:
pyarrow writes pages of 1,024 rows, or of 1 MB if that is more. Arrow files are checked before they are read: a wrong
offset would crash the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from preprocess.containers import marks
from preprocess.containers.remote_path import is_remote
from preprocess.errors import DataError

_BATCH_ROWS = 16  # rows may contain images
_BUFFER_BYTES = 1 << 20
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

Choose = Callable[[Any], list[str] | None]
"""From the schema, the columns to read; None: all."""


def sizes_of_pieces(path: Path, kind: Literal["Parquet", "an Arrow file"]) -> list[tuple[int, int]]:
    """Rows and bytes of each row group or record batch. Raises as `parquet_batches`."""
    import pyarrow

    if kind == "Parquet":
        with parquet_file(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            _check_rows(path, sum(group.num_rows for group in groups), file.metadata.num_rows)
            return [(group.num_rows, group.total_byte_size) for group in groups]
    with _arrow_source(path) as source:
        reader = pyarrow.ipc.open_file(source)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        return [(batch.num_rows, batch.nbytes) for batch in batches]


class BadRow(NamedTuple):
    """In the place of a batch of one row, which must not be read."""

    error: str


def parquet_file(path: Path) -> Any:
    """The file, opened. Pages that have a checksum are compared with it."""
    import pyarrow.parquet

    # Row groups can be gigabytes: no read-ahead of whole column chunks.
    source: Any = path.open("rb") if is_remote(path) else path
    return pyarrow.parquet.ParquetFile(
        source, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
    )


def parquet_batches(path: Path, choose: Choose, groups: range | None = None, rows: int | None = None) -> Iterator[Any]:
    """Batches of a few rows, of all row groups or of some.

    Raises OSError, or what `damage_named` turns into a DataError, if it cannot be read; DataError if it has lost rows.

    rows: in a batch, where columns without images are chosen.
    """
    with parquet_file(path) as file:
        numbers = list(range(file.num_row_groups) if groups is None else groups)
        expected = sum(file.metadata.row_group(number).num_rows for number in numbers)
        if groups is None:
            _check_rows(path, expected, file.metadata.num_rows)
        num_rows = 0
        for batch in file.iter_batches(rows or _BATCH_ROWS, row_groups=numbers, columns=choose(file.schema_arrow)):
            num_rows += batch.num_rows
            yield batch
        _check_rows(path, num_rows, expected)


def arrow_batches(path: Path, choose: Choose, numbers: range | None = None) -> Iterator[Any]:
    """Batches of a few rows, and BadRows, of an Arrow file or stream. Raises as `parquet_batches`, and DataError.

    numbers: of a file, the record batches to read.
    """
    import pyarrow

    with path.open("rb") as file:
        is_file = file.read(len(marks.ARROW_FILE)) == marks.ARROW_FILE
    with _arrow_source(path) as source:
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in numbers or range(reader.num_record_batches))
        else:
            _check_end(path)
            reader = pyarrow.ipc.open_stream(source)
            batches = iter(reader)
        columns = choose(reader.schema)
        for batch in batches:
            chosen = batch if columns is None else batch.select(columns)
            for start in range(0, chosen.num_rows, _BATCH_ROWS):
                yield from _checked(chosen.slice(start, _BATCH_ROWS))


def _arrow_source(path: Path) -> Any:
    """The file, mapped into memory; behind a URL its record batches are read whole."""
    import pyarrow

    return pyarrow.PythonFile(path.open("rb"), "r") if is_remote(path) else pyarrow.memory_map(os.fspath(path))


def _check_rows(path: Path, num_rows: int, expected: int) -> None:
    if num_rows != expected:
        raise DataError(
            f"{path}: has {num_rows} rows, but its metadata says {expected}: it is damaged; download or write it again"
        )


def _checked(batch: Any) -> Iterator[Any]:
    """The batch if its offsets and texts are sound; else row by row."""
    import pyarrow

    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if batch.num_rows == 1:
            yield BadRow(str(error))
            return
        for index in range(batch.num_rows):
            yield from _checked(batch.slice(index, 1))
    else:
        yield batch


def _check_end(path: Path) -> None:
    """A stream that is cut off between two record batches would read as a shorter one."""
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - len(_END_OF_STREAM), 0))
        if file.read() != _END_OF_STREAM:
            raise DataError(
                f"{path}: the Arrow stream has no end mark: it is cut off, or its writer was not closed; download or "
                "save it again"
            )
