"""A conversation with the model as ids and images, exactly as in training.

Rules: the ids before an answer are the first ids of the finished conversation (dst). Placeholders are expanded and
images are decoded as the loader does it. Typed text stays text: nothing in it becomes a control token.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from dst import ChatTokenizer, Message
from dst.tokenizer import TextTokenizer
from shards.errors import ImageError
from shards.images.decode import exact
from shards.images.geometry import Geometry
from shards.sampling.placeholders import expand
from trainer.errors import TrainError
from trainer.inference.cached_decoder import Prompt
from trainer.model.vision_chat import VisionChatModel

MAX_BYTES = 1 << 30
"""Of an image file"""

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedImage:
    """An image file, and the encoder's input made from it."""

    path: Path
    pixels: torch.Tensor
    """uint8 [3, S, S]"""


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


def prompt_of(exchanges: Sequence[Exchange], speaker: Speaker, *, end_id: int) -> Prompt:
    """The prompt for the answer to the last exchange.

    Raises TemplateError if the template refuses the conversation, ControlTextError for text that cannot be tokenized.
    """
    chat = speaker.chat_tokenizer
    encoded = chat.encode(messages_of(exchanges), add_generation_prompt=True)
    ids, slots = expand_images(encoded.ids, chat.tokenizer.image_id, speaker.model.image_tokens)
    pixels = [image.pixels for exchange in exchanges for image in exchange.images]
    return Prompt(ids=ids, images=stack(pixels, speaker.geometry.size), slots=slots, end_id=end_id)


def expand_images(
    ids: npt.ArrayLike, image_id: int, image_tokens: int
) -> tuple[npt.NDArray[np.int64], tuple[int, ...]]:
    """Ids with `image_tokens` positions for each placeholder, and the first position of each image."""
    ids = np.asarray(ids, dtype=np.int64)
    expansion = expand(ids, image_id=image_id, image_tokens=image_tokens)
    expanded = np.empty(expansion.length, dtype=np.int64)
    expansion.write(ids, expanded, image_value=image_id)
    return expanded, expansion.image_starts


def stack(pixels: Sequence[torch.Tensor], image_size: int) -> torch.Tensor:
    """Images [N, 3, S, S] uint8; N may be 0."""
    return torch.stack(list(pixels)) if pixels else torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8)


def image_pixels(data: bytes | memoryview, geometry: Geometry) -> torch.Tensor:
    """The encoder's input, uint8 [3, S, S], from the bytes of an image file. Raises ImageError."""
    pixels = np.empty((geometry.size, geometry.size, 3), np.uint8)
    exact(data, geometry, pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def load_image(path: Path, geometry: Geometry) -> LoadedImage:
    """Read an image file. Raises TrainError if it is missing or is not an image that can be decoded."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TrainError(f"{path}: is not a file; expected an image")
        if status.st_size > MAX_BYTES:  # a video, for example, which would be read completely before it is refused
            raise TrainError(f"{path}: has {status.st_size:,} bytes; expected an image of at most {MAX_BYTES:,}")
        return LoadedImage(path=path, pixels=image_pixels(path.read_bytes(), geometry))
    except ImageError as error:
        raise TrainError(f"{path}: cannot be decoded: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TrainError(f"{path}: cannot be read: {reason}; expected the path of an image") from None


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
