"""`concat`: several conversations of a dataset as one multi-image, multi-round sample.

Rule: up to `concat` neighbours are joined, never beyond max_images, max_tiles or max_length, never with two system
prompts or other tools, and never with the same image twice. Every member is part of exactly one sample. One whose
answer was cut has max_length, so it is never joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dst import Encoded
from preprocess.compiler.member import Member, encode, length_of
from preprocess.compiler.task import TaskContext, Tools
from preprocess.errors import RejectError


def join(members: Iterator[Member], tools: Tools, context: TaskContext) -> Iterator[tuple[list[Member], Encoded]]:
    """The members of each sample, and the sample's tokens."""
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
        and (context.max_tiles is None or sum(map(_tiles, together)) <= context.max_tiles)
        and sum(one.length for one in together) <= context.max_length
        and _system(waiting[0]) == _system(member)
        and waiting[0].conversation.tools == member.conversation.tools
        and not any(set(one.conversation.groups) & set(member.conversation.groups) for one in waiting)
    )


def _tiles(member: Member) -> int:
    return sum(image.grid.tiles for image in member.images)


def _close(waiting: list[Member], tools: Tools, context: TaskContext) -> Iterator[tuple[list[Member], Encoded]]:
    """Encode neighbours as one conversation. If image numbers make it too long, the last ones start a new one."""
    while waiting:
        for count in range(len(waiting), 0, -1):
            group = waiting[:count]
            encoded = _encode_group(group, tools)
            images = [image for member in group for image in member.images]
            if encoded is not None and length_of(encoded, context, images) <= context.max_length:
                yield group, encoded
                waiting = waiting[count:]
                break


def _encode_group(group: list[Member], tools: Tools) -> Encoded | None:
    """None if the template accepts the conversations one by one but not together."""
    if len(group) == 1:
        return group[0].encoded
    skip = 1 if _system(group[0]) is not None else 0
    messages = [*group[0].messages, *(message for one in group[1:] for message in one.messages[skip:])]
    try:
        return encode(group[0].conversation, messages, tools)
    except RejectError:
        return None


def _system(member: Member) -> Any:
    first = member.messages[0]
    return first["content"] if first["role"] == "system" else None
