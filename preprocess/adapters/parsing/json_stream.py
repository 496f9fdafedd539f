"""Read big annotation files record by record, with exact places for what is broken.

Rule: memory holds one window of text and one record, never the file. The C scanner of `json` parses each record; only
the brackets around records are walked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from preprocess.errors import DataError

_WINDOW = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def array_items(path: Path, *keys: str) -> Iterator[Any]:
    """The elements of the array at `keys` (nested object keys; none: the top level).

    Raises DataError naming file, line and column for broken JSON, bad UTF-8, or an array that is not there.
    """
    reader = _Reader(path)
    with reader.file:
        reader.descend(keys)
        yield from reader.elements()
        reader.finish(len(keys))


def object_items(path: Path, *keys: str) -> Iterator[tuple[str, Any]]:
    """The (key, value) pairs of the object at `keys`, repeated keys included. Raises DataError as `array_items`."""
    reader = _Reader(path)
    with reader.file:
        reader.descend(keys)
        yield from reader.members()
        reader.finish(len(keys))


def outline(path: Path) -> Iterator[tuple[str, str, Any]]:
    """The members of the top-level object as (key, first character of the value, value); for an array or an object the
    value is None and is read past, element by element, when the next member is asked for. So a file's form can be told
    from its keys without keeping it. Nothing if the top level is no object. Raises DataError as `array_items`.
    """
    reader = _Reader(path)
    with reader.file:
        if reader.peek() == "{":
            yield from reader.outline()
            reader.finish(0)


def first_character(path: Path) -> str:
    """The first character that is not white space ("" in an empty file): tells `[...]` from `{...}` and JSON lines."""
    reader = _Reader(path)
    with reader.file:
        return reader.peek()


class _Reader:
    """A window of text over a file: `buffer` from `place` on is unread; `line` and `column` say where it starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file: TextIO = path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        self.buffer, self.place = "", 0
        self.line, self.column = 1, 1
        self.ended = False

    def more(self, size: int = 0) -> bool:
        """Drop what has been read and append the next part of the file (size 0: one window). False at its end."""
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

    def take(self, wanted: str) -> None:
        got = self.peek()
        if got != wanted:
            raise self.fail(f"wanted {wanted!r}, got {got!r}" if got else f"the file ends where {wanted!r} was due")
        self.place += 1

    def value(self) -> Any:
        """Parse one value. A failure may only mean that the window ends inside it, so look again with more text."""
        self.peek()
        size = _WINDOW
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self.buffer) - 12 or "Unterminated" in error.msg
                inside = error.pos - self.place
                if near_end and self.more(size):
                    size *= 2
                    continue
                raise self.fail(error.msg, self.place + inside) from None
            except RecursionError:
                raise self.fail("nested too deeply") from None
            except ValueError as error:  # an integer of more than 4300 digits
                raise self.fail(str(error)) from None
            # A number could go on in the next part of the file; "1.", "1e" and "1e+" are parsed as 1 until it is there.
            length = end - self.place
            if len(self.buffer) - end <= 2 and isinstance(value, (int, float)) and self.more(size):
                size *= 2
                continue
            self.place += length
            return value

    def elements(self) -> Iterator[Any]:
        self.take("[")
        if self.peek() == "]":
            self.place += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self.place += 1
                return
            self.take(",")

    def keys(self) -> Iterator[str]:
        """Stop before each member's value; the caller reads it."""
        self.take("{")
        if self.peek() == "}":
            self.place += 1
            return
        while True:
            if self.peek() != '"':
                raise self.fail(f"wanted a key in double quotes, got {self.peek()!r}")
            key = self.value()
            self.take(":")
            yield key
            if self.peek() == "}":
                self.place += 1
                return
            self.take(",")

    def members(self) -> Iterator[tuple[str, Any]]:
        for key in self.keys():
            yield key, self.value()

    def outline(self) -> Iterator[tuple[str, str, Any]]:
        for key in self.keys():
            opening = self.peek()
            if opening in ("[", "{"):
                yield key, opening, None
                self.skip()
            else:
                yield key, opening, self.value()

    def descend(self, path: tuple[str, ...]) -> None:
        for depth, wanted in enumerate(path):
            for key in self.keys():
                if key == wanted:
                    break
                self.skip()
            else:
                raise DataError(f"{self.path}: has no key {'.'.join(path[: depth + 1])}; wanted it at the top level")

    def skip(self) -> None:
        """Read a value without keeping it, element by element where it is a container."""
        match self.peek():
            case "[":
                for _ in self.elements():
                    pass
            case "{":
                for _ in self.members():
                    pass
            case _:
                self.value()

    def finish(self, depth: int) -> None:
        """Read to the end of the file, so that a cut-off file never passes for a whole one."""
        for _ in range(depth):
            while self.peek() == ",":
                self.place += 1
                key = self.value()
                if not isinstance(key, str):
                    raise self.fail(f"wanted a key in double quotes, got {key!r}")
                self.take(":")
                self.skip()
            self.take("}")
        if self.peek():
            raise self.fail("there is more text after the end of the document")
