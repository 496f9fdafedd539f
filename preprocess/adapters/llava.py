"""LLaVA's instruction files: `[{"id", "image", "conversations": [{"from", "value"}]}]`.

Rule: one record is one conversation with all of its rounds. The image stands where `<image>` stood in the first
question; without a mark it leads (note `image_placed_first`). A record without an image is text alone.
"""

from __future__ import annotations

from typing import Any

from preprocess.adapter import Request
from preprocess.adapters.fields import fence, image_groups, image_name, object_of, own_id
from preprocess.adapters.identities import Identities
from preprocess.adapters.turns import assemble, sharegpt
from preprocess.conversation import Conversation, Image, Records, Source, Turn
from preprocess.json_stream import array_items


def read(request: Request) -> Records:
    identities = Identities(request)
    for path in request.annotations:
        file, label = request.source_file(path), identities.label(path)
        for number, record in enumerate(array_items(path)):
            own = own_id(record, "id")
            source = Source(file=file, record=str(number) if own is None else own)
            yield fence(source, _conversation, request, identities, label, own, number, source, record)


def rounds(request: Request, record: Any) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Turns and notes of one record. Raises BadRecordError."""
    record = object_of(record)
    images = [Image(name=image_name(name)) for name in _image_list(record.get("image"))]
    return assemble(sharegpt(record, bool(images)), images, request)


def _conversation(
    request: Request, identities: Identities, label: str, own: str | None, number: int, source: Source, record: Any
) -> Conversation:
    turns, notes = rounds(request, record)
    return Conversation(
        id=identities.claim(label, own, number),
        turns=turns,
        sources=(source,),
        groups=image_groups(request, (part for turn in turns for part in turn.parts if isinstance(part, Image))),
        notes=notes,
    )


def _image_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if type(value) is list else [value]
