"""Chats for tests: what one types, what is said, and a model that says what a test gives it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import dst
from tests.support import small_blends
from tests.support.tiny_models import Loaded
from trainer.inference.cached_decoder import Prompt
from trainer.inference.chat import Chat
from trainer.inference.generate import Generator, Sampling, Session

PHOTOS = sorted((small_blends.SAMPLES / "coco/train2017").glob("*.jpg"))
FEW = Sampling(max_new_tokens=6)


class Talk:
    """A chat whose output is kept."""

    def __init__(self, record: Loaded, sampling: Sampling = FEW) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.chat = Chat(record, sampling, out=self.out, err=self.err)

    def __call__(self, *lines: str) -> str:
        """What the lines make it say on stderr."""
        before = len(self.err.getvalue())
        for line in lines:
            assert self.chat.line(line)
        return self.err.getvalue()[before:]


class Script:
    """Replaces the model's choice: it says the given texts, one a round, as training would have taught it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, record: Loaded, answers: Sequence[str]) -> None:
        self.prompts: list[Prompt] = []
        original = Session.answer
        self._tokens: Iterator[int] = iter(())

        def answer(session: Session, prompt: Prompt, sampling: Sampling, *, key: Sequence[Any] = ()) -> Iterator[int]:
            self._tokens = iter(trained_tokens(record, answers[len(self.prompts)]))
            self.prompts.append(prompt)
            return original(session, prompt, sampling, key=key)

        monkeypatch.setattr(Session, "answer", answer)
        monkeypatch.setattr(Generator, "choose", lambda *_: [next(self._tokens)])


def trained_tokens(record: Loaded, answer: str) -> list[int]:
    """The tokens that training on an answer teaches."""
    question: dst.Message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    encoded = record.chat_tokenizer.encode([question, {"role": "assistant", "content": answer}])
    return [int(index) for index in encoded.ids[slice(*encoded.trained[0])]]
