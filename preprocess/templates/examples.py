"""The conversations on which templates are compared: what a template writes for them decides what it is.

Rule: no text is part of another one, so that each can be found again in what a template wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dst import IMAGE_TOKEN, Message
from dst.messages import Tools

Contents = Literal["any", "user parts", "parts", "texts"]
"""The contents that a template takes. any: texts and lists of parts. user parts: lists in user turns, texts elsewhere.
parts: lists only. texts: texts only."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends in an answer. needs: what not every template has, for messages to users."""

    messages: tuple[Message, ...]
    needs: Literal["", "system turns", "tool calls"] = ""
    tools: Tools | None = None

    @property
    def answers(self) -> list[int]:
        """The indices of the assistant's messages."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]

    def converted(self, contents: Contents) -> Example:
        """The same conversation in the contents that a template takes."""
        return Example(tuple(convert(message, contents) for message in self.messages), self.needs, self.tools)


def convert(message: Message, contents: Contents) -> Message:
    """The message in the contents that a template takes. An image within a text is `<image>` and a line break."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": [_text(content)]} if contents == "parts" else message
    if contents == "texts" or (contents == "user parts" and message["role"] != "user"):
        return {**message, "content": "".join(part.get("text", f"{IMAGE_TOKEN}\n") for part in content)}
    return message


def texts_in(message: Message) -> list[str]:
    """The texts of a message without white space around them."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return [text.strip() for text in texts]


def images_in(message: Message) -> int:
    content = message["content"]
    return 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _ask(*content: str | dict[str, Any]) -> Message:
    parts = [_text(part) if isinstance(part, str) else part for part in content]
    return {"role": "user", "content": parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts}


def _say(text: str) -> Message:
    return {"role": "assistant", "content": text}


_IMAGE: dict[str, Any] = {"type": "image"}
_SYSTEM: Message = {"role": "system", "content": "You compare photos."}

SHOWN = Example(
    (
        _ask(_IMAGE, _IMAGE, "Which bus is older?"),
        _say("The first one."),
        _ask(_IMAGE, "And what is this?"),
        _say("It is a tram."),
    )
)
"""The conversation that people see"""


def _as_parts(example: Example) -> Example:
    return Example(
        tuple({**message, "content": convert(message, "parts")["content"]} for message in example.messages),
        example.needs,
    )


def _with_system(example: Example) -> Example:
    return Example((_SYSTEM, *example.messages), "system turns")


def _several(rounds: int) -> Iterator[Message]:
    for number in range(rounds):
        yield _ask(f"Question {number}: what next?")
        yield _say(f"Answer {number}, then stop.")


_ROUNDS = (Example((_ask("What is a bus?"), _say("A vehicle."))), SHOWN, Example(tuple(_several(3))))
_AMID = Example((_ask("Is ", _IMAGE, " older than ", _IMAGE, "?"), _say("No, it is newer.")))

EXAMPLES: tuple[Example, ...] = (
    *_ROUNDS,
    _AMID,
    *map(_with_system, _ROUNDS),
    *map(_as_parts, (*_ROUNDS, *map(_with_system, _ROUNDS))),
)

PADDED = Example((_ask(" Why so late?\n"), _say("\nTraffic jams. "), _ask("Really? "), _say(" Yes, really.")))
"""Texts with white space around them, which some templates strip"""

IN_PARTS = Example(
    (_ask("Both colours?"), {"role": "assistant", "content": [_text("Red here,"), _text(" blue there.")]})
)
"""An answer of two texts"""

_LOOK = {"name": "look", "description": "Looks at a place.", "parameters": {"type": "object", "properties": {}}}

TOOL_USE = Example(
    (
        _ask("Which colour is it?"),
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": "bus"}}}],
        },
        {"role": "tool", "content": "dark red"},
        _say("It is red."),
        _ask("Are you sure?"),
        _say("I am."),
    ),
    "tool calls",
    [{"type": "function", "function": _LOOK}],
)
