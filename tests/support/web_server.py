"""A web server on this machine whose answers a test decides, path by path."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.small_blends import jpeg

Behaviour = Callable[["Exchange"], None]


@dataclass(kw_only=True)
class Exchange:
    """One request, and how to answer it. number: how often the path was asked for before."""

    handler: BaseHTTPRequestHandler
    number: int

    def send(
        self,
        body: bytes = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Send an answer. A wrong `length` cuts it."""
        self.handler.send_response(status)
        for name, value in (headers or {}).items():
            self.handler.send_header(name, value)
        self.handler.send_header("Content-Length", str(len(body) if length is None else length))
        self.handler.end_headers()
        if self.handler.command != "HEAD":
            self.handler.wfile.write(body)
        if length is not None and length != len(body):
            self.handler.close_connection = True

    def send_range(self, body: bytes, etag: str) -> None:
        """As a server that honours Range and If-Range."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.handler.headers.get("Range", ""))
        if wanted and self.handler.headers.get("If-Range") == etag:
            start = int(wanted[1])
            place = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.send(body[start:], 206, {"ETag": etag, "Content-Range": place})
        else:
            self.send(body, headers={"ETag": etag})


@dataclass(kw_only=True)
class WebServer:
    """answers: path -> behaviour; other paths are HTTP 404. requests: (path, its Range header), in order."""

    url: str
    answers: dict[str, Behaviour] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    most_at_once: int = 0

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def serve(self, files: dict[str, bytes]) -> list[str]:
        """Answer these paths with these bodies; returns their URLs."""
        self.answers.update({path: sending(body) for path, body in files.items()})
        return [self.url + path for path in files]


def sending(body: bytes = b"", status: int = 200, **headers: str) -> Behaviour:
    """The same answer to each request; underscores of header names become hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange: exchange.send(body, status, named)


def ranged(body: bytes, etag: str = '"1"') -> Behaviour:
    """A file on a server that gives parts of it."""

    def behave(exchange: Exchange) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.handler.headers.get("Range", ""))
        if wanted is None:
            exchange.send(body, headers={"ETag": etag, "Accept-Ranges": "bytes"})
            return
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(body))
        place = f"bytes {start}-{stop - 1}/{len(body)}"
        exchange.send(body[start:stop], 206, {"ETag": etag, "Content-Range": place})

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The first request gets the first answer, and so on; the last one repeats."""
    return lambda exchange: behaviours[min(exchange.number, len(behaviours) - 1)](exchange)


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    lock = threading.Lock()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client had enough
                super().handle()

        def do_GET(self) -> None:
            nonlocal running
            with lock:
                number = site.paths().count(self.path)
                site.requests.append((self.path, self.headers.get("Range", "")))
                running += 1
                site.most_at_once = max(site.most_at_once, running)
            try:
                site.answers.get(self.path, sending(status=404))(Exchange(handler=self, number=number))
            finally:
                with lock:
                    running -= 1

        do_HEAD = do_GET  # noqa: N815  the name that http.server looks for

        def log_message(self, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = WebServer(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed(exchange: Exchange) -> None:
    """No answer."""
    exchange.handler.close_connection = True


def cut(exchange: Exchange) -> None:
    """The beginning of an image, and the end of the connection."""
    exchange.send(jpeg(1)[:100], length=len(jpeg(1)), headers={"ETag": '"1"'})


def hanging(exchange: Exchange) -> None:
    """The beginning of an image, and then nothing."""
    cut(exchange)
    exchange.handler.wfile.flush()
    exchange.handler.rfile.read(1)  # until the client is gone
