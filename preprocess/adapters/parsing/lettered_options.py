"""Options of a question with letters: the question, then `A. first` and `B. second` on lines of their own.

Rule: the answer is the letter of an option or its text, and stays as it is. A number is a reject: data count options
from 0 or from 1.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from preprocess.adapters.parsing.fields import show
from preprocess.errors import RejectError

LETTER = "Answer with the option's letter from the given choices directly."
"""LLaVA-1.5's instruction after the options."""

_MAX_TEXT = 1 << 16
_NOT_A_LIST = (ValueError, SyntaxError, RecursionError, MemoryError)
_AROUND_LETTER = "().: "


def lettered(question: str, options: Sequence[str]) -> str:
    """The question with its options below it; options that have their letters already keep them."""
    if len(options) > len(ascii_uppercase):
        raise RejectError("bad_value", f"got {len(options)} options; expected at most {len(ascii_uppercase)}")
    pairs = list(zip(ascii_uppercase, options, strict=False))
    if all(re.match(rf"\(?{letter}[.):]", option) for letter, option in pairs):
        return "\n".join([question, *options])
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in pairs)])


def with_options(question: Any, options: Sequence[str], reply: Any) -> tuple[Any, Any]:
    """The question with its options, and the answer. Without options, both as they are. Raises RejectError."""
    if not options:
        if type(reply) is str and reply.startswith("[") and len(_listed(reply) or ()) > 1:
            raise RejectError("bad_value", f"answer is {show(reply)}; expected one answer")
        return question, reply
    if type(question) is not str:
        raise RejectError("wrong_type", f"the question is {show(question)}; expected text before its options")
    letters = ascii_uppercase[: len(options)]
    is_letter = type(reply) is str and len(letter := reply.strip(_AROUND_LETTER)) == 1 and letter in letters
    if not is_letter and reply not in options:
        raise RejectError(
            "bad_value",
            f"answer is {show(reply)}; expected a letter from A to {letters[-1]}, or the text of an option",
        )
    return lettered(question, options), reply


def options_of(value: Any, what: str) -> list[str]:
    """The options of an array, an object by letter, or a text of either in JSON or Python. Raises RejectError."""
    items = _listed(value) if type(value) is str else value
    if type(items) is dict:
        given = {letter: option for letter, option in items.items() if option is not None}
        if list(given) != list(ascii_uppercase[: len(given)]):
            keys = show(", ".join(map(str, items)))
            raise RejectError("bad_value", f"{what} has the keys {keys}; expected A, B, ...")
        items = list(given.values())
    if type(items) is not list:
        raise RejectError("wrong_type", f"{what} is {show(value)}; expected an array of texts")
    for item in items:
        if type(item) is not str:
            raise RejectError("wrong_type", f"an item of {what} is {show(item)}; expected text")
    return [item.strip() for item in items]


def _listed(text: str) -> Any:
    """The value of JSON, or of a list as Python prints it; None for any other text."""
    if len(text) > _MAX_TEXT:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except _NOT_A_LIST:
            continue
    return None
