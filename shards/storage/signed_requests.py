"""Byte ranges of files on S3 by plain HTTP requests to signed URLs, on connections that are kept.

Why: a request through s3fs takes 2 to 3 ms of CPU time, and a megabyte 2 ms; this way 0.5 and 1 (docs/benchmarks.md).
fsspec signs a URL for each file, so credentials, endpoints and their settings stay its own.

Rule: what does not come as it should is left to fsspec, which tries again and explains errors. After some failures in a
row a process stops asking this way: behind proxies, or where signed URLs are refused. A signed URL is never logged.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from time import monotonic
from typing import Any
from urllib.parse import SplitResult, urlsplit

import fsspec

AT_ONCE = 16
"""Requests of a process that run at the same time"""

FAILURES = 3
"""After so many in a row this way is not taken any more"""

SIGNED_S = 3600
RENEWED_S = 600.0
"""URLs are signed for an hour, and are used for ten minutes: temporary credentials may end sooner than the signature"""

TIMEOUT_S = 30.0
_REMEMBERED = 1 << 14
_PARTIAL_CONTENT = 206

Cut = tuple[str, int, int]
"""Path below the root, start, end"""


_PLAIN_OPTIONS = {"endpoint_url", "region_name", "use_ssl"}
_OWN_CONNECTIONS = {"proxies", "proxies_config", "client_cert"}
"""Options of botocore's Config that say how its connections are made, which those of this file are not"""
_EXPRESS = "--x-s3"
"""How names of directory buckets end, whose requests are signed for a session"""


def signing_options(url: str) -> dict[str, Any]:
    """Options with which fsspec signs URLs as all regions expect; without them botocore uses the signature of 2006."""
    protocol, _, rest = url.partition("://")
    if protocol not in ("s3", "s3a") or rest.partition("/")[0].endswith(_EXPRESS):
        return {}
    configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    return {"config_kwargs": {"signature_version": "s3v4", **configured}}


def takes_signed(files: Any) -> bool:
    """Whether a file system of fsspec is S3, and its requests need a signature alone: no key, certificate or proxy."""
    if "s3" not in files.protocol or files.s3_additional_kwargs:
        return False
    return not (files.client_kwargs.keys() - _PLAIN_OPTIONS or files.config_kwargs.keys() & _OWN_CONNECTIONS)


class SignedRequests:
    """To one file system of fsspec, below a root. Of one process: a fork needs its own."""

    def __init__(self, files: Any, root: str) -> None:
        self._files, self._root = files, root
        self._urls: dict[str, tuple[float, SplitResult]] = {}
        self._idle: list[http.client.HTTPConnection] = []
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._failures = 0

    def ranges(self, cuts: Sequence[Cut]) -> list[bytes] | None:
        """The bytes of each cut, or None if any of them did not come whole."""
        if self._failures >= FAILURES:
            return None
        try:
            urls = [self._signed(path) for path, _, _ in cuts]
            if len(cuts) == 1:
                pieces = [self._get(urls[0], *cuts[0][1:])]
            else:
                starts, ends = ([cut[place] for cut in cuts] for place in (1, 2))
                pieces = list(self._pool().map(self._get, urls, starts, ends))
        except Exception:  # of any library below; fsspec asks the same again, and says what is wrong
            self._failures += 1
            self._urls.clear()
            return None
        self._failures = 0
        return pieces

    def __del__(self) -> None:
        for connection in self._idle:
            connection.close()

    def _signed(self, path: str) -> SplitResult:
        now = monotonic()
        signed, url = self._urls.get(path, (-RENEWED_S, None))
        if url is None or now - signed >= RENEWED_S:
            url = urlsplit(self._files.sign(f"{self._root}/{path}", expiration=SIGNED_S, **self._files.req_kw))
            if len(self._urls) >= _REMEMBERED:
                self._urls.clear()
            self._urls[path] = now, url
        return url

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="dsvl-ranges")
            return self._threads

    def _get(self, url: SplitResult, start: int, end: int) -> bytes:
        """Raises OSError or HTTPException for anything but these bytes."""
        with self._connection(url) as connection:
            response = _asked(connection, url, start, end)
            data = response.read(end - start)
            if response.status != _PARTIAL_CONTENT or len(data) != end - start or response.read(1):
                raise OSError(f"status {response.status}, {len(data)} bytes of {end - start}")
        return data

    @contextlib.contextmanager
    def _connection(self, url: SplitResult) -> Iterator[http.client.HTTPConnection]:
        """One that is idle, or a new one. It is kept if nothing failed."""
        connection = None
        with self._lock:
            for idle in reversed(self._idle):
                if (idle.host, idle.port) == _address(url):
                    connection = idle
                    self._idle.remove(idle)
                    break
        connection = connection or _connected(url)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if len(self._idle) < AT_ONCE:
                self._idle.append(connection)
                return
        connection.close()


def _address(url: SplitResult) -> tuple[str, int]:
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _connected(url: SplitResult) -> http.client.HTTPConnection:
    host, port = _address(url)
    if url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        raise OSError("behind a proxy")
    if url.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=_tls())
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


@lru_cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))


def _asked(connection: http.client.HTTPConnection, url: SplitResult, start: int, end: int) -> http.client.HTTPResponse:
    """The answer. A server may have closed a connection that was idle; then it is asked again on a new one."""
    was_open = connection.sock is not None
    try:
        return _answer(connection, url, start, end)
    except (ConnectionError, http.client.BadStatusLine):
        if not was_open:
            raise
        connection.close()
        return _answer(connection, url, start, end)


def _answer(connection: http.client.HTTPConnection, url: SplitResult, start: int, end: int) -> http.client.HTTPResponse:
    connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={start}-{end - 1}"})
    return connection.getresponse()
