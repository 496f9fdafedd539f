"""Bytes of the requests whose prompts are being made: bodies and downloaded images, bounded all together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.errors import RequestError

RETRY_LATER = "queue_full"
"""The code of errors that the same request may not get a little later"""


class RequestMemory:
    """What all requests hold. It belongs to one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0

    @contextmanager
    def held(self) -> Iterator[Held]:
        """What one request holds until the block ends."""
        held = Held(self)
        try:
            yield held
        finally:
            self.used_bytes -= held.num_bytes


class Held:
    """What one request holds."""

    def __init__(self, memory: RequestMemory) -> None:
        self.num_bytes, self._memory = 0, memory

    def add(self, num_bytes: int) -> None:
        """Hold more. Raises RequestError if all requests together then hold too much."""
        self.num_bytes += num_bytes
        self._memory.used_bytes += num_bytes
        if self._memory.used_bytes > self._memory.limit_bytes:
            text = "the server is reading too many large requests; send it again later"
            raise RequestError(text, status=429, code=RETRY_LATER)
