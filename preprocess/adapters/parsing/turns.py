"""Make turns from messages with markers: order of roles, images at their markers, no question without an answer.

Rule: the text stays unchanged, except that leading and trailing whitespace is removed, and with an `<image>` marker the
line break next to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import check_image_count, is_text, list_of, need, object_of, show
from preprocess.conversation import Image, Role, Turn
from preprocess.errors import RejectError

MARKER = "<image>"

Slot = str | Image | None
"""A part of a message; None is a marker, for the next of the record's images."""

MarkedMessage = tuple[Role, list[Slot]]

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def sharegpt(record: dict[str, Any], has_images: bool) -> list[MarkedMessage]:
    """The messages of `conversations: [{"from", "value"}]`. Without images, a marker is plain text."""
    messages: list[MarkedMessage] = []
    for item in list_of(record, "conversations"):
        message = object_of(item, "a turn")
        role = role_of(need(message, "from"))
        messages.append((role, slots(need(message, "value"), role, has_images)))
    return messages


def role_of(value: Any) -> Role:
    if type(value) is not str:
        raise RejectError("wrong_type", f"a role is {show(value)}; expected user, assistant or system")
    if value not in _ROLES:
        raise RejectError("role_order", f"a turn is by {show(value)}; expected user, assistant or system")
    return _ROLES[value]


def slots(value: Any, role: Role, has_images: bool) -> list[Slot]:
    """Text split at its markers; only user turns can show images."""
    if type(value) is not str:
        raise RejectError("wrong_type", f"a turn of the {role} is {show(value)}; expected text")
    if not is_text(value):
        raise RejectError("bad_text", f"a turn of the {role} contains a lone surrogate; expected Unicode text")
    if not has_images or role != "user" or MARKER not in value:
        return [value]
    first, *rest = value.split(MARKER)
    parts: list[Slot] = [first]
    for piece in rest:
        parts[-1] = _without_last_break(str(parts[-1]))
        parts += [None, _without_first_break(piece)]
    return parts


def assemble(
    messages: Sequence[MarkedMessage], images: Sequence[Image], request: Request
) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Turns and notes. Raises RejectError for a wrong order, a wrong number of images, or an empty turn."""
    check_order([role for role, _ in messages])
    notes: list[str] = []
    num_marks = num_named = 0
    for _, parts in messages:
        for part in parts:
            if part is None:
                num_marks += 1
            elif type(part) is Image:
                num_named += 1
    placed_first: list[Slot] = []
    if images and not num_marks and not num_named:
        placed_first = list(images)
        notes.append("image_placed_first")
    elif num_marks != len(images):
        raise RejectError(
            "image_count",
            f"the text has {num_marks} image markers; expected {len(images)}, one per image",
        )
    rest = iter(images)
    num_shown = 0
    turns: list[Turn] = []
    last = len(messages) - 1
    for index, (role, parts) in enumerate(messages):
        if role == "user" and placed_first:
            parts, placed_first = placed_first + parts, []
        if len(parts) == 1 and type(parts[0]) is str:  # nearly all turns
            words = parts[0].strip()
            tidy: tuple[str | Image, ...] = (words,) if words else ()
            num_images = 0
        else:
            tidy = _tidy([next(rest) if part is None else part for part in parts])
            num_images = sum(type(part) is Image for part in tidy)
        if index == last and role == "user":
            notes.append("dangling_question")
            break
        if not tidy:
            if role == "system":
                continue
            raise RejectError("empty_answer" if role == "assistant" else "empty_question", f"turn {index + 1} is empty")
        num_shown += num_images
        turns.append(Turn(role=role, parts=tidy))
    if not turns or turns[-1].role != "assistant":
        raise RejectError("no_answer", f"got {len(messages)} turns and no answer; expected a question and an answer")
    check_image_count(num_shown, request)
    return tuple(turns), tuple(notes)


def check_order(roles: Sequence[Role]) -> None:
    """User and assistant alternate, the user first; one system turn may come before. Raises RejectError."""
    start = 1 if roles and roles[0] == "system" else 0
    for index, role in enumerate(roles[start:]):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            raise RejectError("role_order", f"turn {start + index + 1} is by the {role}; expected the {expected}")


def _tidy(parts: list[str | Image]) -> tuple[str | Image, ...]:
    joined: list[str | Image] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    filled = [part for part in joined if isinstance(part, Image) or part.strip()]
    places = [index for index, part in enumerate(filled) if isinstance(part, str)]
    if places:
        filled[places[0]] = str(filled[places[0]]).lstrip()
        filled[places[-1]] = str(filled[places[-1]]).rstrip()
    return tuple(filled)


def _without_first_break(piece: str) -> str:
    return piece[2:] if piece.startswith("\r\n") else piece.removeprefix("\n")


def _without_last_break(piece: str) -> str:
    return piece[:-2] if piece.endswith("\r\n") else piece.removesuffix("\n")
