"""The records of a part of an annotation file, which record_cuts.py has cut.

Rule: the same records as when the file is read whole, or a DataError: the elements of an array are parsed and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any, BinaryIO

from preprocess.adapters.base import FilePart
from preprocess.adapters.parsing.exact_json import DEEP, loads
from preprocess.adapters.parsing.json_borders import element_blocks
from preprocess.adapters.parsing.record_tables import table_records
from preprocess.adapters.parsing.record_tars import tar_records
from preprocess.adapters.parsing.record_text import lines_of
from preprocess.containers.remote_file import expect_end
from preprocess.errors import DataError

_SPACE = b" \t\r\n"


def part_records(
    part: FilePart, keys: Container[str], ignored: Callable[[str, int], None] = lambda name, rows: None
) -> Iterator[Any]:
    """The records, as they come when the file is read whole. Raises DataError if they are not those that were cut.

    keys, ignored: as `record_files.read_records` takes them.
    """
    match part.form:
        case "array":
            records = _elements(part)
        case "lines":
            records = _lines(part)
        case "a tar":
            records = tar_records(part.path, part.start, part.end)
        case _:
            records = table_records(part.path, part.form, keys, ignored, range(part.start, part.end))
    count = 0
    for record in records:
        count += 1
        yield record
    if count != part.count:
        raise _changed(part)


def _elements(part: FilePart) -> Iterator[Any]:
    with _opened(part, part.end) as file:
        is_last = file.read(1) == b"]"
    with _opened(part, part.start) as file:
        left = part.end - part.start
        for block, deepest in element_blocks(file, left):
            left -= len(block)
            text = block.strip(_SPACE)
            has_comma = text.endswith(b",")
            if has_comma == (is_last and not left):
                raise _changed(part)
            try:
                records = loads(b"[%b]" % (text[:-1] if has_comma else text), shallow=deepest < DEEP)
            except (ValueError, RecursionError):
                raise _changed(part) from None
            yield from records


def _lines(part: FilePart) -> Iterator[Any]:
    with _opened(part, part.start) as file:
        yield from lines_of(file, part.first_line, part.end - part.start)


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
