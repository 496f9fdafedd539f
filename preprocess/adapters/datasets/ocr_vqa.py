"""OCR-VQA: questions about book covers.

    {id: {"imageURL", "questions", "answers", "split"}}                     JSON, as its authors publish it
    image, image_id, questions, answers, image_url, set_name                Parquet or Arrow, as on the Hugging Face hub

Rule: one book is one conversation; its questions are the rounds, and the first one shows the cover. With
`questions: apart` each question is a record and a conversation of one round, with the id `<book>/<number from 0>`. A
fault of a question then rejects that question, a fault of the book the whole book as one record.

In JSON the file of the cover is `<id><extension of imageURL>`, as the authors' download script names it; a table has
the cover itself. With `image: url` it is the URL, which `dsvl-prep fetch` downloads. All forms are in the group of the
file's name, so that they are on one side of the split.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from preprocess.adapters.base import Option, Request
from preprocess.adapters.groups import image_groups as groups_of_name
from preprocess.adapters.parsing.fields import (
    answer,
    as_id,
    build_or_reject,
    image_groups,
    image_name,
    list_of,
    need,
    need_id,
    question,
    show,
    text,
)
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.json_stream import object_items
from preprocess.adapters.parsing.keys import Columns, filter_fields, own_id, record_of
from preprocess.adapters.parsing.record_images import images_of
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.adapters.parsing.record_tables import table_records
from preprocess.adapters.parsing.record_text import kind_of
from preprocess.adapters.parsing.splits import stated_split
from preprocess.conversation import Conversation, Image, OfficialSplit, Records, RecordSource, Reject, Turn, is_url
from preprocess.errors import DataError, RejectError

IMAGE = Option(
    default="file",
    choices=("file", "url"),
    help="Where a cover is. file: in the image folder, as the authors' script saves it, or in the Parquet file. url: "
    "at its URL; run dsvl-prep fetch before the build.",
)
QUESTIONS = Option(
    default="together",
    choices=("together", "apart"),
    help="What is a record. together: a book, whose questions are the rounds of one conversation. apart: a question, "
    "which sees no other; with share the questions of a cover become branches of one sample.",
)
KEYS = frozenset(("imageURL", "questions", "answers", "split"))
TABLE_KEYS = frozenset(("image", "image_id", "image_url", "questions", "answers", "set_name"))
_SPLITS: dict[int, OfficialSplit] = {1: "train", 2: "val", 3: "test"}


def read(request: Request) -> Records:
    identities = Identities(request)
    stores = {os.path.abspath(store): index for index, store in enumerate(request.images)}
    columns = Columns(request, TABLE_KEYS)
    for path in request.annotations:
        kind = kind_of(path)
        if kind == "text":
            for location, (key, book) in located_records(
                identities, path, object_items(path), lambda item: as_id(item[0])
            ):
                made = build_or_reject(location.source, _of_json, location, key, book)
                yield from (made,) if isinstance(made, Reject) else made
        elif kind == "a tar":
            raise DataError(f"{path}: is a tar; expected dataset.json, or Parquet of the Hugging Face hub")
        else:
            store = stores.get(os.path.abspath(path))
            for location, row in located_records(
                identities,
                path,
                table_records(path, kind, columns, request.tally.ignored_key),
                lambda row: own_id(request, row, "image_id"),
            ):
                made = build_or_reject(location.source, _of_table, location, row, store)
                yield from (made,) if isinstance(made, Reject) else made


def _of_json(location: RecordLocation, key: str, published: Any) -> list[Conversation | Reject]:
    book = record_of(published, location.request, KEYS)
    url = text(need(book, "imageURL"), "imageURL")
    file = Image(name=image_name(key, "the id") + _extension(url, "imageURL"))
    image = _at(url, "imageURL") if _is_by_url(location) else file
    groups = image_groups(location.request, dict.fromkeys((file, image)))
    return _conversations(location, published, book, image, groups, _split(book.get("split")))


def _of_table(location: RecordLocation, published: Any, store: int | None) -> list[Conversation | Reject]:
    book = record_of(published, location.request, TABLE_KEYS)
    url = text(book.get("image_url") or "", "image_url")
    if _is_by_url(location):
        image = _at(url, "image_url")
        groups = image_groups(location.request, [image])
    else:
        images, within = images_of({"image": book.get("image")}, location, store, published)
        if len(images) != 1:
            raise RejectError("image_missing", f"image is {show(book.get('image'))}; expected the cover")
        (image,) = images
        groups = (within[image],) if image in within else image_groups(location.request, [image])
    file = image_name(need_id(book, "image_id"), "image_id") + _extension(url, "image_url")
    groups = (*groups_of_name((location.request.root,), f"images/{file}"), *groups)
    return _conversations(location, published, book, image, groups, stated_split(book.get("set_name")))


def _conversations(
    location: RecordLocation,
    published: dict[str, Any],
    book: dict[str, Any],
    image: Image,
    groups: tuple[str, ...],
    split: OfficialSplit,
) -> list[Conversation | Reject]:
    """The conversation of the book, or one for each of its questions, or that question's reject.

    book: what the adapter reads of the record `published`, under its own names. Raises RejectError for a fault of the
    book.
    """
    asked, answered = list_of(book, "questions"), list_of(book, "answers")
    if len(asked) != len(answered):
        raise RejectError(
            "bad_value", f"got {len(asked)} questions and {len(answered)} answers; expected equal numbers"
        )
    if not asked:
        raise RejectError("no_answer", "there are no questions")
    conversation = partial(
        Conversation,
        groups=tuple(dict.fromkeys(groups)),
        official_split=split,
        fields=filter_fields(location.request, published),
    )
    rounds = zip(asked, answered, strict=True)
    if location.request.options["questions"] == "together":
        turns = _turns(image, rounds)
        return [conversation(id=location.claim(), turns=turns, sources=(location.source,))]
    identity = location.claim()
    made: list[Conversation | Reject] = []
    for number, one in enumerate(rounds):
        source = RecordSource(file=location.source.file, record=f"{location.source.record}/{number}")
        alone = build_or_reject(source, _turns, image, [one])
        if isinstance(alone, Reject):
            made.append(alone)
        else:
            made.append(conversation(id=f"{identity}/{number}", turns=alone, sources=(source,)))
    return made


def _turns(image: Image, rounds: Iterable[tuple[Any, Any]]) -> tuple[Turn, ...]:
    """The rounds of (question, answer); the first one shows the image."""
    turns: list[Turn] = []
    for words, reply in rounds:
        ask = question(words, "a question")
        turns.append(Turn(role="user", parts=(ask,) if turns else (image, ask)))
        turns.append(Turn(role="assistant", parts=(answer(reply, "an answer"),)))
    return tuple(turns)


def _is_by_url(location: RecordLocation) -> bool:
    return bool(location.request.options["image"] == "url")


def _at(url: str, what: str) -> Image:
    if not is_url(url):
        raise RejectError("bad_value", f"{what} is {show(url)}; expected an http or https URL")
    return Image(name=url)


def _extension(url: str, what: str) -> str:
    try:
        return PurePosixPath(urlsplit(url).path).suffix
    except ValueError as error:
        raise RejectError("bad_value", f"{what} is {show(url)}, which is not a URL ({error})") from None


def _split(value: Any) -> OfficialSplit:
    if value is None:
        return ""
    if type(value) is not int or value not in _SPLITS:
        raise RejectError("bad_value", f"split is {show(value)}; expected 1 (train), 2 (val) or 3 (test)")
    return _SPLITS[value]
