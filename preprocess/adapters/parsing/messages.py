"""Messages as published: `{"role", "content"}`, `{"from", "value"}`, `{"user", "assistant"}` and their like.

Rule: a message has one key for who speaks and one for what is said, or it is a question with its answer, as an object
or as an array of two; an object with a single key is one of these two. All keys of a message that carry meaning are
read (preprocess.adapters.parsing.keys), or the record is a reject.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import is_text, show
from preprocess.adapters.parsing.keys import check_keys, given, one_of, renamed
from preprocess.adapters.parsing.loss_flags import FLAGS, is_trained
from preprocess.adapters.parsing.media_tags import Slot, TagRules, slots
from preprocess.adapters.parsing.parts import image_in, parts_slots
from preprocess.adapters.parsing.roles import CALLERS, ROLES, role_of
from preprocess.adapters.parsing.tools import tool_calls
from preprocess.adapters.parsing.turns import Message
from preprocess.containers.image_columns import IMAGE_KEYS
from preprocess.conversation import Image, Role
from preprocess.errors import RejectError

ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text", "utterance")
QUESTION_KEYS = ("user", "human", "question", "query", "input")
ANSWER_KEYS = ("assistant", "gpt", "answer", "response", "output")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")
MESSAGE_KEYS = frozenset(
    (*ROLE_KEYS, *CONTENT_KEYS, *FLAGS, *_REASONING, *_CALLS, *IMAGE_KEYS, "name", "tool_call_id", "id")
)
ROUND_KEYS = frozenset((*QUESTION_KEYS, *ANSWER_KEYS))


def messages_of(items: list[Any], request: Request, has_images: bool, rules: TagRules) -> list[Message]:
    """The messages of a record. has_images: whether the record names images. Raises RejectError."""
    messages: list[Message] = []
    for item in items:
        if type(item) is list:
            return _pairs(items, request, has_images, rules)
        message = item if type(item) is dict and not request.keys else renamed(item, request, "a turn")
        if len(message) == 2 and (keys := _plain(tuple(message))):  # nearly all messages
            name, content = message[keys[0]], message[keys[1]]
            role = role_of(name, request)
            if role != "tool" and name not in CALLERS:
                messages.append(Message(role, _content(content, role, has_images, rules, request)))
                continue
        if not any(name in message for name in ROLE_KEYS) and given(message, QUESTION_KEYS + ANSWER_KEYS):
            messages += _round(message, request, has_images, rules)
        else:
            check_keys(message, request, MESSAGE_KEYS)
            messages.append(_message(message, request, has_images, rules))
    return messages


@lru_cache(maxsize=64)
def _plain(names: tuple[str, str]) -> tuple[str, str] | None:
    """The keys of role and content, if a message with these two keys has exactly them."""
    if names[0] in CONTENT_KEYS:
        names = names[::-1]
    return names if names[0] in ROLE_KEYS and names[1] in CONTENT_KEYS else None


def question_and_answer(question: Any, answer: Any, has_images: bool, rules: TagRules) -> list[Message]:
    return [
        Message("user", slots(question, "user", has_images, rules)),
        Message("assistant", slots(answer, "assistant", has_images, rules)),
    ]


def _pairs(items: list[Any], request: Request, has_images: bool, rules: TagRules) -> list[Message]:
    """Arrays of two: a role and its text each, if each of them begins with the name of a role; else rounds."""
    for item in items:
        if type(item) is not list or len(item) != 2:
            raise RejectError(
                "wrong_type", f"a turn is {show(item)}; expected [role, text] or [question, answer], as in other turns"
            )
    names = [name for name, _ in items if type(name) is str and (name in request.roles or name.lower() in ROLES)]
    if names and len(names) < len(items):
        raise RejectError(
            "bad_value",
            f"{len(names)} of {len(items)} turns begin with the name of a role, such as {show(names[0])}; expected "
            "[role, text] in all turns, or [question, answer]",
        )
    messages: list[Message] = []
    for first, content in items:
        if names:
            role = role_of(first, request)
            messages.append(Message(role, _content(content, role, has_images, rules, request)))
        else:
            messages += question_and_answer(first, content, has_images, rules)
    return messages


def _round(item: dict[str, Any], request: Request, has_images: bool, rules: TagRules) -> list[Message]:
    """One object with a question and its answer, or with one of them under its only key."""
    check_keys(item, request, ROUND_KEYS)
    question, answer = one_of(item, QUESTION_KEYS, "question"), one_of(item, ANSWER_KEYS, "answer")
    if len(item) == 1:
        role: Role = "assistant" if question is None else "user"
        return [Message(role, _content(item[question or answer or ""], role, has_images, rules, request))]
    if question is None or answer is None:
        lacking = "question" if question is None else "answer"
        raise RejectError(f"empty_{lacking}", f"a round has no {lacking}")
    return question_and_answer(item[question], item[answer], has_images, rules)


def _message(message: dict[str, Any], request: Request, has_images: bool, rules: TagRules) -> Message:
    name = message[_key(message, ROLE_KEYS)]
    role = role_of(name, request)
    own = _own_images(message, request)
    calls_key = one_of(message, _CALLS, "tool call")
    calls = () if calls_key is None else tool_calls(message[calls_key], calls_key)
    content = None if calls and not given(message, CONTENT_KEYS) else message[_key(message, CONTENT_KEYS)]
    if name in CALLERS:
        calls, content = (*calls, *tool_calls(content, f"the turn of {name}")), None
    if calls and role != "assistant":
        raise RejectError("bad_value", f"{calls_key} is in a turn of the {role}; expected calls only by the assistant")
    parts = [] if content is None and calls else _content(content, role, has_images or bool(own), rules, request)
    return Message(
        role,
        _with_own_images(parts, own, role),
        trained=is_trained(message, role),
        reasoning=_reasoning(message, role),
        tool_calls=calls,
        tool_name=_text(message, "name") if role == "tool" else "",
        call_id=_text(message, "tool_call_id"),
    )


def _key(message: dict[str, Any], names: tuple[str, ...]) -> str:
    """The one of the names that the message has. Raises RejectError if it has none, or two with values."""
    found = [name for name in names if name in message]
    if len(found) > 1:
        return one_of(message, tuple(found), "of them") or found[0]
    if not found:
        raise RejectError("missing_key", f"a turn has none of the keys {', '.join(names)}; map your own in `fields`")
    return found[0]


def _content(value: Any, role: Role, has_images: bool, rules: TagRules, request: Request) -> list[Slot]:
    if type(value) is list:
        return parts_slots(value, role, has_images, rules, request)
    if type(value) is str and "<" not in value and value.isascii() and rules.marker not in value:  # nearly all
        return [value]
    return slots(value, role, has_images, rules)


def _own_images(message: dict[str, Any], request: Request) -> list[Image]:
    """The images that a message names itself."""
    key = one_of(message, IMAGE_KEYS, "list of images")
    if key is None:
        return []
    values = message[key] if type(message[key]) is list else [message[key]]
    found = [image_in(value, key, request) for value in values]
    if None in found:
        raise RejectError("missing_key", f"{key} of a turn has no path")
    return [image for image in found if image is not None]


def _with_own_images(parts: list[Slot], own: list[Image], role: Role) -> list[Slot]:
    """The message's own images at its markers; before its text if it has none."""
    if not own:
        return parts
    if role not in ("user", "tool"):
        reason = "image_in_answer" if role == "assistant" else "unread_media"
        raise RejectError(reason, f"a turn of the {role} has images; expected images only in questions")
    marks = parts.count(None)
    if not marks:
        return [*own, *parts]
    if marks != len(own):
        raise RejectError("image_count", f"a turn has {marks} image markers and {len(own)} images of its own")
    rest = iter(own)
    return [next(rest) if part is None else part for part in parts]


def _reasoning(message: dict[str, Any], role: Role) -> str:
    key = one_of(message, _REASONING, "reasoning")
    if key is None:
        return ""
    if role != "assistant":
        raise RejectError("bad_value", f"{key} is in a turn of the {role}; expected it only in answers")
    return _text(message, key)


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if value is None:
        return ""
    if type(value) is not str:
        raise RejectError("wrong_type", f"{key} is {show(value)}; expected text")
    if not is_text(value):
        raise RejectError("bad_text", f"{key} contains a lone surrogate; expected Unicode text")
    return value
