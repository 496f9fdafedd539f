"""Jinja as Hugging Face sets it up for chat templates, made strict and repeatable.

Rules: an undefined name is an error at once; nothing depends on the clock or on chance; templates run in Jinja's
sandbox, within the limits of dst.template_budget; `{% generation %}` blocks stand where their place in the text is
known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from dst.template_budget import (
    BINARY_OPERATORS,
    FILTERS,
    LIMITED_FILTERS,
    bounded,
    check_binary,
    check_format,
    check_method,
    limited,
)

OUTPUT = "_output"
"""The context name under which a render hands its `Output` to the generation blocks."""

_MAX_ANSWERS = 1024

# What these blocks print goes into a buffer first, so a generation block inside one cannot tell where its text ends up.
_BUFFERS = (jinja2.nodes.AssignBlock, jinja2.nodes.CallBlock, jinja2.nodes.FilterBlock, jinja2.nodes.Macro)


class Output:
    """The text of one running render, piece by piece, and the ranges its generation blocks cover.

    White space at the end of a block is not part of its range. It follows the end token, where generation stops.
    """

    __slots__ = ("pieces", "spans")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.spans: list[tuple[int, int]] = []


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Parses and compiles chat templates.

    strict: False takes undefined names as transformers does, as empty text.
    """

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=_Strict if strict else jinja2.Undefined,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _no_clock
        del self.globals["lipsum"], self.filters["random"]
        self.filters["tojson"] = _tojson
        self.filters |= {name: limited(name, self.filters[name]) for name in LIMITED_FILTERS}
        self.filters |= FILTERS
        self.intercepted_binops = BINARY_OPERATORS
        self._is_safe: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What Jinja's sandbox answers. It asks at every access; the answer depends only on the type of `obj`."""
        key = (type(obj), attr)
        known = self._is_safe.get(key)
        if known is not None:
            return known
        answer = super().is_safe_attribute(obj, attr, value)
        if len(self._is_safe) < _MAX_ANSWERS:  # a name may come from data
            self._is_safe[key] = answer
        return answer

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        check_binary(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        check_method(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """What a template gets of `text.format`; called for each attribute that it reads."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            check_format(value.__self__)
        return wrapped

    def _generate(self, source: jinja2.nodes.Template, *arguments: Any, **keywords: Any) -> str:
        return super()._generate(bounded(source), *arguments, **keywords)


def generation_lines(tree: jinja2.nodes.Template) -> tuple[list[int], list[int]]:
    """The lines of all generation blocks, and of those inside a block that buffers its output."""
    lines: list[int] = []
    buffered: list[int] = []
    for node, inside in _walk(tree, False):
        if _is_generation(node):
            lines.append(node.lineno)
            if inside:
                buffered.append(node.lineno)
    return lines, buffered


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: records where the block's text is in the output."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # Jinja annotates a mutable set

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body)
        block.set_lineno(line)
        return block

    @jinja2.pass_context
    def _note(self, context: jinja2.runtime.Context, caller: jinja2.runtime.Macro) -> str:
        text = str(caller())
        output = context[OUTPUT]
        start = sum(map(len, output.pieces))
        if core := text.rstrip():
            output.spans.append((start, start + len(core)))
        return text


class _Strict(jinja2.Undefined):
    """An undefined name is an error at once; an absent attribute may be tested for, but never printed or walked."""

    def _test(self) -> bool:
        if self._undefined_obj is jinja2.utils.missing:
            self._fail_with_undefined_error()
        return False

    __bool__ = _test
    __str__ = __iter__ = __len__ = jinja2.Undefined._fail_with_undefined_error

    def __eq__(self, other: object) -> bool:
        return self._test() or isinstance(other, _Strict)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = jinja2.Undefined.__hash__


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _no_clock(_: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(
        "strftime_now would make the text depend on the day; set the date under `variables` (Llama's templates call it "
        "date_string), or write one in its place"
    )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _walk(node: jinja2.nodes.Node, inside: bool) -> Iterator[tuple[jinja2.nodes.Node, bool]]:
    yield node, inside
    # A recursive loop's inner rounds are strings that the outer ones print.
    inside = inside or isinstance(node, _BUFFERS) or (isinstance(node, jinja2.nodes.For) and node.recursive)
    for child in node.iter_child_nodes():
        yield from _walk(child, inside)


def _is_generation(node: jinja2.nodes.Node) -> bool:
    call = node.call.node if isinstance(node, jinja2.nodes.CallBlock) else None
    return isinstance(call, jinja2.nodes.ExtensionAttribute) and call.identifier == _Generation.identifier
