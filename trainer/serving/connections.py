"""Connections of the web server: one that does not send its first request in time is closed.

uvicorn itself waits without an end for the first request of a connection; between requests it has a timeout.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

FIRST_REQUEST_S = 30.0
"""In which the head of a connection's first request must arrive"""


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 by h11."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._timer = self.loop.call_later(FIRST_REQUEST_S, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()
