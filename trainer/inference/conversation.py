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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptPlan:
    """A prompt without the pixels of its images."""

    ids: npt.NDArray[np.int64]
    """[T]: all positions of an image hold the placeholder's id"""
    slots: tuple[int, ...]
    """First position of each tile"""
    grids: tuple[Grid, ...]
    """Of each image"""
    fewer_tiles: bool
    """Whether images got fewer tiles than they ask for, so that the prompt fits"""


def prompt_of(exchanges: Sequence[Exchange], speaker: Speaker, *, end_id: int, limit: int | None = None) -> Prompt:
    """The prompt for the answer to the last exchange; see prompt_of_messages."""
    images = [image for exchange in exchanges for image in exchange.images]
    return prompt_of_messages(messages_of(exchanges), images, speaker, end_id=end_id, limit=limit)


def prompt_of_messages(
    messages: Sequence[Message],
    images: Sequence[LoadedImage],
    speaker: Speaker,
    *,
    end_id: int,
    limit: int | None = None,
) -> Prompt:
    """The prompt for the answer that follows these messages. images: those of all messages, in their order.

    limit: positions that the model can read; as in training, images get fewer tiles before the prompt is longer. Raises
    TemplateError if the template refuses the conversation, ControlTextError for text that cannot be tokenized.
    """
    plan = plan_prompt(messages, [image.size for image in images], speaker, limit=limit)
    pixels = [image.pixels(grid) for image, grid in zip(images, plan.grids, strict=True)]
    return Prompt(
        ids=plan.ids,
        images=stack(pixels, speaker.geometry.size),
        slots=plan.slots,
        end_id=end_id,
        fewer_tiles=plan.fewer_tiles,
    )


def plan_prompt(
    messages: Sequence[Message], sizes: Sequence[tuple[int, int]], speaker: Speaker, *, limit: int | None = None
) -> PromptPlan:
    """What prompt_of_messages makes of images of these sizes, without decoding any. Raises as it does."""
    chat, geometry, image_tokens = speaker.chat_tokenizer, speaker.geometry, speaker.model.image_tokens
    encoded = chat.encode(messages, add_generation_prompt=True)
    most = geometry.most_tiles(len(sizes))
    text_tokens = len(encoded.ids) - len(sizes)
    budget = speaker.max_tiles
    if limit is not None:
        room = (limit - ANSWER_ROOM - text_tokens) // image_tokens
        budget = room if budget is None else min(budget, room)
    grids, allowed = plan_grids(sizes, geometry, most=most, budget=budget)
    ids, slots = expand_images(encoded.ids, chat.tokenizer.image_id, image_tokens, grids)
    return PromptPlan(ids=ids, slots=slots, grids=tuple(grids), fewer_tiles=bool(sizes) and allowed < most)


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
