"""OCR-VQA: questions about book covers, `{id: {"imageURL", "questions", "answers", "split"}}`.

Rule: one book is one conversation; its questions are the rounds, and the first one shows the cover. The image file is
`<id><extension of imageURL>`, as the authors' download script names it; with `image: url` it is imageURL itself, which
`dsvl-prep fetch` downloads. Either form is in the group of the file's name, so that both are on one side of the split.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from preprocess.adapters.base import Option, Request
from preprocess.adapters.parsing.fields import (
    answer,
    as_id,
    build_or_reject,
    image_groups,
    image_name,
    list_of,
    need,
    question,
    show,
    text,
)
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.json_stream import object_items
from preprocess.adapters.parsing.keys import filter_fields, record_of
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.conversation import Conversation, Image, OfficialSplit, Records, Turn, is_url
from preprocess.errors import RejectError

IMAGE = Option(
    default="file",
    choices=("file", "url"),
    help="Where a cover is. file: in the image folder, as the authors' script saves it. url: at imageURL; run "
    "dsvl-prep fetch before the build.",
)
KEYS = frozenset(("imageURL", "questions", "answers", "split"))
_SPLITS: dict[int, OfficialSplit] = {1: "train", 2: "val", 3: "test"}


def read(request: Request) -> Records:
    identities = Identities(request)
    for path in request.annotations:
        for location, (key, record) in located_records(
            identities, path, object_items(path), lambda item: as_id(item[0])
        ):
            yield build_or_reject(location.source, _conversation, location, key, record)


def _conversation(location: RecordLocation, key: str, published: Any) -> Conversation:
    record = record_of(published, location.request, KEYS)
    url = text(need(record, "imageURL"), "imageURL")
    file = Image(name=image_name(key, "the id") + _extension(url))
    by_url = location.request.options["image"] == "url"
    if by_url and not is_url(url):
        raise RejectError("bad_value", f"imageURL is {show(url)}; expected an http or https URL")
    image = Image(name=url) if by_url else file
    split = _split(record.get("split"))
    asked, answered = list_of(record, "questions"), list_of(record, "answers")
    if len(asked) != len(answered):
        raise RejectError(
            "bad_value", f"got {len(asked)} questions and {len(answered)} answers; expected equal numbers"
        )
    if not asked:
        raise RejectError("no_answer", "there are no questions")
    turns: list[Turn] = []
    for words, reply in zip(asked, answered, strict=True):
        ask = question(words, "a question")
        turns.append(Turn(role="user", parts=(ask,) if turns else (image, ask)))
        turns.append(Turn(role="assistant", parts=(answer(reply, "an answer"),)))
    return Conversation(
        id=location.claim(),
        turns=tuple(turns),
        sources=(location.source,),
        groups=image_groups(location.request, dict.fromkeys((file, image))),
        official_split=split,
        fields=filter_fields(location.request, published),
    )


def _extension(url: str) -> str:
    try:
        return PurePosixPath(urlsplit(url).path).suffix
    except ValueError as error:
        raise RejectError("bad_value", f"imageURL is {show(url)}, which is not a URL ({error})") from None


def _split(value: Any) -> OfficialSplit:
    if value is None:
        return ""
    if type(value) is not int or value not in _SPLITS:
        raise RejectError("bad_value", f"split is {show(value)}; expected 1 (train), 2 (val) or 3 (test)")
    return _SPLITS[value]
