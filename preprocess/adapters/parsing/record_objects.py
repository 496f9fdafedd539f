"""The records of a file that is one JSON object.

    {"id", "messages": ...}                  one record, as in a folder with a file for each
    {"version": 1, "data": [{...}, {...}]}   the records are the only array
    {"a17": {...}, "a18": {...}}             each value is a record, and its key is the `id` if it has none itself

Rule: an object of any other form raises a DataError that names its keys. Only a single record is kept in memory.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from preprocess.adapters.parsing.fields import printable
from preprocess.adapters.parsing.json_stream import array_items, object_items, outline
from preprocess.adapters.parsing.record_text import MAX_RECORD_BYTES, open_text, parsed_line
from preprocess.adapters.parsing.record_watch import watched_records
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.errors import DataError

_SHOWN_KEYS = 10


def object_records(path: Path, keys: Container[str]) -> Iterator[Any]:
    """The records; keys: what the adapter reads, one of which a single record has. Raises DataError."""
    first_keys: list[str] = []
    arrays: list[str] = []
    num_objects = num_members = 0
    for key, opening, _ in outline(path):
        if key in keys:
            return iter([_whole(path)])
        num_members += 1
        num_objects += opening == "{"
        if opening == "[" and len(arrays) < 2:
            arrays.append(key)
        if len(first_keys) < _SHOWN_KEYS:
            first_keys.append(key)
    if num_members and num_objects == num_members:
        return _keyed(path)
    if len(arrays) == 1:
        return array_items(path, arrays[0])
    raise DataError(
        f"{path}: is one JSON object with the keys {printable(', '.join(first_keys)) or '(none)'}; expected a JSON "
        "array, JSON lines, an object with one array of records, or an object of records by their ids"
    )


def _keyed(path: Path) -> Iterator[Any]:
    for key, record in object_items(path):
        yield replace(record, id=key) if isinstance(record, UnreadableRecord) else {"id": key, **record}


def _whole(path: Path) -> Any:
    if instead := watched_records(path).reading(0):
        return instead
    with open_text(path) as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise DataError(f"{path}: is one JSON object of more than {MAX_RECORD_BYTES} bytes; expected JSON lines")
    record = parsed_line(data.removeprefix(b"\xef\xbb\xbf"), "the file")
    if isinstance(record, UnreadableRecord):
        raise DataError(f"{path}: broken JSON: {record.detail}")
    return record
