"""The records of a table: Parquet, or Arrow as `datasets` saves it.

Rule: a row with a value that Python cannot have is one UnreadableRecord.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from preprocess.adapters.parsing.record_text import Kind
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers.tables import BadRow, arrow_batches, parquet_batches
from preprocess.errors import DataError

_NO_PYTHON_VALUE = (ValueError, OverflowError)  # bytes that are not UTF-8, times before year 1 or in nanoseconds


def table_records(path: Path, kind: Kind, keys: Container[str]) -> Iterator[Any]:
    """The rows as dicts, with the columns that are in `keys`, or with all if none is. Raises DataError."""
    import pyarrow

    batches = parquet_batches if kind == "Parquet" else arrow_batches
    try:
        for batch in batches(path, lambda schema: [name for name in schema.names if name in keys] or None):
            yield from _rows(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as {kind.removeprefix('an ')} ({error})") from None


def _rows(batch: Any) -> list[Any]:
    if isinstance(batch, BadRow):
        reason = "bad_text" if "UTF8" in batch.error else "wrong_type"
        detail = f"a column contains a value that cannot be used ({batch.error})"
        return [UnreadableRecord(reason=reason, detail=detail)]
    try:
        rows: list[Any] = batch.to_pylist()
    except _NO_PYTHON_VALUE:
        rows = [_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    return rows


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return UnreadableRecord(reason="bad_text", detail=f"a column contains text that is not UTF-8 ({error.reason})")
    except _NO_PYTHON_VALUE as error:
        return UnreadableRecord(reason="wrong_type", detail=f"a column contains a value that cannot be used ({error})")
