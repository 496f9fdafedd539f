"""A server whose files are read and sent by signed URLs, and a file system that signs them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CONTENT = bytes(range(256)) * 40


class SignedServer(ThreadingHTTPServer):
    """Answers ranges of CONTENT, and takes files. connections: how many were opened; closes: after each answer."""

    connections = 0
    closes = False
    status = 206
    asked: tuple[str, str, Message] = ("", "", Message())
    """Method, path with query, and headers of the last request"""

    body = b""
    """Of the last file that was sent"""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SignedServer

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        piece = CONTENT[first : last + 1]
        self.answer(self.server.status, piece)

    def do_PUT(self) -> None:
        self.server.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200 if self.server.status == 206 else self.server.status, b"")

    def answer(self, status: int, content: bytes) -> None:
        self.server.asked = self.command, self.path, self.headers
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = self.server.closes  # without a header that says so: as after a while without requests

    def log_message(self, *arguments: object) -> None:
        """No line for each request."""


@contextmanager
def signed_server() -> Iterator[SignedServer]:
    with SignedServer(("127.0.0.1", 0), _Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.shutdown()


def signing(server: SignedServer) -> Any:
    """A file system that signs URLs of the server, and counts them in `signed`."""
    signed: list[str] = []

    def sign(path: str, expiration: int, **_: str) -> str:
        signed.append(path)
        return f"http://127.0.0.1:{server.server_port}/{path}?signature"

    return SimpleNamespace(sign=sign, signed=signed, req_kw={})


def sent(tmp_path: Path, content: bytes) -> tuple[Path, str]:
    """A file with this content, and its digest."""
    file = tmp_path / "a.tar"
    file.write_bytes(content)
    return file, hashlib.sha256(content).hexdigest()
