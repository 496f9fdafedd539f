"""JSON objects that are a record, or have the records of a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.parsing.record_files import read_records
from preprocess.errors import DataError

RECORDS: list[Any] = [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]
KEYS = ("id", "text")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("document", "records"),
    [
        (
            {"x1": {"text": "one"}, "x2": {"text": "two", "id": 7}},
            [{"id": "x1", "text": "one"}, {"id": 7, "text": "two"}],
        ),
        ({"version": 1, "info": {"a": 1}, "data": RECORDS}, RECORDS),
        ({"id": 3, "more": [1]}, [{"id": 3, "more": [1]}]),
    ],
    ids=["by id", "one array", "one record"],
)
def test_an_object_is_a_record_or_has_records_by_id_or_in_its_only_array(
    tmp_path: Path, document: dict[str, Any], records: list[Any]
) -> None:
    assert list(read_records(write(tmp_path / "a", json.dumps(document, indent=1).encode()), KEYS)) == records


def test_an_object_with_two_arrays_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'{"images": [{}], "annotations": [{}], "\\ud800": 1}')
    with pytest.raises(DataError, match=r"one JSON object with the keys images, annotations, \\ud800; expected a JSON"):
        read_records(path, KEYS)
