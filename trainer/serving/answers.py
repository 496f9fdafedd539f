"""An answer while the engine generates it: its text, why it ended, what it took; whole or as server-sent events.

Rules: a client that is gone, or that does not read for a while, ends its answer. What a slow client has not read yet
takes no more memory than the tokens of its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trainer.errors import StoppingError
from trainer.serving.answer_events import AnswerEvents, Ended
from trainer.serving.answer_text import AnswerText
from trainer.serving.bodies import ClientGone, gone
from trainer.serving.completions import DONE, Completion, FinishReason, TokenCounts, error_json, event
from trainer.serving.engine import Ticket
from trainer.serving.failures import CLIENT_GONE, is_bug, status_of, text_of
from trainer.serving.request_notes import RequestNotes


class Answer:
    """The answer to a request that the engine has."""

    def __init__(self, ticket: Ticket, events: AnswerEvents, text: AnswerText) -> None:
        self.finish_reason: FinishReason = "stop"
        self.counts = TokenCounts(prompt=0, cached=0, answer=0)
        """As finish_reason, once `pieces` has ended"""
        self._ticket, self._events, self._text = ticket, events, text
        self._watch: asyncio.Task[None] | None = None

    @contextmanager
    def cancelled_when_gone(self, receive: Receive) -> Iterator[None]:
        """Cancel the answer when the client is gone, and when the block ends before the answer."""
        self._watch = asyncio.create_task(gone(receive))
        self._watch.add_done_callback(lambda _: self._ticket.cancel())
        try:
            yield
        finally:
            self._watch.cancel()
            self._ticket.cancel()

    async def pieces(self) -> AsyncIterator[str]:
        """Its text, piece by piece. Raises ClientGone, StoppingError, or what the engine failed with."""
        num_tokens, ended = 0, None
        while ended is None:
            piece = ""
            for happened in await self._events.next():
                if isinstance(happened, Ended):
                    ended = happened
                elif not self._text.is_stopped:
                    num_tokens += 1
                    piece += self._text.add(happened)
                    if self._text.is_stopped:
                        self._ticket.cancel()
            if piece and ended is None:
                yield piece
        was_stopped = self._text.is_stopped
        if ended.reason == "cancelled" and not was_stopped:
            raise ClientGone if self._is_gone() else StoppingError
        piece += self._text.end()
        self.finish_reason = "length" if ended.reason == "length" and not self._text.is_stopped else "stop"
        usage = ended.usage
        self.counts = TokenCounts(
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            answer=num_tokens if was_stopped else usage.new_tokens,
        )
        if piece:
            yield piece

    def _is_gone(self) -> bool:
        return self._watch is not None and self._watch.done()

    def numbers(self) -> dict[str, int]:
        """For the log."""
        return {"prompt": self.counts.prompt, "cached": self.counts.cached, "new": self.counts.answer}


class StreamedAnswer(Response):
    """The answer as server-sent events."""

    def __init__(
        self,
        answer: Answer,
        completion: Completion,
        with_usage: bool,
        *,
        notes: RequestNotes,
        send_timeout_s: float,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._answer, self._completion, self._with_usage = answer, completion, with_usage
        self._send_timeout_s, self._notes = send_timeout_s, notes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answer.cancelled_when_gone(receive):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for content in self._events():
                    await self._send(send, content, more=True)
                await self._send(send, b"", more=False)
            except TimeoutError:  # it does not read: the web server closes the connection of an answer without an end
                self._notes.status = CLIENT_GONE

    async def _send(self, send: Send, content: bytes, *, more: bool) -> None:
        async with asyncio.timeout(self._send_timeout_s):
            await send({"type": "http.response.body", "body": content, "more_body": more})

    async def _events(self) -> AsyncIterator[bytes]:
        completion, with_usage = self._completion, self._with_usage
        yield completion.first_chunk(with_usage=with_usage)
        try:
            async for piece in self._answer.pieces():
                yield completion.chunk(piece, with_usage=with_usage)
        except Exception as error:  # the status was sent: what went wrong is an event of the stream
            self._notes.status = status_of(error)
            self._notes.bug = error if is_bug(error) else None
            yield event(error_json(status_of(error), text_of(error)))
            return
        self._notes.numbers.update(self._answer.numbers())
        yield completion.last_chunk(self._answer.finish_reason, with_usage=with_usage)
        if with_usage:
            yield completion.usage_chunk(self._answer.counts)
        yield DONE
