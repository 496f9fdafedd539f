"""A conversation as ids and labels: one template and one tokenizer, tied together.

Rules, for every conversation:
- text is encoded segment by segment, so a token never crosses the border of a trained span, and the ids of a prompt
  alone are the first ids of the finished conversation;
- a token is trained exactly if it lies in a trained span;
- as many `<image>` tokens as images, all written by the template; no control token comes from data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from dst.control import ControlStrings, choose_fences, remove_fences
from dst.errors import ControlTextError, TemplateError, TokenizerError
from dst.template import IMAGE_TOKEN, Message, Rendered, Template
from dst.tokenizer import TextTokenizer

IGNORE = -100
"""The label of a position that is not trained on (torch.nn.CrossEntropyLoss's default ignore_index)."""

Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized conversation.

    ids, labels: int32 [T]; labels are IGNORE where not trained. trained: token ranges [start, end) that are trained.
    control_texts: how many control strings or template words the data contains.
    """

    text: str
    ids: Array
    labels: Array
    trained: tuple[tuple[int, int], ...]
    images: int
    control_texts: int

    @property
    def trained_tokens(self) -> int:
        return int(np.count_nonzero(self.labels != IGNORE))


class ChatTokenizer:
    """Turns messages into text, ids and labels."""

    def __init__(self, template: Template, tokenizer: TextTokenizer) -> None:
        """Raises TemplateError or TokenizerError if the two do not fit each other (see `check`)."""
        self.template = template
        self.tokenizer = tokenizer
        self._control = ControlStrings(tokenizer.control)
        self._marked = ControlStrings({*tokenizer.control, *template.markers})
        self._control_ids = np.array(sorted(tokenizer.control.values()), dtype=np.int32)
        check(self)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Rendered:
        return self.template.render(
            messages,
            bos_token=self.tokenizer.bos_token,
            eos_token=self.tokenizer.eos_token,
            add_generation_prompt=add_generation_prompt,
        )

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Encoded:
        """Raises TemplateError if the template refuses the messages, ControlTextError if data cannot be kept apart."""
        rendered = self.render(messages, add_generation_prompt=add_generation_prompt)
        texts = [text for message in messages for text in _texts(message)]
        control_texts = sum(len(self._marked.find(text)) for text in texts)
        cuts: tuple[int, ...] = ()
        if any(self._control.touches(text) for text in texts):
            cuts = self._cuts(messages, rendered, texts, add_generation_prompt)
        return self._encode(rendered, cuts, control_texts)

    def _cuts(
        self, messages: Sequence[Message], rendered: Rendered, texts: list[str], add_generation_prompt: bool
    ) -> tuple[int, ...]:
        try:
            fences = choose_fences(texts)
        except ValueError as error:
            raise ControlTextError(str(error)) from None
        fenced_messages = [_map_texts(message, fences.around) for message in messages]
        fenced = remove_fences(self.render(fenced_messages, add_generation_prompt=add_generation_prompt).text, fences)
        if fenced is None or fenced.text != rendered.text:
            raise ControlTextError(
                f"template {self.template.name} rewrites text that contains control strings, so it cannot be told which "
                "of them come from data"
            )
        return self._control.cuts(fenced)

    def _encode(self, rendered: Rendered, cuts: tuple[int, ...], control_texts: int) -> Encoded:
        text = rendered.text
        ranges = _ranges(rendered, cuts)
        encodings = self.tokenizer.encode([text[start:end] for start, end in ranges])
        ids = np.array([index for encoding in encodings for index in encoding.ids], dtype=np.int32)
        labels = np.full(len(ids), IGNORE, dtype=np.int32)
        trained: list[tuple[int, int]] = []
        spans, start = iter(rendered.spans), 0
        low, high = next(spans, (len(text) + 1, 0))
        for (first, last), encoding in zip(ranges, encodings, strict=True):
            end = start + len(encoding)
            if low <= first < high:
                labels[start:end] = ids[start:end]
                trained = [*trained[:-1], (trained[-1][0], end)] if first > low else [*trained, (start, end)]
            if last >= high:
                low, high = next(spans, (len(text) + 1, 0))
            start = end
        self._check_control(text, cuts, ids, rendered.images)
        return Encoded(text, ids, labels, tuple(trained), rendered.images, control_texts)

    def _check_control(self, text: str, cuts: tuple[int, ...], ids: Array, images: int) -> None:
        """Count control tokens in the ids against the control strings that the template wrote."""
        borders = (0, *cuts, len(text))
        written = [
            text[start:end][low:high]
            for start, end in pairwise(borders)
            for low, high in self._control.find(text[start:end])
        ]
        if written.count(IMAGE_TOKEN) != images:
            raise TemplateError(
                f"template {self.template.name} wrote {written.count(IMAGE_TOKEN)} image placeholders for {images} images"
            )
        if int(np.isin(ids, self._control_ids).sum()) != len(written) or int(
            np.count_nonzero(ids == self.tokenizer.image_id)
        ) != images:
            raise ControlTextError("text from data would become a control token once the tokenizer normalises it")


def check(chat: ChatTokenizer) -> None:
    """Try a template and a tokenizer on small conversations before any data meets them.

    The prompt of every round must be the beginning of the finished conversation, and every trained span must end in one
    control token. Raises TemplateError or TokenizerError.
    """
    name = chat.template.name
    image = {"type": "image"}
    opening: Message = {"role": "user", "content": [image, image, {"type": "text", "text": "Which is older?"}]}
    middle: Message = {"role": "user", "content": [image, {"type": "text", "text": "And this?"}]}
    answer: Message = {"role": "assistant", "content": "The first."}
    messages = [opening, answer, middle, answer]
    literals = sorted(set(re.findall(r"<\|\w+\|>", chat.template.source)) - set(chat.tokenizer.control))
    if literals:
        raise TokenizerError(
            f"template {name} writes {' '.join(literals)}, which the tokenizer does not have as tokens; choose another "
            f"template, or list them under add_tokens"
        )
    whole = chat.encode(messages)
    spans = chat.render(messages).spans
    if len(spans) != 2:
        raise TemplateError(f"template {name} marks {len(spans)} parts to be learnt in a conversation of two rounds")
    for number, end in enumerate((1, 3)):
        prompt = chat.encode(messages[:end], add_generation_prompt=True)
        if whole.text[: spans[number][0]] != prompt.text:
            raise TemplateError(
                f"template {name}: the prompt for answer {number + 1} is not the beginning of the finished conversation; "
                f"chat would send {prompt.text[-40:]!r}, training has {whole.text[: spans[number][0]][-40:]!r}"
            )
        last = whole.ids[whole.offsets[:, 1] <= spans[number][1]][-1]
        if int(last) not in chat.tokenizer.control.values():
            raise TemplateError(
                f"template {name}: a trained span ends in {whole.text[: spans[number][1]][-12:]!r}, not in an end token; "
                "put {{ eos_token }} inside the generation block"
            )


def _texts(message: Message) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _map_texts(message: Message, change: Any) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": change(content)}
    return {
        **message,
        "content": [{**part, "text": change(part["text"])} if part["type"] == "text" else part for part in content],
    }
