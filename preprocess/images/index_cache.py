"""The cache of archive indexes: the kind of an archive, and where its index is.

Rule: all indexes are in `<cache>/stores/`. The name of an index contains a hash of the archive's path, size, mtime and
the index version, so a changed archive never gets an old index. Files appear complete or not at all. Two processes that
build the same index only waste work; a killed run leaves `.<name>.<random>.partial`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import xxhash

from dst.common.os_errors import os_error_text
from preprocess.containers import marks
from preprocess.containers.remote_path import is_remote
from preprocess.errors import DataError
from preprocess.images.base64_json import index_base64_json
from preprocess.images.index import VERSION, ArchiveIndexBuilder
from preprocess.images.listings import is_listed
from preprocess.images.parquet_cells import index_cells
from preprocess.images.tables import unpack_arrow, unpack_parquet
from preprocess.images.zip_tar import index_tar, index_zip
from shards.files import disk_named, flush_and_close, partial_path, sync_folder

FOLDER = "stores"
MAX_NAME_BYTES = 80
"""How much of an archive's own name is in the name of its index; file systems allow 255 bytes"""


class CachedIndex(NamedTuple):
    """data_file: the file that the offsets refer to. state: size in bytes and mtime in ns of the archive."""

    index_file: Path
    data_file: Path
    state: tuple[int, int]


class ArchiveKind(NamedTuple):
    """marks: (offset, bytes); one of them must match. last_wins: a repeated key means its last value, not an error."""

    name: str
    marks: tuple[tuple[int, bytes], ...]
    add_all: Callable[[Path, ArchiveIndexBuilder], None] | None = None
    unpack: Callable[[Path, ArchiveIndexBuilder, BinaryIO], None] | None = None
    last_wins: bool = False
    add_remote: Callable[[Path, ArchiveIndexBuilder], None] | None = None
    """In the place of `unpack` for a file behind a URL"""


ARCHIVES = (
    ArchiveKind("zip", ((0, b"PK\3\4"), (0, b"PK\5\6")), add_all=index_zip),
    ArchiveKind("parquet", ((0, marks.PARQUET),), unpack=unpack_parquet, add_remote=index_cells),
    ArchiveKind("arrow", ((0, marks.ARROW_FILE), (0, marks.ARROW_STREAM)), unpack=unpack_arrow),
    # tar -r and -u append a newer copy, and unpacking keeps the last. An empty tar is all zeros.
    ArchiveKind("tar", ((257, b"ustar"), (0, bytes(512))), add_all=index_tar, last_wins=True),
    ArchiveKind("json", ((0, b"{"),), add_all=index_base64_json),
)


def build_index(path: Path, cache: Path) -> None:
    """Index an archive, unless its index exists. Raises DataError for a file that is not a usable archive."""
    cached, kind = _place(path, cache)
    if _is_complete(cached):
        return
    folder = cached.index_file.parent
    new_index, new_data = partial_path(cached.index_file), partial_path(cached.index_file.with_suffix(".blob"))
    index = ArchiveIndexBuilder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with disk_named(folder):
            if kind.unpack:
                with new_data.open("wb") as blob:
                    kind.unpack(path, index, blob)
                    flush_and_close(blob)
            elif kind.add_all:
                kind.add_all(path, index)
            index.write(new_index, name=cached.index_file.name, last_wins=kind.last_wins)
        if _place(path, cache)[0] != cached:
            raise DataError(f"{path}: changed while it was being indexed; run again when the file is complete")
        if kind.unpack:
            new_data.replace(cached.data_file)
        new_index.replace(cached.index_file)  # last: an index means that its data file is complete
        sync_folder(folder)
    except OSError as error:
        raise DataError(os_error_text(error, action=str(path))) from None
    finally:
        new_index.unlink(missing_ok=True)
        new_data.unlink(missing_ok=True)
    _remove_old(cached)


def find_index(path: Path, cache: Path) -> CachedIndex:
    """The index of an archive. Raises DataError if there is none for its current state."""
    cached, _ = _place(path, cache)
    if not _is_complete(cached):
        raise DataError(f"{path}: has no index in {cache}, or changed after it was indexed; run again to index it")
    return cached


def current_files(path: Path, cache: Path) -> set[Path]:
    """The files below the cache that belong to the archive's current state, existing or not; none for a local folder.

    Raises DataError for a file that is not a usable archive.
    """
    if is_listed(path):
        return {listing_file(path, cache)}
    if path.is_dir():
        return set()
    cached, _ = _place(path, cache)
    return {cached.index_file, cached.data_file} - {path}


def is_prepared(path: Path, cache: Path) -> bool:
    """Whether the store can be opened: a folder that is local or was listed, or an archive with a current index."""
    try:
        if is_listed(path):
            return listing_file(path, cache).exists()
        return path.is_dir() or _is_complete(_place(path, cache)[0])
    except DataError:  # `build_index` reports it
        return False


def listing_file(path: Path, cache: Path) -> Path:
    """Where the listing of a folder in object storage is."""
    return cache / FOLDER / f"{_named(path)}-{xxhash.xxh3_64_hexdigest(f'{VERSION} listing'.encode())}.arrow"


def _is_complete(cached: CachedIndex) -> bool:
    return cached.index_file.is_file() and (is_remote(cached.data_file) or cached.data_file.is_file())


def _place(path: Path, cache: Path) -> tuple[CachedIndex, ArchiveKind]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is neither a folder nor a file")
        with path.open("rb") as file:
            kind = _kind(path, file.read(1 << 16))
        if kind.add_remote and is_remote(path):
            kind = kind._replace(unpack=None, add_all=kind.add_remote)
    except OSError as error:
        raise DataError(f"{path}: the image store cannot be read ({error.strerror})") from None
    state = status.st_size, status.st_mtime_ns
    when = xxhash.xxh3_64_hexdigest(f"{VERSION} {state[0]} {state[1]}".encode())
    name = f"{_named(path)}-{when}"
    data = cache / FOLDER / f"{name}.blob" if kind.unpack else path
    return CachedIndex(cache / FOLDER / f"{name}.arrow", data, state), kind


def _named(path: Path) -> str:
    where = xxhash.xxh3_64_hexdigest(os.fsencode(path.resolve()))
    return f"{os.fsencode(path.name)[:MAX_NAME_BYTES].decode(errors='ignore')}-{where}"


def _kind(path: Path, head: bytes) -> ArchiveKind:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    for kind in ARCHIVES:
        if any((text if kind.name == "json" else head).startswith(mark, offset) for offset, mark in kind.marks):
            return kind
    if marks.is_lfs_pointer(head):
        raise DataError(f"{path}: {marks.LFS_ADVICE}")
    if path.suffix == ".tar":
        return next(kind for kind in ARCHIVES if kind.name == "tar")  # from before the ustar mark existed
    if name := marks.compression(head):
        raise DataError(f"{path}: compressed with {name}: single images cannot be read; unpack it first")
    raise DataError(
        f"{path}: is not an image store: the file starts with {head[:12]!r}; "
        'expected a folder, a zip, a tar, a Parquet or Arrow file or a JSON object {"KEY": "<base64>", ...}'
    )


def _remove_old(cached: CachedIndex) -> None:
    """Remove indexes of earlier states of the archive; processes that have one open keep it."""
    own = cached.index_file.stem
    for old in cached.index_file.parent.iterdir():
        if old.suffix in (".arrow", ".blob") and old.stem != own and old.stem[:-16] == own[:-16]:
            old.unlink(missing_ok=True)
