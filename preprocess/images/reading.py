"""What every image store checks and does: names, kinds of files, sizes, and reading the bytes at a place.

Rule: a lasting fault of one image is a RejectError; one that may be gone in the next run is an OSError with a path.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from preprocess.adapters.parsing.sample_records import natural_order
from preprocess.errors import DataError, RejectError

MAX_IMAGE_BYTES = 512 << 20
MAX_NAME_CHARACTERS = 4096

_UNSAFE = re.compile(r"/|[A-Za-z]:|(?:.*/)?\.\.?(?:/|\Z)", re.DOTALL)
_UNSAFE_IN_FOLDER = re.compile(r"[\\\0]")


def check_name(name: str, *, in_folder: bool = False) -> None:
    """Also for archives, where a key could be anything: the same annotation must be right or wrong in either."""
    if not name or len(name) > MAX_NAME_CHARACTERS or _UNSAFE.match(name):
        raise RejectError("image_path", f"{name[:200]!r}; expected a relative path without . or .. in it")
    if in_folder and _UNSAFE_IN_FOLDER.search(name):
        raise RejectError("image_path", f"{name[:200]!r}; expected a path with / between folders")


def in_natural_order(folder: str, names: list[str]) -> list[str]:
    """The paths of the files of a folder, without hidden ones; equal numbers (1.jpg, 01.jpg) by their text."""
    shown = sorted((natural_order(name), name) for name in names if not name.startswith("."))
    return [f"{folder.rstrip('/')}/{name}" for _, name in shown]


def check_regular(name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise RejectError("image_unreadable", f"{name!r} is {kind}, not a file")


def check_size(name: str, size: int) -> None:
    if not size:
        raise RejectError("image_unreadable", f"{name!r} is empty")
    if size > MAX_IMAGE_BYTES:
        raise RejectError("image_too_large", f"{name!r} has {size} bytes; at most {MAX_IMAGE_BYTES} are read")


def read_exactly(file: int, path: str, size: int, offset: int) -> bytes:
    """Raises OSError, also if the file has become shorter than it was."""
    data = os.pread(file, size, offset)
    while len(data) < size:  # network file systems may give less at a time
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            expected = f"ended after {len(data)} of {size} bytes at byte {offset}; was it changed while it was read?"
            raise OSError(errno.EIO, expected, path)
        data += more
    return data


def damaged_copy(file: str, name: str, remove: Path) -> DataError:
    """The error for an image whose copy in the cache is not the one that was made."""
    return DataError(
        f"{file}: the copy of image {name!r} is damaged; expected the bytes that were written; "
        f"remove {remove}, which the next run makes again"
    )


def with_path(error: OSError, path: str) -> OSError:
    """The same error with the file's name, which errors from reading an open file lack."""
    return error if error.filename else OSError(error.errno, error.strerror or str(error), path)
