"""A conversation with the model as ids and images, exactly as training would have seen it.

Rules: the ids before an answer are the first ids of the finished conversation (dst), images are expanded as the loader
expands them, and pictures become pixels as the loader's exact decoder makes them. Text that somebody typed stays text:
nothing in it becomes a control token.
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
from shards.loader.placeholders import expand
from trainer.errors import TrainError
from trainer.inference.cached_decoder import Prompt
from trainer.model.vision_chat import VisionChatModel

MAX_BYTES = 1 << 30
"""Of a picture's file"""

_HALF = "\ufffd"
"""What a tokenizer decodes bytes to that are no whole character."""


class Speaker(Protocol):
    """A model and what it was trained with: what trainer.load and trainer.inference.open_model give."""

    @property
    def model(self) -> VisionChatModel: ...
    @property
    def chat_tokenizer(self) -> ChatTokenizer: ...
    @property
    def geometry(self) -> Geometry: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """A picture: where it came from, and what the encoder gets of it, uint8 [3, S, S]."""

    path: Path
    pixels: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question, the pictures that came in with it, and its answer, if it has one already."""

    question: str
    pictures: tuple[Seen, ...] = ()
    answer: str | None = None


def messages_of(exchanges: Sequence[Exchange]) -> list[Message]:
    """As the compiler writes them: pictures lead their question."""
    messages: list[Message] = []
    for exchange in exchanges:
        content: object = exchange.question
        if exchange.pictures:
            content = [{"type": "image"} for _ in exchange.pictures]
            content += [{"type": "text", "text": exchange.question}] if exchange.question else []
        messages.append({"role": "user", "content": content})
        if exchange.answer is not None:
            messages.append({"role": "assistant", "content": exchange.answer})
    return messages


def prompt_of(exchanges: Sequence[Exchange], speaker: Speaker, *, end_id: int) -> Prompt:
    """What the answer to the last exchange follows.

    Raises TemplateError if the template refuses the conversation, ControlTextError for text no tokens can stand for.
    """
    chat = speaker.chat_tokenizer
    encoded = chat.encode(messages_of(exchanges), add_generation_prompt=True)
    ids, slots = expand_images(encoded.ids, chat.tokenizer.image_id, speaker.model.image_tokens)
    pixels = [picture.pixels for exchange in exchanges for picture in exchange.pictures]
    return Prompt(ids=ids, images=stack(pixels, speaker.geometry.size), slots=slots, end_id=end_id)


def expand_images(
    ids: npt.ArrayLike, image_id: int, image_tokens: int
) -> tuple[npt.NDArray[np.int64], tuple[int, ...]]:
    """Ids with `image_tokens` positions for each placeholder, and the first position of each image."""
    ids = np.asarray(ids, dtype=np.int64)
    expansion = expand(ids, image_id=image_id, image_tokens=image_tokens)
    return expansion.apply(ids), tuple(expansion.image_starts.tolist())


def stack(pixels: Sequence[torch.Tensor], image_size: int) -> torch.Tensor:
    """uint8 [N, 3, S, S], also of none."""
    return torch.stack(list(pixels)) if pixels else torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8)


def see(data: bytes | memoryview, geometry: Geometry) -> torch.Tensor:
    """A picture file's bytes as the encoder gets them, uint8 [3, S, S]. Raises ImageError."""
    pixels = np.empty((geometry.size, geometry.size, 3), np.uint8)
    exact(data, geometry, pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def look(path: Path, geometry: Geometry) -> Seen:
    """Raises TrainError for a file that is not there or holds no picture."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise TrainError(f"{path}: is no file; wanted a picture")
        if found.st_size > MAX_BYTES:  # a film, say, that would be read whole before it is no picture
            raise TrainError(f"{path}: has {found.st_size:,} bytes; wanted a picture, of {MAX_BYTES:,} at most")
        return Seen(path=path, pixels=see(path.read_bytes(), geometry))
    except ImageError as error:
        raise TrainError(f"{path}: cannot be shown: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TrainError(f"{path}: cannot be read: {reason}; wanted the path of a picture") from None


def answer_text(tokenizer: TextTokenizer, tokens: Sequence[int], end_id: int) -> str:
    """An answer's words: without its end token, without a character that was cut off, and stripped as in training."""
    words = tokens[:-1] if tokens and tokens[-1] == end_id else tokens
    return tokenizer.decode(words).rstrip(_HALF).strip()


class TextStream:
    """Tokens to text as they come; a character of several tokens waits until it is whole."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Decoders look at what stands before (a space at the start, bytes of a character), so the last piece that was
        # shown is decoded again with what follows: ids from _start on, of which those before _shown are out.
        self._start = self._shown = 0

    def add(self, token: int) -> str:
        """The text that can be shown now."""
        self._ids.append(token)
        return self._piece(self._new())

    def end(self) -> str:
        """What was waiting, without a character that is cut off."""
        return self._piece(self._new().rstrip(_HALF))

    def _new(self) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]

    def _piece(self, text: str) -> str:
        if not text or text.endswith(_HALF):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text
