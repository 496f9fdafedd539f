"""Where a build lies: a folder on this machine.

Rule: readers name a file by its path below the build, and get a local file that they can map.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from shards.errors import ShardError


class Store(Protocol):
    """The files of one build."""

    location: str

    def name(self, path: str) -> str:
        """The file as error messages call it."""
        ...

    def read(self, path: str) -> bytes:
        """All of a small file. Raises FileNotFoundError if it is not there, OSError if it cannot be read."""
        ...

    def stream(self, path: str) -> Iterator[bytes]:
        """A file piece by piece, from where it really lies. Raises OSError if it cannot be read."""
        ...

    def local(self, path: str, *, size: int | None, sha256: str) -> Path:
        """A local file with this content. Raises ShardError if it is missing or has another size."""
        ...

    def files(self, folder: str) -> list[str]:
        """The paths of all files below a folder of the build, sorted."""
        ...


class LocalStore:
    """A folder. Files are used where they lie; their digests are the business of those who read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)

    def name(self, path: str) -> str:
        return str(self.folder / path)

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()

    def stream(self, path: str) -> Iterator[bytes]:
        with (self.folder / path).open("rb") as file:
            while part := file.read(1 << 20):
                yield part

    def local(self, path: str, *, size: int | None, sha256: str) -> Path:
        file = self.folder / path
        try:
            found = file.stat().st_size
        except OSError as error:
            raise ShardError(f"{file}: cannot be read ({error.strerror}); rebuild to write it anew") from None
        if size is not None and found != size:
            raise ShardError(f"{file}: has {found} bytes, the manifest says {size}; it was cut or swapped")
        return file

    def files(self, folder: str) -> list[str]:
        found = sorted(path for path in (self.folder / folder).rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in found]


def open_store(location: str | Path) -> Store:
    """The store for a folder."""
    return LocalStore(Path(location))
