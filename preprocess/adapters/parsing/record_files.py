"""The records of a chat file: JSON lines, a JSON array, or Parquet.

Rule: memory holds a few records, never the file. For a line or row that cannot be read there is an UnreadableRecord; a
file that cannot be read raises DataError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.adapters.parsing.json_stream import array_items, first_character
from preprocess.errors import DataError

_BATCH_ROWS = 16  # rows may contain images
_NO_PYTHON_VALUE = (ValueError, OverflowError)  # bytes that are not UTF-8, times before year 1 or in nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableRecord:
    """A record that could not be parsed; `reason` is a name of REASONS."""

    reason: str
    detail: str


def read_records(path: Path, keys: Sequence[str]) -> Iterator[Any]:
    """Parsed records in file order; from Parquet, only the columns that are in `keys`. Raises DataError."""
    if path.suffix == ".parquet":
        return _parquet(path, keys)
    if path.suffix in (".jsonl", ".ndjson"):
        return _lines(path)
    match first_character(path):
        case "[":
            return array_items(path)
        case "{" if _first_line_is_whole(path):
            return _lines(path)
        case _:
            raise DataError(f"{path}: is neither a JSON array nor JSON lines; expected an array of records")


def _lines(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield _line(line.rstrip(b"\r\n"), number)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _line(line: bytes, number: int) -> Any:
    try:
        return json.loads(line.decode())
    except json.JSONDecodeError as error:
        return UnreadableRecord(reason="broken_json", detail=f"line {number}, column {error.pos + 1}: {error.msg}")
    except UnicodeDecodeError as error:
        return UnreadableRecord(reason="broken_json", detail=f"line {number}, byte {error.start + 1}: not UTF-8")
    except RecursionError:
        return UnreadableRecord(reason="broken_json", detail=f"line {number}, column 1: nested too deeply")
    except ValueError as error:  # an integer of more than 4300 digits
        return UnreadableRecord(reason="broken_json", detail=f"line {number}, column 1: {error}")


def _first_line_is_whole(path: Path) -> bool:
    first = next(_lines(path), None)
    return type(first) is dict


def _parquet(path: Path, keys: Sequence[str]) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in keys] or None
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                try:
                    parsed = batch.to_pylist()
                except _NO_PYTHON_VALUE:
                    parsed = [_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
                yield from parsed
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return UnreadableRecord(reason="bad_text", detail=f"a column contains text that is not UTF-8 ({error.reason})")
    except _NO_PYTHON_VALUE as error:
        return UnreadableRecord(reason="wrong_type", detail=f"a column contains a value that cannot be used ({error})")
