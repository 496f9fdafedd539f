"""Containers of records: what a file is decides its content, and whatever is wrong with it has a name and a place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.parsing import record_text
from preprocess.adapters.parsing.record_files import json_records, read_records
from preprocess.adapters.parsing.sample_records import MemberImage
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.inputs import find_inputs
from preprocess.blend.load import load_blend
from preprocess.containers import tables
from preprocess.errors import DataError
from tests.support.adapting import adapted, conversations, rejects
from tests.support.small_blends import write_blend

RECORDS: list[Any] = [{"id": 1, "text": "one"}, {"id": 2, "text": "zwei ü"}]
KEYS = ("id", "text")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as file:
        file.write(data)
    return bytes(out.getvalue().to_pybytes())


PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}
TEXTS = {
    "array": json.dumps(RECORDS, indent=1).encode(),
    "lines": "\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS).encode(),
    "one-line array": json.dumps(RECORDS).encode(),
    "array after a byte order mark": b"\xef\xbb\xbf" + json.dumps(RECORDS).encode(),
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def stream(path: Path, table: pa.Table) -> Path:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a"])
@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("text", TEXTS)
def test_text_is_read_by_its_content_whatever_its_name(tmp_path: Path, text: str, pack: str, name: str) -> None:
    path = write(tmp_path / name, PACK[pack](TEXTS[text]))
    assert list(read_records(path, KEYS)) == list(json_records(path)) == RECORDS


@pytest.mark.parametrize("pack", [pack for pack in PACK if pack != "plain"])
def test_a_compressed_file_without_its_tail_is_named_with_the_bytes_before_it(tmp_path: Path, pack: str) -> None:
    data = PACK[pack](b"\n".join(json.dumps({"id": number}).encode() for number in range(5000)))
    path = write(tmp_path / "a.jsonl", data[:-9])
    with pytest.raises(DataError, match=rf"a\.jsonl: the {pack} is damaged or cut off after \d+ bytes of text"):
        list(read_records(path, KEYS))


def test_compressed_files_one_after_another_are_one_file(tmp_path: Path) -> None:
    for pack in ("gzip", "bzip2", "xz", "zstd"):
        parts = (PACK[pack](json.dumps(record).encode() + b"\n") for record in RECORDS)
        assert list(read_records(write(tmp_path / pack, b"".join(parts)), KEYS)) == RECORDS


def test_arrow_files_and_streams_are_read_like_parquet(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**record, "other": 1} for record in RECORDS])
    pq.write_table(table, tmp_path / "a.bin")
    stream(tmp_path / "b.bin", table)
    with pa.ipc.new_file(tmp_path / "c.bin", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.bin", "b.bin", "c.bin"):
        assert list(read_records(tmp_path / name, KEYS)) == RECORDS


def test_no_table_is_read_by_more_than_a_few_rows_at_once(tmp_path: Path) -> None:
    table = pa.table({"id": list(range(1000))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    stream(tmp_path / "a.arrow", table)
    for batches, name in ((tables.parquet_batches, "a.parquet"), (tables.arrow_batches, "a.arrow")):
        sizes = [batch.num_rows for batch in batches(tmp_path / name, lambda schema: ["id"])]
        assert sum(sizes) == 1000
        assert max(sizes) <= 16


def test_a_stream_that_is_cut_off_between_its_batches_is_not_a_shorter_one(tmp_path: Path) -> None:
    path = stream(tmp_path / "a.arrow", pa.Table.from_pylist(RECORDS))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"a\.arrow: the Arrow stream has no end mark"):
        list(read_records(path, KEYS))


def test_a_bad_row_of_an_arrow_file_is_unreadable_alone(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffc")])
    first, second, third = read_records(stream(tmp_path / "a", pa.table({"text": texts})), KEYS)
    assert (first, third) == ({"text": "a"}, {"text": "c"})
    assert isinstance(second, UnreadableRecord)
    assert second.reason == "bad_text"


def test_wrong_offsets_in_an_arrow_file_are_a_reject_and_no_crash(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2**30, 3], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abc")])
    path = tmp_path / "a"
    with pa.ipc.new_stream(path, pa.schema({"text": pa.string()})) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([texts], ["text"]))
    kinds = [type(record) for record in read_records(path, KEYS)]
    assert kinds == [dict, UnreadableRecord, UnreadableRecord]


def test_the_samples_of_a_tar_have_their_images_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    members = {
        "./b/0001.10.jpg": b"x",
        "./b/0001.json": b'{"id": "a"}',
        "./b/0001.2.jpg": b"x",
        "0002.img1.png": b"x",
        "0002.json": b'{"id": "b", "image": "0002.img1.png"}',
        "0003.json": b'{"id": "c"}',
        "0003.txt": b" words ",
        "0003.mp4": b"film",
        "./b/0001.1.JPG": b"x",
    }
    assert list(read_records(tar(tmp_path / "a", members), KEYS)) == [
        {"id": "a", "images": [MemberImage(f"b/0001.{name}") for name in ("1.JPG", "2.jpg", "10.jpg")]},
        {"id": "b", "image": [MemberImage("0002.img1.png")]},
        {"id": "c", "txt": "words", "mp4": "0003.mp4"},
    ]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"1.json": b"{", "1.jpg": b"x"}, "broken_json"),
        ({"1.json": b"[]", "1.jpg": b"x"}, "wrong_type"),
        ({"1.json": b'{"images": ["a.jpg", "b.jpg"]}', "1.jpg": b"x"}, "bad_value"),
        ({"README": b"words"}, "bad_value"),
        ({"1.txt": b"\xff", "1.jpg": b"x"}, "bad_text"),
    ],
)
def test_a_sample_that_cannot_be_read_is_unreadable_alone(
    tmp_path: Path, members: dict[str, bytes], reason: str
) -> None:
    bad, good = read_records(tar(tmp_path / "a.tar", {**members, "2.json": b'{"id": 2}'}), KEYS)
    assert isinstance(bad, UnreadableRecord)
    assert (bad.reason, good) == (reason, {"id": 2})


def test_a_tar_that_is_cut_off_is_a_data_error(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{number}.json": b'{"id": 1}' for number in range(9)})
    path.write_bytes(path.read_bytes()[: 4 * 1024])
    with pytest.raises(DataError, match=r"a\.tar: .*damaged or cut off"):
        list(read_records(path, KEYS))


def test_a_file_may_be_one_record_and_another_object_is_named_by_its_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(RECORDS[0], indent=1).encode())
    assert list(read_records(path, KEYS)) == RECORDS[:1]
    with pytest.raises(DataError, match=r"a\.json: is one JSON object with the keys id, text"):
        read_records(path, ("messages",))


def test_a_line_that_would_fill_the_memory_is_unreadable_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_text, "MAX_RECORD_BYTES", 100)
    path = write(tmp_path / "a.jsonl", b'{"id": 1}\n{"text": "' + b"x" * 5000 + b'"}\n{"id": 3}\n')
    first, second, third = read_records(path, KEYS)
    assert (first, third) == ({"id": 1}, {"id": 3})
    assert isinstance(second, UnreadableRecord)
    assert second.detail.startswith("line 2 has more than 100 bytes")


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (POINTER, "is a Git LFS pointer"),
        (b"PK\3\4rest", "is a zip archive; unpack it"),
        ("[]".encode("utf-16"), "is UTF-16 text; expected UTF-8"),
        (gzip.compress(b"PAR1"), "is Parquet within gzip"),
    ],
    ids=["lfs-pointer", "zip", "utf-16", "gzip"],  # gzip writes the time, and names of tests must not differ
)
def test_a_file_of_another_kind_is_named_as_what_it_is(tmp_path: Path, adapter: str, data: bytes, words: str) -> None:
    write(tmp_path / "a.json", data)
    with pytest.raises(DataError, match=rf"a\.json: {words}"):
        adapted(adapter, tmp_path, {}, annotations=("a.json",), images=(".",))


@pytest.mark.parametrize("adapter", [name for name, row in ADAPTERS.items() if not row.embedded])
def test_sound_files_of_another_form_are_never_called_broken(tmp_path: Path, adapter: str) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    for name, words in (
        ("a.parquet", "is Parquet; expected JSON: convert it to JSON lines, or use the adapter chat if"),
        ("b.json", ""),
    ):
        write(tmp_path / "b.json", b'"words"')
        with pytest.raises(DataError) as caught:
            adapted(adapter, tmp_path, {}, annotations=(name,), images=(".",))
        assert words in str(caught.value)
        assert "broken" not in str(caught.value)


def test_adapters_of_arrays_read_json_lines_and_refuse_a_broken_line_alone(tmp_path: Path) -> None:
    good = {
        "id": "a",
        "image": "1.jpg",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}],
    }
    made = adapted("llava", tmp_path, {"a.json": f"{json.dumps(good)}\noops\n"}, images=(".",))
    assert [item.id for item in conversations(made)] == ["a/a"]
    assert rejects(made) == [("1", "broken_json")]


def test_captions_are_read_as_lavis_and_as_pandas_write_them(tmp_path: Path) -> None:
    one = "val2014/COCO_val2014_000000000042.jpg"
    entries = [{"image": one, "caption": "A cat."}, {"image": one, "caption": ["A pet.", "A dog."]}, {"image": one}]
    made = adapted("coco_caption", tmp_path, {"coco_karpathy_train.json": entries}, images=(".",))
    assert [item.turns[1].parts for item in conversations(made)] == [("A cat.",), ("A pet.",), ("A dog.",)]
    assert {item.references for item in conversations(made)} == {("A cat.", "A pet.", "A dog.")}
    assert {item.groups for item in conversations(made)} == {("coco:42",)}
    assert rejects(made) == [("2", "missing_key")]
    entry = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A cup."}]}
    frame = {"dataset": {"0": "coco"}, "images": {"0": entry, "1": entry}}
    assert len(conversations(adapted("coco_caption", tmp_path, {"dataset.json": frame}, images=(".",)))) == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["data/train-0.parquet", "README.md"], ["data/train-0.parquet"]),
        (["data-0.arrow", "dataset_info.json", "state.json", "cache-1.arrow"], ["data-0.arrow"]),
        (["train/data-0.arrow", "test/data-0.arrow", "dataset_dict.json"], ["test/data-0.arrow", "train/data-0.arrow"]),
        (["0.tar", "1.tar"], ["0.tar", "1.tar"]),
        (["a.jsonl", "images.tar", "data/b.jsonl"], ["a.jsonl"]),
    ],
)
def test_the_common_layouts_of_a_dataset_need_no_names(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    for file in files:
        (tmp_path / "mine" / file).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "mine" / file, bytes(257) + b"ustar" if file.endswith(".tar") else b"PAR1")
    blend = write_blend(tmp_path / "blend.yaml", [{"name": "mine", "adapter": "chat", "root": "mine"}])
    inputs = find_inputs(load_blend(blend), tmp_path)["mine"]
    assert [path.relative_to(tmp_path / "mine").as_posix() for path in inputs.annotations] == expected
    stores = {path for path in inputs.annotations if path.suffix != ".jsonl"}
    assert stores <= {*inputs.images}  # the images inside them are found without a setting
