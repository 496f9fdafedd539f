"""The cache of remote files: what it downloads again, its limit, and what a full disk leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards.storage.cache
from shards import ShardError
from shards.storage.cache import Cache, cache_home
from tests.support.cached_files import content, copies, fetch, never, size_of


def test_a_file_is_downloaded_once_and_named_by_its_digest(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "not/there/yet")
    path = fetch(cache, content(1))
    assert path.name == f"{hashlib.sha256(content(1)).hexdigest()}.tar"
    assert path.read_bytes() == content(1)
    assert fetch(cache, content(1), never) == path
    assert fetch(Cache(cache.folder), content(1), never) == path
    assert copies(cache.folder) == [path]


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    assert fetch(Cache(tmp_path), b"").read_bytes() == b""


def test_the_default_folder_is_in_the_home_or_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSVL_CACHE", raising=False)
    assert cache_home() == Path.home() / ".cache/dsvl"
    assert Cache().folder == Path.home() / ".cache/dsvl/shards"
    monkeypatch.setenv("DSVL_CACHE", "/scratch/me")
    assert Cache().folder == Path("/scratch/me/shards")


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=300)
    first, second, third = (fetch(cache, content(number)) for number in range(3))
    fetch(cache, content(0), never)
    fourth = fetch(cache, content(3))
    assert copies(tmp_path) == sorted([first, third, fourth])
    fifth = fetch(cache, content(4, 200))
    assert copies(tmp_path) == sorted([fourth, fifth])
    assert not second.exists()


def test_what_nobody_needs_any_more_takes_no_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=200)
    kept = sorted(fetch(cache, content(number)) for number in range(2))
    fetch(cache, content(2), never, ahead_if=lambda: False)
    assert copies(tmp_path) == kept


class Fetch(NamedTuple):
    number: int
    size: int


@given(
    st.lists(st.builds(Fetch, number=st.integers(0, 5), size=st.integers(0, 60)), max_size=30),
    st.integers(60, 200),
)
def test_any_fetches_give_the_right_bytes_below_the_limit(fetches: list[Fetch], limit: int) -> None:
    """Next to a slow, obvious list of what was used last."""
    with tempfile.TemporaryDirectory() as name:
        recent: list[bytes] = []
        cache = Cache(Path(name), max_bytes=limit)
        for running in fetches:
            data = content(*running)
            known = data in recent
            recent = [other for other in recent if other != data]
            while not known and sum(map(len, recent)) + len(data) > limit:
                recent.pop(0)
            recent.append(data)
            path = fetch(cache, data, never if known else None)
            assert path.read_bytes() == data
            assert size_of(cache.folder) <= limit
            assert {path.read_bytes() for path in copies(cache.folder)} == set(recent)


def test_a_file_that_was_cut_in_the_cache_is_downloaded_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = fetch(cache, content(1))
    path.write_bytes(b"short")
    assert fetch(cache, content(1)).read_bytes() == content(1)


@pytest.mark.parametrize("wrong", [content(2), content(1)[:-1], content(1) + b"x", b""])
def test_other_bytes_are_downloaded_once_more_and_then_refused(tmp_path: Path, wrong: bytes) -> None:
    cache = Cache(tmp_path)
    answers = iter([[wrong], [content(1)]])
    assert fetch(cache, content(1), lambda: next(answers)).read_bytes() == content(1)
    answers = iter([[wrong], [wrong]])
    with pytest.raises(ShardError, match=r"s3://bucket/a\.tar: downloaded 2 times: got .* the manifest says 50 bytes"):
        fetch(cache, content(1, 50), lambda: next(answers))
    assert [path.read_bytes() for path in copies(tmp_path)] == [content(1)]


def test_an_error_of_the_download_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ShardError("gave up")

    with pytest.raises(ShardError, match="gave up"):
        fetch(Cache(tmp_path), content(1), broken)
    assert copies(tmp_path) == []
    assert fetch(Cache(tmp_path), content(1)).read_bytes() == content(1)


def test_a_file_over_the_limit_is_refused_before_it_is_downloaded(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=99)
    with pytest.raises(ShardError, match=r"a\.tar has 100 bytes, and the cache may hold 99; raise its limit, or"):
        fetch(cache, content(1), never)


def test_without_a_limit_the_cache_leaves_a_tenth_of_the_space_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(folder: Path) -> shutil._ntuple_diskusage:
        return shutil._ntuple_diskusage(1000, size_of(tmp_path), 1000 - size_of(tmp_path))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    cache = Cache(tmp_path)
    for number in range(20):
        fetch(cache, content(number))
    assert size_of(tmp_path) == 900
    with pytest.raises(ShardError, match="may hold 900; free some space, or choose a folder with more"):
        fetch(cache, content(1, 901))


def test_a_full_disk_costs_older_copies_and_then_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of 250 bytes, which only says so when it is written to."""
    real = shards.storage.cache._write

    def write(path: Path, parts: Iterable[bytes]) -> tuple[str, int]:
        actual = real(path, parts)
        if size_of(tmp_path) > 250:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return actual

    monkeypatch.setattr(shards.storage.cache, "_write", write)
    cache = Cache(tmp_path)
    paths = [fetch(cache, content(number)) for number in range(5)]
    assert copies(tmp_path) == sorted(paths[-2:])
    with pytest.raises(ShardError, match=r"no room for s3://bucket/a\.tar: 251 bytes needed, \d+ free") as raised:
        fetch(cache, content(9, 251))
    assert "DSVL_CACHE" in str(raised.value)
    assert copies(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"file/cache: cannot be written or locked \(Not a directory\).*DSVL_CACHE"):
        fetch(Cache(tmp_path / "file/cache"), content(1), never)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_somebody_else_owns_can_be_read_but_not_filled(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    path = fetch(cache, content(1))
    cache.folder.chmod(0o555)
    try:
        assert fetch(cache, content(1), never) == path
        with pytest.raises(ShardError, match="Permission denied"):
            fetch(cache, content(2))
    finally:
        cache.folder.chmod(0o755)


def test_files_that_are_not_ours_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(content(7, 1000))
    cache = Cache(tmp_path, max_bytes=150)
    for number in range(3):
        fetch(cache, content(number))
    assert (tmp_path / "thesis.tex").exists()
    assert len(copies(tmp_path)) == 2


def test_a_count_that_a_killed_process_left_wrong_is_fixed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=300)
    kept = [fetch(cache, content(number)) for number in range(2)]
    for number, damage in enumerate((b"", b"00000000000000099999", b"garbage"), start=2):
        (tmp_path / ".lock").write_bytes(damage)
        kept.append(fetch(cache, content(number)))
        kept = kept[-3:]
        assert copies(tmp_path) == sorted(kept)


