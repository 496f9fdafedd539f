"""HTTP requests on connections that are kept for the next ones. Of one process: a fork needs its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import BinaryIO
from urllib.parse import SplitResult

TIMEOUT_S = 30.0
"""Without a byte in either direction"""

_BLOCK_BYTES = 1 << 20
"""Of a file, sent at once"""

_CLOSED = (ConnectionError, http.client.BadStatusLine, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""How a request on a connection that the server closed ends, the last two under TLS"""


class KeptConnections:
    """At most `most` of them are kept; any number of threads may ask."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for connection in self._idle:
            connection.close()

    @contextlib.contextmanager
    def answer(
        self, method: str, url: SplitResult, headers: Mapping[str, str], body: BinaryIO | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """What the server answers; its connection is kept if nothing fails in the block.

        A server may have closed a connection that was idle: then it is asked again on a new one.
        body: a file, from its beginning; the headers say its length. Raises OSError or HTTPException.
        """
        connection = self._taken(url)
        try:
            was_open = connection.sock is not None
            try:
                response = _asked(connection, method, url, headers, body)
            except _CLOSED:
                if not was_open:
                    raise
                connection.close()
                response = _asked(connection, method, url, headers, body)
            yield response
        except BaseException:
            connection.close()
            raise
        self._keep(connection)

    def _taken(self, url: SplitResult) -> http.client.HTTPConnection:
        """One that is idle, or a new one."""
        with self._lock:
            for connection in reversed(self._idle):
                if (connection.host, connection.port) == _address(url):
                    self._idle.remove(connection)
                    return connection
        return _connection(url)

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < self._most:
                self._idle.append(connection)
                return
        connection.close()


def _address(url: SplitResult) -> tuple[str, int]:
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _connection(url: SplitResult) -> http.client.HTTPConnection:
    host, port = _address(url)
    if url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        raise OSError("behind a proxy")
    if url.scheme == "https":
        tls = _tls(os.environ.get("AWS_CA_BUNDLE"))
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=tls, blocksize=_BLOCK_BYTES)
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S, blocksize=_BLOCK_BYTES)


@lru_cache
def _tls(authorities: str | None) -> ssl.SSLContext:
    """authorities: a file with their certificates; None: those of this machine."""
    return ssl.create_default_context(cafile=authorities)


def _asked(
    connection: http.client.HTTPConnection,
    method: str,
    url: SplitResult,
    headers: Mapping[str, str],
    body: BinaryIO | None,
) -> http.client.HTTPResponse:
    if body is not None:
        body.seek(0)
    connection.request(method, f"{url.path}?{url.query}", body=body, headers=dict(headers))
    return connection.getresponse()
