"""Writing shards, opening builds and reading samples back; what damage to a sample looks like."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from shards import Build, Sample, Shard, ShardError, ShardWriter
from shards.format.manifest import manifest_text, read_manifest, write_manifest
from shards.storage.store import LocalStore
from tests.support import handmade_builds
from tests.support.handmade_builds import Draft, draft, write_shard
from tests.support.manifests import edit_manifest, manifest_document

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


def first_shard(build: Build) -> Shard:
    return next(shard for _, _, shard in build.shards(dataset="alpha", split="train"))


def folder_of(build: Build) -> Path:
    return Path(build.store.location)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(sample: Sample, draft: Draft) -> bool:
    return (
        sample.key == draft.key
        and sample.metadata == draft.metadata
        and np.array_equal(np.stack([sample.ids, sample.labels]), draft.tokens)
        and sample.ids.dtype == sample.labels.dtype == np.int32
        and sample.images == tuple(data for _, data in draft.images)
    )


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
    one, other = (write_shard(tmp_path, [replace(draft(1), groups=(name,))]) for name in ("coco:1", "coco:2"))
    assert one is not None
    assert other is not None
    assert one.sha256 == other.sha256
    assert len(files(tmp_path)) == 4
    assert [Shard(LocalStore(tmp_path), info).index.table.column("groups").to_pylist() for info in (one, other)] == [
        [["coco:1"]],
        [["coco:2"]],
    ]


def test_nothing_has_a_final_name_before_finish_and_only_two_files_have_one_after(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "shards/alpha", "train-00000")
    for number in range(30):
        one = draft(number)
        writer.add(
            one.key,
            metadata=one.metadata,
            tokens=one.tokens,
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
    one = draft(1)
    writer.add(
        one.key, metadata=one.metadata, tokens=one.tokens, images=one.images, trained_tokens=6, groups=one.groups
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
    one = draft(1)
    writer.add(one.key, metadata={}, tokens=one.tokens, images=one.images, trained_tokens=6, groups=one.groups)
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
    assert [sample["__key__"] for sample in got] == [one.key for one in expected]
    for sample, one in zip(got, expected, strict=True):
        assert sample["json"] == one.metadata
        assert sample["tokens.npy"].dtype == np.int32
        assert np.array_equal(sample["tokens.npy"], one.tokens)
        names = [f"{number}.{extension}" for number, (extension, _) in enumerate(one.images)]
        assert [name for name in sample if name[0].isdigit()] == names
        assert [sample[name] for name in names] == [data for _, data in one.images]


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


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\0", b"[" * 200_000, b'{"a": 1}', b"[]", b"null", b'"text"', b'{"format": "other"}'],
    ids=["empty", "cut", "bytes", "deep", "other", "list", "null", "text", "format"],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"manifest\.json: (cannot be read|no manifest of a dsvl build)"):
        read_manifest(LocalStore(tmp_path))


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (2, "the build is newer: format version 2, this program reads 1; update dsvl"),
        (0, "the build is older: format version 0, this program reads 1; rebuild it"),
        (None, "the build has no format version, only None; this program reads 1; rebuild it"),
        (True, "the build has no format version, only True; this program reads 1; rebuild it"),
    ],
)
def test_a_manifest_of_another_version_is_refused_and_the_older_side_named(
    build: Build, version: Any, words: str
) -> None:
    edit_manifest(folder_of(build), lambda document: document.update(version=version))
    with pytest.raises(ShardError, match=words):
        shards.open(folder_of(build))


def edits(value: Any) -> Iterator[Any]:
    """The document with one leaf changed, leaf by leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            for changed in edits(item):
                yield {**value, key: changed}
        yield {**value, "more": 1}
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for changed in edits(item):
                yield [*value[:index], changed, *value[index + 1 :]]
        yield [*value, 1]
    else:
        yield f"{value}!" if isinstance(value, str) else value + 1


