"""Builds behind URLs: a real S3 server, fsspec's memory, and a network that fails as often as a test asks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shards
import shards.storage.remote
from shards import Build, ShardError
from shards.storage.cache import Cache
from shards.storage.remote import RemoteStore
from shards.storage.store import LocalStore, open_store
from shards.upload import check_target
from tests.support.paths import ROOT
from tests.support.remote_builds import (
    Flaky,
    all_samples,
    both,
    files_at,
    flip,
    local_files,
    publish,
    write_at,
)
from tests.support.waiting import LIMIT_S

pytestmark = [
    pytest.mark.usefixtures("cache_home"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


# Reading and writing


@both
def test_a_build_comes_back_as_it_went(folder: Path, url: str) -> None:
    publish(folder, url)
    assert files_at(url) == local_files(folder)
    build, local = shards.open(url), shards.open(folder)
    assert build.manifest.hash == local.manifest.hash
    assert len(build) == 13
    assert all_samples(build) == all_samples(local)
    assert shards.verify(build).problems == []
    assert shards.verify(build).size_bytes == shards.verify(local).size_bytes


def test_a_file_url_is_the_folder_itself_and_needs_no_cache(folder: Path, cache_home: Path) -> None:
    build = shards.open(f"file://{folder}")
    assert isinstance(build.store, LocalStore)
    assert all_samples(build) == all_samples(shards.open(folder))
    assert not cache_home.exists()


def test_files_are_read_in_pieces_that_make_the_whole(
    folder: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder, memory)
    monkeypatch.setattr(shards.storage.remote, "PIECE_BYTES", 100)
    for pieces in (1, 3):
        monkeypatch.setattr(shards.storage.remote, "PIECES", pieces)
        store = RemoteStore(memory)
        for path, data in local_files(folder).items():
            parts = list(store.stream(path))
            assert b"".join(parts) == data
            assert {len(part) for part in parts[:-1]} <= {100}


def _read_all(build: Build, found: Any) -> None:
    found.put(all_samples(build))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(folder: Path, bucket: str, tmp_path: Path, method: str) -> None:
    """The parent has asked already, so a forked child inherits a connection that it cannot use."""
    url = f"{bucket}/{tmp_path.name}"
    publish(folder, url)
    build = shards.open(url)
    assert build["train"][0].key
    shutil.rmtree(build.store.cache.folder)  # type: ignore[attr-defined]
    fresh = shards.open(url)
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    crew = [context.Process(target=_read_all, args=(fresh, queue), daemon=True) for _ in range(2)]
    for process in crew:
        process.start()
    actual = [queue.get(timeout=LIMIT_S) for _ in crew]
    for process in crew:
        process.join(LIMIT_S)
        assert process.exitcode == 0
    expected = all_samples(shards.open(folder))
    assert actual == [expected, expected]
    assert all_samples(build) == expected  # the parent's connection still works


def test_a_store_travels_with_its_cache(memory: str, tmp_path: Path) -> None:
    store = RemoteStore(memory, Cache(tmp_path, max_bytes=7))
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.location, copy.cache.folder, copy.cache.max_bytes) == (memory, tmp_path, 7)


def test_only_what_is_needed_is_downloaded_and_only_once(folder: Path, flaky: str) -> None:
    publish(folder, flaky)
    Flaky.answers.clear()
    build = shards.open(flaky)
    assert Flaky.answers == ["/bucket/build/manifest.json"]
    first = build.manifest.datasets["alpha"].shards["train"][0]
    assert build["train"][0].key == "alpha-train-00000"
    assert Flaky.answers[1:] == [f"/bucket/build/{first.index}", f"/bucket/build/{first.path}"]
    assert build["train"][1].key == shards.open(flaky)["train"][1].key
    assert len(Flaky.answers) == 4  # the second manifest


def test_a_build_bigger_than_the_cache_is_read_through_it(folder: Path, memory: str, tmp_path: Path) -> None:
    publish(folder, memory)
    largest = max(len(data) for path, data in local_files(folder).items() if path.startswith("shards"))
    small = Cache(tmp_path / "small", max_bytes=largest)
    build = shards.open(memory, cache=small)
    for _ in range(2):
        assert all_samples(build) == all_samples(shards.open(folder))
    assert sum(path.stat().st_size for path in small.folder.glob("[0-9a-f]*")) <= largest


@both
def test_the_tokenizer_comes_into_one_folder(folder: Path, url: str) -> None:
    publish(folder, url)
    actual = shards.open(url).tokenizer_folder()
    assert local_files(actual) == local_files(folder / "tokenizer")
    assert shards.open(url).tokenizer_folder() == actual


def test_a_local_builds_tokenizer_is_its_own_folder_after_its_digests_were_compared(folder: Path) -> None:
    assert shards.open(folder).tokenizer_folder() == folder / "tokenizer"
    path = folder / "tokenizer/tokenizer.json"
    path.write_bytes(flip(path.read_bytes(), 3))
    with pytest.raises(ShardError, match=r"tokenizer\.json: sha256 is .*, the manifest says .*; it was edited"):
        shards.open(folder).tokenizer_folder()
    path.unlink()
    with pytest.raises(ShardError, match=r"tokenizer\.json: cannot be read \(No such file"):
        shards.open(folder).tokenizer_folder()


def test_a_remote_tokenizer_that_was_edited_is_refused(folder: Path, memory: str) -> None:
    publish(folder, memory)
    write_at(f"{memory}/tokenizer/tokenizer.json", b"{}")
    with pytest.raises(ShardError, match=r"memory://bucket/build/tokenizer/tokenizer\.json: downloaded 2 times"):
        shards.open(memory).tokenizer_folder()


# Locations


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s4://bucket/build", "unknown protocol s4; did you mean s3"),
        ("qwertyuiop://bucket", "unknown protocol qwertyuiop; expected a folder, or a URL with s3, gs, file, memory"),
        ("simplecache::s3://bucket", "unknown protocol simplecache::s3"),
        (Path("s3://bucket/build"), r"one slash is missing: s3://bucket/build \(a pathlib\.Path takes it"),
        ("memory://nowhere/build", "memory://nowhere/build: no manifest.json there; it is not a finished build"),
    ],
)
def test_a_location_that_cannot_be_opened_says_why(location: str | Path, expected: str) -> None:
    with pytest.raises(ShardError, match=expected):
        shards.open(location)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("https", "aiohttp")])
def test_a_protocol_without_its_package_says_what_to_install(protocol: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import shards\n"
        f"try: shards.open('{protocol}://bucket/build')\n"
        "except shards.ShardError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert f"{protocol} needs a package that is not installed; pip install 'dsvl[remote]'" in done.stdout


def test_a_protocol_that_the_extra_does_not_bring_names_its_own_package() -> None:
    code = (
        "import sys; sys.modules['adlfs'] = None\n"
        "import shards\n"
        "try: shards.open('abfs://container/build')\n"
        "except shards.LocationError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "abfs needs a package that is not installed; dsvl[remote] does not bring it: Install adlfs" in done.stdout


def test_a_bucket_that_is_not_there_holds_no_build(bucket: str) -> None:
    with pytest.raises(ShardError, match=r"no manifest\.json there"):
        shards.open("s3://nobodys-bucket/build")
    with pytest.raises(ShardError, match="s3://nobodys-bucket/build: there is no such bucket; make it, or fix the URL"):
        check_target(RemoteStore("s3://nobodys-bucket/build"))


def test_local_builds_load_nothing_of_fsspec(folder: Path) -> None:
    code = (
        f"import sys, shards\nassert shards.open({str(folder)!r})['train'][0].key\n"
        "assert not {'fsspec', 's3fs', 'aiohttp', 'botocore', 'shards.storage.remote'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_slashes_and_capitals_make_no_other_location(memory: str) -> None:
    assert open_store("MEMORY://bucket/build/").location == memory
    assert open_store(f"{memory}//").name("manifest.json") == f"{memory}/manifest.json"


# Copies that go away or are damaged


def test_a_damaged_copy_is_named_with_what_to_do(folder: Path, memory: str) -> None:
    publish(folder, memory)
    build = shards.open(memory)
    assert build["train"][0].key
    info = build.manifest.datasets["alpha"].shards["train"][0]
    for sha256, suffix, expected in (
        (info.sha256, ".tar", rf"{memory}/{info.path}: sample alpha-train-00000 is damaged: .*"),
        (info.index_sha256, ".arrow", rf"{memory}/{info.index}: sha256 is .*"),
    ):
        copy = Cache().folder / f"{sha256}{suffix}"
        sound = copy.read_bytes()
        copy.write_bytes(flip(sound, 700))
        with pytest.raises(ShardError, match=rf"{expected}; if only the copy {copy} is damaged, delete it"):
            assert shards.open(memory)["train"][0]
        copy.unlink()
        assert all_samples(shards.open(memory)) == all_samples(shards.open(folder))


def test_a_file_that_another_process_removes_before_it_is_opened_is_fetched_again(
    folder: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder, memory)
    build = shards.open(memory)
    real, times = RemoteStore.local, dict[str, int]()

    def local(store: RemoteStore, path: str, *, size: int | None, sha256: str) -> Path:
        actual = real(store, path, size=size, sha256=sha256)
        times[path] = times.get(path, 0) + 1
        if times[path] < 3:
            actual.unlink()
        return actual

    monkeypatch.setattr(RemoteStore, "local", local)
    assert all_samples(build) == all_samples(shards.open(folder))
    assert set(times.values()) == {3}
    times.clear()
    monkeypatch.setattr(RemoteStore, "local", lambda *_, **__: folder / "nowhere")
    with pytest.raises(ShardError, match="cannot be read"):
        assert shards.open(memory)["train"][0]


def test_removed_copies_do_not_stay_open(folder: Path, memory: str, tmp_path: Path) -> None:
    """An open file takes space on the disk after it was removed, which the cache does not see."""
    publish(folder, memory)
    cache = Cache(tmp_path / "small", max_bytes=20_000)
    build = shards.open(memory, cache=cache)
    samples = [build["train"][index] for index in range(3)]
    assert all_samples(build) == all_samples(shards.open(folder))
    assert samples[0].images == build["train"][0].images
    for _ in range(2):
        open_files = Path("/proc/self/fd")
        if open_files.exists():
            links = [os.readlink(file) for file in open_files.iterdir() if file.is_symlink()]
            removed = [link for link in links if str(cache.folder) in link and ".tar (deleted)" in link]
            assert len(removed) <= len(build.splits), "the one that was opened last"
        shards.verify(build)
