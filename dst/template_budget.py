"""Limits of what one render of a template may do: rounds of its loops, the size of every text and list, and time.

Rule: no expression of a template can take more memory than `MOST_CHARACTERS` asks for, because sizes are compared
before a text is made; and loops, macros and recursive loops end after `MOST_ROUNDS` rounds or `MOST_SECONDS`. The
templates of published models need a thousandth of it. Every excess is a jinja2.TemplateRuntimeError.

`bounded` rewrites a parsed template so that loops and `~` go through the filters of `FILTERS`; `Limits` are the hooks
of an environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from time import monotonic
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.runtime

WORK = "_work"
"""The context name under which a render hands its `Work` to the filters."""

MOST_ROUNDS = 5_000_000
MOST_CHARACTERS = 1 << 26
MOST_SECONDS = 60.0
MOST_BITS = 4096
"""Of a whole number"""

MOST_WIDTH = 10_000
"""Of padding, indents and batches"""

BINARY_OPERATORS = frozenset({"+", "*", "**", "%"})

_COUNTED, _ROUND, _JOINED = "_counted", "_round", "_joined"
_LONG_WIDTH = re.compile(r"\d{5,}|%[^a-z%]*\*|\{[^{}]*:[^{}]*\{")
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_CLOCK_EVERY = 4096


class Work:
    """What a render did so far."""

    __slots__ = ("_deadline", "_next_look", "rounds")

    def __init__(self) -> None:
        self.rounds = 0
        self._next_look = _CLOCK_EVERY
        self._deadline = monotonic() + MOST_SECONDS

    def add(self, rounds: int) -> None:
        self.rounds += rounds
        if self.rounds > MOST_ROUNDS:
            _fail(f"its loops have more than {MOST_ROUNDS:,} rounds")
        if self.rounds >= self._next_look:
            self._next_look = self.rounds + _CLOCK_EVERY
            if monotonic() > self._deadline:
                _fail(f"it takes longer than {MOST_SECONDS:.0f} s")


def bounded(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """The template with every loop counted and every `~` measured."""
    for loop in list(tree.find_all(jinja2.nodes.For)):
        loop.iter = _filter(loop.iter, _COUNTED)
        if loop.recursive:
            loop.body.insert(0, _count_round(loop))
    for macro in list(tree.find_all(jinja2.nodes.Macro)):
        macro.body.insert(0, _count_round(macro))
    _measure_joins(tree)
    return tree


def check_characters(count: int) -> None:
    """Raises TemplateRuntimeError for a text or list that is too long."""
    if count > MOST_CHARACTERS:
        _fail(f"it makes a text or list of {count:,} characters or items; at most {MOST_CHARACTERS:,} are allowed")


def check_binary(operator: str, left: Any, right: Any) -> None:
    """Before the operator is applied. Raises TemplateRuntimeError."""
    if operator == "+":
        if isinstance(left, Sized) and isinstance(right, Sized):
            check_characters(len(left) + len(right))
    elif operator == "%":
        if isinstance(left, str):
            check_format(left)
    elif isinstance(left, int) and isinstance(right, int):
        bits = abs(left).bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MOST_BITS:
            _fail(f"it computes a number of {bits:,} bits; at most {MOST_BITS} are allowed")
    elif operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, Sized) and isinstance(count, int):
                check_characters(len(sequence) * max(count, 0))


def check_format(text: str) -> None:
    """A format with a width that is large, or that comes from a value."""
    if _LONG_WIDTH.search(text):
        _fail(f"a format has a width of its values or one of 5 digits: {text!r:.80}")


def check_method(method: object, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Before a method of a text is called. Raises TemplateRuntimeError."""
    if not isinstance(method, BuiltinMethodType) or not isinstance(method.__self__, str):
        return
    text, name = method.__self__, method.__name__
    if name in _PADDING:
        _check_widths((*arguments, *keywords.values()))
    elif name == "replace":
        _check_replace(text, *arguments[:2])
    elif name == "join" and arguments and isinstance(arguments[0], list | tuple):
        _check_join(arguments[0], text)
    elif name in ("format", "format_map"):
        check_format(text)


def limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja whose sizes are compared before it runs."""
    passes = getattr(function, "jinja_pass_arg", None) is not None

    def run(*arguments: Any, **keywords: Any) -> Any:
        value, *rest = arguments[1:] if passes else arguments
        if name == "replace" and isinstance(value, str):
            _check_replace(value, *rest[:2])
        elif name == "join" and isinstance(value, list | tuple):
            _check_join(value, rest[0] if rest else keywords.get("d", ""))
        elif name == "format":
            check_format(str(value))
        else:
            _check_widths((*rest, *keywords.values()))
        return function(*arguments, **keywords)

    run.__dict__.update(function.__dict__)
    return run


LIMITED_FILTERS = ("batch", "center", "format", "indent", "join", "replace", "round", "slice", "tojson", "wordwrap")


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterable[Any]:
    work: Work = context.get(WORK) or Work()
    if isinstance(items, list | tuple | dict | str | range):
        work.add(len(items))
        return items
    return _each(items, work)


def _each(items: Iterable[Any], work: Work) -> Iterator[Any]:
    for item in items:
        work.add(1)
        yield item


@jinja2.pass_context
def _round(context: jinja2.runtime.Context, _: object) -> str:
    if work := context.get(WORK):
        work.add(1)
    return ""


def _joined(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    check_characters(sum(map(len, texts)))
    return "".join(texts)


FILTERS: Mapping[str, Callable[..., Any]] = {_COUNTED: _counted, _ROUND: _round, _JOINED: _joined}


def _check_widths(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and value > MOST_WIDTH:
            _fail(f"it asks for a width of {value:,}; at most {MOST_WIDTH:,} is allowed")


def _check_replace(text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    if isinstance(old, str) and isinstance(new, str) and len(new) > len(old):
        check_characters(len(text) + text.count(old) * len(new))


def _check_join(parts: Iterable[Any], separator: Any) -> None:
    sizes = [len(part) for part in parts if isinstance(part, str)]
    check_characters(sum(sizes) + len(str(separator)) * len(sizes))


def _measure_joins(node: jinja2.nodes.Node) -> None:
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_measured(item) if isinstance(item, jinja2.nodes.Node) else item for item in value])
        elif isinstance(value, jinja2.nodes.Node):
            setattr(node, name, _measured(value))


def _measured(node: jinja2.nodes.Node) -> jinja2.nodes.Node:
    _measure_joins(node)
    if isinstance(node, jinja2.nodes.Concat):
        return _filter(jinja2.nodes.List(node.nodes).set_lineno(node.lineno), _JOINED)
    return node


def _count_round(node: jinja2.nodes.Node) -> jinja2.nodes.Node:
    nothing = jinja2.nodes.Const(None).set_lineno(node.lineno)
    return jinja2.nodes.Output([_filter(nothing, _ROUND)]).set_lineno(node.lineno)


def _filter(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Filter:
    made = jinja2.nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno)
    return made


def _fail(what: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(what)
