"""The records of a table: Parquet, or Arrow as `datasets` saves it.

Rules: a row with a value that Python cannot have is one UnreadableRecord. A table with a column of images that nobody
reads is a DataError: its records would be trained without them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, Literal

from preprocess.adapters.parsing.record_text import Kind
from preprocess.adapters.parsing.record_watch import watched_records
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers.image_columns import image_cells, image_columns
from preprocess.containers.table_damage import damage_named
from preprocess.containers.tables import BadRow, Choose, arrow_batches, parquet_batches, sizes_of_pieces
from preprocess.errors import DataError

_NO_PYTHON_VALUE = (ValueError, OverflowError)  # bytes that are not UTF-8, times before year 1 or in nanoseconds


def table_records(
    path: Path,
    kind: Kind,
    keys: Container[str],
    ignored: Callable[[str, int], None] = lambda name, rows: None,
    pieces: range | None = None,
    first_record: int = 0,
) -> Iterator[Any]:
    """The rows as dicts, with the columns that are in `keys`, or with all if none is. Raises DataError.

    ignored: gets the name of each column that is not read, and a number of rows that have it. pieces: the row groups
    or record batches to read; None: all. first_record: the number of the first row.
    """
    unread: list[str] = []
    images: list[str] = []

    def choose(schema: Any) -> list[str] | None:
        images[:] = image_columns(schema)
        _refuse_unread_images(path, images, keys)
        read = [name for name in schema.names if name in keys]
        unread[:] = [name for name in schema.names if read and name not in keys]
        return read or None

    watch = watched_records(path)
    try:
        with damage_named(path, kind):
            number = first_record
            for rows in _row_lists(path, kind, choose, pieces, first_record, images):
                for name in unread:
                    ignored(name, len(rows))
                for row in rows:
                    yield watch.reading(number) or row
                    number += 1
        watch.ended()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _row_lists(
    path: Path, kind: Kind, choose: Choose, pieces: range | None, number: int, images: list[str]
) -> Iterator[list[Any]]:
    """The rows, some at a time. number: of the first."""
    watch = watched_records(path)
    batches_of = parquet_batches if kind == "Parquet" else arrow_batches
    match kind:
        case "Parquet" | "an Arrow file" if watch.is_careful:
            yield from _careful_rows(path, kind, choose, pieces, number, images)
            return
    batches = batches_of(path, choose, pieces)
    while True:
        instead = watch.reading_from(number)
        if instead is not None:
            raise DataError(f"{path}: record {number} and those after it: {instead.detail}")
        batch = next(batches, None)
        if batch is None:
            return
        rows = _rows(batch, images)
        yield rows
        number += len(rows)


def _careful_rows(
    path: Path,
    kind: Literal["Parquet", "an Arrow file"],
    choose: Choose,
    pieces: range | None,
    number: int,
    images: list[str],
) -> Iterator[list[Any]]:
    """The same after deaths: one row at a time. A batch that cannot be decoded ends its row group or record batch."""
    watch = watched_records(path)
    batches_of = parquet_batches if kind == "Parquet" else arrow_batches
    sizes = [num_rows for num_rows, _ in sizes_of_pieces(path, kind)]
    for piece in range(len(sizes)) if pieces is None else pieces:
        end = number + sizes[piece]
        batches = batches_of(path, choose, range(piece, piece + 1))
        while number < end:
            instead = watch.reading_from(number)
            batch = None if instead else next(batches, None)
            if batch is None:
                yield [instead] * (end - number) if instead else []
                break
            for index in range(1 if isinstance(batch, BadRow) else batch.num_rows):
                single = batch if isinstance(batch, BadRow) else batch.slice(index, 1)
                instead = watch.reading(number)
                yield [instead] if instead else _rows(single, images)
                number += 1
        number = end


def _refuse_unread_images(path: Path, images: list[str], keys: Container[str]) -> None:
    unread = [name for name in images if name not in keys]
    if unread:
        mapped = ", ".join(f"{name}: image_{number}" for number, name in enumerate(unread, 1))
        raise DataError(
            f"{path}: the columns {', '.join(unread)} hold images (or other bytes) and are not read; name them in the "
            f"order in which a record shows them, such as fields: {{{mapped}}}, or leave one out, such as keys: "
            f"{{{unread[0]}: ignore}}"
        )


def _rows(batch: Any, images: list[str]) -> list[Any]:
    if isinstance(batch, BadRow):
        reason = "bad_text" if "UTF8" in batch.error else "wrong_type"
        detail = f"a column contains a value that cannot be used ({batch.error})"
        return [UnreadableRecord(reason=reason, detail=detail)]
    try:
        return _values(batch, images)
    except _NO_PYTHON_VALUE:
        return [_row(batch.slice(index, 1), images) for index in range(batch.num_rows)]


def _row(batch: Any, images: list[str]) -> Any:
    try:
        return _values(batch, images)[0]
    except UnicodeDecodeError as error:
        return UnreadableRecord(reason="bad_text", detail=f"a column contains text that is not UTF-8 ({error.reason})")
    except _NO_PYTHON_VALUE as error:
        return UnreadableRecord(reason="wrong_type", detail=f"a column contains a value that cannot be used ({error})")


def _values(batch: Any, images: list[str]) -> list[Any]:
    """The rows as dicts. The bytes of images are memoryviews, since copies take longer than all else."""
    names = batch.schema.names
    columns = [
        image_cells(column) if name in images else column.to_pylist()
        for name, column in zip(names, batch.columns, strict=True)
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
