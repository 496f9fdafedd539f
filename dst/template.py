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

IMAGE_TOKEN = "<image>"
BUILTIN = ("chatml", "llama2", "llama3", "plain", "vicuna", "visualchat")
ROLES = ("system", "user", "assistant")

# What Hugging Face hands to every chat template.
_GIVEN = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"})

# What a template's own arithmetic, look-ups and loops can raise.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)

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
    """A compiled template.

    source: the whole Jinja text, chosen variables included, as training, chat and an exported tokenizer use it.
    variables: the names it leaves open. markers: the literal words it structures its text with.
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
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree) - _GIVEN - environment.globals.keys())
        self.markers = _markers(tree)

    def render(
        self, messages: Sequence[Message], *, bos_token: str, eos_token: str, add_generation_prompt: bool = False
    ) -> Rendered:
        """Raises TemplateError if the template refuses the conversation or uses an undefined name."""
        images = count_images(messages)
        output = Output()
        variables = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "tools": None,
            "documents": None,
            OUTPUT: output,
        }
        try:
            for piece in self._compiled.generate(variables):
                output.pieces.append(piece)
        except _FAILURES as error:
            raise TemplateError(f"template {self.name}, line {self._line(error)}: {error}") from None
        return Rendered("".join(output.pieces), tuple(output.spans), images)

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
    return Template(name, _bake(source, variables))


def count_images(messages: Sequence[Message]) -> int:
    """Raises TemplateError for messages that are not of the form `Message` describes."""
    images = 0
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise TemplateError(f"message {number}: role is {role!r}; expected one of {', '.join(ROLES)}")
        if isinstance(content, str):
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


def _bake(source: str, variables: Mapping[str, Any]) -> str:
    """Set the variables before the source's first character, in its first line, so that lines keep their numbers.

    What Jinja strips at the start of a template must not change: `+%}` keeps a line break that the source begins with,
    and blanks before a tag, which are stripped only where a line begins, are taken out here.
    """
    sets = "".join(f"{{% set {key} = {_literal(value)} +%}}" for key, value in sorted(variables.items()))
    return sets + re.sub(r"\A[^\S\r\n]+(?=\{[%#](?!\+))", "", source)


def _literal(value: str | float) -> str:
    """A Jinja literal. Beyond ASCII text stays as it is: Jinja does not join JSON's surrogate pairs."""
    return json.dumps(value, ensure_ascii=False)


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
