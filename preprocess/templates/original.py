"""A published template as transformers renders it, and what it takes.

Rule: it runs in the project's sandbox, in which undefined names are empty text, as they are to transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from dst import IMAGE_TOKEN, Message, TemplateError
from dst.jinja_environment import OUTPUT, Environment, Output
from dst.messages import Tools
from dst.template import FAILURES
from dst.template_check import PLACEHOLDERS
from preprocess.templates.examples import EXAMPLES, SHOWN, TOOL_USE, Contents, Example, images_in, texts_in

_ORDER: tuple[Contents, ...] = ("any", "user parts", "parts", "texts")


class Original:
    """A template that renders messages, without marks of its own."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        """Raises TemplateError if it is not Jinja."""
        self.source = source
        self.bos_token, self.eos_token = bos_token, eos_token
        try:
            self._compiled = Environment(strict=False).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise TemplateError("nested too deep") from None

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> str:
        """Raises TemplateError if the template refuses the messages, or fails."""
        output = Output()
        variables = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "tools": tools,
            "documents": None,
            OUTPUT: output,
        }
        try:
            output.pieces.extend(self._compiled.generate(variables))
        except FAILURES as error:
            raise TemplateError(str(error)) from None
        return "".join(output.pieces)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a template takes. image: what it writes for one. examples: the conversations that it can express."""

    contents: Contents
    image: str
    examples: tuple[Example, ...]
    lacks: tuple[str, ...]
    """In words"""


def abilities_of(original: Original) -> Abilities:
    """Raises TemplateError, in words that say what is missing, if the template cannot be used for chats."""
    for contents in _ORDER:
        image = _image_of(original, contents)
        if image:
            break
    else:
        raise TemplateError(_why_not(original))
    examples, lacks = [], []
    for example in (*EXAMPLES, *([TOOL_USE] if "tool_calls" in original.source else [])):
        if is_expressed(original, example.converted(contents), image):
            examples.append(example)
        elif not example.needs:
            raise TemplateError("it leaves out a part of a conversation of several rounds or images")
        elif example.needs not in lacks:
            lacks.append(example.needs)
    if "tool_calls" not in original.source:
        lacks.append("tool calls")
    return Abilities(contents, image, tuple(examples), tuple(lacks))


def is_expressed(original: Original, example: Example, image: str) -> bool:
    """Whether the template writes every text of the conversation in order, and each image.

    One that takes no lists may print them as Python does, with the texts in them.
    """
    try:
        text = original.render(example.messages, tools=example.tools)
    except TemplateError:
        return False
    position = 0
    for message in example.messages:
        if not isinstance(message["content"], str) and any(str(part) in text for part in message["content"]):
            return False
        for part in texts_in(message):
            position = text.find(part, position)
            if position < 0:
                return False
            position += len(part)
    images = sum(map(images_in, example.messages))
    return images == 0 or text.count(image) == images


def _image_of(original: Original, contents: Contents) -> str:
    """What the template writes for an image if messages have these contents; empty if it does not take them."""
    if contents == "texts":
        return IMAGE_TOKEN if is_expressed(original, SHOWN.converted(contents), IMAGE_TOKEN) else ""
    for image in (IMAGE_TOKEN, *PLACEHOLDERS):
        if all(is_expressed(original, example.converted(contents), image) for example in EXAMPLES if not example.needs):
            return image
    return ""


def _why_not(original: Original) -> str:
    question, answer = SHOWN.converted("texts").messages[:2]
    try:
        text = original.render([question, answer])
    except TemplateError as error:
        return f"it refuses a question with its answer ({error})"
    if texts_in(question)[0].split("\n")[-1] not in text:
        return "it does not write the text of user turns"
    if texts_in(answer)[0] not in text:
        return "it does not write the text of assistant turns as it is"
    return "it leaves out a part of a conversation of several rounds or images"
