"""From the engine's thread to the event loop: what the engine says of an answer, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from trainer.serving.engine import Reason, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last event of an answer."""

    reason: Reason
    usage: Usage


class AnswerEvents:
    """A listener of the engine. It is made in the event loop that reads it, and its memory is that of the tokens."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[int | Ended | Exception] = deque()
        self._came = asyncio.Event()

    def token(self, token: int) -> None:
        self._add(token)

    def finished(self, reason: Reason, usage: Usage) -> None:
        self._add(Ended(reason=reason, usage=usage))

    def failed(self, error: Exception) -> None:
        self._add(error)

    async def next(self) -> list[int | Ended]:
        """All events since the last call, at least one. Raises what the engine failed with, after all that it gave."""
        while not self._events:
            self._came.clear()
            if not self._events:
                await self._came.wait()
        events: list[int | Ended] = []
        while self._events:
            event = self._events[0]
            if isinstance(event, Exception):
                if events:
                    break
                raise event
            events.append(event)
            self._events.popleft()
        return events

    def _add(self, event: int | Ended | Exception) -> None:
        self._events.append(event)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._came.set)
