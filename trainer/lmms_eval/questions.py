"""What lmms-eval asks, as conversations of dst with their images.

Rule: images are where the task puts them. If they all lead a message whose text has as many `<image>` as there are
images, these are their places; in any other text `<image>` is text.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dst import Message
from shards.images.geometry import Geometry
from trainer.errors import TrainError
from trainer.inference.images import LoadedImage
from trainer.lmms_eval.generation_kwargs import AnswerSettings
from trainer.lmms_eval.visuals import visual_image

PLACE = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages of which the last is a question, the images of all of them in order, and an answer to judge, if any."""

    messages: tuple[Message, ...]
    images: tuple[LoadedImage, ...]
    answer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request of a task. read: makes its conversation; images are in memory only while one is held."""

    where: str
    """For errors: the task and the document"""
    key: tuple[Hashable, ...]
    """What sampled answers depend on in addition to the seed"""
    settings: AnswerSettings
    read: Callable[[], Conversation]


def user_turn(text: str, visuals: Sequence[object] | None) -> list[dict[str, Any]]:
    """A question in the form of lmms-eval's chat messages."""
    images = [{"type": "image", "url": visual} for visual in visuals or ()]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def conversation_of(
    messages: Sequence[Mapping[str, Any]], geometry: Geometry, answer: str | None = None
) -> Conversation:
    """A conversation from lmms-eval's chat messages. Raises TrainError for what is neither text nor an image."""
    images: list[LoadedImage] = []
    converted = [_message(message, geometry, images) for message in messages]
    if not converted or converted[-1]["role"] != "user":
        last = f"a message of {converted[-1]['role']!r}" if converted else "nothing"
        raise TrainError(f"the conversation ends with {last}; expected a question of the user")
    return Conversation(messages=tuple(converted), images=tuple(images), answer=answer)


def _message(message: Mapping[str, Any], geometry: Geometry, images: list[LoadedImage]) -> Message:
    content = message.get("content")
    parts: Sequence[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    converted: list[dict[str, str]] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            converted.append({"type": "text", "text": str(part["text"])})
        elif kind == "image":
            converted.append({"type": "image"})
            images.append(visual_image(part.get("url", part.get("image")), geometry))
        else:
            raise TrainError(f"a part of a message is {kind or type(part).__name__}; expected text or an image")
    converted = [part for part in _placed(converted) if part != {"type": "text", "text": ""}]
    if all(part["type"] == "text" for part in converted) and len(converted) < 2:
        return {"role": message.get("role"), "content": converted[0]["text"] if converted else ""}
    return {"role": message.get("role"), "content": converted}


def _placed(parts: list[dict[str, str]]) -> list[dict[str, str]]:
    """The parts with the images that lead them at the places that the texts have for them, if they have."""
    texts = [part["text"] for part in parts if part["type"] == "text"]
    num_images = len(parts) - len(texts)
    leads = all(part["type"] == "image" for part in parts[:num_images])
    if not num_images or not leads or sum(text.count(PLACE) for text in texts) != num_images:
        return parts
    placed: list[dict[str, str]] = []
    for text in texts:
        first, *others = text.split(PLACE)
        placed.append({"type": "text", "text": first})
        for other in others:
            placed += [{"type": "image"}, {"type": "text", "text": other}]
    return placed
