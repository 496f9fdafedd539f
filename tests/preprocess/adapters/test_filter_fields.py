"""Fields for `filter:`: every adapter passes on what its records say, by the names in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.base import Tally
from preprocess.adapters.registry import ADAPTERS
from preprocess.compiler.ingest import ingest_task, run_ingest
from preprocess.compiler.unknown_names import check_fields
from preprocess.conversation import Conversation
from preprocess.errors import DataError
from preprocess.filters.record_rules import record_check
from preprocess.filters.rules import FieldRule, Filter
from tests.support.adapting import conversations, keyed, request_for, written
from tests.support.paths import ROOT

CAPTIONS = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480, "license": 3}],
    "annotations": [{"id": 7, "image_id": 1, "caption": "A kettle."}],
}
TEXT_VQA = {"question_id": 1, "image_id": "a", "question": "What?", "answers": ["x"], "image_width": 640}
VIZWIZ = {"image": "a.jpg", "question": "What?", "answers": [{"answer": "x"}], "answer_type": "other", "answerable": 1}


def read(name: str, root: Path, documents: Mapping[str, Any], *fields: str) -> list[Conversation]:
    """The conversations that an adapter makes of documents for a filter over these fields."""
    written(root, documents)
    request = replace(request_for(name, root, annotations=tuple(documents)), filter_fields=fields)
    made = conversations(list(ADAPTERS[name].read(request)))
    assert made
    return made


def instruction(number: int, **more: Any) -> dict[str, Any]:
    related = [f"SD_INS_{other}" for other in (1, 2) if other != number]
    return {"instruction": "What?", "answer": "That.", "image_ids": ["SD_IMG_1"], "rel_ins_ids": related, **more}


def test_every_adapter_passes_on_a_key_that_somebody_added_to_the_records(tmp_path: Path) -> None:
    for name in ADAPTERS:
        made = read(name, tmp_path / name, keyed(name, "my score", 0.5), "my score")
        values = [one.fields["my score"] for one in made if "my score" in one.fields]
        assert any(0.5 in (value if isinstance(value, tuple) else (value,)) for value in values), name


def test_a_dataset_without_a_filter_has_no_fields(tmp_path: Path) -> None:
    for name in ("vqa_v2", "coco_caption", "otter_mimicit_sd"):
        assert not any(one.fields for one in read(name, tmp_path / name, keyed(name, "score", 1)))


@pytest.mark.parametrize(
    ("name", "documents", "fields"),
    [
        ("coco_caption", {"a.json": CAPTIONS}, {"id": 7, "width": 640, "height": 480, "license": 3}),
        ("vqa_v2", {"a.json": {"data": [TEXT_VQA]}}, {"image_width": 640, "image_id": "a"}),
        ("vqa_v2", {"a.json": [VIZWIZ]}, {"answer_type": "other", "answerable": 1}),
        (
            "vqa_v2",
            {
                "q.json": {"questions": [{"question_id": 1, "image_id": 2, "question": "Is it?", "level": 3}]},
                "a.json": {
                    "annotations": [{"question_id": 1, "multiple_choice_answer": "yes", "answer_type": "yes/no"}]
                },
            },
            {"answer_type": "yes/no", "level": 3, "multiple_choice_answer": "yes"},
        ),
        ("minigpt4", {"a.json": {"annotations": [{"image_id": "2", "caption": "A bird."}]}}, {"caption": "A bird."}),
    ],
    ids=["coco", "textvqa", "vizwiz", "vqa", "minigpt4"],
)
def test_fields_are_those_of_all_objects_that_a_record_consists_of(
    name: str, documents: dict[str, Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    (one,) = read(name, tmp_path, documents, *fields)
    assert one.fields == fields


def test_a_rule_has_to_hold_for_every_record_of_a_conversation(tmp_path: Path) -> None:
    data = {"SD_INS_1": instruction(1, score=5), "SD_INS_2": instruction(2, score=2)}
    (one,) = read("otter_mimicit_sd", tmp_path, {"a.json": {"data": data}}, "score")
    assert one.fields == {"score": (5, 2)}
    assert record_check(Filter(fields={"score": FieldRule(min=2)}))(one) is None
    broken = record_check(Filter(fields={"score": FieldRule(min=3)}))(one)
    assert str(broken) == "fields.score: got 2; expected at least 3"
    del data["SD_INS_2"]["score"]
    (one,) = read("otter_mimicit_sd", tmp_path, {"a.json": {"data": data}}, "score")
    assert record_check(Filter(fields={"score": FieldRule(min=3, missing="keep")}))(one) is None
    assert record_check(Filter(fields={"score": FieldRule(min=3)}))(one) is not None


def test_a_field_that_no_record_has_is_an_error_that_lists_those_that_exist(tmp_path: Path) -> None:
    rules = Filter(fields={"licence": FieldRule(any_of=(3,), missing="keep")})
    written(tmp_path, {"a.json": CAPTIONS})
    request = replace(request_for("coco_caption", tmp_path, annotations=("a.json",)), filter_fields=("licence",))
    done = run_ingest(ingest_task("mine", "coco_caption", request, tmp_path / "cache", None, rules=rules))
    assert done.error == (
        "dataset mine: filter.fields.licence: no record has the key licence; did you mean license?; expected one of "
        "caption, file_name, height, id, image_id, license, width"
    )


def test_a_field_with_null_in_every_record_is_not_unknown() -> None:
    tally = Tally()
    check_fields(tally, ("rating",))  # nothing was read
    tally.fields({"id": 1, "rating": None}, ("rating",))
    check_fields(tally, ("rating",))
    with pytest.raises(DataError, match=r"no record has the key other; expected one of id$"):
        check_fields(tally, ("rating", "other"))


def test_the_page_of_filters_names_fields_of_every_adapter() -> None:
    page = (ROOT / "docs/filters-and-splits.md").read_text(encoding="utf-8")
    rows = page.split("| adapter | fields |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    listed = [name.strip(" `") for row in rows for name in row.split("|")[1].split(",")]
    assert sorted(listed) == sorted(ADAPTERS)
