"""The record that a sample was made from is found in every form of file, and in no file that a build does not pin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shards
from preprocess.errors import ConfigError, DataError
from preprocess.viewer.reject_images import images_of_record
from preprocess.viewer.source_records import SourceRecords, bases_of, find_record
from tests.support.small_blends import SAMPLES, build, chat_blend, chat_record, jpeg, write_blend


def test_every_sample_of_the_examples_finds_its_records(tmp_path: Path) -> None:
    layouts = {
        "llava": "llava",
        "captions": "coco_caption",
        "vqa": "vqa_v2",
        "aokvqa": "aokvqa",
        "ocr": "ocr_vqa",
        "minigpt4": "minigpt4",
        "scenes": "otter_mimicit_sn",
        "sparkles": "sparkles_dialogue",
    }
    datasets = [{"name": name, "adapter": adapter, "root": str(SAMPLES)} for name, adapter in layouts.items()]
    build(write_blend(tmp_path / "blend.yaml", datasets))
    opened = shards.open(tmp_path / "build")
    reader = SourceRecords(opened.manifest, (tmp_path,))
    seen = set()
    for split in opened.splits:
        for index in range(len(opened[split])):
            dataset, sample = opened[split].named(index)
            for source in sample.metadata["sources"]:
                record = reader.read(dataset, source["file"], source["record"])
                assert not record.fault, record
                assert record.text
                seen.add(dataset)
    assert seen == layouts.keys()


FORMS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "array": lambda records: json.dumps(records),
    "lines": lambda records: "\n".join(map(json.dumps, records)),
    "object with one array": lambda records: json.dumps({"version": 1, "data": records}),
    "object of records": lambda records: json.dumps({str(record["id"]): record for record in records}),
    "coco": lambda records: json.dumps({"images": [{"id": "b", "file_name": "x"}], "annotations": records}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_record_is_found_by_its_id_before_its_number(form: str, tmp_path: Path) -> None:
    records = [{"id": name, "image_id": "b", "text": f"record {name}"} for name in ("a", "2", "b")]
    path = tmp_path / "data.json"
    path.write_text(FORMS[form](records))
    for record in records:
        assert find_record(path, str(record["id"]))["text"] == record["text"]
    with pytest.raises(DataError, match="has no record nobody"):
        find_record(path, "nobody")


def test_a_question_of_a_book_shows_the_book_in_json_and_in_parquet(tmp_path: Path) -> None:
    cover = {"bytes": b"a cover", "path": None}
    books = {name: {"questions": [f"Who wrote {name}?"] * 3, "image": cover} for name in ("7", "x/0", "0", "x")}
    text = tmp_path / "dataset.json"
    text.write_text(json.dumps({name: {"questions": book["questions"]} for name, book in books.items()}))
    table = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([{"image_id": name, **book} for name, book in books.items()]), table)
    for path in (text, table):
        for record, name in {"7/2": "7", "0/1": "0", "x/2": "x", "x/0/2": "x/0", "0": "0", "x/0": "x/0"}.items():
            assert find_record(path, record)["questions"][0] == f"Who wrote {name}?", (path, record)
        for record in ("7/3", "8/0", "7/", "/0", "7/0/0"):
            with pytest.raises(DataError, match=f"has no record {record}"):
                find_record(path, record)


def test_a_row_of_a_table_is_shown_with_all_its_columns_and_the_images_inside(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    row = {
        "id": "a",
        "image": {"bytes": jpeg(0), "path": "0.jpg"},
        "question": "What?",
        "answer": "It.",
        "mood": "calm",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "mine/rows.parquet")
    build(write_blend(tmp_path / "blend.yaml", [{"name": "mine", "adapter": "chat", "root": "mine"}]))
    manifest = shards.open(tmp_path / "build").manifest
    shown = SourceRecords(manifest, (tmp_path,)).read("mine", "rows.parquet", "a")
    assert not shown.fault
    assert json.loads(shown.text) == {**row, "image": {"bytes": f"{len(jpeg(0)):,} bytes", "path": "0.jpg"}}
    (image,) = images_of_record(shown.value, manifest, "mine", (tmp_path,))
    assert (image.name, image.width, image.height, image.problem) == ("0.jpg", 32, 24, "")


def test_a_record_without_an_id_is_found_by_its_number_and_a_long_search_ends(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": number}) for number in range(9)))
    assert find_record(path, "7") == {"text": 7}
    with pytest.raises(DataError, match="is not among the first"):
        find_record(path, "7", budget_s=-1)


def test_long_texts_of_a_record_are_cut_with_their_length(tmp_path: Path) -> None:
    extra: dict[str, Any] = {
        "note": "a b " * 1250,
        "data": "data:image/png;base64," + "Ab+/" * 75 + "==",
        "brief": "a" * 199,
    }
    build(chat_blend(tmp_path, [chat_record(1, **extra)], dataset={"keys": dict.fromkeys(extra, "ignore")}))
    manifest = shards.open(tmp_path / "build").manifest
    text = SourceRecords(manifest, (tmp_path,)).read("mine", "chat.jsonl", "r1").text
    assert "a b … (1,000 more characters)" in text
    assert "b+/Ab… (264 more characters)" in text
    assert f'"brief": "{extra["brief"]}"' in text
    assert json.loads(text)["id"] == "r1"


def test_no_other_file_of_the_machine_is_read(tmp_path: Path) -> None:
    build(chat_blend(tmp_path, [chat_record(1)]))
    manifest = shards.open(tmp_path / "build").manifest
    reader = SourceRecords(manifest, (tmp_path,))
    assert "is not an input of the dataset" in reader.read("mine", "../blend.yaml", "0").fault
    assert "is not an input of the dataset" in reader.read("other", "chat.jsonl", "0").fault
    moved = SourceRecords(manifest, (tmp_path / "elsewhere",)).read("mine", "chat.jsonl", "r1")
    assert "name the blend file with --blend" in moved.fault
    chat = tmp_path / "mine/chat.jsonl"
    chat.write_bytes(chat.read_bytes().replace(b"record 1", b"record 2"))
    assert "it changed since" in SourceRecords(manifest, (tmp_path,)).read("mine", "chat.jsonl", "r1").fault


def test_the_folder_of_a_blend_that_is_named_is_the_only_one_looked_at(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [chat_record(1)])
    assert bases_of("s3://bucket/build", None) == (Path.cwd(),)
    assert bases_of(tmp_path / "a/build", None) == (Path.cwd(), tmp_path / "a", tmp_path / "a/build")
    assert bases_of(tmp_path / "build", blend) == (tmp_path,)
    with pytest.raises(ConfigError, match="there is no such file"):
        bases_of(tmp_path / "build", tmp_path / "absent.yaml")
