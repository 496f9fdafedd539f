"""A build behind a URL: s3, gs and whatever else fsspec knows.

Rule: every request is tried again (retries.py); nothing that came is used before it was compared with the manifest.
Credentials and endpoints are found by fsspec and the libraries below it: environment, configuration files, roles.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from shards.errors import LocationError, NetworkError, ShardError
from shards.files import file_sha256
from shards.storage.cache import Cache
from shards.storage.retries import retried
from shards.storage.signed_requests import SignedRequests, signing_options, takes_signed
from shards.storage.store import Room

PIECE_BYTES = 8 << 20
PIECES = 4
"""This many pieces of a file are requested at once; a failure costs no more than these."""

_MARKS = ("ETag", "etag", "md5Hash", "generation", "mtime", "created")
"""Where the file systems of fsspec have what changes when a file is written again"""

_OF_THE_EXTRA = ("s3", "s3a", "gs", "gcs", "http", "https")
"""Protocols of the packages that dsvl[remote] brings"""

T = TypeVar("T")


class RemoteStore:
    """A folder behind a URL. It may be sent to other processes, and used in forked ones."""

    evicts = True

    def __init__(self, url: str, cache: Cache | None = None) -> None:
        """Asks nothing of the network. Raises LocationError if this protocol cannot be read here."""
        protocol, _, rest = url.partition("://")
        self.location = f"{protocol.lower()}://{rest.rstrip('/')}"
        self.cache = cache or Cache()
        self._connection: tuple[Any, str] | None = None
        self._signed: SignedRequests | None = None
        self._inherited: tuple[Any, str] | None = None
        self._process = 0
        _check_protocol(self.location)

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, Cache]]:
        return RemoteStore, (self.location, self.cache)

    def name(self, path: str) -> str:
        return f"{self.location}/{path}"

    def read(self, path: str) -> bytes:
        with _named(self.name(path)):
            return b"".join(self.stream(path))

    def stream(self, path: str) -> Iterator[bytes]:
        return self._pieces(path, self.ask(partial(_size, path)))

    def local(self, path: str, *, size: int | None, sha256: str) -> Path:
        if size is None:
            with self._pinned(path):
                size = self.size(path)
        return self._fetch(path, size, sha256)

    def is_local(self, path: str, *, size: int, sha256: str) -> bool:
        return self.cache.has(sha256, size=size, suffix=PurePosixPath(path).suffix)

    def fetch_ahead(self, path: str, *, size: int, sha256: str, is_needed: Callable[[], bool] = lambda: True) -> None:
        self._fetch(path, size, sha256, ahead_if=is_needed)

    def ranges(self, cuts: Sequence[tuple[str, int, int]]) -> list[bytes]:
        with self._pinned(cuts[0][0]):
            return self._ranges(cuts)

    def folder(self, name: str, files: Mapping[str, str]) -> Path:
        return self.cache.fetch_folder(files, name=self.location, read=self._read_pinned) / name

    def files(self, folder: str) -> list[str]:
        return sorted(self.sizes(folder))

    def size(self, path: str) -> int:
        """Bytes of a file. Raises FileNotFoundError if it is not there."""
        with _named(self.name(path)):
            return self.ask(partial(_size, path))

    def sizes(self, folder: str) -> dict[str, int]:
        """path -> bytes of all files below a folder of the build; none if it is not there."""
        return {path: size for path, (size, _) in self.versions(folder).items()}

    def versions(self, folder: str) -> dict[str, tuple[int, str]]:
        """path -> (bytes, mark) of all files below a folder. The mark changes when a file is written again.

        It is the ETag or what the storage has in place of it; "" where there is nothing of the kind. The pages on which
        web servers list a folder have no sizes: 0 bytes.
        """
        with _named(self.name(folder)):
            try:
                root, files = self.ask(lambda files, root: (root, _find(files, f"{root}/{folder}")))
            except FileNotFoundError:
                return {}
        return {
            path.removeprefix(root).strip("/"): (
                int(info["size"] or 0),
                next((str(info[key]) for key in _MARKS if info.get(key)), ""),
            )
            for path, info in files.items()
        }

    def room(self) -> Room | None:
        return Room(self.cache.room(), is_set=self.cache.max_bytes is not None)

    def advice(self, local: Path) -> str:
        return f"; if only the copy {local} is damaged, delete it, and it is downloaded again"

    def put(self, path: str, file: Path, sha256: str) -> None:
        """Write a file there. Raises NetworkError, NotImplementedError where fsspec only reads, or ShardError.

        ShardError: the file is not what it was when `sha256` was computed. S3 refuses it at a signed URL; fsspec would
        send it.
        """

        def put(files: Any, root: str) -> None:
            if self._signed and self._signed.put(path, file, sha256):
                return
            if (actual := file_sha256(file)) != sha256:
                raise ShardError(
                    f"{file}: sha256 is {actual[:12]}, expected {sha256[:12]}; it was damaged or edited after it was "
                    "written; check the disk, then run the same build again"
                )
            files.put_file(str(file), f"{root}/{path}")

        self.ask(put)

    def ask(self, action: Callable[[Any, str], T]) -> T:
        """What `action(file system, root)` gives, with all tries. Raises FileNotFoundError, or NetworkError."""
        return retried(lambda: action(*self._connected()))

    def _connected(self) -> tuple[Any, str]:
        """A connection of this very process: one that was made before a fork has no thread that would answer."""
        if self._connection is None or self._process != os.getpid():
            self._inherited = self._connection  # kept, since dropping it would close the parent's
            options = signing_options(self.location)
            self._connection = fsspec.core.url_to_fs(self.location, skip_instance_cache=True, **options)
            self._signed = SignedRequests(*self._connection) if takes_signed(self._connection[0]) else None
            self._process = os.getpid()
        return self._connection

    def _pieces(self, path: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, PIECES * PIECE_BYTES):
            starts = range(start, min(start + PIECES * PIECE_BYTES, size), PIECE_BYTES)
            cuts = [(path, first, min(first + PIECE_BYTES, size)) for first in starts]
            yield from self._ranges(cuts)

    def _ranges(self, cuts: Sequence[tuple[str, int, int]]) -> list[bytes]:
        return retried(lambda: self._ranges_once(cuts))

    def _ranges_once(self, cuts: Sequence[tuple[str, int, int]]) -> list[bytes]:
        files, root = self._connected()
        pieces = self._signed.ranges(cuts) if self._signed else None
        return _cat(cuts, files, root) if pieces is None else pieces

    def _fetch(self, path: str, size: int, sha256: str, *, ahead_if: Callable[[], bool] | None = None) -> Path:
        return self.cache.fetch(
            sha256,
            size=size,
            suffix=PurePosixPath(path).suffix,
            name=self.name(path),
            download=partial(self._download, path, size),
            ahead_if=ahead_if,
        )

    def _download(self, path: str, size: int) -> Iterator[bytes]:
        with self._pinned(path):
            yield from self._pieces(path, size)

    def _read_pinned(self, path: str) -> bytes:
        with self._pinned(path):
            return self.read(path)

    @contextlib.contextmanager
    def _pinned(self, path: str) -> Iterator[None]:
        """Errors with a file that the manifest names."""
        with _named(self.name(path)):
            try:
                yield
            except FileNotFoundError:
                raise ShardError(
                    f"{self.name(path)}: is not there, but the manifest names it; run the same dsvl-prep build to "
                    "upload it again"
                ) from None


def _cat(cuts: Sequence[tuple[str, int, int]], files: Any, root: str) -> list[bytes]:
    """Pieces of files, each whole."""
    paths, starts, ends = (list(column) for column in zip(*cuts, strict=True))
    pieces: list[Any] = files.cat_ranges([f"{root}/{path}" for path in paths], starts, ends, on_error="return")
    for piece, (_, start, end) in zip(pieces, cuts, strict=True):
        if isinstance(piece, BaseException):
            raise piece
        if len(piece) != end - start:
            raise OSError(f"{len(piece)} bytes came, expected {end - start} from byte {start} on")
    return pieces


def _size(path: str, files: Any, root: str) -> int:
    files.invalidate_cache()  # others may have written there since it was listed
    return int(files.info(f"{root}/{path}")["size"])


def _find(files: Any, folder: str) -> dict[str, Any]:
    files.invalidate_cache()
    details: dict[str, Any] | list[str] = files.find(folder, detail=True)
    return details if isinstance(details, dict) else {}  # some give an empty list for an empty folder


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    try:
        yield
    except NetworkError as error:
        raise ShardError(f"{url}: {error}") from error


def _check_protocol(url: str) -> None:
    protocol = url.partition("://")[0]
    known = [*fsspec.available_protocols(), *fsspec.registry]
    if protocol not in known:
        near = difflib.get_close_matches(protocol, known, n=1, cutoff=0.5)
        raise LocationError(
            f"{url}: unknown protocol {protocol}"
            + (f"; did you mean {near[0]}?" if near else "")
            + "; expected a folder, or a URL with s3, gs, file, memory or another protocol of fsspec"
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        if protocol in _OF_THE_EXTRA:
            step = f"pip install 'dsvl[remote]', which brings the packages for s3, gs and https ({error})"
        else:
            step = f"dsvl[remote] does not bring it: {error}"
        raise LocationError(f"{url}: {protocol} needs a package that is not installed; {step}") from None
    bundle = os.environ.get("AWS_CA_BUNDLE") if protocol in ("s3", "s3a") else None
    if bundle and not os.path.exists(bundle):
        raise LocationError(f"{url}: AWS_CA_BUNDLE is {bundle}, which is not there; correct the variable, or unset it")
