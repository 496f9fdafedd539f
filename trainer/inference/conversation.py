"""A conversation with the model as ids and images, exactly as in training.

Rules: the ids before an answer are the first ids of the finished conversation (dst). Placeholders are expanded and
images are decoded as the loader does it. Typed text stays text: nothing in it becomes a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dst import ChatTokenizer, Message
from dst.tokenizer import TextTokenizer
from shards.images.geometry import Geometry
from shards.images.tiles import Grid, plan_grids
from shards.sampling.placeholders import expand
from trainer.inference.cached_decoder import Prompt
from trainer.inference.images import LoadedImage, stack
from trainer.model.vision_chat import VisionChatModel

ANSWER_ROOM = 128
"""Positions that images leave for an answer, if they can with fewer tiles"""

_REPLACEMENT = "\ufffd"
"""What a tokenizer decodes an incomplete character to"""


class Speaker(Protocol):
    """A model with its tokenizer and preprocessing: what trainer.load and trainer.inference.open_model return."""

    @property
    def model(self) -> VisionChatModel: ...
    @property
    def chat_tokenizer(self) -> ChatTokenizer: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def max_tiles(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question with its images, and its answer; None before it is answered."""

    question: str
    images: tuple[LoadedImage, ...] = ()
    answer: str | None = None


def messages_of(exchanges: Sequence[Exchange]) -> list[Message]:
    """Messages as the compiler writes them: images come before their question."""
    messages: list[Message] = []
    for exchange in exchanges:
        content: object = exchange.question
        if exchange.images:
            content = [{"type": "image"} for _ in exchange.images]
            content += [{"type": "text", "text": exchange.question}] if exchange.question else []
        messages.append({"role": "user", "content": content})
        if exchange.answer is not None:
            messages.append({"role": "assistant", "content": exchange.answer})
    return messages


def prompt_of(exchanges: Sequence[Exchange], speaker: Speaker, *, end_id: int, limit: int | None = None) -> Prompt:
    """The prompt for the answer to the last exchange.

    limit: positions that the model can read; as in training, images get fewer tiles before the prompt is longer. Raises
    TemplateError if the template refuses the conversation, ControlTextError for text that cannot be tokenized.
    """
    chat, geometry, image_tokens = speaker.chat_tokenizer, speaker.geometry, speaker.model.image_tokens
    encoded = chat.encode(messages_of(exchanges), add_generation_prompt=True)
    images = [image for exchange in exchanges for image in exchange.images]
    most = geometry.most_tiles(len(images))
    text_tokens = len(encoded.ids) - len(images)
    budget = speaker.max_tiles
    if limit is not None:
        room = (limit - ANSWER_ROOM - text_tokens) // image_tokens
        budget = room if budget is None else min(budget, room)
    grids, allowed = plan_grids([image.size for image in images], geometry, most=most, budget=budget)
    ids, slots = expand_images(encoded.ids, chat.tokenizer.image_id, image_tokens, grids)
    pixels = [image.pixels(grid) for image, grid in zip(images, grids, strict=True)]
    fewer = bool(images) and allowed < most
    return Prompt(ids=ids, images=stack(pixels, geometry.size), slots=slots, end_id=end_id, fewer_tiles=fewer)


def expand_images(
    ids: npt.ArrayLike, image_id: int, image_tokens: int, grids: Sequence[Grid] | None = None
) -> tuple[npt.NDArray[np.int64], tuple[int, ...]]:
    """Ids with `image_tokens` positions for each tile of a placeholder's image, and the first position of each tile.

    grids: of each image; None: one tile each.
    """
    ids = np.asarray(ids, dtype=np.int64)
    expansion = expand(ids, image_id=image_id, image_tokens=image_tokens, grids=grids)
    expanded = np.empty(expansion.length, dtype=np.int64)
    expansion.write(ids, expanded, image_value=image_id)
    return expanded, expansion.tile_starts


def answer_text(tokenizer: TextTokenizer, tokens: Sequence[int], end_id: int) -> str:
    """An answer's text: without its end token and an incomplete last character, stripped as in training."""
    text_tokens = tokens[:-1] if tokens and tokens[-1] == end_id else tokens
    return tokenizer.decode(text_tokens).rstrip(_REPLACEMENT).strip()


class TextStream:
    """Text from tokens, one by one; a character of several tokens is held back until it is complete."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # The text of a token depends on the tokens before it (a leading space, bytes of one character). So the piece
        # that was shown last is decoded again with what follows: the ids from _start on; those before _shown are out.
        self._start = self._shown = 0

    def add(self, token: int) -> str:
        """The text that can be shown now."""
        self._ids.append(token)
        return self._piece(self._new())

    def end(self) -> str:
        """The text that was held back, without an incomplete character."""
        return self._piece(self._new().rstrip(_REPLACEMENT))

    def _new(self) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]

    def _piece(self, text: str) -> str:
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text