def test_a_manifest_edited_anywhere_is_refused(build: Build) -> None:
    for document in edits(manifest_document(folder_of(build))):
        (folder_of(build) / "manifest.json").write_bytes(manifest_text(document))
        with pytest.raises(ShardError, match=r"manifest\.json: (was edited or damaged|no manifest|the build is newer)"):
            shards.open(folder_of(build))


DAMAGED: list[tuple[str, Any, str]] = [
    ("datasets", None, "datasets: got None; expected an object"),
    ("datasets", [], r"datasets: got \[\]; expected an object"),
    ("datasets", {}, r"datasets: got \[\]; expected those of config.datasets, \['alpha', 'beta'\]"),
    ("datasets.alpha", None, "datasets.alpha: got None; expected an object"),
    ("datasets.alpha.shards", [], r"datasets.alpha.shards: got \[\]; expected an object"),
    ("datasets.alpha.shards", {"train": []}, "datasets.alpha.shards.eval: missing; expected a list"),
    ("datasets.alpha.shards.train", {}, "datasets.alpha.shards.train: got {}; expected a list"),
    ("datasets.alpha.shards.train", [{"path": "x"}], "datasets.alpha.shards.train.0.size: missing; expected a whole"),
    ("datasets.alpha.shards.train.1", "x", "datasets.alpha.shards.train.1: got 'x'; expected an object"),
    ("datasets.alpha.shards.train.1.sha256", 7, "datasets.alpha.shards.train.1.sha256: got 7; expected text"),
    (
        "datasets.alpha.shards.train.1.samples",
        -1,
        "datasets.alpha.shards.train.1.samples: got -1; expected a whole number from 0 on",
    ),
    ("datasets.alpha.draws", 1.5, "datasets.alpha.draws: got 1.5; expected a whole number from 0 on"),
    ("datasets.alpha.share", "half", "datasets.alpha.share: got 'half'; expected a number"),
    ("config.datasets", [{"name": 1}], "config.datasets.0.name: got 1; expected text"),
    ("config.limits", 3, "config.limits: got 3; expected an object"),
    ("config.image.fit", "Crop", "config.image.fit: got 'Crop'; expected one of crop, squash, pad"),
    ("tokenizer.vocabulary_size", True, "tokenizer.vocabulary_size: got True; expected a whole number from 1 on"),
    ("files", {"a": None}, "files.a: got None; expected text"),
]


@pytest.mark.parametrize(("path", "value", "words"), DAMAGED, ids=[words for _, _, words in DAMAGED])
def test_a_manifest_with_a_field_of_another_shape_is_refused_with_its_path_and_both_values(
    build: Build, path: str, value: Any, words: str
) -> None:
    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            document = document[int(key) if isinstance(document, list) else key]
        document[int(last) if isinstance(document, list) else last] = value

    edit_manifest(folder_of(build), change)
    with pytest.raises(ShardError, match=rf"manifest\.json: {words}.*; rebuild"):
        read_manifest(LocalStore(folder_of(build)))


def test_keys_that_a_later_release_added_are_left_out(build: Build) -> None:
    def add_keys(value: Any) -> None:
        """A new key in every object."""
        for item in list(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()):
            add_keys(item)
        if isinstance(value, dict):
            value["more"] = {"x": 1}

    def change(document: dict[str, Any]) -> None:
        for key in ("config", "tokenizer"):
            add_keys(document[key])
        for dataset in document["datasets"].values():
            dataset["more"] = 1
            add_keys(dataset["shards"])
            add_keys(dataset["inputs"])
        document["more"] = 1

    edit_manifest(folder_of(build), change)
    again = read_manifest(LocalStore(folder_of(build)))
    assert list(again.shards()) == list(build.manifest.shards())
    assert again.tokenizer == build.manifest.tokenizer
    assert shards.verify(shards.open(folder_of(build))).problems == []


