"""The body of a chat completion as a typed record; a pure function of its bytes and the server's limits.

request = parse_chat(body, Limits(), Defaults())
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from dst import Message
from trainer.errors import RequestError
from trainer.serving.limits import Limits
from trainer.serving.message_parts import ImageSource, parse_messages
from trainer.serving.parameters import check_parameters, short, type_of

_LARGEST_SEED = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request gets that does not name a value; OpenAI's own defaults."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat completion, checked. messages: in dst's form, with as many image parts as `images`."""

    model: str
    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    """None: the client asks for no particular sample"""
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    """Whether a stream ends with a chunk that has the usage"""


def parse_chat(body: bytes, limits: Limits, defaults: Defaults) -> ChatRequest:
    """Raises RequestError, whose `param` is the first field that is wrong."""
    fields = _object(body, limits)
    check_parameters(fields)
    model = fields.get("model")
    if not isinstance(model, str):
        raise _wrong("model", model, "the name of a model, such as GET /v1/models lists")
    messages, images = parse_messages(fields.get("messages"), limits)
    stream = _boolean(fields, "stream")
    return ChatRequest(
        model=model,
        messages=messages,
        images=images,
        max_new_tokens=_max_new_tokens(fields, limits),
        temperature=_number(fields, "temperature", defaults.temperature, "a number from 0 to 2", 0, 2),
        top_p=_top_p(fields, defaults),
        seed=_seed(fields),
        stop=_stop(fields, limits),
        stream=stream,
        include_usage=_include_usage(fields, stream),
    )


def _object(body: bytes, limits: Limits) -> Mapping[str, Any]:
    items = sum(body.count(character) for character in (b",", b"[", b"{"))
    if items > limits.json_items:
        raise RequestError(f"the body has {items:,} commas and brackets; expected at most {limits.json_items:,}")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}"[:300], code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(f"the body is JSON of type {type_of(fields)}; expected an object", code="invalid_json")
    return fields


def _max_new_tokens(fields: Mapping[str, Any], limits: Limits) -> int:
    named = {name: fields[name] for name in ("max_tokens", "max_completion_tokens") if fields.get(name) is not None}
    for name, value in named.items():
        if type(value) is not int or not 1 <= value <= limits.new_tokens:
            raise _wrong(name, value, f"a whole number from 1 to {limits.new_tokens}, the limit of this server")
    if len(set(named.values())) > 1:
        text = "max_completion_tokens: differs from max_tokens, which is its older name; set one of them"
        raise RequestError(text, "max_completion_tokens")
    return next(iter(named.values()), limits.new_tokens)


def _top_p(fields: Mapping[str, Any], defaults: Defaults) -> float:
    value = _number(fields, "top_p", defaults.top_p, "a number above 0, up to 1", 0, 1)
    if value == 0:
        raise _wrong("top_p", 0, "a number above 0, up to 1; temperature: 0 always takes the likeliest token")
    return value


def _seed(fields: Mapping[str, Any]) -> int | None:
    seed = fields.get("seed")
    if seed is not None and (type(seed) is not int or not -_LARGEST_SEED <= seed < _LARGEST_SEED):
        raise _wrong("seed", seed, "a whole number from -2^63 to 2^63 - 1")
    return seed


def _stop(fields: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    value = fields.get("stop")
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > limits.stop_strings:
        raise _wrong("stop", value, f"a string, or a list of up to {limits.stop_strings}")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= limits.stop_characters:
            raise _wrong("stop", text, f"strings of 1 to {limits.stop_characters:,} characters")
    return tuple(texts)


def _include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _wrong("stream_options", options, 'an object, such as {"include_usage": true}')
    if not stream:
        raise RequestError("stream_options: has no effect without stream: true; remove it", "stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise RequestError(f"stream_options.{short(name)}: unknown parameter", "stream_options")
    if options.get("include_obfuscation"):
        raise RequestError("stream_options.include_obfuscation: not supported; expected false", "stream_options")
    return _boolean(options, "include_usage", "stream_options.")


def _boolean(fields: Mapping[str, Any], name: str, prefix: str = "") -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(f"{prefix}{name}", value, "true or false")
    return bool(value)


def _number(
    fields: Mapping[str, Any], name: str, default: float, expected: str, smallest: float, largest: float
) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if type_of(value) != "number" or not math.isfinite(value) or not smallest <= value <= largest:
        raise _wrong(name, value, expected)
    return float(value)


def _wrong(name: str, value: object, expected: str) -> RequestError:
    got = "nothing" if value is None else short(value)
    return RequestError(f"{name}: got {got}; expected {expected}", name)
