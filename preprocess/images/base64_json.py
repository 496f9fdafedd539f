"""Find the images in a base64 JSON, {"KEY": "<base64>", ...}, as MIMIC-IT publishes them: many GB in one object.

Why not a JSON library: an index needs the byte offset of every value in the file. json, orjson and msgspec parse a text
that is in memory as a whole; ijson reads a stream, but reports no offsets.

Rule: memory holds one window of the file. The ends of strings are found by bytes.find, and only keys are decoded, by
json. The text around the values is checked here; a value itself is checked when its image is read.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from preprocess.errors import DataError
from preprocess.images.index import ArchiveIndexBuilder, Packing

WINDOW_BYTES = 16 << 20
MAX_KEY_BYTES = 1 << 20
MAX_OTHER_BYTES = 16 << 20

_SPACE = re.compile(rb"[ \t\r\n]*")
_BRACKET = re.compile(rb'["\[\]{}]')
_SCALAR_END = re.compile(rb"[ \t\r\n,\]}]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INSIDE_CHARACTER = bytes(range(0x80, 0xC0))  # every byte of a UTF-8 character but its first
_EXPECTED = 'expected {"KEY": "<base64>", ...}'


def index_base64_json(path: Path, index: ArchiveIndexBuilder) -> None:
    """Add every key. Raises DataError with file, line and column for a text that is not such an object."""
    with path.open("rb") as file:
        scan = _JsonScanner(path, file)
        scan.take(b"{")
        num_texts = 0
        while (got := scan.peek()) != b"}" or len(index):  # a comma must be followed by a key
            if got != b'"':
                raise scan.fail(f"expected a key in double quotes, got {_show(got)}", scan.at)
            key = scan.key()
            scan.take(b":")
            if scan.peek() == b'"':
                start = scan.at + 1
                packing = Packing.BASE64_ESCAPED if scan.skip_string() else Packing.BASE64
                index.add(key, start, scan.at - 1 - start, packing)
                num_texts += 1
            else:
                start = scan.at
                scan.skip_other(key)
                index.add(key, start, scan.at - start, Packing.NOT_TEXT)
            if scan.peek() == b"}":
                break
            scan.take(b",")
        scan.take(b"}")
        if scan.peek():
            raise scan.fail("there is more text after the end of the document", scan.at)
        if len(index) and not num_texts:
            raise DataError(
                f"{path}: none of its {len(index)} values is a text; {_EXPECTED}: is it an annotation file?"
            )


def decode_base64(text: bytes, *, escaped: bool = False) -> bytes:
    """Strict decoding; a leading `data:image/...;base64,` is allowed. Raises ValueError for any other text.

    escaped: the text is the inside of a JSON string with backslashes.
    """
    if escaped:
        text = str(json.loads(b'"%b"' % text)).encode("ascii")
    if text.startswith(b"data:"):
        head, _, text = text.partition(b",")
        if not head.endswith(b";base64"):
            raise ValueError(f"a data URL that is not base64: {head[:40]!r}")
    return binascii.a2b_base64(text, strict_mode=True)


class _JsonScanner:
    """An offset in the file, `at`, and the window around it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.window = b""
        self.start = self.at = _text_start(self.file)

    def peek(self) -> bytes:
        """The next byte that is not whitespace; b"" at the end of the file."""
        while True:
            match = _SPACE.match(self.window, self.at - self.start)
            assert match is not None
            place = match.end()
            self.at = self.start + place
            if place < len(self.window):
                return self.window[place : place + 1]
            if not self._load():
                return b""

    def take(self, expected: bytes) -> None:
        got = self.peek()
        if got != expected:
            hint = f"; {_EXPECTED}" if expected == b"{" else ""
            raise self.fail(f"expected {_show(expected)}, got {_show(got)}{hint}", self.at)
        self.at += 1

    def key(self) -> str:
        start = self.at
        self.skip_string()
        if self.at - start > MAX_KEY_BYTES:
            raise self.fail(f"a key of {self.at - start} bytes", start)
        key = self._parsed(start)
        assert isinstance(key, str)
        return key

    def skip_string(self) -> bool:
        """Move past the string that starts here. True if it contains a backslash."""
        opening = self.at
        self.at += 1
        escaped = False
        while self.at - self.start < len(self.window) or self._load():
            place = self.at - self.start
            quote = self.window.find(b'"', place)
            stop = quote if quote >= 0 else len(self.window)
            escaped = escaped or self.window.find(b"\\", place, stop) >= 0
            # An odd number of backslashes escapes the next byte: this quote, or the first byte of the next window.
            odd = escaped and (stop - place - len(self.window[place:stop].rstrip(b"\\"))) % 2 == 1
            if quote >= 0 and not odd:
                self.at = self.start + quote + 1
                return escaped
            self.at = self.start + stop + odd
        raise self.fail("the file ends inside the text that starts here", opening)

    def skip_other(self, key: str) -> None:
        """Move past a value that is not a string."""
        start = self.at
        if self.peek() in (b"[", b"{"):
            self._skip_container()
        else:
            self._find(_SCALAR_END)
        if self.at - start > MAX_OTHER_BYTES:
            raise self.fail(f"the value of {key!r} is not a text; {_EXPECTED}: is this an annotation file?", start)
        self._parsed(start)

    def fail(self, message: str, at: int) -> DataError:
        line, column = _line_and_column(self.file, at)
        return DataError(f"{self.path}, line {line}, column {column}: broken base64 JSON: {message}")

    def _skip_container(self) -> None:
        start, depth = self.at, 0
        while self._find(_BRACKET):
            bracket = self.window[self.at - self.start : self.at - self.start + 1]
            if bracket == b'"':
                self.skip_string()
                continue
            depth += 1 if bracket in b"[{" else -1
            self.at += 1
            if not depth:
                return
        raise self.fail("the file ends inside the value that starts here", start)

    def _find(self, pattern: re.Pattern[bytes]) -> bool:
        """Move to the next match, which is one byte long. False, and at the end of the file, if there is none."""
        while self.at - self.start < len(self.window) or self._load():
            match = pattern.search(self.window, self.at - self.start)
            if match:
                self.at = self.start + match.start()
                return True
            self.at = self.start + len(self.window)
        return False

    def _parsed(self, start: int) -> object:
        """The value from `start` to here, parsed by json."""
        raw = b"".join(_pieces(self.file, start, self.at))
        try:
            return json.loads(raw.decode("utf-8"))
        except json.JSONDecodeError as error:
            raise self.fail(error.msg, start + len(error.doc[: error.pos].encode())) from None
        except UnicodeDecodeError as error:
            raise self.fail(f"not UTF-8 ({error.reason})", start + error.start) from None
        except RecursionError:
            raise self.fail("nested too deeply", start) from None
        except ValueError as error:  # an integer of more than 4300 digits
            raise self.fail(str(error), start) from None

    def _load(self) -> bool:
        """Move the window so that it starts here. False at the end of the file."""
        self.window = b""  # freed before the next one is read, so that only one is in memory
        self.window, self.start = _read_at(self.file, WINDOW_BYTES, self.at), self.at
        return bool(self.window)


def _line_and_column(file: BinaryIO, at: int) -> tuple[int, int]:
    """Both count from 1; columns are characters."""
    line, column = 1, 1
    for part in _pieces(file, _text_start(file), at):
        newlines = part.count(b"\n")
        line += newlines
        column = 1 if newlines else column
        column += len(part[part.rfind(b"\n") + 1 :].translate(None, _INSIDE_CHARACTER))
    return line, column


def _text_start(file: BinaryIO) -> int:
    mark = _read_at(file, len(_BYTE_ORDER_MARK), 0)
    return len(mark) if mark == _BYTE_ORDER_MARK else 0


def _pieces(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    while start < end and (part := _read_at(file, min(WINDOW_BYTES, end - start), start)):
        yield part
        start += len(part)


def _read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _show(got: bytes) -> str:
    return repr(got.decode("latin-1")) if got else "the end of the file"
