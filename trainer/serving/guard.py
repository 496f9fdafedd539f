"""What comes before every request: the Host header, the key, the form of the body; and the line of the log after it.

Rules: the Host header must name this server, else a page of another site could reach it under a name of its own (DNS
rebinding). With a key, everything under /v1/ needs it; keys are compared in constant time. A body must be declared as
JSON, which pages of other sites cannot send without being asked about first (CORS). A line of the log has numbers
only, nothing of what clients send.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import traceback
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dst.common.terminal_text import visible
from dst.common.web_server import host_name
from trainer.serving.bodies import Incoming
from trainer.serving.completions import error_json
from trainer.serving.request_notes import NOTES, RequestNotes

_LONGEST_PATH = 60


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self, app: ASGIApp, *, is_own: Callable[[str], bool], key: str | None, log: Callable[[str], None]
    ) -> None:
        """is_own: whether the server may be asked under this host, which has no port."""
        self._app, self._is_own, self._log = app, is_own, log
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500
        scope[NOTES] = notes = RequestNotes(has_key=self._has_key(Headers(scope=scope)))

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            refusal = self._refusal(scope, notes)
            if refusal is not None:
                await Incoming(receive).discard()
            await (refusal or self._app)(scope, receive, send_noted)
        except Exception as error:  # the client has an answer that does not say more
            notes.bug = error
        finally:
            if notes.bug is not None:
                self._log("".join(traceback.format_exception(notes.bug)).rstrip())
            seconds = time.monotonic() - started
            self._log(_line(scope["method"], scope["path"], notes.status or status, notes, seconds))

    def _has_key(self, headers: Headers) -> bool:
        return self._key is None or hmac.compare_digest(_key_of(headers), self._key)

    def _refusal(self, scope: Scope, notes: RequestNotes) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if not self._is_own(host_name(headers.get("host", ""))):
            text = "this server answers only under its own names; use the address that it printed, or --allow-host"
            return JSONResponse(error_json(421, text, code="wrong_host"), 421)
        if not scope["path"].startswith("/v1/") or scope["method"] == "OPTIONS":
            return None
        if not notes.has_key:
            text = "no key, or another one; expected Authorization: Bearer KEY, with the key of this server"
            return JSONResponse(error_json(401, text, code="invalid_api_key"), 401, {"www-authenticate": "Bearer"})
        if scope["method"] == "POST":
            media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "application/json" or headers.get("content-encoding", "identity") != "identity":
                text = "expected a body with Content-Type: application/json, without Content-Encoding"
                return JSONResponse(error_json(415, text, code="wrong_content_type"), 415)
        return None


def _key_of(headers: Headers) -> bytes:
    """The digest of the key that a client sent; digests have one length, so comparing them does not tell the key's."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return _digest(key.strip().encode("latin-1") if scheme.lower() == "bearer" else b"")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _line(method: str, path: str, status: int, notes: RequestNotes, seconds: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    numbers = "".join(f" {name}={number}" for name, number in notes.numbers.items())
    return f"{stamp} {visible(method[:10])} {visible(path[:_LONGEST_PATH])} {status}{numbers} {seconds:.3f}s"
