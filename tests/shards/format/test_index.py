"""The index: the documented columns, mapped, readable by others, and safe to read when it is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import xxhash

from shards.errors import ShardError
from shards.format.container import encode_tokens
from shards.format.index import SCHEMA, IndexWriter, ShardIndex, open_index
from tests.support import handmade_builds
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S

ROW: dict[str, Any] = {
    "key": "a-1",
    "offset": 2**63,
    "size": 2**64 - 1,
    "checksum": 2**64 - 1,
    "text_tokens": 2**32 - 1,
    "trained_tokens": 0,
    "images": 3,
    "groups": ["coco:1", "größe"],
    "member_offsets": [512, 2**64 - 1],
    "member_sizes": [],
    "member_checksums": [2**64 - 1],
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    index = IndexWriter(SCHEMA)
    for row in rows:
        index.add(**row)
    index.write(path)
    return path


def test_rows_come_back_with_the_documented_types_and_the_largest_numbers(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "key": "a-2", "groups": []}]
    table = open_index(write(tmp_path / "index.arrow", *rows)).table
    assert table.to_pylist() == rows
    assert table.schema.names == list(SCHEMA)
    assert table.schema.types == list(SCHEMA.values())


def test_polars_reads_the_index_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "index.arrow", ROW)
    assert pl.read_ipc(path).to_dicts() == [ROW]
    assert pl.scan_ipc(path).select("images").collect().item() == 3


def test_the_index_is_mapped_and_not_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "index.arrow", *[{**ROW, "key": f"a-{number}"} for number in range(20_000)])
    before = pa.total_allocated_bytes()
    index = open_index(path)
    assert len(index) == 20_000
    assert pa.total_allocated_bytes() - before < 1 << 16
    assert index.entry(19_999).checksum == 2**64 - 1


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, ROW, ROW).read_bytes() for name in ("first", "second"))
    assert first == second


def test_the_columns_describe_the_sample_as_documented(tmp_path: Path) -> None:
    drafts = [handmade_builds.draft(number, num_images=number) for number in range(4)]
    info = handmade_builds.write_shard(tmp_path, drafts)
    assert info is not None
    data = (tmp_path / info.path).read_bytes()
    end = 0
    for draft, row in zip(drafts, open_index(tmp_path / info.index).table.to_pylist(), strict=True):
        assert row["offset"] == end
        end += row["size"]
        region = data[row["offset"] : end]
        assert row["checksum"] == xxhash.xxh3_64_intdigest(region)
        assert (row["key"], row["groups"]) == (draft.key, list(draft.groups))
        assert row["images"] == len(draft.images)
        assert row["text_tokens"] == draft.tokens.shape[1] - len(draft.images)
        assert row["trained_tokens"] == np.sum(draft.tokens[1] != handmade_builds.IGNORE)
        contents = [
            region[start : start + size] for start, size in zip(row["member_offsets"], row["member_sizes"], strict=True)
        ]
        assert json.loads(contents[0]) == draft.metadata
        assert contents[1] == encode_tokens(draft.tokens)
        assert contents[2:] == [image for _, image in draft.images]
        assert row["member_checksums"] == [xxhash.xxh3_64_intdigest(content) for content in contents]
    assert data[end:] == bytes(1024)


def test_rows_are_found_in_every_batch(tmp_path: Path) -> None:
    rows = [{**ROW, "key": f"a-{number}"} for number in range(7)]
    table = open_index(write(tmp_path / "one.arrow", *rows)).table
    with pa.OSFile(str(tmp_path / "several.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table, max_chunksize=3)
    several = open_index(tmp_path / "several.arrow")
    assert several.table.column("key").num_chunks == 3
    for number, row in enumerate(rows):
        actual = several.entry(number)._asdict()
        assert actual.pop("tiles") is None
        assert actual == {name: row[name] for name in actual}


def other_columns(change: str) -> pa.Table:
    columns = {name: pa.array([ROW[name]], kind) for name, kind in SCHEMA.items()}
    names = list(columns)
    if change == "missing":
        names.remove("checksum")
    elif change == "order":
        names.reverse()
    elif change == "type":
        columns["images"] = columns["images"].cast(pa.int64())
    elif change == "extra":
        columns["later"] = columns["images"]
        names.append("later")
    elif change == "twice":
        names.append("key")
    return pa.Table.from_arrays([columns[name] for name in names], names=names)


@pytest.mark.parametrize("change", ["missing", "order", "type", "extra", "twice"])
def test_an_index_with_other_columns_is_refused(tmp_path: Path, change: str) -> None:
    table = other_columns(change)
    with pa.OSFile(str(tmp_path / "index.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    with pytest.raises(ShardError, match=r"index\.arrow: the index has columns .*; expected key large_string, offset"):
        open_index(tmp_path / "index.arrow")


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"ARROW1\0\0" * 20, b"{}" * 300], ids=["empty", "cut", "a", "b"])
def test_a_file_that_is_not_an_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.arrow").write_bytes(content)
    with pytest.raises(ShardError, match=r"index\.arrow: the index cannot be read"):
        open_index(tmp_path / "index.arrow")


def test_a_missing_index_and_an_index_cut_anywhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="cannot be read"):
        open_index(tmp_path / "index.arrow")
    data = write(tmp_path / "index.arrow", ROW).read_bytes()
    for end in range(0, len(data), 37):
        (tmp_path / "index.arrow").write_bytes(data[:end])
        with pytest.raises(ShardError, match="cannot be read"):
            open_index(tmp_path / "index.arrow")


def test_a_row_with_an_empty_field_is_refused(tmp_path: Path) -> None:
    table = open_index(write(tmp_path / "index.arrow", ROW)).table
    holes = table.set_column(1, "offset", pa.array([None], pa.uint64()))
    with pytest.raises(ValueError, match="empty field"):
        ShardIndex(holes)


# In its own process, because a mistake here does not fail but crashes the interpreter. A sample that is read in spite
# of the damage must be the sample that was written.
DAMAGE = """
import random, sys
from pathlib import Path
import shards
import shards.format.shard
from shards import Shard, ShardError

