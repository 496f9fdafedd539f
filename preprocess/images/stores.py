"""Image stores: where a dataset's images are, in a folder, a base64 JSON, a zip, a tar or a Parquet file, or at a URL.

Images that are named by URL are in the folder of `dsvl-prep fetch` alone, and no other names are. Images
that are inside records as text are in the files that ingest made of them.

Rules: a name in a record never leads out of its store. A lasting fault of one image is a RejectError. A fault that may
be gone in the next run (a disk or network error, no permission, too many open files, a file that shrinks while it is
read) is an OSError with the file's name. `prepare_store` makes an archive's index once; then each worker process calls
`open_stores` and reads:

    for path in paths: prepare_store(path, cache)
    stores = open_stores(paths, cache)
    data = stores.read(Image(name="000000000101.jpg"))
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from preprocess.adapters.parsing.sample_records import is_image
from preprocess.containers.remote_path import is_remote
from preprocess.conversation import Image, is_embedded, is_url
from preprocess.errors import RejectError
from preprocess.images.archive_store import ArchiveStore
from preprocess.images.embedded import embedded_index, has_embedded
from preprocess.images.fetched import FetchedStore, is_fetched_folder, not_fetched
from preprocess.images.index_cache import build_index, current_files, find_index, is_prepared, listing_file
from preprocess.images.listings import is_listed, list_folder
from preprocess.images.read_ahead import ReadAhead
from preprocess.images.reading import (
    check_name,
    check_regular,
    check_size,
    in_natural_order,
    read_exactly,
    with_path,
)
from preprocess.images.remote_folders import ListedFolderStore, WebFolderStore
from preprocess.images.stamps import MISSING, STAMP, Stamps, file_stamps
from preprocess.images.tail import TAIL_BYTES

__all__ = ["ArchiveStore", "FolderStore", "ImageStore", "StoreList"]
__all__ += ["current_files", "is_prepared", "open_store", "open_stores", "prepare_store"]

_NO_NAME = (
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.EINVAL,
)  # the last two: a character unknown to the file system
_NO_FILE = (errno.ENOENT, errno.ENOTDIR)
_NO_READING = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # a loop of links, a folder, a socket or a missing device
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: opening a pipe must not wait for a writer

T = TypeVar("T")


class ImageStore(Protocol):
    def read(self, name: str) -> bytes:
        """The image's bytes, at least one. Raises RejectError, or OSError if another try may succeed."""

    def tail(self, name: str) -> tuple[int, bytes]:
        """The image's size in bytes, and its last TAIL_BYTES. Raises as `read`; cheaper where nothing is packed."""

    def stamp(self, name: str) -> tuple[int, int]:
        """Size in bytes and mtime in ns of the file with the image; of the archive for all of its images.

        Raises RejectError if there is no such image, OSError if another try may find one.
        """

    def stamps(self, names: Sequence[str]) -> Stamps:
        """The stamps of many images, [N]. Raises OSError as `stamp` does."""

    def names_below(self, name: str) -> list[str]:
        """The names of the images directly in the folder `name`, in natural order; empty if it is not a folder.

        Raises RejectError for a name that leads elsewhere, OSError if another try may succeed.
        """


def prepare_store(path: Path, cache: Path) -> None:
    """Build the index of an archive below `cache`, unless it exists; list a folder in object storage.

    A local folder needs nothing. Raises DataError for an archive that cannot be used.
    """
    if is_listed(path):
        list_folder(path, listing_file(path, cache))
    elif not path.is_dir():
        build_index(path, cache)


def open_store(path: Path, cache: Path) -> ImageStore:
    """Open a store; cheap. Raises DataError if an archive changed after `prepare_store`."""
    if is_remote(path) and path.is_dir():
        return ListedFolderStore(path, listing_file(path, cache)) if is_listed(path) else WebFolderStore(path)
    if has_embedded(path):
        return ArchiveStore(path, embedded_index(path))
    if is_fetched_folder(path):
        return FetchedStore(path)
    return FolderStore(path) if path.is_dir() else ArchiveStore(path, find_index(path, cache))


def open_stores(paths: Sequence[Path], cache: Path) -> StoreList:
    return StoreList([open_store(path, cache) for path in paths])