def test_a_manifest_is_written_to_the_byte_as_it_was_read(build: Build) -> None:
    text = (folder_of(build) / "manifest.json").read_bytes()
    (folder_of(build) / "manifest.json").unlink()
    assert write_manifest(folder_of(build), build.manifest).hash == build.manifest.hash
    assert (folder_of(build) / "manifest.json").read_bytes() == text


OUTSIDE = ["", ".", "..", "/etc/passwd", "../a.tar", "shards/../../a.tar", "shards/..", "./a", "a//b", "a/", "a/./b"]
OUTSIDE += ["shards\\a.tar", "..\\a.tar", "C:/a.tar", "c:a.tar", "//host/a.tar", "a\0.tar", "shards/\0"]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("key", ["path", "index", "files"])
def test_a_manifest_that_names_a_file_outside_its_build_is_refused(tmp_path: Path, key: str, path: str) -> None:
    handmade = handmade_builds.make(tmp_path)
    if key == "files":
        handmade.files = {path: "0" * 64}
    else:
        info = handmade.shards["alpha"]["train"][0]
        handmade.shards["alpha"]["train"][0] = replace(info, path=path) if key == "path" else replace(info, index=path)
    handmade.finish()
    with pytest.raises(ShardError, match=r"manifest\.json: names the file ") as caught:
        shards.open(tmp_path)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize("path", ["a", "..a", "a..", "...", ".hidden/b", "a/..b/c.", "ä b/猫", "ab:/c"])
def test_odd_names_below_the_build_are_fine(tmp_path: Path, path: str) -> None:
    handmade = handmade_builds.make(tmp_path)
    handmade.files = {path: "0" * 64}
    handmade.finish()
    assert path in shards.open(tmp_path).manifest.files


@pytest.mark.parametrize("files", [3, None, [3], {"a": 1, "b": 2}])
def test_files_of_another_shape_never_raise_anything_but_a_shard_error(tmp_path: Path, files: Any) -> None:
    handmade_builds.make(tmp_path)
    edit_manifest(tmp_path, lambda document: document.update(files=files))
    with contextlib.suppress(ShardError):
        shards.open(tmp_path)


def test_the_manifest_is_written_once_and_left_alone_if_it_says_the_same(build: Build, tmp_path: Path) -> None:
    manifest, folder = build.manifest, tmp_path / "again"
    folder.mkdir()
    first = write_manifest(folder, manifest)
    before = (folder / "manifest.json").stat()
    reordered = replace(manifest, datasets=dict(reversed([*manifest.datasets.items()])), hash="")
    assert write_manifest(folder, reordered).hash == first.hash
    assert (folder / "manifest.json").stat().st_ino == before.st_ino
    assert write_manifest(folder, replace(manifest, compiler=2)).hash != first.hash
    assert read_manifest(LocalStore(folder)).compiler == 2
    assert set(files(folder)) == {"manifest.json"}


def test_the_manifest_hash_is_as_documented(build: Build) -> None:
    lines = (folder_of(build) / "manifest.json").read_bytes().splitlines(keepends=True)
    text = b"".join(line for line in lines if not line.startswith(b' "hash": '))
    assert len(lines) == len(text.splitlines()) + 1
    assert build.manifest.hash == manifest_document(folder_of(build))["hash"] == hashlib.sha256(text).hexdigest()


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
    for place in {*range(row["offset"], end, 7), row["offset"], end - 1}:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
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
    one = draft(1, num_images=2)
    info = write_shard(tmp_path, [one])
    assert info is not None
    frame = pl.read_ipc(io.BytesIO((tmp_path / info.index).read_bytes()))
    for column in ("text_tokens", "images"):
        changed = frame.with_columns(pl.col(column) + 1).cast({column: pl.UInt32})
        changed.write_ipc(tmp_path / info.index, compression="uncompressed", compat_level=pl.CompatLevel.oldest())
        with pytest.raises(ShardError, match=rf"sample {one.key} .*(cannot be read|its index says)"):
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