def test_small_files_come_into_one_folder_under_their_own_names(tmp_path: Path) -> None:
    stored = {"tokenizer/tokenizer.json": b"{}", "tokenizer/more/chat.jinja": b"{{ x }}"}
    files = {path: hashlib.sha256(data).hexdigest() for path, data in stored.items()}
    asked: list[str] = []

    def read(path: str) -> bytes:
        asked.append(path)
        return stored[path]

    cache = Cache(tmp_path)
    folder = cache.fetch_folder(files, name="s3://bucket/build", read=read)
    assert {path: (folder / path).read_bytes() for path in stored} == stored
    assert cache.fetch_folder(files, name="s3://bucket/build", read=read) == folder
    assert asked == list(stored)
    (folder / "tokenizer/tokenizer.json").write_bytes(b"[]")
    assert cache.fetch_folder(files, name="s3://bucket/build", read=read) == folder
    assert (folder / "tokenizer/tokenizer.json").read_bytes() == b"{}"


def test_a_small_file_with_other_bytes_is_read_once_more_and_then_refused(tmp_path: Path) -> None:
    files = {"tokenizer/tokenizer.json": hashlib.sha256(b"{}").hexdigest()}
    answers = iter([b"}", b"{}"])
    folder = Cache(tmp_path).fetch_folder(files, name="s3://b", read=lambda path: next(answers))
    assert (folder / "tokenizer/tokenizer.json").read_bytes() == b"{}"
    with pytest.raises(ShardError, match=r"s3://b/tokenizer/tokenizer\.json: downloaded 2 times: its sha256 is"):
        Cache(tmp_path / "other").fetch_folder(files, name="s3://b", read=lambda path: b"}")
    assert list((tmp_path / "other/folders").iterdir()) == []
