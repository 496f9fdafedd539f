"""A server of chat completions whose answers a test decides, and the chat page in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.chat_requests import MODEL
from tests.support.waiting import LIMIT_S
from trainer.serving.page import page_routes

DONE = b"data: [DONE]\n\n"
Answer = Callable[[Mapping[str, Any]], Response]


def event(delta: str | None = None, reason: str | None = None, **other: Any) -> bytes:
    """A chunk as the API streams it."""
    choice = {"index": 0, "delta": {} if delta is None else {"content": delta}, "finish_reason": reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice], **other}
    return f"data: {json.dumps(chunk)}\n\n".encode()


def end(reason: str = "stop", tokens: int = 3, cached: int = 0) -> list[bytes]:
    """The chunks after the last piece of an answer."""
    usage = {
        "prompt_tokens": 1200,
        "completion_tokens": tokens,
        "total_tokens": 1200 + tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return [event(reason=reason), event(choices=[], usage=usage), DONE]


def fault(status: int, message: str, **headers: str) -> Answer:
    """An error in OpenAI's shape."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: JSONResponse(body, status, headers=named)


@dataclass(kw_only=True)
class FakeChat:
    """answers: of the next chat completions, in order; then "Answer N." to each. bodies: of requests, by path."""

    address: str = ""
    answers: list[Answer] = field(default_factory=list)
    bodies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    prompt: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    cancelled: int = 0
    """Streams that the client ended"""
    gate: threading.Event = field(default_factory=threading.Event)
    """Opens for the chunks of `gated` after its first"""

    def pieces(self, *pieces: str, **ending: Any) -> Answer:
        return lambda _: self.stream([*map(event, pieces), *end(**ending)])

    def gated(self, first: str, *later: str, **ending: Any) -> Answer:
        """The first piece at once, the others when the test opens the gate."""
        return lambda _: self.stream([event(first), None, *map(event, later), *end(**ending)])

    def stream(self, chunks: list[bytes | None]) -> Response:
        """Chunks of bytes; None waits for the gate."""

        async def body() -> AsyncIterator[bytes]:
            try:
                for chunk in chunks:
                    if chunk is None:
                        while not self.gate.is_set():
                            await asyncio.sleep(0.01)
                    else:
                        yield chunk
                        await asyncio.sleep(0)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        return StreamingResponse(body(), media_type="text/event-stream")

    def reset(self) -> None:
        self.answers, self.bodies, self.key, self.cancelled = [], {}, None, 0
        self.gate.clear()
        self.prompt = {
            "ids": [1, 5, 2],
            "tokens": ["<s>", " a", "</s>"],
            "images": [],
            "control_ids": [1, 2],
            "limit": None,
        }


def app_of(chat: FakeChat) -> Starlette:
    def refuse(request: Request) -> Response | None:
        if chat.key is None or request.headers.get("authorization") == f"Bearer {chat.key}":
            return None
        return fault(401, "the key is missing or wrong")({})

    async def note(request: Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        chat.bodies.setdefault(request.url.path, []).append(body)
        return body

    async def models(request: Request) -> Response:
        return refuse(request) or JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def completions(request: Request) -> Response:
        if refused := refuse(request):
            return refused
        body = await note(request)
        number = len(chat.bodies[request.url.path])
        return (chat.answers.pop(0) if chat.answers else chat.pieces(f"Answer {number}."))(body)

    async def prompt(request: Request) -> Response:
        await note(request)
        return refuse(request) or JSONResponse(chat.prompt)

    return Starlette(
        routes=[
            *page_routes(),
            Route("/v1/models", models),
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/prompt", prompt, methods=["POST"]),
        ]
    )


@contextlib.contextmanager
def fake_chat() -> Iterator[FakeChat]:
    """Serve until the block ends."""
    chat = FakeChat()
    chat.reset()
    config = uvicorn.Config(app_of(chat), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    chat.address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(LIMIT_S)
