"""Requests to an engine, and listeners that keep what they hear."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from tests.support.tiny_models import Loaded, prompt
from tests.support.waiting import LIMIT_S
from trainer.inference.generate import Generator, Sampling
from trainer.serving.engine import Engine, Reason, Request, Usage


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


class Held:
    """Holds the engine's thread at the first token of a request until it is let go."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._reached, self._may_continue = threading.Event(), threading.Event()
        self.heard = Heard(self._hold)
        self.ticket = engine.submit(request, self.heard)
        assert self._reached.wait(60)

    def _hold(self, token: int) -> None:
        self._reached.set()
        assert self._may_continue.wait(60)

    def release(self) -> None:
        self._may_continue.set()


def asked(record: Loaded, seed: int, *, tokens: int = 6, temperature: float = 0.0) -> Request:
    image_id = record.chat_tokenizer.tokenizer.image_id
    ids = [400 + seed, image_id, 500, 501 + 7 * seed, 502]
    sampling = Sampling(max_new_tokens=tokens, temperature=temperature, seed=seed)
    return Request(prompt=prompt(record, ids, seed=seed), sampling=sampling, key=(seed,))


def alone(generator: Generator, request: Request) -> list[int]:
    tokens = list(generator.session().answer(request.prompt, request.sampling, key=request.key))
    return tokens[:-1] if tokens[-1] == request.prompt.end_id else tokens


def generator_of(record: Loaded) -> Generator:
    """A fixture: the generator of the fixture `record`."""
    return Generator(record.model, record.chat_tokenizer)


def small_engine(generator: Generator) -> Iterator[Engine]:
    """A fixture: an engine of the fixture `generator`, for two requests at a time and three that wait."""
    engine = Engine(generator, batch=2, queue=3)
    yield engine
    engine.close(within_s=0)
