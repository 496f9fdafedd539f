"""Described photos: `[{"photo", "description"}]`. One record is one conversation of one round."""

from __future__ import annotations

from typing import Any

from preprocess.adapters.base import Adapter, Request
from preprocess.adapters.parsing.choices import choose
from preprocess.adapters.parsing.fields import answer, build_or_reject, image_groups, image_name, need
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.json_stream import array_items
from preprocess.adapters.parsing.keys import own_id, record_of
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.conversation import Conversation, Image, Records, Turn

KEYS = frozenset(("photo", "description"))
PROMPTS = ("Describe this photo.", "What does the photo show?")


def read(request: Request) -> Records:
    identities = Identities(request)
    for path in request.annotations:
        records = array_items(path)
        for location, record in located_records(
            identities, path, records, lambda record: own_id(request, record, "photo")
        ):
            yield build_or_reject(location.source, _conversation, location, record)


def _conversation(location: RecordLocation, record: Any) -> Conversation:
    record = record_of(record, location.request, KEYS)
    image = Image(name=image_name(need(record, "photo"), "photo"))
    description = answer(need(record, "description"), "description")
    question = choose(PROMPTS, location.request.seed, location.source.record)
    return Conversation(
        id=location.claim(),
        turns=(Turn(role="user", parts=(image, question)), Turn(role="assistant", parts=(description,))),
        sources=(location.source,),
        groups=image_groups(location.request, [image]),
    )


ADAPTER = Adapter(
    read=read,
    annotations=("photos.json",),
    images=("photos",),
    layout="photos.json, images in photos/.",
    where="Your own files.",
    licence="Yours to state.",
    keys=KEYS,
)
