"""Paths and open files behind URLs, compared with those of pathlib."""

from __future__ import annotations

import io
import os
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.containers import remote_file, remote_requests
from preprocess.containers.remote_file import RemoteFile, expect_end
from preprocess.containers.remote_path import RemotePath, input_path
from tests.support.remote_builds import memory_url, write_at
from tests.support.remote_inputs import counted, put

TREE = ["a.json", "b.jsonl", "sub/c.json", "sub/deep/d.json", "sub/deep/e.txt", "other/c.json", ".hidden/f.json"]


@pytest.fixture
def tree(tmp_path: Path, memory: str) -> tuple[Path, RemotePath]:
    """The same files in a folder and behind a URL."""
    for number, name in enumerate(TREE):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number))
    path = input_path(tmp_path, put(tmp_path / "tree", memory))
    assert isinstance(path, RemotePath)
    return tmp_path / "tree", path


@pytest.mark.parametrize(
    "pattern", ["*.json", "*", "*/c.json", "**/*.json", "sub/**/*.txt", "s*/deep", "**", "no/*", "[ab].*", "sub/?.json"]
)
def test_glob_finds_what_pathlib_finds(tree: tuple[Path, RemotePath], pattern: str) -> None:
    local, remote = tree
    expected = {path.relative_to(local).as_posix() for path in local.glob(pattern)}
    assert {path.relative_to(remote).as_posix() for path in remote.glob(pattern)} == expected


@pytest.mark.parametrize("name", [*TREE, "sub", "sub/deep", "missing", "a.json/below"])
def test_a_path_says_of_a_name_what_pathlib_says(tree: tuple[Path, RemotePath], name: str) -> None:
    local, remote = tree[0] / name, tree[1] / name
    asked = [(path.exists(), path.is_file(), path.is_dir(), path.name, path.suffix) for path in (local, remote)]
    assert asked[0] == asked[1]
    if local.is_file():
        assert remote.stat().st_size == local.stat().st_size
        assert remote.read_bytes() == local.read_bytes()
    elif not local.exists():
        with pytest.raises(FileNotFoundError) as caught:
            remote.open()
        assert caught.value.filename == str(remote)


def test_a_path_is_its_url_wherever_text_is_needed(tree: tuple[Path, RemotePath]) -> None:
    path = tree[1] / "sub" / "c.json"
    url = "memory://bucket/build/sub/c.json"
    assert (str(path), os.fspath(path), path.as_posix(), f"{path}") == (url,) * 4
    assert pickle.loads(pickle.dumps(path)) == path
    assert isinstance(pickle.loads(pickle.dumps(path)), RemotePath)
    assert len({path, tree[1] / "sub/c.json", path.absolute(), path.resolve()}) == 1
    assert os.path.relpath(path, tree[1]) == "sub/c.json"
    assert path.parent.parent == tree[1]


def test_a_path_is_read_and_never_written(tree: tuple[Path, RemotePath]) -> None:
    for mode in ("w", "wb", "ab", "r+b"):
        with pytest.raises(OSError, match="only read"):
            (tree[1] / "a.json").open(mode)
    with pytest.raises(FileNotFoundError):
        (tree[1] / "a.json").unlink()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a/b", "/base/a/b"), ("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("memory://x/y/", "memory://x/y")],
)
def test_a_text_of_a_configuration_becomes_a_path(text: str, expected: str) -> None:
    assert str(input_path(Path("/base"), text)) == expected


def test_a_url_that_lost_a_slash_is_told_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one slash is missing: s3://bucket/a"):
        input_path(tmp_path, "s3:/bucket/a")
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    assert input_path(tmp_path, "s3:/bucket").is_dir()


def test_an_empty_object_with_the_name_of_its_folder_is_not_a_file_in_it() -> None:
    infos = {"bucket/folder/": {"size": 0}, "bucket/folder/a.jpg": {"size": 1}, "bucket/folder-2/b.jpg": {"size": 1}}
    assert list(remote_requests._named_below("bucket/folder", infos)) == ["a.jpg"]


class Small:
    """A file of 10,000 bytes with windows of a few, so that each read crosses their borders."""

    data = random.Random(3).randbytes(10_000)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "seek", "back", "peek", "end"]), st.integers(0, 9_999)), max_size=30
    )
)
def test_any_reads_and_jumps_give_the_bytes_of_a_local_file(steps: list[tuple[str, int]]) -> None:
    with memory_url() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in (("BUFFER_BYTES", 64), ("WINDOW_BYTES", 1024), ("PIECE_BYTES", 100), ("_GAP_BYTES", 50)):
            patch.setattr(remote_file, name, value)
        write_at(f"{url}/a", Small.data)
        got, expected = io.BufferedReader(RemoteFile(f"{url}/a"), 32), io.BytesIO(Small.data)
        for action, number in steps:
            match action:
                case "read":
                    assert got.read(number % 700) == expected.read(number % 700)
                case "seek":
                    assert got.seek(number) == expected.seek(number)
                case "back":
                    assert got.seek(-(number % 50), os.SEEK_END) == expected.seek(-(number % 50), os.SEEK_END)
                case "peek":
                    assert expected.getvalue()[expected.tell() :].startswith(got.peek(4)[:4])
                case _:
                    expect_end(got, number)
            assert got.tell() == expected.tell()
        assert got.read() == expected.read()


def test_a_file_that_is_read_through_costs_few_requests_and_no_byte_twice(memory: str) -> None:
    write_at(f"{memory}/a", bytes(40 << 20))
    with counted() as requests, RemotePath(f"{memory}/a").open() as file:
        while file.read(1 << 16):
            pass
    assert requests.bytes == 40 << 20
    assert requests.names["cat"] < 24


def test_jumps_over_large_members_request_a_small_part_of_a_file(memory: str) -> None:
    write_at(f"{memory}/a", bytes(64 << 20))
    with counted() as requests, RemotePath(f"{memory}/a").open() as file:
        for start in range(0, 64 << 20, 8 << 20):
            file.seek(start)
            file.read(512)
    assert requests.names["cat"] == 8
    assert requests.bytes == 8 * remote_file.BUFFER_BYTES


def test_a_part_of_a_file_requests_nothing_behind_its_end(memory: str) -> None:
    write_at(f"{memory}/a", bytes(8 << 20))
    with counted() as requests, RemotePath(f"{memory}/a").open() as file:
        expect_end(file, 3 << 20)
        file.seek(1 << 20)
        assert len(file.read(2 << 20)) == 2 << 20
    assert requests.bytes == 2 << 20
