"""LLaVA's instruction files: `[{"id", "image", "conversations": [{"from", "value"}]}]`.

Rule: one record is one conversation with all of its rounds. The image replaces the `<image>` marker of the first
question; without a marker it goes first (note `image_placed_first`). A record without an image is text only. A video is
at its `<video>` tag, or at the marker of an image, as in LLaVA-Video.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import build_or_reject, image_at, image_groups, list_of
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.keys import filter_fields, own_id, record_of
from preprocess.adapters.parsing.media_tags import TagRules
from preprocess.adapters.parsing.messages import MESSAGE_KEYS, messages_of
from preprocess.adapters.parsing.record_files import json_records
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.adapters.parsing.turns import assemble
from preprocess.adapters.parsing.videos import VIDEO_KEYS, video_key
from preprocess.conversation import Conversation, Image, Records, Turn

RECORD_KEYS = frozenset(("id", "image", "conversations", *VIDEO_KEYS))
KEYS = RECORD_KEYS | MESSAGE_KEYS


def read(request: Request) -> Records:
    identities = Identities(request)
    rules = TagRules.of(request)
    for file in request.files:
        for location, record in located_records(
            identities, file, json_records(file), lambda record: own_id(request, record, "id")
        ):
            yield build_or_reject(location.source, _conversation, location, record, rules)


def rounds(request: Request, record: Any, rules: TagRules) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Turns and notes of one record. Raises RejectError."""
    record = record_of(record, request, RECORD_KEYS)
    images = [image_at(path, request) for path in _listed(record.get("image"))]
    key = video_key(record, request)
    videos = [] if key is None else [image_at(path, request, key) for path in _listed(record[key])]
    if videos:
        rules = replace(rules, has_videos=True)
    turns = messages_of(list_of(record, "conversations"), request, bool(images or videos), rules)
    return assemble(turns, images, request, videos)


def _conversation(location: RecordLocation, record: Any, rules: TagRules) -> Conversation:
    turns, notes = rounds(location.request, record, rules)
    return Conversation(
        id=location.claim(),
        turns=turns,
        sources=(location.source,),
        groups=image_groups(location.request, [part for turn in turns for part in turn.parts if type(part) is Image]),
        notes=notes,
        fields=filter_fields(location.request, record),
    )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if type(value) is list else [value]
