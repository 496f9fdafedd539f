"""A store of images in one file: a zip, a tar, a Parquet or Arrow file, a base64 JSON, or the images inside records."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from preprocess.adapters.parsing.sample_records import is_image
from preprocess.containers.remote_path import is_remote
from preprocess.containers.remote_requests import read_ranges
from preprocess.errors import DataError, RejectError
from preprocess.images.base64_json import decode_base64
from preprocess.images.index import PROBLEMS, ArchiveEntry, ArchiveIndex, Packing
from preprocess.images.index_cache import CachedIndex
from preprocess.images.parquet_cells import ParquetCells
from preprocess.images.reading import check_name, check_size, damaged_copy, in_natural_order, read_exactly, with_path
from preprocess.images.stamps import Stamps, archive_stamps
from preprocess.images.tail import TAIL_BYTES
from preprocess.images.zip_tar import LOCAL_HEADER_BYTES, zip_data_offset, zip_member

_HEADER_BYTES = LOCAL_HEADER_BYTES + 512
"""As long is a member's header nearly always, with its name"""


class ArchiveStore:
    """Images in one archive, found through its index. Names are keys of the index, never paths."""

    def __init__(self, path: Path, cached: CachedIndex) -> None:
        self.path = path
        try:
            self.index = ArchiveIndex(cached.index_file)
            self.file = None if is_remote(cached.data_file) else os.open(cached.data_file, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:  # not the file's fault; Arrow's have no errno
                raise
            raise DataError(f"{cached.index_file}: cannot be read ({error}); delete it and run again") from None
        self._made_again = path.parent if cached.index_file.parent == path else cached.index_file
        """What to remove if a copy that this project made is damaged: all of ingest, or the index of the copy"""
        self.state = cached.state
        self.cells = ParquetCells(path, cached.state)
        self.data_path = str(cached.data_file)
        if self.file is None:
            self.data_size = cached.state[0]
        else:
            self.data_size = os.fstat(self.file).st_size
            weakref.finalize(self, os.close, self.file)

    def read(self, name: str) -> bytes:
        entry = self._find(name)
        if problem := PROBLEMS.get(entry.packing):
            raise RejectError("image_unreadable", f"{name!r} in {self.path}: {problem}")
        try:
            return self._unpack(name, entry)
        except ValueError as error:
            raise RejectError("image_unreadable", f"{name!r} in {self.path}: {error}") from None
        except OSError as error:
            raise with_path(error, self.data_path) from None

    def tail(self, name: str) -> tuple[int, bytes]:
        entry = self._find(name)
        if entry.packing in (Packing.RAW, Packing.KEPT) and entry.size:
            check_size(name, entry.size)
            count = min(entry.size, TAIL_BYTES)
            try:
                tail = self._packed(entry.offset + entry.size - count, count)
            except ValueError as error:
                raise RejectError("image_unreadable", f"{name!r} in {self.path}: {error}") from None
            except OSError as error:
                raise with_path(error, self.data_path) from None
            if entry.packing == Packing.KEPT and not entry.is_tail(tail):
                raise damaged_copy(self.data_path, name, self._made_again)
            return entry.size, tail
        data = self.read(name)
        return len(data), data[-TAIL_BYTES:]

    def stamp(self, name: str) -> tuple[int, int]:
        self._find(name)
        return self.state

    def stamps(self, names: Sequence[str]) -> Stamps:
        return archive_stamps(self.index, self.state, names, self.stamp)

    def names_below(self, name: str) -> list[str]:
        check_name(name)
        if self.index.find(name) is not None:
            return []
        return in_natural_order(name, [below for below in self.index.below(name) if is_image(below)])

    def _find(self, name: str) -> ArchiveEntry:
        check_name(name)
        entry = self.index.find(name)
        if entry is None:
            example = self.index.example()
            keys = "it is empty" if example is None else f"its keys look like {example!r}"
            raise RejectError("image_missing", f"{self.path} has no {name!r}; {keys}")
        if entry.packing == Packing.KEPT and entry.offset + entry.size > self.data_size:
            raise damaged_copy(self.data_path, name, self._made_again)
        return entry

    def _unpack(self, name: str, entry: ArchiveEntry) -> bytes:
        if entry.packing in (Packing.CELL, Packing.CELL_BASE64):
            data = self.cells.read(entry.offset, entry.size, entry.crc, entry.packing)
            check_size(name, len(data))
            return data
        is_zipped = entry.packing in (Packing.ZIP_STORED, Packing.ZIP_DEFLATED)
        if is_zipped:
            check_size(name, entry.unpacked_size)
        check_size(name, entry.size)
        packed = self._zipped(entry) if is_zipped else self._packed(entry.offset, entry.size)
        if entry.packing == Packing.KEPT and not entry.is_whole(packed):
            raise damaged_copy(self.data_path, name, self._made_again)
        if entry.packing in (Packing.RAW, Packing.KEPT):
            return packed
        if entry.packing in (Packing.BASE64, Packing.BASE64_ESCAPED):
            data = decode_base64(packed, escaped=entry.packing == Packing.BASE64_ESCAPED)
        else:
            data = zip_member(packed, entry.packing, entry.crc, entry.unpacked_size)
        check_size(name, len(data))
        return data

    def _zipped(self, entry: ArchiveEntry) -> bytes:
        """The packed bytes of a zip's member, in one read together with its header, which has the same start."""
        at_most = self.data_size - entry.offset
        head = self._packed(entry.offset, max(LOCAL_HEADER_BYTES, min(_HEADER_BYTES + entry.size, at_most)))
        start = zip_data_offset(head, entry.offset)
        packed = head[start - entry.offset :][: entry.size]
        return packed if len(packed) == entry.size else self._packed(start, entry.size)

    def _packed(self, offset: int, size: int) -> bytes:
        """Raises ValueError for a place that the archive never had, OSError if it has it no more."""
        if offset + size > self.data_size:
            raise ValueError(f"expected {size} bytes at byte {offset}, but the archive ends at byte {self.data_size}")
        if self.file is None:
            return read_ranges(self.data_path, [(offset, offset + size)])[0]
        return read_exactly(self.file, self.data_path, size, offset)
