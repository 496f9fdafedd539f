"""Damage in every container of records: cut off, a bad record amid good ones, columns of other types, many bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.parsing.record_files import read_records
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Reject
from preprocess.errors import DataError
from tests.support.adapting import Made, request_for
from tests.support.chat_records import why

TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
RECORDS: list[dict[str, Any]] = [{"id": str(number), "messages": TURNS} for number in range(40)]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def parquet(records: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), file, row_group_size=7)
    return file.getvalue()


def arrow(open_writer: Callable[..., Any]) -> bytes:
    table, file = pa.Table.from_pylist(RECORDS), io.BytesIO()
    with open_writer(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return file.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


WHOLE: dict[str, bytes] = {
    "array": json.dumps(RECORDS).encode(),
    "lines": LINES,
    "parquet": parquet(RECORDS),
    "stream": arrow(pa.ipc.new_stream),
    "file": arrow(pa.ipc.new_file),
    "tar": tar({f"{number}.json": json.dumps(record).encode() for number, record in enumerate(RECORDS)}),
}


def read(root: Path, data: bytes) -> Made:
    (root / "a").write_bytes(data)
    return list(ADAPTERS["chat"].read(request_for("chat", root, annotations=("a",), images=("a",))))


@pytest.mark.parametrize("container", WHOLE)
def test_a_file_that_is_cut_off_anywhere_is_named_and_never_read_as_a_shorter_one(
    tmp_path: Path, container: str
) -> None:
    """Lines have no end mark: a file that is cut off within a line has that line as a reject."""
    whole = WHOLE[container]
    assert len(read(tmp_path, whole)) == len(RECORDS)
    size = len(whole.rstrip(b"\0")) if container == "tar" else len(whole)  # the zeros after its members are padding
    for keep in (0.1, 0.35, 0.6, 0.85, 0.99):
        part = whole[: int(keep * size)]
        if container == "lines":
            made = read(tmp_path, part)
            assert [why(item) for item in made] == [""] * part.count(b"\n") + ["broken_json"]
        else:
            with pytest.raises(DataError, match="/a"):
                read(tmp_path, part)


def test_every_record_of_a_file_is_read_in_its_own_form_and_a_bad_one_alone_is_refused(tmp_path: Path) -> None:
    records = [
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]},
        {"question": "What?", "options": ["this", "that"], "answer": "B"},
        {"image": "a.jpg", "caption": "A cup."},
        {"image_1": "a.jpg", "image_2": "b.jpg", "query": "What?", "response": "That."},
        {"messages": 7},
        ["no", "object"],
        {"instruction": "What?", "output": "That."},
    ]
    expected = ["", "", "", "", "", "wrong_type", "wrong_type", ""]
    for text in (json.dumps(records), "\n".join(map(json.dumps, records))):
        assert [why(item) for item in read(tmp_path, text.encode())] == expected
    members = {f"{number}.json": json.dumps(record).encode() for number, record in enumerate(records)}
    assert [why(item) for item in read(tmp_path, tar(members))] == expected


COLUMNS: dict[str, pa.Array] = {
    "messages": pa.array([1, 2, 3]),
    "conversations": pa.array([{"from": "human"}] * 3),
    "question": pa.array([1.5, float("nan"), None]),
    "answer": pa.array([b"a", b"\xff", None]),
    "options": pa.array([{"x": 1}] * 3),
    "image": pa.array([1, 2, None], pa.int64()),
    "image_1": pa.array([[[b"a"]], [], None], pa.list_(pa.list_(pa.binary()))),
    "images": pa.array([["a.jpg", None]] * 3),
    "id": pa.array([True, None, False]),
    "system": pa.array([["a"], [], None]),
    "tools": pa.array(["{", "[1]", "x"]),
    "group": pa.array([0.5, 0.5, None]),
    "split": pa.array([1, 2, 3]),
    "caption": pa.array([{"en": "A cup."}] * 3),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_another_type_is_a_reject_of_its_rows(tmp_path: Path, column: str) -> None:
    good = {"question": ["What?"] * 3, "answer": ["That."] * 3} if column not in ("messages", "conversations") else {}
    pq.write_table(pa.table({**good, column: COLUMNS[column]}), tmp_path / "a.parquet")
    made = read(tmp_path, (tmp_path / "a.parquet").read_bytes())
    assert len(made) == 3
    refused = Counter(item.reason for item in made if isinstance(item, Reject))
    assert sum(refused.values()) >= 1 or column == "id"
    assert "internal_error" not in refused


@pytest.mark.parametrize("container", ["parquet", "stream", "file"])
def test_a_row_group_is_never_in_memory_as_a_whole(tmp_path: Path, container: str) -> None:
    """A row group of 3 GB in small: one of 32 MB, in pages of 1 MB, which is read with less than 8 MB."""
    image = bytes(range(256)) * 512
    table = pa.table({"id": list(range(250)), "image": pa.array([image[number:] for number in range(250)])})
    path = tmp_path / "a"
    if container == "parquet":
        # Pages end after so many rows, if they are large enough: a page is what a reader has as a whole.
        pq.write_table(table, path, row_group_size=len(table), use_dictionary=False, write_batch_size=8)
        assert pq.ParquetFile(path).num_row_groups == 1
    else:
        new_writer = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[container]
        with new_writer(path, table.schema) as writer:
            writer.write_table(table)
    del table
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        count = sum(len(record["image"]) > 0 for record in read_records(path, ("id", "image")))
    finally:
        pa.set_memory_pool(before)
    assert count == 250
    assert pool.max_memory() < 8_000_000
