"""Pages of rejects.jsonl, found by byte offsets: no line is counted, nothing is loaded whole.

A reject is named by the offset of its line, which stays the same as long as the build does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from preprocess.conversation import REASONS
from preprocess.viewer.selection import BUDGET_S, PAGE
from shards import Build, ShardError
from shards.files import file_sha256

NAME = "rejects.jsonl"
_BLOCK = 1 << 16
_MAX_LINE = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRecord:
    """A line of rejects.jsonl. meaning: what its reason says. fault: why the line cannot be read."""

    offset: int
    dataset: str = ""
    reason: str = ""
    file: str = ""
    record: str = ""
    detail: str = ""
    fault: str = ""

    @property
    def meaning(self) -> str:
        return REASONS.get(self.reason, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectFilters:
    dataset: str = ""
    reason: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectPage:
    """start, end: the bytes [start, end) of the file that were scanned. is_cut: the time was used up before the end."""

    rejects: tuple[RejectedRecord, ...]
    start: int
    end: int
    total: int
    is_cut: bool


class Rejects:
    """The rejects of a build. Raises ShardError if the file is missing, or not the one that the manifest pins."""

    def __init__(self, build: Build) -> None:
        expected = build.manifest.files.get(NAME)
        if expected is None:
            raise ShardError(f"{build.store.location}: its manifest names no {NAME}; rebuild to write it again")
        self._path: Path = build.store.local(NAME, size=None, sha256=expected)
        try:
            digest = file_sha256(self._path)
        except OSError as error:
            raise ShardError(f"{self._path}: cannot be read ({error.strerror}); rebuild to write it again") from None
        if digest != expected:
            raise ShardError(
                f"{self._path}: sha256 is {digest[:12]}, the manifest says {expected[:12]}; it was edited or damaged; "
                "rebuild to write it again"
            )
        self.size = self._path.stat().st_size

    def at(self, offset: int) -> RejectedRecord:
        """The reject whose line starts at an offset. Raises IndexError if none does."""
        with _Lines(self._path) as lines:
            if not 0 <= offset < self.size or not lines.starts_at(offset):
                raise IndexError(f"no reject at byte {offset} of {NAME}; follow a link of the list of rejects")
            return _parsed(offset, next(lines.forward(offset)))

    def neighbours(self, filters: RejectFilters, offset: int) -> tuple[int | None, int | None]:
        """Offsets of the rejects before and after one that pass the filters; None if none is found in time."""
        before = self.page(filters, offset, backward=True, most=1).rejects
        after = self.page(filters, offset, most=2).rejects
        following = next((reject.offset for reject in after if reject.offset > offset), None)
        return before[0].offset if before else None, following

    def every(self, filters: RejectFilters) -> Iterator[RejectedRecord]:
        """All rejects that pass, in order, for a program that may take its time."""
        offset = 0
        with _Lines(self._path) as lines:
            for line in lines.forward(0):
                if _passes(record := _parsed(offset, line), filters):
                    yield record
                offset += len(line)

    def page(
        self,
        filters: RejectFilters,
        offset: int = 0,
        *,
        backward: bool = False,
        most: int = PAGE,
        budget_s: float | None = None,
    ) -> RejectPage:
        """The page from an offset on, or with `backward` the one that ends before it."""
        offset = min(max(offset, 0), self.size)
        deadline = time.monotonic() + (BUDGET_S if budget_s is None else budget_s)
        rejects: list[RejectedRecord] = []
        reached = offset
        with _Lines(self._path) as lines:
            if not lines.starts_at(offset):
                offset = reached = lines.next_start(offset)
            for line in lines.backward(offset) if backward else lines.forward(offset):
                start = reached - len(line) if backward else reached
                reached = start if backward else reached + len(line)
                record = _parsed(start, line)
                if _passes(record, filters):
                    rejects.append(record)
                if len(rejects) == most or time.monotonic() > deadline:
                    break
        if backward:
            rejects.reverse()
        start, end = (reached, offset) if backward else (offset, reached)
        is_cut = len(rejects) < most and (start > 0 if backward else end < self.size)
        return RejectPage(rejects=tuple(rejects), start=start, end=end, total=self.size, is_cut=is_cut)


class _Lines:
    """The lines of a file from an offset on, in either direction, with their line breaks."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def starts_at(self, offset: int) -> bool:
        return offset == 0 or os.pread(self._file.fileno(), 1, offset - 1) == b"\n"

    def next_start(self, offset: int) -> int:
        """Where the line after the one that has this byte starts: a line over the limit ends a page in its middle."""
        self._file.seek(offset)
        while (piece := self._file.readline(_BLOCK)) and not piece.endswith(b"\n"):
            pass
        return self._file.tell()

    def forward(self, offset: int) -> Iterator[bytes]:
        self._file.seek(offset)
        while line := self._file.readline(_MAX_LINE):
            yield line

    def backward(self, offset: int) -> Iterator[bytes]:
        """The last line before the offset first. Its bytes are read in blocks."""
        rest = b""
        while offset > 0:
            start = max(0, offset - _BLOCK)
            block = os.pread(self._file.fileno(), offset - start, start) + rest
            lines = [line + b"\n" for line in block.removesuffix(b"\n").split(b"\n")]
            rest = lines.pop(0) if start else b""
            yield from reversed(lines)
            offset = start


def _parsed(offset: int, line: bytes) -> RejectedRecord:
    try:
        values = orjson.loads(line)
        return RejectedRecord(
            offset=offset, **{key: str(values[key]) for key in ("dataset", "reason", "file", "record", "detail")}
        )
    except (ValueError, KeyError, TypeError) as error:
        return RejectedRecord(offset=offset, fault=f"{NAME}, byte {offset}: the line cannot be read: {error!r}")


def _passes(record: RejectedRecord, filters: RejectFilters) -> bool:
    if record.fault:
        return True
    wanted = filters.text.casefold()
    return (
        filters.dataset in ("", record.dataset)
        and filters.reason in ("", record.reason)
        and (not wanted or wanted in f"{record.file}\n{record.record}\n{record.detail}".casefold())
    )
