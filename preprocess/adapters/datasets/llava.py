"""LLaVA's instruction files: `[{"id", "image", "conversations": [{"from", "value"}]}]`.

Rule: one record is one conversation with all of its rounds. The image replaces the `<image>` marker of the first
question; without a marker it goes first (note `image_placed_first`). A record without an image is text only.
"""

from __future__ import annotations

from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import build_or_reject, image_at, image_groups, object_of, own_id
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.record_files import json_records
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.adapters.parsing.turns import assemble, sharegpt
from preprocess.conversation import Conversation, Image, Records, Turn


def read(request: Request) -> Records:
    identities = Identities(request)
    for path in request.annotations:
        for location, record in located_records(
            identities, path, json_records(path), lambda record: own_id(record, "id")
        ):
            yield build_or_reject(location.source, _conversation, location, record)


def rounds(request: Request, record: Any) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Turns and notes of one record. Raises RejectError."""
    record = object_of(record)
    images = [image_at(path, request) for path in _image_list(record.get("image"))]
    return assemble(sharegpt(record, bool(images)), images, request)


def _conversation(location: RecordLocation, record: Any) -> Conversation:
    turns, notes = rounds(location.request, record)
    return Conversation(
        id=location.claim(),
        turns=turns,
        sources=(location.source,),
        groups=image_groups(
            location.request, (part for turn in turns for part in turn.parts if isinstance(part, Image))
        ),
        notes=notes,
    )


def _image_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if type(value) is list else [value]
