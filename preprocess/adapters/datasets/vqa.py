"""VQA v2, and datasets in the same format: VizWiz and TextVQA.

Rule: one question is one conversation. Question files and annotation files are recognised by their keys and joined
(vqa_pairs); VizWiz's array and TextVQA's `{"data": [...]}` have both in one file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.datasets.vqa_pairs import Pairs
from preprocess.adapters.datasets.vqa_records import ANSWER_KEYS, QUESTION_KEYS, answers_of, conversation, image_of
from preprocess.adapters.parsing.fields import build_or_reject, image_at, need, question
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.json_stream import array_items, outline
from preprocess.adapters.parsing.keys import filter_fields, own_id, record_of
from preprocess.adapters.parsing.record_files import json_form, json_records
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.adapters.parsing.splits import split_of_file, stated_split
from preprocess.conversation import Conversation, Image, OfficialSplit, Records
from preprocess.errors import DataError, RejectError

KEYS = QUESTION_KEYS | ANSWER_KEYS | {"image", "set_name"}


def read(request: Request) -> Records:
    identities = Identities(request)
    pairs = Pairs(request=request)
    whole: list[Path] = []
    for path in request.annotations:
        match _kind(path):
            case "questions":
                yield from pairs.read_questions(path)
            case "annotations":
                yield from pairs.read_annotations(path)
            case _:
                whole.append(path)
    if pairs.question_files or pairs.annotation_files:
        yield from pairs.join(identities)
    for path in whole:
        yield from _published_whole(identities, path)


def _kind(path: Path) -> str:
    if json_form(path) in ("array", "lines"):
        return "array"
    for key, _, _ in outline(path):
        if key in ("questions", "annotations", "data"):
            return key
    raise DataError(f"{path}: has none of the keys questions, annotations and data; expected a file in VQA v2's format")


def _published_whole(identities: Identities, path: Path) -> Records:
    """One file with questions and answers: VizWiz's array, or TextVQA's `{"data": [...]}`."""
    is_object = json_form(path) == "object"
    empty = True
    for record in array_items(path, "data") if is_object else json_records(path):
        empty = False
        if type(record) is not dict or "answers" in record or "multiple_choice_answer" in record:
            break
    else:
        if not empty:
            raise DataError(f"{path}: no question has answers, as in a test split; remove it from `annotations`")
    in_name = split_of_file(identities.file(path))
    records = array_items(path, "data") if is_object else json_records(path)
    for location, record in located_records(
        identities, path, records, lambda item: own_id(identities.request, item, "question_id")
    ):
        yield build_or_reject(location.source, _whole, location, record, in_name)


def _whole(location: RecordLocation, published: Any, in_name: OfficialSplit) -> Conversation:
    record = record_of(published, location.request, KEYS)
    if "image" in record:
        image = image_at(record["image"], location.request)
    else:
        image = Image(name=image_of(need(record, "image_id"), ""))
    words = question(need(record, "question"))
    if "answers" not in record and "multiple_choice_answer" not in record:
        raise RejectError("no_answer", "there is no key answers")
    answers = answers_of(record, location.request)
    split = stated_split(record.get("set_name")) or in_name
    return conversation(location, words, image, answers, split, filter_fields(location.request, published))
