"""Folders of images behind URLs: in object storage by a listing, on a web server image by image.

Rule: reading an image is one request. One that is not what the listing said was written again, which is an OSError: the
next run lists again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from preprocess.adapters.parsing.sample_records import is_image
from preprocess.containers.remote_requests import changed, file_entry, read_ranges, read_whole
from preprocess.errors import DataError, RejectError
from preprocess.images.index import ArchiveEntry, ArchiveIndex
from preprocess.images.reading import check_name, check_size, in_natural_order
from preprocess.images.stamps import STAMP, Stamps, listed_stamps, stamps_one_by_one
from preprocess.images.tail import TAIL_BYTES

_THREADS = 32
_CALLS = 64


class ListedFolderStore:
    """A folder in object storage. Raises DataError for a listing that cannot be read."""

    def __init__(self, root: Path, index_file: Path) -> None:
        self.root = str(root)
        try:
            self.index = ArchiveIndex(index_file)
        except FileNotFoundError:
            raise DataError(f"{root}: was not listed; run again to list it") from None
        except pa.ArrowException as error:
            raise DataError(f"{index_file}: cannot be read ({error}); delete it and run again") from None

    def read(self, name: str) -> bytes:
        entry = self._find(name)
        check_size(name, entry.size)
        try:
            return read_whole(self._url(name), entry.size)
        except FileNotFoundError:
            raise changed(self._url(name)) from None

    def tail(self, name: str) -> tuple[int, bytes]:
        entry = self._find(name)
        check_size(name, entry.size)
        try:
            return entry.size, read_ranges(self._url(name), [(max(0, entry.size - TAIL_BYTES), entry.size)])[0]
        except FileNotFoundError:
            raise changed(self._url(name)) from None

    def stamp(self, name: str) -> tuple[int, int]:
        entry = self._find(name)
        return entry.size, entry.offset

    def stamps(self, names: Sequence[str]) -> Stamps:
        return listed_stamps(self.index, names, self.stamp)

    def names_below(self, name: str) -> list[str]:
        check_name(name, in_folder=True)
        return in_natural_order(name, [below for below in self.index.below(name) if is_image(below)])

    def _find(self, name: str) -> ArchiveEntry:
        check_name(name, in_folder=True)
        entry = self.index.find(name)
        if entry is None:
            raise RejectError("image_missing", f"{self.root} has no {name!r}")
        return entry

    def _url(self, name: str) -> str:
        return f"{self.root}/{name}"


class WebFolderStore:
    """A folder on a web server: a request says what an image is, and another one brings it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def read(self, name: str) -> bytes:
        try:
            data = read_whole(self._url(name), None)
        except FileNotFoundError:
            raise self._missing(name) from None
        check_size(name, len(data))
        return data

    def tail(self, name: str) -> tuple[int, bytes]:
        data = self.read(name)  # not all servers give a part
        return len(data), data[-TAIL_BYTES:]

    def stamp(self, name: str) -> tuple[int, int]:
        try:
            entry = file_entry(self._url(name))
        except FileNotFoundError:
            raise self._missing(name) from None
        return entry.size, entry.mark

    def stamps(self, names: Sequence[str]) -> Stamps:
        with ThreadPoolExecutor(_THREADS, "stamps") as pool:
            starts = range(0, len(names), _CALLS)
            parts = pool.map(lambda start: stamps_one_by_one(self.stamp, names[start : start + _CALLS]), starts)
            return np.concatenate([np.zeros(0, STAMP), *parts])

    def names_below(self, name: str) -> list[str]:
        """A web server does not say."""
        check_name(name, in_folder=True)
        return []

    def _missing(self, name: str) -> RejectError:
        return RejectError("image_missing", f"{self.root} has no {name!r}")

    def _url(self, name: str) -> str:
        check_name(name, in_folder=True)
        try:
            return f"{self.root}/{quote(name)}"
        except UnicodeEncodeError as error:
            raise RejectError("image_path", f"{name[:200]!r} is not a file name ({error.reason})") from None
