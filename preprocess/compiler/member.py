"""A conversation as part of a sample: tokenized, cut to fit, its images read and checked.

Rule: a conversation that is too long loses whole rounds at its end, never part of an image or of an answer. The rest is
encoded as if the removed rounds had never existed. A conversation without a usable first round is a reject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dst import ChatTokenizer, ControlTextError, Encoded, TemplateError
from preprocess.compiler.task import TaskContext, Tools
from preprocess.conversation import Conversation, to_messages
from preprocess.errors import RejectError
from preprocess.images.prepare import StoredImage, prepare_image


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A conversation that fits on its own: its messages, length in tokens and images."""

    row: int
    conversation: Conversation
    messages: list[dict[str, Any]]
    encoded: Encoded
    length: int
    images: tuple[StoredImage, ...]
    notes: tuple[str, ...]


def make_member(row: int, conversation: Conversation, tools: Tools, context: TaskContext) -> Member:
    """Tokenize a conversation, cut it to fit, and read its images. Raises RejectError with the reason."""
    if len(conversation.images) > context.max_images:
        got = f"{len(conversation.images)} images; limits.max_images is {context.max_images}"
        raise RejectError("too_many_images", got)
    whole = to_messages(conversation)
    messages, encoded = _fit(whole, tools.chat, context)
    notes = [*conversation.notes]
    if len(messages) < len(whole):
        notes.append("rounds_cut")
    if encoded.control_texts:
        notes.append("control_text")
    images = []
    for image in conversation.images[: encoded.images]:
        try:
            images.append(prepare_image(tools.stores.read(image), context.image))
        except RejectError as error:
            raise RejectError(error.reason, f"{image.name}: {error.detail}") from None
    return Member(
        row=row,
        conversation=conversation,
        messages=messages,
        encoded=encoded,
        length=length_of(encoded, context),
        images=tuple(images),
        notes=tuple(notes),
    )


def _fit(
    messages: list[dict[str, Any]], chat: ChatTokenizer, context: TaskContext
) -> tuple[list[dict[str, Any]], Encoded]:
    """Remove rounds from the end until the conversation fits, and encode the rest again."""
    ends = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
    while True:
        encoded = encode(messages, chat)
        length = length_of(encoded, context)
        if length <= context.max_length:
            return messages, encoded
        ends = [end for end in ends if end < len(messages)]
        if not ends:
            raise RejectError(
                "too_long", f"its first round has length {length}; limits.max_length is {context.max_length}"
            )
        # An estimate: rounds end where trained ranges end. The next encoding checks it.
        fitting = [
            end
            for end, (_, last) in zip(ends, encoded.trained, strict=False)
            if last + _images(messages[:end]) * (context.image_tokens - 1) <= context.max_length
        ]
        messages = messages[: fitting[-1] if fitting else ends[0]]


def encode(messages: list[dict[str, Any]], chat: ChatTokenizer) -> Encoded:
    try:
        return chat.encode(messages)
    except TemplateError as error:
        raise RejectError("template", str(error)) from None
    except ControlTextError as error:
        raise RejectError("control_text", str(error)) from None


def length_of(encoded: Encoded, context: TaskContext) -> int:
    return len(encoded.ids) + encoded.images * (context.image_tokens - 1)


def _images(messages: list[dict[str, Any]]) -> int:
    return sum(
        part["type"] == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )
