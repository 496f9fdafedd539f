"""Make turns from messages with markers: order of roles, images at their markers, no question without an answer.

Rule: the text stays unchanged, except that leading and trailing whitespace is removed, and with an image's tag the line
break next to it. Every change of the order is a note:

    leading_answer      answers before the first question are left out
    questions_joined    questions in a row are one, with a line break between them
    dangling_question   a last question or tool result that nobody answers is left out
    image_placed_first  images without any marker go before the first question
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import check_image_count
from preprocess.adapters.parsing.media_tags import Mark, Slot
from preprocess.conversation import Image, Role, ToolCall, Turn
from preprocess.errors import RejectError

_MAY_FOLLOW: dict[Role, tuple[Role, ...]] = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


class Message(NamedTuple):
    """A turn whose images are not yet at their places. The fields are those of Turn."""

    role: Role
    slots: list[Slot]
    trained: bool = True
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    call_id: str = ""


_NOTHING_MORE = (True, "", (), "", "")
"""The other fields of a message that has a role and a text only"""


def assemble(
    messages: Sequence[Message], images: Sequence[Image], request: Request, videos: Sequence[Image] = ()
) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Turns and notes. Raises RejectError for a wrong order, a wrong number of images, or an empty turn."""
    if not videos and (plain := _plain(messages, images)):  # nearly all records
        check_image_count(len(images), request)
        return plain, ()
    total = len(messages)
    messages, notes = _in_order(messages)
    if videos:
        messages, images = _with_videos(messages, images, videos)
    placed, placed_first = _place(messages, images)
    if placed_first:
        notes.append("image_placed_first")
    if messages and messages[-1].role in ("user", "tool"):
        notes.append("dangling_question")
        while placed and messages[len(placed) - 1].role in ("user", "tool"):
            placed.pop()
    turns: list[Turn] = []
    num_shown = 0
    for number, (message, parts) in enumerate(zip(messages, placed, strict=False), 1):
        if len(parts) == 1 and type(parts[0]) is str:  # nearly all turns
            words = parts[0].strip()
            tidy: tuple[str | Image, ...] = (words,) if words else ()
        else:
            tidy = _tidy(parts)
            num_shown += sum(type(part) is Image for part in tidy)
        role = message.role
        if not tidy and role != "tool" and not message.tool_calls:
            if role == "system":
                continue
            raise RejectError("empty_answer" if role == "assistant" else "empty_question", f"turn {number} is empty")
        turns.append(
            Turn(
                role=role,
                parts=tidy,
                trained=message.trained,
                reasoning=message.reasoning,
                tool_calls=message.tool_calls,
                tool_name=message.tool_name,
                call_id=message.call_id,
            )
        )
    if not turns or turns[-1].role != "assistant":
        raise RejectError("no_answer", f"got {total} turns and no answer; expected a question and an answer")
    check_image_count(num_shown, request)
    return tuple(turns), tuple(dict.fromkeys(notes))


def check_order(roles: Sequence[Role]) -> None:
    """User and assistant alternate, the user first; one system turn may come before. Raises RejectError."""
    start = 1 if roles and roles[0] == "system" else 0
    for index, role in enumerate(roles[start:]):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            raise RejectError("role_order", f"turn {start + index + 1} is by the {role}; expected the {expected}")


def _plain(messages: Sequence[Message], images: Sequence[Image]) -> tuple[Turn, ...]:
    """The turns of texts by user and assistant in turn, with at most one marker each, at a border; else none.

    They are what the other functions make of them, in less than half of the time.
    """
    turns: list[Turn] = []
    num_placed = 0
    expected: Role = "user"
    for message in messages:
        role, slots = message[:2]
        if role != expected or not slots or message[2:] != _NOTHING_MORE:
            return ()
        expected = "assistant" if role == "user" else "user"
        first = slots[0]
        if type(first) is not str:
            return ()
        words = first.strip()
        if len(slots) == 1:
            parts: tuple[str | Image, ...] = (words,)
        else:
            last = slots[2] if len(slots) == 3 and slots[1] is None else None
            if type(last) is not str or num_placed == len(images):
                return ()
            image, last = images[num_placed], last.strip()
            num_placed += 1
            if not words:
                parts, words = (image, last), last
            elif not last:
                parts = (words, image)
            else:
                return ()
        if not words:
            return ()
        turns.append(Turn(role=role, parts=parts))
    return tuple(turns) if expected == "user" and num_placed == len(images) else ()


def _in_order(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """The messages that stay, and notes. Raises RejectError where the order has no meaning."""
    kept: list[Message] = []
    notes: list[str] = []
    previous: Role | None = None
    for number, message in enumerate(messages, 1):
        role = message.role
        if previous is None or previous == "system":
            if role == "assistant":
                notes.append("leading_answer")
                continue
            if role == "tool" or role == previous:
                raise RejectError("role_order", f"turn {number} is by the {role}; expected the user")
        elif role == "user" == previous:
            notes.append("questions_joined")
            kept[-1] = kept[-1]._replace(slots=[*kept[-1].slots, "\n", *message.slots])
            continue
        elif role not in _MAY_FOLLOW[previous]:
            expected = " or the ".join(_MAY_FOLLOW[previous])
            raise RejectError("role_order", f"turn {number} is by the {role}; expected the {expected}")
        kept.append(message)
        previous = role
    return kept, notes


def _with_videos(
    messages: list[Message], images: Sequence[Image], videos: Sequence[Image]
) -> tuple[list[Message], Sequence[Image]]:
    """Messages with videos at their tags, and what is left to place. Raises RejectError.

    Without a tag <video>, videos are where the markers of images are, as in LLaVA-Video; then there can be no images.
    """
    tags = sum(slot is Mark.VIDEO for message in messages for slot in message.slots)
    if not tags and not images:
        return messages, videos
    if tags != len(videos):
        raise RejectError("image_count", f"the text has {tags} <video> tags; expected {len(videos)}, one per video")
    rest = iter(videos)
    return [
        message._replace(slots=[next(rest) if slot is Mark.VIDEO else slot for slot in message.slots])
        for message in messages
    ], images


def _place(messages: Sequence[Message], images: Sequence[Image]) -> tuple[list[list[str | Image]], bool]:
    """The parts of each message with images at their markers, and whether images without markers were placed first."""
    marks = 0
    numbers: list[int] = []
    named: list[Image] = []
    for message in messages:
        for slot in message.slots:
            if type(slot) is str:  # nearly all slots
                continue
            if slot is None:
                marks += 1
            elif type(slot) is int:
                numbers.append(slot)
            elif type(slot) is Image:
                named.append(slot)
            elif type(slot) is Mark:
                raise RejectError("image_count", "the text marks a video; the record names none")
    if numbers:
        return _by_number(messages, images, numbers, marks), False
    if not marks and not named and images:
        return _placed_first(messages, images), True
    if marks != len(images) and (marks or list(images) != named):
        raise RejectError("image_count", f"the text has {marks} image markers; expected {len(images)}, one per image")
    if not marks:
        return [_parts(message.slots) for message in messages], False
    rest = iter(images)
    return [_parts([next(rest) if slot is None else slot for slot in message.slots]) for message in messages], False


def _by_number(
    messages: Sequence[Message], images: Sequence[Image], numbers: Sequence[int], marks: int
) -> list[list[str | Image]]:
    if marks:
        raise RejectError("image_count", "the text has numbered image markers and others; expected one kind")
    start = 0 if 0 in numbers else 1
    if sorted(numbers) != [*range(start, start + len(images))]:
        got = ", ".join(map(str, numbers[:20]))
        raise RejectError(
            "image_count", f"the text marks the images {got}; expected each of the {len(images)} images once"
        )
    return [
        _parts([images[slot - start] if isinstance(slot, int) else slot for slot in message.slots])
        for message in messages
    ]


def _placed_first(messages: Sequence[Message], images: Sequence[Image]) -> list[list[str | Image]]:
    first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    return [
        [*images, *_parts(message.slots)] if index == first else _parts(message.slots)
        for index, message in enumerate(messages)
    ]


def _parts(slots: list[Slot]) -> list[str | Image]:
    """Slots without markers are parts."""
    return cast("list[str | Image]", slots)


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
