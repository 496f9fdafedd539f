"""Damage of Parquet files of images: base64 texts, names that are not UTF-8, metadata, and lost rows."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.parsing.record_tables import table_records
from preprocess.containers.remote_path import input_path
from preprocess.containers.tables import sizes_of_pieces
from preprocess.errors import DataError, RejectError
from preprocess.images.stores import ImageStore, open_store, prepare_store
from tests.support.remote_builds import write_at
from tests.support.small_blends import jpeg

IMAGES = [jpeg(number, (8, 8)) for number in range(6)]
TEXTS = [base64.b64encode(image).decode() for image in IMAGES]
MIMIC_IT = pa.table({"__index_level_0__": [f"k{number}" for number in range(len(IMAGES))], "base64": TEXTS})


def opened(path: Path, folder: Path) -> ImageStore:
    prepare_store(path, folder / "cache")
    return open_store(path, folder / "cache")


def opened_remotely(path: Path, folder: Path) -> ImageStore:
    """The same file behind a URL, where images are read by cells."""
    write_at(f"memory://tables{path}", path.read_bytes())
    return opened(input_path(folder, f"memory://tables{path}"), folder)


both = pytest.mark.parametrize("open_it", [opened, opened_remotely])


def outcomes(path: Path, folder: Path) -> set[str]:
    """Of the images: the same, other bytes or a reason; of a file that is refused: only that."""
    try:
        store = opened(path, folder)
    except DataError as error:
        return {"refused" if str(path) in str(error) and "\n" not in str(error) else f"a bad message: {error}"}
    images = set()
    for number, image in enumerate(IMAGES):
        try:
            images.add("same" if store.read(f"k{number}") == image else "other bytes")
        except RejectError as error:
            images.add(error.reason)
    return images


@pytest.mark.parametrize("checksums", [True, False])
def test_a_flip_in_a_file_of_base64_is_refused_or_a_reject_or_other_bytes_where_nothing_guards_them(
    tmp_path: Path, checksums: bool
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(MIMIC_IT, path, row_group_size=2, write_page_checksum=checksums)
    whole, counted = bytearray(path.read_bytes()), Counter[str]()
    for bit in random.Random(1).sample(range(len(whole) * 8), 100):
        changed = whole.copy()
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        counted.update(outcomes(path, tmp_path))
    unguarded = set() if checksums else {"other bytes"}
    assert {"refused"} <= counted.keys() <= {"same", "refused", "image_missing", "image_unreadable", *unguarded}


@both
def test_a_path_that_is_not_utf_8_costs_only_its_own_row(
    tmp_path: Path, open_it: Callable[[Path, Path], ImageStore]
) -> None:
    paths = pa.array([b"0.jpg", b"\xff.jpg", b"2.jpg"]).cast(pa.string(), safe=False)
    cells = pa.StructArray.from_arrays([pa.array(IMAGES[:3]), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    store = open_it(tmp_path / "a.parquet", tmp_path)
    assert [store.read(name) for name in ("0.jpg", "2.jpg", "2/image/0")] == [IMAGES[0], IMAGES[2], IMAGES[2]]
    with pytest.raises(RejectError, match="image_missing"):
        store.read("1/image/0")


@both
@pytest.mark.parametrize("encoded", [False, True])
def test_a_key_or_base64_text_that_is_not_utf_8_costs_only_its_own_image(
    tmp_path: Path, open_it: Callable[[Path, Path], ImageStore], encoded: bool
) -> None:
    values = pa.array([b"AAAA", b"\xff", b"BBBB", b"CCCC"]).cast(pa.string(), safe=False)
    keys = pa.array([b"a", b"b", b"c", b"\xff"]).cast(pa.string(), safe=False)
    table = pa.table({"base64": values.dictionary_encode() if encoded else values, "key": keys})
    pq.write_table(table, tmp_path / "a.parquet")
    store = open_it(tmp_path / "a.parquet", tmp_path)
    assert [store.read(name) for name in "ac"] == [base64.b64decode(text) for text in ("AAAA", "BBBB")]
    with pytest.raises(RejectError, match="image_unreadable"):
        store.read("b")


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"index_columns": 7}', b"\xff", b"[" * 100_000])
def test_damaged_metadata_of_pandas_leaves_the_keys_in_their_column(tmp_path: Path, metadata: bytes) -> None:
    pq.write_table(MIMIC_IT.replace_schema_metadata({b"pandas": metadata}), tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet", tmp_path).read("k2") == IMAGES[2]


def test_lost_rows_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pages had fewer rows than the metadata says, or row groups than the file."""
    path = tmp_path / "a.parquet"
    pq.write_table(MIMIC_IT, path, row_group_size=2)
    remote = opened_remotely(path, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: iter(()))
        with pytest.raises(DataError, match=r"a\.parquet: has 0 rows, but its metadata says 6: it is damaged"):
            list(table_records(path, "Parquet", {"base64"}))
        with pytest.raises(DataError, match=r"a\.parquet: has 0 rows, but its metadata says 6: it is damaged"):
            prepare_store(path, tmp_path / "cache")
        with pytest.raises(DataError, match=r"a\.parquet: row group 1 has lost rows: it is damaged"):
            remote.read("k3")
    monkeypatch.setattr(pq.ParquetFile, "num_row_groups", 2)
    for read in (lambda: list(table_records(path, "Parquet", {"base64"})), lambda: sizes_of_pieces(path, "Parquet")):
        with pytest.raises(DataError, match=r"a\.parquet: has 4 rows, but its metadata says 6: it is damaged"):
            read()
