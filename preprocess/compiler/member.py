"""A conversation as part of a sample: tokenized, cut to fit, its images read and checked.

Rule: a conversation that is too long is cut after a trained answer, and the rest is encoded as if the removed messages
had never existed. If even the first trained answer is too long, the conversation is a reject; with `too_long: cut` it
loses the end of that answer, and nothing before it. What is far too long is removed before it is tokenized.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from dst import ControlTextError, Encoded, TemplateError
from dst.messages import is_trained
from preprocess.compiler.long_texts import beginning_that_may_fit
from preprocess.compiler.messages import messages_of
from preprocess.compiler.task import TaskContext, Tools
from preprocess.compiler.tile_plan import plan_tiles
from preprocess.conversation import Conversation, Image, to_tools
from preprocess.errors import RejectError
from preprocess.images.animations import ShownFrame
from preprocess.images.frames import read_frame
from preprocess.images.prepare import ImagePolicy, StoredImage, prepare_frame, prepare_image, seen_size
from shards.images.tiles import ONE_TILE, Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A conversation that fits on its own: its messages, length in tokens and images."""

    row: int
    conversation: Conversation
    messages: list[dict[str, Any]]
    encoded: Encoded
    length: int
    images: tuple[StoredImage, ...]
    text_notes: tuple[str, ...]
    image_notes: tuple[str, ...] = ()

    @property
    def text_tokens(self) -> int:
        return len(self.encoded.ids) - self.encoded.images

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.text_notes, *self.image_notes)


def make_member(row: int, conversation: Conversation, tools: Tools, context: TaskContext) -> Member:
    """Tokenize a conversation, cut it to fit, and read its images. Raises RejectError with the reason."""
    member = tokenize(row, conversation, tools, context)
    return with_images([member], tools, context, text_tokens=member.text_tokens, joined=context.concat > 1)[0]


def tokenize(row: int, conversation: Conversation, tools: Tools, context: TaskContext) -> Member:
    """A conversation as a member whose images are not read yet. Raises RejectError with the reason."""
    if len(conversation.images) > context.max_images:
        got = f"{len(conversation.images)} images; limits.max_images is {context.max_images}"
        raise RejectError("too_many_images", got)
    beginning = beginning_that_may_fit(conversation, tools.chat.tokenizer, context)
    whole = messages_of(beginning, context.prompt)
    messages, encoded = _fit(conversation, whole, tools, context)
    notes = [*conversation.notes]
    if len(messages) < len(conversation.turns):
        notes.append("rounds_cut")
    if length_of(encoded, context) <= context.max_length:
        if beginning.turns[len(messages) - 1] is not conversation.turns[len(messages) - 1]:
            raise RejectError("too_long", f"the tokenizer leaves {length_of(encoded, context)} tokens of a long answer")
    else:
        complete = encoded.trained
        encoded = _cut_answer(encoded, context)
        if encoded.trained != complete:
            notes.append("answer_cut")
    if encoded.control_texts:
        notes.append("control_text")
    if encoded.images_moved:
        notes.append("images_moved")
    return Member(
        row=row,
        conversation=conversation,
        messages=messages,
        encoded=encoded,
        length=length_of(encoded, context),
        images=(),
        text_notes=tuple(notes),
    )


def with_images(
    members: Sequence[Member], tools: Tools, context: TaskContext, *, text_tokens: int, joined: bool = False
) -> list[Member]:
    """Members that show the same images, with these, which are read once. Raises RejectError with the reason.

    text_tokens: of the sample that the members become. joined: whether its images may be joined by others.
    """
    shown = members[0].conversation.images[: members[0].encoded.images]
    sources: Iterable[bytes | ShownFrame] = (_read(image, tools, context.image) for image in shown)
    grids, notes = [ONE_TILE] * len(shown), set[str]()
    if context.tiled:
        sources = list(sources)
        sizes = [_size(*pair, context) for pair in zip(shown, sources, strict=True)]
        grids, notes = plan_tiles(sizes, text_tokens, context, joined=joined)
    images = []
    for image, source, grid in zip(shown, sources, grids, strict=True):
        with _naming(image):
            images.append(_stored(source, grid, tools, context.image))
    notes.update(note for image in images for note in image.notes)
    return [
        replace(
            member,
            images=tuple(images),
            image_notes=tuple(sorted(notes)),
            length=length_of(member.encoded, context, images),
        )
        for member in members
    ]


