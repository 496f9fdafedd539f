"""A DST template: a Hugging Face chat template whose `{% generation %}` blocks mark what the model must learn.

Rules: rendering is sandboxed and strict (an undefined name is an error with the template's line), gives the same text as
`tokenizer.apply_chat_template(..., tokenize=False)`, and returns the exact character spans that are trained on.

Source of the format: https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from dst.errors import TemplateError

IMAGE_TOKEN = "<image>"
BUILTIN = ("chatml", "llama2", "llama3", "plain", "vicuna", "visualchat")

# What Hugging Face hands to every chat template.
_GIVEN = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"})

Message = Mapping[str, Any]
"""{"role": "system"|"user"|"assistant", "content": str | [{"type": "image"} | {"type": "text", "text": str}, ...]}"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    spans: character ranges [start, end) to be trained on, in order, without overlap.
    images: how many `<image>` placeholders the conversation's image parts ask for.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    images: int


class Template:
    """A compiled template. `source` is the whole Jinja text, with the chosen variables written into it."""

    def __init__(self, name: str, source: str) -> None:
        """Raises TemplateError for broken Jinja or a template without a `{% generation %}` block."""
        self.name = name
        self.source = source
        self._environment = _Environment()
        try:
            tree = self._environment.parse(source)
            self._compiled = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"template {name}, line {error.lineno}: {error.message}") from None
        if not any(isinstance(node, jinja2.nodes.CallBlock) and _is_generation(node) for node in _walk(tree)):
            raise TemplateError(
                f"template {name}: nothing is marked to be learnt; put "
                "{% generation %}...{% endgeneration %} around each answer and its end token"
            )
        self.variables = frozenset(
            jinja2.meta.find_undeclared_variables(tree) - _GIVEN - self._environment.globals.keys()
        )
        self.markers = _markers(tree)

    def render(
        self, messages: Sequence[Message], *, bos_token: str, eos_token: str, add_generation_prompt: bool = False
    ) -> Rendered:
        """Raises TemplateError if the template refuses the conversation or uses an undefined name."""
        pieces: list[str] = []
        learnt: list[tuple[int, str]] = []
        with self._environment.tracking(pieces, learnt):
            try:
                for piece in self._compiled.generate(
                    messages=messages,
                    add_generation_prompt=add_generation_prompt,
                    bos_token=bos_token,
                    eos_token=eos_token,
                    tools=None,
                    documents=None,
                ):
                    pieces.append(piece)
            except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
                raise TemplateError(f"template {self.name}, line {_line(error)}: {error}") from None
        text = "".join(pieces)
        spans: list[tuple[int, int]] = []
        for index, learnt_text in learnt:
            start = sum(map(len, pieces[:index]))
            if text[start : start + len(learnt_text)] != learnt_text or (spans and start < spans[-1][1]):
                raise TemplateError(
                    f"template {self.name}: a {{% generation %}} block stands inside a macro, a set block or another "
                    "generation block, so its place in the text is unknown; move it to the top level"
                )
            if learnt_text:
                spans.append((start, start + len(learnt_text)))
        return Rendered(text, tuple(spans), count_images(messages))


def load_template(name_or_path: str | Path, variables: Mapping[str, Any] | None = None) -> Template:
    """A built-in template by name, or any .jinja file by path.

    variables: values for names that the template leaves open. They are written into the template's text, so that every
    program that uses the text (training, chat, an exported tokenizer) renders the same.
    Raises TemplateError for an unknown name, an unreadable file or a variable that the template does not have.
    """
    name = str(name_or_path)
    if name in BUILTIN:
        source = resources.files("dst").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")
    elif Path(name).suffix in (".jinja", ".j2"):
        try:
            source = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"template {name}: cannot be read ({error})") from None
    else:
        raise TemplateError(
            f"template {name}: unknown; wanted one of {', '.join(BUILTIN)}, or the path of a .jinja file"
            f"{nearest(name, BUILTIN)}"
        )
    template = Template(name, source.rstrip("\n"))
    if not variables:
        return template
    for variable, value in variables.items():
        if variable not in template.variables:
            known = ", ".join(sorted(template.variables)) or "none"
            raise TemplateError(
                f"template {name}: has no variable {variable!r}; it has: {known}{nearest(variable, template.variables)}"
            )
        if not isinstance(value, str | int | float | bool):
            raise TemplateError(
                f"template {name}: variable {variable} is {type(value).__name__}; wanted text or a number"
            )
    baked = "".join(f"{{%- set {key} = {_literal(value)} -%}}\n" for key, value in sorted(variables.items()))
    return Template(name, baked + template.source)


def nearest(word: str, known: Any) -> str:
    """A hint such as "; did you mean vicuna?", or nothing when no known word is close."""
    import difflib

    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def count_images(messages: Sequence[Message]) -> int:
    return sum(
        1
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    )


class _Tracker:
    """Where the running render keeps its output and what it has marked; one render at a time."""

    def __init__(self, environment: _Environment, pieces: list[str], learnt: list[tuple[int, str]]) -> None:
        self._environment, self._state = environment, (pieces, learnt)

    def __enter__(self) -> None:
        self._environment.state = self._state

    def __exit__(self, *_: object) -> None:
        self._environment.state = None


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: notes the block's text and how many pieces of output stand before it."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body)
        return block.set_lineno(line)

    def _note(self, caller: Any) -> str:
        text = str(caller())
        environment = self.environment
        assert isinstance(environment, _Environment)
        if environment.state is not None:
            pieces, learnt = environment.state
            learnt.append((len(pieces), text))
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


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Hugging Face's settings for chat templates, made strict and free of clocks."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=_Strict,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        self.state: tuple[list[str], list[tuple[int, str]]] | None = None
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _no_clock
        self.filters["tojson"] = _tojson

    def tracking(self, pieces: list[str], learnt: list[tuple[int, str]]) -> _Tracker:
        return _Tracker(self, pieces, learnt)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _no_clock(_: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError("strftime_now would make the text depend on the day; write the date as a variable")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _literal(value: str | float | bool) -> str:
    """A Jinja literal. `{` and `%` are escaped so that no text can open a tag."""
    if isinstance(value, str):
        return json.dumps(value).replace("{", "\\u007b").replace("%", "\\u0025").replace("}", "\\u007d")
    return {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)


def _walk(node: jinja2.nodes.Node) -> Any:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def _is_generation(node: jinja2.nodes.CallBlock) -> bool:
    return isinstance(node.call.node, jinja2.nodes.ExtensionAttribute) and node.call.node.name == "_note"


def _markers(tree: jinja2.nodes.Template) -> frozenset[str]:
    """The literal words a template structures its text with, such as `### Question:` or `[INST]`.

    They are plain text to the tokenizer; the compiler counts how often data contains them.
    """
    literals = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
    literals += [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    lines = {line.strip() for literal in literals for line in literal.split("\n")}
    return frozenset(
        line for line in lines if re.fullmatch(r"[^\w\s'\"].{2,}|[A-Z][A-Z ]*:", line) and not line.startswith("%")
    )


def _line(error: BaseException) -> int | str:
    """The template's line: Jinja rewrites tracebacks so that frames of `<template>` carry it."""
    line: int | str = "?"
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
