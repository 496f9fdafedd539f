"""Your own conversations and captions: JSON, tables, WebDataset tars or folders, in any of the FORMS.

    {"id"?, "messages": [{"role", "content": text or parts}], "images"?: [...], "group"?, "split"?}
    {"id"?, "conversations": [{"from", "value"}], "image"? or "images"?: path or [paths], "system"?, "tools"?}

Rule: each `<image>` marker in a question, and each part `{"type": "image"}` without a path, takes the next image of the
record; images without any marker go before the first question. What a record says is read, or the record is a reject.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from preprocess.adapters.base import FilePart, Request
from preprocess.adapters.datasets.chat.forms import KEYS, SYSTEM_KEYS, TOOL_KEYS, Context, form_of
from preprocess.adapters.parsing.fields import as_id, build_or_reject, image_groups, object_of, show
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.keys import Columns, filter_fields, has_value, one_of, own_id, renamed
from preprocess.adapters.parsing.media_tags import TagRules, slots
from preprocess.adapters.parsing.messages import MESSAGE_KEYS, ROUND_KEYS
from preprocess.adapters.parsing.record_files import read_records
from preprocess.adapters.parsing.record_images import check_unread_images, images_of, videos_of
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.adapters.parsing.splits import stated_split
from preprocess.adapters.parsing.tools import tool_definitions
from preprocess.adapters.parsing.turns import Message, assemble
from preprocess.conversation import Conversation, Image, Records
from preprocess.errors import RejectError

_EVERY_KEY = KEYS | MESSAGE_KEYS | ROUND_KEYS


def read(request: Request) -> Records:
    identities = Identities(request)
    stores = {os.path.abspath(store): index for index, store in enumerate(request.images)}
    rules = TagRules.of(request)
    columns = Columns(request, KEYS)
    for file in request.files:
        store = stores.get(os.path.abspath(file.path if isinstance(file, FilePart) else file))
        for location, record in located_records(
            identities,
            file,
            read_records(file, columns, request.tally.ignored_key),
            lambda record: own_id(request, record, "id"),
        ):
            yield build_or_reject(location.source, _conversation, location, record, store, rules)


def _conversation(location: RecordLocation, record: Any, store: int | None, rules: TagRules) -> Conversation:
    request = location.request
    source = object_of(record)
    fields = filter_fields(request, source)
    record = renamed(source, request)
    form = form_of(record, request)
    images, groups_within = images_of(record, location, store, source)
    videos, groups_of_videos = videos_of(record, location, store, source)
    if videos:
        rules, groups_within = replace(rules, has_videos=True), groups_within | groups_of_videos
    messages = form.turns(record, form, Context(request, len(images) + len(videos), rules))
    turns, notes = assemble(_with_system(record, messages, rules), images, request, videos)
    if not images and not videos and all(type(part) is str for turn in turns for part in turn.parts):
        check_unread_images(_with_turns(source), request, _EVERY_KEY)
    groups: list[str] = []
    for image in (part for turn in turns for part in turn.parts if isinstance(part, Image)):
        within = groups_within.get(image)
        groups += image_groups(request, [image]) if within is None else [within]
    if has_value(record.get("group")):
        groups.append(f"group:{_group(record['group'])}")
    split = stated_split(record.get("split"))
    tools_key = one_of(record, TOOL_KEYS, "list of tools")
    tools = () if tools_key is None else tool_definitions(record[tools_key])
    return Conversation(
        id=location.claim(),
        turns=turns,
        sources=(location.source,),
        groups=tuple(dict.fromkeys(groups)),
        official_split=split,
        notes=notes,
        tools=tools,
        fields=fields,
    )


def _with_turns(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The record, and those of its turns that have more than a role and a text."""
    yield record
    for value in record.values():
        if type(value) is list:
            yield from (item for item in value if type(item) is dict and len(item) > 2)


def _with_system(record: dict[str, Any], messages: list[Message], rules: TagRules) -> list[Message]:
    """The messages after the system prompt that the record has in a key of its own."""
    key = one_of(record, SYSTEM_KEYS, "system prompt")
    if key is None:
        return messages
    system = Message("system", slots(record[key], "system", False, rules))
    first = next((message for message in messages if message.role == "system"), None)
    if first is None:
        return [system, *messages]
    if first.slots != system.slots:
        raise RejectError("bad_value", f"there is {key} and another system turn; expected one system prompt")
    return messages


def _group(value: Any) -> str:
    group = as_id(value)
    if group is None:
        raise RejectError("wrong_type", f"group is {show(value)}; expected the id of a video or document")
    return group
