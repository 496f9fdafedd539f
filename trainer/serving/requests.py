"""What a client asks of the engine, and what it hears of its answer."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, Protocol

from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import Sampling

Reason = Literal["stop", "length", "cancelled"]
"""Why an answer ended: the model's end token; a limit of tokens or positions; Ticket.cancel or a stopping engine"""

_LONGEST_LINE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to answer. key: what samples depend on in addition to the seed."""

    prompt: Prompt
    sampling: Sampling
    key: tuple[Hashable, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    """Positions of the prompt, those of images included"""
    cached_tokens: int
    """Those of the prompt that were in a cache, and so were not computed"""
    new_tokens: int
    """Tokens of the answer, its end token included"""


class Listener(Protocol):
    """Hears of an answer. Its methods are called in the engine's thread and must return at once.

    `finished` or `failed` is the last call. A listener that raises loses its request.
    """

    def token(self, token: int) -> None:
        """The next token of the answer; the end token is not one of them."""

    def finished(self, reason: Reason, usage: Usage) -> None: ...
    def failed(self, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Answers that ended with an error of the model or its device: NaN, memory that ran out, a failed kernel."""

    total: int = 0
    """Since the start"""
    in_a_row: int = 0
    """Since the last answer that the model gave; above 0, nothing shows that it still works"""
    last_time: str | None = None
    """Of the last one, in UTC; None: there was none"""
    last_error: str | None = None
    """Its type and the first line of its text"""

    def after(self, error: Exception) -> Failures:
        """With one more, now."""
        lines = str(error).strip().splitlines()
        return Failures(
            total=self.total + 1,
            in_a_row=self.in_a_row + 1,
            last_time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            last_error=": ".join([type(error).__name__, *(line[:_LONGEST_LINE] for line in lines[:1])]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What the engine does and has done since it started."""

    running: int
    """Requests that are being read or answered"""
    waiting: int
    answered: int
    """Requests that ended: answered, cancelled or failed"""
    tokens: int
    """Of all answers"""
    image_hits: int
    """Image tiles of prompts that were in the image cache"""
    image_misses: int
    image_bytes: int
    """Memory of the image cache"""
    prefix_bytes: int
    """Memory of the cache of prompts and answers"""
