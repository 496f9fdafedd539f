"""Cut annotation files into parts: neighbouring records that a task can read alone (record_parts.py).

    a JSON array                  where an element begins
    JSON lines                    at line breaks
    Parquet, an Arrow file        between row groups, or record batches
    a tar                         between samples, if the members of each follow each other

Rules: where a file is cut depends on its bytes alone, never on the number of workers, so the parts of a file are always
the same. A file that is not plainly sound (unsound brackets, an array that begins with a number, compressed text, a
record of extreme length) is not cut: then it is read whole, and its errors are those of reading it whole.
"""

from __future__ import annotations

import codecs
from itertools import pairwise
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import BinaryIO, Literal

import numpy as np

from preprocess.adapters.base import FilePart, PartForm
from preprocess.adapters.parsing.json_borders import ElementBorders, Places, windows
from preprocess.adapters.parsing.record_files import json_form
from preprocess.adapters.parsing.record_tars import sample_and_extension
from preprocess.adapters.parsing.record_text import MAX_RECORD_BYTES, kind_of
from preprocess.containers import marks
from preprocess.containers.table_damage import damage_named
from preprocess.containers.tables import sizes_of_pieces
from preprocess.containers.tar import member_key, tar_members

PART_BYTES = 32 << 20
"""A part has about this many bytes; a change moves all cuts, but no record."""

TAR_SAMPLES = 8192
"""Samples of a part of a tar, whose images are not read."""

_WINDOW = 1 << 20
_SPACE = b" \t\r\n"
_LAST_SPACE = 0x20
"""A line that begins with a larger byte is not blank."""


def least_bytes() -> int:
    """A smaller file is not cut."""
    return PART_BYTES * 3 // 2


def cut(path: Path) -> list[FilePart] | None:
    """The parts of a file, in order; None if it must be read whole. Raises DataError for a file that is not read."""
    if path.is_dir() or path.stat().st_size < least_bytes():
        return None
    kind = kind_of(path)
    if kind in ("Parquet", "an Arrow file"):
        return _table_parts(path, kind)
    if kind == "a tar":
        return _tar_parts(path)
    if kind != "text":
        return None
    with path.open("rb") as file:
        if marks.compression(file.read(marks.HEAD_BYTES)):
            return None
        file.seek(0)
        match json_form(path):
            case "array":
                return _array_parts(path, file)
            case "lines":
                return _line_parts(path, file)
    return None


def _array_parts(path: Path, file: BinaryIO) -> list[FilePart] | None:
    size = path.stat().st_size
    borders = ElementBorders(1)
    cutter = _Cutter()
    offset = previous = 0
    for window in windows(file):
        starts = borders.starts(window)
        if not offset and not _opens_array(window, starts):
            return None
        if len(starts):
            starts += offset
            if int(np.diff(starts, prepend=previous).max()) > MAX_RECORD_BYTES:
                return None
            previous = int(starts[-1])
            cutter.add(starts)
        offset += len(window)
    if borders.closings != 1 or borders.depth or borders.in_text or size - previous > MAX_RECORD_BYTES:
        return None
    closing = _closing_bracket(file, size)
    return None if closing is None else cutter.parts(path, "array", closing)


def _opens_array(window: bytes, starts: Places) -> bool:
    """Whether the file begins with a bracket and an element, with only white space before each."""
    if not len(starts):
        return False
    before = window[: int(starts[0])].removeprefix(codecs.BOM_UTF8).strip(_SPACE)
    return before == b"["


def _closing_bracket(file: BinaryIO, size: int) -> int | None:
    """Where the last bracket is, if only white space follows."""
    start = max(size - _WINDOW, 0)
    file.seek(start)
    tail = file.read().rstrip(_SPACE)
    return start + len(tail) - 1 if tail.endswith(b"]") else None


