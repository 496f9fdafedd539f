"""A path of an input behind a URL, such as s3://bucket/folder/a.json, with the methods of pathlib.Path that read.

Rules: a path is a name; each method that asks for a file makes its requests again, except that whether something is a
file or a folder is remembered. Where text is needed, as in messages and for os.path, a path is its URL, so a local
function that gets it by mistake finds no file. A web server has no listing: `glob` and `iterdir` give nothing there.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, BinaryIO, cast

from preprocess.containers.remote_file import BUFFER_BYTES, RemoteFile
from preprocess.containers.remote_requests import RemoteEntry, check_url, entries_in, entry_of, is_web

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_LOST_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_MAGIC = re.compile(r"[*?\[]")
_KINDS: dict[str, bool] = {}
"""URL -> whether it is a file"""
_MOST_KINDS = 100_000
_listings: dict[str, list[str]] | None = None


def input_path(base: Path, text: str) -> Path:
    """A path or URL that a configuration names; a relative path starts at `base`, which may be a URL itself.

    Raises ValueError or LocationError for a URL that cannot be read here.
    """
    lost = _LOST_SLASH.match(text)
    if lost and not (base / text).exists():
        raise ValueError(f"{text}: one slash is missing: {lost[1]}://{text[lost.end() :]}")
    protocol, mark, rest = text.partition("://")
    if not mark or not _PROTOCOL.fullmatch(f"{protocol}:"):
        return Path(text) if os.path.isabs(text) else base / text
    if protocol.lower() == "file":
        return Path(rest)
    check_url(f"{protocol.lower()}://{rest}")
    return RemotePath(f"{protocol.lower()}://{rest}")


def is_remote(path: Path) -> bool:
    return isinstance(path, RemotePath)


def is_pattern(path: Path) -> bool:
    """Whether a name behind a URL has *, ? or [, so that only a listing says what it means."""
    url = str(path)
    if not is_remote(path):
        return False
    return _MAGIC.search(url.replace("?", "") if is_web(url) else url) is not None  # there ? begins a query


@contextlib.contextmanager
def listed_once() -> Iterator[None]:
    """Within this context each folder is listed once, while many patterns are tried."""
    global _listings
    before, _listings = _listings, {}
    try:
        yield
    finally:
        _listings = before


class RemotePath(PosixPath):
    """Created by `input_path`. Its parts are the protocol, the bucket or host, and the names below it."""

    __slots__ = ()

    def __str__(self) -> str:
        first, *rest = self.parts or ("",)
        return f"{first}//{'/'.join(rest)}" if _PROTOCOL.fullmatch(first) else "/".join(self.parts)

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def as_posix(self) -> str:
        return str(self)

    @property
    def anchor(self) -> str:
        """The bucket or host."""
        return str(RemotePath(*self.parts[:2]))

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def relative_to(self, *other: Any, **options: Any) -> Path:  # type: ignore[override]
        """A plain path: what is below a URL is a name."""
        return Path(*super().relative_to(*other, **options).parts)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """One request. The mtime in ns is not a time: it is a number that changes when the file is written again."""
        entry = entry_of(str(self))
        _remember(str(self), entry)
        kind = stat.S_IFREG if entry.is_file else stat.S_IFDIR
        numbers = (kind | 0o444, 0, 0, 1, 0, 0, entry.size, 0, entry.mark // 10**9, 0)
        return os.stat_result(numbers, {"st_mtime_ns": entry.mark})

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._is_file() is not None

    def is_file(self) -> bool:
        return self._is_file() is True

    def is_dir(self) -> bool:
        return self._is_file() is False

    def is_symlink(self) -> bool:
        return False

    def open(self, mode: str = "rb", buffering: int = -1, *_: object) -> BinaryIO:  # type: ignore[override]
        """The file for reading its bytes. Raises OSError as RemoteFile does."""
        if mode != "rb":
            raise OSError(errno.EROFS, "inputs behind a URL are only read, as bytes", str(self))
        file = RemoteFile(str(self))
        return cast(BinaryIO, file if not buffering else io.BufferedReader(file, max(buffering, BUFFER_BYTES)))

    def iterdir(self) -> Iterator[RemotePath]:  # type: ignore[override]
        url = str(self)
        names = _listings.get(url) if _listings is not None else None
        if names is None:
            entries = entries_in(url)
            names = list(entries)
            for name, entry in entries.items():
                _remember(str(self / name), entry)
            if _listings is not None:
                _listings[url] = names
        yield from (self / name for name in names)

    def glob(self, pattern: str, **_: object) -> Iterator[RemotePath]:  # type: ignore[override]
        """The paths below that match, sorted; as in pathlib, ** stands for any number of folders."""
        names = PurePosixPath(pattern).parts
        yield from sorted(set(_matches(self, names))) if names else ()

    def _is_file(self) -> bool | None:
        """None if it is not there."""
        url = str(self)
        if url not in _KINDS:
            try:
                _remember(url, entry_of(url))
            except FileNotFoundError:
                return None
        return _KINDS[url]


def _remember(url: str, entry: RemoteEntry) -> None:
    if len(_KINDS) >= _MOST_KINDS:
        _KINDS.clear()
    _KINDS[url] = entry.is_file


def _matches(folder: RemotePath, names: tuple[str, ...]) -> Iterator[RemotePath]:
    if not names:
        yield folder
        return
    first, *rest = names
    if first == "**":
        yield from _matches(folder, tuple(rest))
        for path in folder.iterdir():
            if path.is_dir():
                yield from _matches(path, names)
    elif _MAGIC.search(first):
        for path in folder.iterdir():
            if fnmatchcase(path.name, first) and (not rest or path.is_dir()):
                yield from _matches(path, tuple(rest))
    elif rest or (folder / first).exists():
        yield from _matches(folder / first, tuple(rest))
