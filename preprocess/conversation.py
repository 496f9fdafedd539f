"""What an adapter makes of a record: a conversation, or a reject with its reason.

Rule: every record that an adapter reads is a source of exactly one of the two. A conversation no longer depends on its
dataset: it has turns, names of images, and the groups that keep it on one side of the train/eval split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Role = Literal["system", "user", "assistant"]
OfficialSplit = Literal["", "train", "val", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSource:
    """Where a record comes from: the annotation file, relative to the dataset's root, and its id or number there."""

    file: str
    record: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A reference to an image: its name in one of the dataset's image stores.

    store: the store's index in the dataset's `images`, or None to search all of them in order.
    """

    name: str
    store: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message; text and images in reading order."""

    role: Role
    parts: tuple[str | Image, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Ordered turns, ready to be rendered.

    id: unique within its dataset. groups: ids of the images or videos that it shows; conversations with a common id
    stay on the same side of the split. official_split: of the dataset's authors, or "". sources: the records it was
    made from. references: the right answers, for evaluation. notes: changes to the data, as short names that the build
    counts (`dangling_question`, ...).
    """

    id: str
    turns: tuple[Turn, ...]
    sources: tuple[RecordSource, ...]
    groups: tuple[str, ...] = ()
    official_split: OfficialSplit = ""
    references: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Image))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A record that cannot become a sample. `reason` is a name of REASONS, `detail` says what was got and expected."""

    reason: str
    source: RecordSource
    detail: str


REASONS: dict[str, str] = {
    "broken_json": "the line is not JSON",
    "wrong_type": "a value has another JSON type than the format requires",
    "missing_key": "a key that the format needs is absent",
    "bad_value": "a value is out of the range that the format allows",
    "bad_text": "text contains a lone surrogate or another character that is not Unicode text",
    "empty_answer": "an answer is empty, so nothing can be trained",
    "empty_question": "a user turn has neither text nor image",
    "no_answer": "the record has no answer",
    "no_match": "a join found no partner for the record",
    "role_order": "turns do not alternate user, assistant",
    "duplicate_id": "an earlier record of the same file has the same id",
    "image_count": "the text marks another number of images than the record names",
    "image_mention": "the text refers to an image that the record does not have",
    "too_many_images": "more images than limits.max_images",
    "too_long": "the first round alone is longer than limits.max_length",
    "image_path": "an image path is absolute, leaves its folder, or is not a path",
    "image_missing": "the image store does not have the image",
    "image_unreadable": "the image is empty, truncated or not an image; or its name is that of a folder or a pipe",
    "image_format": "the image's format or bit depth is not supported",
    "image_animated": "the image has several frames",
    "image_too_small": "a side is shorter than image.min_side",
    "image_too_large": "more pixels than image.max_pixels",
    "template": "the template refuses the conversation",
    "control_text": "text cannot be separated from control tokens",
    "split_conflict": "it shows images from both sides of the train/eval split",
    "internal_error": "an unexpected error; please report it",
}


def to_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation in the form that Hugging Face chat templates expect."""
    return [{"role": turn.role, "content": _content(turn.parts)} for turn in conversation.turns]


def encode(conversation: Conversation) -> bytes:
    """One line of JSON. Raises ValueError for text that is not Unicode (lone surrogates)."""
    try:
        return orjson.dumps(
            [
                conversation.id,
                [
                    [turn.role, [part if isinstance(part, str) else [part.name, part.store] for part in turn.parts]]
                    for turn in conversation.turns
                ],
                [[source.file, source.record] for source in conversation.sources],
                conversation.groups,
                conversation.official_split,
                conversation.references,
                conversation.notes,
            ]
        )
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error)) from None


def decode(line: bytes | memoryview) -> Conversation:
    """The inverse of `encode`."""
    identity, turns, sources, groups, official_split, references, notes = orjson.loads(line)
    return Conversation(
        id=identity,
        turns=tuple(
            Turn(
                role=role,
                parts=tuple(part if isinstance(part, str) else Image(name=part[0], store=part[1]) for part in parts),
            )
            for role, parts in turns
        ),
        sources=tuple(RecordSource(file=file, record=record) for file, record in sources),
        groups=tuple(groups),
        official_split=official_split,
        references=tuple(references),
        notes=tuple(notes),
    )


def _content(parts: tuple[str | Image, ...]) -> str | list[dict[str, str]]:
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]


Records = Iterator[Conversation | Reject]
