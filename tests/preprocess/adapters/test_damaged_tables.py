"""Damage of tables that pyarrow reports in its own ways: one line with the file's name."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.parsing.record_tables import table_records
from preprocess.containers.table_damage import damage_named
from preprocess.errors import DataError


def test_a_column_whose_name_is_not_utf_8_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["Why?"], "answer": ["So."]}), path)
    path.write_bytes(path.read_bytes().replace(b"question", b"quest\xeeon"))
    with pytest.raises(
        DataError, match=r"^\S*a\.parquet: cannot be read as Parquet \(.*: it is damaged or cut off; .*$"
    ):
        list(table_records(path, "Parquet", {"answer"}))


@pytest.mark.parametrize(
    "error",
    [pa.ArrowInvalid("one\ntwo"), pa.ArrowNotImplementedError("one\n  two"), pa.ArrowKeyError("one two"),
     OSError("one\ntwo.\n"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "one\ntwo")],
)  # fmt: skip
def test_damage_is_one_line(error: Exception) -> None:
    line = r"\Aa/b: cannot be read as an Arrow file \(.*one two.*\): it is damaged [^\n]*\Z"
    with pytest.raises(DataError, match=line), damage_named(Path("a/b"), "an Arrow file"):
        raise error


def test_a_fault_of_a_disk_or_a_network_is_not_damage() -> None:
    with pytest.raises(OSError, match="Input/output error"), damage_named(Path("a/b"), "Parquet"):
        raise OSError(errno.EIO, "Input/output error")
