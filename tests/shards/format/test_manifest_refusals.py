"""Manifests that are damaged, of another version or shape, or that name files outside their build."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shards
from shards import Build, ShardError
from shards.format.manifest_file import manifest_text, read_manifest, write_manifest
from shards.storage.store import LocalStore
from tests.support import handmade_builds
from tests.support.handmade_builds import files, folder_of
from tests.support.manifests import edit_manifest, manifest_document


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return shards.open(handmade_builds.make(tmp_path).folder)


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
        (4, "the build is newer: format version 4, this program reads 1 to 3; update dsvl"),
        (0, "the build is older: format version 0, this program reads 1 to 3; rebuild it"),
        (None, "the build has no format version, only None; this program reads 1 to 3; rebuild it"),
        (True, "the build has no format version, only True; this program reads 1 to 3; rebuild it"),
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
