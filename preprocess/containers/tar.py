"""The members of a tar in their order; their contents are not read."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from preprocess.errors import DataError

_UNUSUAL = re.compile(r"\\|//|(?:^|/)\./")


def tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Every file and link. Raises DataError for a tar that is damaged or cut off, with the byte where that shows."""
    try:
        with path.open("rb") as source, tarfile.open(fileobj=source, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if member.isreg() or member.issym() or member.islnk():
                    yield member
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(f"{path}: damaged tar: {error}; download or pack it again") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
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
