"""An S3 server for benchmarks that costs this machine little: it takes whatever is sent, and keeps small objects only.

It knows the requests of s3fs that a build makes: HEAD, GET, PUT, DELETE, listings, and uploads in parts. Connections
stay open, as those of S3 do. For reading it may keep all objects that are not uploaded in parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tools.bench.data import ROOT

_SMALL_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def s3_sink(*, keeps_all: bool = False) -> Iterator[str]:
    """Gives the URL of an empty bucket, and sets the environment in which s3fs finds it.

    What GET requests were answered with is found as from tests.support.s3_server.
    """
    command = [sys.executable, "-m", "tools.bench.s3_sink", *(["keep"] if keeps_all else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        variables = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        try:
            with mock.patch.dict(os.environ, variables):
                yield "s3://bench"
        finally:
            server.kill()


class _Objects:
    """name -> size, and the content of small objects."""

    sizes: dict[str, int] = {}  # noqa: RUF012  one server, one set of objects
    contents: dict[str, bytes] = {}  # noqa: RUF012
    parts: dict[str, int] = {}  # noqa: RUF012
    keeps_all = False
    gets: list[tuple[str, int]] = []  # noqa: RUF012


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = _PIECE_BYTES  # an answer and its headers leave together
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        name, _ = self._asked()
        size = _Objects.sizes.get(name)
        if size is None and "/" in name:
            self._answer(404)
        else:
            self._answer(200, size=size or 0)

    def do_GET(self) -> None:
        name, query = self._asked()
        if name == "-/gets":
            gets, _Objects.gets = _Objects.gets, []
            self._answer(200, json.dumps(gets).encode())
        elif "list-type" in query:
            self._answer(200, _listing(name.partition("/")[0], query).encode())
        elif name in _Objects.contents:
            data = _Objects.contents[name]
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            piece = memoryview(data)[int(first) : int(last) + 1 if last else None]
            _Objects.gets.append((f"/{name}", len(piece)))
            self._answer(206, piece)
        else:
            self._answer(404)

    def do_PUT(self) -> None:
        name, query = self._asked()
        size, content = self._body()
        if "uploadId" in query:
            _Objects.parts[name] = _Objects.parts.get(name, 0) + size
        else:
            _Objects.sizes[name] = size
            if content is not None:
                _Objects.contents[name] = content
        self._answer(200)

    def do_POST(self) -> None:
        name, query = self._asked()
        self._body()
        if "uploads" in query:
            fields = "<UploadId>1</UploadId>"
            self._answer(200, f"<InitiateMultipartUploadResult>{fields}</InitiateMultipartUploadResult>".encode())
        else:
            _Objects.sizes[name] = _Objects.parts.pop(name)
            self._answer(200, b"<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>")

    def do_DELETE(self) -> None:
        name, _ = self._asked()
        _Objects.sizes.pop(name, None)
        self._answer(204)

    def handle_expect_100(self) -> bool:
        answered = super().handle_expect_100()
        self.wfile.flush()
        return answered

    def log_message(self, *arguments: object) -> None:
        """No line for each request."""

    def _asked(self) -> tuple[str, Mapping[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).strip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _body(self) -> tuple[int, bytes | None]:
        left = size = int(self.headers.get("Content-Length") or 0)
        if size <= _SMALL_BYTES or _Objects.keeps_all:
            return size, self.rfile.read(size)
        while left:
            left -= len(self.rfile.read(min(left, _PIECE_BYTES)))
        return size, None

    def _answer(self, status: int, content: bytes | memoryview = b"", *, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _listing(bucket: str, query: Mapping[str, list[str]]) -> str:
    prefix = f"{bucket}/{query.get('prefix', [''])[0]}"
    delimiter = query.get("delimiter", [""])[0]
    names = sorted(name for name in _Objects.sizes if name.startswith(prefix))
    folders = sorted(
        {prefix + name.removeprefix(prefix).partition("/")[0] + "/" for name in names} if delimiter else set()
    )
    files = [name for name in names if not delimiter or "/" not in name.removeprefix(prefix)]
    folders = [folder for folder in folders if any(name.startswith(folder) for name in names)]
    entries = "".join(
        f"<Contents><Key>{escape(name.partition('/')[2])}</Key><Size>{_Objects.sizes[name]}</Size><ETag>1</ETag>"
        "<LastModified>2026-11-29T00:00:00Z</LastModified></Contents>"
        for name in files
    )
    entries += "".join(
        f"<CommonPrefixes><Prefix>{escape(folder.partition('/')[2])}</Prefix></CommonPrefixes>" for folder in folders
    )
    return (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated>'
        f"<KeyCount>{len(files) + len(folders)}</KeyCount>{entries}</ListBucketResult>"
    )


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True


if __name__ == "__main__":
    _Objects.keeps_all = "keep" in sys.argv[1:]
    with _Server(("127.0.0.1", 0), _Handler) as listening:
        print(listening.server_address[1], flush=True)
        listening.serve_forever()
