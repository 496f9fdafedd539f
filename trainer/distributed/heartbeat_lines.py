"""Messages between ranks: a JSON object on each line of a TCP connection.

Rule: the other end is not trusted before its first line had the run's token, and no line is longer than a limit.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

MAX_LINE_BYTES = 4096
_READ_BYTES = 1 << 16


class LineConnection:
    """One end of a connection. It never blocks: what the network does not take at once is sent with the next line."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._received, self._unsent = connected, b"", b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Whether it arrives is known from the other end's lines alone. A connection that is full drops nothing of a
        line that was begun."""
        line = json.dumps(message).encode() + b"\n"
        if len(self._unsent) < MAX_LINE_BYTES:
            self._unsent += line
        with contextlib.suppress(OSError):
            self._unsent = self._unsent[self._socket.send(self._unsent) :]

    def receive(self) -> Iterator[dict[str, Any]]:
        """The lines that have come. Raises EOFError at the end of the connection, and for what is not such a line."""
        try:
            part = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError(str(error)) from None
        if not part:
            raise EOFError("closed")
        *lines, self._received = (self._received + part).split(b"\n")
        if max(map(len, (*lines, self._received))) > MAX_LINE_BYTES:
            raise EOFError("a line is too long")
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                raise EOFError("not JSON") from None
            if not isinstance(message, dict):
                raise EOFError("not an object")
            yield message

    def close(self) -> None:
        self._socket.close()
