"""A DST template: a Hugging Face chat template whose `{% generation %}` blocks mark what the model must learn.

Rules: rendering is sandboxed and strict (an undefined name is an error with the template's line), gives the same text
as `tokenizer.apply_chat_template(..., tokenize=False)`, and returns the exact character spans that are trained on.

Source of the format: https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes

from dst.common.suggest import nearest
from dst.errors import TemplateError
from dst.jinja_environment import OUTPUT, Environment, Output, generation_lines
from dst.messages import Message, Tools, check_messages, extras, is_trained, left_out
from dst.template_budget import WORK, Work, check_characters

IMAGE_TOKEN = "<image>"
BUILTIN = ("chatml", "llama2", "llama3", "plain", "vicuna", "visualchat")

GIVEN = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"})
"""What Hugging Face hands to every chat template"""

# What only some templates can express, by the name under which they mention it.
_EXTRAS = {
    "tools": "tools",
    "tool": "messages of role tool",
    "tool_calls": "tool_calls",
    "reasoning_content": "reasoning_content",
}

FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template's own arithmetic, look-ups and loops can raise"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    spans: character ranges [start, end) to be trained on, in order, without overlap.
    answers: the ranges of all generation blocks, those that are not trained included.
    images: how many `<image>` placeholders the conversation's image parts ask for.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    answers: tuple[tuple[int, int], ...]
    images: int


class Template:
    """A compiled template.

    source: the whole Jinja text, chosen variables included, as training, chat and an exported tokenizer use it.
    variables: the names it leaves open. markers: the literal words it structures its text with. mentions: every name,
    attribute and literal text in it; what it never mentions it cannot write.
    """

    def __init__(self, name: str, source: str) -> None:
        """Raises TemplateError for broken Jinja and for generation blocks that are absent or misplaced."""
        self.name = name
        self.source = source
        environment = Environment()
        try:
            tree = environment.parse(source)
            self._compiled = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"template {name}, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise TemplateError(f"template {name}: nested too deep") from None
        lines, buffered = generation_lines(tree)
        if not lines:
            raise TemplateError(
                f"template {name}: no text is marked as trained; put "
                "{% generation %}...{% endgeneration %} around each answer and its end token"
            )
        if buffered:
            raise TemplateError(
                f"template {name}, line {buffered[0]}: a {{% generation %}} block is inside a macro, "
                "a set, filter or call block, a recursive loop or another generation block, so its place in the text "
                "is unknown; move it to the top level"
            )
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree) - GIVEN - environment.globals.keys())
        self.markers = _markers(tree)
        self.mentions = _mentions(tree)

    def render(
        self,
        messages: Sequence[Message],
        *,
        bos_token: str,
        eos_token: str,
        add_generation_prompt: bool = False,
        tools: Tools | None = None,
    ) -> Rendered:
        """Raises TemplateError if the template refuses the conversation, leaves out tools or reasoning, or fails."""
        images = check_messages(messages)
        carried = extras(messages, tools)
        self._check_mentions(carried)
        trained = [is_trained(message) for message in messages if message["role"] == "assistant"]
        if any("trained" in message for message in messages):
            messages = [{key: message[key] for key in message if key != "trained"} for message in messages]
        output = Output()
        variables = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "tools": tools or None,
            "documents": None,
            OUTPUT: output,
            WORK: Work(),
        }
        characters = 0
        try:
            for piece in self._compiled.generate(variables):
                output.pieces.append(piece)
                characters += len(piece)
                check_characters(characters)
        except FAILURES as error:
            raise TemplateError(f"template {self.name}, line {self._line(error)}: {error}{self._hint(error)}") from None
        text = "".join(output.pieces)
        if carried and (missing := left_out(messages, tools, text)):
            raise TemplateError(f"template {self.name} leaves out {missing}; choose another template, such as chatml")
        answers = tuple(output.spans)
        return Rendered(text, answers if all(trained) else self._trained(answers, trained), answers, images)

    def _check_mentions(self, carried: Sequence[str]) -> None:
        unknown = [_EXTRAS[name] for name in carried if name not in self.mentions]
        if unknown:
            raise TemplateError(
                f"template {self.name} cannot express {' and '.join(unknown)}; choose one that does, such as chatml, "
                "or remove them from the data"
            )

    def _trained(self, answers: Sequence[tuple[int, int]], trained: Sequence[bool]) -> tuple[tuple[int, int], ...]:
        """The ranges of the trained answers: the n-th generation block is the n-th assistant message."""
        if len(answers) != len(trained):
            raise TemplateError(
                f"template {self.name} marks {len(answers)} trained spans for {len(trained)} assistant messages, so it "
                "is unknown which of them belong to untrained answers; put one generation block around each answer"
            )
        return tuple(span for span, is_answer_trained in zip(answers, trained, strict=True) if is_answer_trained)

    def _hint(self, error: BaseException) -> str:
        """How to set a variable that the template uses without a default."""
        undefined = re.fullmatch(r"'(\w+)' is undefined", str(error))
        if undefined and undefined[1] in self.variables:
            return f"; set {undefined[1]} under `variables`"
        return ""

    def _line(self, error: BaseException) -> int | str:
        """The template's line: Jinja rewrites tracebacks so that frames of `<template>` carry it."""
        line: int | str = "?"
        frame = error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == "<template>":
                line = frame.tb_lineno
            frame = frame.tb_next
        return line


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
            f"template {name}: unknown; expected one of {', '.join(BUILTIN)}, or the path of a .jinja file"
            f"{nearest(name, BUILTIN)}"
        )
    template = Template(name, source)
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
                f"template {name}: variable {variable} is {type(value).__name__}; expected text or a number"
            )
    return Template(name, with_variables(source, variables))


def with_variables(source: str, variables: Mapping[str, str | float]) -> str:
    """The source with values for names that it leaves open."""
    return prepend(
        "".join(f"{{% set {key} = {_literal(value)} %}}" for key, value in sorted(variables.items())), source
    )


def prepend(tags: str, source: str) -> str:
    """The source after tags that write nothing themselves, in its first line, so that lines keep their numbers.

    What Jinja strips at the start of a template must not change: `+%}` keeps a line break that the source begins with,
    and blanks before a tag, which are stripped only where a line begins, are taken out here.
    """
    if tags.endswith("%}"):
        tags = tags.removesuffix("%}") + "+%}"
    return tags + re.sub(r"\A[^\S\r\n]+(?=\{[%#](?!\+))", "", source)


def _literal(value: str | float) -> str:
    """A Jinja literal. Beyond ASCII text stays as it is: Jinja does not join JSON's surrogate pairs."""
    return json.dumps(value, ensure_ascii=False)


def _mentions(tree: jinja2.nodes.Template) -> frozenset[str]:
    names = {node.name for node in tree.find_all(jinja2.nodes.Name)}
    attributes = {node.attr for node in tree.find_all(jinja2.nodes.Getattr)}
    texts = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
    return frozenset(names | attributes | texts)


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
