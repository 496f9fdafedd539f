"""OCR-VQA as Parquet of the hub: the cover is in the row, and the columns have names of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.base import Request
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.inputs import find_inputs
from preprocess.blend.load import load_blend
from preprocess.conversation import Image
from preprocess.errors import DataError
from tests.support.adapting import conversations, rejects, request_for
from tests.support.chat_records import spoken, why
from tests.support.small_blends import write_blend

BOOK: dict[str, Any] = {
    "image": {"bytes": b"cover", "path": "0123.jpg"},
    "image_id": "0123",
    "questions": ["Who wrote this?", "What is the title?"],
    "answers": ["A. Sample", "Clocks"],
    "ocr_tokens": ["CLOCKS"],
    "ocr_info": [{"word": "CLOCKS", "bounding_box": {"width": 0.5, "top_left_x": 0.1}}],
    "title": "Clocks",
    "authorName": "A. Sample",
    "genre": "Science",
    "image_width": 10,
    "image_height": 20,
    "image_url": "http://example.org/images/0123.01.jpg",
    "set_name": "train",
}


def request_of(root: Path, rows: list[dict[str, Any]], **options: Any) -> Request:
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.Table.from_pylist([{**names, **row} for row in rows]), root / "train-0.parquet")
    return request_for("ocr_vqa", root, annotations=("train-0.parquet",), images=("train-0.parquet",), **options)


def test_a_book_of_a_table_is_one_conversation_with_the_cover_that_it_holds(tmp_path: Path) -> None:
    request = request_of(tmp_path, [BOOK, {**BOOK, "image_id": "2", "set_name": "validation"}])
    first, second = conversations(list(ADAPTERS["ocr_vqa"].read(request)))
    assert spoken(first) == [
        ("user", (Image(name="0/image/0", store=0), "Who wrote this?")),
        ("assistant", "A. Sample"),
        ("user", "What is the title?"),
        ("assistant", "Clocks"),
    ]
    assert [(item.id, item.official_split) for item in (first, second)] == [
        ("train-0/0123", "train"),
        ("train-0/2", "val"),
    ]
    assert request.tally.ignored_keys["ocr_info"] == 2
    # The group of the same cover in the authors' JSON, and that of its bytes.
    assert first.groups[0] == "images/0123.jpg"
    assert first.groups[1] == second.groups[1]


def test_a_cover_by_url_is_left_to_fetch(tmp_path: Path) -> None:
    (item,) = ADAPTERS["ocr_vqa"].read(request_of(tmp_path, [BOOK], image="url"))
    assert conversations([item])[0].images == (Image(name=BOOK["image_url"]),)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": None}, "image_missing"),
        ({"image_id": None}, "wrong_type"),
        ({"questions": ["Who?"]}, "bad_value"),
        ({"answers": None}, "wrong_type"),
        ({"answers": ["A", ""]}, "empty_answer"),
        ({"image_id": "../x"}, "image_path"),
        ({"image_url": "http://["}, "bad_value"),
        ({"set_name": "other"}, "bad_value"),
        ({"video": "a.mp4"}, "unknown_key"),
    ],
)
def test_a_bad_row_is_refused_amid_good_ones(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    rows = [BOOK, {**BOOK, "image_id": "bad", **changed}, {**BOOK, "image_id": "good"}]
    made = list(ADAPTERS["ocr_vqa"].read(request_of(tmp_path, rows)))
    assert [why(item) for item in made] == ["", reason, ""]


def test_the_folder_of_the_hub_needs_no_names_and_other_containers_are_named(tmp_path: Path) -> None:
    (tmp_path / "OCR-VQA/data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([BOOK]), tmp_path / "OCR-VQA/data/train-0.parquet")
    entries = [{"name": "books", "adapter": "ocr_vqa"}]
    entries.append({"name": "named", "adapter": "ocr_vqa", "annotations": "OCR-VQA/data/*.parquet"})
    inputs = find_inputs(load_blend(write_blend(tmp_path / "blend.yaml", entries)), tmp_path)
    expected = (tmp_path / "OCR-VQA/data/train-0.parquet",)
    assert all(found.annotations == found.images == expected for found in inputs.values())
    (tmp_path / "a.tar").write_bytes(bytes(257) + b"ustar")
    with pytest.raises(DataError, match=r"a\.tar: is a tar; expected dataset\.json"):
        list(ADAPTERS["ocr_vqa"].read(request_for("ocr_vqa", tmp_path, annotations=("a.tar",))))


def test_chat_names_the_adapter_that_reads_it(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([BOOK]), tmp_path / "t.parquet")
    made = list(ADAPTERS["chat"].read(request_for("chat", tmp_path, annotations=("t.parquet",), images=("t.parquet",))))
    assert rejects(made) == [("0", "missing_key")]
    assert "use the adapter ocr_vqa" in str(made)
