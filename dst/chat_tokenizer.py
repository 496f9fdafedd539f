"""A conversation as ids and labels: one template and one tokenizer, tied together.

Rules, for every conversation:
- text is encoded segment by segment, so a token never crosses the border of a trained span, and the ids of a prompt
  alone are the first ids of the finished conversation;
- a token is trained exactly if it is in a trained span;
- as many `<image>` tokens as images, all written by the template; no control token comes from data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dst.control_tokens import ControlStrings, Cut, choose_fences, remove_fences
from dst.errors import ControlTextError, TemplateError, TokenizerError
from dst.template import IMAGE_TOKEN, Message, Rendered, Template
from dst.tokenizer import TextTokenizer

IGNORE = -100
"""The label of a position that is not trained on (torch.nn.CrossEntropyLoss's default ignore_index)."""

Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized conversation.

    ids, labels: int32 [T]; labels are IGNORE where not trained.
    trained: the token range [start, end) of each trained span.
    control_texts: how many control strings or template words the data contains, or completes with its neighbours.
    """

    text: str
    ids: Array
    labels: Array
    trained: tuple[tuple[int, int], ...]
    images: int
    control_texts: int

    @property
    def trained_tokens(self) -> int:
        return sum(end - start for start, end in self.trained)


class ChatTokenizer:
    """Turns messages into text, ids and labels."""

    def __init__(self, template: Template, tokenizer: TextTokenizer) -> None:
        """Raises TemplateError or TokenizerError if the two do not fit each other (see `check`)."""
        self.template = template
        self.tokenizer = tokenizer
        self._marked = ControlStrings({*tokenizer.control, *template.markers})
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
        try:
            rendered.text.encode()
        except UnicodeEncodeError:
            raise ControlTextError("text holds half of a surrogate pair, which is not a character") from None
        texts = [text for message in messages for text in _texts(message)]
        control_texts = sum(len(self._marked.find(text)) for text in texts)
        borders = {0, len(rendered.text)}.union(*rendered.spans)
        harmless = not any(map(self.tokenizer.control_strings.touches, texts)) and (
            _stand_in_order(texts, rendered.text)
            or self._has_own_control_only(messages, rendered, add_generation_prompt)
        )
        if not harmless:
            cuts = self._cuts(messages, rendered, sorted(borders), texts, add_generation_prompt)
            control_texts += sum(not cut.within_one_text for cut in cuts)
            borders |= {cut.position for cut in cuts}
        return self._encode(rendered, sorted(borders), control_texts)

    def _has_own_control_only(
        self, messages: Sequence[Message], rendered: Rendered, add_generation_prompt: bool
    ) -> bool:
        """Whether the template writes the same control strings when all data is blotted out."""
        blotted_messages = [_map_texts(message, lambda text: "x" * len(text)) for message in messages]
        blotted = self.render(blotted_messages, add_generation_prompt=add_generation_prompt)
        with_data, without = (
            [text[start:end] for start, end in self.tokenizer.control_strings.find(text)]
            for text in (rendered.text, blotted.text)
        )
        return with_data == without

    def _cuts(
        self,
        messages: Sequence[Message],
        rendered: Rendered,
        borders: Sequence[int],
        texts: Sequence[str],
        add_generation_prompt: bool,
    ) -> list[Cut]:
        try:
            fences = choose_fences([*texts, rendered.text])
        except ValueError as error:
            raise ControlTextError(str(error)) from None
        fenced_messages = [_map_texts(message, fences.around) for message in messages]
        fenced = remove_fences(self.render(fenced_messages, add_generation_prompt=add_generation_prompt).text, fences)
        if fenced is None or fenced.text != rendered.text:
            raise ControlTextError(
                f"template {self.template.name} rewrites text that contains control strings, so it is unknown "
                "which of them come from data"
            )
        return list(self.tokenizer.control_strings.cuts(fenced, list(pairwise(borders))))

    def _encode(self, rendered: Rendered, borders: Sequence[int], control_texts: int) -> Encoded:
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
        return Encoded(rendered.text, all_ids, labels, trained, rendered.images, control_texts)

    def _check_control(self, pieces: Sequence[str], encoded: Sequence[Sequence[int]], images: int) -> None:
        """The control tokens in the ids must be the control strings that the template wrote, one by one."""
        control, control_ids = self.tokenizer.control, self.tokenizer.control_ids
        written = [
            control[piece[start:end]] for piece in pieces for start, end in self.tokenizer.control_strings.find(piece)
        ]
        if written.count(self.tokenizer.image_id) != images:
            got, line = written.count(self.tokenizer.image_id), _first_line(self.template.source, IMAGE_TOKEN)
            where, hint = (f", line {line}", "") if line else ("", f"; it has no {IMAGE_TOKEN} in it")
            raise TemplateError(
                f"template {self.template.name}{where}: wrote {got} image placeholders for {images} images{hint}"
            )
        control_of_ids = [index for piece_ids in encoded for index in piece_ids if index in control_ids]
        if control_of_ids != [index for index in written if index in control_ids]:
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
    if len(whole.trained) != 2:
        raise TemplateError(
            f"template {name} marks {len(whole.trained)} trained spans in a conversation of two rounds; expected 2"
        )
    end_ids = chat.tokenizer.control_ids - {chat.tokenizer.image_id}
    for number, (start, end) in enumerate(whole.trained, start=1):
        prompt = chat.encode(messages[: 2 * number - 1], add_generation_prompt=True)
        if not (whole.text.startswith(prompt.text) and np.array_equal(whole.ids[:start], prompt.ids)):
            raise TemplateError(
                f"template {name}: the prompt for answer {number} is not the beginning of the finished conversation; "
                f"chat would send ...{prompt.text[-40:]!r}, training has "
                f"...{chat.tokenizer.decode(whole.ids[:start])[-40:]!r}"
            )
        if int(whole.ids[end - 1]) not in end_ids:
            raise TemplateError(
                f"template {name}: a trained span ends in {chat.tokenizer.decode(whole.ids[start:end])[-12:]!r}, not "
                "in an end token; put {{ eos_token }} inside the generation block"
            )


def _first_line(source: str, literal: str) -> int | None:
    """The number of the first line that holds the literal; None if there is none."""
    start = source.find(literal)
    return source.count("\n", 0, start) + 1 if start >= 0 else None


def _texts(message: Message) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


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


def _map_texts(message: Message, change: Callable[[str], str]) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": change(content)}
    return {
        **message,
        "content": [{**part, "text": change(part["text"])} if part["type"] == "text" else part for part in content],
    }
