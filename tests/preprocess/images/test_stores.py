"""Image stores: every kind gives the same bytes, names cannot leave, and a failure that may pass is never an answer."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from preprocess.conversation import Image
from preprocess.errors import RejectError
from preprocess.images import index_cache as store_cache
from preprocess.images import reading, stores
from preprocess.images.stores import FolderStore, StoreList, open_store, open_stores, prepare_store
from tests.support.image_archives import (
    KINDS,
    as_deflated_zip,
    as_folder,
    as_tar,
    as_zip,
    failing,
    opened,
    reason,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_store_returns_the_bytes_of_the_folder(
    kind: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    KINDS[kind](tmp_path / kind, files)
    store = opened(tmp_path / kind)
    assert {name: store.read(name) for name in files} == files
    for name in files:
        holder = tmp_path / kind / name if kind == "folder" else tmp_path / kind
        assert store.stamp(name) == (holder.stat().st_size, holder.stat().st_mtime_ns)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_store_says_that_an_image_is_missing(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    KINDS[kind](tmp_path / kind, files)
    store = opened(tmp_path / kind)
    for ask in (store.read, store.stamp):
        with pytest.raises(RejectError, match=kind) as caught:
            ask("absent.jpg")
        assert caught.value.reason == "image_missing"


ATTACKS = [
    "",
    ".",
    "..",
    "../a.jpg",
    "a/../../b",
    "a/..",
    "./a.jpg",
    "a/./b",
    "/etc/passwd",
    "C:/a.jpg",
    "c:a",
    "x" * 5000,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_cannot_leave_any_kind_of_store(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    KINDS[kind](tmp_path / kind, files)
    store = opened(tmp_path / kind)
    for name in ATTACKS:
        assert reason(store, name) == "image_path", name
        with pytest.raises(RejectError, match="image_path"):
            store.stamp(name)


@pytest.mark.parametrize("name", ["a\\b.jpg", "..\\a.jpg", "a\0.jpg", "a/\0", "y" * 300, "\ud800.jpg"])
def test_a_name_that_is_not_a_file_name_is_an_image_path_error_in_a_folder(name: str, tmp_path: Path) -> None:
    assert reason(FolderStore(tmp_path), name) == "image_path"


def test_names_with_dots_that_are_not_steps_are_fine(tmp_path: Path) -> None:
    files = dict.fromkeys(("..a", "a..", "...", "a/.b", "b/..c/d.", ".hidden"), b"x")
    as_folder(tmp_path / "f", files)
    assert all(opened(tmp_path / "f").read(name) == b"x" for name in files)


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"photo")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (tmp_path / "root" / "circle").symlink_to(tmp_path / "root" / "circle")
    store = FolderStore(tmp_path / "root")
    assert store.read("link.jpg") == b"photo"
    assert reason(store, "circle") == "image_unreadable"


def test_pipes_folders_and_empty_files_are_unreadable_and_never_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    store = FolderStore(tmp_path)
    assert [reason(store, name) for name in ("pipe", "folder", "empty")] == ["image_unreadable"] * 3
    assert reason(store, "empty/a.jpg") == "image_missing"
    for name in ("pipe", "folder"):
        with pytest.raises(RejectError, match="image_unreadable"):
            store.stamp(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(PermissionError):
        FolderStore(tmp_path).read("a")


# What another run may find fixed


PASSING = [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOMEM]


@pytest.mark.parametrize("code", PASSING)
@pytest.mark.parametrize("call", ["open", "fstat", "pread"])
def test_an_error_that_may_pass_says_nothing_about_an_image_in_a_folder(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    store = StoreList([FolderStore(tmp_path)])
    asks = {call: store.read} | ({"stat": store.stamp} if call == "open" else {})
    for patched, ask in asks.items():
        with monkeypatch.context() as patch:  # pytest itself calls them too
            patch.setattr(os, patched, failing(code))
            with pytest.raises(OSError, match=os.strerror(code)) as caught:
                ask(Image(name="a"))
        assert (caught.value.errno, caught.value.filename) == (code, str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOENT, "image_missing"),
        (errno.ENOTDIR, "image_missing"),
        (errno.ELOOP, "image_unreadable"),
        (errno.EISDIR, "image_unreadable"),
        (errno.ENXIO, "image_unreadable"),
        (errno.ENAMETOOLONG, "image_path"),
        (errno.EILSEQ, "image_path"),
    ],
)
def test_an_error_that_stays_is_an_image_error(
    code: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", failing(code))
    assert reason(FolderStore(tmp_path), "a") == expected


def test_a_folder_that_is_gone_says_nothing_of_its_images(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    store = open_store(tmp_path / "f", tmp_path / "cache")
    assert reason(store, "a") == "image_missing"
    (tmp_path / "f").rmdir()
    for ask in (store.read, store.stamp):
        with pytest.raises(FileNotFoundError) as caught:
            ask("a")
        assert caught.value.filename == str(tmp_path / "f")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
@pytest.mark.parametrize("code", PASSING[:2])
def test_an_error_that_may_pass_says_nothing_about_an_image_in_an_archive(
    kind: str, code: int, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS[kind](tmp_path / kind, files)
    store = opened(tmp_path / kind)
    assert isinstance(store, stores.ArchiveStore)
    monkeypatch.setattr(os, "pread", failing(code))
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        store.read("000000000101.jpg")
    assert (caught.value.errno, caught.value.filename) == (code, store.data_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_shrinks_while_it_is_read_is_an_os_error(
    kind: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS[kind](tmp_path / kind, files)
    store = opened(tmp_path / kind)
    pread = os.pread
    reads: list[int] = []

    def shrinking(file: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return b"" if reads.count(size) > 1 or size < 50 else pread(file, size // 2, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    with pytest.raises(OSError, match=r"ended after \d+ of \d+ bytes.*was it changed") as caught:
        store.read("000000000101.jpg")
    assert caught.value.errno == errno.EIO
    assert str(tmp_path) in caught.value.filename


def test_a_file_that_is_read_in_small_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_deflated_zip(tmp_path / "a.zip", {"a": b"picture" * 9})
    store, pread = opened(tmp_path / "a.zip"), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 3), offset))
    assert store.read("a") == b"picture" * 9


def test_a_place_that_an_archive_never_had_is_an_unreadable_image(tmp_path: Path) -> None:
    as_tar(tmp_path / "a.tar", {"a": b"x" * 700})
    store = opened(tmp_path / "a.tar")
    assert isinstance(store, stores.ArchiveStore)
    with pytest.raises(ValueError, match="but the archive ends at byte"):
        store._packed(store.data_size - 3, 4)
    store.data_size = 600
    assert reason(store, "a") == "image_unreadable"


def test_too_many_open_files_are_not_the_fault_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_tar(tmp_path / "a.tar", {"a": b"x"})
    prepare_store(tmp_path / "a.tar", tmp_path / "cache")
    cached = store_cache.find_index(tmp_path / "a.tar", tmp_path / "cache")
    monkeypatch.setattr(os, "open", failing(errno.EMFILE, "a.tar"))
    with pytest.raises(OSError, match="Too many open files"):
        stores.ArchiveStore(tmp_path / "a.tar", cached)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_too_many_bytes_is_not_read(
    kind: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS[kind](tmp_path / kind, files)
    monkeypatch.setattr(reading, "MAX_IMAGE_BYTES", 1000)
    assert reason(opened(tmp_path / kind), "000000000101.jpg") == "image_too_large"


def test_an_image_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RejectError("image_path", "why")))
    assert (error.reason, error.detail, str(error)) == ("image_path", "why", "image_path: why")


def test_an_image_without_a_store_is_taken_from_the_first_that_has_it(tmp_path: Path) -> None:
    as_folder(tmp_path / "one", {"a": b"1", "empty": b""})
    as_zip(tmp_path / "two.zip", {"a": b"2", "b": b"2", "empty": b"2"})
    paths = (tmp_path / "one", tmp_path / "two.zip")
    for path in paths:
        prepare_store(path, tmp_path / "cache")
    both = open_stores(paths, tmp_path / "cache")
    assert [both.read(image) for image in (Image(name="a"), Image(name="b"), Image(name="a", store=1))] == [
        b"1",
        b"2",
        b"2",
    ]
    assert both.stamp(Image(name="b"))[0] == (tmp_path / "two.zip").stat().st_size
    with pytest.raises(RejectError, match=r"one has no 'c'.*two.zip has no 'c'"):
        both.read(Image(name="c"))
    with pytest.raises(RejectError, match="image_missing"):
        both.read(Image(name="b", store=0))
    with pytest.raises(RejectError, match="image_unreadable"):  # it is there, and broken: not to be papered over
        both.read(Image(name="empty"))
    with pytest.raises(RejectError, match="image_missing"):
        StoreList([]).read(Image(name="a"))
