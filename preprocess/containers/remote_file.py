"""A file behind a URL as an open binary file: reads become range requests.

Rules: memory holds one window of the file. A window that continues the last one, or begins a little behind it, is twice
as long, up to a limit; after any other jump it is short again. So a file that is read from its beginning to its end
costs few large requests, and one that is read here and there few bytes.
"""

from __future__ import annotations

import errno
import io
import os
from typing import Any, BinaryIO

from preprocess.containers.remote_requests import entry_of, read_ranges

BUFFER_BYTES = 1 << 17
"""Of the io.BufferedReader around it, and the shortest window"""

WINDOW_BYTES = 16 << 20
PIECE_BYTES = 4 << 20
"""A window comes in pieces, all requested at the same time."""

_GAP_BYTES = 1 << 20
"""A jump over fewer bytes is still reading on, as over the images of a tar"""


def expect_end(file: BinaryIO, end: int) -> None:
    """Say that nothing behind byte `end` will be read, so that it is not requested. For any file."""
    raw = getattr(file, "raw", file)
    if isinstance(raw, RemoteFile):
        raw.until(end)


class RemoteFile(io.RawIOBase):
    """Raises FileNotFoundError, IsADirectoryError or another OSError with the URL, now and while it is read."""

    def __init__(self, url: str) -> None:
        entry = entry_of(url)
        if not entry.is_file:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), url)
        self.name = url
        self.size = entry.size
        self._place = 0
        self._window = b""
        self._start = 0
        self._span = BUFFER_BYTES // 2
        self._until = entry.size

    def until(self, end: int) -> None:
        self._until = min(end, self.size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.name)
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as view:
            if not len(view) or self._place >= self.size:
                return 0
            if not self._start <= self._place < self._start + len(self._window):
                self._load(len(view))
            offset = self._place - self._start
            part = self._window[offset : offset + len(view)]
            view[: len(part)] = part
            self._place += len(part)
            return len(part)

    def _load(self, at_least: int) -> None:
        """Let the window begin here."""
        end = self._start + len(self._window)
        reads_on = end <= self._place <= end + _GAP_BYTES
        self._span = min(self._span * 2, WINDOW_BYTES) if reads_on else BUFFER_BYTES
        self._window = b""  # freed before the next one is there
        self._start = self._place
        end = self._until if self._start < self._until else self.size
        stop = max(min(self._start + min(max(self._span, at_least), WINDOW_BYTES), end), self._start + 1)
        cuts = [(start, min(start + PIECE_BYTES, stop)) for start in range(self._start, stop, PIECE_BYTES)]
        self._window = b"".join(read_ranges(self.name, cuts))
