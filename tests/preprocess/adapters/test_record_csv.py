"""Tables of text, CSV and TSV: a row is a record, and a bad row is refused alone."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from preprocess.adapters.parsing import record_csv
from preprocess.adapters.parsing.record_files import read_records
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.errors import DataError

KEYS = ("id", "text")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_text_has_a_record_for_each_row(tmp_path: Path, separator: str) -> None:
    rows = [["id", "text"], ["1", "one"], [], ["2", '"zwei,\n; und ""drei""\t"'], ["", ""]]
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf" + "\r\n".join(map(separator.join, rows)).encode())
    expected = [{"id": "1", "text": "one"}, {"id": "2", "text": 'zwei,\n; und "drei"\t'}, {"id": "", "text": ""}]
    assert list(read_records(path, KEYS)) == expected
    packed = write(tmp_path / "a.csv.gz", gzip.compress(path.read_bytes()))
    assert list(read_records(packed, KEYS)) == expected


def test_a_bad_row_of_a_table_of_text_is_unreadable_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b',id,text\n0,1\n1,2,"x"y\n2,3,\xff\n3,4,"two\nlines"\n4,5,6,7\n')
    first, second, third, fourth, fifth = read_records(path, KEYS)
    assert isinstance(first, UnreadableRecord)
    assert first.detail == "line 2 has 2 cells; expected 3, one for each column"
    assert isinstance(second, UnreadableRecord)
    assert second.detail.startswith("line 3: ")
    assert third == {"unnamed": "2", "id": "3", "text": "\udcff"}  # whoever reads the text refuses it
    assert fourth == {"unnamed": "3", "id": "4", "text": "two\nlines"}
    assert isinstance(fifth, UnreadableRecord)
    assert fifth.detail.startswith("line 7 has 4 cells")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"price,weight\n1,2\n", r"columns price, weight, none of which is read; .* map your names in `fields`"),
        (b"id,text,id\n1,2,3\n", r"names a column twice: id, text, id; expected a name for each"),
        (b"just words\n", r"neither a JSON array nor JSON lines, nor CSV or TSV"),
        (b'id,text\n1,"2\n3,4\n', r"a\.csv, line 2: a quotation mark is opened and not closed"),
    ],
    ids=["other columns", "a name twice", "no table", "open quotation mark"],
)
def test_a_table_of_text_that_cannot_be_read_is_named_with_its_reason(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list(read_records(write(tmp_path / "a.csv", data), KEYS))


def test_a_long_cell_is_read_and_an_endless_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tsv", b"id\ttext\n1\t" + b"x" * 200_000 + b"\n")
    (record,) = read_records(path, KEYS)
    assert len(record["text"]) == 200_000
    monkeypatch.setattr(record_csv, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(DataError, match="line 2: a cell has more than 1000 bytes"):
        list(read_records(path, KEYS))
