"""VQA v2, VizWiz and TextVQA: joins, answers, names of images, and what is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.datasets import vqa_pairs
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Image, RecordSource, Reject
from preprocess.errors import DataError
from tests.support.adapting import (
    Made,
    adapted,
    conversations,
    rejects,
    request_for,
    written,
)
from tests.support.paths import EXAMPLES


def pair(root: Path, questions: list[Any], annotations: list[Any], **more: Any) -> Made:
    documents = {
        "q.json": {"data_subtype": "train2014", **more, "questions": questions},
        "a.json": {"annotations": annotations},
    }
    return adapted("vqa_v2", root, documents)


def ask(number: Any, **changed: Any) -> dict[str, Any]:
    return {"question_id": number, "image_id": 5, "question": "What?", **changed}


def reply(number: Any, *given: Any, **more: Any) -> dict[str, Any]:
    return {"question_id": number, "answers": [{"answer": item} for item in given], **more}


def test_questions_meet_their_annotations() -> None:
    made = list(ADAPTERS["vqa_v2"].read(request_for("vqa_v2", EXAMPLES)))
    assert rejects(made) == []
    assert len(made) == 5
    item = conversations(made)[1]
    assert item.id == "v2_OpenEnded_mscoco_train2014_questions/102000"
    assert item.turns[0].parts == (Image(name="COCO_train2014_000000000102.jpg"), "What color is the flower?")
    assert item.turns[1].parts == ("pink",)
    assert item.references == ("pink",) * 7 + ("orange", "pink and orange", "red")
    assert item.groups == ("coco:102",)
    assert item.official_split == "train"
    assert item.sources == (RecordSource(file="vqa_v2/v2_OpenEnded_mscoco_train2014_questions.json", record="102000"),)


def test_ids_meet_as_text_and_lonely_ones_are_refused(tmp_path: Path) -> None:
    made = pair(tmp_path, [ask(1), ask("2"), ask(3)], [reply("2", "b"), reply(1, "a"), reply(4, "d"), reply(1, "c")])
    assert [(item.sources[0].record, item.turns[1].parts[0]) for item in conversations(made)] == [
        ("1", "a"),
        ("2", "b"),
    ]
    assert rejects(made) == [("3", "no_answer"), ("4", "no_match"), ("1", "duplicate_id")]


def test_the_trained_answer_is_the_stated_one_or_else_the_first_of_the_most_frequent(tmp_path: Path) -> None:
    annotations = [
        reply(1, "b", "a", "a", "b", "c"),
        reply(2, "b", "a", multiple_choice_answer=" z "),
        reply(3, "", " x "),
    ]
    made = conversations(pair(tmp_path, [ask(1), ask(2), ask(3)], annotations))
    assert [item.turns[1].parts[0] for item in made] == ["b", "z", "x"]
    assert [item.references for item in made] == [("b", "a", "a", "b", "c"), ("b", "a"), ("", "x")]


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 7])
def test_however_rows_are_packed_the_join_is_the_same(
    tmp_path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [ask(1), ask(2, question=""), ask(3), ask(4), ask(5), ask(1), ask(9), ask(6)]
    annotations = [reply(6, "f"), reply(5, "e", 'é"\n', "x"), reply(4), reply(8, "h"), reply(1, "a"), reply(1, "b")]
    expected = pair(tmp_path, questions, annotations)
    monkeypatch.setattr(vqa_pairs, "_ROWS_AT_ONCE", rows_at_once)
    assert pair(tmp_path, questions, annotations) == expected
    assert [item.references for item in conversations(expected)] == [("a",), ("e", 'é"', "x"), ("f",)]


def test_questions_wait_for_the_join_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqa_pairs, "_ROWS_AT_ONCE", 500)
    questions = [ask(number, question=f"What is thing {number}?") for number in range(10_000)]
    words = [f"answer number {number}" for number in range(10)]
    documents = {
        "q.json": {"questions": questions},
        "a.json": {"annotations": [reply(n, *words) for n in range(10_000)]},
    }
    written(tmp_path, documents)
    del questions, documents
    stream = ADAPTERS["vqa_v2"].read(request_for("vqa_v2", tmp_path, annotations=("q.json", "a.json")))
    tracemalloc.start()
    next(iter(stream))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20  # Python's own objects: 1 kB for each of 20,000 rows were three times that


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        (5, "COCO_train2014_000000000005.jpg"),
        ("VizWiz_train_0001.jpg", "VizWiz_train_0001.jpg"),
        ("0054c91397f2fe05", "0054c91397f2fe05.jpg"),
        ("a.b/c", "a.b/c.jpg"),
    ],
)
def test_a_number_is_a_coco_image_and_a_text_is_a_file_name(tmp_path: Path, image_id: Any, name: str) -> None:
    (item,) = conversations(pair(tmp_path, [ask(1, image_id=image_id)], [reply(1, "a")]))
    assert item.images == (Image(name=name),)


def test_the_subtype_may_stand_after_the_questions_or_in_the_name_alone(tmp_path: Path) -> None:
    late = {"questions": [ask(1)], "data_subtype": "val2014"}
    named = {"questions": [ask(2)]}
    documents = {"q.json": late, "q_test2015.json": named, "a.json": {"annotations": [reply(1, "a"), reply(2, "b")]}}
    made = conversations(adapted("vqa_v2", tmp_path, documents))
    assert [item.images[0].name for item in made] == ["COCO_val2014_000000000005.jpg", "COCO_test2015_000000000005.jpg"]
    assert [item.official_split for item in made] == ["val", "test"]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (3, "wrong_type"),
        ({"image_id": 5, "question": "What?"}, "missing_key"),
        (ask(True), "wrong_type"),
        (ask(None), "wrong_type"),
        (ask(1.0), "wrong_type"),
        (ask("\ud800"), "bad_text"),
        (ask(2, question=""), "empty_question"),
        (ask(2, question=None), "wrong_type"),
        (ask(2, question="\ud800"), "bad_text"),
        (ask(2, image_id=None), "wrong_type"),
        (ask(2, image_id=True), "wrong_type"),
        (ask(2, image_id=-1), "bad_value"),
        (ask(1), "duplicate_id"),
    ],
)
def test_a_bad_question_is_refused_with_its_reason(tmp_path: Path, question: Any, reason: str) -> None:
    made = pair(tmp_path, [ask(1), question], [reply(1, "a"), reply(2, "b")])
    own = [item for item in made if isinstance(item, Reject) and item.source.file == "q.json"]
    assert [item.reason for item in own] == [reason]
    assert len(conversations(made)) == 1


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"question_id": 2}, "no_answer"),
        (reply(2), "empty_answer"),
        (reply(2, ""), "empty_answer"),
        (reply(2, "", " "), "empty_answer"),
        (reply(2, "a", None), "wrong_type"),
        (reply(2, "\ud800"), "bad_text"),
        ({"question_id": 2, "answers": {}}, "wrong_type"),
        ({"question_id": 2, "answers": [{}]}, "wrong_type"),
        (reply(2, "a", multiple_choice_answer=""), "empty_answer"),
        (reply(2, "a", multiple_choice_answer=True), "wrong_type"),
    ],
)
def test_a_bad_annotation_refuses_its_question(tmp_path: Path, annotation: Any, reason: str) -> None:
    made = pair(tmp_path, [ask(1), ask(2)], [reply(1, "a"), annotation])
    assert rejects(made) == [("2", reason)]
    assert len(conversations(made)) == 1


@pytest.mark.parametrize("documents", [
    {"q.json": {"questions": [ask(1)]}},
    {"q.json": {"questions": [ask(1)]}, "a.json": {"annotations": [reply(2, "a")]}},
    {"q.json": [{"image": "1.jpg", "question": "What?"}]},
    {"q.json": {"data": [{"question_id": 1, "image_id": "x", "question": "What?", "set_name": "test"}]}},
])  # fmt: skip
def test_a_test_split_without_answers_is_refused_by_name(tmp_path: Path, documents: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"q\.json: .*test split"):
        adapted("vqa_v2", tmp_path, documents)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json: has none of the keys"):
        adapted("vqa_v2", tmp_path, {"x.json": {"a": 1}})
    with pytest.raises(DataError, match="no question file"):
        adapted("vqa_v2", tmp_path, {"a.json": {"annotations": [reply(1, "a")]}})


def test_vizwiz_and_textvqa_are_read_as_published(tmp_path: Path) -> None:
    vizwiz = {
        "image": "VizWiz_val_1.jpg",
        "question": "What?",
        "answers": [{"answer": "a"}, {"answer": "b"}],
        "answerable": 1,
    }
    textvqa = {"question_id": 7, "image_id": "00f", "question": "Which?", "answers": ["b", "b"], "set_name": "train"}
    made = adapted("vqa_v2", tmp_path, {"val.json": [vizwiz, {"image": "x.jpg"}], "t.json": {"data": [textvqa]}})
    assert rejects(made) == [("1", "missing_key")]
    first, second = conversations(made)
    assert (first.id, first.images[0].name, first.turns[1].parts, first.official_split) == (
        "val/#0",
        "VizWiz_val_1.jpg",
        ("a",),
        "val",
    )
    assert (second.id, second.images[0].name, second.turns[1].parts, second.official_split) == (
        "t/7",
        "00f.jpg",
        ("b",),
        "train",
    )
