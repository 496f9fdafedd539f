"""The bytes of a request's images: data URIs, and URLs if the server may ask for them.

Rule: what a URL leads to is untrusted. Only public addresses are connected to, after DNS and after every redirect, no
proxy is used, and an image is bounded in bytes and time.
"""

from __future__ import annotations

import asyncio
import binascii
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from dst.common.public_addresses import PRIVATE, is_refusal, parse_url, public_socket
from trainer.errors import RequestError
from trainer.serving.limits import Limits
from trainer.serving.message_parts import ImageSource

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE_BYTES = 1 << 16


def is_data_uri(source: ImageSource) -> bool:
    return source.url[:5].lower() == "data:"


def decode_data_uri(source: ImageSource) -> bytes:
    """Raises RequestError for a data URI that is not base64."""
    head, comma, payload = source.url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _refused(source, "is not a data URI in base64; expected data:image/jpeg;base64,...")
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:  # binascii.Error; or characters that are not ASCII
        raise _refused(source, f"is not valid base64 ({error}); expected data:image/jpeg;base64,...") from None


class ImageFetcher:
    """Downloads images behind URLs. Its methods belong to one event loop."""

    def __init__(self, limits: Limits, *, is_on: bool, allow_private: bool = False) -> None:
        """is_on: whether URLs are allowed at all. allow_private: for tests, which have no public server."""
        self._limits, self._is_on, self._allow_private = limits, is_on, allow_private
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, source: ImageSource) -> bytes:
        """Raises RequestError."""
        if not self._is_on:
            expected = "expected a data URI, data:image/jpeg;base64,... (URLs are off; see --image-urls)"
            raise _refused(source, f"is not a data URI; {expected}")
        limit_s = self._limits.image_url_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._fetch(source)
        except TimeoutError:
            raise _refused(source, f"did not arrive within {limit_s:g} s; send it as a data URI") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            if is_refusal(error):
                raise _refused(source, f"has {PRIVATE}; expected a public one, or a data URI") from None
            reason = f"{type(error).__name__}: {error}".rstrip(": ")[:200]
            raise _refused(source, f"cannot be fetched ({reason}); send it as a data URI") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _fetch(self, source: ImageSource) -> bytes:
        url = source.url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                parse_url(url)
            except ValueError as error:
                raise _refused(source, f"cannot be asked for: {error}; expected http:// or https://") from None
            # signed URLs must be sent unchanged
            asked = URL(url, encoded=url.isascii() and " " not in url)
            async with self._opened().get(asked, allow_redirects=False) as response:
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    return await self._read(source, response)
                url = urljoin(url, response.headers["Location"])
        raise _refused(source, f"leads to more than {MAX_REDIRECTS} redirects; send it as a data URI")

    async def _read(self, source: ImageSource, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise _refused(source, f"answers HTTP {response.status}; expected an image")
        limit, data = self._limits.image_url_bytes, bytearray()
        if (response.content_length or 0) <= limit:
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                data += piece
                if len(data) > limit:
                    break
            else:
                return bytes(data)
        raise _refused(source, f"has more than {limit:,} bytes; expected a smaller image")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=16, socket_factory=None if self._allow_private else public_socket, force_close=True
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"User-Agent": "dsvl-train", "Accept": "image/*", "Accept-Encoding": "identity"},
            )
        return self._session


def _refused(source: ImageSource, text: str) -> RequestError:
    return RequestError(f"{source.param}: {text}", source.param, code="invalid_image_url")
