"""Publishing a build: what is sent, in which order, and what a failure leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import shards
import shards.storage.retries
from shards import ShardError
from shards.files import file_sha256
from shards.format.manifest_file import read_manifest, write_manifest
from shards.storage.remote import RemoteStore
from shards.storage.signed_requests import SignedRequests
from shards.storage.store import LocalStore
from shards.upload import check_target, plan_upload, run_upload
from tests.support import handmade_builds
from tests.support.handmade_builds import draft
from tests.support.remote_builds import Flaky, both, files_at, flip, local_files, publish, remove_at, write_at
from tests.support.s3_server import BUCKET

pytestmark = pytest.mark.usefixtures("cache_home")


@both
def test_what_is_there_is_not_sent_again(folder: Path, url: str) -> None:
    first = publish(folder, url)
    assert first.paths[-1] == "manifest.json"
    assert set(first.paths) == set(local_files(folder))
    second = publish(folder, url)
    assert (second.paths, second.stale, second.size_bytes) == ((), (), 0)


@both
def test_only_what_differs_is_sent(folder: Path, url: str) -> None:
    publish(folder, url)
    shard, other = sorted(path for path in local_files(folder) if path.endswith(".tar"))[:2]
    write_at(f"{url}/{shard}", b"cut")
    remove_at(f"{url}/{other}")
    assert set(publish(folder, url).paths) == {shard, other}
    write_at(f"{url}/rejects.jsonl", flip(files_at(url)["rejects.jsonl"], 5))
    assert publish(folder, url).paths == ("rejects.jsonl", "manifest.json")
    assert files_at(url) == local_files(folder)


def name_file(build: Path, path: str) -> None:
    """Write the manifest again, with the digest that a file has now."""
    manifest = read_manifest(LocalStore(build))
    write_manifest(build, replace(manifest, files={**manifest.files, path: file_sha256(build / path)}))


def rebuilt(folder: Path, tmp_path: Path) -> Path:
    """Another build: a shard is new, two are gone, the rejects differ."""
    build = handmade_builds.Handmade(tmp_path / "other")
    build.add([draft(number, num_images=number % 4) for number in range(4)])
    build.add([draft(number, num_images=1) for number in range(20, 23)])
    return build.finish()


@both
def test_a_new_build_takes_the_place_of_an_old_one(folder: Path, url: str, tmp_path: Path) -> None:
    publish(folder, url)
    write_at(f"{url}/shards/alpha/notes.txt", b"not ours")
    other = rebuilt(folder, tmp_path)
    upload = publish(other, url)
    assert len(upload.shards) == 2
    assert len(upload.stale) == 6
    assert files_at(url) == local_files(other) | {"shards/alpha/notes.txt": b"not ours"}


def test_a_tokenizer_file_that_only_the_old_build_had_goes(folder: Path, memory: str, tmp_path: Path) -> None:
    old = handmade_builds.make(tmp_path / "old").folder
    (old / "tokenizer/merges.txt").write_bytes(b"a b\n")
    name_file(old, "tokenizer/merges.txt")
    publish(old, memory)
    write_at(f"{memory}/tokenizer/mine.txt", b"not ours")
    assert publish(folder, memory).stale == ("tokenizer/merges.txt",)
    assert set(files_at(memory)) == {*local_files(folder), "tokenizer/mine.txt"}


@pytest.mark.parametrize("change", ["shards", "rejects"])
def test_an_interrupted_upload_never_leaves_a_manifest_that_names_missing_files(
    folder: Path, flaky: str, tmp_path: Path, change: str
) -> None:
    """Stopped after any number of writes: there is the old build, the new one, or no manifest."""
    other = rebuilt(folder, tmp_path)
    if change == "rejects":
        (other / "rejects.jsonl").write_bytes(b"")
        name_file(other, "rejects.jsonl")
    hashes = {shards.open(build).manifest.hash: build.name for build in (folder, other)}
    outcomes = set()
    for stop in range(20):
        MemoryFileSystem.store.clear()
        publish(folder, flaky)
        store, writes = RemoteStore(flaky), iter(range(20))

        def stop_now(size: int, *, last_write: int = stop, writes: Iterator[int] = writes) -> None:
            if next(writes) == last_write:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run_upload(plan_upload(other, store), store, progress=stop_now)
            outcomes.add("done")
        if "manifest.json" not in files_at(flaky):
            outcomes.add("none")
        else:
            build = shards.open(flaky)
            outcomes.add(hashes[build.manifest.hash])
            assert all("not in the manifest" in problem for problem in shards.verify(build).problems)
        publish(other, flaky)
        assert files_at(flaky) == local_files(other)
    assert ("none" in outcomes) == (change == "rejects")
    assert {"local", "other", "done"} <= outcomes


def test_an_upload_that_did_not_arrive_gets_no_manifest(
    folder: Path, flaky: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flaky, "put_file", lambda self, local, path: self.pipe_file(path, b"lost"))
    with pytest.raises(ShardError, match="has 4 bytes after its upload, expected"):
        publish(folder, flaky)
    assert "manifest.json" not in files_at(flaky)


def test_an_upload_continues_after_failures_and_reports_those_that_stay(folder: Path, flaky: str) -> None:
    store = RemoteStore(flaky)
    upload = plan_upload(folder, store)
    Flaky.failures = shards.storage.retries.TRIES - 1
    run_upload(upload, store)
    assert files_at(flaky) == local_files(folder)
    MemoryFileSystem.store.clear()
    Flaky.failures = 1000
    with pytest.raises(ShardError, match=rf"{flaky}/shards/alpha/\S+: cannot be written: gave up after 5 tries"):
        run_upload(upload, store)


@both
def test_a_file_that_is_damaged_before_it_is_sent_is_never_at_the_url(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SignedRequests, "put", lambda *_: False)  # as S3 answers to bytes that have another digest
    upload = plan_upload(folder, RemoteStore(url))
    path = next(path for path in upload.shards if path.endswith(".tar"))
    data = (folder / path).read_bytes()
    (folder / path).write_bytes(flip(data, len(data) // 2))
    with pytest.raises(ShardError, match=rf"{folder / path}: sha256 is \w+, expected \w+; it was damaged or edited"):
        run_upload(upload, RemoteStore(url))
    assert path not in files_at(url)


def test_a_place_with_other_files_is_refused(memory: str, bucket: str, tmp_path: Path) -> None:
    for url in (memory, f"{bucket}/{tmp_path.name}"):
        check_target(RemoteStore(url))
        write_at(f"{url}/tokenizer/tokenizer.json", b"somebody's model")
        with pytest.raises(ShardError, match=rf"{url}: holds other files, such as tokenizer,"):
            check_target(RemoteStore(url))
        write_at(f"{url}/shards/alpha/train.tar", b"of an upload that was interrupted")
        check_target(RemoteStore(url))
        write_at(f"{url}/manifest.json", b'{"name": "a web page"}')
        with pytest.raises(ShardError, match=rf"{url}: holds other files, such as manifest\.json"):
            check_target(RemoteStore(url))
        write_at(f"{url}/thesis.tex", b"")
        with pytest.raises(ShardError, match=rf"{url}: holds other files, such as thesis\.tex"):
            check_target(RemoteStore(url))
        write_at(f"{url}/manifest.json", b'{"format": "dsvl-build"}')
        check_target(RemoteStore(url))
    assert bucket == f"s3://{BUCKET}"
