"""Reading images ahead where each costs a request: the next ones arrive while this one is decoded.

Rule: memory holds at most AHEAD images that were not asked for yet. One that is skipped is dropped as soon as a later
one is asked for, and one that was not foreseen is read when it is asked for, so the order decides only how long it
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from preprocess.conversation import Image

AHEAD = 16

_Key = tuple[str, int | None]


class ReadAhead:
    """read: what brings an image; threads call it. images: those that are asked for next, about in their order."""

    def __init__(self, read: Callable[[Image], bytes], images: Iterator[Image]) -> None:
        self._read = read
        self._images = images
        self._pool = ThreadPoolExecutor(AHEAD, "images")
        self._waiting: dict[_Key, Future[bytes]] = {}
        self._seen: set[_Key] = set()

    def __call__(self, image: Image) -> bytes:
        """The bytes of an image. Raises as `read` does."""
        key = image.name, image.store
        if key not in self._seen:
            self._skip_to(key)
        self._fill()
        if key not in self._waiting:  # it was read before, or nobody foresaw it
            return self._read(image)
        for older in list(self._waiting):
            if older == key:
                break
            self._waiting.pop(older).cancel()
        first = self._waiting.pop(key)
        self._fill()
        return first.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _skip_to(self, key: _Key) -> None:
        """Read nothing of the images before this one, of which too many wait, or which begin the list."""
        while len(self._waiting) < AHEAD and key not in self._seen and self._add():
            pass
        while key not in self._seen and (image := next(self._images, None)) is not None:
            if (image.name, image.store) == key:
                self._clear()
                self._submit(image)

    def _fill(self) -> None:
        while len(self._waiting) < AHEAD and self._add():
            pass

    def _add(self) -> bool:
        image = next(self._images, None)
        if image is not None:
            self._submit(image)
        return image is not None

    def _submit(self, image: Image) -> None:
        key = image.name, image.store
        if key not in self._seen:
            self._seen.add(key)
            self._waiting[key] = self._pool.submit(self._read, image)

    def _clear(self) -> None:
        while self._waiting:
            self._waiting.popitem()[1].cancel()
