"""Second stage of a build: one task turns some conversations of a dataset into one shard.

Rule: a task is pure. Its key covers all that it reads; the same task gives the same bytes on any engine. Its result
is written under its key only after its shard is whole, so an interrupted build goes on where it was. Memory is bounded
by one sample and the shard's index.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dst import ChatTokenizer, ControlTextError, Encoded, Template, TemplateError, load_tokenizer
from preprocess.conversation import Conversation, Reject, to_messages
from preprocess.images import ImageError, ImagePolicy, StoredImage, prepare_image
from preprocess.spool import Spool, reject_all
from preprocess.stores import StoreList, open_stores
from shards import ShardWriter
from shards.writer import replace_file


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """What all tasks of a dataset share."""

    dataset: str
    build: Path
    cache: Path
    spool: Path
    stores: tuple[Path, ...]
    tokenizer: Path
    template_name: str
    template: str
    image: ImagePolicy
    image_tokens: int
    max_length: int
    max_images: int
    concat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileTask:
    """Conversations `rows` (numbers in the dataset's spool) of one split, to become shard `number` of it."""

    context: TaskContext
    split: str
    number: int
    rows: npt.NDArray[np.int64]
    key: str

    @property
    def marker(self) -> Path:
        return self.context.cache / "tasks" / f"{self.key[:32]}.json"


class RefusedError(Exception):
    """A conversation that cannot become part of a sample; `reason` is a name of REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A conversation that fits on its own: its messages, length and pictures."""

    row: int
    conversation: Conversation
    messages: list[dict[str, Any]]
    encoded: Encoded
    length: int
    images: tuple[StoredImage, ...]
    notes: tuple[str, ...]


def run_task(task: CompileTask) -> dict[str, Any]:
    """Write the task's shard and its marker; returns the marker's content (see `read_result`)."""
    context = task.context
    tools = _tools(context)
    writer = ShardWriter(context.build, f"shards/{context.dataset}", f"{task.split}-{task.number:05d}")
    outcome = _Outcome()
    try:
        for group in _joined(_members(task, tools, outcome), tools, context):
            _write(writer, task, group, outcome)
        shard = writer.finish()
    except BaseException:
        writer.discard()
        raise
    result = {
        "shard": shard.to_json() if shard else None,
        "members": outcome.members,
        "ids": outcome.ids,
        "notes": dict(sorted(outcome.notes.items())),
        "rejects": [
            [reject.reason, reject.source.file, reject.source.record, reject.detail] for reject in outcome.rejects
        ],
    }
    task.marker.parent.mkdir(parents=True, exist_ok=True)
    replace_file(task.marker, json.dumps(result).encode())
    return result


def read_result(task: CompileTask) -> dict[str, Any] | None:
    """The result of an earlier run of the same task, if its shard is still there."""
    try:
        result: dict[str, Any] = json.loads(task.marker.read_bytes())
        shard = result["shard"]
        for path, size in [(shard["path"], shard["size"]), (shard["index"], shard["index_size"])] if shard else []:
            if (task.context.build / path).stat().st_size != size:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result


@dataclass(slots=True)
class _Outcome:
    members: int = 0
    ids: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Tools:
    chat: ChatTokenizer
    stores: StoreList
    spool: Spool


@lru_cache(maxsize=4)
def _tools(context: TaskContext) -> _Tools:
    """Opened once in each worker process for each dataset."""
    chat = ChatTokenizer(Template(context.template_name, context.template), load_tokenizer(context.tokenizer))
    return _Tools(chat, open_stores(context.stores, context.cache), Spool(context.spool))


def _members(task: CompileTask, tools: _Tools, outcome: _Outcome) -> Iterator[Member]:
    for row in task.rows.tolist():
        conversation = tools.spool[row]
        try:
            yield _member(row, conversation, tools, task.context)
        except RefusedError as refused:
            outcome.rejects += reject_all(conversation, refused.reason, refused.detail)
        except Exception as error:  # the fence: one bad sample never ends a build, and never goes unnoticed
            outcome.rejects += reject_all(conversation, "internal_error", f"{type(error).__name__}: {error}")


def _member(row: int, conversation: Conversation, tools: _Tools, context: TaskContext) -> Member:
    """Raises RefusedError with the reason of the reject."""
    if len(conversation.images) > context.max_images:
        got = f"{len(conversation.images)} images; limits.max_images is {context.max_images}"
        raise RefusedError("too_many_images", got)
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
        except ImageError as error:
            raise RefusedError(error.reason, f"{image.name}: {error.detail}") from None
    return Member(
        row=row,
        conversation=conversation,
        messages=messages,
        encoded=encoded,
        length=_length(encoded, context),
        images=tuple(images),
        notes=tuple(notes),
    )


def _fit(
    messages: list[dict[str, Any]], chat: ChatTokenizer, context: TaskContext
) -> tuple[list[dict[str, Any]], Encoded]:
    """Drop whole trailing rounds until the conversation fits; what is left is encoded anew, as if it had been alone."""
    ends = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
    while True:
        encoded = _encode(messages, chat)
        length = _length(encoded, context)
        if length <= context.max_length:
            return messages, encoded
        ends = [end for end in ends if end < len(messages)]
        if not ends:
            raise RefusedError(
                "too_long", f"its first round has length {length}; limits.max_length is {context.max_length}"
            )
        # A first guess: rounds end where trained ranges end. Encoding again settles it.
        fitting = [
            end
            for end, (_, last) in zip(ends, encoded.trained, strict=False)
            if last + _images(messages[:end]) * (context.image_tokens - 1) <= context.max_length
        ]
        messages = messages[: fitting[-1] if fitting else ends[0]]


def _encode(messages: list[dict[str, Any]], chat: ChatTokenizer) -> Encoded:
    try:
        return chat.encode(messages)
    except TemplateError as error:
        raise RefusedError("template", str(error)) from None
    except ControlTextError as error:
        raise RefusedError("control_text", str(error)) from None


def _length(encoded: Encoded, context: TaskContext) -> int:
    return len(encoded.ids) + encoded.images * (context.image_tokens - 1)


def _images(messages: list[dict[str, Any]]) -> int:
    return sum(
        part["type"] == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )


def _joined(members: Iterator[Member], tools: _Tools, context: TaskContext) -> Iterator[tuple[list[Member], Encoded]]:
    """Up to `concat` neighbours as one sample, never past max_images or max_length, never twice the same image.

    Every member comes out once.
    """
    waiting: list[Member] = []
    for member in members:
        if waiting and not _may_join(waiting, member, context):
            yield from _close(waiting, tools, context)
            waiting = []
        waiting.append(member)
        if len(waiting) == context.concat:
            yield from _close(waiting, tools, context)
            waiting = []
    yield from _close(waiting, tools, context)


def _may_join(waiting: list[Member], member: Member, context: TaskContext) -> bool:
    together = [*waiting, member]
    return (
        sum(len(one.images) for one in together) <= context.max_images
        and sum(one.length for one in together) <= context.max_length
        and _system(waiting[0]) == _system(member)
        and not any(set(one.conversation.groups) & set(member.conversation.groups) for one in waiting)
    )


def _close(waiting: list[Member], tools: _Tools, context: TaskContext) -> Iterator[tuple[list[Member], Encoded]]:
    """Encode neighbours as one conversation; should numbering have made it too long, the last ones start anew."""
    while waiting:
        for count in range(len(waiting), 0, -1):
            group = waiting[:count]
            encoded = _encode_group(group, tools)
            if encoded is not None and _length(encoded, context) <= context.max_length:
                yield group, encoded
                waiting = waiting[count:]
                break


def _encode_group(group: list[Member], tools: _Tools) -> Encoded | None:
    """None if the template takes the conversations one by one but not together."""
    if len(group) == 1:
        return group[0].encoded
    skip = 1 if _system(group[0]) is not None else 0
    messages = [*group[0].messages, *(message for one in group[1:] for message in one.messages[skip:])]
    try:
        return _encode(messages, tools.chat)
    except RefusedError:
        return None


def _system(member: Member) -> Any:
    first = member.messages[0]
    return first["content"] if first["role"] == "system" else None


def _write(writer: ShardWriter, task: CompileTask, joined: tuple[list[Member], Encoded], outcome: _Outcome) -> None:
    group, encoded = joined
    conversations = [member.conversation for member in group]
    sources = [source for conversation in conversations for source in conversation.sources]
    images = [image for member in group for image in member.images]
    names = [image.name for member in group for image in member.conversation.images[: len(member.images)]]
    notes = sorted({note for member in group for note in member.notes})
    metadata: dict[str, Any] = {
        "id": conversations[0].id,
        "dataset": task.context.dataset,
        "split": task.split,
        "sources": [{"file": source.file, "record": source.record} for source in sources],
        "images": [
            {"name": name, "width": image.width, "height": image.height}
            for name, image in zip(names, images, strict=True)
        ],
    }
    if notes:
        metadata["notes"] = notes
    references = [list(conversation.references) for conversation in conversations]
    if any(references):
        metadata["references"] = references
    writer.add(
        f"{task.context.dataset}-{group[0].row:09d}",
        metadata=metadata,
        tokens=np.stack([encoded.ids, encoded.labels]),
        images=[(image.extension, image.data) for image in images],
        trained_tokens=encoded.trained_tokens,
        groups=sorted({name for conversation in conversations for name in conversation.groups}),
    )
    outcome.members += len(sources)
    outcome.ids += len(encoded.ids)
    for member in group:
        outcome.notes.update(member.notes)
