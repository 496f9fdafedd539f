"""The index of an image archive: for every key, where its bytes are in a data file and how they are packed.

Rule: an Arrow IPC file, sorted by the 64-bit xxh3 of the key. It is memory-mapped, so a lookup is a binary search and
memory does not grow with the number of keys. A repeated key stays in the index, marked as unreadable. The digest of the
file follows it: Arrow trusts the offsets in a file, and with a wrong one it would read and write anywhere. It covers
the file's name as well, since the index of another archive would give other images.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from preprocess.images.tail import TAIL_BYTES
from shards.files import owned_digest

VERSION = 5

_DIGEST_BYTES = 16


class Packing(IntEnum):
    """How an image's bytes are packed in the data file; from DUPLICATE on, why they cannot be read.

    A CELL is one of a Parquet file (preprocess.images.parquet_cells): its offset is a row, its size the place in a
    list, its crc the number of the column. KEPT is raw in a copy that this project made: its crc and unpacked_size are
    digests of the image and of its tail (`is_whole`, `is_tail`).
    """

    RAW = 0
    BASE64 = 1
    BASE64_ESCAPED = 2
    ZIP_STORED = 3
    ZIP_DEFLATED = 4
    CELL = 5
    CELL_BASE64 = 6
    KEPT = 7
    DUPLICATE = 64
    NOT_TEXT = 65
    ENCRYPTED = 66
    METHOD = 67
    LINK = 68
    SPARSE = 69


PROBLEMS: dict[int, str] = {
    Packing.DUPLICATE: "the key appears twice",
    Packing.NOT_TEXT: "the value is not a base64 text",
    Packing.ENCRYPTED: "it is encrypted",
    Packing.METHOD: "its compression method is not supported; pack it again with stored or deflate",
    Packing.LINK: "it is a link; pack the tar again with --dereference --hard-dereference",
    Packing.SPARSE: "it is a sparse file; pack the tar again without --sparse",
}


class ArchiveEntry(NamedTuple):
    """offset, size: of the packed bytes. crc, unpacked_size: of the image itself; 0 if the archive has none."""

    offset: int
    size: int
    packing: int
    crc: int
    unpacked_size: int

    def is_whole(self, image: bytes) -> bool:
        """Whether these are the bytes of a KEPT image."""
        return self.crc == _short_digest(image)

    def is_tail(self, tail: bytes) -> bool:
        """Whether these are the last TAIL_BYTES of a KEPT image."""
        return self.unpacked_size == xxhash.xxh3_64_intdigest(tail)


def key_bytes(key: str) -> bytes:
    """A key as the index stores it; broken names in archives contain lone surrogates."""
    return key.encode("utf-8", "surrogatepass")


class ArchiveIndexBuilder:
    """Collects entries, 60 bytes each plus the key, and writes them sorted."""

    def __init__(self) -> None:
        self.keys = bytearray()
        self.ends = array("q", [0])
        self.hashes = array("Q")
        self.offsets = array("Q")
        self.sizes = array("Q")
        self.packings = array("B")
        self.crcs = array("Q")
        self.unpacked_sizes = array("Q")

    def __len__(self) -> int:
        return len(self.hashes)

    def add(
        self, key: str, offset: int, size: int, packing: Packing = Packing.RAW, crc: int = 0, unpacked_size: int = 0
    ) -> None:
        name = key_bytes(key)
        self.keys += name
        self.ends.append(len(self.keys))
        self.hashes.append(xxhash.xxh3_64_intdigest(name))
        self.offsets.append(offset)
        self.sizes.append(size)
        self.packings.append(packing)
        self.crcs.append(crc)
        self.unpacked_sizes.append(unpacked_size)

    def add_kept(self, keys: Iterable[str], offset: int, image: bytes | memoryview) -> None:
        """An image of which this project made a copy, under each of its keys."""
        whole, tail = _short_digest(image), xxhash.xxh3_64_intdigest(memoryview(image)[-TAIL_BYTES:])
        for key in keys:
            self.add(key, offset, len(image), Packing.KEPT, whole, tail)

    def write(self, path: Path, *, name: str | None = None, last_wins: bool = False) -> None:
        """Write the index to a new file, with fsync.

        name: that the file will have, if it is renamed. last_wins: a repeated key means its last value, as in a tar.
        """
        hashes = np.frombuffer(self.hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        ends, names = pa.py_buffer(self.ends), pa.py_buffer(self.keys)
        keys = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), [None, ends, names]).take(pa.array(order))
        hashes = hashes[order]
        packings = np.frombuffer(self.packings, dtype=np.uint8)[order]
        kept = np.ones(len(self), dtype=np.bool_)
        _mark_repeats(hashes, keys, packings, kept, last_wins)
        columns = {
            "hash": pa.array(hashes),
            "key": keys,
            "offset": pa.array(np.frombuffer(self.offsets, dtype=np.uint64)[order]),
            "size": pa.array(np.frombuffer(self.sizes, dtype=np.uint64)[order]),
            "packing": pa.array(packings),
            "crc": pa.array(np.frombuffer(self.crcs, dtype=np.uint64)[order].astype(np.uint32)),
            "unpacked_size": pa.array(np.frombuffer(self.unpacked_sizes, dtype=np.uint64)[order]),
        }
        batch = pa.RecordBatch.from_pydict(columns)
        if not kept.all():
            batch = batch.filter(pa.array(kept))
        with path.open("wb") as file:
            with pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            with pa.memory_map(str(path)) as written:
                file.write(owned_digest(name or path.name, written.read_buffer()).digest())
            file.flush()
            os.fsync(file.fileno())


class ArchiveIndex:
    """An index file, memory-mapped; all of it is read once. Raises OSError or pa.ArrowInvalid if it is damaged."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
        size = len(whole) - _DIGEST_BYTES
        if size <= 0 or owned_digest(path.name, whole.slice(0, size)).digest() != whole.slice(size).to_pybytes():
            raise pa.ArrowInvalid("it is not the file that was written")
        batch = pa.ipc.open_file(pa.BufferReader(whole.slice(0, size))).get_batch(0)
        self.keys = batch.column("key")
        self._sorted: pa.LargeBinaryArray | None = None
        self.hashes, self.offsets, self.sizes, self.packings, self.crcs, self.unpacked_sizes = (
            batch.column(name).to_numpy() for name in ("hash", "offset", "size", "packing", "crc", "unpacked_size")
        )

    def find(self, key: str) -> ArchiveEntry | None:
        name = key_bytes(key)
        expected = np.uint64(xxhash.xxh3_64_intdigest(name))
        row = int(self.hashes.searchsorted(expected))
        while row < len(self.hashes) and self.hashes[row] == expected:
            if self.keys[row].as_py() == name:
                return ArchiveEntry(
                    int(self.offsets[row]),
                    int(self.sizes[row]),
                    int(self.packings[row]),
                    int(self.crcs[row]),
                    int(self.unpacked_sizes[row]),
                )
            row += 1  # another key with the same hash
        return None

    def below(self, folder: str) -> list[str]:
        """What follows the folder's name in the keys directly in it. The first call sorts all keys."""
        if self._sorted is None:
            import pyarrow.compute as pc

            self._sorted = self.keys.take(pc.array_sort_indices(self.keys))
        prefix = key_bytes(f"{folder.rstrip('/')}/")
        keys, found = self._sorted, []
        for row in range(bisect_left(range(len(keys)), prefix, key=lambda row: keys[row].as_py()), len(keys)):
            key = keys[row].as_py()
            if not key.startswith(prefix):
                break
            if b"/" not in key[len(prefix) :]:
                found.append(key[len(prefix) :].decode("utf-8", "surrogatepass"))
        return found

    def example(self) -> str | None:
        """One of the keys, for messages; None if the index is empty."""
        return bytes(self.keys[0].as_py()).decode("utf-8", "replace") if len(self.keys) else None


def _short_digest(image: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(image) & 0xFFFFFFFF


def _mark_repeats(
    hashes: np.ndarray[tuple[int], np.dtype[np.uint64]],
    keys: pa.LargeBinaryArray,
    packings: np.ndarray[tuple[int], np.dtype[np.uint8]],
    kept: np.ndarray[tuple[int], np.dtype[np.bool_]],
    last_wins: bool,
) -> None:
    """Keep one row of each repeated key: its last value, or a mark. Rows of equal keys are still in archive order."""
    second = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    latest: dict[bytes, int] = {}
    for row in np.union1d(second - 1, second).tolist():
        key = keys[row].as_py()
        if key in latest:
            kept[latest[key]] = False
            if not last_wins:
                packings[row] = Packing.DUPLICATE
        latest[key] = row
