"""Download one URL: tries with growing waits, redirects by hand, resumed partial files, limits on size and time.

Rule: whatever a server does, the result is an Answer; only a disk that fails raises DataError. Bytes of two answers
are never joined: a partial file is continued only with `If-Range`, and only where the server says that it continues.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from urllib.parse import urljoin
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from dst.common.public_addresses import PRIVATE, is_refusal, is_unknown_host, parse_url, public_socket
from preprocess.blend.fetch import Fetch
from preprocess.fetch.host_limits import HostLimits
from preprocess.fetch.ledger import Outcome, Waiting
from preprocess.fetch.partial_file import PartialFile
from shards.errors import ImageError
from shards.images.pixels import image_extension

MAX_REDIRECTS = 5
CONNECT_S = 10.0
LONGEST_TRY_S = 600.0
"""Against a server that sends a byte now and then; what came is kept for the next try"""

FIRST_WAIT_S = 1.0
"""Before the second try, on average; each further wait is twice as long"""

LONGEST_WAIT_S = 60.0
"""A server that asks for a longer pause is left for the next run"""

_PIECE_BYTES = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_BUSY = (408, 425, 429)
_OPT_OUT = ("noai", "noimageai")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one URL came to.

    connected: whether its host answered at all. retry: whether another try in this run may help. wait_s: how long the
    host asked to wait before it.
    """

    outcome: Outcome
    connected: bool = True
    retry: bool = False
    wait_s: float = 0.0


