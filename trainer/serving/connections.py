"""Connections of the web server: one that sends no request, or does not read what it was sent, is closed in time.

uvicorn itself waits without an end for the first request of a connection, for the rest of a later one, and for a client
that does not read the last bytes of its answer.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

REQUEST_S = 30.0
"""In which the head of a request must arrive, after the connection was opened or the answer before was sent"""

READ_S = 90.0
"""In which a client must take what waits for it; answers that are streamed are cancelled earlier, see Limits"""


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 by h11."""

    _request_timer: asyncio.TimerHandle
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_request(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_timer.cancel()
        self._stop_read_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        cycle = self.cycle
        self._request_timer.cancel()
        super().on_response_complete()  # may begin the next request
        self._await_request(cycle)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_read_timer()

    def _await_request(self, last: RequestResponseCycle | None) -> None:
        self._request_timer = self.loop.call_later(REQUEST_S, self._close_if_silent, last)

    def _close_if_silent(self, last: RequestResponseCycle | None) -> None:
        """last: the request before; None: there was none."""
        if self.cycle is last:
            self.transport.close()
            self._stop_read_timer()
            self._read_timer = self.loop.call_later(READ_S, self.transport.abort)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
