"""Where a build is stored: a folder on this machine, or a URL (shards/storage/remote.py).

Rule: readers name a file by its path below the build, and get a local file that they can read at any offset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shards.errors import LocationError, ShardError
from shards.files import file_sha256

if TYPE_CHECKING:
    from shards.storage.cache import Cache

_LOST_SLASH = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of local copies that there may be. is_set: by the program, and not by what the disk has."""

    size: int
    is_set: bool


class Store(Protocol):
    """The files of one build. evicts: whether local files may be removed when others need room."""

    location: str
    evicts: bool

    def name(self, path: str) -> str:
        """The file as error messages call it."""
        ...

    def read(self, path: str) -> bytes:
        """All of a small file. Raises FileNotFoundError if it is not there, OSError or ShardError if unreadable."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file. Raises FileNotFoundError if it is not there."""
        ...

    def stream(self, path: str) -> Iterator[bytes]:
        """A file piece by piece, from where it is really stored. Raises OSError if it cannot be read."""
        ...

    def local(self, path: str, *, size: int | None, sha256: str) -> Path:
        """A local file with this content. Raises ShardError if it is missing or has another size."""
        ...

    def is_local(self, path: str, *, size: int, sha256: str) -> bool:
        """Whether `local` need not download it; a copy in a cache is now the most recently used."""
        ...

    def fetch_ahead(self, path: str, *, size: int, sha256: str, is_needed: Callable[[], bool] = lambda: True) -> None:
        """Let `local` find it later: download it, unless another process does. Raises ShardError as `local` does.

        is_needed: asked at the last moment, since who waits for a processor may come when all was read.
        """
        ...

    def ranges(self, cuts: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """For each (path, start, end) those bytes, from where they are really stored. Raises OSError or ShardError."""
        ...

    def folder(self, name: str, files: Mapping[str, str]) -> Path:
        """A local folder of the build with these files (path -> sha256). Raises ShardError for other bytes."""
        ...

    def files(self, folder: str) -> list[str]:
        """The paths of all files below a folder of the build, sorted."""
        ...

    def room(self) -> Room | None:
        """For local copies; None if there are none, since files are where they are used."""
        ...

    def advice(self, local: Path) -> str:
        """How a message about damage in a local file ends: what to do if only this copy is damaged."""
        ...


class LocalStore:
    """A folder. Files are used where they lie; their digests are the business of those who read them."""

    evicts = False

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self._folder = folder.absolute()  # a program may change its working folder meanwhile

    def name(self, path: str) -> str:
        return os.path.join(self.location, path)

    def size(self, path: str) -> int:
        return (self._folder / path).stat().st_size

    def read(self, path: str) -> bytes:
        return (self._folder / path).read_bytes()

    def stream(self, path: str) -> Iterator[bytes]:
        with (self._folder / path).open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece

    def local(self, path: str, *, size: int | None, sha256: str) -> Path:
        file = self._folder / path
        try:
            actual_size = file.stat().st_size
        except OSError as error:
            raise ShardError(f"{file}: cannot be read ({error.strerror}); rebuild to write it again") from None
        if size is not None and actual_size != size:
            raise ShardError(f"{file}: has {actual_size} bytes, the manifest says {size}; it was cut or swapped")
        return file

    def is_local(self, path: str, *, size: int, sha256: str) -> bool:
        return True

    def fetch_ahead(self, path: str, *, size: int, sha256: str, is_needed: Callable[[], bool] = lambda: True) -> None:
        """It is there already."""

    def ranges(self, cuts: Sequence[tuple[str, int, int]]) -> list[bytes]:
        pieces = []
        for path, start, end in cuts:
            with (self._folder / path).open("rb") as file:
                pieces.append(os.pread(file.fileno(), end - start, start))
        return pieces

    def folder(self, name: str, files: Mapping[str, str]) -> Path:
        for path, expected in files.items():
            try:
                digest = file_sha256(self._folder / path)
            except OSError as error:
                raise ShardError(
                    f"{self.name(path)}: cannot be read ({error.strerror}); rebuild to write it again"
                ) from None
            if digest != expected:
                raise ShardError(
                    f"{self.name(path)}: sha256 is {digest[:12]}, the manifest says {expected[:12]}; it was edited or "
                    "damaged; rebuild to write it again"
                )
        return self._folder / name

    def files(self, folder: str) -> list[str]:
        paths = sorted(path for path in (self._folder / folder).rglob("*") if path.is_file())
        return [path.relative_to(self._folder).as_posix() for path in paths]

    def room(self) -> Room | None:
        return None

    def advice(self, local: Path) -> str:
        return ""


def open_store(location: str | Path, cache: Cache | None = None) -> Store:
    """The store for a folder or a URL; `cache` keeps what a URL's files are read from, a folder needs none.

    Raises LocationError for a URL that cannot be read here.
    """
    folder = local_folder(location)
    if folder is not None:
        return LocalStore(folder)
    from shards.storage.remote import RemoteStore  # fsspec is loaded for URLs alone

    return RemoteStore(str(location), cache)


def local_folder(location: str | Path) -> Path | None:
    """The folder that a path or a file:// URL names; None for any other URL.

    Raises LocationError for a URL that lost a slash, as a Path takes it from one, and for what is not a location.
    """
    if not isinstance(location, str | Path):
        raise LocationError(f"{location!r} is not a build; expected a folder or a URL")
    lost = _LOST_SLASH.match(str(location))
    if lost and not Path(location).exists():
        whole = f"{lost['protocol']}://{str(location)[lost.end() :]}"
        raise LocationError(f"{location}: one slash is missing: {whole} (a pathlib.Path takes it; give a URL as text)")
    if isinstance(location, Path):
        return Path(os.path.expanduser(location))
    protocol, mark, rest = location.partition("://")
    if not mark:
        return Path(os.path.expanduser(location))
    return Path(rest) if protocol.lower() == "file" else None
