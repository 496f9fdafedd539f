"""Which record is being read, noted before the work on it, and records that are left out since processes died at them.

Rules: a number names a record: of its file among the dataset's annotations, of the array in the file, and in that
array. A record that is left out is not parsed, where its container allows that, and comes as an UnreadableRecord. Code
that reads containers asks `watched_records` and works the same where nobody watches.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from preprocess.adapters.parsing.unreadable import UnreadableRecord

_NUMBER_BITS, _ARRAY_BITS, _FILE_BITS = 36, 6, 21
_OUTSIDE = (1 << _NUMBER_BITS) - 1
"""In the place of a record's number: the file is being opened, or was read to its end"""


class WatchedItem(NamedTuple):
    """What a number means. record: None outside of the records. is_block: also those after it."""

    file: int
    record: int | None
    is_block: bool


class RecordWatch:
    """Watches the reading of a dataset's files. note: gets a number before each step.

    left_out: number -> the detail of the reject. is_careful: processes died, so records are parsed one by one.
    """

    def __init__(
        self,
        files: Sequence[Path],
        note: Callable[[int], None],
        left_out: Mapping[int, str],
        *,
        is_careful: bool,
    ) -> None:
        self.note, self.left_out, self.is_careful = note, left_out, is_careful
        self._files = {path: index for index, path in enumerate(files[: 1 << _FILE_BITS])}

    def first_item(self, path: Path, keys: Sequence[str]) -> int | None:
        """The number of the first record of an array in a file; None for a file that is not the dataset's."""
        index = self._files.get(path)
        if index is None:
            return None
        array = zlib.crc32(".".join(keys).encode()) % (1 << _ARRAY_BITS) if keys else 0
        return (index << _ARRAY_BITS | array) << _NUMBER_BITS


class WatchedRecords:
    """The records of one array of a file, or of a file."""

    def __init__(self, watch: RecordWatch | None, first_item: int | None) -> None:
        self.is_careful = watch is not None and watch.is_careful
        self._note = _unnoted if watch is None or first_item is None else watch.note
        self._left_out = {} if watch is None or first_item is None else watch.left_out
        self._first = first_item or 0

    def reading(self, number: int) -> UnreadableRecord | None:
        """Call it before the record is parsed. What comes in its place if it is left out."""
        item = self._first + number
        self._note(item)
        return _unreadable(self._left_out[item]) if item in self._left_out else None

    def reading_from(self, number: int) -> UnreadableRecord | None:
        """Call it before records from a number on are parsed together. What comes in the place of each."""
        item = -2 - (self._first + number)
        self._note(item)
        return _unreadable(self._left_out[item]) if item in self._left_out else None

    def ended(self) -> None:
        """Call it when all records are read."""
        self._note(self._first | _OUTSIDE)


def watched_records(path: Path, *keys: str) -> WatchedRecords:
    """The watch over the array at `keys` of a file, or over a file's records."""
    watch = _WATCH.get()
    return WatchedRecords(watch, None if watch is None else watch.first_item(path, keys))


def opening(path: Path) -> None:
    """Note that a file is being opened."""
    watched_records(path).ended()


@contextmanager
def watching(watch: RecordWatch) -> Iterator[None]:
    """Within it, what this process reads is watched."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


def watched_item(number: int) -> WatchedItem:
    """What a noted number means."""
    is_block = number < 0
    item = -2 - number if is_block else number
    record = item & _OUTSIDE
    file = item >> _NUMBER_BITS + _ARRAY_BITS
    return WatchedItem(file, None if record == _OUTSIDE else record, is_block)


_WATCH: ContextVar[RecordWatch | None] = ContextVar("record_watch", default=None)


def _unnoted(item: int) -> None:
    """Where nobody watches."""


def _unreadable(detail: str) -> UnreadableRecord:
    return UnreadableRecord(reason="worker_died", detail=detail)
