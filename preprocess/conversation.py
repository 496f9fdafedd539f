"""What an adapter makes of a record: a conversation, or a reject with its reason.

Rule: every record that an adapter reads is a source of exactly one of the two. A conversation no longer depends on its
dataset: it has turns, names of images, and the groups that keep it on one side of the train/eval split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from preprocess.fast_record import fast_record

Role = Literal["system", "user", "assistant", "tool"]
OfficialSplit = Literal["", "train", "val", "test"]
Scalar = str | int | float | bool
SCALARS = (str, int, float, bool)
FieldValue = Scalar | tuple[Scalar | None, ...]
"""What a field says. A conversation of several records has a value for each of them."""


@fast_record
class RecordSource:
    """Where a record comes from: the annotation file, relative to the dataset's root, and its id or number there."""

    file: str
    record: str


@fast_record
class Image:
    """A reference to an image: its name in one of the dataset's image stores, or its http or https URL.

    store: the store's index in the dataset's `images`, or None to search all of them in order. frame: the number of a
    frame in the animation or video of that name, from 0; None for the whole file.
    """

    name: str
    store: int | None = None
    frame: int | None = None


@fast_record
class ToolCall:
    """A call that an assistant makes. arguments: JSON text of an object. id: as tool results cite it, or ""."""

    name: str
    arguments: str
    id: str = ""


@fast_record
class Turn:
    """One message; text and images in reading order.

    A turn of the role tool is the result of a call: tool_name and call_id say of which, as far as the record does.
    trained: False for an answer that is only context. reasoning, tool_calls: of the assistant. With tool calls, or in
    a result, parts may be empty.
    """

    role: Role
    parts: tuple[str | Image, ...]
    trained: bool = True
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    call_id: str = ""


@fast_record
class Conversation:
    """Ordered turns, ready to be rendered.

    id: unique within its dataset. groups: ids of the images or videos that it shows; conversations with a common id
    stay on the same side of the split. official_split: of the dataset's authors, or "". sources: the records it was
    made from. references: the right answers, for evaluation. notes: changes to the data, as short names that the build
    counts (`dangling_question`, ...). tools: definitions of the tools that the assistant may call, each as JSON text of
    an object. fields: what the record says about itself (a rating, its source), by the names that the dataset's
    filter reads; empty without a filter.
    """

    id: str
    turns: tuple[Turn, ...]
    sources: tuple[RecordSource, ...]
    groups: tuple[str, ...] = ()
    official_split: OfficialSplit = ""
    references: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    fields: Mapping[str, FieldValue] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Image))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, str))


@fast_record
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
    "nothing_trained": "the record marks every answer as not to be trained",
    "no_match": "a join found no partner for the record",
    "role_order": "turns do not alternate user, assistant, or a role is unknown",
    "duplicate_id": "an earlier record of the same file has the same id",
    "image_count": "the text marks another number of images than the record names",
    "image_in_answer": "an answer shows an image; only questions can",
    "unread_media": "the text has a tag of a video, a sound or an image that is not read, or a part of such a type",
    "unknown_key": "a key carries meaning (a video, a system prompt, a loss mask, ...) that the adapter does not read",
    "preference_pair": "the record has a chosen and a rejected answer; a sample has one",
    "image_mention": "the text refers to an image that the record does not have",
    "too_many_images": "more images than limits.max_images",
    "too_long": "the first round alone is longer than limits.max_length (see limits.too_long); more than 1 MiB of text "
    "is counted only as far as max_length needs",
    "image_path": "an image path leads out of the dataset's image folders, or is not a path",
    "image_missing": "the image store does not have the image, or it is a URL that dsvl-prep fetch did not download",
    "image_unreadable": "the image is empty, truncated or not an image; or its name is that of a folder or a pipe",
    "image_format": "the image's format or bit depth is not supported",
    "image_animated": "the image has several frames",
    "image_too_small": "a side is shorter than image.min_side",
    "image_too_large": "more pixels than image.max_pixels",
    "filtered": "a rule of the dataset's `filter` drops it",
    "template": "the template refuses the conversation",
    "control_text": "text cannot be separated from control tokens",
    "duplicate": "an earlier record has the same images and texts (dedupe)",
    "contaminated": "it shows an image or repeats a question of an evaluation set (decontaminate)",
    "split_conflict": "it shows images from both sides of the train/eval split",
    "worker_died": "the process that worked on it died twice: a library crashed on its data, or memory ran out",
    "internal_error": "an unexpected error; please report it",
}

REQUESTED = frozenset({"duplicate", "contaminated", "filtered"})
"""Reasons that the blend asks for, so these rejects do not count against limits.max_reject_share"""

NOTES: dict[str, str] = {
    "answer_cut": "the end of the only answer was cut to limits.max_length, with its end token (limits.too_long: cut)",
    "answer_outvoted": "other annotators gave another answer more often",
    "control_text": "the text contains a control string or a word of the template's layout, which stays plain text",
    "dangling_question": "a last question without an answer was left out",
    "enlarged": "an image of fewer pixels than one tile became several tiles (image.grid: resolution makes it one)",
    "fewer_tiles": "an image got fewer tiles than it asks for, so that its sample fits (limits.max_length, max_tiles)",
    "first_frame": "an image has several frames or pages, of which the first was kept (image.frames)",
    "fewer_frames": "an animation or video has fewer frames than its dataset asks for (frames: even:N); all are shown",
    "frames_cut": "frames of an animation or video were left out; the others are evenly spaced (frames)",
    "image_placed_first": "the text does not mark where the images are, so they were placed in front of it",
    "images_moved": "the template moved an image out of its place within a text (docs/templates.md)",
    "leading_answer": "an answer before the first question was left out",
    "literal_newline": "the two characters \\n in a text became a line break",
    "questions_joined": "user turns in a row were joined with a line break",
    "rounds_cut": "the end of the conversation was cut, after an answer, to limits.max_length",
    "scaled_to_8_bits": "an image has 16 bits a channel, of which the high 8 were kept (image.sixteen_bit)",
}
"""What was changed in a sample, by the name under which the build counts it."""


def is_url(name: str) -> bool:
    """Whether an image is named by a URL: `dsvl-prep fetch` downloads it, and a build finds the file by that name."""
    return name[:8].lower().startswith(("http://", "https://"))


def is_embedded(name: str) -> bool:
    """Whether an image is inside its record, as text; its name is that of its bytes."""
    return name.startswith("data:")


def embedded_name(image: bytes) -> str:
    return f"data:{hashlib.sha256(image).hexdigest()}"


def to_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation in the form that Hugging Face chat templates expect.

    Keys besides role and content are there only if they say something: `trained` (False), `reasoning_content`,
    `tool_calls`, and a tool's `name` and `tool_call_id`.
    """
    return [_message(turn) for turn in conversation.turns]


def to_tools(conversation: Conversation) -> list[dict[str, Any]]:
    """The value of the template variable `tools`: definitions, as JSON objects."""
    return [json.loads(tool) for tool in conversation.tools]


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": _content(turn.parts)}
    if not turn.trained:
        message["trained"] = False
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in turn.tool_calls]
    if turn.tool_name:
        message["name"] = turn.tool_name
    if turn.call_id:
        message["tool_call_id"] = turn.call_id
    return message


def _tool_call(call: ToolCall) -> dict[str, Any]:
    made = {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
    return {"id": call.id, **made} if call.id else made


def _content(parts: tuple[str | Image, ...]) -> str | list[dict[str, str]]:
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]


Records = Iterator[Conversation | Reject]
