"""Texts that cannot fit `limits.max_length` are known before they are tokenized.

A tokenizer takes up to 250 bytes of memory for each byte of text, so a record with a text of 100 MB would end a build.

Rule: conversations of up to `PLAIN_BYTES` of text are left to the tokenizer as they are. Longer ones are counted in
pieces of `PIECE` characters, up to `MARGIN * max_length` tokens: more cannot fit, since pieces change tokens only at
their borders. Text of more than `BYTES_PER_TOKEN * max_length` bytes cannot fit whatever the count says: the longest
tokens of published vocabularies have half of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dst import TextTokenizer
from preprocess.compiler.task import TaskContext
from preprocess.conversation import Conversation, Turn
from preprocess.errors import RejectError

PLAIN_BYTES = 1 << 20
PIECE = 1 << 16
MARGIN = 2
BYTES_PER_TOKEN = 256


def beginning_that_may_fit(conversation: Conversation, tokenizer: TextTokenizer, context: TaskContext) -> Conversation:
    """The conversation up to its last trained answer that may fit; the same object if all of it may.

    With `too_long: cut` a first trained answer that cannot fit keeps a beginning of more than max_length tokens.
    Raises RejectError if the first trained answer cannot fit, or is behind a text that cannot.
    """
    if _characters(conversation) * 4 <= PLAIN_BYTES or _bytes(conversation) <= PLAIN_BYTES:
        return conversation
    if not any(turn.role == "assistant" and turn.trained for turn in conversation.turns):
        return conversation  # is rejected for that
    room = _Room(tokenizer, context.max_length)
    if any(room.fill(tool) is not None for tool in conversation.tools):
        raise _reject(conversation, room, context)
    last_end = 0
    for index, turn in enumerate(conversation.turns):
        is_answer = turn.role == "assistant" and turn.trained
        for field, part, text in _texts(turn):
            filled = room.fill(text)
            if filled is None:
                continue
            if last_end:
                return replace(conversation, turns=conversation.turns[:last_end])
            if context.too_long == "cut" and is_answer and field != "call":
                return replace(
                    conversation, turns=(*conversation.turns[:index], _cut(turn, field, part, text[:filled]))
                )
            raise _reject(conversation, room, context)
        if is_answer:
            last_end = index + 1
    return conversation


@dataclass(slots=True)
class _Room:
    """Counts text until it cannot fit."""

    tokenizer: TextTokenizer
    max_length: int
    bytes: int = 0
    tokens: int = 0

    def fill(self, text: str) -> int | None:
        """Add a text. None if all of it may fit; else how many of its characters were counted when it no longer did.

        White space around it is not counted, since templates may trim it.
        """
        most_bytes = max(PLAIN_BYTES, BYTES_PER_TOKEN * self.max_length)
        first, end = _core(text)
        for start in range(first, end, PIECE):
            piece = text[start : min(start + PIECE, end)]
            self.bytes += len(piece.encode("utf-8", "surrogatepass"))
            if self.bytes <= most_bytes:
                self.tokens += len(self.tokenizer.encode([piece.encode("utf-8", "replace").decode()])[0])
            if self.bytes > most_bytes or self.tokens > MARGIN * self.max_length:
                return start + len(piece)
        return None


def _core(text: str) -> tuple[int, int]:
    """Where the text without its outer white space begins and ends; nothing is copied."""
    first = next((match.start() for match in re.finditer(r"\S", text)), len(text))
    end = len(text)
    while end > first and text[max(first, end - PIECE) : end].isspace():
        end = max(first, end - PIECE)
    last = text[max(first, end - PIECE) : end]
    return first, end - len(last) + len(last.rstrip())


def _texts(turn: Turn) -> Iterator[tuple[str, int, str]]:
    """(field, index in `parts`, text) of a turn, in the order in which templates write them."""
    if turn.reasoning:
        yield "reasoning", 0, turn.reasoning
    for index, part in enumerate(turn.parts):
        if isinstance(part, str):
            yield "parts", index, part
    for call in turn.tool_calls:
        yield "call", 0, call.arguments


def _cut(turn: Turn, field: str, part: int, beginning: str) -> Turn:
    """The turn with the beginning of one text, and little of what follows it."""
    if field == "reasoning":
        parts = tuple(each[:PIECE] if isinstance(each, str) else each for each in turn.parts)
        return replace(turn, reasoning=beginning, parts=parts, tool_calls=())
    return replace(turn, parts=(*turn.parts[:part], beginning), tool_calls=())


def _reject(conversation: Conversation, room: _Room, context: TaskContext) -> RejectError:
    return RejectError(
        "too_long",
        f"has {_bytes(conversation):,} bytes of text, and its first trained answer ends behind the first "
        f"{room.bytes:,} of them ({room.tokens:,} tokens), where counting stopped; limits.max_length is "
        f"{context.max_length}",
    )


def _characters(conversation: Conversation) -> int:
    return sum(map(len, conversation.tools)) + sum(
        len(text) for turn in conversation.turns for _, _, text in _texts(turn)
    )


def _bytes(conversation: Conversation) -> int:
    texts = [*conversation.tools, *(text for turn in conversation.turns for _, _, text in _texts(turn))]
    return sum(_size(text) for text in texts)


def _size(text: str) -> int:
    """In UTF-8, counted in pieces, without a copy of the whole."""
    if text.isascii():
        return len(text)
    return sum(
        len(text[start : start + PIECE].encode("utf-8", "surrogatepass")) for start in range(0, len(text), PIECE)
    )