@contextmanager
def _naming(image: Image) -> Iterator[None]:
    """Adds the image's name to the detail of a RejectError."""
    try:
        yield
    except RejectError as error:
        raise RejectError(error.reason, f"{image.name}: {error.detail}") from None


def _read(image: Image, tools: Tools, policy: ImagePolicy) -> bytes | ShownFrame:
    with _naming(image):
        if image.frame is None:
            return tools.stores.read(image)
        return read_frame(image, tools.stores, policy.max_pixels, sixteen_bit=policy.sixteen_bit == "scale")


def _size(image: Image, source: bytes | ShownFrame, context: TaskContext) -> tuple[int, int]:
    with _naming(image):
        return seen_size(source, context.image) if isinstance(source, bytes) else source.image.size


def _stored(source: bytes | ShownFrame, grid: Grid, tools: Tools, policy: ImagePolicy) -> StoredImage:
    if not isinstance(source, bytes):
        return prepare_frame(source, policy, grid=grid)
    decoded = tools.decoded.orientation(source) if tools.decoded else None
    return prepare_image(source, policy, grid=grid, decoded=decoded)


def _fit(
    conversation: Conversation, messages: list[dict[str, Any]], tools: Tools, context: TaskContext
) -> tuple[list[dict[str, Any]], Encoded]:
    """Remove messages behind a trained answer until the conversation fits, or has one trained answer left."""
    ends = [index + 1 for index, message in enumerate(messages) if is_trained(message)]
    if not ends:
        raise RejectError("nothing_trained", "every answer is marked as not trained; expected one that is")
    while True:
        encoded = encode(conversation, messages, tools)
        ends = [end for end in ends if end < len(messages)]
        if length_of(encoded, context) <= context.max_length or not ends:
            return messages, encoded
        # An estimate: answers end where trained ranges end. The next encoding checks it.
        fitting = [
            end
            for end, (_, last) in zip(ends, encoded.trained, strict=False)
            if last + _images(messages[:end]) * (context.image_tokens - 1) <= context.max_length
        ]
        messages = messages[: fitting[-1] if fitting else ends[0]]


def _cut_answer(encoded: Encoded, context: TaskContext) -> Encoded:
    """Only the beginning of the only trained answer, if the limits ask for it. Raises RejectError."""
    tokens = context.max_length - encoded.images * (context.image_tokens - 1)
    question, _ = encoded.trained[0]
    if context.too_long == "cut" and tokens > question:
        return encoded.cut(tokens)
    raise RejectError(
        "too_long",
        f"with its first trained answer it has length {length_of(encoded, context)}, of which the answer takes "
        f"{len(encoded.ids) - question}; limits.max_length is {context.max_length}",
    )


def encode(conversation: Conversation, messages: list[dict[str, Any]], tools: Tools) -> Encoded:
    """The messages as tokens, with the conversation's definitions of tools. Raises RejectError."""
    try:
        return tools.chat.encode(messages, tools=to_tools(conversation))
    except TemplateError as error:
        raise RejectError("template", str(error)) from None
    except ControlTextError as error:
        raise RejectError("control_text", str(error)) from None


def length_of(encoded: Encoded, context: TaskContext, images: Sequence[StoredImage] | None = None) -> int:
    """In tokens; before its images are known, each has one tile, the fewest."""
    tiles = encoded.images if images is None else sum(image.grid.tiles for image in images)
    return len(encoded.ids) - encoded.images + tiles * context.image_tokens


def _images(messages: list[dict[str, Any]]) -> int:
    return sum(
        part["type"] == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )
