"""Reading the body of a request: bounded in bytes and time, each alone and all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from trainer.errors import RequestError
from trainer.serving.limits import MIB, Limits

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
RETRY_LATER = "queue_full"
"""The code of errors that the same request may not get a little later"""

_DISCARD_S = 5.0
_DISCARD_BYTES = 256 * MIB


class ClientGone(Exception):  # noqa: N818 - nobody reads an answer
    """The client has closed its connection."""


class Incoming:
    """The body of one request, as it arrives."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_complete = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises ClientGone."""
        while not self._is_complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._is_complete = not message.get("more_body", False)
            yield message.get("body", b"")

    async def discard(self) -> None:
        """Read the rest of a refused body, within bounds: a client that still sends would not see the answer."""
        size = 0
        with suppress(TimeoutError, ClientGone):
            async with asyncio.timeout(_DISCARD_S):
                async for piece in self.pieces():
                    size += len(piece)
                    if size > _DISCARD_BYTES:
                        return


class Bodies:
    """The bodies that are in memory."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._buffered = limits, 0

    @asynccontextmanager
    async def read(self, headers: Mapping[str, str], incoming: Incoming) -> AsyncIterator[bytes]:
        """The body; it counts as buffered until the block ends. Raises RequestError or ClientGone."""
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.body_timeout_s):
                    await self._fill(body, headers, incoming)
            except TimeoutError:
                text = f"the body did not arrive within {self._limits.body_timeout_s:g} s; send it again"
                raise RequestError(text, status=408, code="body_timeout") from None
            except RequestError:
                await incoming.discard()
                raise
            yield bytes(body)
        finally:
            self._buffered -= len(body)

    async def _fill(self, body: bytearray, headers: Mapping[str, str], incoming: Incoming) -> None:
        limit = self._limits.body_bytes
        declared = headers.get("content-length", "")
        too_large = declared.isdigit() and int(declared[:20]) > limit
        if not too_large:
            async for piece in incoming.pieces():
                body += piece
                self._buffered += len(piece)
                too_large = len(body) > limit
                if too_large or self._buffered > self._limits.buffered_bytes:
                    break
        if too_large:
            text = f"the body is too large; this server reads at most {limit / MIB:g} MiB"
            raise RequestError(text, status=413, code="body_too_large")
        if self._buffered > self._limits.buffered_bytes:
            text = "the server is reading too many large requests; send it again later"
            raise RequestError(text, status=429, code=RETRY_LATER)


async def gone(receive: Receive) -> None:
    """Return when the client has closed its connection. The body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
