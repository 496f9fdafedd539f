"""A-OKVQA: a question with four choices, the right one, and three rationales.

Rule: the option `answer` decides what is asked and trained; the ten direct answers are references in each case.

    rationale  as in DeepSpeed-VisualChat: the question and a "why" (chosen by seed and record id); "The answer is
               <choice>. Because <rationales>"
    choice     as in LLaVA-1.5: the question, lettered choices and LETTER; the letter
    direct     the question; the most frequent direct answer. The authors do not score it where they set
               difficult_direct_answer: such a record has this note.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from preprocess.adapters.base import Option, Request
from preprocess.adapters.parsing.choices import choose
from preprocess.adapters.parsing.fields import (
    answer,
    build_or_reject,
    coco_name,
    image_groups,
    list_of,
    need,
    question,
    show,
    texts,
)
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.keys import filter_fields, own_id, record_of
from preprocess.adapters.parsing.lettered_options import LETTER, lettered
from preprocess.adapters.parsing.record_files import json_records
from preprocess.adapters.parsing.record_location import RecordLocation, located_records
from preprocess.adapters.parsing.splits import stated_split
from preprocess.adapters.parsing.votes import most_frequent
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

KEYS = frozenset(
    ("question_id", "image_id", "question", "choices", "correct_choice_idx", "rationales", "direct_answers", "split")
)
ANSWER = Option(
    default="rationale",
    choices=("rationale", "choice", "direct"),
    help="What is asked and trained. rationale: the right choice and why. choice: the question with lettered choices, "
    "and the letter, as in LLaVA-1.5. direct: the question, and the most frequent direct answer.",
)


def read(request: Request) -> Records:
    identities = Identities(request)
    for path in request.annotations:
        _refuse_test_split(path)
        for location, record in located_records(
            identities, path, json_records(path), lambda record: own_id(request, record, "question_id")
        ):
            yield build_or_reject(location.source, _conversation, location, record)


def _conversation(location: RecordLocation, published: Any) -> Conversation:
    record = record_of(published, location.request, KEYS)
    if _lacks_answer(record):
        raise RejectError("no_answer", "there is neither correct_choice_idx nor rationales")
    image = Image(name=coco_name(need(record, "image_id")))
    words = question(need(record, "question"))
    direct = record.get("direct_answers")
    references = () if direct is None else texts(direct, "direct_answers")
    notes: tuple[str, ...] = ()
    match location.request.options["answer"]:
        case "choice":
            asked, reply = _with_letters(record, words)
        case "direct":
            asked, reply = words, _voted(references)
            notes = ("difficult_direct_answer",) if _is_difficult(record) else ()
        case _:
            asked = f"{words} {choose(WHY, location.request.seed, location.source.record)}"
            reply = _with_reasons(record)
    split = stated_split(record.get("split"))
    return Conversation(
        id=location.claim(),
        turns=(Turn(role="user", parts=(image, asked)), Turn(role="assistant", parts=(reply,))),
        sources=(location.source,),
        groups=image_groups(location.request, [image]),
        official_split=split,
        references=references,
        notes=notes,
        fields=filter_fields(location.request, published),
    )


def _with_reasons(record: dict[str, Any]) -> str:
    reasons = [reason for reason in texts(list_of(record, "rationales"), "rationales") if reason]
    if not reasons:
        raise RejectError("empty_answer", "rationales has no text")
    choices, index = _choices(record)
    return f"The answer is {answer(choices[index], 'the right choice')}. Because {' '.join(reasons)}"


def _with_letters(record: dict[str, Any], words: str) -> tuple[str, str]:
    """The question with its choices, and the letter of the right one."""
    choices, index = _choices(record)
    asked = lettered(words, [answer(choice, "a choice") for choice in choices])
    return f"{asked}\n{LETTER}", ascii_uppercase[index]


def _voted(answers: Sequence[str]) -> str:
    voted = most_frequent(answers)
    if voted is None:
        raise RejectError("empty_answer", "direct_answers has no text")
    return voted


def _is_difficult(record: dict[str, Any]) -> bool:
    flag = record.get("difficult_direct_answer")
    if flag is not None and type(flag) is not bool:
        raise RejectError("wrong_type", f"difficult_direct_answer is {show(flag)}; expected true or false")
    return bool(flag)


def _choices(record: dict[str, Any]) -> tuple[list[Any], int]:
    """The choices, and the index of the right one."""
    choices, index = list_of(record, "choices"), need(record, "correct_choice_idx")
    if type(index) is not int or not 0 <= index < len(choices):
        raise RejectError(
            "bad_value", f"correct_choice_idx is {show(index)}; expected a whole number from 0 to {len(choices) - 1}"
        )
    return choices, index


def _lacks_answer(record: dict[str, Any]) -> bool:
    return record.get("correct_choice_idx") is None and record.get("rationales") is None


def _refuse_test_split(path: Path) -> None:
    for record in json_records(path):
        if type(record) is dict:
            if record.get("split") == "test" and _lacks_answer(record):
                raise DataError(f"{path}: is the test split, which has no answers; remove it from `annotations`")
            return
