"""One question of VQA v2's form with its answers, as a conversation.

Rule: the answer to learn is `multiple_choice_answer`, or the most frequent of the answers (of equals the first); all of
them are references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preprocess.adapters.parsing.fields import (
    BadRecordError,
    answer,
    answers,
    coco_name,
    image_groups,
    image_name,
    list_of,
)
from preprocess.adapters.parsing.record_location import Place
from preprocess.conversation import Conversation, Image, Split, Turn


def conversation(place: Place, words: str, name: str, best: str, others: Sequence[str], split: Split) -> Conversation:
    image = Image(name=name)
    return Conversation(
        id=place.claim(),
        turns=(Turn(role="user", parts=(image, words)), Turn(role="assistant", parts=(best,))),
        sources=(place.source,),
        groups=image_groups(place.request, [image]),
        official_split=split,
        references=tuple(others),
    )


def answer_of(record: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The answer to learn and all that count as right."""
    others: tuple[str, ...] = ()
    if record.get("answers") is not None:
        given = list_of(record, "answers")
        others = answers([item.get("answer") if type(item) is dict else item for item in given], "answers")
    if record.get("multiple_choice_answer") is not None:
        return answer(record["multiple_choice_answer"], "multiple_choice_answer"), others
    if record.get("answers") is None:
        raise BadRecordError("no_answer", "there is neither multiple_choice_answer nor answers")
    if not others:
        raise BadRecordError("empty_answer", "answers holds no words")
    counts: dict[str, int] = {}
    for words in others:
        counts[words] = counts.get(words, 0) + 1
    return max(counts, key=counts.__getitem__), others


def image_of(image_id: Any, subtype: str) -> str:
    """COCO's file name for a number; a text is a file name, to which TextVQA adds no suffix."""
    if type(image_id) is str:
        name = image_name(image_id, "image_id")
        return name if "." in name.rsplit("/", 1)[-1] else f"{name}.jpg"
    return coco_name(image_id, f"COCO_{subtype}_" if subtype else "")
