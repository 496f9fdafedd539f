"""Reading the body of a request: bounded in bytes and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from trainer.errors import RequestError
from trainer.serving.limits import MIB, Limits
from trainer.serving.request_memory import Held

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
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


async def read_body(headers: Mapping[str, str], incoming: Incoming, limits: Limits, held: Held) -> bytes:
    """The body; `held` counts it. Raises RequestError or ClientGone."""
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            await _fill(body, headers, incoming, limits, held)
    except TimeoutError:
        text = f"the body did not arrive within {limits.body_timeout_s:g} s; send it again"
        raise RequestError(text, status=408, code="body_timeout") from None
    except RequestError:
        await incoming.discard()
        raise
    return bytes(body)


async def _fill(body: bytearray, headers: Mapping[str, str], incoming: Incoming, limits: Limits, held: Held) -> None:
    declared = headers.get("content-length", "")
    too_large = declared.isdigit() and int(declared[:20]) > limits.body_bytes
    if not too_large:
        async for piece in incoming.pieces():
            body += piece
            held.add(len(piece))
            too_large = len(body) > limits.body_bytes
            if too_large:
                break
    if too_large:
        text = f"the body is too large; this server reads at most {limits.body_bytes / MIB:g} MiB"
        raise RequestError(text, status=413, code="body_too_large")


async def gone(receive: Receive) -> None:
    """Return when the client has closed its connection. The body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
