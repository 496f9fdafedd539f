"""The records of a table: Parquet, or Arrow as `datasets` saves it.

Rules: a row with a value that Python cannot have is one UnreadableRecord. A table with a column of images that nobody
reads is a DataError: its records would be trained without them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from preprocess.adapters.parsing.record_text import Kind
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers.image_columns import image_cells, image_columns
from preprocess.containers.table_damage import damage_named
from preprocess.containers.tables import BadRow, arrow_batches, parquet_batches
from preprocess.errors import DataError

_NO_PYTHON_VALUE = (ValueError, OverflowError)  # bytes that are not UTF-8, times before year 1 or in nanoseconds


def table_records(
    path: Path,
    kind: Kind,
    keys: Container[str],
    ignored: Callable[[str, int], None] = lambda name, rows: None,
    pieces: range | None = None,
) -> Iterator[Any]:
    """The rows as dicts, with the columns that are in `keys`, or with all if none is. Raises DataError.

    ignored: gets the name of each column that is not read, and a number of rows that have it. pieces: the row groups
    or record batches to read; None: all.
    """
    batches = parquet_batches if kind == "Parquet" else arrow_batches
    unread: list[str] = []
    images: list[str] = []

    def choose(schema: Any) -> list[str] | None:
        images.extend(image_columns(schema))
        _refuse_unread_images(path, images, keys)
        read = [name for name in schema.names if name in keys]
        unread.extend(name for name in schema.names if read and name not in keys)
        return read or None

    try:
        with damage_named(path, kind):
            for batch in batches(path, choose, pieces):
                rows = _rows(batch, images)
                for name in unread:
                    ignored(name, len(rows))
                yield from rows
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


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
