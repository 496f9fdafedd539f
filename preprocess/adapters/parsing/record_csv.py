"""The records of a table of text, such as CSV and TSV: the first line names the columns, each other row is a record.

Rules: the separator is the one of tab, comma and semicolon that gives the most columns. A cell stays text: "3" does not
become a number. A row that is not like the header is one UnreadableRecord. Memory holds one row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from preprocess.adapters.parsing.fields import printable
from preprocess.adapters.parsing.record_text import MAX_RECORD_BYTES, open_text
from preprocess.adapters.parsing.record_watch import watched_records
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.errors import DataError

_MAX_HEADER_BYTES = 1 << 16
_MOST_SHOWN = 200
_UNNAMED = "unnamed"
"""The index that pandas writes has a column without a name"""


def csv_records(path: Path, keys: Container[str]) -> Iterator[Any]:
    """The rows as dicts. keys: what the adapter reads, of which a column has to be one. Raises DataError."""
    separator, columns = _header(path)
    if len(columns) < 2:
        raise DataError(
            f"{path}: is neither a JSON array nor JSON lines, nor CSV or TSV with names of columns in its first line; "
            "expected one of them"
        )
    shown = printable(", ".join(columns)[:_MOST_SHOWN])
    if len({*columns}) < len(columns):
        raise DataError(f"{path}: its first line names a column twice: {shown}; expected a name for each")
    if not any(name in keys for name in columns):
        raise DataError(
            f"{path}: is a table of text with the columns {shown}, none of which is read; name the adapter's keys in "
            "the first line, or map your names in `fields`"
        )
    return _rows(path, separator, columns)


def _header(path: Path) -> tuple[str, list[str]]:
    """The separator, and the names in the first line."""
    with open_text(path) as file:
        line = file.readline(_MAX_HEADER_BYTES).decode("utf-8-sig", "surrogateescape")
    found = {separator: _cells(line, separator) for separator in "\t,;"}
    separator = max(found, key=lambda name: len(found[name]))
    return separator, [name.strip() or _UNNAMED for name in found[separator]]


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(line, newline=""), delimiter=separator), [])
    except csv.Error:  # a file of another kind
        return []


def _rows(path: Path, separator: str, columns: list[str]) -> Iterator[Any]:
    # A base64 image is a long cell. The limit is one for the whole process; what else reads CSV here is this function.
    csv.field_size_limit(MAX_RECORD_BYTES)
    with io.TextIOWrapper(open_text(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        start = number = 0
        watch = watched_records(path)
        while True:
            try:
                instead = watch.reading(number)
                row = next(reader, None)
            except csv.Error as error:
                if "field limit" in str(error):
                    raise DataError(
                        f"{path}, line {start + 1}: a cell has more than {MAX_RECORD_BYTES} bytes; is a quotation mark "
                        "opened and not closed?"
                    ) from None
                if "unexpected end" in str(error):
                    raise DataError(
                        f"{path}, line {start + 1}: a quotation mark is opened and not closed; close it, or double it "
                        "within a text"
                    ) from None
                yield UnreadableRecord(reason="bad_value", detail=f"line {reader.line_num}: {error}")
                number += 1
                start = reader.line_num
                continue
            if row is None:
                watch.ended()
                return
            if start and row:
                yield instead or _record(row, columns, start + 1)
                number += 1
            start = reader.line_num


def _record(row: list[str], columns: list[str], line: int) -> Any:
    if len(row) == len(columns):
        return dict(zip(columns, row, strict=True))
    detail = f"line {line} has {len(row)} cells; expected {len(columns)}, one for each column"
    return UnreadableRecord(reason="bad_value", detail=detail)
