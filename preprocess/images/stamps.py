"""The stamps of many images at once: size and mtime of each file, by which a build finds what changed.

Rule: a stamp is what `ImageStore.stamp` returns, or why it returns none. Looking up names one by one costs more than
the system call itself, so checks of names and lookups in an index run over all names together. Where each call waits
for a network, calls run in threads.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from preprocess.errors import RejectError
from preprocess.images.index import ArchiveIndex, key_bytes
from preprocess.images.reading import MAX_NAME_CHARACTERS

STAMP = np.dtype([("size", "<i8"), ("mtime_ns", "<i8")])
Stamps = npt.NDArray[np.void]
"""One STAMP for each of N names, [N]. size: MISSING if there is no such image; FAULT if there is another reason"""

MISSING, FAULT = -1, -2

_SUSPICIOUS = (b"\\", b":", b"\0/", b"\0.", b"/.", b"\0\0")
"""A name without any of these, between zeros, passes every check of names"""

_FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC  # O_PATH asks for no right to list
_SLOW_CALL_S = 100e-6
"""A local file takes a few microseconds, one on a network file system hundreds"""
_CALLS = 1024
_THREADS = 32

Stamp = Callable[[str], tuple[int, int]]


def stamps_one_by_one(stamp: Stamp, names: Sequence[str]) -> Stamps:
    """Raises OSError as `stamp` does."""
    result = np.zeros(len(names), STAMP)
    for row, name in enumerate(names):
        result[row] = _stamp_or_fault(stamp, name)
    return result


def file_stamps(root: str, names: Sequence[str], stamp: Stamp) -> Stamps:
    """Of files below a folder. stamp: of a single one, for what is not a plain file. Raises OSError as it does."""
    paths = plain_paths(names)
    if not paths:
        return stamps_one_by_one(stamp, names)
    folder = os.open(root, _FOLDER_FLAGS)
    try:

        def look_up(start: int) -> Stamps:
            return _look_up(paths[start : start + _CALLS], folder, stamp)

        begin = time.perf_counter()
        first = look_up(0)
        is_slow = time.perf_counter() - begin > _SLOW_CALL_S * len(first)
        rest = range(_CALLS, len(paths), _CALLS)
        if not is_slow:
            return np.concatenate([first, *map(look_up, rest)])
        with ThreadPoolExecutor(_THREADS, "stamps") as pool:
            return np.concatenate([first, *pool.map(look_up, rest)])
    finally:
        os.close(folder)


def _look_up(paths: list[bytes], folder: int, stamp: Stamp) -> Stamps:
    """folder: an open one, in which the kernel finds paths faster than from the root."""
    modes, sizes, times = [], [], []
    for path in paths:
        try:
            status = os.stat(path, dir_fd=folder)
        except OSError:  # also for a name that is too long
            modes.append(0)
            sizes.append(0)
            times.append(0)
        else:
            modes.append(status[0])
            sizes.append(status[6])
            times.append(status.st_mtime_ns)
    result = np.empty(len(paths), STAMP)
    result["size"], result["mtime_ns"] = sizes, times
    for row in np.flatnonzero(np.array(modes) & 0o170000 != stat.S_IFREG).tolist():
        result[row] = _stamp_or_fault(stamp, os.fsdecode(paths[row]))
    return result


def archive_stamps(index: ArchiveIndex, state: tuple[int, int], names: Sequence[str], stamp: Stamp) -> Stamps:
    """Of images in an archive with this state. stamp: of a single one; called for names that are not found at once."""
    result = np.zeros(len(names), STAMP)
    result[:] = state
    _, known = _known_rows(index, names)
    return _with_others(result, known, names, stamp)


def listed_stamps(index: ArchiveIndex, names: Sequence[str], stamp: Stamp) -> Stamps:
    """Of images in a listing, where each has its own: its size, and in place of the mtime its offset."""
    result = np.zeros(len(names), STAMP)
    rows, known = _known_rows(index, names)
    result["size"][known] = index.sizes[rows[known]]
    result["mtime_ns"][known] = index.offsets[rows[known]]
    return _with_others(result, known, names, stamp)


def _with_others(result: Stamps, known: npt.NDArray[np.bool_], names: Sequence[str], stamp: Stamp) -> Stamps:
    for row in np.flatnonzero(~known).tolist():
        result[row] = _stamp_or_fault(stamp, names[row])
    return result


def _known_rows(index: ArchiveIndex, names: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The rows of the index with N names, and which of the names are found for sure, [N] each."""
    import pyarrow.compute as pc  # slow to import, and most workers look up nothing

    expected = [key_bytes(name) for name in names]
    rows = index.hashes.searchsorted(np.array([xxhash.xxh3_64_intdigest(key) for key in expected], np.uint64))
    is_plain = plain_paths(names) is not None and max(map(len, names), default=0) <= MAX_NAME_CHARACTERS
    inside = np.flatnonzero(rows < len(index.hashes)) if is_plain else rows[:0]
    keys = index.keys.take(pa.array(rows[inside]))
    asked = pa.array([expected[row] for row in inside.tolist()], pa.large_binary())
    known = np.zeros(len(names), np.bool_)
    known[inside] = pc.equal(keys, asked).to_numpy(zero_copy_only=False)
    return rows, known


def plain_paths(names: Sequence[str]) -> list[bytes] | None:
    """The names as the file system has them, if `check_name` accepts all of them for sure, except for their length."""
    try:
        joined = os.fsencode("\0".join(["", *names, ""]))
    except UnicodeEncodeError:
        return None
    paths = joined.split(b"\0")[1:-1]
    return None if len(paths) != len(names) or any(mark in joined for mark in _SUSPICIOUS) else paths


def _stamp_or_fault(stamp: Stamp, name: str) -> tuple[int, int]:
    try:
        return stamp(name)
    except RejectError as error:
        if error.reason == "image_missing":
            return MISSING, 0
        return FAULT, xxhash.xxh3_64_intdigest(error.reason.encode()) >> 1
