"""Engines under test, and listeners that keep what they hear."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.support.waiting import LIMIT_S
from trainer.serving.engine import Reason, Usage


class Heard:
    """A listener; `on_token` is called in the engine's thread with each token."""

    def __init__(self, on_token: Callable[[int], None] | None = None) -> None:
        self.tokens: list[int] = []
        self.reason: Reason | None = None
        self.usage: Usage | None = None
        self.error: Exception | None = None
        self._on_token = on_token
        self._ended = threading.Event()

    def token(self, token: int) -> None:
        self.tokens.append(token)
        if self._on_token is not None:
            self._on_token(token)

    def finished(self, reason: Reason, usage: Usage) -> None:
        assert not self._ended.is_set()
        self.reason, self.usage = reason, usage
        self._ended.set()

    def failed(self, error: Exception) -> None:
        assert not self._ended.is_set()
        self.error = error
        self._ended.set()

    def wait(self) -> Heard:
        """Until the answer has ended."""
        assert self._ended.wait(LIMIT_S), "the answer did not end"
        return self
