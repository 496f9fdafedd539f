"""Tables and tars in pieces come out as from one task."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.adapting import request_for
from tests.support.cut_datasets import (
    check_same,
    small_parts,
    talk,
    text_of,
)
from tests.support.small_blends import jpeg


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_are_cut_between_row_groups_and_record_batches(tmp_path: Path, kind: str) -> None:
    rows = [
        {**talk(number), "images": [{"bytes": jpeg(number), "path": None}], "other": number} for number in range(30)
    ]
    for row in rows:
        row["messages"][0]["content"] = "<image>\nWhat?"
    table = pa.Table.from_pylist(rows)
    root = tmp_path / "mine"
    root.mkdir()
    if kind == "parquet":
        pq.write_table(table, root / "a.parquet", row_group_size=4)
    else:
        with pa.OSFile(str(root / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    request = request_for("chat", root, annotations=("*",), images=("*",))
    with small_parts(5000):
        ingested, tasks = check_same(request, tmp_path)
    assert ingested.conversations == 30
    assert ingested.ignored_keys == {"other": 30}
    assert tasks > 2


Members = list[tuple[str, bytes]]


def tar_of(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> None:
    """A member whose name ends with a slash is a folder, one with the content b"link" a link."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            elif data == b"link":
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


def sample(number: int, folder: str = "") -> Members:
    name = f"{folder}{number:04d}"
    record = talk(number, id=f"s{number % 20}")
    return [(f"{name}.jpg", jpeg(number)), (f"{name}.json", text_of(record))]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_cut_between_samples(tmp_path: Path, form: int) -> None:
    members: Members = [("x/", b"")]
    for number in range(25):
        members += sample(number, "x/" + "long" * 30 * (number % 4 == 0 and form != tarfile.USTAR_FORMAT))
    others = [("y/", b""), ("no-extension", b"1"), ("alone.jpg", jpeg(1)), ("link.json", b"link"), ("z.json", b"{")]
    members[9:9] = others
    tar_of(tmp_path / "mine/a.tar", [*members, ("w/", b"")], form)
    request = request_for("chat", tmp_path / "mine", annotations=("*",), images=("*",))
    with small_parts(1000):
        ingested, tasks = check_same(request, tmp_path)
    assert ingested.conversations == 20
    assert ingested.rejects["duplicate_id"] == 5
    assert tasks > 8


def test_a_tar_whose_samples_are_mixed_or_damaged_is_read_whole(tmp_path: Path) -> None:
    members = [member for number in range(12) for member in sample(number)]
    mixed = sorted(members, key=lambda member: member[0].endswith(".json"))
    for index, (order, damage) in enumerate([(mixed, 0), (members, 3000), (members, -3000), (members, 700)]):
        path = tmp_path / f"mine{index}/a.tar"
        tar_of(path, order)
        if damage:
            data = path.read_bytes()
            path.write_bytes(data[:damage] + (b"" if damage < 0 else bytes(40) + data[damage + 40 :]))
        request = request_for("chat", path.parent, annotations=("*",), images=("*",))
        with small_parts(1000):
            check_same(request, tmp_path)
