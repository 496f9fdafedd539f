"""Tool calls and definitions of tools, in the forms of OpenAI, Hugging Face, LLaMA-Factory and ms-swift.

Rule: a call has a name and an object of arguments; JSON text in place of an object is parsed. Nothing else is read.
"""

from __future__ import annotations

import json
from typing import Any

from preprocess.adapters.parsing.fields import is_text, object_of, show
from preprocess.conversation import ToolCall
from preprocess.errors import RejectError


def tool_calls(value: Any, what: str) -> tuple[ToolCall, ...]:
    """Calls of one message: an object or an array of them, `{"name", "arguments"}`, also below `function`."""
    value = parsed(value, what)
    return tuple(_call(item, what) for item in (value if type(value) is list else [value]))


def tool_definitions(value: Any) -> tuple[str, ...]:
    """The definitions of `tools`, each as JSON text of an object."""
    value = parsed(value, "tools")
    items = value if type(value) is list else [value]
    return tuple(json_text(object_of(parsed(item, "a tool"), "a tool"), "tools") for item in items)


def parsed(value: Any, what: str) -> Any:
    """The value of JSON text; any other value as it is. Raises RejectError for text that is not JSON."""
    if type(value) is not str:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be parsed"
        raise RejectError("bad_value", f"{what} is {show(value)}; expected JSON ({reason})") from None


def json_text(value: Any, what: str) -> str:
    """Raises RejectError for what JSON does not have."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RejectError("bad_value", f"{what} has a value that JSON does not have ({error})") from None
    if not is_text(text):
        raise RejectError("bad_text", f"{what} contains a lone surrogate; expected Unicode text")
    return text


def _call(value: Any, what: str) -> ToolCall:
    call = object_of(parsed(value, what), f"a call in {what}")
    kind, identity = call.get("type"), call.get("id")
    if kind not in (None, "function"):
        raise RejectError("bad_value", f"a call in {what} has the type {show(kind)}; expected function")
    function = object_of(call["function"], "function") if call.get("function") is not None else call
    name = function.get("name")
    if type(name) is not str or not name or not is_text(name):
        raise RejectError("bad_value", f"a call in {what} has the name {show(name)}; expected the name of a tool")
    if identity is not None and (type(identity) is not str or not is_text(identity)):
        raise RejectError("wrong_type", f"a call in {what} has the id {show(identity)}; expected text")
    arguments = parsed(function.get("arguments", {}) or {}, "the arguments of a call")
    return ToolCall(
        name=name, arguments=json_text(object_of(arguments, "the arguments of a call"), what), id=identity or ""
    )
