"""The messages of a chat completion in dst's form, and where their images come from.

Rules: an image is shown where the client put it among the texts of its message, as far as the template writes it there.
Messages of the user that follow each other are one turn: some chat pages send an image and its question apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dst import Message
from trainer.errors import RequestError
from trainer.serving.limits import Limits
from trainer.serving.parameters import short, type_of

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_DETAILS = (None, "auto", "high", "low")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """An image of a request: its data URI or URL, and the name of its field, for errors."""

    url: str
    param: str
    is_low_detail: bool = False


def parse_messages(messages: object, limits: Limits) -> tuple[tuple[Message, ...], tuple[ImageSource, ...]]:
    """The messages in dst's form, and their images in order. Raises RequestError."""
    if not isinstance(messages, list) or not messages:
        got = "an empty list" if messages == [] else "nothing" if messages is None else type_of(messages)
        raise RequestError(f"messages: got {got}; expected a list of messages", "messages")
    if len(messages) > limits.messages:
        raise RequestError(f"messages: got {len(messages):,}; expected at most {limits.messages:,}", "messages")
    images: list[ImageSource] = []
    parsed = [_message(message, f"messages[{number}]", images) for number, message in enumerate(messages)]
    if len(images) > limits.images:
        text = f"messages: show {len(images)} images; this server allows at most {limits.images}"
        raise RequestError(text, "messages", code="too_many_images")
    size = sum(len(text.encode()) for message in parsed for text in _texts(message))
    if size > limits.text_bytes:
        text = f"messages: have {size:,} bytes of text; expected at most {limits.text_bytes:,}"
        raise RequestError(text, "messages", code="context_length_exceeded")
    if parsed[-1]["role"] == "assistant":
        name = f"messages[{len(parsed) - 1}].role"
        raise RequestError(f"{name}: the last message is the assistant's; expected a question to answer", name)
    return tuple(_turns(parsed)), tuple(images)


def _turns(messages: Sequence[Message]) -> Iterator[Message]:
    """Each message, but those of the user that follow each other as one, with a line break between two texts."""
    for role, group in groupby(messages, lambda message: message["role"]):
        first, *others = group
        if role != "user" or not others:
            yield from (first, *others)
            continue
        parts: list[dict[str, str]] = []
        for message in (first, *others):
            content = message["content"]
            own = [{"type": "text", "text": content}] if isinstance(content, str) else content
            follows_text = bool(parts) and parts[-1]["type"] == own[0]["type"] == "text"
            parts += [{"type": "text", "text": "\n"}, *own] if follows_text else own
        yield {"role": role, "content": parts}


def _message(message: object, name: str, images: list[ImageSource]) -> Message:
    if not isinstance(message, dict):
        raise RequestError(f"{name}: got {type_of(message)}; expected an object with role and content", name)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        hint = "; tools are not supported" if role in ("tool", "function") else ""
        expected = f"one of {', '.join(_ROLES)}{hint}"
        raise RequestError(f"{name}.role: got {short(role)}; expected {expected}", f"{name}.role")
    for key, value in message.items():
        if key not in ("role", "content") and value not in (None, []):
            text = f"{name}.{short(key)}: not supported by this server; expected only role and content"
            raise RequestError(text, f"{name}.{short(key)}", code="unsupported_parameter")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": _ROLES[role], "content": content}
    if not isinstance(content, list) or not content:
        got = "an empty list" if content == [] else type_of(content)
        raise RequestError(f"{name}.content: got {got}; expected a text or a list of parts", f"{name}.content")
    parts = [_part(part, f"{name}.content[{number}]", role, images) for number, part in enumerate(content)]
    return {"role": _ROLES[role], "content": parts}


def _part(part: object, name: str, role: str, images: list[ImageSource]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in ("text", "image_url"):
        got = f"a part of type {short(kind)}" if isinstance(part, dict) else type_of(part)
        raise RequestError(f"{name}: got {got}; expected a part of type text or image_url", name)
    if unknown := sorted(part.keys() - {"type", kind}):
        raise RequestError(f"{name}.{short(unknown[0])}: unknown parameter", name, code="unknown_parameter")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise RequestError(f"{name}.text: got {type_of(text)}; expected a string", name)
        return {"type": "text", "text": text}
    if role != "user":
        raise RequestError(f"{name}: got an image in a message of {role}; images are shown by user", name)
    images.append(_image(part.get("image_url"), f"{name}.image_url"))
    return {"type": "image"}


def _image(image: object, name: str) -> ImageSource:
    if not isinstance(image, dict) or not isinstance(image.get("url"), str):
        raise RequestError(f"{name}: expected an object whose url is a data URI or a URL", name)
    if unknown := sorted(image.keys() - {"url", "detail"}):
        raise RequestError(f"{name}.{short(unknown[0])}: unknown parameter", name, code="unknown_parameter")
    detail = image.get("detail")
    if detail is not None and detail not in _DETAILS:
        raise RequestError(f"{name}.detail: got {short(detail)}; expected auto, high or low", f"{name}.detail")
    return ImageSource(url=image["url"], param=f"{name}.url", is_low_detail=detail == "low")


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
