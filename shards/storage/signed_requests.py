"""Reading and writing files on S3 by plain HTTP requests to signed URLs, on connections that are kept.

Why: a request through s3fs takes 2 to 3 ms of CPU time, and a megabyte 2 ms to read and 3 to write; this way 0.5, 1 and
0.4 (docs/benchmarks.md). fsspec signs a URL for each file, so credentials, endpoints and their settings stay its own.

Rule: what does not go as it should is left to fsspec, which tries again and explains errors. After some failures in a
row a process stops asking this way: behind proxies, or where signed URLs are refused. A signed URL is never logged.
"""

from __future__ import annotations

import base64
import logging
import mimetypes
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import SplitResult, urlsplit

import fsspec

from shards.storage.kept_connections import KeptConnections

logger = logging.getLogger("shards")

AT_ONCE = 16
"""Requests of a process that run at the same time"""

FAILURES = 3
"""After so many in a row this way is not taken any more"""

SIGNED_S = 3600
RENEWED_S = 600.0
"""URLs are signed for an hour, and are used for ten minutes: temporary credentials may end sooner than the signature"""

LARGEST_PUT = 1 << 30
"""Bytes of a file that is sent in one request; fsspec sends larger ones in parts"""

_REMEMBERED = 1 << 14
_OK = 200
_PARTIAL_CONTENT = 206

Cut = tuple[str, int, int]
"""Path below the root, start, end"""


_PLAIN_OPTIONS = {"endpoint_url", "region_name", "use_ssl"}
_OWN_CONNECTIONS = {"proxies", "proxies_config", "client_cert"}
"""Options of botocore's Config that say how its connections are made, which those of this file are not"""
_EXPRESS = "--x-s3"
"""How names of directory buckets end, whose requests are signed for a session"""

_HEADERS = {
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "ContentType": "Content-Type",
    "RequestPayer": "x-amz-request-payer",
}
"""Parameters of a signature -> the headers that must come with it"""


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
        self._connections = KeptConnections(AT_ONCE)
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._failures = 0
        self._common: Mapping[str, str] = files.req_kw

    def ranges(self, cuts: Sequence[Cut]) -> list[bytes] | None:
        """The bytes of each cut, or None if any of them did not come whole."""
        if self._failures >= FAILURES:
            return None
        try:
            urls = [self._reading(path) for path, _, _ in cuts]
            if len(cuts) == 1:
                pieces = [self._get(urls[0], *cuts[0][1:])]
            else:
                starts, ends = ([cut[place] for cut in cuts] for place in (1, 2))
                pieces = list(self._pool().map(self._get, urls, starts, ends))
        except Exception as error:  # of any library below; fsspec asks the same again, and says what is wrong
            self._failed(error)
            self._urls.clear()
            return None
        self._failures = 0
        return pieces

    def put(self, path: str, file: Path, sha256: str) -> bool:
        """Send a file. S3 compares what came with this digest (hex), which the signature holds. False: it was not sent.

        Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
        """
        if self._failures >= FAILURES or file.stat().st_size > LARGEST_PUT:
            return False
        try:
            self._put(path, file, sha256)
        except Exception as error:  # as above
            self._failed(error)
            return False
        self._failures = 0
        return True

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == FAILURES:
            plain = type(error) is OSError  # texts of other errors may hold the URL
            reason = str(error) if plain else type(error).__name__
            logger.info("%s: signed URLs do not work (%s); this process uses s3fs instead", self._root, reason)

    def _put(self, path: str, file: Path, sha256: str) -> None:
        """Raises OSError, HTTPException or an error of fsspec."""
        content_type, _ = mimetypes.guess_type(file.name)  # as s3fs sets it
        parameters = {
            **self._common,
            "ChecksumSHA256": base64.b64encode(bytes.fromhex(sha256)).decode(),
            **({"ContentType": content_type} if content_type else {}),
        }
        url = self._signed(path, client_method="put_object", **parameters)
        headers = {**_headers(parameters), "Content-Length": str(file.stat().st_size)}
        with file.open("rb") as body, self._connections.answer("PUT", url, headers, body) as response:
            response.read()
            if response.status != _OK:
                raise OSError(f"status {response.status}")

    def _reading(self, path: str) -> SplitResult:
        """The URL of a file that is read; it is signed once for all its ranges."""
        now = monotonic()
        signed, url = self._urls.get(path, (-RENEWED_S, None))
        if url is None or now - signed >= RENEWED_S:
            url = self._signed(path, **self._common)
            if len(self._urls) >= _REMEMBERED:
                self._urls.clear()
            self._urls[path] = now, url
        return url

    def _signed(self, path: str, **parameters: str) -> SplitResult:
        url: str = self._files.sign(f"{self._root}/{path}", expiration=SIGNED_S, **parameters)
        return urlsplit(url)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="dsvl-ranges")
            return self._threads

    def _get(self, url: SplitResult, start: int, end: int) -> bytes:
        """Raises OSError or HTTPException for anything but these bytes."""
        headers = {**_headers(self._common), "Range": f"bytes={start}-{end - 1}"}
        with self._connections.answer("GET", url, headers) as response:
            data = response.read(end - start)
            if response.status != _PARTIAL_CONTENT or len(data) != end - start or response.read(1):
                raise OSError(f"status {response.status}, {len(data)} bytes of {end - start}")
        return data


def _headers(parameters: Mapping[str, str]) -> dict[str, str]:
    return {_HEADERS[name]: value for name, value in parameters.items()}
