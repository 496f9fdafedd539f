"""A-OKVQA: the question asks why, the rationales are part of the answer, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.datasets.aokvqa import WHY
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Image
from preprocess.errors import DataError
from tests.support.adapting import (
    adapted,
    conversations,
    rejects,
    request_for,
    sample,
)
from tests.support.paths import EXAMPLES


def test_aokvqa_asks_why_and_answers_with_the_rationales() -> None:
    made = conversations(list(ADAPTERS["aokvqa"].read(request_for("aokvqa", EXAMPLES))))
    assert [item.id for item in made] == [f"aokvqa_v1p0_train/sA{number}" for number in (1, 2, 3)]
    image, words = made[2].turns[0].parts
    assert image == Image(name="000000000106.jpg")
    assert words in [f"Where will it go? {why}" for why in WHY]
    assert made[2].turns[1].parts == (
        "The answer is space. Because It is a rocket. It stands on a pad. Rockets fly to space.",
    )
    assert made[2].references == ("space",) * 10
    assert (made[2].groups, made[2].official_split) == (("coco:106",), "train")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"correct_choice_idx": 4}, "bad_value"),
        ({"correct_choice_idx": -1}, "bad_value"),
        ({"correct_choice_idx": True}, "bad_value"),
        ({"correct_choice_idx": 1.0}, "bad_value"),
        ({"choices": None}, "wrong_type"),
        ({"choices": [""] * 4}, "empty_answer"),
        ({"rationales": []}, "empty_answer"),
        ({"rationales": [None]}, "wrong_type"),
        ({"rationales": ["\ud800"]}, "bad_text"),
        ({"rationales": None, "correct_choice_idx": None}, "no_answer"),
        ({"direct_answers": "a"}, "wrong_type"),
        ({"question": " "}, "empty_question"),
        ({"image_id": "103"}, "wrong_type"),
        ({"split": "holdout"}, "bad_value"),
        ({"question_id": "sA1"}, "duplicate_id"),
    ],
)
def test_a_bad_aokvqa_record_is_refused_with_its_reason(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    (records,) = sample("aokvqa").values()
    made = adapted("aokvqa", tmp_path, {"a.json": [records[0], {**records[1], **changed}]})
    assert [name for _, name in rejects(made)] == [reason]


def test_the_test_split_of_aokvqa_is_refused_by_name(tmp_path: Path) -> None:
    record = {"split": "test", "image_id": 1, "question_id": "a", "question": "What?", "choices": ["a", "b"]}
    with pytest.raises(DataError, match=r"aokvqa_v1p0_test\.json: is the test split"):
        adapted("aokvqa", tmp_path, {"aokvqa_v1p0_test.json": [record]})
