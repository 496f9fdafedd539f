"""Records behind URLs, in every container, compared with those of the same files in a local folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shards
from preprocess.adapters.parsing import record_cuts
from preprocess.containers.remote_path import input_path
from preprocess.viewer.source_records import SourceRecords
from tests.support.remote_inputs import build_of, counted, dataset, put
from tests.support.small_blends import chat_record, write_chat

pytestmark = pytest.mark.usefixtures("builds_in_this_process")


@pytest.mark.parametrize("text", ["chat.jsonl", "chat.jsonl.gz", "chat.json", "chat.parquet", "chat.csv", "captions"])
def test_records_in_every_container_are_read_from_a_url(tmp_path: Path, memory: str, text: str) -> None:
    local = dataset(tmp_path / "mine", "folder")
    path = local / "chat.jsonl"
    lines = path.read_bytes()
    path.unlink()
    records = [json.loads(line) for line in lines.splitlines()]
    match text:
        case "chat.jsonl":
            path.write_bytes(lines)
        case "chat.jsonl.gz":
            (local / text).write_bytes(gzip.compress(lines))
        case "chat.json":
            (local / text).write_text(json.dumps(records))
        case "chat.parquet":
            pq.write_table(pa.Table.from_pylist(records), local / text, row_group_size=2)
        case "chat.csv":
            rows = [f'"photos/{number} é.jpg",Question?,Answer {number}' for number in range(3)]
            (local / text).write_text("\n".join(["image,question,answer", *rows]) + "\n")
        case "captions":
            for number in range(6):
                (local / f"folder/photos/{number} é.txt").write_text(f"Caption {number}.")
    settings = {"images": "folder", "prompt": "Describe it."} if text == "captions" else {"images": "folder"}
    annotations = "folder" if text == "captions" else text
    _, expected = build_of(tmp_path, str(local), "local", annotations=annotations, **settings)
    _, got = build_of(tmp_path, put(local, memory), "remote", annotations=annotations, **settings)
    assert got == expected


@pytest.mark.parametrize("text", ["chat.jsonl", "chat.json", "chat.parquet"])
def test_the_pieces_of_a_large_file_are_read_from_a_url_as_from_a_folder(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    local = tmp_path / "mine"
    local.mkdir()
    records = [chat_record(number, rounds=3) for number in range(60)]
    match text:
        case "chat.jsonl":
            write_chat(local, records)
        case "chat.json":
            (local / text).write_text(json.dumps(records))
        case _:
            pq.write_table(pa.Table.from_pylist(records), local / text, row_group_size=10)
    _, whole = build_of(tmp_path, str(local), "whole")
    monkeypatch.setattr(record_cuts, "PART_BYTES", 2000)
    parts = record_cuts.cut(input_path(tmp_path, put(local, memory)) / text)
    assert parts is not None
    assert len(parts) > 2
    _, got = build_of(tmp_path, memory, "remote")
    assert got == whole


def test_view_asks_no_other_machine_for_a_record(tmp_path: Path, memory: str) -> None:
    build_of(tmp_path, put(dataset(tmp_path / "mine", "folder"), memory), "out", images="folder")
    reader = SourceRecords(shards.open(tmp_path / "out").manifest, (tmp_path,))
    with counted() as requests:
        fault = reader.read("mine", "chat.jsonl", "r1").fault
    assert "chat.jsonl: is at memory://bucket/build; view shows records of local files" in fault
    assert not requests.names
