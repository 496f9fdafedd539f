"""Whether a template keeps the place of an image within a text.

Some layouts put the images of a turn in front of its text. "Is <image> older than <image>?" loses its meaning then,
unless the template writes a reference where each image was.

Rule: a place is lost if the template writes the same text as for a conversation whose images lead their turns. Images
that all lead or all end their turn have no place to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from dst.messages import Message


def loses_image_places(messages: Sequence[Message], text: str, render: Callable[[list[Message]], str]) -> bool:
    """Whether an image is moved out of its text. text: what the template wrote for the messages.

    It renders again only if the images and the text of a message alternate.
    """
    if not any(map(_is_interleaved, messages)):
        return False
    return render([_images_first(message) if _is_interleaved(message) else message for message in messages]) == text


def _is_interleaved(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, str) or content is None or len(content) < 3:
        return False
    kinds = [part["type"] for part in content if part["type"] == "image" or part["text"].strip()]
    return [kind for kind, _ in groupby(kinds)] not in ([], ["text"], ["image"], ["image", "text"], ["text", "image"])


def _images_first(message: Message) -> Message:
    return {**message, "content": sorted(message["content"], key=lambda part: part["type"] != "image")}
