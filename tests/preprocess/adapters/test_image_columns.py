"""Records with several images, each under a key or in a column of its own; and questions with options, as in MMMU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.base import Request
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Image
from preprocess.errors import DataError
from preprocess.images.stores import open_stores, prepare_store
from tests.support.adapting import Made, adapted, rejects, request_for
from tests.support.chat_records import ONE, TWO, read_chat, spoken, why

ASKED = {"question": "What?", "answer": "That."}


def file(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def request_of_table(root: Path, records: list[dict[str, Any]], keys: Mapping[str, str | None]) -> Request:
    pq.write_table(pa.Table.from_pylist(records), root / "t.parquet")
    request = request_for("chat", root, annotations=("t.parquet",), images=("t.parquet",))
    return replace(request, keys=keys)


def read_table(root: Path, records: list[dict[str, Any]], **keys: str | None) -> Made:
    return list(ADAPTERS["chat"].read(request_of_table(root, records, keys)))


def test_a_question_of_mmmu_has_its_images_at_their_numbers_and_its_options_below_it(tmp_path: Path) -> None:
    images = {f"image_{number}": file(b"%d" % number) if number < 3 else None for number in range(1, 8)}
    record = {
        "id": "validation_Art_1",
        "question": "Which is older, <image 2> or this?",
        "options": "['The first', \"<image 1>'s\"]",
        "answer": "B",
        "explanation": "",
        **images,
    }
    request = request_of_table(tmp_path, [record], {})
    (item,) = ADAPTERS["chat"].read(request)
    first, second = (Image(name=f"0/image_{number}/0", store=0) for number in (1, 2))
    asked = ("Which is older, ", second, " or this?\nA. The first\nB. ", first, "'s")
    assert spoken(item) == [("user", asked), ("assistant", "B")]
    assert request.tally.ignored_keys == {"explanation": 1}
    prepare_store(request.images[0], tmp_path / "cache")
    assert open_stores(request.images, tmp_path / "cache").read(second) == b"2"


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        (["red", "blue"], "B", "What?\nA. red\nB. blue"),
        ('["red", "blue"]', "(B)", "What?\nA. red\nB. blue"),
        ({"A": "red", "B": "blue", "C": None}, "blue", "What?\nA. red\nB. blue"),
        (["A. red", "B. blue"], "A.", "What?\nA. red\nB. blue"),
        ("[]", "blue", "What?"),
        ([], "blue", "What?"),
    ],
)
def test_options_have_letters_and_the_answer_stays_as_it_is(
    tmp_path: Path, options: Any, answer: str, expected: str
) -> None:
    for key in ("options", "choices"):
        (item,) = read_chat(tmp_path, {"question": "What?", key: options, "answer": answer})
        assert spoken(item) == [("user", expected), ("assistant", answer)]


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        (["red", "blue"], "C", "bad_value"),
        (["red", "blue"], 1, "bad_value"),
        (["red", 2], "A", "wrong_type"),
        ({"A": "red", "C": "blue"}, "A", "bad_value"),
        ("red or blue", "A", "wrong_type"),
        ("[" * 70_000, "A", "wrong_type"),
        (["x"] * 27, "A", "bad_value"),
        ("[]", "['red', 'blue']", "bad_value"),
    ],
)
def test_options_without_a_clear_answer_are_refused(tmp_path: Path, options: Any, answer: Any, reason: str) -> None:
    assert [why(item) for item in read_chat(tmp_path, {**ASKED, "options": options, "answer": answer})] == [reason]


def test_numbered_keys_are_the_images_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for keys in (("image_1", "image_2"), ("image0", "image1"), ("photo-01", "photo-02"), ("image", "image_2")):
        (item,) = read_chat(tmp_path, {keys[1]: "2.jpg", keys[0]: "1.jpg", **ASKED})
        assert spoken(item)[0] == ("user", (ONE, TWO, "What?")), keys
    many = {f"image_{number}": f"{number}.jpg" for number in (11, 2, 1, 10, *range(3, 10))}
    (item,) = read_chat(tmp_path, {**many, **ASKED})
    assert why(item) == "too_many_images"
    nine = {f"image_{number}": [f"{number}.jpg"] for number in range(8, 0, -1)}
    (item,) = read_chat(tmp_path, {**nine, "image_9": None, **ASKED})
    assert [image.name for image in item.images] == [f"{number}.jpg" for number in range(1, 9)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "images",
    [
        {"image_1": "1.jpg", "image_3": "3.jpg"},
        {"image_2": "2.jpg"},
        {"image": "0.jpg", "image_1": "1.jpg"},
        {"images": ["0.jpg"], "image_2": "2.jpg"},
        {"image_1": "1.jpg", "photo_2": "2.jpg"},
        {"image_1": ["1.jpg", "2.jpg"]},
    ],
)
def test_numbers_that_leave_the_order_open_are_refused(tmp_path: Path, images: dict[str, Any]) -> None:
    assert [why(item) for item in read_chat(tmp_path, {**images, **ASKED})] == ["image_count"]


def test_an_adapter_of_one_image_refuses_a_second_one(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    record = {"id": "1", "image": "1.jpg", "image_2": "2.jpg", "conversations": turns}
    assert rejects(adapted("llava", tmp_path, {"a.json": [record]}, images=(".",))) == [("1", "unknown_key")]


def test_columns_of_images_under_other_names_need_an_order_from_the_blend(tmp_path: Path) -> None:
    record = {"before": file(b"b"), "after": file(b"a"), **ASKED}
    with pytest.raises(DataError) as caught:
        read_table(tmp_path, [record])
    assert "t.parquet: the columns before, after hold images" in str(caught.value)
    assert "fields: {before: image_1, after: image_2}, or leave one out, such as keys: {before: ignore}" in str(
        caught.value
    )
    before, after = (Image(name=f"0/{name}/0", store=0) for name in ("before", "after"))
    (item,) = read_table(tmp_path, [record], before="image_2", after="image_1")
    assert spoken(item)[0] == ("user", (after, before, "What?"))
    (item,) = read_table(tmp_path, [record], before=None, after="image")
    assert spoken(item)[0] == ("user", (after, "What?"))


def test_plain_bytes_next_to_an_image_are_an_ignored_column(tmp_path: Path) -> None:
    request = request_of_table(tmp_path, [{"image": b"i", "vector": b"v", **ASKED}] * 20, {})
    assert len(list(ADAPTERS["chat"].read(request))) == 20
    assert request.tally.ignored_keys == {"vector": 20}
