"""Opening builds and reading samples back; what damage to a shard or a sample looks like."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import shards
from shards import Build, Shard, ShardError
from shards.storage.store import LocalStore
from tests.support import handmade_builds
from tests.support.handmade_builds import draft, first_shard, folder_of, same, write_shard


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return shards.open(handmade_builds.make(tmp_path).folder)


# Opening


def test_a_build_gives_its_shards_by_dataset_and_split(build: Build) -> None:
    every = [(dataset, split, len(shard)) for dataset, split, shard in build.shards()]
    assert sorted(every) == [("alpha", "eval", 2), ("alpha", "train", 4), ("alpha", "train", 4), ("beta", "train", 3)]
    assert [len(shard) for _, _, shard in build.shards(dataset="alpha", split="train")] == [4, 4]
    assert list(build.shards(dataset="beta", split="eval")) == []
    with pytest.raises(ShardError, match="no dataset 'gamma'; it has alpha, beta"):
        next(build.shards(dataset="gamma"))


def test_a_sample_that_is_not_there_is_an_index_error(build: Build) -> None:
    shard = first_shard(build)
    for row in (4, -5, 10**30):
        with pytest.raises(IndexError, match=r"no sample .*; it has 4"):
            shard[row]


def test_a_folder_without_manifest_is_not_a_build(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ShardError, match=r"no manifest\.json there; it is not a finished build"):
            shards.open(folder)


@pytest.mark.parametrize("part", ["path", "index"])
def test_a_shard_or_index_of_another_size_is_refused_at_once(build: Build, part: str) -> None:
    info = build.manifest.datasets["alpha"].shards["train"][0]
    path = folder_of(build) / getattr(info, part)
    data = path.read_bytes()
    for content in (data[:-1], data + b"\0", b"", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ShardError, match=f"{path}: (has .* bytes, the manifest says|cannot be read)"):
            Shard(LocalStore(folder_of(build)), info)[0]


@pytest.fixture
def big_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are taken for very big ones, whose digests are not compared when they are opened."""
    monkeypatch.setattr("shards.format.shard.WHOLE_INDEX_BYTES", 0)


def test_an_index_that_is_not_the_pinned_one_is_refused_before_a_sample_is_read(build: Build) -> None:
    shards = build.manifest.datasets["alpha"].shards["train"]
    swapped = replace(shards[0], index=shards[1].index, index_size=shards[1].index_size)
    with pytest.raises(
        ShardError, match=r"\.arrow: sha256 is .*, the manifest says .*; it was damaged, or is the index"
    ):
        Shard(LocalStore(folder_of(build)), swapped)[0]


@pytest.mark.usefixtures("big_indexes")
def test_the_index_of_another_shard_is_refused(build: Build) -> None:
    datasets = build.manifest.datasets
    mine, other = datasets["alpha"].shards["train"][0], datasets["beta"].shards["train"][0]
    swapped = replace(mine, index=other.index, index_size=other.index_size)
    with pytest.raises(ShardError, match="has 3 entries, the manifest says 4; it is the index of another shard"):
        Shard(LocalStore(folder_of(build)), swapped)
    other = datasets["alpha"].shards["train"][1]
    shard = Shard(LocalStore(folder_of(build)), replace(mine, index=other.index, index_size=other.index_size))
    for row in range(4):
        with pytest.raises(ShardError, match="is damaged"):
            shard[row]


def test_a_shard_whose_end_is_damaged_is_refused(build: Build) -> None:
    shard = first_shard(build)
    data = bytearray(shard.path.read_bytes())
    data[-100] = 1
    shard.path.write_bytes(data)
    with pytest.raises(ShardError, match="its end is damaged; expected 1024 zero bytes"):
        shard[0]


# Damage


def test_any_changed_byte_of_a_sample_names_the_shard_and_the_key(build: Build) -> None:
    shard = first_shard(build)
    assert same(shard[1], draft(1, num_images=1))
    data = shard.path.read_bytes()
    row = shard.index.table.to_pylist()[1]
    end = row["offset"] + row["size"]
    for offset in {*range(row["offset"], end, 7), row["offset"], end - 1}:
        damaged = bytearray(data)
        damaged[offset] ^= 1 << offset % 8
        shard.path.unlink()  # the open shard keeps its mapping of the old file
        shard.path.write_bytes(damaged)
        again = first_shard(build)
        with pytest.raises(ShardError) as caught:
            again[1]
        assert str(shard.path) in str(caught.value)
        assert row["key"] in str(caught.value)
        assert again[0].key != again[2].key
    assert same(shard[1], draft(1, num_images=1))


def test_a_sample_reads_the_same_through_its_region(build: Build) -> None:
    shard = first_shard(build)
    for row in range(len(shard)):
        key, region, contents = shard.region(row)
        sample = shard[row]
        assert (key, tuple(contents[2:])) == (sample.key, sample.images)
        assert len(region) == shard.index.table.column("size")[row].as_py()


@pytest.mark.usefixtures("big_indexes")
def test_a_sample_whose_index_counts_are_wrong_is_refused(tmp_path: Path) -> None:
    sample = draft(1, num_images=2)
    info = write_shard(tmp_path, [sample])
    assert info is not None
    frame = pl.read_ipc(io.BytesIO((tmp_path / info.index).read_bytes()))
    for column in ("text_tokens", "images"):
        changed = frame.with_columns(pl.col(column) + 1).cast({column: pl.UInt32})
        changed.write_ipc(tmp_path / info.index, compression="uncompressed", compat_level=pl.CompatLevel.oldest())
        with pytest.raises(ShardError, match=rf"sample {sample.key} .*(cannot be read|its index says)"):
            Shard(LocalStore(tmp_path), info)[0]


def test_a_sample_that_is_not_a_token_array_or_not_json_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(name: str, replacement: Callable[[Any], bytes]) -> Shard:
        with monkeypatch.context() as patch:
            patch.setattr(f"shards.format.writer.{name}", replacement)
            info = write_shard(tmp_path, [draft(1)])
        assert info is not None
        return Shard(LocalStore(tmp_path), info)

    with pytest.raises(ShardError, match="the tokens of sample alpha-train-00001 cannot be read"):
        written("encode_tokens", lambda tokens: b"x" * 200)[0]
    for replacement in (lambda value: b"{", lambda value: b"[1]"):
        sample = written("orjson.dumps", replacement)[0]
        with pytest.raises(ShardError, match="the metadata of sample alpha-train-00001 "):
            assert sample.metadata
