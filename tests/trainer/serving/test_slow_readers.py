"""A client that does not read its stream: its answer is cancelled, and meanwhile only the tokens are kept."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

pytest.importorskip("starlette")

import dst
from tests.support.small_blends import TOKENIZER
from trainer.serving.answer_events import AnswerEvents
from trainer.serving.answer_text import AnswerText
from trainer.serving.answers import Answer, StreamedAnswer
from trainer.serving.completions import Completion
from trainer.serving.engine import Usage
from trainer.serving.request_notes import RequestNotes

BPE = dst.load_tokenizer(TOKENIZER)


class Cancelled:
    """A ticket that counts."""

    def __init__(self) -> None:
        self.times = 0

    def cancel(self) -> None:
        self.times += 1


async def stream(
    ticket: Any, events: AnswerEvents, reads: int, send_timeout_s: float
) -> tuple[list[bytes], RequestNotes]:
    """What a client got that reads this many messages and then no more."""
    notes, got, never = RequestNotes(has_key=True), list[bytes](), asyncio.Event()
    answer = Answer(ticket, events, AnswerText(BPE))
    response = StreamedAnswer(answer, Completion(model="m"), False, notes=notes, send_timeout_s=send_timeout_s)

    async def receive() -> MutableMapping[str, Any]:
        await never.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if len(got) == reads:
            await never.wait()
        got.append(message.get("body", b""))

    await response({"type": "http"}, receive, send)
    return got, notes


def test_an_answer_is_cancelled_when_its_client_takes_no_more_of_it() -> None:
    async def run() -> None:
        ticket, events = Cancelled(), AnswerEvents()
        for token in BPE.encode(["one two three"])[0]:
            events.token(token)
        got, notes = await stream(ticket, events, 2, 0.05)
        assert (len(got), notes.status) == (2, 499)
        assert ticket.times

    asyncio.run(run())


def test_pieces_that_wait_for_a_slow_reader_become_one_event() -> None:
    async def run() -> None:
        ticket, events = Cancelled(), AnswerEvents()
        for token in BPE.encode(["one two three " * 100])[0]:
            events.token(token)
        events.finished("stop", Usage(prompt_tokens=1, cached_tokens=0, new_tokens=9))
        got, notes = await stream(ticket, events, 10, 5)
        assert len(got) <= 6
        assert b"".join(got).count(b"one two three") == 100
        assert notes.numbers == {"prompt": 1, "cached": 0, "new": 9}

    asyncio.run(run())
