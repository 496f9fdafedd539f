"""Messages in the form of Hugging Face's chat templates: what is allowed in them, and the texts that they carry.

    {"role": "system" | "user", "content": CONTENT}
    {"role": "tool", "content": CONTENT, "name": str, "tool_call_id": str}
    {"role": "assistant", "content": CONTENT, "reasoning_content": str, "tool_calls": [CALL, ...], "trained": bool}

CONTENT is a text, or a list of {"type": "image"} and {"type": "text", "text": str}; an assistant that calls tools needs
none. CALL is {"type": "function", "function": {"name": str, "arguments": {...} or str}}. The other keys are optional.
`trained` is the only one that Hugging Face does not have: False keeps an answer in the context, without labels.
Templates never see it.

Source of the format: https://huggingface.co/docs/transformers/chat_extras
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dst.errors import TemplateError

ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]
"""One message; see above."""

Tools = Sequence[Mapping[str, Any]]
"""Definitions of tools, each {"type": "function", "function": {"name": str, ...}}."""

_WORD = re.compile(r"\w+")


def check_messages(messages: Sequence[Message]) -> int:
    """The number of images. Raises TemplateError for messages of another form than this module describes."""
    images = 0
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise TemplateError(f"message {number}: role is {role!r}; expected one of {', '.join(ROLES)}")
        if len(message) > 2:
            _check_extras(message, number)
        if isinstance(content, str) or (content is None and message.get("tool_calls")):
            continue
        if not isinstance(content, list | tuple):
            raise TemplateError(f"message {number}: content is {type(content).__name__}; expected text or a list")
        for part in content:
            match part:
                case {"type": "image"}:
                    images += 1
                case {"type": "text", "text": str()}:
                    pass
                case _:
                    raise TemplateError(f"message {number}: a part is {part!r:.80}; expected an image or a text part")
    return images


def is_trained(message: Message) -> bool:
    """Whether the message is an answer with labels."""
    return message["role"] == "assistant" and message.get("trained") is not False


def extras(messages: Sequence[Message], tools: Tools | None) -> tuple[str, ...]:
    """Which of `tools`, `tool`, `tool_calls` and `reasoning_content` the conversation has, by the name in templates."""
    names = {"tools": None} if tools else {}
    for message in messages:
        if message["role"] == "tool":
            names["tool"] = None
        if len(message) > 2:
            names.update((key, None) for key in ("tool_calls", "reasoning_content") if message.get(key))
    return tuple(names)


def left_out(messages: Sequence[Message], tools: Tools | None, rendered: str) -> str | None:
    """What of a conversation with tools or reasoning a template did not write, in words; None if all is there."""

    def is_written(text: object) -> bool:
        text = str(text).strip()
        return text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered

    for tool in tools or ():
        name, description = (_function(tool).get(key) or "" for key in ("name", "description"))
        if not (is_written(name) and is_written(description)):
            return f"the definition of tool {name!r}"
    for number, message in enumerate(messages, start=1):
        if not is_written(message.get("reasoning_content") or ""):
            return f"the reasoning_content of message {number}"
        for call in message.get("tool_calls") or ():
            if not is_written(call["function"]["name"]):
                return f"a tool call of message {number}"
        if (message["role"] == "tool" or message.get("tool_calls")) and not all(map(is_written, _content(message))):
            return f"text of message {number} ({message['role']})"
    return None


def texts_of(messages: Sequence[Message], tools: Tools | None = None) -> list[str]:
    """Every text from data, in the order in which templates usually write them."""
    texts = list(_strings(tools)) if tools else []
    for message in messages:
        if len(message) > 2:
            texts += [message["reasoning_content"]] if message.get("reasoning_content") else []
            texts += _content(message)
            texts += _strings([message.get(key) for key in ("tool_calls", "name", "tool_call_id")])
        else:
            texts += _content(message)
    return texts


def map_texts(message: Message, change: Callable[[str], str], change_word: Callable[[str], str]) -> Message:
    """The message with other texts. change_word: for single words in tool calls and names of tools."""
    changed = dict(message)
    content = message.get("content")
    if isinstance(content, str):
        changed["content"] = change(content)
    elif content is not None:
        changed["content"] = [
            {**part, "text": change(part["text"])} if part["type"] == "text" else part for part in content
        ]
    if message.get("reasoning_content"):
        changed["reasoning_content"] = change(message["reasoning_content"])
    for key in ("tool_calls", "name", "tool_call_id"):
        if message.get(key):
            changed[key] = map_strings(message[key], change, change_word)
    return changed


def map_strings(value: Any, change: Callable[[str], str], change_word: Callable[[str], str]) -> Any:
    """JSON with other strings. Keys that are words stay, since templates look values up by them."""
    if isinstance(value, str):
        return change_word(value) if _WORD.fullmatch(value) else change(value)
    if isinstance(value, Mapping):
        return {
            key if _WORD.fullmatch(key) else change(key): map_strings(child, change, change_word)
            for key, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [map_strings(child, change, change_word) for child in value]
    return value


def _check_extras(message: Message, number: int) -> None:
    """Raises TemplateError unless the keys next to role and content have the form that this module describes."""
    role, calls = message["role"], message.get("tool_calls")
    for key in ("tool_calls", "reasoning_content", "trained"):
        if message.get(key) is not None and role != "assistant":
            raise TemplateError(f"message {number}: a {role} message has {key}; expected it in an assistant message")
    if not isinstance(message.get("reasoning_content", ""), str | None):
        raise TemplateError(f"message {number}: reasoning_content is not text")
    if not isinstance(message.get("trained", True), bool):
        raise TemplateError(f"message {number}: trained is {message['trained']!r}; expected true or false")
    if not isinstance(calls, list | tuple | None):
        raise TemplateError(f"message {number}: tool_calls is {type(calls).__name__}; expected a list")
    for call in calls or ():
        match call:
            case {"function": {"name": str(), "arguments": str() | Mapping()}}:
                pass
            case _:
                raise TemplateError(
                    f"message {number}: a tool call is {call!r:.80}; expected "
                    '{"type": "function", "function": {"name": ..., "arguments": {...}}}'
                )


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {}


def _content(message: Message) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if part["type"] == "text"]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield key
            yield from _strings(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _strings(child)
