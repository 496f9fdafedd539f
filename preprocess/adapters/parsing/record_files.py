"""The records of a file in any container, JSON, CSV, TSV, Parquet, Arrow or WebDataset tar, or of a folder of samples.

Rules: content decides what a file is, never its name; text may be compressed with gzip, bzip2, xz or zstd. Memory holds
a few records, never the file. For a line, row or sample that cannot be read there is an UnreadableRecord; a file that
cannot be read raises DataError.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, Literal

from preprocess.adapters.base import AnnotationFile, FilePart
from preprocess.adapters.parsing.json_stream import array_items, first_character
from preprocess.adapters.parsing.record_csv import csv_records
from preprocess.adapters.parsing.record_folders import folder_records
from preprocess.adapters.parsing.record_objects import object_records
from preprocess.adapters.parsing.record_parts import part_records
from preprocess.adapters.parsing.record_tables import table_records
from preprocess.adapters.parsing.record_tars import tar_records
from preprocess.adapters.parsing.record_text import kind_of, lines, open_text, parsed_line
from preprocess.adapters.parsing.record_watch import watched_records
from preprocess.errors import DataError

Form = Literal["array", "lines", "object", "other"]
_LINE_SUFFIXES = (".jsonl", ".ndjson")
_FIRST_LINE_BYTES = 1 << 24
"""How much of a line is read to see whether it is a whole record"""


def read_records(
    path: AnnotationFile, keys: Container[str], ignored: Callable[[str, int], None] = lambda name, rows: None
) -> Iterator[Any]:
    """Parsed records in file order, of a file or of a part of one. Raises DataError.

    keys: what the adapter reads: only these columns of Parquet or Arrow are; an object is one record if it has one of
    them; text that is not JSON is a table of text if it has one.
    ignored: gets the other columns of Parquet and Arrow, each with a number of rows.
    """
    if isinstance(path, FilePart):
        return part_records(path, keys, ignored)
    if path.is_dir():
        return folder_records(path)
    kind = kind_of(path)
    if kind == "a tar":
        return tar_records(path)
    if kind != "text":
        return table_records(path, kind, keys, ignored)
    match json_form(path):
        case "array":
            return array_items(path)
        case "lines":
            return lines(path)
        case "object":
            return object_records(path, keys)
        case _:
            return csv_records(path, keys)


def json_records(path: AnnotationFile) -> Iterator[Any]:
    """The records of a JSON array or of JSON lines, for adapters whose datasets have no other container."""
    if isinstance(path, FilePart):
        if path.form not in ("array", "lines"):
            raise DataError(f"{path.path}: is {path.form}; expected JSON")
        return part_records(path, ())
    return lines(path) if json_form(path) == "lines" else array_items(path)


def json_form(path: Path) -> Form:
    """How a JSON file holds its records. Raises DataError for other kinds of files."""
    names = [suffix.lower() for suffix in path.suffixes[-2:]]
    named_lines = any(suffix in _LINE_SUFFIXES for suffix in names)
    first = first_character(path)
    if first == "[":
        return "lines" if _is_lines_of_arrays(path) else "array"
    if named_lines:
        return "lines"
    if first != "{":
        return "other"
    return "lines" if _is_lines_of_objects(path) else "object"


def _is_lines_of_objects(path: Path) -> bool:
    """Whether the first line is a whole object and another line follows."""
    with open_text(path) as file:
        first, second = _next_line(file), _next_line(file)
    if not second:
        return False
    if watched_records(path).reading(0):  # as it will be left out, it is not parsed here
        return first.endswith(b"}")
    return type(parsed_line(first, "line 1")) is dict


def _is_lines_of_arrays(path: Path) -> bool:
    """Whether the first two lines are an array each: then the lines are the records, and each is a reject."""
    with open_text(path) as file:
        first, second = _next_line(file), _next_line(file)
    return second.startswith(b"[") and type(parsed_line(first, "line 1")) is list


def _next_line(file: Any) -> bytes:
    """The next line that is not blank, up to a limit, without white space and the byte order mark."""
    while line := file.readline(_FIRST_LINE_BYTES):
        if stripped := line.removeprefix(b"\xef\xbb\xbf").strip():
            return bytes(stripped)
    return b""
