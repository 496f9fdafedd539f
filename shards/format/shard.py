"""One shard: a tar and its index.

Rule: a sample's bytes are read once and compared with the index's checksum, an index's with the manifest's digest; what
was compared is what is given out. Damage raises ShardError naming the shard and the sample's key.

The tar is read at offsets and not mapped: a mapped file that is cut while it is read stops the process (SIGBUS), may
change after it was compared, and each of its pages costs a fault.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from shards.errors import ShardError
from shards.format.container import END_OF_ARCHIVE, decode_tokens, members
from shards.format.index import IndexEntry, open_index
from shards.format.sample import Sample
from shards.format.shard_info import ShardInfo
from shards.images.tiles import grids_of
from shards.storage.store import Store

WHOLE_INDEX_BYTES = 16 << 20
"""Up to this size (100,000 samples) an index is compared with its digest; a larger one entry by entry, when used."""

_DONTNEED = 4  # MADV_DONTNEED, the same number on Linux and macOS
_OPENS = 3

T = TypeVar("T")


class Shard:
    """An open shard. The tar is opened when the first sample is read, so that lengths alone need the index alone."""

    def __init__(self, store: Store, info: ShardInfo) -> None:
        self.info = info
        self.name = store.name(info.path)
        self._store = store
        self._index_name = store.name(info.index)
        self._path: Path | None = None
        self._tar: _File | None = None
        self._index_is_checked = False
        self._index_path, self.index = self._opened(info.index, info.index_size, info.index_sha256, open_index)
        if len(self.index) != info.samples:
            raise ShardError(
                f"{self._index_name}: has {len(self.index)} entries, the manifest says {info.samples}; it is the index "
                "of another shard"
            )
        if self.index.has_tiles != (info.tiles is not None):
            raise ShardError(
                f"{self._index_name}: has {'a' if self.index.has_tiles else 'no'} column of tiles, the manifest says "
                "otherwise; it is the index of another shard"
            )

    def __len__(self) -> int:
        return self.info.samples

    @cached_property
    def path(self) -> Path:
        """The tar on this machine. Raises ShardError if it is missing or has another size."""
        return self._store.local(self.info.path, size=self.info.size, sha256=self.info.sha256)

    def file(self) -> BinaryIO:
        """The whole tar, for the caller to close. Raises ShardError if it cannot be had."""
        return (self._tar or self._open_tar()).whole()

    def check_index(self) -> None:
        """Compare the index with the manifest's digest. Raises ShardError.

        Done before the first sample is read, and no earlier: to pack sequences, lengths are looked up in thousands of
        shards, and each sample is compared with its length anyway.
        """
        if self.info.index_size <= WHOLE_INDEX_BYTES:
            digest = hashlib.sha256(self.index.buffer).hexdigest()
            if digest != self.info.index_sha256:
                raise ShardError(
                    f"{self._index_name}: sha256 is {digest[:12]}, the manifest says {self.info.index_sha256[:12]}; it "
                    "was damaged, or is the index of another shard; rebuild to write it again"
                    + self._store.advice(self._index_path)
                )
        self._index_is_checked = True

    def tiles_of(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tiles of all images of each of these samples, int64 [n]. Raises ShardError if the index is damaged."""
        try:
            return self.index.tiles_of(numbers)
        except ValueError as error:
            raise self._index_error(str(error)) from None

    def sample_keys(self) -> list[str]:
        """All samples' keys, in order. Raises ShardError if the index is damaged."""
        keys = self.index.table.select(["key"])
        try:
            keys.validate(full=True)
        except (ValueError, pa.ArrowException) as error:
            raise self._index_error(str(error)) from None
        names: list[str] = keys.column("key").to_pylist()
        return names

    def region(self, number: int) -> tuple[str, bytes, list[memoryview]]:
        """Key, all bytes of the sample, and the contents of its members, checked against the index.

        Raises ShardError for damage in the sample or in its entry of the index, IndexError for an unknown sample.
        """
        entry = self._entry(number)
        region = self._read(entry)
        return entry.key, region, self._members(entry, region)

    def __getitem__(self, number: int) -> Sample:
        entry = self._entry(number)
        return self._sample(entry, self._read(entry))

    @property
    def is_local(self) -> bool:
        """Whether reading a sample downloads nothing."""
        return self._tar is not None or self._store.is_local(
            self.info.path, size=self.info.size, sha256=self.info.sha256
        )

    def span(self, number: int) -> tuple[int, int]:
        """Where a sample's bytes are in the tar, [start, end). Raises ShardError if the index is damaged."""
        if not self._index_is_checked:
            self.check_index()
        entry = self._entry(number)
        if entry.offset + entry.size > self.info.size:
            raise self._index_error(f"sample {entry.key} is outside the shard")
        return entry.offset, entry.offset + entry.size

    def sample_of(self, number: int, region: bytes) -> Sample:
        """The sample that has these bytes. Raises ShardError as reading it does."""
        entry = self._entry(number)
        self._check(entry, region)
        return self._sample(entry, region)

    def _sample(self, entry: IndexEntry, region: bytes) -> Sample:
        contents = self._members(entry, region)
        num_images = len(contents) - 2
        if num_images != entry.images:
            raise ShardError(f"{self.name}: sample {entry.key} has {num_images} images, its index says {entry.images}")
        try:
            tokens = decode_tokens(contents[1], entry.text_tokens + num_images)
        except ValueError as error:
            raise ShardError(f"{self.name}: the tokens of sample {entry.key} cannot be read: {error}") from None
        sample = Sample(self.name, entry.key, contents[0], tokens, contents[2:])
        if entry.tiles is not None:
            sample.stated_grids = grids_of(sample.metadata.get("images"), sample.where)
            got = [grid.tiles for grid in sample.stated_grids]
            if entry.tiles != got:
                raise ShardError(f"{sample.where} has images of {got} tiles, its index says {entry.tiles}")
        return sample

    @property
    def was_removed(self) -> bool:
        """Whether the tar is open but no longer in its folder, so that it takes space until it is closed."""
        return self._tar is not None and self._tar.was_removed

    def close_tar(self) -> None:
        """It is opened again when a sample is read."""
        self._tar = None

    def forget_index(self) -> None:
        """Let go of the index's pages that were read; they stay in the system's cache, and are mapped when needed.

        Without this a process's resident memory would grow by every index it has read.
        """
        buffer = self.index.buffer
        if isinstance(buffer, pa.Buffer) and hasattr(_LIBC, "madvise"):
            _LIBC.madvise(ctypes.c_void_p(buffer.address), ctypes.c_size_t(buffer.size), _DONTNEED)

    def _open_tar(self) -> _File:
        if not self._index_is_checked:
            self.check_index()
        self._path, tar = self._opened(self.info.path, self.info.size, self.info.sha256, self._open)
        try:
            end = tar.read(self.info.size - len(END_OF_ARCHIVE), len(END_OF_ARCHIVE))
        except OSError as error:
            raise self._unreadable(error) from None
        if end != END_OF_ARCHIVE:
            raise self._damaged(f"its end is damaged; expected {len(END_OF_ARCHIVE)} zero bytes")
        self._tar = tar
        return tar

    def _open(self, local: Path) -> _File:
        try:
            return _File(os.open(local, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise self._unreadable(error) from None

    def _opened(self, path: str, size: int, sha256: str, open_file: Callable[[Path], T]) -> tuple[Path, T]:
        """The local file, opened. Another process may remove it from a cache before that; then it is fetched again."""
        for _ in range(_OPENS):
            local = self._store.local(path, size=size, sha256=sha256)
            try:
                return local, open_file(local)
            except ShardError as error:
                last = error
                if local.exists():
                    break
        raise last

    def _unreadable(self, error: OSError) -> ShardError:
        return ShardError(f"{self.name}: the shard cannot be read ({error})")

    def _damaged(self, problem: str) -> ShardError:
        return ShardError(f"{self.name}: {problem}" + (self._store.advice(self._path) if self._path else ""))

    def _entry(self, number: int) -> IndexEntry:
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.name}: no sample {number}; it has {len(self)}")
        try:
            return self.index.entry(number % len(self))
        except ValueError as error:
            raise self._index_error(f"entry {number}: {error}") from None

    def _read(self, entry: IndexEntry) -> bytes:
        """All bytes of a sample, compared with its checksum."""
        tar = self._tar or self._open_tar()
        try:  # a damaged index may name any place
            region = tar.read(entry.offset, entry.size) if entry.offset + entry.size <= self.info.size else b""
        except OSError as error:
            raise self._unreadable(error) from None
        self._check(entry, region)
        return region

    def _check(self, entry: IndexEntry, region: bytes) -> None:
        if len(region) != entry.size or xxhash.xxh3_64_intdigest(region) != entry.checksum:
            raise self._damaged(f"sample {entry.key} is damaged: its bytes do not match the index's checksum")

    def _members(self, entry: IndexEntry, region: bytes) -> list[memoryview]:
        try:
            return members(entry.key, region, entry.member_offsets, entry.member_sizes)
        except ValueError as error:
            raise self._damaged(f"sample {entry.key} is damaged: {error}") from None

    def _index_error(self, problem: str) -> ShardError:
        return ShardError(f"{self.name}: its index {self.info.index} is damaged: {problem}")


class _File:
    """An open file, read at any place of it; forked processes may share it. Closed with its last user."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def read(self, offset: int, size: int) -> bytes:
        """Less where the file ends. Raises OSError."""
        data = os.pread(self._number, size, offset)
        while len(data) < size and (more := os.pread(self._number, size - len(data), offset + len(data))):
            data += more  # Linux reads at most 2 GiB at once
        return data

    @property
    def was_removed(self) -> bool:
        return os.fstat(self._number).st_nlink == 0

    def whole(self) -> BinaryIO:
        file = os.fdopen(os.dup(self._number), "rb")
        file.seek(0)
        return file

    def __del__(self) -> None:
        os.close(self._number)


_LIBC = ctypes.CDLL(None)