class StoreList:
    """A dataset's stores. An image with a store is read from it, any other from the first store that has it."""

    def __init__(self, stores: Sequence[ImageStore]) -> None:
        self.stores = tuple(stores)
        self._by_url = [store for store in stores if isinstance(store, FetchedStore)]
        self._embedded = [store for store in stores if isinstance(store, ArchiveStore) and has_embedded(store.path)]
        special = (*self._by_url, *self._embedded)
        self._by_name = [store for store in stores if store not in special]
        self._watch: Callable[[Image, bytes], None] | None = None
        self._ahead: ReadAhead | None = None

    def watched(self, watch: Callable[[Image, bytes], None]) -> StoreList:
        """The same stores; `watch` gets each image that is read whole, and its bytes."""
        watched = copy(self)
        watched._watch = watch
        return watched

    @contextmanager
    def reading_ahead(self, images: Iterator[Image]) -> Iterator[StoreList]:
        """The same stores; those behind a URL read ahead of what is asked for. images: in about that order."""
        if not any(map(_is_remote, self.stores)):
            yield self
            return
        stores = copy(self)
        stores._ahead = ReadAhead(self._read, images)
        try:
            yield stores
        finally:
            stores._ahead.close()

    def read(self, image: Image) -> bytes:
        data = (self._ahead or self._read)(image)
        if self._watch is not None:
            self._watch(image, data)
        return data

    def _read(self, image: Image) -> bytes:
        return self._first(image, lambda store: store.read(image.name))

    def tail(self, image: Image) -> tuple[int, bytes]:
        return self._first(image, lambda store: store.tail(image.name))

    def stamp(self, image: Image) -> tuple[int, int]:
        return self._first(image, lambda store: store.stamp(image.name))

    def stamps(self, names: Sequence[str], in_store: npt.NDArray[np.int64]) -> Stamps:
        """The stamps of N images, [N]. in_store: for each the number of its store, or -1 to search all."""
        result = np.zeros(len(names), STAMP)
        result["size"] = MISSING
        for number in np.unique(in_store[in_store >= 0]).tolist():
            rows = np.flatnonzero(in_store == number)
            result[rows] = self.stores[number].stamps([names[row] for row in rows.tolist()])
        rows = np.flatnonzero(in_store < 0)
        kinds = np.fromiter((_kind(names[row]) for row in rows.tolist()), np.int64, len(rows))
        searched: list[Sequence[ImageStore]] = [self._by_name, self._by_url, self._embedded]
        for kind, stores in enumerate(searched):
            waiting = rows[kinds == kind]
            for store in stores:
                result[waiting] = store.stamps([names[row] for row in waiting.tolist()])
                waiting = waiting[result["size"][waiting] == MISSING]
        return result

    def names_below(self, image: Image) -> list[str]:
        """The names of the images in the folder that a reference names, in the first store that has some."""
        if is_url(image.name) or is_embedded(image.name):
            return []
        stores = self._by_name if image.store is None else [self.stores[image.store]]
        return next((names for store in stores if (names := store.names_below(image.name))), [])

    def _first(self, image: Image, ask: Callable[[ImageStore], T]) -> T:
        if image.store is not None:
            return ask(self.stores[image.store])
        by_url = is_url(image.name)
        if by_url and not self._by_url:
            raise not_fetched("it is a URL")
        missing = []
        for store in self._by_url if by_url else self._embedded if is_embedded(image.name) else self._by_name:
            try:
                return ask(store)
            except RejectError as error:
                if error.reason != "image_missing":
                    raise
                missing.append(error.detail)
        raise RejectError("image_missing", "; ".join(missing) or f"no image store to look for {image.name!r} in")


def _is_remote(store: ImageStore) -> bool:
    if isinstance(store, ArchiveStore):
        return is_remote(store.path)
    return isinstance(store, ListedFolderStore | WebFolderStore)


def _kind(name: str) -> int:
    """0 for a name in a folder or archive, 1 for a URL, 2 for an image inside a record."""
    if ":" not in name:  # as in nearly all
        return 0
    return 1 if is_url(name) else 2 if is_embedded(name) else 0


class FolderStore:
    """Image files below a folder. Links inside it are the owner's choice and are followed."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.prefix = os.path.join(self.root, "")

    def read(self, name: str) -> bytes:
        return self._read(name, None)[1]

    def tail(self, name: str) -> tuple[int, bytes]:
        return self._read(name, TAIL_BYTES)

    def _read(self, name: str, at_most: int | None) -> tuple[int, bytes]:
        """The file's size, and all of its bytes or the last `at_most`."""
        check_name(name, in_folder=True)
        path = self.prefix + name
        try:
            file = os.open(path, _READ_FLAGS)
        except (OSError, ValueError) as error:
            raise self._failed(name, error) from None
        try:
            status = os.fstat(file)
            check_regular(name, status)
            check_size(name, status.st_size)
            count = status.st_size if at_most is None else min(status.st_size, at_most)
            return status.st_size, read_exactly(file, path, count, status.st_size - count)
        except OSError as error:
            raise with_path(error, path) from None
        finally:
            os.close(file)

    def stamp(self, name: str) -> tuple[int, int]:
        check_name(name, in_folder=True)
        try:
            status = os.stat(self.prefix + name)
        except (OSError, ValueError) as error:
            raise self._failed(name, error) from None
        check_regular(name, status)
        return status.st_size, status.st_mtime_ns

    def stamps(self, names: Sequence[str]) -> Stamps:
        return file_stamps(self.root, names, self.stamp)

    def names_below(self, name: str) -> list[str]:
        check_name(name, in_folder=True)
        try:
            with os.scandir(self.prefix + name) as entries:
                found = [entry.name for entry in entries if is_image(entry.name) and entry.is_file()]
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in (*_NO_FILE, *_NO_NAME, *_NO_READING):
                raise with_path(error, self.prefix + name) from None
            return []
        return in_natural_order(name, found)

    def _failed(self, name: str, error: OSError | ValueError) -> RejectError | OSError:
        """What to raise for a name that cannot be opened."""
        if not isinstance(error, OSError) or error.errno in _NO_NAME:  # ValueError: a lone surrogate
            return RejectError("image_path", f"{name[:200]!r} is not a file name ({error})")
        if error.errno in _NO_FILE:
            os.stat(self.root)  # raises if the folder itself is gone, such as on a lost mount
            return RejectError("image_missing", f"{self.root} has no {name!r}")
        if error.errno in _NO_READING:
            return RejectError("image_unreadable", f"{name!r} cannot be read: {error.strerror}")
        return with_path(error, self.prefix + name)
