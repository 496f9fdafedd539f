"""Captions: COCO (Karpathy's dataset.json, LAVIS's, the official captions_*.json) and MiniGPT-4's cc_sbu_align.

Rule: one caption is one conversation, asked for by a prompt chosen by (seed, record id); all captions of the image are
its references. A record is a caption; an image entry that is malformed or has no caption is one reject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.datasets.captioner import CaptionedImage, Captioner
from preprocess.adapters.parsing.fields import (
    answer,
    as_id,
    build_or_reject,
    image_name,
    is_text,
    list_of,
    need,
    need_id,
    show,
)
from preprocess.adapters.parsing.json_stream import array_items
from preprocess.adapters.parsing.keys import filter_fields, own_id, record_of
from preprocess.adapters.parsing.record_files import json_form, json_records
from preprocess.adapters.parsing.record_location import RecordLocation, located_records, location_of
from preprocess.adapters.parsing.splits import split_of_file, split_of_image, stated_split
from preprocess.conversation import Conversation, OfficialSplit, Records, RecordSource, Reject
from preprocess.errors import DataError, RejectError

COCO_PROMPTS = (
    "Describe this image in one sentence.",
    "What does the picture show? Keep it short.",
    "Write a short caption for this photo.",
    "Give a brief description of the image.",
    "In a few words, what can be seen here?",
    "Sum up the scene in one sentence.",
    "What is happening in this image? Answer briefly.",
    "Caption this picture.",
)

MINIGPT4_PROMPTS = (
    "Describe this image in detail.",
    "What can be seen in this picture? Tell me all of it.",
    "Give a full description of the photo.",
    "Take a close look at the image and describe what you notice.",
    "Explain what this picture shows, with its details.",
    "Could you describe the contents of this image for me?",
    "Write a detailed account of the scene in the photo.",
    "Please walk me through everything in this image.",
)

_ENTRY_KEYS = frozenset(("id", "cocoid", "imgid", "filename", "file_name", "sentences", "split"))
_CAPTION_KEYS = frozenset(("id", "sentid", "image_id", "caption", "raw"))
_ALIGNED_KEYS = frozenset(("image_id", "caption"))
_LISTED_KEYS = frozenset(("image", "caption", "image_id"))
KEYS = _ENTRY_KEYS | _CAPTION_KEYS | _LISTED_KEYS


def read_coco(request: Request) -> Records:
    captioner = Captioner(request)
    for path in request.annotations:
        if json_form(path) in ("array", "lines"):
            yield from _lavis(captioner, path)
        else:
            yield from (_karpathy if _is_karpathy(path) else _official)(captioner, path)


def read_minigpt4(request: Request) -> Records:
    """`{"annotations": [{"image_id", "caption"}]}`; the image file is `<image_id>.jpg`."""
    captioner = Captioner(request)
    for path in request.annotations:
        records = array_items(path, "annotations")
        for location, record in located_records(
            captioner.identities, path, records, lambda record: own_id(request, record, "image_id")
        ):
            yield build_or_reject(location.source, _aligned, captioner, location, record)


def _aligned(captioner: Captioner, location: RecordLocation, published: Any) -> Conversation:
    record = record_of(published, captioner.request, _ALIGNED_KEYS)
    name = image_name(need_id(record, "image_id") + ".jpg", "image_id")
    caption = answer(need(record, "caption"), "caption")
    return captioner.conversation(location, published, caption, captioner.captioned_image(name))


def _is_karpathy(path: Path) -> bool:
    """By content, since users rename files: Karpathy's file has the sentences inside the images."""
    for entry in array_items(path, "images"):
        if type(entry) is dict and ("sentences" in entry or "filename" in entry):
            return True
        if type(entry) is dict and "file_name" in entry:
            return False
    try:
        next(array_items(path, "annotations"), None)
    except DataError:
        return True
    return False


def _karpathy(captioner: Captioner, path: Path) -> Records:
    file = captioner.request.source_file(path)
    number = 0
    for index, entry in enumerate(array_items(path, "images")):
        source = RecordSource(
            file=file,
            record=own_id(captioner.request, entry, "cocoid")
            or own_id(captioner.request, entry, "imgid")
            or str(index),
        )
        made = build_or_reject(source, _karpathy_entry, captioner, entry)
        if isinstance(made, Reject):
            yield Reject(reason=made.reason, source=source, detail=f"image entry {index}: {made.detail}")
            continue
        sentences, captioned = made
        for sentence in sentences:
            location = location_of(captioner.identities, path, own_id(captioner.request, sentence, "sentid"), number)
            yield build_or_reject(location.source, _sentence, captioner, location, sentence, captioned)
            number += 1


def _karpathy_entry(captioner: Captioner, published: Any) -> tuple[list[Any], CaptionedImage]:
    entry = record_of(published, captioner.request, _ENTRY_KEYS, "the entry")
    name = image_name(need(entry, "filename"), "filename")
    split = stated_split(entry.get("split"))
    sentences = list_of(entry, "sentences")
    if not sentences:
        raise RejectError("no_answer", "the image has no captions")
    captions = _captions(item.get("raw") if type(item) is dict else None for item in sentences)
    return sentences, captioner.captioned_image(name, split, captions, published)


