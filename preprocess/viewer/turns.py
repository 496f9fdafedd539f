"""A sample's pieces as the turns of a chat.

A build stores ids and labels, not messages. Which words open a turn is learned from the template: a small conversation
is rendered with it, and the text between two of its messages opens the second. Untrained text is cut where these words
are; a trained piece is always the assistant's. Data may contain the same words, and then the model cannot tell either.

Rule: this is layout alone. The turns' pieces are the sample's pieces, in order and whole, only cut into more of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dst import IMAGE_TOKEN, Message, Template, TemplateError
from preprocess.views.sample_text import Piece

FIRST, ANSWER, SECOND, LAST = "first_question", "first_answer", "second_question", "last_answer"


Content = str | list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """Words that open a turn. Numbers in them may differ: a template may count images.

    So may white space: some tokenizers decode a control token with a space behind it.
    """

    role: str
    words: str

    @property
    def pattern(self) -> str:
        parts = re.findall(r"<[^<>\s]+>|[^\s<]+|<", self.words)
        return re.sub("[0-9]+", "[0-9]+", r"\s*".join(map(re.escape, parts)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """role: user, assistant, or context for text in front of the first turn, and where roles are unknown."""

    role: str
    pieces: tuple[Piece, ...]

    @property
    def trained(self) -> bool:
        return any(piece.trained for piece in self.pieces)


def openers_of(template: Template, *, bos_token: str, eos_token: str) -> tuple[Opener, ...]:
    """The words that open turns; none if the template has none, or refuses a plain conversation."""
    question: Content = [{"type": "image"}, {"type": "text", "text": SECOND}]
    texts = [_between(template, content, bos_token=bos_token, eos_token=eos_token) for content in (SECOND, question)]
    user, assistant = texts[0]
    with_image = texts[1][0].partition(IMAGE_TOKEN)[0].strip()
    openers = [Opener(role="user", words=words) for words in dict.fromkeys((with_image, user)) if words]
    assistant = _without_end_of_question(assistant, user)
    return (*openers, *([Opener(role="assistant", words=assistant)] if assistant else []))


def _without_end_of_question(assistant: str, user: str) -> str:
    """Both openers may begin with the same token, such as <|im_start|>; what is before it ends the question."""
    shared = next((size for size in range(len(user), 3, -1) if user[:size] in assistant), 0)
    return assistant[assistant.index(user[:shared]) :]


def _between(template: Template, content: Content, *, bos_token: str, eos_token: str) -> tuple[str, str]:
    """What the template writes in front of a second question, and between it and its answer."""
    messages: list[Message] = [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": content},
        {"role": "assistant", "content": LAST},
    ]
    try:
        rendered = template.render(messages, bos_token=bos_token, eos_token=eos_token)
    except TemplateError:
        return "", ""
    question = rendered.text.find(SECOND)
    if len(rendered.answers) != 2 or not rendered.answers[0][1] <= question < rendered.answers[1][0]:
        return "", ""
    before = rendered.text[rendered.answers[0][1] : question].strip().removeprefix(eos_token).strip()
    return before, rendered.text[question + len(SECOND) : rendered.answers[1][0]].strip()


def turns_of(pieces: Sequence[Piece], openers: Sequence[Opener]) -> tuple[ChatTurn, ...]:
    """The turns of a sample. What opens a turn of the role that already speaks opens none."""
    turns: list[tuple[str, list[Piece]]] = [("context", [])]
    starts = _starts(pieces, openers)
    place = 0
    for piece in pieces:
        inside = {start - place: role for start, role in starts.items() if place <= start < place + len(piece.text)}
        place += len(piece.text)
        for part, opened in _cut(piece, inside):
            role = "assistant" if part.trained else opened or turns[-1][0]
            if not openers and not part.trained and part.kind != "control":
                role = "context"
            if role != turns[-1][0]:
                turns.append((role, []))
            turns[-1][1].append(part)
    return tuple(ChatTurn(role=role, pieces=tuple(parts)) for role, parts in turns if parts)


def turns_after(turns: Sequence[ChatTurn], start: int) -> tuple[ChatTurn, ...]:
    """What of the turns comes from token `start` on, at which a piece begins: a turn may go on there."""
    parts = ((turn, tuple(piece for piece in turn.pieces if piece.start >= start)) for turn in turns)
    return tuple(replace(turn, pieces=pieces) for turn, pieces in parts if pieces)


def _starts(pieces: Sequence[Piece], openers: Sequence[Opener]) -> dict[int, str]:
    """Character in the whole text -> role of the turn that is opened there. Never amid trained text."""
    text = "".join("\0" * len(piece.text) if piece.trained else piece.text for piece in pieces)
    ordered = sorted(openers, key=lambda opener: -len(opener.words))
    pattern = "|".join(f"({opener.pattern})" for opener in ordered)
    return (
        {match.start(): ordered[(match.lastindex or 1) - 1].role for match in re.finditer(pattern, text)}
        if ordered
        else {}
    )


def _cut(piece: Piece, starts: Mapping[int, str]) -> list[tuple[Piece, str | None]]:
    """The piece in parts, each with the role of the turn that it opens, or None."""
    if not starts:
        return [(piece, None)]
    borders = sorted({0, *starts})
    ends = [*borders[1:], len(piece.text)]
    return [
        (replace(piece, text=piece.text[start:end]), starts.get(start))
        for start, end in zip(borders, ends, strict=True)
    ]
