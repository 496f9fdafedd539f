"""OCR-VQA: a book is one conversation about its cover, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Image
from tests.support.adapting import (
    adapted,
    conversations,
    rejects,
    request_for,
)
from tests.support.paths import EXAMPLES


def test_a_book_is_one_conversation_about_its_cover() -> None:
    made = conversations(list(ADAPTERS["ocr_vqa"].read(request_for("ocr_vqa", EXAMPLES))))
    assert [(item.id, item.official_split) for item in made] == [
        ("dataset/1565847392", "train"),
        ("dataset/0934120565", "val"),
        ("dataset/0712345678", "test"),
    ]
    assert made[0].turns[0].parts == (Image(name="1565847392.jpg"), "Who wrote this book?")
    assert [turn.parts[-1] for turn in made[0].turns[1::2]] == [
        "M. Sample",
        "Clocks and How They Slow",
        "Science & Math",
        "Yes",
    ]
    assert made[0].groups == ("images/1565847392.jpg",)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"answers": ["a"]}, "bad_value"),
        ({"questions": [], "answers": []}, "no_answer"),
        ({"questions": ["a", ""]}, "empty_question"),
        ({"answers": ["a", " "]}, "empty_answer"),
        ({"answers": ["a", None]}, "wrong_type"),
        ({"answers": "ab"}, "wrong_type"),
        ({"imageURL": 3}, "wrong_type"),
        ({"imageURL": "http://["}, "bad_value"),
        ({"split": True}, "bad_value"),
        ({"split": 4}, "bad_value"),
    ],
)
def test_a_bad_book_is_refused_with_its_reason(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    book = {"imageURL": "http://x/y.png?z=1", "questions": ["a", "b"], "answers": ["c", "d"], "split": 1}
    made = adapted("ocr_vqa", tmp_path, {"d.json": {"1": book, "2": {**book, **changed}}})
    assert rejects(made) == [("2", reason)]
    (item,) = conversations(made)
    assert isinstance(item, Conversation)
    assert item.images == (Image(name="1.png"),)


def test_a_repeated_book_is_refused(tmp_path: Path) -> None:
    book = '{"imageURL": "y.gif", "questions": ["a"], "answers": ["b"]}'
    assert rejects(adapted("ocr_vqa", tmp_path, {"d.json": f'{{"1": {book}, "1": {book}}}'})) == [("1", "duplicate_id")]
