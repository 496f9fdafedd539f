"""Good and bad requests to a server, by number: what is sent, and which statuses are right.

Rule: the request of a number is always the same. The server has the model `tiny`, the key KEY, bodies of up to 1 MiB,
and images behind URLs switched on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.chat_requests import chat_body, data_uri, image_bytes, image_part, png_header, text_part

KEY = "a-key"
PATH = "/v1/chat/completions"
Leave = Literal["after the request", "amid the body", "amid the answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What one client does. body: None for GET. leave: when the client closes its connection without an answer."""

    kind: str
    expected: tuple[int, ...]
    body: bytes | None = b""
    path: str = PATH
    headers: tuple[tuple[str, str], ...] = ()
    leave: Leave | None = None
    raw: bytes | None = None
    """Sent as it is, instead of a request"""


def exchange(number: int) -> Exchange:
    """The exchange of a number."""
    digest = hashlib.sha256(str(number).encode()).digest()
    kind = KINDS[digest[0] % len(KINDS)]
    return kind(int.from_bytes(digest[1:5]))


def _chat(kind: str, expected: Sequence[int], **fields: Any) -> Exchange:
    return Exchange(kind=kind, expected=tuple(expected), body=json.dumps(chat_body(**fields)).encode())


def _about(*urls: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*(image_part(url) for url in urls), text_part("What is this?")]}]


def _photo(seed: int) -> str:
    return data_uri(image_bytes(seed % 500, (200, 150), ("PNG", "JPEG", "WEBP")[seed % 3]))


def _good(seed: int) -> Exchange:
    question = [{"role": "user", "content": f"What is {seed}? " + "word " * (seed % 200)}]
    return _chat("text", (200,), messages=question, max_tokens=1 + seed % 8, seed=seed, stop=["zz", "\n\n"])


def _stream(seed: int) -> Exchange:
    fields = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 8}
    return _chat("stream", (200,), messages=_about(_photo(seed)), **fields)


def _rounds(seed: int) -> Exchange:
    rounds = [
        *_about(_photo(seed), _photo(seed + 1)),
        {"role": "assistant", "content": "A photo."},
        {"role": "user", "content": "Why?"},
    ]
    return _chat("images, rounds", (200,), messages=rounds, max_tokens=4)


def _prompt(seed: int) -> Exchange:
    body = json.dumps(chat_body(messages=_about(_photo(seed)))).encode()
    return Exchange(kind="exact prompt", expected=(200,), body=body, path="/v1/prompt")


def _models(seed: int) -> Exchange:
    path = ("/v1/models", "/v1/models/tiny", "/health", "/")[seed % 4]
    return Exchange(kind="models, health, page", expected=(200,), body=None, path=path)


def _malformed(seed: int) -> Exchange:
    whole = json.dumps(chat_body()).encode()
    bodies = (whole[: seed % len(whole)], b"\xff" + whole, b"null", b"[]", b'{"model":' * 5, b"[" * 5000, b'{"a":NaN}')
    return Exchange(kind="not JSON", expected=(400,), body=bodies[seed % len(bodies)])


def _many_items(seed: int) -> Exchange:
    return Exchange(kind="JSON of many items", expected=(400,), body=b'{"a":[' + b"[]," * 300_000 + b"[]]}")


def _wrong_fields(seed: int) -> Exchange:
    fields: Sequence[dict[str, Any]] = (
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"unknown" + "x" * (seed % 50): 1},
        {"temperature": -1},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant", "assistant", "user")]},
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
    )
    return _chat("wrong parameters", (400,), **fields[seed % len(fields)])


def _bad_image(seed: int) -> Exchange:
    file = image_bytes(seed % 500, (200, 150), "JPEG")
    urls = (
        data_uri(file[: 20 + seed % 200]),
        data_uri(png_header(60_000, 60_000)),
        data_uri(b"<svg/>"),
        "data:image/png;base64,????",
        "http://127.0.0.1:9/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
    )
    return _chat("bad images and URLs", (400,), messages=_about(urls[seed % len(urls)]))


def _oversized(seed: int) -> Exchange:
    return Exchange(kind="oversized body", expected=(413,), body=b" " * ((1 << 20) + 1 + seed % 2_000_000))


def _wrong_key(seed: int) -> Exchange:
    headers = (("Authorization", ("Bearer wrong", "Basic YTpi", "Bearer")[seed % 3]),)
    return Exchange(kind="wrong key", expected=(401,), body=json.dumps(chat_body()).encode(), headers=headers)


def _wrong_head(seed: int) -> Exchange:
    body, choice = json.dumps(chat_body()).encode(), seed % 3
    if choice == 0:
        return Exchange(kind="wrong head", expected=(421,), body=body, headers=(("Host", "evil.example"),))
    if choice == 1:
        return Exchange(kind="wrong head", expected=(415,), body=body, headers=(("Content-Type", "text/plain"),))
    return Exchange(kind="wrong head", expected=(404, 405), body=body, path=("/v1/embeddings", "/health")[seed % 2])


def _not_http(seed: int) -> Exchange:
    raws = (
        b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 70_000 + b"\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
    )
    raw = raws[seed % len(raws)]
    is_cut = len(raw) > 1 << 16  # the answer may be lost: the server closes with the end of the request still unread
    return Exchange(kind="not HTTP", expected=(400, 421, *([-1] if is_cut else [])), raw=raw)


def _left(seed: int) -> Exchange:
    fields: dict[str, Any] = {"max_tokens": 200, "messages": _about(_photo(seed)), "seed": seed}
    leave: Leave = ("after the request", "amid the body", "amid the answer")[seed % 3]
    body = json.dumps(chat_body(**fields, stream=leave == "amid the answer")).encode()
    return Exchange(kind=f"client leaves {leave}", expected=(0,), body=body, leave=leave)


KINDS: tuple[Callable[[int], Exchange], ...] = (
    *(_good, _good, _good, _stream, _stream, _rounds, _prompt, _models),
    *(_malformed, _many_items, _wrong_fields, _bad_image, _oversized, _wrong_key, _wrong_head, _not_http, _left, _left),
)
"""How many of a kind follow from how often it is listed"""
