"""Open a text file of records, compressed or not, and read JSON lines.

Rules: the kind is that of the first bytes, never of the name. Memory holds one buffer and one line. A file that is
another kind raises a DataError that says which.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from preprocess.adapters.parsing.exact_json import loads
from preprocess.adapters.parsing.record_watch import WatchedRecords, opening, watched_records
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers import marks
from preprocess.errors import DataError

MAX_RECORD_BYTES = 1 << 28
"""A longer JSON line or value is not read: it would fill the memory. Twice the largest base64 image that is usual."""

_BUFFER = 1 << 20
_BOMS = (b"\xff\xfe", b"\xfe\xff")
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)  # gzip and Arrow raise OSError
Kind = Literal["text", "Parquet", "an Arrow file", "an Arrow stream", "a tar"]
_BY_SUFFIX: dict[str, Kind] = {".parquet": "Parquet", ".arrow": "an Arrow file", ".tar": "a tar"}


def kind_of(path: Path) -> Kind:
    """What a file of records is. Raises DataError for a kind that is not read, and for a file that cannot be opened."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected a file of records, or the adapter chat for images with texts")
    opening(path)
    try:
        with path.open("rb") as file:
            head = file.read(marks.HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if marks.is_lfs_pointer(head):
        raise DataError(f"{path}: {marks.LFS_ADVICE}")
    if head.startswith(marks.ZIP):
        raise DataError(f"{path}: is a zip archive; unpack it, and name the file of records in it")
    if name := marks.compression(head):
        with open_bytes(path) as file:
            inside = _kind_inside(path, file.read(marks.HEAD_BYTES))
        if inside != "text":
            raise DataError(f"{path}: is {inside} within {name}, where records cannot be found; decompress it")
        return "text"
    return _kind_inside(path, head)


def open_text(path: Path) -> BinaryIO:
    """The bytes of a JSON file, decompressed. Raises DataError for other kinds."""
    kind = kind_of(path)
    if kind != "text":
        raise DataError(
            f"{path}: is {kind}; expected JSON: convert it to JSON lines, or use the adapter chat if it holds "
            "conversations"
        )
    return open_bytes(path)


def open_bytes(path: Path) -> BinaryIO:
    """The file, decompressed while it is read. Raises DataError, then and later, if it cannot be opened or unpacked."""
    try:
        file = path.open("rb")
        name = marks.compression(file.peek(8))
        if name is None:
            return cast(BinaryIO, file)
        return cast(BinaryIO, io.BufferedReader(_Unpacked(path, name, file), _BUFFER))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def lines(path: Path) -> Iterator[Any]:
    """The JSON value of each line that is not blank. Raises DataError if the file cannot be read."""
    try:
        with open_text(path) as file:
            yield from lines_of(file, watched_records(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def lines_of(
    file: BinaryIO, watch: WatchedRecords, number: int = 0, size: int | None = None, record: int = 0
) -> Iterator[Any]:
    """The same of the file's next lines. number, record: lines and records before them; size: bytes to read."""
    while size != 0 and (line := file.readline(MAX_RECORD_BYTES)):
        number += 1
        if size is not None:
            size = max(size - len(line), 0)
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            _skip_line(file)
            yield UnreadableRecord(
                reason="broken_json",
                detail=f"line {number} has more than {MAX_RECORD_BYTES} bytes; put a line break after each record",
            )
            record += 1
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            instead = watch.reading(record)
            record += 1
            yield instead or parsed_line(line.rstrip(b"\r\n"), f"line {number}")
    watch.ended()


def parsed_line(line: bytes, where: str) -> Any:
    """The JSON value, or why there is none."""
    try:
        return loads(line)
    except json.JSONDecodeError as error:
        return UnreadableRecord(reason="broken_json", detail=f"{where}, column {error.pos + 1}: {error.msg}")
    except UnicodeDecodeError as error:
        return UnreadableRecord(reason="broken_json", detail=f"{where}, byte {error.start + 1}: not UTF-8")
    except RecursionError:
        return UnreadableRecord(reason="broken_json", detail=f"{where}, column 1: nested too deeply")
    except ValueError as error:  # an integer of more than 4300 digits
        return UnreadableRecord(reason="broken_json", detail=f"{where}, column 1: {error}")


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(_BUFFER)) and not rest.endswith(b"\n"):
        pass


def _kind_inside(path: Path, head: bytes) -> Kind:
    if head.startswith(marks.PARQUET):
        return "Parquet"
    if head.startswith(marks.ARROW_FILE):
        return "an Arrow file"
    if head.startswith(marks.ARROW_STREAM):
        return "an Arrow stream"
    if marks.is_tar(head):
        return "a tar"
    if head.startswith(_BOMS):
        raise DataError(f"{path}: is UTF-16 text; expected UTF-8: convert it, such as with iconv -f UTF-16 -t UTF-8")
    expected = _BY_SUFFIX.get(path.suffix)
    if expected == "a tar":  # from before the mark existed, or empty
        return expected
    if expected:
        raise DataError(f"{path}: cannot be read as {expected}: it starts with {head[:12]!r}; download it again")
    return "text"


class _Unpacked(io.RawIOBase):
    """A decompressor as a raw file, for BufferedReader: a damaged or cut off file raises DataError with its name."""

    def __init__(self, path: Path, name: str, file: BinaryIO) -> None:
        self.path, self.name, self.file, self.stream, self.done = path, name, file, _UNPACKERS[name](file), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            part = self.stream.read(len(buffer))
        except _DAMAGED as error:
            raise DataError(
                f"{self.path}: the {self.name} is damaged or cut off after {self.done} bytes of text ({error}); "
                "download it again"
            ) from None
        buffer[: len(part)] = part
        self.done += len(part)
        return len(part)

    def close(self) -> None:
        self.stream.close()
        self.file.close()
        super().close()


def _zstd(file: BinaryIO) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")


_UNPACKERS: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _zstd,
}
