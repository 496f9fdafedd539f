"""Read large annotation files record by record, with the line and column of every error.

Why not ijson: its errors have neither line, column nor byte, and its C backend replaces half a surrogate pair by "?"
without an error (3.6.0), so a damaged record would pass. Here `json` itself parses each record; only the brackets
around the records are this module's own work.

Rule: memory holds one window of text and one record, never the file.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from preprocess.adapters.parsing.record_text import MAX_RECORD_BYTES, open_text
from preprocess.adapters.parsing.record_watch import WatchedRecords, watched_records
from preprocess.errors import DataError

_WINDOW = 1 << 20
_HEAD_BYTES = 1 << 12
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_BRACKET = re.compile(r'[][{}"]')
_TEXT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_VALUES = (("[", "an array"), ("{", "an object"), ('"', "a text"), ("-0123456789", "a number"), ("tfn", "a constant"))


def array_items(path: Path, *keys: str) -> Iterator[Any]:
    """The elements of the array at `keys` (nested object keys; none: the top level).

    An object below a key whose own keys are row numbers is read as an array: pandas saves a table like this. Raises
    DataError naming file, line and column for broken JSON, bad UTF-8, or an array that is not there.
    """
    reader = _JsonReader(path)
    watch = watched_records(path, *keys)
    with reader.file:
        reader.descend(keys)
        yield from reader.rows(watch) if keys and reader.peek() == "{" else reader.elements(watch)
        watch.ended()
        reader.finish(len(keys))


def object_items(path: Path, *keys: str) -> Iterator[tuple[str, Any]]:
    """The (key, value) pairs of the object at `keys`, repeated keys included. Raises DataError as `array_items`."""
    reader = _JsonReader(path)
    watch = watched_records(path, *keys)
    with reader.file:
        reader.descend(keys)
        yield from reader.members(watch)
        watch.ended()
        reader.finish(len(keys))


def outline(path: Path) -> Iterator[tuple[str, str, Any]]:
    """The members of the top-level object as (key, first character of the value, value); shows the kind of file.

    The value of an array or an object is None; the reader skips it, element by element, before the next member.
    Nothing if the top level is not an object. Raises DataError as `array_items`.
    """
    reader = _JsonReader(path)
    with reader.file:
        if reader.peek() == "{":
            yield from reader.outline()
            reader.finish(0)


def first_character(path: Path) -> str:
    """The first character that is not whitespace; "" in an empty file. Bytes after it need not be UTF-8."""
    with open_text(path) as file:
        part = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
        while part and not part.strip():
            part = file.read(_HEAD_BYTES)
    return part.strip()[:1].decode("latin-1")


class _JsonReader:
    """A window of text over a file: `buffer` is unread from `place` on; `line` and `column` are those of its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = io.TextIOWrapper(open_text(path), encoding="utf-8-sig", newline="")
        self.buffer, self.place = "", 0
        self.line, self.column = 1, 1
        self.ended = False
        self.is_careful = watched_records(path).is_careful

    def more(self, size: int = 0) -> bool:
        """Drop the text before `place` and append the next part of the file (size 0: one window). False at its end."""
        done = self.buffer[: self.place]
        newlines = done.count("\n")
        self.line += newlines
        self.column = self.place - done.rfind("\n") if newlines else self.column + self.place
        try:
            part = self.file.read(size or _WINDOW)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: not UTF-8 after line {self.line} ({error.reason})") from None
        self.buffer, self.place = self.buffer[self.place :] + part, 0
        self.ended = not part
        return bool(part)

    def fail(self, message: str, place: int | None = None) -> DataError:
        place = self.place if place is None else place
        before = self.buffer[:place]
        newlines = before.count("\n")
        line = self.line + newlines
        column = place - before.rfind("\n") if newlines else self.column + place
        return DataError(f"{self.path}, line {line}, column {column}: broken JSON: {message}")

    def peek(self) -> str:
        while True:
            match = _SPACE.match(self.buffer, self.place)
            assert match is not None
            self.place = match.end()
            if self.place < len(self.buffer):
                return self.buffer[self.place]
            if not self.more():
                return ""

    def open(self, expected: str) -> None:
        """Take the bracket that opens a container. Sound JSON of another form is named, and not called broken."""
        got = self.peek()
        kind = next((name for marks, name in _VALUES if got and got in marks), None)
        if kind and got != expected:
            wanted = "an array of records" if expected == "[" else "an object"
            where = f"{self.path}, line {self.line + self.buffer[: self.place].count(chr(10))}"
            raise DataError(f"{where}: is JSON of another form: got {kind}, expected {wanted}")
        self.take(expected)

    def take(self, expected: str) -> None:
        got = self.peek()
        if got != expected:
            raise self.fail(f"expected {expected!r}, got {got!r}" if got else f"the file ends before {expected!r}")
        self.place += 1

    def value(self) -> Any:
        """Parse one value. An error may only mean that the window ends inside it, so it tries again with more text."""
        self.peek()
        size = _WINDOW
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self.buffer) - 12 or "Unterminated" in error.msg
                inside = error.pos - self.place
                if near_end and len(self.buffer) - self.place > MAX_RECORD_BYTES:
                    raise self.fail(f"a record has more than {MAX_RECORD_BYTES} characters") from None
                if near_end and self.more(size):
                    size *= 2
                    continue
                raise self.fail(error.msg, self.place + inside) from None
            except RecursionError:
                raise self.fail("nested too deeply") from None
            except ValueError as error:  # an integer of more than 4300 digits
                raise self.fail(str(error)) from None
            # A number may continue in the next part of the file: until then "1.", "1e" and "1e+" are parsed as 1.
            length = end - self.place
            if len(self.buffer) - end <= 2 and isinstance(value, (int, float)) and self.more(size):
                size *= 2
                continue
            self.place += length
            return value

    def record(self, number: int, watch: WatchedRecords | None) -> Any:
        """The next value, or what comes in its place if it is left out."""
        instead = watch.reading(number) if watch else None
        if instead is None:
            return self.value()
        self.pass_over()
        return instead

    def pass_over(self) -> None:
        """Go behind the next value without making it: only brackets and texts are looked at."""
        if self.peek() not in ("[", "{"):
            self.value()
            return
        depth = 0
        while True:
            bracket = self._next_bracket()
            if bracket == '"':
                self._pass_over_text()
                continue
            self.place += 1
            depth += 1 if bracket in "[{" else -1
            if not depth:
                return

    def _next_bracket(self) -> str:
        """The next bracket or quotation mark, where `place` then is."""
        while (match := _BRACKET.search(self.buffer, self.place)) is None:
            self.place = len(self.buffer)
            if not self.more():
                raise self.fail("the file ends within a record")
        self.place = match.start()
        return match[0]

    def _pass_over_text(self) -> None:
        size = _WINDOW
        while (match := _TEXT.match(self.buffer, self.place)) is None:
            if not self.more(size):
                raise self.fail("the file ends within a text")
            size *= 2
        self.place = match.end()

    def rows(self, watch: WatchedRecords) -> Iterator[Any]:
        for key, value in self.members(watch):
            if not key.isdecimal():
                raise DataError(
                    f"{self.path}: is JSON of another form: got an object with the key {key[:60]!r}, expected an array "
                    "of records"
                )
            yield value

    def elements(self, watch: WatchedRecords | None = None) -> Iterator[Any]:
        self.open("[")
        if self.peek() == "]":
            self.place += 1
            return
        for number in count():
            yield self.record(number, watch)
            if self.peek() == "]":
                self.place += 1
                return
            self.take(",")

    def keys(self) -> Iterator[str]:
        """The keys of an object; after each, the caller reads the member's value."""
        self.open("{")
        if self.peek() == "}":
            self.place += 1
            return
        while True:
            if self.peek() != '"':
                raise self.fail(f"expected a key in double quotes, got {self.peek()!r}")
            key = self.value()
            self.take(":")
            yield key
            if self.peek() == "}":
                self.place += 1
                return
            self.take(",")

    def members(self, watch: WatchedRecords | None = None) -> Iterator[tuple[str, Any]]:
        for number, key in enumerate(self.keys()):
            yield key, self.record(number, watch)

    def outline(self) -> Iterator[tuple[str, str, Any]]:
        for key in self.keys():
            opening = self.peek()
            if opening in ("[", "{"):
                yield key, opening, None
                self.skip()
            else:
                yield key, opening, self.value()

    def descend(self, path: tuple[str, ...]) -> None:
        for depth, expected in enumerate(path):
            for key in self.keys():
                if key == expected:
                    break
                self.skip()
            else:
                raise DataError(f"{self.path}: has no key {'.'.join(path[: depth + 1])}; expected it at the top level")

    def skip(self) -> None:
        """Read a value without keeping it; a container element by element. After deaths nothing is parsed."""
        match self.peek():
            case _ if self.is_careful:
                self.pass_over()
            case "[":
                for _ in self.elements():
                    pass
            case "{":
                for _ in self.members():
                    pass
            case _:
                self.value()

    def finish(self, depth: int) -> None:
        """Read to the end of the file, so that a truncated file never passes for a complete one."""
        for _ in range(depth):
            while self.peek() == ",":
                self.place += 1
                key = self.value()
                if not isinstance(key, str):
                    raise self.fail(f"expected a key in double quotes, got {key!r}")
                self.take(":")
                self.skip()
            self.take("}")
        if self.peek():
            raise self.fail("there is more text after the end of the document")
