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
from itertools import chain

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

_SUSPICIOUS = ("\\", "\0", ":", "\n/", "\n.", "/.", "\n\n")
"""A name without any of these, behind a line break, passes every check of names"""

_SLOW_CALL_S = 100e-6
"""A local file takes a few microseconds, one on a network file system hundreds"""
_FIRST_CALLS = 256
_THREADS = 32

Stamp = Callable[[str], tuple[int, int]]


def stamps_one_by_one(stamp: Stamp, names: Sequence[str]) -> Stamps:
    """Raises OSError as `stamp` does."""
    result = np.zeros(len(names), STAMP)
    for row, name in enumerate(names):
        result[row] = _stamp_or_fault(stamp, name)
    return result


def file_stamps(prefix: str, names: Sequence[str], stamp: Stamp) -> Stamps:
    """Of files whose paths are `prefix` and a name. stamp: of a single file; called for what is not a plain file."""
    if not are_plain(names):
        return stamps_one_by_one(stamp, names)

    def look_up(part: Sequence[str]) -> list[tuple[int, int]]:
        looked_up = []
        for name in part:
            try:
                status = os.stat(prefix + name)
            except (OSError, ValueError):
                looked_up.append(_stamp_or_fault(stamp, name))
                continue
            if stat.S_ISREG(status.st_mode):
                looked_up.append((status.st_size, status.st_mtime_ns))
            else:
                looked_up.append(_stamp_or_fault(stamp, name))
        return looked_up

    start = time.perf_counter()
    pairs = look_up(names[:_FIRST_CALLS])
    rest = names[_FIRST_CALLS:]
    if rest and time.perf_counter() - start > _SLOW_CALL_S * _FIRST_CALLS:
        parts = [rest[begin : begin + _FIRST_CALLS] for begin in range(0, len(rest), _FIRST_CALLS)]
        with ThreadPoolExecutor(_THREADS, "stamps") as pool:
            pairs += chain.from_iterable(pool.map(look_up, parts))
    else:
        pairs += look_up(rest)
    return np.array(pairs, STAMP)


def archive_stamps(index: ArchiveIndex, state: tuple[int, int], names: Sequence[str], stamp: Stamp) -> Stamps:
    """Of images in an archive with this state. stamp: of a single one; called for names that are not found at once."""
    import pyarrow.compute as pc  # slow to import, and most workers look up nothing

    result = np.zeros(len(names), STAMP)
    result[:] = state
    expected = [key_bytes(name) for name in names]
    rows = index.hashes.searchsorted(np.array([xxhash.xxh3_64_intdigest(key) for key in expected], np.uint64))
    inside = np.flatnonzero(rows < len(index.hashes)) if are_plain(names) else rows[:0]
    keys = index.keys.take(pa.array(rows[inside]))
    wanted = pa.array([expected[row] for row in inside.tolist()], pa.large_binary())
    known = np.zeros(len(names), np.bool_)
    known[inside] = pc.equal(keys, wanted).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(~known).tolist():
        result[row] = _stamp_or_fault(stamp, names[row])
    return result


def are_plain(names: Sequence[str]) -> bool:
    """Whether `check_name` accepts all of the names for sure; False may also mean that they need a closer look."""
    joined = "\n" + "\n".join(names) + "\n"
    return not any(text in joined for text in _SUSPICIOUS) and max(map(len, names), default=0) <= MAX_NAME_CHARACTERS


def _stamp_or_fault(stamp: Stamp, name: str) -> tuple[int, int]:
    try:
        return stamp(name)
    except RejectError as error:
        if error.reason == "image_missing":
            return MISSING, 0
        return FAULT, xxhash.xxh3_64_intdigest(error.reason.encode()) >> 1
