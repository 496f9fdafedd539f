"""Shards that are written, and read back here and by plain WebDataset."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from shards import Build, Shard, ShardWriter
from shards.storage.store import LocalStore
from tests.support import handmade_builds
from tests.support.handmade_builds import Draft, draft, files, first_shard, same, write_shard

TOKEN = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IMAGE = st.tuples(st.sampled_from(["jpg", "png", "webp", "gif", "bmp"]), st.binary(max_size=2000))


@st.composite
def drafts(draw: st.DrawFn) -> list[Draft]:
    keys = draw(st.lists(st.from_regex(r"[a-z0-9_-]{1,80}", fullmatch=True), min_size=1, max_size=5, unique=True))
    made = []
    for key in keys:
        images = tuple(draw(st.lists(IMAGE, max_size=3)))
        columns = draw(st.lists(st.tuples(TOKEN, TOKEN), min_size=len(images), max_size=50))
        made.append(
            Draft(
                key=key,
                metadata=draw(st.dictionaries(TEXT, TEXT | st.integers(-(2**53), 2**53) | st.lists(TEXT))),
                tokens=np.array(columns, dtype=np.int32).reshape(-1, 2).T,
                images=images,
                groups=tuple(draw(st.lists(TEXT, max_size=3))),
                trained_tokens=draw(st.integers(0, 50)),
            )
        )
    return made


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return shards.open(handmade_builds.make(tmp_path).folder)


# Writing


@given(drafts())
def test_the_same_samples_come_out_as_went_in(made: list[Draft]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        info = write_shard(Path(folder), made)
        assert info is not None
        shard = Shard(LocalStore(Path(folder)), info)
        assert len(shard) == len(made)
        assert all(same(shard[row], one) for row, one in enumerate(made))
        assert same(shard[-1], made[-1])
        assert (info.images, info.trained_tokens) == (
            sum(len(one.images) for one in made),
            sum(one.trained_tokens for one in made),
        )


@settings(max_examples=15)
@given(drafts())
def test_the_same_samples_give_the_same_files_named_by_their_digest(made: list[Draft]) -> None:
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        info = write_shard(Path(first), made, split="eval", number=7)
        assert info == write_shard(Path(second), made, split="eval", number=7)
        assert info is not None
        assert files(Path(first)) == files(Path(second))
        for path, size, sha256 in [
            (info.path, info.size, info.sha256),
            (info.index, info.index_size, info.index_sha256),
        ]:
            data = files(Path(first)).pop(path)
            assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
        digest = hashlib.sha256(f"{info.sha256}{info.index_sha256}".encode("ascii")).hexdigest()[:8]
        assert info.path == f"shards/alpha/eval-00007-{digest}.tar"
        assert info.index == f"shards/alpha/eval-00007-{digest}.arrow"


def test_shards_that_differ_only_in_their_indexes_have_different_names(tmp_path: Path) -> None:
    first, second = (write_shard(tmp_path, [replace(draft(1), groups=(name,))]) for name in ("coco:1", "coco:2"))
    assert first is not None
    assert second is not None
    assert first.sha256 == second.sha256
    assert len(files(tmp_path)) == 4
    assert [Shard(LocalStore(tmp_path), info).index.table.column("groups").to_pylist() for info in (first, second)] == [
        [["coco:1"]],
        [["coco:2"]],
    ]


def test_nothing_has_a_final_name_before_finish_and_only_two_files_have_one_after(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "shards/alpha", "train-00000")
    for number in range(30):
        sample = draft(number)
        writer.add(
            sample.key,
            metadata=sample.metadata,
            tokens=sample.tokens,
            images=[("jpg", bytes(90_000))],
            trained_tokens=6,
            groups=(),
        )
        assert all(name.startswith("shards/alpha/.") and name.endswith(".partial") for name in files(tmp_path))
    info = writer.finish()
    assert info is not None
    assert set(files(tmp_path)) == {info.path, info.index}


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "shards/alpha", "train-00000")
    sample = draft(1)
    writer.add(
        sample.key,
        metadata=sample.metadata,
        tokens=sample.tokens,
        images=sample.images,
        trained_tokens=6,
        groups=sample.groups,
    )
    writer.discard()
    assert files(tmp_path) == {}


def test_an_empty_shard_is_none_and_no_file(tmp_path: Path) -> None:
    assert ShardWriter(tmp_path, "shards/alpha", "train-00000").finish() is None
    assert files(tmp_path) == {}


def test_a_shard_that_cannot_be_finished_leaves_nothing_after_discard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    writer = ShardWriter(tmp_path, "shards/alpha", "train-00000")
    sample = draft(1)
    writer.add(
        sample.key, metadata={}, tokens=sample.tokens, images=sample.images, trained_tokens=6, groups=sample.groups
    )
    monkeypatch.setattr("shards.format.writer.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        writer.finish()
    writer.discard()
    assert files(tmp_path) == {}


@pytest.mark.parametrize("key", ["", "a.b", "A", "a/b", "a b", "ä", "a" * 81, "a\n", "..", "a\0"])
def test_a_key_that_a_webdataset_reader_would_split_or_change_is_refused(tmp_path: Path, key: str) -> None:
    writer = ShardWriter(tmp_path, "shards/alpha", "train-00000")
    with pytest.raises(ValueError, match="expected 1 to 80 of a-z, 0-9, _ and -"):
        writer.add(key, metadata={}, tokens=draft(1).tokens, images=(), trained_tokens=1, groups=())
    assert writer.finish() is None


def test_a_key_that_was_there_before_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "shards/alpha", "train-00000")
    writer.add("a", metadata={}, tokens=draft(1).tokens, images=(), trained_tokens=1, groups=())
    with pytest.raises(ValueError, match="sample key 'a' was there before"):
        writer.add("a", metadata={}, tokens=draft(2).tokens, images=(), trained_tokens=1, groups=())
    writer.discard()


# Other readers


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves closing the file to the garbage collector
def test_a_plain_webdataset_reader_gets_every_sample_in_order_with_equal_bytes(build: Build) -> None:
    expected = [draft(number, num_images=number % 4) for number in range(4)]
    reader = webdataset.WebDataset(str(first_shard(build).path), shardshuffle=False).decode()
    got = list(reader)
    assert [sample["__key__"] for sample in got] == [original.key for original in expected]
    for sample, original in zip(got, expected, strict=True):
        assert sample["json"] == original.metadata
        assert sample["tokens.npy"].dtype == np.int32
        assert np.array_equal(sample["tokens.npy"], original.tokens)
        names = [f"{number}.{extension}" for number, (extension, _) in enumerate(original.images)]
        assert [name for name in sample if name[0].isdigit()] == names
        assert [sample[name] for name in names] == [data for _, data in original.images]
