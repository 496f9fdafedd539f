"""Try a template and a tokenizer on small conversations before any data meets them.

Rules that are checked: one `<image>` per image; the prompt of every round is, token for token, the beginning of the
finished conversation; every trained span ends in a control token; every control token that the template writes is in
the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dst.encoded import Encoded
from dst.errors import TemplateError, TokenizerError
from dst.messages import Message, Tools
from dst.template import IMAGE_TOKEN, Rendered, Template
from dst.tokenizer import TextTokenizer

PLACEHOLDERS = ("<|image_pad|>", "<|image|>", "<start_of_image>", "<image_soft_token>", "<|image_1|>", "[IMG]")
"""What published templates write for an image (Qwen-VL, Llama 3.2, Gemma 3, Phi, Pixtral)."""


class Chat(Protocol):
    """A template with a tokenizer."""

    template: Template
    tokenizer: TextTokenizer

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> Rendered: ...

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> Encoded: ...


def check(chat: Chat) -> None:
    """Two rounds with images. Raises TemplateError or TokenizerError."""
    image = {"type": "image"}
    answer: Message = {"role": "assistant", "content": "The first."}
    literals = set(re.findall(r"<\|\w+\|>", chat.template.source)) - set(chat.tokenizer.control)
    if IMAGE_TOKEN not in chat.template.source:
        literals -= set(PLACEHOLDERS)  # to be replaced, see `image_mismatch`
    if literals:
        raise TokenizerError(
            f"template {chat.template.name} writes {' '.join(sorted(literals))}, which the tokenizer does not have as "
            f"tokens; choose another template, or list them under add_tokens"
        )
    _check_rounds(
        chat,
        [
            {"role": "user", "content": [image, image, {"type": "text", "text": "Which is older?"}]},
            answer,
            {"role": "user", "content": [image, {"type": "text", "text": "And this?"}]},
            answer,
        ],
    )


def check_tool_use(chat: Chat) -> None:
    """A tool call, its result and the answer. Raises TemplateError or ControlTextError.

    Only templates that mention tools are asked, and only once data needs it.
    """
    function = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "bus"}}}
    answer: Message = {"role": "assistant", "content": "It is red."}
    _check_rounds(
        chat,
        [
            {"role": "user", "content": "Which colour?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "red"},
            answer,
            {"role": "user", "content": "Sure?"},
            answer,
        ],
        tools=[{"type": "function", "function": function}] if "tools" in chat.template.mentions else None,
    )


def image_mismatch(template: Template, written: int, images: int) -> TemplateError:
    """The error for a template that writes another number of placeholders than there are images."""
    line = _first_line(template.source, IMAGE_TOKEN)
    where, hint = (f", line {line}", "") if line else ("", f"; it has no {IMAGE_TOKEN} in it")
    other = next((literal for literal in PLACEHOLDERS if literal in template.source), None)
    if not line and other:
        where = f", line {_first_line(template.source, other)}"
        hint = f"; write {IMAGE_TOKEN} where it has {other}"
    return TemplateError(
        f"template {template.name}{where}: wrote {written} image placeholders for {images} images{hint}"
    )


def _check_rounds(chat: Chat, messages: Sequence[Message], *, tools: Tools | None = None) -> None:
    name = chat.template.name
    whole = chat.encode(messages, tools=tools)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(whole.trained) != len(answers):
        raise TemplateError(
            f"template {name} marks {len(whole.trained)} trained spans in a conversation with {len(answers)} answers; "
            f"expected {len(answers)}"
        )
    end_ids = chat.tokenizer.control_ids - {chat.tokenizer.image_id}
    for number, (index, (start, end)) in enumerate(zip(answers, whole.trained, strict=True), start=1):
        prompt = chat.encode(messages[:index], add_generation_prompt=True, tools=tools)
        if not (whole.text.startswith(prompt.text) and np.array_equal(whole.ids[:start], prompt.ids)):
            raise TemplateError(
                f"template {name}: the prompt for answer {number} is not the beginning of the finished conversation; "
                f"chat would send ...{prompt.text[-40:]!r}, training has "
                f"...{chat.tokenizer.decode(whole.ids[:start])[-40:]!r}"
            )
        if int(whole.ids[end - 1]) not in end_ids:
            raise TemplateError(
                f"template {name}: a trained span ends in {chat.tokenizer.decode(whole.ids[start:end])[-12:]!r}, not "
                f"in an end token; {_how_to_end(chat, chat.render(messages, tools=tools), number - 1)}"
            )


def _how_to_end(chat: Chat, rendered: Rendered, index: int) -> str:
    """What to change so that a trained span ends in its end token, which may be right behind it."""
    following = rendered.text[rendered.spans[index][1] :].lstrip()
    start, end = next(iter(chat.tokenizer.control_strings.find(following)), (1, 1))
    token = following[:end]
    if start or token == IMAGE_TOKEN:
        return "put {{ eos_token }} inside the generation block"
    return f"{token} is behind the generation block: move {{% endgeneration %}} to a place after it"


def _first_line(source: str, literal: str) -> int | None:
    """The number of the first line that holds the literal; None if there is none."""
    start = source.find(literal)
    return source.count("\n", 0, start) + 1 if start >= 0 else None
