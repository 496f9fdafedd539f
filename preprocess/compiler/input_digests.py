"""Digests of annotation files, made in the background while the adapter reads the same files.

Rule: hashing releases Python's lock, so on a free core it takes no time of its own; a Parquet file or a tar with images
takes as long to hash as to read.
"""

from __future__ import annotations

import hashlib
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.sample_records import MAX_TEXT_BYTES
from preprocess.containers.sample_folders import folder_sha256, folder_state
from preprocess.errors import DataError

_PIECE_BYTES = 1 << 20


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and mtime in ns, to detect a changed file; of a folder, see `folder_state`.

    Raises DataError if it is neither a readable file nor a folder.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if stat.S_ISDIR(status.st_mode):
        return folder_state(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer forever
        raise DataError(f"{path}: is a pipe or a device; expected an annotation file")
    return status.st_size, status.st_mtime_ns


class InputDigests:
    """The digests that a thread makes."""

    def __init__(self, request: Request, pool: ThreadPoolExecutor, stopped: threading.Event) -> None:
        self._parts = pool.submit(lambda: [described(request, path, stopped) for path in request.annotations])

    def result(self) -> list[dict[str, Any]]:
        """{"file", "size", "sha256"} of each annotation file. Waits; raises DataError for one that cannot be read."""
        return self._parts.result()


@contextmanager
def input_digests(request: Request) -> Iterator[InputDigests]:
    """Starts the thread; it ends with the context, finished or not."""
    stopped = threading.Event()
    with ThreadPoolExecutor(1, "digests") as pool:
        try:
            yield InputDigests(request, pool, stopped)
        finally:
            stopped.set()


def described(request: Request, path: Path, stopped: threading.Event | None = None) -> dict[str, Any]:
    """{"file", "size", "sha256"} of an annotation file, or of a folder. Raises DataError if it cannot be read."""
    size = stamp(path)[0]
    try:
        sha256 = folder_sha256(path, MAX_TEXT_BYTES) if path.is_dir() else _sha256(path, stopped)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return {"file": request.source_file(path), "size": size, "sha256": sha256}


def _sha256(path: Path, stopped: threading.Event | None) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while (size := file.readinto(piece)) and not (stopped and stopped.is_set()):
            digest.update(piece[:size])
    return digest.hexdigest()
