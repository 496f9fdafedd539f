"""Image stores: every kind gives the same bytes, names cannot leave, and what is broken is said with its place."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess import archives, base64_json, parquet_images, store_cache, store_index, stores
from preprocess.conversation import REASONS, Image
from preprocess.errors import DataError
from preprocess.stores import (
    FolderStore,
    ImageError,
    ImageStore,
    StoreList,
    current_files,
    is_prepared,
    open_store,
    open_stores,
    prepare_store,
)

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
PHOTOS = EXAMPLES / "coco" / "train2017"


@pytest.fixture
def files() -> dict[str, bytes]:
    pictures = {path.name: path.read_bytes() for path in sorted(PHOTOS.iterdir())}
    return pictures | {"below/a folder/ümlaut.jpg": next(iter(pictures.values())) + b"x"}


def as_folder(path: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def as_json(path: Path, files: dict[str, bytes]) -> None:
    path.write_text(json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()}, indent=1))


def as_php_json(path: Path, files: dict[str, bytes]) -> None:
    """With \\/ for each slash, as PHP writes it, a byte order mark, and data URLs."""
    texts = {name: "data:image/jpeg;base64," + base64.b64encode(data).decode() for name, data in files.items()}
    path.write_text(json.dumps(texts, ensure_ascii=False).replace("/", "\\/"), encoding="utf-8-sig")


def as_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("below")
        for name, data in files.items():
            archive.writestr(name, data)


def as_deflated_zip(path: Path, files: dict[str, bytes]) -> None:
    as_zip(path, files, zipfile.ZIP_DEFLATED)


def as_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo("./" + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def as_mimicit_parquet(path: Path, files: dict[str, bytes]) -> None:
    texts = [base64.b64encode(data).decode() for data in files.values()]
    pq.write_table(pa.table({"base64": texts, "__index_level_0__": list(files)}), path)


def as_hugging_face_parquet(path: Path, files: dict[str, bytes]) -> None:
    cells = [{"bytes": data, "path": name} for name, data in files.items()]
    pq.write_table(pa.table({"text": ["t"] * len(cells), "image": cells}), path, row_group_size=5)


KINDS: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "folder": as_folder,
    "base64.json": as_json,
    "php.json": as_php_json,
    "stored.zip": as_zip,
    "deflated.zip": as_deflated_zip,
    "plain.tar": as_tar,
    "mimicit.parquet": as_mimicit_parquet,
    "hf.parquet": as_hugging_face_parquet,
}


def opened(path: Path) -> ImageStore:
    prepare_store(path, path.parent / "cache")
    return open_store(path, path.parent / "cache")


def reason(store: ImageStore, name: str) -> str:
    with pytest.raises(ImageError) as caught:
        store.read(name)
    assert caught.value.reason in REASONS
    return caught.value.reason


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
        with pytest.raises(ImageError, match=kind) as caught:
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
        with pytest.raises(ImageError, match="image_path"):
            store.stamp(name)


@pytest.mark.parametrize("name", ["a\\b.jpg", "..\\a.jpg", "a\0.jpg", "a/\0", "y" * 300, "\ud800.jpg"])
def test_a_name_that_is_no_file_name_is_an_image_path_error_in_a_folder(name: str, tmp_path: Path) -> None:
    assert reason(FolderStore(tmp_path), name) == "image_path"


def test_names_with_dots_that_are_no_steps_are_fine(tmp_path: Path) -> None:
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
        with pytest.raises(ImageError, match="image_unreadable"):
            store.stamp(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(PermissionError):
        FolderStore(tmp_path).read("a")


# What another run may find mended


def failing(code: int, *filename: str) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code), *filename)

    return fail


PASSING = [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOMEM]


@pytest.mark.parametrize("code", PASSING)
@pytest.mark.parametrize("call", ["open", "fstat", "pread"])
def test_an_error_that_may_pass_is_no_answer_about_a_picture_in_a_folder(
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
    ("code", "wanted"),
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
    code: int, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", failing(code))
    assert reason(FolderStore(tmp_path), "a") == wanted


def test_a_folder_that_is_gone_says_nothing_of_its_pictures(tmp_path: Path) -> None:
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
def test_an_error_that_may_pass_is_no_answer_about_a_picture_in_an_archive(
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
    monkeypatch.setattr(stores, "MAX_IMAGE_BYTES", 1000)
    assert reason(opened(tmp_path / kind), "000000000101.jpg") == "image_too_large"


def test_an_image_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("image_path", "why")))
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
    with pytest.raises(ImageError, match=r"one has no 'c'.*two.zip has no 'c'"):
        both.read(Image(name="c"))
    with pytest.raises(ImageError, match="image_missing"):
        both.read(Image(name="b", store=0))
    with pytest.raises(ImageError, match="image_unreadable"):  # it is there, and broken: not to be papered over
        both.read(Image(name="empty"))
    with pytest.raises(ImageError, match="image_missing"):
        StoreList([]).read(Image(name="a"))


# The cache


def kept(cache: Path) -> set[Path]:
    return {path for path in cache.rglob("*") if path.is_file()}


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
    with pytest.raises(DataError, match="was changed since"):
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
    assert len(named) == (0 if kind == "folder" else 2 if "parquet" in kind else 1)
    assert is_prepared(path, cache)
    if kind != "folder":
        os.utime(path, ns=(0, 0))
        assert not current_files(path, cache) & named


def test_what_is_no_archive_is_not_prepared_and_has_no_current_files(tmp_path: Path) -> None:
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
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(DataError, match="delete it"):
        open_store(tmp_path / "a.json", tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar.gz", b"\x1f\x8b\x08\0", "gzip; unpack it first"),
        ("a.tgz", b"BZh91", "bzip2; unpack"),
        ("a.json", b"[1]", "starts with b.*wanted a folder"),
        ("a.jpg", b"\xff\xd8\xff", "no image store"),
        ("a.json", b"", "no image store"),
        ("a.tar", b"x" * 2000, "damaged tar"),
        ("a.zip", b"PK\3\4" + b"x" * 50, "cut off"),
        ("a.parquet", b"PAR1" + b"x" * 50, "damaged Parquet"),
    ],
)
def test_a_file_that_is_no_archive_is_a_data_error(name: str, data: bytes, message: str, tmp_path: Path) -> None:
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
    with pytest.raises(ImageError, match=r"image_unreadable.*appears twice"):
        store.read("k")
    assert store.read("other") == b"\0\0\1"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for data in (b"1", b"22", b"333"):
            member = tarfile.TarInfo("k")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert opened(tmp_path / "a.tar").read("k") == b"333"


def test_keys_whose_hashes_collide_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xxhash.xxh3_64_intdigest", lambda key: len(key))
    as_json(tmp_path / "a.json", {f"k{number}": bytes([number]) for number in range(10)} | {"long": b"x"})
    store = opened(tmp_path / "a.json")
    assert [store.read(f"k{number}") for number in range(10)] == [bytes([number]) for number in range(10)]
    assert reason(store, "kx") == "image_missing"


# Base64 JSON

SPACE = st.text(alphabet=" \t\r\n", max_size=3)
HEX = st.sampled_from(["\\u00{:02x}", "\\u00{:02X}"])


@st.composite
def json_strings(draw: st.DrawFn, text: str) -> str:
    """One of the ways in which JSON may write a text."""
    out = []
    for character in text:
        ways = [json.dumps(character)[1:-1], json.dumps(character, ensure_ascii=False)[1:-1]]
        if character == "/":
            ways.append("\\/")
        if ord(character) < 256:
            ways.append(draw(HEX).format(ord(character)))
        weight = draw(st.integers(0, 9))
        out.append(ways[1] if weight < 8 else draw(st.sampled_from(ways)))
    return '"' + "".join(out) + '"'


KEYS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\"/{}[],:'), min_size=1, max_size=8)
OTHERS = st.sampled_from(
    ["null", "-1.5e3", "true", "[]", '[{"a": "]"}, "\\"}"]', '{"meta": ["\\\\", {}]}', "[ [ ] ,\n 1 ]"]
)


@given(data=st.data(), window=st.integers(1, 40), images=st.dictionaries(KEYS, st.binary(max_size=60), max_size=5))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_spelling_of_a_json_object_is_read_as_json_reads_it(
    data: st.DataObject,
    window: int,
    images: dict[str, bytes],
    tmp_path: Path,
) -> None:
    members = []
    for key, image in images.items():
        if data.draw(st.integers(0, 5)) == 0:
            value = data.draw(OTHERS)
        else:
            value = data.draw(json_strings(base64.b64encode(image).decode()))
        space = [data.draw(SPACE) for _ in range(4)]
        members.append(f"{space[0]}{data.draw(json_strings(key))}{space[1]}:{space[2]}{value}{space[3]}")
    text = f"{data.draw(SPACE)}{{{','.join(members) or data.draw(SPACE)}}}{data.draw(SPACE)}"
    path = tmp_path / "store.json"
    path.write_bytes(text.encode())
    expected = json.loads(text)
    builder = store_index.IndexBuilder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base64_json, "WINDOW_BYTES", window)
        if expected and not any(isinstance(value, str) for value in expected.values()):
            with pytest.raises(DataError, match="annotation file"):
                base64_json.index_base64_json(path, builder)
            return
        base64_json.index_base64_json(path, builder)
    builder.write(tmp_path / "index")
    index = store_index.Index(tmp_path / "index")
    assert len(index.keys) == len(expected)
    raw = path.read_bytes()
    for key, value in expected.items():
        entry = index.find(key)
        assert entry is not None
        packed = raw[entry.offset : entry.offset + entry.size]
        if isinstance(value, str):
            escaped = entry.packing == store_index.Packing.BASE64_ESCAPED
            assert base64_json.decode_base64(packed, escaped=escaped) == images[key]
            assert escaped == (b"\\" in packed)
        else:
            assert entry.packing == store_index.Packing.NOT_TEXT
            assert json.loads(packed) == value


BROKEN = [
    ('{"a": "AAAA"', 1, 13),
    ('{"a": "AAAA",', 1, 14),
    ('{"a": "AAAA",}', 1, 14),
    ('{"a": "AAAA" "b": "AAAA"}', 1, 14),
    ('{"a": "AAAA"}\n {', 2, 2),
    ('{\n  "a": "AAAA",\n  "b": "AA', 3, 8),
    ('{\n"a" "AAAA"}', 2, 5),
    ('{\n"ü\\x": "AAAA"}', 2, 3),
    ('{"ü": x}', 1, 7),
    ('{"ü": }', 1, 7),
    ('{"a": 01}', 1, 8),
    ('{"a": [1, {"b": ]}', 1, 17),
    ('{"a": [1, 2 3], "b": "AAAA"}', 1, 13),
    ('{"a\nb": "AAAA"}', 1, 4),
    ("{1: 2}", 1, 2),
    ("{'a': 'AAAA'}", 1, 2),
    ("{", 1, 2),
    ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", 1, 7),
    ('{"a": ' + "1" * 10_000 + "}", 1, 7),
]


@pytest.mark.parametrize(("text", "line", "column"), BROKEN)
@pytest.mark.parametrize("window", [1, 7, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_broken_json_is_named_by_line_and_column(
    text: str, line: int, column: int, window: int, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if window == 1 and len(text) > 1000:
        pytest.skip("a read for every byte")
    monkeypatch.setattr(base64_json, "WINDOW_BYTES", window)
    (tmp_path / "a.json").write_text(text, encoding=encoding)
    with pytest.raises(DataError, match=rf"a\.json, line {line}, column {column}: broken"):
        prepare_store(tmp_path / "a.json", tmp_path / "cache")


def test_a_base64_json_cut_anywhere_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64_json, "WINDOW_BYTES", 16)
    text = '{"a\\"é": "AAAA\\/AAA",\n "b": {"c": [1]}, "d": -1.5 }'.encode()
    for length in range(len(text)):
        (tmp_path / "a.json").write_bytes(text[:length])
        with pytest.raises(DataError):
            base64_json.index_base64_json(tmp_path / "a.json", store_index.IndexBuilder())


def test_bytes_that_are_not_utf8_in_a_key_are_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a\xff": "AAAA"}')
    with pytest.raises(DataError, match=r"column 4: .*not UTF-8"):
        prepare_store(tmp_path / "a.json", tmp_path / "cache")


@pytest.mark.parametrize(
    "value",
    [
        *('"data:image/jpeg,AAAA"', '"data:image/jpeg;base64"', '"AAAA\nAAAA"', '"ü"'),
        *(
            '"AAA"',
            '"AAAA AAAA"',
            '"AAAA\\nAAAA"',
            '"AA==AAAA"',
            '"A-_A"',
            '"\\q"',
            '"\\u00e9AAA"',
            '""',
            "7",
            "null",
            "{}",
        ),
    ],
)
def test_a_value_that_is_not_base64_is_one_unreadable_image(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"bad": {value}, "good": "AAAA"}}')
    store = opened(tmp_path / "a.json")
    assert reason(store, "bad") == "image_unreadable"
    assert store.read("good") == b"\0\0\0"


def test_an_annotation_file_is_not_taken_for_an_image_store(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"meta": {}, "data": {"k": {"instruction": "?"}}}')
    with pytest.raises(DataError, match="annotation file"):
        prepare_store(tmp_path / "a.json", tmp_path / "cache")


@pytest.mark.parametrize("name", ["SD", "SN", "TVC", "VST"])
def test_the_mimic_it_example_stores_are_read_as_json_reads_them(name: str, tmp_path: Path) -> None:
    path = EXAMPLES / "MIMIC-IT" / f"{name}.json"
    prepare_store(path, tmp_path)
    store = open_store(path, tmp_path)
    for key, text in json.loads(path.read_text()).items():
        assert store.read(key) == base64.b64decode(text)


# Zip and tar


def test_a_zip_with_bytes_before_it_and_64_bit_sizes_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        with archive.open("a.jpg", "w", force_zip64=True) as member:
            member.write(b"photo")
        archive.comment = b"PK\6\6 a comment"
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 something before" + buffer.getvalue())
    assert opened(tmp_path / "a.zip").read("a.jpg") == b"photo"


def test_a_zip_of_more_than_65535_members_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(66_000):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"x")
        archive.writestr("last", b"end")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    store = opened(tmp_path / "a.zip")
    assert store.read("last") == b"end"
    assert store.read("65999") == b"x"


def test_a_zip_entry_with_a_64_bit_offset_is_found() -> None:
    extra = struct.pack("<HHB", 9, 1, 0) + struct.pack("<HHQQ", 1, 16, 5 << 32, 6 << 32)
    assert archives._wide(Path("z"), extra, 7, 0xFFFFFFFF, 0xFFFFFFFF) == (7, 5 << 32, 6 << 32)
    with pytest.raises(DataError, match="64-bit"):
        archives._wide(Path("z"), extra, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def test_a_damaged_zip_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    as_deflated_zip(path, {"a.jpg": b"photo" * 100, "b.jpg": b"photo" * 100})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            prepare_store(path, tmp_path / "cache")
    for place in range(len(whole)):  # one byte wrong: refused, missing, unreadable, or not part of the picture
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        os.utime(path, ns=(0, place))
        with contextlib.suppress(DataError, ImageError):
            assert opened(path).read("a.jpg") == b"photo" * 100


def test_a_wrong_checksum_and_a_wrong_size_in_a_zip_are_unreadable() -> None:
    for packing in (store_index.Packing.ZIP_STORED, store_index.Packing.ZIP_DEFLATED):
        for crc, size in ((0, 5), (1, 4), (1, 6)):
            with pytest.raises(ValueError, match=r"wanted|checksum|invalid|stored"):
                archives.zip_member(b"hello", packing, crc, size)


def test_encrypted_and_unusual_zip_members_are_unreadable(tmp_path: Path) -> None:
    as_zip(tmp_path / "a.zip", {"a": b"x"}, zipfile.ZIP_LZMA)
    assert reason(opened(tmp_path / "a.zip"), "a") == "image_unreadable"
    as_zip(tmp_path / "b.zip", {"a": b"x"})
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(ImageError, match="encrypted"):
        opened(tmp_path / "b.zip").read("a")


def test_zip_names_without_the_utf8_flag_are_read(tmp_path: Path) -> None:
    as_zip(tmp_path / "a.zip", {"xx.jpg": b"1", "yyy.jpg": b"2"})
    data = (tmp_path / "a.zip").read_bytes().replace(b"xx.jpg", "ü.jpg".encode()).replace(b"yyy.", b"y\x81y.")
    (tmp_path / "a.zip").write_bytes(data)
    store = opened(tmp_path / "a.zip")
    assert (store.read("ü.jpg"), store.read("yüy.jpg")) == (b"1", b"2")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read_and_links_are_named(form: int, tmp_path: Path) -> None:
    long = "/".join(["folder"] * 30) + "/a.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for name in ("b.jpg", long):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(name.encode()[-5:] * 140))
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "b.jpg"
            archive.addfile(member)
    store = opened(tmp_path / "a.tar")
    assert store.read("b.jpg") == b"b.jpg" * 140
    assert store.read(long) == b"a.jpg" * 140
    for name in ("soft", "hard"):
        with pytest.raises(ImageError, match=r"image_unreadable.*dereference"):
            store.read(name)
    assert reason(store, "folder") == "image_missing"


def test_a_tar_that_is_cut_off_is_a_data_error(tmp_path: Path) -> None:
    as_tar(tmp_path / "a.tar", {"a": b"x" * 700, "b": b"y" * 700})
    whole = (tmp_path / "a.tar").read_bytes()
    for length in [0, 100, 512, 600, 1024, 1535, 1536, 1537, 2047, 2048, 2100, 3071, 3072]:
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(DataError):
            prepare_store(tmp_path / "a.tar", tmp_path / "cache")
    broken = bytearray(whole)
    broken[1536 + 5] ^= 1  # the second header: its checksum is wrong now
    (tmp_path / "a.tar").write_bytes(broken)
    with pytest.raises(DataError, match="damaged or cut off at byte 1536"):
        prepare_store(tmp_path / "a.tar", tmp_path / "cache")


def test_an_empty_archive_is_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" {\n} ")
    tarfile.open(tmp_path / "a.tar", "w").close()
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    for name in ("a.json", "a.tar", "a.zip"):
        with pytest.raises(ImageError, match=r"image_missing.*it is empty"):
            opened(tmp_path / name).read("a")


# Parquet


def test_hugging_face_rows_with_lists_and_gaps_are_keyed_by_row_and_place(tmp_path: Path) -> None:
    cells = [
        [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": "two.jpg"}],
        None,
        [],
        [None, {"bytes": b"3", "path": ""}],
        [{"bytes": None, "path": "elsewhere.jpg"}, {"bytes": b"4", "path": "0/0"}],
        [{"bytes": b"5", "path": "same.jpg"}, {"bytes": b"6", "path": "same.jpg"}],
    ]
    pq.write_table(pa.table({"images": cells, "mask": [b"m"] * 6}), tmp_path / "a.parquet", row_group_size=2)
    store = opened(tmp_path / "a.parquet")
    found = {key: store.read(key) for key in ("0/0", "0/1", "two.jpg", "3/1", "4/1", "5/0", "5/1")}
    assert found == {"0/0": b"1", "0/1": b"2", "two.jpg": b"2", "3/1": b"3", "4/1": b"4", "5/0": b"5", "5/1": b"6"}
    assert [reason(store, key) for key in ("1/0", "3/0", "6/0")] == ["image_missing"] * 3
    assert [reason(store, key) for key in ("4/0", "elsewhere.jpg", "same.jpg")] == ["image_unreadable"] * 3


def test_plain_and_listed_bytes_are_images_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"1", None, b"3"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"views": [[b"1", b"2"], [b"3"]], "x": [1, 2]}), tmp_path / "b.parquet")
    assert opened(tmp_path / "a.parquet").read("2/0") == b"3"
    assert opened(tmp_path / "b.parquet").read("0/1") == b"2"


def test_mimic_it_keys_come_from_the_pandas_index_or_a_text_column(tmp_path: Path) -> None:
    texts = ["AAAA", "not base64!", None]
    pandas = json.dumps({"index_columns": ["name"]}).encode()
    indexed = pa.table({"note": ["n"] * 3, "base64": texts, "name": ["a", "b", "c"]})
    pq.write_table(indexed.replace_schema_metadata({"pandas": pandas}), tmp_path / "a.parquet")
    ranged = json.dumps({"index_columns": [{"kind": "range"}]}).encode()
    column = pa.table({"key": ["a", "b", "c"], "base64": pa.array(texts).dictionary_encode()})
    pq.write_table(column.replace_schema_metadata({"pandas": ranged}), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        store = opened(tmp_path / name)
        assert store.read("a") == b"\0\0\0"
        assert [reason(store, key) for key in "bc"] == ["image_unreadable"] * 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"base64": ["AAAA"], "x": [1]}), "no keys beside it"),
        (pa.table({"left": [b"a"], "right": [b"a"]}), "several image columns, left, right"),
    ],
)
def test_a_parquet_file_without_clear_images_is_a_data_error(table: pa.Table, message: str, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        prepare_store(tmp_path / "a.parquet", tmp_path / "cache")


def test_a_parquet_file_without_any_images_is_an_empty_store(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "x": [1]}), tmp_path / "a.parquet")
    assert reason(opened(tmp_path / "a.parquet"), "0/0") == "image_missing"


def test_a_cut_off_parquet_file_is_a_data_error(tmp_path: Path) -> None:
    as_hugging_face_parquet(tmp_path / "a.parquet", {f"{number}": os.urandom(1000) for number in range(50)})
    whole = (tmp_path / "a.parquet").read_bytes()
    for data in (whole[:-5], whole[: len(whole) // 2], whole[:5000] + bytes(9000) + whole[14000:]):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.parquet"):
            prepare_store(tmp_path / "a.parquet", tmp_path / "cache")
    assert kept(tmp_path / "cache") == set()


def test_every_kind_of_archive_is_known_by_its_content(files: dict[str, bytes], tmp_path: Path) -> None:
    names = {"base64.json": "json", "stored.zip": "zip", "plain.tar": "tar", "hf.parquet": "parquet"}
    for kind, name in names.items():
        KINDS[kind](tmp_path / "data.bin", files)
        assert store_cache._kind(tmp_path / "data.bin", (tmp_path / "data.bin").read_bytes()[:65536]).name == name
    assert {kind.name for kind in store_cache.ARCHIVES} == set(names.values())
    assert parquet_images.unpack_parquet in [kind.unpack for kind in store_cache.ARCHIVES]
