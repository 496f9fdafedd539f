"""OCR-VQA with `questions: apart`: each question of a book is a record, and with `share` the cover is stored once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import shards
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Image, RecordSource
from tests.support.adapting import Made, adapted, check_form, conversations, rejects, request_for, sample
from tests.support.chat_records import spoken
from tests.support.paths import EXAMPLES
from tests.support.shared_builds import records_of
from tests.support.small_blends import build, write_blend

BOOK: dict[str, Any] = {"imageURL": "http://x/y.png", "questions": ["a", "b"], "answers": ["c", "d"], "split": 1}


def apart(root: Path, document: dict[str, Any] | str, **options: Any) -> Made:
    return adapted("ocr_vqa", root, {"d.json": document}, questions="apart", **options)


def ids(made: Made) -> list[str]:
    return [item.id for item in conversations(made)]


def test_each_question_is_a_conversation_with_the_cover_the_groups_and_the_split_of_its_book() -> None:
    together, alone = (
        conversations(list(ADAPTERS["ocr_vqa"].read(request_for("ocr_vqa", EXAMPLES, questions=questions))))
        for questions in ("together", "apart")
    )
    (books,) = sample("ocr_vqa").values()
    by_id = {item.id: item for item in together}
    asked = [(book, number) for book, record in books.items() for number in range(len(record["questions"]))]
    assert len(asked) == 12
    for item, (book, number) in zip(alone, asked, strict=True):
        check_form(item)
        assert item.id == f"dataset/{book}/{number}"
        assert item.sources == (RecordSource(file="OCR_VQA/dataset.json", record=f"{book}/{number}"),)
        assert spoken(item) == [
            ("user", (Image(name=f"{book}.jpg"), books[book]["questions"][number])),
            ("assistant", books[book]["answers"][number]),
        ]
        whole = by_id[f"dataset/{book}"]
        assert (item.groups, item.official_split) == (whole.groups, whole.official_split)


def test_a_book_of_a_table_gives_each_question_its_cover_and_its_fields(tmp_path: Path) -> None:
    row = {"image": {"bytes": b"cover", "path": None}, "set_name": "test", "genre": "Science"}
    rows = [
        {**row, "image_id": "6", "questions": ["a"], "answers": ["b"]},
        {**row, "image_id": "7", "questions": ["a", "b"], "answers": ["c", "d"]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    files = ("t.parquet",)
    request = request_for("ocr_vqa", tmp_path, annotations=files, images=files, questions="apart")
    made = list(ADAPTERS["ocr_vqa"].read(replace(request, filter_fields=("genre",))))
    assert ids(made) == ["t/6/0", "t/7/0", "t/7/1"]
    read = conversations(made)
    assert [item.images for item in read] == [(Image(name=f"{number}/image/0", store=0),) for number in (0, 1, 1)]
    assert [item.groups[0] for item in read] == ["images/6", "images/7", "images/7"]
    assert {(item.official_split, item.fields["genre"]) for item in read} == {("test", "Science")}


def test_a_bad_question_is_refused_alone_and_a_bad_book_as_one_record(tmp_path: Path) -> None:
    bad: dict[str, dict[str, Any]] = {
        "bad_value": {"answers": ["c"]},
        "no_answer": {"questions": [], "answers": []},
        "wrong_type": {"questions": "ab"},
        "image_path": {},
    }
    books = {reason: {**BOOK, **changed} for reason, changed in bad.items()}
    books["../image_path"] = books.pop("image_path")
    books["url"], books["split"] = {**BOOK, "imageURL": "http://["}, {**BOOK, "split": 4}
    questions, answers = ["a", "", "b", "c", 3, "e <video>"], ["a", "b", " ", "d", "e", "f"]
    made = apart(tmp_path, {**books, "1": {**BOOK, "questions": questions, "answers": answers}})
    assert rejects(made) == [
        ("bad_value", "bad_value"),
        ("no_answer", "no_answer"),
        ("wrong_type", "wrong_type"),
        ("../image_path", "image_path"),
        ("url", "bad_value"),
        ("split", "bad_value"),
        ("1/1", "empty_question"),
        ("1/2", "empty_answer"),
        ("1/4", "wrong_type"),
        ("1/5", "unread_media"),
    ]
    assert ids(made) == ["d/1/0", "d/1/3"]


def test_a_repeated_book_is_one_reject_or_has_ids_of_its_own(tmp_path: Path) -> None:
    book = json.dumps(BOOK)
    document = f'{{"1": {book}, "1/0": {book}, "1": {book}}}'
    made = apart(tmp_path, document)
    assert ids(made) == ["d/1/0", "d/1/1", "d/1/0/0", "d/1/0/1"]
    assert rejects(made) == [("1", "duplicate_id")]
    kept = ids(apart(tmp_path, document, duplicate_ids="keep"))
    assert kept[:4] == ids(made)
    assert len(set(kept)) == len(kept) == 6


def test_with_share_the_questions_of_a_cover_are_branches_of_one_sample(tmp_path: Path) -> None:
    entry = {"adapter": "ocr_vqa", "root": str(EXAMPLES), "options": {"questions": "apart"}}
    for name, share in (("shared", 8), ("alone", 1)):
        (tmp_path / name).mkdir()
        report = build(write_blend(tmp_path / name / "blend.yaml", [{**entry, "name": "ocr", "share": share}]))
        counts = report.datasets["ocr"]
        assert (counts.records, counts.members, counts.samples) == (12, 12, 3 if share == 8 else 12)
    shared, alone = (records_of(tmp_path / name / "build") for name in ("shared", "alone"))
    assert {name: record._replace(sample="") for name, record in shared.items()} == {
        name: record._replace(sample="") for name, record in alone.items()
    }
    opened = shards.open(tmp_path / "shared/build")
    built = [sample for split in opened.splits for sample in opened[split]]
    assert sorted(tuple(branch["id"] for branch in sample.metadata["branches"]) for sample in built) == [
        tuple(f"dataset/{book}/{number}" for number in range(4)) for book in ("0712345678", "0934120565", "1565847392")
    ]
    assert [len(sample.images) for sample in built] == [1, 1, 1]


def test_the_default_is_one_conversation_of_all_questions(tmp_path: Path) -> None:
    """Also that a bad question still refuses its whole book."""
    option = ADAPTERS["ocr_vqa"].options["questions"]
    assert (option.default, option.choices) == ("together", ("together", "apart"))
    made = adapted("ocr_vqa", tmp_path, {"d.json": {"1": BOOK, "2": {**BOOK, "answers": ["c", ""]}}})
    (item,) = conversations(made)
    assert (item.id, item.sources) == ("d/1", (RecordSource(file="d.json", record="1"),))
    assert spoken(item) == [
        ("user", (Image(name="1.png"), "a")),
        ("assistant", "c"),
        ("user", "b"),
        ("assistant", "d"),
    ]
    assert rejects(made) == [("2", "empty_answer")]
