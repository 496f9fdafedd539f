"""The web app of `dsvl-train serve`, as an ASGI application: OpenAI's chat completions, exact ids, the chat page.

Rule: work that takes time runs elsewhere: bodies are parsed, images decoded and prompts made in worker threads, and
the model runs in the engine's thread. What waits is bounded: requests by the queues, bodies by their bytes.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from dst.common.cpus import usable_cpus
from dst.errors import DsvlError
from trainer.errors import QueueFullError, RequestError, StoppingError
from trainer.serving.answer_events import AnswerEvents
from trainer.serving.answer_text import AnswerText
from trainer.serving.answers import Answer, StreamedAnswer
from trainer.serving.bodies import ClientGone, Incoming, read_body
from trainer.serving.chat_request import ChatRequest, parse_chat
from trainer.serving.completions import Completion, error_json, model_json
from trainer.serving.failures import error_response
from trainer.serving.guard import Guard
from trainer.serving.images import ImageFetcher, decode_data_uri, is_data_uri
from trainer.serving.message_parts import ImageSource
from trainer.serving.page import page_routes
from trainer.serving.request_memory import Held, RequestMemory
from trainer.serving.request_notes import notes_of
from trainer.serving.service import ServedModel, Service

Result = TypeVar("Result")


def make_app(service: Service, *, is_own: Callable[[str], bool], log: Callable[[str], None]) -> ASGIApp:
    """is_own: whether the server may be asked under this host, which has no port. log: gets a line for each request."""
    endpoints = _Endpoints(service)
    routes = [
        *page_routes(),
        Route("/health", endpoints.health),
        Route("/v1/models", endpoints.models),
        Route("/v1/models/{name:path}", endpoints.model),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/prompt", endpoints.prompt, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _http_error, DsvlError: _failed, ClientGone: _failed, Exception: _failed},
        lifespan=endpoints.lifespan,
    )
    guarded = Guard(app, is_own=is_own, key=service.key, log=log)
    if not service.cors_origins:
        return guarded
    return CORSMiddleware(  # around the guard, so that a page can read why it is refused
        guarded,
        allow_origins=service.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's client in a page has many of its own
        expose_headers=["retry-after"],
    )


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._memory = RequestMemory(service.limits.buffered_bytes)
        self._fetcher = ImageFetcher(
            service.limits, is_on=service.image_urls, allow_private=service.allow_private_addresses
        )
        self._threads = ThreadPoolExecutor(min(4, usable_cpus()), thread_name_prefix="dsvl-prompts")
        self._admitted_count = 0
        """Of requests whose prompts are being made"""

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await self._fetcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def health(self, request: Request) -> Response:
        service = self._service
        content: dict[str, Any] = {"status": service.status, "model": service.name}
        if service.model is not None:
            engine = service.model.engine
            content |= {"stats": dataclasses.asdict(engine.stats()), "failures": dataclasses.asdict(engine.failures)}
            if not notes_of(request.scope).has_key:
                del content["failures"]["last_error"]  # may say how the server is made
        return JSONResponse(content, 200 if content["status"] in ("ok", "degraded") else 503)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_json(self._service.name, self._service.created)]})

    async def model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(model_json(self._service.name, self._service.created))

    async def prompt(self, request: Request) -> Response:
        async with self._admitted(request) as (model, chat, images):
            return JSONResponse(await self._in_thread(lambda: model.prompts.described(chat, images)))

    async def chat(self, request: Request) -> Response:
        completion, notes, events = Completion(model=self._service.name), notes_of(request.scope), AnswerEvents()
        async with self._admitted(request) as (model, chat, images):
            asked = await self._in_thread(lambda: model.prompts.request(chat, images))
            ticket = model.engine.submit(asked, events)
        answer = Answer(ticket, events, AnswerText(model.prompts.speaker.chat_tokenizer.tokenizer, chat.stop))
        if chat.stream:
            limit_s = self._service.limits.send_timeout_s
            return StreamedAnswer(answer, completion, chat.include_usage, notes=notes, send_timeout_s=limit_s)
        with answer.cancelled_when_gone(request.receive):
            text = "".join([piece async for piece in answer.pieces()])
        notes.numbers.update(answer.numbers())
        return JSONResponse(completion.whole(text, answer.finish_reason, answer.counts))

    @asynccontextmanager
    async def _admitted(self, request: Request) -> AsyncIterator[tuple[ServedModel, ChatRequest, list[bytes]]]:
        """A request and its images; it counts as admitted until the block ends.

        Raises RequestError, QueueFullError, StoppingError or ClientGone.
        """
        incoming, service = Incoming(request.receive), self._service
        if service.model is None or service.is_stopping or self._admitted_count >= service.queue:
            await incoming.discard()
            if service.is_stopping:
                raise StoppingError
            if service.model is None:
                text = "the server is starting: its model is being loaded; send it again later"
                raise RequestError(text, status=503, code="starting")
            raise QueueFullError(service.queue)
        self._admitted_count += 1
        try:
            with self._memory.held() as held:
                chat = await self._parsed(request, incoming, held)
                self._check_name(chat.model)
                images = [await self._image(source, held) for source in chat.images]
                notes_of(request.scope).numbers["images"] = len(images)
                yield service.model, chat, images
        finally:
            self._admitted_count -= 1

    async def _parsed(self, request: Request, incoming: Incoming, held: Held) -> ChatRequest:
        limits, defaults = self._service.limits, self._service.defaults
        body = await read_body(request.headers, incoming, limits, held)
        return await self._in_thread(lambda: parse_chat(body, limits, defaults))

    async def _image(self, source: ImageSource, held: Held) -> bytes:
        if is_data_uri(source):
            return await self._in_thread(lambda: decode_data_uri(source))
        data = await self._fetcher.fetch(source)
        held.add(len(data))
        return data

    def _check_name(self, name: str) -> None:
        if name != self._service.name:
            text = f"model: there is no model {name[:100]!r} here; this server has {self._service.name!r}"
            raise RequestError(text, "model", status=404, code="model_not_found")

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _failed(request: Request, error: Exception) -> Response:
    response = error_response(error)
    notes_of(request.scope).status = response.status_code
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    hint = "docs/serve.md lists what this server answers"
    if "chat/completions" in path and error.status_code == 404:
        hint = f"expected /v1/chat/completions: give programs the base URL {request.base_url}v1"
    text = f"{request.method} {path[:100]}: {error.detail}; {hint}"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    return JSONResponse(error_json(error.status_code, text, code=code), error.status_code, error.headers)
