"""A conversation as ids and labels: one template and one tokenizer, tied together.

Rules, for every conversation:
- text is encoded segment by segment, so a token never crosses the border of a trained span, and the ids of a prompt
  alone are the first ids of the finished conversation;
- a token is trained exactly if it is in a trained span;
- as many `<image>` tokens as images, all written by the template; no control token comes from data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from dst.control_tokens import ControlStrings, Cut, choose_fences, remove_fences
from dst.encoded import IGNORE, Encoded
from dst.errors import ControlTextError, TemplateError
from dst.image_places import loses_image_places
from dst.messages import Message, Tools, extras, map_strings, map_texts, texts_of
from dst.template import Rendered, Template
from dst.template_check import check, check_tool_use, image_mismatch
from dst.tokenizer import TextTokenizer


class ChatTokenizer:
    """Turns messages into text, ids and labels."""

    def __init__(self, template: Template, tokenizer: TextTokenizer) -> None:
        """Raises TemplateError or TokenizerError if the two do not fit each other (see dst.template_check)."""
        self.template = template
        self.tokenizer = tokenizer
        self._marked = ControlStrings({*tokenizer.control, *template.markers})
        check(self)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> Rendered:
        """Raises TemplateError if the template refuses the messages."""
        return self.template.render(
            messages,
            bos_token=self.tokenizer.bos_token,
            eos_token=self.tokenizer.eos_token,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
        )

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> Encoded:
        """Raises TemplateError if the template refuses the messages, ControlTextError if data cannot be kept apart.

        tools: the definitions of the tools that the assistant may call.
        """
        conversation = _Conversation(self, messages, tools, add_generation_prompt)
        rendered = conversation.render(messages)
        if tools or any(len(message) > 2 for message in messages):
            self._check_tool_use(extras(messages, tools))
        try:
            rendered.text.encode()
        except UnicodeEncodeError:
            raise ControlTextError("text holds half of a surrogate pair, which is not a character") from None
        texts = texts_of(messages, tools)
        control_texts = sum(len(self._marked.find(text)) for text in texts)
        borders = {0, len(rendered.text)}.union(*rendered.answers)
        harmless = not any(map(self.tokenizer.control_strings.touches, texts)) and (
            _stand_in_order(texts, rendered.text) or self._has_own_control_only(conversation, rendered)
        )
        if not harmless:
            cuts = self._cuts(conversation, rendered, sorted(borders), texts)
            control_texts += sum(not cut.within_one_text for cut in cuts)
            borders |= {cut.position for cut in cuts}
        images_moved = loses_image_places(messages, rendered.text, lambda other: conversation.render(other).text)
        return self._encode(rendered, sorted(borders), control_texts, images_moved)

    def _check_tool_use(self, carried: Sequence[str]) -> None:
        if {"tools", "tool", "tool_calls"}.intersection(carried) and self._tool_use_error is not None:
            raise TemplateError(self._tool_use_error)

    @cached_property
    def _tool_use_error(self) -> str | None:
        """Why the template cannot be used for conversations with tools; it is tried once, on a conversation of ours."""
        if not {"tool", "tool_calls"} <= self.template.mentions:
            return None
        self.__dict__["_tool_use_error"] = None  # the check encodes a conversation with tools itself
        try:
            check_tool_use(self)
        except (TemplateError, ControlTextError) as error:
            return str(error)
        return None

    def _has_own_control_only(self, conversation: _Conversation, rendered: Rendered) -> bool:
        """Whether the template writes the same control strings when all data is blotted out."""
        blotted = conversation.render_changed(lambda text: "x" * len(text))
        with_data, without = (
            [text[start:end] for start, end in self.tokenizer.control_strings.find(text)]
            for text in (rendered.text, blotted)
        )
        return with_data == without

    def _cuts(
        self, conversation: _Conversation, rendered: Rendered, borders: Sequence[int], texts: Sequence[str]
    ) -> list[Cut]:
        try:
            fences = choose_fences([*texts, rendered.text])
        except ValueError as error:
            raise ControlTextError(str(error)) from None
        fenced = remove_fences(conversation.render_changed(fences.around), fences)
        if fenced is None or fenced.text != rendered.text:
            raise ControlTextError(
                f"template {self.template.name} rewrites text that contains control strings, so it is unknown "
                "which of them come from data"
            )
        return list(self.tokenizer.control_strings.cuts(fenced, list(pairwise(borders))))

    def _encode(self, rendered: Rendered, borders: Sequence[int], control_texts: int, images_moved: bool) -> Encoded:
        pieces = [rendered.text[start:end] for start, end in pairwise(borders)]
        encoded = self.tokenizer.encode(pieces)
        self._check_control(pieces, encoded, rendered.images)
        ids: list[int] = []
        tokens_before = {0: 0}
        for border, piece_ids in zip(borders[1:], encoded, strict=True):
            ids += piece_ids
            tokens_before[border] = len(ids)
        trained = tuple((tokens_before[start], tokens_before[end]) for start, end in rendered.spans)
        all_ids = np.array(ids, dtype=np.int32)
        labels = np.full(len(ids), IGNORE, dtype=np.int32)
        for start, end in trained:
            labels[start:end] = all_ids[start:end]
            if self.tokenizer.image_id in ids[start:end]:
                raise TemplateError(f"template {self.template.name}: an image is inside a trained span")
        return Encoded(rendered.text, all_ids, labels, trained, rendered.images, control_texts, images_moved)

    def _check_control(self, pieces: Sequence[str], encoded: Sequence[Sequence[int]], images: int) -> None:
        """The control tokens in the ids must be the control strings that the template wrote, one by one."""
        control, control_ids = self.tokenizer.control, self.tokenizer.control_ids
        written = [
            control[piece[start:end]] for piece in pieces for start, end in self.tokenizer.control_strings.find(piece)
        ]
        if written.count(self.tokenizer.image_id) != images:
            raise image_mismatch(self.template, written.count(self.tokenizer.image_id), images)
        control_of_ids = [index for piece_ids in encoded for index in piece_ids if index in control_ids]
        if control_of_ids != [index for index in written if index in control_ids]:
            raise ControlTextError("text from data would become a control token once the tokenizer normalises it")


@dataclass(frozen=True, slots=True)
class _Conversation:
    """The input of one call of `encode`, which may have to be rendered again with other messages."""

    chat: ChatTokenizer
    messages: Sequence[Message]
    tools: Tools | None
    add_generation_prompt: bool

    def render(self, messages: Sequence[Message]) -> Rendered:
        return self.chat.render(messages, add_generation_prompt=self.add_generation_prompt, tools=self.tools)

    def render_changed(self, change: Callable[[str], str]) -> str:
        """The text with all data changed, but for harmless words in tool calls and definitions.

        Templates compare such words: whether `type` is `function` decides what they write.
        """

        def change_word(word: str) -> str:
            return change(word) if self.chat.tokenizer.control_strings.touches(word) else word

        return self.chat.render(
            [map_texts(message, change, change_word) for message in self.messages],
            add_generation_prompt=self.add_generation_prompt,
            tools=map_strings(self.tools, change, change_word),
        ).text


def _stand_in_order(texts: Sequence[str], rendered: str) -> bool:
    """Whether the template wrote every text as it is, but for white space around it.

    One that rewrites text (`lower`, `replace`) could make a control string of what was none.
    """
    position = 0
    for text in map(str.strip, texts):
        start = rendered.find(text, position)
        if start < 0:
            return False
        position = start + len(text)
    return True
