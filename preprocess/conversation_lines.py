"""A conversation as a line of JSON: how spools keep it between the stages of a build."""

from __future__ import annotations

from typing import Any

import orjson

from preprocess.conversation import Conversation, Image, RecordSource, Role, ToolCall, Turn


def encode(conversation: Conversation) -> bytes:
    """One line of JSON. Raises ValueError for text that is not Unicode (lone surrogates)."""
    try:
        return orjson.dumps(
            [
                conversation.id,
                [_encoded_turn(turn) for turn in conversation.turns],
                [[source.file, source.record] for source in conversation.sources],
                conversation.groups,
                conversation.official_split,
                conversation.references,
                conversation.notes,
                conversation.tools,
                conversation.fields,
            ]
        )
    except orjson.JSONEncodeError as error:
        raise ValueError(str(error)) from None


def decode(line: bytes | memoryview) -> Conversation:
    """The inverse of `encode`."""
    identity, turns, sources, groups, official_split, references, notes, tools, fields = orjson.loads(line)
    return Conversation(
        id=identity,
        turns=tuple(_decoded_turn(*turn) for turn in turns),
        sources=tuple(RecordSource(file=file, record=record) for file, record in sources),
        groups=tuple(groups),
        official_split=official_split,
        references=tuple(references),
        notes=tuple(notes),
        tools=tuple(tools),
        fields=fields,
    )


def _encoded_turn(turn: Turn) -> list[Any]:
    """Role and parts; further values only for the few turns that have them."""
    parts = [_encoded_image(part) if type(part) is Image else part for part in turn.parts]
    if turn.role == "user" or (turn.role != "tool" and turn.trained and not turn.reasoning and not turn.tool_calls):
        return [turn.role, parts]
    calls = [[call.name, call.arguments, call.id] for call in turn.tool_calls]
    return [turn.role, parts, turn.trained, turn.reasoning, calls, turn.tool_name, turn.call_id]


def _encoded_image(image: Image) -> list[Any]:
    return [image.name, image.store] if image.frame is None else [image.name, image.store, image.frame]


def _image(name: str, store: int | None, frame: int | None = None) -> Image:
    return Image(name=name, store=store, frame=frame)


def _decoded_turn(
    role: Role,
    parts: list[Any],
    trained: bool = True,
    reasoning: str = "",
    calls: list[list[str]] | tuple[()] = (),
    tool_name: str = "",
    call_id: str = "",
) -> Turn:
    return Turn(
        role=role,
        parts=tuple(part if isinstance(part, str) else _image(*part) for part in parts),
        trained=trained,
        reasoning=reasoning,
        tool_calls=tuple(ToolCall(name=name, arguments=arguments, id=id_) for name, arguments, id_ in calls),
        tool_name=tool_name,
        call_id=call_id,
    )
