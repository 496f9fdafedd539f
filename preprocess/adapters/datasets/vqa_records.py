"""One question in VQA v2's format, with its answers, as a conversation.

Rule: the trained answer is `multiple_choice_answer`, or else the most frequent of the answers (the first of several);
with `answer: vote` it is always the most frequent. A record whose own answer another one outvotes has the note
`answer_outvoted`. All answers are references, empty ones included: VQA accuracy depends on the number of people who
were asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from preprocess.adapters.base import Option, Request
from preprocess.adapters.parsing.fields import answer, coco_name, image_groups, image_name, list_of, texts
from preprocess.adapters.parsing.record_location import RecordLocation
from preprocess.adapters.parsing.votes import is_outvoted, most_frequent
from preprocess.conversation import Conversation, Image, OfficialSplit, Scalar, Turn
from preprocess.errors import RejectError

QUESTION_KEYS = frozenset(("question_id", "image_id", "question"))
ANSWER_KEYS = frozenset(("question_id", "image_id", "answers", "multiple_choice_answer"))
ANSWER = Option(
    default="file",
    choices=("file", "vote"),
    help="The trained answer. file: multiple_choice_answer, and the most frequent of the answers where a file has no "
    "such key, as in VizWiz and TextVQA. vote: always the most frequent.",
)
INSTRUCTION = Option(
    default="",
    help="A text after every question, on a line of its own. LLaVA-1.5: Answer the question using a single word or "
    "phrase.",
)


class Answers(NamedTuple):
    """The trained answer, the answers of all people, and whether these outvote the record's own answer."""

    trained: str
    given: tuple[str, ...]
    outvoted: bool


def conversation(
    location: RecordLocation,
    words: str,
    image: Image,
    answers: Answers,
    split: OfficialSplit,
    fields: Mapping[str, Scalar],
) -> Conversation:
    instruction = location.request.options["instruction"].strip()
    asked = f"{words}\n{instruction}" if instruction else words
    return Conversation(
        id=location.claim(),
        turns=(Turn(role="user", parts=(image, asked)), Turn(role="assistant", parts=(answers.trained,))),
        sources=(location.source,),
        groups=image_groups(location.request, [image]),
        official_split=split,
        references=answers.given,
        notes=("answer_outvoted",) if answers.outvoted else (),
        fields=fields,
    )


def answers_of(record: dict[str, Any], request: Request) -> Answers:
    others: tuple[str, ...] = ()
    if record.get("answers") is not None:
        given = list_of(record, "answers")
        others = texts([item.get("answer") if type(item) is dict else item for item in given], "answers")
    stated = record.get("multiple_choice_answer")
    by_vote = request.options["answer"] == "vote"
    if stated is not None:
        own = answer(stated, "multiple_choice_answer")
        outvoted = is_outvoted(own, others)
        if not by_vote:
            return Answers(own, others, outvoted)
    elif record.get("answers") is None:
        raise RejectError("no_answer", "there is neither multiple_choice_answer nor answers")
    else:
        outvoted = False
    voted = most_frequent(others)
    if voted is None:
        raise RejectError("empty_answer", "answers has no text")
    return Answers(voted, others, outvoted)


def image_of(image_id: Any, subtype: str) -> str:
    """COCO's file name for a number; a text is a file name, which in TextVQA has no suffix."""
    if type(image_id) is str:
        name = image_name(image_id, "image_id")
        return name if "." in name.rsplit("/", 1)[-1] else f"{name}.jpg"
    return coco_name(image_id, f"COCO_{subtype}_" if subtype else "")