def _line_parts(path: Path, file: BinaryIO) -> list[FilePart] | None:
    cutter = _Cutter()
    offset = line = 0
    rest = b""
    while window := file.read(_WINDOW):
        end = window.rfind(b"\n") + 1
        if not end:
            rest += window
            if len(rest) > MAX_RECORD_BYTES // 2:
                return None
            continue
        whole, rest = rest + window[:end], window[end:]
        line = _count_lines(cutter, whole, offset, line)
        offset += len(whole)
    if rest:
        _count_lines(cutter, rest, offset, line)
    return cutter.parts(path, "lines", offset + len(rest))


def _count_lines(cutter: _Cutter, text: bytes, offset: int, line: int) -> int:
    """Add whole lines of the file to the cutter. Returns the number of the next line."""
    data = np.frombuffer(text, np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data == 0x0A) + 1])
    if starts[-1] == len(text):
        starts = starts[:-1]
    is_record = np.ones(len(starts), np.bool_)
    ends = np.append(starts[1:], len(text))
    for index in np.flatnonzero(data[starts] <= _LAST_SPACE).tolist():
        is_record[index] = bool(text[starts[index] : ends[index]].strip())
    if not line and not offset and not text[: ends[0]].removeprefix(codecs.BOM_UTF8).strip():
        is_record[0] = False
    records = np.flatnonzero(is_record)
    cutter.add(starts[records] + offset, records + line)
    return line + len(starts)


def _tar_parts(path: Path) -> list[FilePart] | None:
    """A sample whose members are apart, with other samples between them, cannot be cut off."""
    cuts: list[tuple[int, int]] = []
    names: set[str] = set()
    previous: str | None = None
    end = 0
    for info in tar_members(path):
        sample, _ = sample_and_extension(member_key(info.name))
        if sample != previous:
            if sample in names:
                return None
            if len(names) % TAR_SAMPLES == 0:
                cuts.append((info.offset, len(names)))
            names.add(sample)
            previous = sample
        end = info.offset_data + (-(-info.size // BLOCKSIZE) * BLOCKSIZE if info.isreg() else 0)
    return _parts(path, "a tar", [*((start, record, 0) for start, record in cuts), (end, len(names), 0)])


def _table_parts(path: Path, form: Literal["Parquet", "an Arrow file"]) -> list[FilePart] | None:
    borders = [(0, 0, 0)]
    count = size = 0
    with damage_named(path, form):
        pieces = sizes_of_pieces(path, form)
    for index, (rows, size_bytes) in enumerate(pieces, 1):
        count += rows
        size += size_bytes
        if size >= PART_BYTES or index == len(pieces):
            borders.append((index, count, 0))
            size = 0
    return _parts(path, form, borders)


class _Cutter:
    """Cuts at the first record at or after each multiple of PART_BYTES."""

    def __init__(self) -> None:
        self.count = 0
        self.cuts: list[tuple[int, int, int]] = []
        """Byte, record and line of each cut"""
        self._next = 0

    def add(self, starts: Places, numbers: Places | None = None) -> None:
        """The next records: the bytes where they begin and the numbers of their lines."""
        index = 0
        while (index := index + int(np.searchsorted(starts[index:], self._next))) < len(starts):
            start = int(starts[index])
            self.cuts.append((start, self.count + index, 0 if numbers is None else int(numbers[index])))
            self._next = (start // PART_BYTES + 1) * PART_BYTES
        self.count += len(starts)

    def parts(self, path: Path, form: Literal["array", "lines"], end: int) -> list[FilePart] | None:
        """The parts; the last one ends before byte `end`. None if there is only one."""
        return _parts(path, form, [*self.cuts, (end, self.count, 0)])


def _parts(path: Path, form: PartForm, borders: list[tuple[int, int, int]]) -> list[FilePart] | None:
    """borders: byte, record and line of each cut, and of the end of the records."""
    parts = [
        FilePart(
            path=path,
            form=form,
            start=start,
            end=stop,
            first_record=record,
            first_line=line,
            count=next_record - record,
        )
        for (start, record, line), (stop, next_record, _) in pairwise(borders)
    ]
    return parts if len(parts) > 1 else None