def _lavis(captioner: Captioner, path: Path) -> Records:
    """coco_karpathy_*.json of LAVIS and BLIP: `[{"image", "caption": text or [texts]}]`, the split in the file's name.

    The captions of an image are in several records of the training file, so it is read twice.
    """
    captions: dict[str, list[str]] = {}
    for record in json_records(path):
        if type(record) is dict and type(record.get("image")) is str:
            captions.setdefault(record["image"], []).extend(_captions(_listed(record.get("caption"))))
    number = 0
    for index, record in enumerate(json_records(path)):
        source = RecordSource(file=captioner.request.source_file(path), record=str(index))
        made = build_or_reject(source, _lavis_entry, captioner, record, captions)
        if isinstance(made, Reject):
            yield Reject(reason=made.reason, source=source, detail=f"entry {index}: {made.detail}")
            continue
        sentences, captioned = made
        for sentence in sentences:
            location = location_of(captioner.identities, path, None, number)
            yield build_or_reject(location.source, _plain_sentence, captioner, location, sentence, captioned)
            number += 1


def _lavis_entry(
    captioner: Captioner, published: Any, captions: dict[str, list[str]]
) -> tuple[list[Any], CaptionedImage]:
    record = record_of(published, captioner.request, _LISTED_KEYS)
    name = image_name(need(record, "image"))
    sentences = _listed(need(record, "caption"))
    if not sentences:
        raise RejectError("no_answer", "the image has no captions")
    return sentences, captioner.captioned_image(name, "", tuple(captions[name]), published)


def _plain_sentence(
    captioner: Captioner, location: RecordLocation, sentence: Any, captioned: CaptionedImage
) -> Conversation:
    return captioner.conversation(location, {}, answer(sentence, "caption"), captioned)


def _listed(value: Any) -> list[Any]:
    return value if type(value) is list else [value]


def _official(captioner: Captioner, path: Path) -> Records:
    """Images may follow annotations in the file, so it is read three times: images, captions of each, conversations."""
    file = captioner.request.source_file(path)
    names: dict[str, str] = {}
    entries: dict[str, int] = {}
    fields: dict[str, Mapping[str, Any]] = {}
    for index, entry in enumerate(array_items(path, "images")):
        source = RecordSource(file=file, record=own_id(captioner.request, entry, "id") or str(index))
        made = build_or_reject(source, _official_entry, captioner.request, entry, names)
        if isinstance(made, Reject):
            yield Reject(reason=made.reason, source=source, detail=f"image entry {index}: {made.detail}")
        else:
            identity, name = made
            names[identity] = name
            entries[identity] = index
            if captioner.request.filter_fields:
                fields[identity] = filter_fields(captioner.request, entry)
    captions: dict[str, list[str]] = {}
    for record in array_items(path, "annotations"):
        if type(record) is dict and (key := as_id(record.get("image_id"))) is not None:
            captions.setdefault(key, []).extend(_captions([record.get("caption")]))
    for identity, index in entries.items():
        if identity not in captions:
            source = RecordSource(file=file, record=identity)
            yield Reject(reason="no_answer", source=source, detail=f"image entry {index}: the image has no captions")
    in_name = split_of_file(file)
    records = array_items(path, "annotations")
    for location, record in located_records(
        captioner.identities, path, records, lambda record: own_id(captioner.request, record, "id")
    ):
        yield build_or_reject(
            location.source, _annotation, captioner, location, record, in_name, names, captions, fields
        )


def _official_entry(request: Request, entry: Any, names: dict[str, str]) -> tuple[str, str]:
    entry = record_of(entry, request, _ENTRY_KEYS, "the entry")
    identity, name = need_id(entry, "id"), image_name(need(entry, "file_name"), "file_name")
    if identity in names:
        raise RejectError("duplicate_id", f"an earlier image has the id {identity}")
    return identity, name


def _annotation(
    captioner: Captioner,
    location: RecordLocation,
    published: Any,
    in_name: OfficialSplit,
    names: dict[str, str],
    captions: dict[str, list[str]],
    fields: dict[str, Mapping[str, Any]],
) -> Conversation:
    record = record_of(published, captioner.request, _CAPTION_KEYS)
    image_id = need_id(record, "image_id")
    if image_id not in names:
        raise RejectError("no_match", f"image_id is {show(image_id)}; expected the id of one of the file's images")
    name = names[image_id]
    captioned = captioner.captioned_image(
        name, in_name or split_of_image(name), tuple(captions[image_id]), fields.get(image_id, {})
    )
    return captioner.conversation(location, published, answer(need(record, "caption"), "caption"), captioned)


def _sentence(
    captioner: Captioner, location: RecordLocation, published: Any, captioned: CaptionedImage
) -> Conversation:
    record = record_of(published, captioner.request, _CAPTION_KEYS)
    return captioner.conversation(location, published, answer(need(record, "raw"), "raw"), captioned)


def _captions(values: Any) -> tuple[str, ...]:
    """The captions that are usable references; the others are rejected when their own record is read."""
    texts: Sequence[str] = [value.strip() for value in values if type(value) is str and is_text(value)]
    return tuple(value for value in texts if value)
