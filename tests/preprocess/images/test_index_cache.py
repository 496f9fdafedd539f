"""Indexes of archives: built once, built again when the archive changes, named by what they belong to."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path

import pytest

from preprocess.errors import DataError, RejectError
from preprocess.images import index_cache
from preprocess.images.stores import current_files, is_prepared, open_store, prepare_store
from tests.support.image_archives import (
    KINDS,
    as_folder,
    as_hugging_face_parquet,
    as_json,
    as_mimicit_parquet,
    as_tar,
    failing,
    kept,
    opened,
    reason,
)


def test_an_index_is_built_once_and_again_when_the_archive_changes(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.parquet", tmp_path / "cache"
    as_mimicit_parquet(path, {"k": b"old"})
    assert not is_prepared(path, cache)
    prepare_store(path, cache)
    assert is_prepared(path, cache)
    first = {file: file.stat().st_mtime_ns for file in kept(cache)}
    prepare_store(path, cache)
    assert {file: file.stat().st_mtime_ns for file in kept(cache)} == first
    assert len(first) == 2
    reader = open_store(path, cache)
    as_mimicit_parquet(path, {"k": b"newer and longer"})
    with pytest.raises(DataError, match="changed after it was indexed"):
        open_store(path, cache)
    assert not is_prepared(path, cache)
    prepare_store(path, cache)
    assert is_prepared(path, cache)
    assert open_store(path, cache).read("k") == b"newer and longer"
    assert reader.read("k") == b"old"
    assert not first.keys() & kept(cache)
    assert len(kept(cache)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_current_files_of_a_store_are_all_that_the_cache_holds_of_it(
    kind: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    path, cache = tmp_path / kind, tmp_path / "cache"
    KINDS[kind](path, files)
    named = current_files(path, cache)
    assert all(file.parent == cache / "stores" for file in named)
    prepare_store(path, cache)
    assert current_files(path, cache) == named == kept(cache)
    assert len(named) == (0 if kind == "folder" else 2 if kind.startswith(("hf", "mimicit")) else 1)
    assert is_prepared(path, cache)
    if kind != "folder":
        os.utime(path, ns=(0, 0))
        assert not current_files(path, cache) & named


def test_what_is_not_an_archive_is_not_prepared_and_has_no_current_files(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.zip", tmp_path / "a.zip"):
        assert not is_prepared(path, tmp_path / "cache")
        with pytest.raises(DataError, match=path.name):
            current_files(path, tmp_path / "cache")
        (tmp_path / "a.zip").write_bytes(b"no archive")


def test_a_killed_build_of_an_index_leaves_only_partial_files(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_hugging_face_parquet(tmp_path / "a.parquet", files)
    monkeypatch.setattr(Path, "replace", failing(errno.EIO))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as if there had been no time for it
    for _ in range(2):
        with pytest.raises(DataError):
            prepare_store(tmp_path / "a.parquet", tmp_path / "cache")
    left = kept(tmp_path / "cache")
    assert len(left) == 4
    assert left == set((tmp_path / "cache").glob("**/.*.partial"))


def test_an_archive_may_have_the_longest_name_that_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / f"{'猫' * 83}.tar"
    as_tar(path, {"a": b"photo"})
    assert opened(path).read("a") == b"photo"


def test_archives_of_one_name_in_two_folders_share_a_cache(tmp_path: Path) -> None:
    for folder in "xy":
        as_folder(tmp_path, {f"{folder}/.keep": b""})
        as_json(tmp_path / folder / "SN.json", {"k": folder.encode()})
        prepare_store(tmp_path / folder / "SN.json", tmp_path / "cache")
    assert [open_store(tmp_path / f / "SN.json", tmp_path / "cache").read("k") for f in "xy"] == [b"x", b"y"]


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"k": ')
    with pytest.raises(DataError):
        prepare_store(tmp_path / "a.json", tmp_path / "cache")
    assert kept(tmp_path / "cache") == set()


def test_a_damaged_index_is_a_data_error(tmp_path: Path) -> None:
    as_json(tmp_path / "a.json", {"k": b"x"})
    prepare_store(tmp_path / "a.json", tmp_path / "cache")
    (index,) = kept(tmp_path / "cache")
    whole = index.read_bytes()
    for damaged in (whole[:100], whole[:-1], b"", *(flipped(whole, bit) for bit in range(0, len(whole) * 8, 97))):
        index.write_bytes(damaged)
        with pytest.raises(DataError, match="delete it"):
            open_store(tmp_path / "a.json", tmp_path / "cache")


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar.gz", b"\x1f\x8b\x08\0", "gzip: .*unpack it first"),
        ("a.tgz", b"BZh91", "bzip2: .*unpack"),
        ("a.json", b"[1]", "starts with b.*expected a folder"),
        ("a.jpg", b"\xff\xd8\xff", "is not an image store"),
        ("a.json", b"", "is not an image store"),
        ("a.tar", b"x" * 2000, "damaged tar"),
        ("a.zip", b"PK\3\4" + b"x" * 50, "cut off"),
        ("a.parquet", b"PAR1" + b"x" * 50, "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_not_an_archive_is_a_data_error(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        prepare_store(tmp_path / name, tmp_path / "cache")
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_store_that_is_not_there_or_a_pipe_is_a_data_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent.zip", "pipe"):
        for use in (prepare_store, open_store):
            with pytest.raises(DataError, match=name):
                use(tmp_path / name, tmp_path / "cache")


def test_a_repeated_key_is_unreadable_but_a_tar_means_its_last_member(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"k": "AAAA", "other": "AAAB", "k": "AAAA"}')
    store = opened(tmp_path / "a.json")
    with pytest.raises(RejectError, match=r"image_unreadable.*appears twice"):
        store.read("k")
    assert store.read("other") == b"\0\0\1"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for data in (b"1", b"22", b"333"):
            member = tarfile.TarInfo("k")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert opened(tmp_path / "a.tar").read("k") == b"333"


def test_keys_whose_hashes_collide_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xxhash.xxh3_64_intdigest", lambda key: len(key))
    as_json(tmp_path / "a.json", {f"k{number}": bytes([number]) for number in range(10)} | {"long": b"x"})
    store = opened(tmp_path / "a.json")
    assert [store.read(f"k{number}") for number in range(10)] == [bytes([number]) for number in range(10)]
    assert reason(store, "kx") == "image_missing"


def test_a_git_lfs_pointer_in_place_of_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DataError, match=r"images\.tar: is a Git LFS pointer"):
        prepare_store(path, tmp_path / "cache")


def test_the_index_of_another_archive_is_not_used(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("a.tar", "b.tar"):
        as_tar(tmp_path / name, {"k": name.encode() * 9, "padding": bytes(600)})
        prepare_store(tmp_path / name, cache)
    own, other = (next(cache.glob(f"stores/{name}*.arrow")) for name in ("a.tar", "b.tar"))
    own.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match=rf"{own}: cannot be read \(it is not the file that was written\); delete it"):
        open_store(tmp_path / "a.tar", cache)


@pytest.mark.parametrize("kind", ["hf parquet", "mimicit parquet"])
def test_every_flipped_bit_of_a_copy_is_found_when_its_image_is_read(kind: str, tmp_path: Path) -> None:
    path, cache = tmp_path / "a.parquet", tmp_path / "cache"
    images = {f"{number}.jpg": bytes([number]) * (5000 * number + 7) for number in range(2)}
    {"hf parquet": as_hugging_face_parquet, "mimicit parquet": as_mimicit_parquet}[kind](path, images)
    prepare_store(path, cache)
    (copy,) = cache.glob("stores/*.blob")
    whole = copy.read_bytes()
    for byte in (0, 6, 7, 8, 900, len(whole) - 4097, len(whole) - 4096, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[byte] ^= 1
        copy.write_bytes(damaged)
        store, name = open_store(path, cache), f"{int(byte > 6)}.jpg"
        with pytest.raises(DataError, match=rf"{copy}: the copy of image '{name}' is damaged.*remove .*\.arrow, which"):
            store.read(name)
        assert store.read(f"{int(byte <= 6)}.jpg") == images[f"{int(byte <= 6)}.jpg"]
        if byte >= len(whole) - 4096:
            with pytest.raises(DataError, match="is damaged"):
                store.tail(name)
    copy.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"copy of image '1\.jpg' is damaged"):
        open_store(path, cache).read("1.jpg")


@pytest.mark.parametrize("state", ["missing", "a folder"])
def test_a_copy_that_is_not_there_is_made_again_or_what_is_there_named(state: str, tmp_path: Path) -> None:
    path, cache = tmp_path / "a.parquet", tmp_path / "cache"
    as_hugging_face_parquet(path, {"k": b"photo"})
    prepare_store(path, cache)
    (copy,) = cache.glob("stores/*.blob")
    copy.unlink()
    assert not is_prepared(path, cache)
    if state == "missing":
        prepare_store(path, cache)
        assert open_store(path, cache).read("k") == b"photo"
    else:
        copy.mkdir()
        with pytest.raises(DataError, match=rf"{copy}: Is a directory; a file is expected there: move the folder away"):
            prepare_store(path, cache)


def test_a_full_disk_names_the_folder_of_the_index_and_not_the_archive(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_hugging_face_parquet(tmp_path / "a.parquet", files)
    monkeypatch.setattr(index_cache, "flush_and_close", failing(errno.ENOSPC))
    with pytest.raises(DataError, match=rf"^{tmp_path}/cache/stores: No space .*bytes free\); free some space"):
        prepare_store(tmp_path / "a.parquet", tmp_path / "cache")
