"""Images in Parquet files behind a URL, compared with those of the same file in a folder; nothing is copied."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.containers.remote_path import input_path
from preprocess.errors import DataError, RejectError
from preprocess.images import parquet_cells
from preprocess.images.archive_store import ArchiveStore
from preprocess.images.stores import open_store, prepare_store
from tests.support.remote_builds import flip, write_at
from tests.support.remote_inputs import build_of, counted, put
from tests.support.small_blends import jpeg

FILES = {f"{number}.jpg": jpeg(number) for number in range(40)}


def cell(name: str) -> dict[str, Any]:
    return {"bytes": FILES[name], "path": name}


def tables() -> Iterator[tuple[str, pa.Table]]:
    names = list(FILES)
    yield "struct", pa.table({"text": names, "image": [cell(name) for name in names]})
    lists = [[cell(name) for name in names[start : start + 3]] for start in range(0, 40, 3)]
    yield "lists", pa.table({"images": [*lists, None, []]})
    holes = [None, {"bytes": None, "path": "none.jpg"}, {"bytes": b"", "path": None}, cell("3.jpg"), cell("3.jpg")]
    yield "holes", pa.table({"image": holes, "image_2": [cell(name) for name in names[:5]]})
    yield "bytes", pa.table({"image": [FILES["0.jpg"], None, FILES["1.jpg"]], "other": [1, 2, 3]})
    no_path = pa.array([{"bytes": FILES["0.jpg"]}, None], pa.struct([("bytes", pa.binary())]))
    yield "no path", pa.table({"image": no_path})
    row_like = [{"bytes": FILES["0.jpg"], "path": "1/image/0"}, cell("1.jpg")]
    yield "row-like names", pa.table({"image": row_like})
    texts = [base64.b64encode(data).decode() for data in FILES.values()]
    yield "base64", pa.table({"base64": [*texts, "no base64!", None], "key": [*names, "broken", "none"]})
    yield "none", pa.table({"text": names})


CASES = dict(tables())


def opened(path: Path, cache: Path) -> ArchiveStore:
    prepare_store(path, cache)
    store = open_store(path, cache)
    assert isinstance(store, ArchiveStore)
    return store


def read(store: ArchiveStore, name: str) -> bytes | str:
    try:
        return store.read(name)
    except RejectError as error:
        return f"{error.reason}: {error.detail.replace(str(store.path), 'FILE')}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", [3, 1000])
def test_every_key_reads_as_from_a_local_file(tmp_path: Path, memory: str, case: str, group: int) -> None:
    pq.write_table(CASES[case], tmp_path / "a.parquet", row_group_size=group)
    url = f"{memory}/a.parquet"
    write_at(url, (tmp_path / "a.parquet").read_bytes())
    local = opened(tmp_path / "a.parquet", tmp_path / "local")
    remote = opened(input_path(tmp_path, url), tmp_path / "remote")
    names = [bytes(key).decode() for key in local.index.keys.to_pylist()]
    assert sorted(names) == sorted(bytes(key).decode() for key in remote.index.keys.to_pylist())
    random.Random(1).shuffle(names)
    for name in [*names, *names[:5], "missing"]:
        assert read(remote, name).__class__ is read(local, name).__class__
        if name != "missing":
            assert read(remote, name) == read(local, name)
    assert not list((tmp_path / "remote").rglob("*.blob"))


def test_the_index_reads_names_and_no_image(tmp_path: Path, memory: str) -> None:
    cells = [{"bytes": random.Random(number).randbytes(100_000), "path": f"{number}.jpg"} for number in range(64)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", row_group_size=32)
    write_at(f"{memory}/a.parquet", (tmp_path / "a.parquet").read_bytes())
    path = input_path(tmp_path, f"{memory}/a.parquet")
    with counted() as requests:
        store = opened(path, tmp_path / "cache")
    assert requests.bytes < 1 << 20
    with counted() as requests:
        for number in range(64):
            assert store.read(f"{number}.jpg") == cells[number]["bytes"]
    assert requests.bytes < 1.3 * path.stat().st_size


def test_few_batches_stay_in_memory(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_cells, "KEPT_BYTES", 50_000)
    cells = [{"bytes": bytes([number]) * 1000, "path": f"{number}.jpg"} for number in range(200)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    write_at(f"{memory}/a.parquet", (tmp_path / "a.parquet").read_bytes())
    store = opened(input_path(tmp_path, f"{memory}/a.parquet"), tmp_path / "cache")
    for number in [*range(200), *range(0, 200, 7)]:
        assert store.read(f"{number}.jpg")[0] == number
        (column,) = store.cells._columns.values()
        assert sum(values.nbytes for values in column._recent.values()) <= 50_000


@pytest.mark.usefixtures("builds_in_this_process")
@pytest.mark.parametrize("form", ["one image", "several images"])
def test_records_with_images_inside_are_built_from_a_url(tmp_path: Path, memory: str, form: str) -> None:
    names = list(FILES)[:12]
    messages = [
        {"role": "user", "content": "<image>" * (1 if form == "one image" else 2) + " What?"},
        {"role": "assistant", "content": "This."},
    ]
    several = [{"messages": messages, "images": [cell(name), cell(names[0])]} for name in names]
    single = [{"messages": messages, "image": cell(name)} for name in names]
    (tmp_path / "mine").mkdir()
    rows = single if form == "one image" else several
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine/a.parquet", row_group_size=5)
    _, expected = build_of(tmp_path, str(tmp_path / "mine"), "local")
    _, got = build_of(tmp_path, put(tmp_path / "mine", memory), "remote")
    assert got == expected


def test_a_file_that_was_replaced_after_it_was_indexed_is_an_error(tmp_path: Path, memory: str) -> None:
    pq.write_table(CASES["struct"], tmp_path / "a.parquet", row_group_size=10)
    data = (tmp_path / "a.parquet").read_bytes()
    write_at(f"{memory}/a.parquet", data)
    store = opened(input_path(tmp_path, f"{memory}/a.parquet"), tmp_path / "cache")
    write_at(f"{memory}/a.parquet", data)
    with pytest.raises(OSError, match="was written again since the build looked at it"):
        store.read("1.jpg")


def test_a_flipped_page_with_a_checksum_is_an_error_when_its_image_is_read(tmp_path: Path, memory: str) -> None:
    pq.write_table(CASES["struct"], tmp_path / "a.parquet", write_page_checksum=True, compression="none")
    data = (tmp_path / "a.parquet").read_bytes()
    write_at(f"{memory}/a.parquet", flip(data, data.index(FILES["5.jpg"]) + 100))
    store = opened(input_path(tmp_path, f"{memory}/a.parquet"), tmp_path / "cache")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet .*CRC"):
        store.read("5.jpg")
