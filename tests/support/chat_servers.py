"""Servers of tiny models in the test's own process, and requests to them."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.chat_requests import MODEL
from tests.support.tiny_models import loaded
from trainer.inference.conversation import Speaker
from trainer.inference.generate import Generator
from trainer.serving.engine import Engine
from trainer.serving.prompts import PromptMaker
from trainer.serving.server import Address, listening, stop
from trainer.serving.service import ServedModel, Service

CHAT = "v1/chat/completions"
LIMIT_S = 60.0
"""After which a test gives up"""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's form, which must be all of it."""
        (error,) = self.json().values()
        assert set(error) == {"message", "type", "param", "code"}
        return dict(error)


def ask(url: str, data: bytes | None, headers: Mapping[str, str]) -> Reply:
    """GET, or POST if there is data."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, sent)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AnyStatus())
    with opener.open(request, timeout=LIMIT_S) as answer:
        return Reply(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read())


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Errors are answers too."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatServer:
    """url: with a slash at the end. log: the lines of the server's log."""

    url: str
    service: Service
    speaker: Speaker
    log: list[str] = field(default_factory=list)

    @property
    def model(self) -> ServedModel:
        assert self.service.model is not None
        return self.service.model

    def post(self, path: str, body: object, **headers: str) -> Reply:
        """body: bytes as they are, anything else as JSON. headers: with _ instead of -."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return ask(f"{self.url}{path}", data, {"content_type": "application/json", **headers})

    def get(self, path: str, **headers: str) -> Reply:
        return ask(f"{self.url}{path}", None, headers)


@contextmanager
def chat_server(speaker: Speaker, *, batch: int = 8, engine_queue: int = 64, **settings: Any) -> Iterator[ChatServer]:
    """settings: of the Service. Its engine is closed when the block ends."""
    service, log = Service(name=MODEL, **settings), list[str]()
    generator = Generator(speaker.model, speaker.chat_tokenizer)
    engine = Engine(generator, batch=batch, queue=engine_queue, cache_gb=0.01)
    model = ServedModel(engine=engine, prompts=PromptMaker(speaker=speaker, generator=generator))
    service.model = model
    with listening(service, Address(port=0), log=log.append) as (url, _):
        try:
            yield ChatServer(url=url, service=service, speaker=speaker, log=log)
        finally:
            stop(service, model, within_s=0)


def served() -> Iterator[ChatServer]:
    """A fixture: a server of a tiny model."""
    with chat_server(loaded()) as running:
        yield running


@contextmanager
def connection(server: ChatServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].strip("/"))), timeout=30) as opened:
        yield opened


def head(length: int, path: str = CHAT) -> bytes:
    lines = (f"POST /{path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def status_of(opened: socket.socket) -> int:
    return int(opened.recv(65536).split()[1])


def has_running(server: ChatServer, number: int) -> Callable[[], bool]:
    return lambda: server.model.engine.stats().running == number
