"""Your own conversations: JSON, Parquet, Arrow or WebDataset tars, in `messages` or ShareGPT form.

    {"id"?, "messages": [{"role", "content": text or parts}], "images"?: [...], "group"?, "split"?}
    {"id"?, "conversations": [{"from", "value"}], "image"? or "images"?: path or [paths], "group"?, "split"?}

Rule: each `<image>` marker in a question, and each part `{"type": "image"}` without a path, takes the next image of the
record; images without any marker go before the first question. A file of records may contain the images: their store
is that file, their names are `<row number>/<index>` in a table, and those of the members in a tar.
A path may also be a data URI or base64 text.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.groups import embedded_group
from preprocess.adapters.parsing.fields import (
    as_id,
    build_or_reject,
    image_at,
    image_groups,
    image_of_bytes,
    is_text,
    list_of,
    need,
    object_of,
    own_id,
    show,
)
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.record_files import read_records
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.adapters.parsing.record_tars import MemberImage
from preprocess.adapters.parsing.splits import stated_split
from preprocess.adapters.parsing.turns import MarkedMessage, Slot, assemble, role_of, sharegpt, slots
from preprocess.conversation import Conversation, Image, Records, Role
from preprocess.errors import RejectError

_KEYS = ("id", "messages", "conversations", "images", "image", "group", "split")
_PATH_KEYS = ("image", "path", "url")


def read(request: Request) -> Records:
    identities = Identities(request)
    stores = {os.path.abspath(store): index for index, store in enumerate(request.images)}
    for path in request.annotations:
        store = stores.get(os.path.abspath(path))
        for location, record in located_records(
            identities, path, read_records(path, _KEYS), lambda record: own_id(record, "id")
        ):
            yield build_or_reject(location.source, _conversation, location, record, store)


def _conversation(location: RecordLocation, record: Any, store: int | None) -> Conversation:
    record = object_of(record)
    images, groups_within = _images(record, location, store)
    turns, notes = assemble(_messages(record, bool(images), location.request), images, location.request)
    shown = [part for turn in turns for part in turn.parts if isinstance(part, Image)]
    groups: list[str] = []
    for image in shown:
        within = groups_within.get(image)
        groups += image_groups(location.request, [image]) if within is None else [within]
    if record.get("group") is not None:
        groups.append(f"group:{_group(record['group'])}")
    split = stated_split(record.get("split"))
    return Conversation(
        id=location.claim(),
        turns=turns,
        sources=(location.source,),
        groups=tuple(dict.fromkeys(groups)),
        official_split=split,
        notes=notes,
    )


def _messages(record: dict[str, Any], has_images: bool, request: Request) -> list[MarkedMessage]:
    if record.get("messages") is None:
        if record.get("conversations") is None:
            raise RejectError("missing_key", "there is neither messages nor conversations")
        return sharegpt(record, has_images)
    messages: list[MarkedMessage] = []
    for item in list_of(record, "messages"):
        message = object_of(item, "a turn")
        role = role_of(need(message, "role"))
        content = need(message, "content")
        if type(content) is list:
            messages.append((role, [_part(part, role, request) for part in content]))
        else:
            messages.append((role, slots(content, role, has_images)))
    return messages


def _part(value: Any, role: Role, request: Request) -> Slot:
    part = object_of(value, "a part of content")
    kind = need(part, "type")
    match kind:
        case "text":
            words = need(part, "text")
            if type(words) is not str:
                raise RejectError("wrong_type", f"text is {show(words)}; expected text")
            if not is_text(words):
                raise RejectError("bad_text", f"a turn of the {role} contains a lone surrogate; expected Unicode text")
            return words
        case "image" | "image_url" if role != "user":
            raise RejectError("bad_value", f"the {role} shows an image; expected images only in user turns")
        case "image":
            name = next((part[key] for key in _PATH_KEYS if part.get(key) is not None), None)
            return None if name is None else image_at(name, request)
        case "image_url":
            url = need(object_of(need(part, "image_url"), "image_url"), "url")
            return image_at(url, request, "image_url.url")
        case _:
            raise RejectError("bad_value", f"type is {show(kind)}; expected text, image or image_url")


def _images(
    record: dict[str, Any], location: RecordLocation, store: int | None
) -> tuple[list[Image], dict[Image, str]]:
    """The record's images, and the groups of those that are in the file itself (`store`: its index in `images`)."""
    given = [key for key in ("images", "image") if record.get(key) is not None]
    if len(given) == 2:
        raise RejectError("bad_value", "there are both image and images; expected one of them")
    values = record[given[0]] if given else []
    images: list[Image] = []
    groups: dict[Image, str] = {}
    for index, value in enumerate(values if type(values) is list else [values]):
        if isinstance(value, MemberImage):
            images.append(Image(name=value.name, store=_own_store(location, store)))
            continue
        path = next(_paths(value), None)
        data = value.get("bytes") if type(value) is dict else value if type(value) is bytes else None
        if data is None:
            image = image_at(value if type(value) is not dict else path, location.request)
        elif type(data) is not bytes:
            image = image_of_bytes(data, location.request)
        else:
            image = Image(name=f"{location.number}/{index}", store=_own_store(location, store))
            # The path of an embedded image is often the same for all rows, so it only counts if it is COCO's number.
            groups[image] = embedded_group(data, path if type(path) is str else None)
        images.append(image)
    return images, groups


def _own_store(location: RecordLocation, store: int | None) -> int:
    """The store of images in the file itself."""
    if store is None:
        file = location.source.file
        raise RejectError("image_missing", f"the image is in {file} itself; add {file} to the dataset's `images`")
    return store


def _paths(value: Any) -> Iterator[Any]:
    if type(value) is dict:
        for key in ("path", "url"):
            if value.get(key) is not None:
                yield value[key]


def _group(value: Any) -> str:
    group = as_id(value)
    if group is None:
        raise RejectError("wrong_type", f"group is {show(value)}; expected the id of a video or document")
    return group
