"""The members of a tar in their order; their contents are not read."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from preprocess.errors import DataError

_UNUSUAL = re.compile(r"\\|//|(?:^|/)\./")


def tar_members(path: Path, start: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Every file and link. Raises DataError for a tar that is damaged or cut off, with the byte where that shows.

    start, end: only the members between these bytes, at each of which one begins or ends.
    """
    if start == end:
        return
    try:
        with path.open("rb") as source:
            source.seek(start)
            yield from _members(path, source, end)
    except tarfile.TarError as error:
        raise DataError(f"{path}: damaged tar: {error}; download or pack it again") from None


def _members(path: Path, source: BinaryIO, stop: int | None) -> Iterator[tarfile.TarInfo]:
    """Those from where the file is read; at its end there is the end mark."""
    with tarfile.open(fileobj=source, mode="r:") as tar:
        # Opening has read the first member, which is in the list until `next` returns it.
        while (stop is None or tar.offset < stop or tar.members) and (member := tar.next()) is not None:  # type: ignore[attr-defined]
            tar.members.clear()  # type: ignore[attr-defined]
            if member.isreg() or member.issym() or member.islnk():
                yield member
        end = tar.offset
    if stop is not None:
        if end != stop:
            raise DataError(
                f"{path}: a member of the tar ends at byte {end}, not at {stop}; run the same command again"
            )
        return
    source.seek(end)
    if source.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
        raise DataError(
            f"{path}: the tar is damaged or cut off at byte {end}: expected a header or the end mark; download or "
            "pack it again"
        )


def member_key(name: str) -> str:
    """The name as records have it: `tar -c .` writes ./a.jpg, tools for Windows write a\\b.jpg."""
    if not _UNUSUAL.search(name):
        return name
    plain = name.replace("\\", "/")
    return name if ".." in plain.split("/") else posixpath.normpath(plain)
