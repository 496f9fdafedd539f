"""Which built-in template renders the texts of a published one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dst import BUILTIN, Message, Template, TemplateError, load_template
from dst.messages import Tools
from preprocess.templates.reference import Reference

_PROMPT = "system_prompt"
"""The variable of templates that write a text where a conversation has no system turn"""

_UNKNOWN = "\ufdd0"


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in template by name, with values for its variables."""

    name: str
    variables: Mapping[str, str]


def find_builtin(reference: Reference) -> Builtin | None:
    """The built-in template that renders all conversations of the reference, and their prompts, as it does."""
    for name in BUILTIN:
        plain = load_template(name)
        for variables in _variables(name, plain, reference):
            if renders_alike(load_template(name, variables) if variables else plain, reference):
                return Builtin(name, variables)
    return None


def renders_alike(template: Template, reference: Reference) -> bool:
    """Whether a template renders all conversations of a reference, and their prompts, as that does."""
    bos, eos = reference.original.bos_token, reference.original.eos_token

    def text_of(messages: Sequence[Message], prompt: bool, tools: Tools | None) -> str:
        rendered = template.render(messages, bos_token=bos, eos_token=eos, add_generation_prompt=prompt, tools=tools)
        return rendered.text

    try:
        for example in reference.abilities.examples:
            if text_of(example.messages, False, example.tools) != reference.text(example.messages, tools=example.tools):
                return False
            for index in example.answers:
                messages = example.messages[:index]
                prompt = reference.text(messages, add_generation_prompt=True, tools=example.tools)
                if text_of(messages, True, example.tools) != prompt:
                    return False
    except TemplateError:
        return False
    return True


def _variables(name: str, plain: Template, reference: Reference) -> Iterator[dict[str, str]]:
    yield {}
    if _PROMPT not in plain.variables:
        return
    messages = reference.abilities.examples[0].messages
    text = reference.text(messages)
    with_prompt = load_template(name, {_PROMPT: _UNKNOWN})
    rendered = with_prompt.render(
        messages, bos_token=reference.original.bos_token, eos_token=reference.original.eos_token
    ).text
    before, _, after = rendered.partition(_UNKNOWN)
    if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
        yield {_PROMPT: text[len(before) : len(text) - len(after)]}
