"""A-OKVQA: a question with four choices, the right one, and three rationales.

Rule, as in DeepSpeed-VisualChat: the question is asked with a "why" (chosen by seed and record id), and the answer is
"The answer is <choice>. Because <rationales>". The ten direct answers are references.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.choices import choose
from preprocess.adapters.parsing.fields import (
    answer,
    build_or_reject,
    coco_name,
    image_groups,
    list_of,
    need,
    object_of,
    own_id,
    question,
    show,
    texts,
)
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.json_stream import array_items
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.adapters.parsing.splits import stated_split
from preprocess.conversation import Conversation, Image, Records, Turn
from preprocess.errors import DataError, RejectError

WHY = (
    "Why?",
    "Explain why.",
    "And what makes you think so?",
    "Give your reasons.",
    "How can you tell?",
    "Please give a reason for your answer.",
)


def read(request: Request) -> Records:
    identities = Identities(request)
    for path in request.annotations:
        _refuse_test_split(path)
        for location, record in located_records(
            identities, path, array_items(path), lambda record: own_id(record, "question_id")
        ):
            yield build_or_reject(location.source, _conversation, location, record)


def _conversation(location: RecordLocation, record: Any) -> Conversation:
    record = object_of(record)
    if _lacks_answer(record):
        raise RejectError("no_answer", "there is neither correct_choice_idx nor rationales")
    image = Image(name=coco_name(need(record, "image_id")))
    words = question(need(record, "question"))
    reasons = [reason for reason in texts(list_of(record, "rationales"), "rationales") if reason]
    if not reasons:
        raise RejectError("empty_answer", "rationales has no text")
    direct = record.get("direct_answers")
    split = stated_split(record.get("split"))
    reply = f"The answer is {_choice(record)}. Because {' '.join(reasons)}"
    references = () if direct is None else texts(direct, "direct_answers")
    return Conversation(
        id=location.claim(),
        turns=(
            Turn(role="user", parts=(image, f"{words} {choose(WHY, location.request.seed, location.source.record)}")),
            Turn(role="assistant", parts=(reply,)),
        ),
        sources=(location.source,),
        groups=image_groups(location.request, [image]),
        official_split=split,
        references=references,
    )


def _choice(record: dict[str, Any]) -> str:
    choices, index = list_of(record, "choices"), need(record, "correct_choice_idx")
    if type(index) is not int or not 0 <= index < len(choices):
        raise RejectError(
            "bad_value", f"correct_choice_idx is {show(index)}; expected a whole number from 0 to {len(choices) - 1}"
        )
    return answer(choices[index], "the right choice")


def _lacks_answer(record: dict[str, Any]) -> bool:
    return record.get("correct_choice_idx") is None and record.get("rationales") is None


def _refuse_test_split(path: Path) -> None:
    for record in array_items(path):
        if type(record) is dict:
            if record.get("split") == "test" and _lacks_answer(record):
                raise DataError(f"{path}: is the test split, which has no answers; remove it from `annotations`")
            return
