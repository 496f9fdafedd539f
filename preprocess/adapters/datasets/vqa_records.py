"""One question in VQA v2's format, with its answers, as a conversation.

Rule: the trained answer is `multiple_choice_answer`, or else the most frequent of the answers (the first of several).
All answers are references, empty ones included: VQA accuracy depends on the number of people who were asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preprocess.adapters.parsing.fields import answer, coco_name, image_groups, image_name, list_of, texts
from preprocess.adapters.parsing.record_location import RecordLocation
from preprocess.conversation import Conversation, Image, OfficialSplit, Turn
from preprocess.errors import RejectError


def conversation(
    location: RecordLocation, words: str, name: str, best: str, others: Sequence[str], split: OfficialSplit
) -> Conversation:
    image = Image(name=name)
    return Conversation(
        id=location.claim(),
        turns=(Turn(role="user", parts=(image, words)), Turn(role="assistant", parts=(best,))),
        sources=(location.source,),
        groups=image_groups(location.request, [image]),
        official_split=split,
        references=tuple(others),
    )


def answer_of(record: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The trained answer, and the answers of all people."""
    others: tuple[str, ...] = ()
    if record.get("answers") is not None:
        given = list_of(record, "answers")
        others = texts([item.get("answer") if type(item) is dict else item for item in given], "answers")
    if record.get("multiple_choice_answer") is not None:
        return answer(record["multiple_choice_answer"], "multiple_choice_answer"), others
    if record.get("answers") is None:
        raise RejectError("no_answer", "there is neither multiple_choice_answer nor answers")
    counts: dict[str, int] = {}
    for words in filter(None, others):
        counts[words] = counts.get(words, 0) + 1
    if not counts:
        raise RejectError("empty_answer", "answers has no text")
    return max(counts, key=counts.__getitem__), others


def image_of(image_id: Any, subtype: str) -> str:
    """COCO's file name for a number; a text is a file name, which in TextVQA has no suffix."""
    if type(image_id) is str:
        name = image_name(image_id, "image_id")
        return name if "." in name.rsplit("/", 1)[-1] else f"{name}.jpg"
    return coco_name(image_id, f"COCO_{subtype}_" if subtype else "")
