"""The prompt of a chat completion: its images decoded, its messages tokenized; made in worker threads."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dst.errors import ControlTextError, TemplateError
from shards.errors import ImageError
from trainer.errors import RequestError, TooLongError
from trainer.inference.conversation import Speaker, plan_prompt, prompt_of_messages
from trainer.inference.generate import Generator, Sampling
from trainer.inference.images import LoadedImage, opened_image
from trainer.serving.chat_request import ChatRequest
from trainer.serving.engine import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMaker:
    """Makes prompts for one model. images: the files of a request's images, in order."""

    speaker: Speaker
    generator: Generator

    def request(self, chat: ChatRequest, images: Sequence[bytes]) -> Request:
        """What the engine answers; without a seed in `chat`, each answer is another sample.

        Raises RequestError for what the client can correct, TooLongError if there is no room for an answer.
        """
        end_id, limit = self.generator.end_id, self.generator.limit
        loaded = self._loaded(chat, images)
        with _reported():
            prompt = prompt_of_messages(chat.messages, loaded, self.speaker, end_id=end_id, limit=limit)
        sampling = Sampling(
            max_new_tokens=chat.max_new_tokens,
            temperature=chat.temperature,
            top_p=chat.top_p,
            seed=secrets.randbits(63) if chat.seed is None else chat.seed,
        )
        if limit is not None and len(prompt.ids) >= limit:
            raise TooLongError(len(prompt.ids), limit)
        return Request(prompt=prompt, sampling=sampling)

    def described(self, chat: ChatRequest, images: Sequence[bytes]) -> dict[str, Any]:
        """The exact ids of the prompt, each as the vocabulary writes it, where images are, and how many positions fit.

        Raises RequestError for what the client can correct.
        """
        sizes = [image.size for image in self._loaded(chat, images)]
        with _reported():
            plan = plan_prompt(chat.messages, sizes, self.speaker, limit=self.generator.limit)
        tokenizer, per_tile = self.speaker.chat_tokenizer.tokenizer, self.speaker.model.image_tokens
        ids = plan.ids.tolist()
        texts = {index: tokenizer.token(index) for index in set(ids)}
        places, tile = [], 0
        for grid in plan.grids:
            places.append({"first": plan.slots[tile], "positions": grid.tiles * per_tile, "tiles": grid.tiles})
            tile += grid.tiles
        return {
            "ids": ids,
            "tokens": [texts[index] for index in ids],
            "images": places,
            "control_ids": sorted(tokenizer.control_ids & texts.keys()),
            "limit": self.generator.limit,
        }

    def _loaded(self, chat: ChatRequest, images: Sequence[bytes]) -> list[LoadedImage]:
        geometry, loaded = self.speaker.geometry, []
        for source, data in zip(chat.images, images, strict=True):
            if source.is_low_detail and geometry.tiles is not None:
                name = source.param.removesuffix("url") + "detail"
                raise RequestError(f"{name}: got low, and this model sees images in tiles; expected auto or high", name)
            try:
                loaded.append(opened_image(data, geometry, Path(source.param)))
            except ImageError as error:
                text = f"{source.param}: cannot be decoded: {error}"
                raise RequestError(text, source.param, code="invalid_image") from None
        return loaded


@contextmanager
def _reported() -> Iterator[None]:
    """What the template or the tokenizer refuses is an error of the request."""
    try:
        yield
    except (TemplateError, ControlTextError) as error:
        raise RequestError(f"messages: {error}", "messages") from None
