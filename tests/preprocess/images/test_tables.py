"""Images in Parquet and Arrow files: keys, kinds of columns, and files that are no store."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.errors import DataError, RejectError
from preprocess.images import index_cache as store_cache
from preprocess.images import tables
from preprocess.images.stores import (
    prepare_store,
)
from tests.support.image_archives import (
    KINDS,
    as_hugging_face_parquet,
    kept,
    opened,
    reason,
)


def test_hugging_face_rows_with_lists_and_gaps_are_keyed_by_row_and_place(tmp_path: Path) -> None:
    cells = [
        [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": "two.jpg"}],
        None,
        [],
        [None, {"bytes": b"3", "path": ""}],
        [{"bytes": None, "path": "elsewhere.jpg"}, {"bytes": b"4", "path": "0/images/0"}],
        [{"bytes": b"5", "path": "same.jpg"}, {"bytes": b"6", "path": "same.jpg"}],
    ]
    pq.write_table(pa.table({"images": cells, "mask": [b"m"] * 6}), tmp_path / "a.parquet", row_group_size=2)
    store = opened(tmp_path / "a.parquet")
    expected = {"0/images/0": b"1", "0/images/1": b"2", "two.jpg": b"2", "3/images/1": b"3"}
    expected |= {"4/images/1": b"4", "5/images/0": b"5", "5/images/1": b"6"}
    assert {key: store.read(key) for key in expected} == expected
    missing = ("1/images/0", "3/images/0", "6/images/0", "0/mask/0")
    assert [reason(store, key) for key in missing] == ["image_missing"] * 4
    assert [reason(store, key) for key in ("4/images/0", "elsewhere.jpg", "same.jpg")] == ["image_unreadable"] * 3


def test_plain_and_listed_bytes_are_images_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"1", None, b"3"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"views": [[b"1", b"2"], [b"3"]], "x": [1, 2]}), tmp_path / "b.parquet")
    assert opened(tmp_path / "a.parquet").read("2/image/0") == b"3"
    assert opened(tmp_path / "b.parquet").read("0/views/1") == b"2"


def test_every_column_of_images_is_in_the_store_and_bytes_under_another_name_only_without_one(tmp_path: Path) -> None:
    def images_in(**columns: Any) -> dict[str, str]:
        """The columns with images of one row, each named by what its image holds."""
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        store = opened(tmp_path / "a.parquet")
        found = {}
        for name in columns:
            with contextlib.suppress(RejectError):
                found[name] = store.read(f"0/{name}/0").decode()
        return found

    fixed = pa.array([b"3"], pa.binary(1))
    file = [{"bytes": b"1", "path": None}]
    assert images_in(before=file, after=[[b"2"]], photo_3=fixed, vector=[b"4"]) == {"before": "1", "photo_3": "3"}
    assert images_in(left=[b"l"], right=[b"r"], x=[1]) == {"left": "l", "right": "r"}


def test_mimic_it_keys_come_from_the_pandas_index_or_a_text_column(tmp_path: Path) -> None:
    texts = ["AAAA", "not base64!", None]
    pandas = json.dumps({"index_columns": ["name"]}).encode()
    indexed = pa.table({"note": ["n"] * 3, "base64": texts, "name": ["a", "b", "c"]})
    pq.write_table(indexed.replace_schema_metadata({"pandas": pandas}), tmp_path / "a.parquet")
    ranged = json.dumps({"index_columns": [{"kind": "range"}]}).encode()
    column = pa.table({"key": ["a", "b", "c"], "base64": pa.array(texts).dictionary_encode()})
    pq.write_table(column.replace_schema_metadata({"pandas": ranged}), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        store = opened(tmp_path / name)
        assert store.read("a") == b"\0\0\0"
        assert [reason(store, key) for key in "bc"] == ["image_unreadable"] * 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"base64": ["AAAA"], "x": [1]}), "column base64 has no keys"),
        (pa.table({"base64": ["AAAA"], "x": [None]}), "expected them in the pandas index or in a text column"),
    ],
)
def test_a_parquet_file_without_clear_images_is_a_data_error(table: pa.Table, message: str, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        prepare_store(tmp_path / "a.parquet", tmp_path / "cache")


def test_a_parquet_file_without_any_images_is_an_empty_store(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "x": [1]}), tmp_path / "a.parquet")
    assert reason(opened(tmp_path / "a.parquet"), "0/image/0") == "image_missing"


def test_a_cut_off_parquet_file_is_a_data_error(tmp_path: Path) -> None:
    as_hugging_face_parquet(tmp_path / "a.parquet", {f"{number}": os.urandom(1000) for number in range(50)})
    whole = (tmp_path / "a.parquet").read_bytes()
    for data in (whole[:-5], whole[: len(whole) // 2], whole[:5000] + bytes(9000) + whole[14000:]):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.parquet"):
            prepare_store(tmp_path / "a.parquet", tmp_path / "cache")
    assert kept(tmp_path / "cache") == set()


def test_every_kind_of_archive_is_known_by_its_content(files: dict[str, bytes], tmp_path: Path) -> None:
    names = {
        "base64.json": "json",
        "stored.zip": "zip",
        "plain.tar": "tar",
        "hf.parquet": "parquet",
        "hf.arrow": "arrow",
    }
    for kind, name in names.items():
        KINDS[kind](tmp_path / "data.bin", files)
        assert store_cache._kind(tmp_path / "data.bin", (tmp_path / "data.bin").read_bytes()[:65536]).name == name
    assert {kind.name for kind in store_cache.ARCHIVES} == set(names.values())
    assert {kind.unpack for kind in store_cache.ARCHIVES} == {tables.unpack_parquet, tables.unpack_arrow, None}


def test_an_arrow_file_is_read_a_few_rows_at_a_time_whatever_its_batches_are(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": bytes([number]), "path": None} for number in range(40)]})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=25)
    store = opened(tmp_path / "a.arrow")
    assert [store.read(f"{row}/image/0") for row in range(40)] == [bytes([number]) for number in range(40)]
