"""Large annotation files in object storage are cut and read in pieces there, by range requests."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.cut_datasets import small_parts
from tests.support.remote_inputs import build_of, put
from tests.support.small_blends import chat_record, write_chat

pytestmark = pytest.mark.usefixtures("builds_in_this_process")


@pytest.mark.parametrize("kind", ["lines", "array", "parquet", "arrow"])
def test_a_file_behind_a_url_is_read_in_pieces(tmp_path: Path, memory: str, kind: str) -> None:
    records = [chat_record(number) for number in range(30)]
    root = write_chat(tmp_path / "mine", records)
    name = {"lines": "chat.jsonl", "array": "all.json", "parquet": "all.parquet", "arrow": "all.arrow"}[kind]
    table = pa.Table.from_pylist(records)
    match kind:
        case "array":
            (root / name).write_text(json.dumps(records))
        case "parquet":
            pq.write_table(table, root / name, row_group_size=5)
        case "arrow":
            with pa.OSFile(str(root / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=5)
    _, expected = build_of(tmp_path, str(root), "whole", annotations=name)
    with small_parts(700):
        report, got = build_of(tmp_path, put(root, memory), "pieces", annotations=name)
    assert got == expected
    assert report.built_tasks > 4
