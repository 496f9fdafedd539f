"""A copy of a published template that marks its answers, and the proof that it is one.

Rule: a copy is returned only if, for every conversation of the reference, it renders the reference's text, prompts
included, and its spans are exactly the answers with their end tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dst import IMAGE_TOKEN, Message, Rendered, Template, TemplateError
from dst.messages import Tools
from preprocess.templates.examples import IN_PARTS, PADDED, Example
from preprocess.templates.original import is_expressed
from preprocess.templates.preamble import with_preamble
from preprocess.templates.reference import Reference, is_marked, unmarked
from preprocess.templates.rewriting import TracedAnswer, candidates
from preprocess.templates.source_tree import normalized
from preprocess.templates.tracing import Tracer

_UNDEFINED = re.compile(r"'(\w+)' is undefined")
_EVERYWHERE = "{% generation %}x{% endgeneration %}"
"""A mark for sources without one, which a Template must have"""

Expected = Sequence[tuple[Example, tuple[tuple[int, int], ...]]]
"""Conversations and their spans"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A template whose answers are marked.

    marks: of the original: it has none; they are right and kept; they were replaced. lacks: what it cannot express.
    variables: names that are empty text, as transformers takes them, unless the template is given values.
    """

    template: Template
    marks: Literal["none", "kept", "replaced"]
    lacks: tuple[str, ...]
    variables: tuple[str, ...]


def mark(name: str, source: str, reference: Reference) -> Marked:
    """Raises TemplateError, with the reason and what to do, if the answers cannot be marked."""
    own = normalized(source).replace(reference.abilities.image, IMAGE_TOKEN)
    variables = _empty_variables(name, unmarked(own), reference)
    examples = reference.abilities.examples
    problem = TemplateError("no place of it writes each answer with its end token; see docs/add-a-template.md")
    without_tools = tuple(example for example in examples if not example.tools)
    for trial in (examples, without_tools) if len(without_tools) < len(examples) else (examples,):
        try:
            expected = [(example, reference.spans(example)) for example in _extended(trial, reference)]
        except TemplateError as error:
            problem = error
            continue
        sources = _candidates(reference, _prepared(unmarked(own), reference, variables), expected)
        if is_marked(own):
            sources = _first(_prepared(own, reference, variables), sources)
        for index, candidate in enumerate(sources):
            template = _verified(name, candidate, reference, expected)
            if template is not None:
                lacks = (*reference.abilities.lacks, *([] if trial == examples else ["tool calls"]))
                marks: Literal["kept", "replaced"] = "replaced" if index else "kept"
                return Marked(
                    template=template,
                    marks=marks if is_marked(own) else "none",
                    lacks=tuple(dict.fromkeys(lacks)),
                    variables=variables,
                )
    raise problem


def open_names(name: str, source: str) -> frozenset[str]:
    """The names that a template uses without a value. Raises TemplateError if it is not Jinja."""
    return Template(name, unmarked(normalized(source)) + _EVERYWHERE).variables


def _extended(examples: Sequence[Example], reference: Reference) -> list[Example]:
    """The examples, and those that not every template writes as they are, if this one does."""
    contents, image = reference.abilities.contents, reference.abilities.image
    trials = (IN_PARTS,) if reference.adds_end else (PADDED, IN_PARTS)  # added behind white space, an end has no place
    more = [trial for trial in trials if is_expressed(reference.original, trial.converted(contents), image)]
    return [*examples, *more]


def _prepared(source: str, reference: Reference, variables: Sequence[str]) -> str:
    return with_preamble(source, reference.abilities.contents, variables=variables, adds_begin=reference.adds_begin)


def _empty_variables(name: str, source: str, reference: Reference) -> tuple[str, ...]:
    """The names that the template uses without a value, and that transformers takes as empty text."""
    variables: list[str] = []
    for _ in range(20):
        template = Template(name, _prepared(source, reference, variables) + _EVERYWHERE)
        try:
            for example in reference.abilities.examples:
                for prompt in (False, True):
                    _render(template, reference, example.messages, prompt, example.tools)
        except TemplateError as error:
            undefined = _UNDEFINED.search(str(error))
            if undefined is None or undefined[1] not in template.variables or undefined[1] in variables:
                raise TemplateError(str(error).split(": ", 1)[-1]) from None
            variables.append(undefined[1])
            continue
        break
    return tuple(variables)


def _candidates(reference: Reference, source: str, expected: Expected) -> Iterator[str]:
    tracer = Tracer(source)
    tokens = {"bos_token": reference.original.bos_token, "eos_token": reference.original.eos_token}
    answers = []
    for example, spans in expected:
        events = tracer.trace(example.messages, {**tokens, "add_generation_prompt": False}, example.tools)
        added = 0
        for start, end in spans:
            length = len(reference.end_token) if reference.adds_end else 0
            answers.append(TracedAnswer(events, start - added, end - added - length))
            added += length
    yield from candidates(tracer, answers, add_end_token=reference.adds_end)


def _first(source: str, others: Iterator[str]) -> Iterator[str]:
    yield source
    yield from others


def _verified(name: str, source: str, reference: Reference, expected: Expected) -> Template | None:
    """The template, if it writes and marks what it must."""
    try:
        template = Template(name, source)
        for example, spans in expected:
            rendered = _render(template, reference, example.messages, False, example.tools)
            if rendered.text != reference.text(example.messages, tools=example.tools) or rendered.spans != spans:
                return None
            for index in example.answers:
                prompt = reference.text(example.messages[:index], add_generation_prompt=True, tools=example.tools)
                if _render(template, reference, example.messages[:index], True, example.tools).text != prompt:
                    return None
    except TemplateError:
        return None
    return template


def _render(
    template: Template, reference: Reference, messages: Sequence[Message], prompt: bool, tools: Tools | None
) -> Rendered:
    return template.render(
        messages,
        bos_token=reference.original.bos_token,
        eos_token=reference.original.eos_token,
        add_generation_prompt=prompt,
        tools=tools,
    )
