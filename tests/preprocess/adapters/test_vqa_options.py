"""What VQA v2 and A-OKVQA train, by the option `answer`, and where OCR-VQA's covers are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.adapters.parsing.lettered_options import LETTER
from preprocess.adapters.parsing.votes import is_outvoted, most_frequent
from preprocess.conversation import Conversation
from tests.support.adapting import adapted, conversations, rejects, sample

VOTES = [
    (["b", "a", "a"], "a", ()),
    (["b", "a", "a"], "b", ("answer_outvoted",)),
    (["b", "a", "a", "b"], "b", ()),
    (["b", "b", "a"], "c", ("answer_outvoted",)),
    (["", "", "a"], "a", ()),
    ([], "a", ()),
]


def vqa(root: Path, records: Sequence[tuple[list[str], str | None]], **options: Any) -> list[Conversation]:
    """Question and annotation files, and the same records in one file, must give the same turns."""
    questions = [{"question_id": n, "image_id": n, "question": "What?"} for n, _ in enumerate(records)]
    annotations = [
        {"question_id": n, "answers": [{"answer": one} for one in answers]}
        | ({} if own is None else {"multiple_choice_answer": own})
        for n, (answers, own) in enumerate(records)
    ]
    documents = {"q.json": {"questions": questions}, "a.json": {"annotations": annotations}}
    paired = adapted("vqa_v2", root, documents, **options)
    whole = [{**asked, **answered} for asked, answered in zip(questions, annotations, strict=True)]
    alone = adapted("vqa_v2", root, {"whole.json": whole}, **options)
    assert rejects(paired) == rejects(alone)
    made = conversations(paired)
    assert [(item.turns, item.notes) for item in made] == [(item.turns, item.notes) for item in conversations(alone)]
    return made


def test_an_answer_that_others_outvote_is_trained_and_noted(tmp_path: Path) -> None:
    made = vqa(tmp_path, [(answers, own) for answers, own, _ in VOTES])
    assert [item.turns[1].parts[0] for item in made] == [own for _, own, _ in VOTES]
    assert [item.notes for item in made] == [notes for _, _, notes in VOTES]


def test_by_vote_the_most_frequent_answer_is_trained(tmp_path: Path) -> None:
    made = vqa(tmp_path, [(answers, own) for answers, own, _ in VOTES[:5]], answer="vote")
    assert [item.turns[1].parts[0] for item in made] == ["a", "a", "b", "b", "a"]
    assert [item.notes for item in made] == [notes for _, _, notes in VOTES[:5]]


def test_without_a_vote_there_is_nothing_to_train_by_vote(tmp_path: Path) -> None:
    document = [{"question_id": 1, "image_id": 1, "question": "What?", "answers": [""], "multiple_choice_answer": "a"}]
    assert rejects(adapted("vqa_v2", tmp_path, {"v.json": document}, answer="vote")) == [("1", "empty_answer")]


def test_an_instruction_is_on_a_line_of_its_own_after_every_question(tmp_path: Path) -> None:
    words = "Answer the question using a single word or phrase."
    (item,) = vqa(tmp_path, [(["a"], None)], instruction=f" {words}\n")
    assert item.turns[0].parts[1] == f"What?\n{words}"


@given(st.lists(st.sampled_from(["", "a", "b", "c"])), st.sampled_from(["a", "b", "x"]))
def test_the_vote_is_that_of_a_count(answers: list[str], own: str) -> None:
    voted = most_frequent(answers)
    texts = [answer for answer in answers if answer]
    most = max(map(texts.count, texts), default=0)
    assert voted == next((answer for answer in texts if texts.count(answer) == most), None)
    assert is_outvoted(own, answers) == (answers.count(own) < most)


def test_a_cover_at_its_url_is_in_the_group_of_the_saved_file(tmp_path: Path) -> None:
    book = {"imageURL": "http://e.org/I/51.jpg", "questions": ["Who?"], "answers": ["She."]}
    by_file, by_url = (
        conversations(adapted("ocr_vqa", tmp_path, {"d.json": {"7": book}}, images=("covers",), image=image))[0]
        for image in ("file", "url")
    )
    assert [item.images[0].name for item in (by_file, by_url)] == ["7.jpg", "http://e.org/I/51.jpg"]
    assert by_file.groups[0] in by_url.groups
    made = adapted("ocr_vqa", tmp_path, {"d.json": {"7": book | {"imageURL": "51.jpg"}}}, image="url")
    assert rejects(made) == [("7", "bad_value")]


def aokvqa(root: Path, answer: str, **changed: Any) -> Any:
    (records,) = sample("aokvqa").values()
    return adapted("aokvqa", root, {"a.json": [{**records[2], **changed}]}, answer=answer)


def test_aokvqa_asks_for_a_letter_as_llava_does(tmp_path: Path) -> None:
    changed = {"choices": ["sea", " space ", "zoo"], "correct_choice_idx": 1, "rationales": []}
    (item,) = conversations(aokvqa(tmp_path, "choice", **changed))
    assert item.turns[0].parts[1] == f"Where will it go?\nA. sea\nB. space\nC. zoo\n{LETTER}"
    assert item.turns[1].parts == ("B",)
    assert item.references == ("space",) * 10


@pytest.mark.parametrize(("flag", "notes"), [(False, ()), (True, ("difficult_direct_answer",))])
def test_aokvqa_asks_for_the_direct_answer(tmp_path: Path, flag: bool, notes: tuple[str, ...]) -> None:
    changed = {"direct_answers": ["mars", "space", "space"], "choices": None, "difficult_direct_answer": flag}
    (item,) = conversations(aokvqa(tmp_path, "direct", **changed))
    assert item.turns[0].parts[1] == "Where will it go?"
    assert item.turns[1].parts == ("space",)
    assert item.notes == notes


@pytest.mark.parametrize(
    ("answer", "changed", "reason"),
    [
        ("choice", {"choices": ["a", ""], "correct_choice_idx": 0}, "empty_answer"),
        ("choice", {"choices": ["a"] * 27}, "bad_value"),
        ("choice", {"correct_choice_idx": None}, "bad_value"),
        ("direct", {"direct_answers": []}, "empty_answer"),
        ("direct", {"direct_answers": None}, "empty_answer"),
        ("direct", {"difficult_direct_answer": "no"}, "wrong_type"),
    ],
)
def test_a_record_without_what_is_asked_for_is_refused(
    tmp_path: Path, answer: str, changed: dict[str, Any], reason: str
) -> None:
    assert [name for _, name in rejects(aokvqa(tmp_path, answer, **changed))] == [reason]
