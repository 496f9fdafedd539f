"""The file of one download until it is whole: `<folder>/<first 2 digits>/<SHA-256 of URL>.partial`.

A killed download leaves it, and the next one appends to it where the server allows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from preprocess.errors import DataError
from preprocess.images.fetched import image_file
from shards.files import flush_and_close, sync_folder

HEAD_BYTES = 1024
"""What is enough to tell an image's format"""


class PartialFile:
    """validator: the ETag or Last-Modified of the answer that its bytes are from; "" if they cannot be continued.

    Used in a `with` block, which closes it. Raises DataError where the disk fails: that is not the URL's fault.
    """

    def __init__(self, folder: Path, key: bytes, validator: str = "") -> None:
        self.folder = folder
        self.key = key
        self.validator = validator
        self.path = image_file(folder, key, "partial")
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def stored_size(self) -> int:
        """Bytes of earlier tries, 0 if there are none."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def open(self, *, keep: bool) -> None:
        """Append to what an earlier try left, or begin an empty file."""
        if self._file is not None:
            self._file.close()
        self._digest = hashlib.sha256()
        with self._disk():
            self.path.parent.mkdir(exist_ok=True)
            self._file = self.path.open("r+b" if keep else "w+b")
            while keep and (piece := self._file.read(1 << 20)):
                self._digest.update(piece)
            self.size = self._file.tell()

    def write(self, piece: bytes) -> None:
        assert self._file is not None
        with self._disk():
            self._file.write(piece)
            self._file.flush()  # what came must survive a killed fetch
        self._digest.update(piece)
        self.size += len(piece)

    def head(self) -> bytes:
        assert self._file is not None
        with self._disk():
            return os.pread(self._file.fileno(), HEAD_BYTES, 0)

    def finish(self, extension: str) -> bytes:
        """Give the whole file its final name; returns its SHA-256."""
        assert self._file is not None
        target = image_file(self.folder, self.key, extension)
        with self._disk():
            flush_and_close(self._file)
            os.replace(self.path, target)
            sync_folder(target.parent)
        return self._digest.digest()

    def remove(self) -> None:
        self.validator = ""
        with self._disk():
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.path}: {error.strerror}; make room or correct the permissions, and run the same command again: "
                "what is finished is kept"
            ) from None
