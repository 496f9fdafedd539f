"""The records of a part of an annotation file, which record_cuts.py has cut.

Rule: the same records as when the file is read whole, or a DataError: the elements of an array are parsed and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from itertools import pairwise
from typing import Any, BinaryIO

from preprocess.adapters.base import FilePart
from preprocess.adapters.parsing.exact_json import DEEP, loads
from preprocess.adapters.parsing.json_borders import ElementBorders, element_blocks
from preprocess.adapters.parsing.record_tables import table_records
from preprocess.adapters.parsing.record_tars import tar_records
from preprocess.adapters.parsing.record_text import lines_of
from preprocess.adapters.parsing.record_watch import opening, watched_records
from preprocess.containers.remote_file import expect_end
from preprocess.errors import DataError

_SPACE = b" \t\r\n"


def part_records(
    part: FilePart, keys: Container[str], ignored: Callable[[str, int], None] = lambda name, rows: None
) -> Iterator[Any]:
    """The records, as they come when the file is read whole. Raises DataError if they are not those that were cut.

    keys, ignored: as `record_files.read_records` takes them.
    """
    opening(part.path)
    match part.form:
        case "array":
            records = _elements(part)
        case "lines":
            records = _lines(part)
        case "a tar":
            records = tar_records(part.path, part.start, part.end, part.first_record)
        case _:
            pieces = range(part.start, part.end)
            records = table_records(part.path, part.form, keys, ignored, pieces, part.first_record)
    count = 0
    for record in records:
        count += 1
        yield record
    if count != part.count:
        raise _changed(part)


def _elements(part: FilePart) -> Iterator[Any]:
    with _opened(part, part.end) as file:
        is_last = file.read(1) == b"]"
    watch = watched_records(part.path)
    number = part.first_record
    with _opened(part, part.start) as file:
        left = part.end - part.start
        for block, deepest in element_blocks(file, left):
            for text in _one_by_one(block) if watch.is_careful else (block,):
                left -= len(text)
                instead = watch.reading(number) if watch.is_careful else watch.reading_from(number)
                records = [instead] if instead else _parsed(part, text, deepest, is_last=is_last and not left)
                for record in records:
                    watch.reading(number)
                    number += 1
                    yield record
    watch.ended()


def _parsed(part: FilePart, text: bytes, deepest: int, *, is_last: bool) -> list[Any]:
    """The elements of a text. is_last: it ends with the array's last element, after which there is no comma."""
    stripped = text.strip(_SPACE)
    has_comma = stripped.endswith(b",")
    if has_comma == is_last:
        raise _changed(part)
    try:
        elements: list[Any] = loads(b"[%b]" % (stripped[:-1] if has_comma else stripped), shallow=deepest < DEEP)
    except (ValueError, RecursionError):
        raise _changed(part) from None
    return elements


def _one_by_one(block: bytes) -> Iterator[bytes]:
    """The elements of a block, each with what follows it."""
    starts = ElementBorders(0).starts(block).tolist()
    for start, end in pairwise((0, *starts[1:], len(block))):
        yield block[start:end]


def _lines(part: FilePart) -> Iterator[Any]:
    with _opened(part, part.start) as file:
        watch = watched_records(part.path)
        yield from lines_of(file, watch, part.first_line, part.end - part.start, part.first_record)


def _opened(part: FilePart, offset: int) -> BinaryIO:
    file = part.path.open("rb")
    expect_end(file, part.end + 1)
    file.seek(offset)
    return file


def _changed(part: FilePart) -> DataError:
    return DataError(
        f"{part.path}: records {part.first_record} to {part.first_record + part.count - 1} are not as they were when "
        "the file was cut; run the same command again"
    )