shards.format.shard.WHOLE_INDEX_BYTES = 0  # as if it were a very big index, whose digest is not compared
random.seed(int(sys.argv[2]))
build = shards.open(sys.argv[1])
_, _, sound = next(build.shards(split="train"))
said = lambda sample: (sample.key, sample.metadata, sample.ids.tolist(), sample.labels.tolist(), sample.images)
expected = [said(sound[row]) for row in range(len(sound))]
path = Path(build.store.location) / sound.info.index
del sound
data = path.read_bytes()
read = refused = 0
for turn in range(int(sys.argv[3])):
    damaged = bytearray(data)
    place = random.randrange(len(data))
    if turn % 3:
        damaged[place] ^= 1 << random.randrange(8)
    else:
        part = random.choice([bytes(8), b"\\xff" * 8, b"\\xff" * 7 + b"\\x7f", random.randbytes(24)])
        damaged[place : place + len(part)] = part
    damaged = bytes(damaged[: len(data)])
    path.unlink()
    path.write_bytes(damaged)
    try:
        shard = Shard(build.store, build.manifest.datasets["alpha"].shards["train"][0])
    except ShardError:
        refused += 1
        continue
    for row in range(len(expected)):
        try:
            assert said(shard[row]) == expected[row], (place, row)
            read += 1
        except ShardError as error:
            assert str(shard.path) in str(error)
            refused += 1
print(read, refused)
"""


def test_a_damaged_index_never_crashes_the_reader_and_never_changes_a_sample(tmp_path: Path) -> None:
    handmade_builds.make(tmp_path)
    command = [sys.executable, "-c", DAMAGE, str(tmp_path), "1", "600"]
    root = ROOT
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    read, refused = map(int, done.stdout.split())
    assert read > 200
    assert refused > 200