def open_session(settings: Fetch, *, allow_private: bool) -> aiohttp.ClientSession:
    """Made inside a running event loop. It keeps no cookies and sends no credentials."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=settings.connections, socket_factory=None if allow_private else public_socket
        ),
        timeout=aiohttp.ClientTimeout(total=LONGEST_TRY_S, sock_connect=CONNECT_S, sock_read=settings.timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"User-Agent": settings.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
    )


@dataclass(slots=True, kw_only=True)
class Downloader:
    """remember: called with a URL's key and the validator (ETag or Last-Modified) of its partial file's bytes."""

    session: aiohttp.ClientSession
    folder: Path
    settings: Fetch
    hosts: HostLimits
    remember: Callable[[bytes, str], None]
    proxies: Mapping[str, str] = field(default_factory=getproxies)

    async def download(self, item: Waiting) -> Answer:
        """The answer of the last try; `connected` if any try had one."""
        connected = False
        with PartialFile(self.folder, item.key, item.validator) as file:
            for number in range(1, self.settings.tries + 1):
                answer = await self._try(item.url, file)
                connected = connected or answer.connected
                if not answer.retry or number == self.settings.tries:
                    break
                wait_s = FIRST_WAIT_S * 2 ** (number - 1) * random.uniform(0.5, 1.5)
                await asyncio.sleep(max(answer.wait_s, wait_s))
            if answer.outcome.state not in ("fetched", "unreachable"):
                file.remove()
        return Answer(outcome=answer.outcome, connected=connected)

    async def _try(self, url: str, file: PartialFile) -> Answer:
        start = file.stored_size() if file.validator else 0
        headers = {"Range": f"bytes={start}-", "If-Range": file.validator} if start else {}
        connected = False
        try:
            for _ in range(MAX_REDIRECTS + 1):
                try:
                    target = parse_url(url)
                except ValueError as error:
                    return _settled("bad_redirect", f"to {url[:200]}: {error}")
                async with (
                    self.hosts.turn(target.host),
                    self.session.get(
                        URL(url, encoded=url.isascii() and " " not in url),  # signed URLs must be sent unchanged
                        headers=headers,
                        allow_redirects=False,
                        proxy=None if proxy_bypass(target.host) else self.proxies.get(target.scheme),
                    ) as response,
                ):
                    connected = True
                    if response.status not in _REDIRECTS or "Location" not in response.headers:
                        return await self._receive(response, target.host, file, start)
                    url = urljoin(url, response.headers["Location"])
            return _settled("bad_redirect", f"more than {MAX_REDIRECTS} redirects")
        except aiohttp.InvalidURL as error:
            return _settled("bad_url", str(error)[:300])
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            if is_refusal(error):
                return _settled("private_address", f"its host has {PRIVATE}; --allow-private permits it")
            text = f"{type(error).__name__}: {error}".rstrip(": ")
            outcome = Outcome(state="unreachable", detail=text[:300])
            return Answer(outcome=outcome, connected=connected, retry=not is_unknown_host(error))

    async def _receive(self, response: aiohttp.ClientResponse, host: str, file: PartialFile, start: int) -> Answer:
        """start: the first byte that was asked for; 0 if for all of the file."""
        status, headers = response.status, response.headers
        if status in _BUSY or status >= 500:
            wait_s = _seconds(headers.get("Retry-After", ""))
            self.hosts.pause(host, min(wait_s, LONGEST_WAIT_S))
            return _unreachable(f"HTTP {status}", wait_s)
        if status == 416 or (status == 206 and not _continues(headers, start, file.validator)):
            file.remove()  # the next try asks for all of it
            return _unreachable(f"HTTP {status}: the server does not continue the partial file")
        if status in _GONE:
            return _settled("gone", f"HTTP {status}")
        if status not in (200, 206):
            return _settled("refused", f"HTTP {status} {response.reason or ''}".rstrip())
        if any(word.strip().lower() in _OPT_OUT for word in headers.get("X-Robots-Tag", "").split(",")):
            return _settled("opted_out", f"X-Robots-Tag: {headers['X-Robots-Tag'][:200]}")
        if headers.get("Content-Encoding", "identity") != "identity":
            return _settled("refused", f"the server sends it with Content-Encoding {headers['Content-Encoding'][:50]}")
        limit = self.settings.max_megabytes * 1_000_000
        rest = response.content_length
        if rest is not None and rest + (start if status == 206 else 0) > limit:
            return _settled("too_large", f"{rest:,} bytes; fetch.max_megabytes is {self.settings.max_megabytes}")
        file.open(keep=status == 206)
        if status == 200:
            file.validator = _validator(headers)
            self.remember(file.key, file.validator)
        async for piece in response.content.iter_chunked(_PIECE_BYTES):
            file.write(piece)
            if file.size > limit:
                return _settled("too_large", f"more than {limit:,} bytes; set fetch.max_megabytes to allow it")
        return await asyncio.to_thread(_finished, file, headers.get("Content-Type", "none"))


def _finished(file: PartialFile, content_type: str) -> Answer:
    """Give the file its name, if it is an image; whether it can be decoded is for the build to find out."""
    extension = ""
    try:
        extension = image_extension(file.head())
    except ImageError as error:
        if error.reason != "format":
            return _settled("not_image", f"{error.detail}; its Content-Type is {content_type[:100]}")
    digest = file.finish(extension)
    return Answer(outcome=Outcome(state="fetched", extension=extension, size=file.size, sha256=digest))


def _settled(state: str, detail: str) -> Answer:
    return Answer(outcome=Outcome(state=state, detail=detail))


def _unreachable(detail: str, wait_s: float = 0.0) -> Answer:
    outcome = Outcome(state="unreachable", detail=detail)
    return Answer(outcome=outcome, retry=wait_s <= LONGEST_WAIT_S, wait_s=wait_s)


def _continues(headers: Mapping[str, str], start: int, validator: str) -> bool:
    """Whether an answer with a part of the file begins at `start` and is of the same file as before."""
    match = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
    return bool(match and start and int(match[1]) == start and _validator(headers) in ("", validator))


def _validator(headers: Mapping[str, str]) -> str:
    """What identifies these bytes of a URL: a strong ETag, or else Last-Modified; "" without both."""
    tag = headers.get("ETag", "")
    found = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    return found if found.isascii() else ""  # other bytes cannot be sent back


def _seconds(retry_after: str) -> float:
    """The header is a number of seconds or a date; anything else counts as 0."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except (ValueError, OverflowError):
        return 0.0
