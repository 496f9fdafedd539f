"""Builds behind URLs: a real S3 server, fsspec's memory, and a network that fails as often as it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import handmade_builds
import shards
import shards.remote
from handmade_builds import draft
from s3_server import BUCKET, s3_server
from shards import Build, Sample, ShardError
from shards.cache import Cache
from shards.manifest import read_manifest
from shards.remote import RemoteStore
from shards.store import LocalStore, open_store
from shards.upload import Upload, check_target, plan_upload, run_upload

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 30


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return handmade_builds.make(tmp_path / "local").folder


@pytest.fixture
def memory() -> Iterator[str]:
    MemoryFileSystem.pseudo_dirs[:] = [""]  # folders outlive their files there
    yield "memory://bucket/build"
    MemoryFileSystem.store.clear()


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's memory behind a line on which the first `failures` answers are spoilt by `spoil`."""

    protocol = "flaky"
    failures = 0
    spoil: Callable[[bytes], bytes]
    answers: list[str] = []  # noqa: RUF012  it is of the class, like the store

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data: bytes = super().cat_file(path, start, end, **options)
        return self._answer(path, data)

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._answer(path, b"")
        return super().find(path, *arguments, **options)

    def ls(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._answer(path, b"")
        return super().ls(path, *arguments, **options)

    def put_file(self, local: str, path: str, **options: Any) -> None:
        self._answer(path, b"")
        super().put_file(local, path, **options)

    def _answer(self, path: str, data: bytes) -> bytes:
        Flaky.answers.append(path)
        if Flaky.failures:
            Flaky.failures -= 1
            return Flaky.spoil(data)
        return data


def busy(data: bytes) -> bytes:
    raise OSError(16, "Please reduce your request rate.")


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(shards.remote, "FIRST_WAIT_S", 0.0)
    Flaky.failures, Flaky.spoil = 0, staticmethod(busy)
    Flaky.answers.clear()
    yield "flaky://bucket/build"
    MemoryFileSystem.store.clear()


def publish(folder: Path, url: str) -> Upload:
    store = RemoteStore(url)
    upload = plan_upload(folder, store)
    sent: list[int] = []
    run_upload(upload, store, progress=sent.append)
    assert sum(sent) == upload.size_bytes
    return upload


def content(sample: Sample) -> tuple[Any, ...]:
    return (
        sample.key,
        sample.ids.tolist(),
        sample.labels.tolist(),
        [bytes(image) for image in sample.images],
        sample.metadata,
    )


def all_samples(build: Build) -> list[tuple[Any, ...]]:
    return [content(sample) for split in build.splits for sample in build[split]]


def files_at(url: str) -> dict[str, bytes]:
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return {path.removeprefix(root).strip("/"): files.cat_file(path) for path in files.find(root)}


def write_at(url: str, data: bytes) -> None:
    files, path = fsspec.core.url_to_fs(url)
    files.pipe_file(path, data)


def remove_at(url: str) -> None:
    files, path = fsspec.core.url_to_fs(url)
    files.rm_file(path)


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    """S3 or memory, as the test asks."""
    if request.param == "memory":
        return memory
    bucket: str = request.getfixturevalue("bucket")
    return f"{bucket}/{tmp_path.name}/a build"


both = pytest.mark.parametrize("url", ["s3", "memory"], indirect=True)


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
    monkeypatch.setattr(shards.remote, "PIECE_BYTES", 100)
    for pieces in (1, 3):
        monkeypatch.setattr(shards.remote, "PIECES", pieces)
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
    for one in crew:
        one.start()
    found = [queue.get(timeout=WAIT_S) for _ in crew]
    for one in crew:
        one.join(WAIT_S)
        assert one.exitcode == 0
    wanted = all_samples(shards.open(folder))
    assert found == [wanted, wanted]
    assert all_samples(build) == wanted  # the parent's connection still works


def test_a_store_travels_with_its_cache(memory: str, tmp_path: Path) -> None:
    store = RemoteStore(memory, Cache(tmp_path, max_bytes=7))
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.location, copy.cache.folder, copy.cache.max_bytes) == (memory, tmp_path, 7)


def test_only_what_is_needed_is_downloaded_and_only_once(folder: Path, flaky: str) -> None:
    publish(folder, flaky)
    Flaky.answers.clear()
    build = shards.open(flaky)
    assert Flaky.answers == ["/bucket/build/manifest.json"]
    first = build.manifest.shards["alpha"]["train"][0]
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
    found = shards.open(url).tokenizer_folder()
    assert local_files(found) == local_files(folder / "tokenizer")
    assert shards.open(url).tokenizer_folder() == found


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


# Damage and a bad network


@both
def test_verify_finds_a_flipped_byte_of_a_remote_file_of_any_kind(folder: Path, url: str) -> None:
    publish(folder, url)
    kinds = {Path(path).suffix: path for path in sorted(local_files(folder)) if path != "manifest.json"}
    assert set(kinds) == {".tar", ".arrow", ".json", ".jsonl", ".jinja"}
    for path in kinds.values():
        data = (folder / path).read_bytes()
        write_at(f"{url}/{path}", flip(data, len(data) // 2))
    build = shards.open(url)
    problems = shards.verify(build).problems
    assert len(problems) == len(kinds)
    for path in kinds.values():
        assert any(problem.startswith(f"{url}/{path}: sha256 is ") for problem in problems), path
    manifest = (folder / "manifest.json").read_bytes()
    write_at(f"{url}/manifest.json", flip(manifest, len(manifest) // 2))
    with pytest.raises(ShardError, match=f"{url}/manifest.json: (?:was edited or damaged|cannot be read)"):
        shards.open(url)


def test_verify_names_files_that_are_missing_or_too_many(folder: Path, memory: str) -> None:
    publish(folder, memory)
    shard = next(path for path in local_files(folder) if path.endswith(".tar"))
    remove_at(f"{memory}/{shard}")
    write_at(f"{memory}/shards/alpha/more.tar", b"")
    problems = shards.verify(shards.open(memory)).problems
    assert [problem.split(": ")[1][:15] for problem in problems] == ["cannot be read ", "lies in the bui"]
    with pytest.raises(ShardError, match="is not there, but the manifest names it; run the same dsvl-prep build"):
        all_samples(shards.open(memory))


def test_a_shard_that_was_swapped_is_refused_by_name_and_digests(folder: Path, memory: str) -> None:
    publish(folder, memory)
    info = shards.open(folder).manifest.shards["alpha"]["train"][0]
    write_at(f"{memory}/{info.path}", flip((folder / info.path).read_bytes(), 700))
    with pytest.raises(ShardError, match=rf"{memory}/{info.path}: downloaded 2 times: .* {info.sha256[:12]}"):
        assert shards.open(memory)["train"][0]


@pytest.mark.parametrize("failures", [1, shards.remote.TRIES - 1])
def test_a_failure_that_passes_goes_unnoticed(folder: Path, flaky: str, failures: int) -> None:
    publish(folder, flaky)
    Flaky.failures = failures
    build = shards.open(flaky)
    Flaky.failures = failures
    assert all_samples(build) == all_samples(shards.open(folder))
    Flaky.failures = failures
    assert shards.verify(build).problems == []
    Flaky.failures = failures
    assert build.tokenizer_folder().is_dir()
    Flaky.failures = failures
    assert build.store.files("shards")
    assert Flaky.failures == 0


def test_a_failure_that_stays_is_told_with_url_tries_and_last_error(folder: Path, flaky: str) -> None:
    publish(folder, flaky)
    build, store = shards.open(flaky), RemoteStore(flaky)
    told = "gave up after 5 tries, the last ended with OSError: .*reduce your request rate"
    for read in (
        lambda: shards.open(flaky),
        lambda: build["train"][0],
        build.tokenizer_folder,
        lambda: store.files("shards"),
        lambda: plan_upload(folder, store),
        lambda: check_target(store),
        lambda: shards.verify(build),
    ):
        Flaky.failures, before = 1000, len(Flaky.answers)
        with pytest.raises(ShardError, match=rf"flaky://bucket/build\S*: {told}"):
            read()
        assert len(Flaky.answers) == before + shards.remote.TRIES


def test_verify_names_each_file_that_cannot_be_had(folder: Path, flaky: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(folder, flaky)
    build = shards.open(flaky)
    real = Flaky.info

    def info(files: Flaky, path: str, **options: Any) -> Any:
        return busy(b"") if path.endswith(".tar") else real(files, path, **options)

    monkeypatch.setattr(Flaky, "info", info)
    problems = shards.verify(build).problems
    assert len(problems) == len(list(folder.glob("shards/*/*.tar")))
    assert all(".tar: cannot be read (gave up after 5 tries" in problem for problem in problems)


def test_waits_grow_and_are_not_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(shards.remote, "sleep", waits.append)

    def fail() -> None:
        raise TimeoutError("timed out")

    for _ in range(20):
        with pytest.raises(shards.remote.NetworkError, match="after 5 tries, the last ended with TimeoutError"):
            shards.remote.retried(fail)
    for number in range(4):
        some = waits[number::4]
        assert 0.25 * 2**number <= min(some) < max(some) <= 0.75 * 2**number


def test_no_try_begins_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 40.0, 80.0])
    monkeypatch.setattr(shards.remote, "monotonic", lambda: next(clock))
    monkeypatch.setattr(shards.remote, "sleep", lambda seconds: None)

    def fail() -> None:
        raise TimeoutError("timed out")

    with pytest.raises(shards.remote.NetworkError, match="after 2 tries"):
        shards.remote.retried(fail)


@pytest.mark.parametrize("error", [FileNotFoundError("no such key"), PermissionError("Forbidden")])
def test_what_will_not_pass_is_not_tried_again(error: OSError) -> None:
    tried: list[int] = []

    def fail() -> None:
        tried.append(1)
        raise error

    with pytest.raises(OSError, match=r"no such key|access refused .*Forbidden.*check the credentials"):
        shards.remote.retried(fail)
    assert tried == [1]


def test_a_bug_is_not_taken_for_a_bad_network() -> None:
    with pytest.raises(ZeroDivisionError):
        shards.remote.retried(lambda: 1 // 0)


def test_a_truncated_answer_is_asked_for_again(folder: Path, flaky: str) -> None:
    publish(folder, flaky)
    build = shards.open(flaky)
    Flaky.failures, Flaky.spoil = 3, staticmethod(lambda data: data[:-1])
    assert all_samples(build) == all_samples(shards.open(folder))
    Flaky.failures = 1000
    shutil.rmtree(Cache().folder)
    with pytest.raises(ShardError, match=r"gave up after 5 tries, the last ended with OSError: \d+ bytes came, wanted"):
        assert shards.open(flaky)["train"][0]


def test_an_answer_with_other_bytes_is_asked_for_again(folder: Path, flaky: str) -> None:
    publish(folder, flaky)
    build = shards.open(flaky)
    Flaky.failures, Flaky.spoil = 1, staticmethod(lambda data: flip(data, 0))
    assert all_samples(build) == all_samples(shards.open(folder))
    assert Flaky.failures == 0
    assert len([path for path in Cache().folder.iterdir() if path.name.endswith(".partial")]) == 0


def test_an_endpoint_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(shards.remote, "TRIES", 2)
    monkeypatch.setattr(shards.remote, "FIRST_WAIT_S", 0.0)
    with pytest.raises(ShardError, match=rf"{bucket}/a/manifest.json: gave up after 2 tries.*EndpointConnectionError"):
        shards.open(f"{bucket}/a")


def test_missing_credentials_are_told_at_once(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ShardError, match=r"access refused \(NoCredentialsError"):
        shards.open(f"{bucket}/a")


# Locations


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s4://bucket/build", "unknown protocol s4; did you mean s3"),
        ("qwertyuiop://bucket", "unknown protocol qwertyuiop; wanted a folder, or a URL with s3, gs, file, memory"),
        ("simplecache::s3://bucket", "unknown protocol simplecache::s3"),
        (Path("s3://bucket/build"), r"one slash is missing: s3://bucket/build \(a pathlib\.Path takes it"),
        ("memory://nowhere/build", "memory://nowhere/build: no manifest.json there; it is no finished build"),
    ],
)
def test_a_location_that_cannot_be_opened_says_why(location: str | Path, expected: str) -> None:
    with pytest.raises(ShardError, match=expected):
        shards.open(location)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_protocol_without_its_package_says_what_to_install(protocol: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import shards\n"
        f"try: shards.open('{protocol}://bucket/build')\n"
        "except shards.ShardError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert f"{protocol} needs a package that is not installed; pip install 'dsvl[remote]'" in done.stdout


def test_a_bucket_that_is_not_there_holds_no_build(bucket: str) -> None:
    with pytest.raises(ShardError, match=r"no manifest\.json there"):
        shards.open("s3://nobodys-bucket/build")
    with pytest.raises(
        ShardError, match="s3://nobodys-bucket/build: there is no such bucket; make it, or mend the URL"
    ):
        check_target(RemoteStore("s3://nobodys-bucket/build"))


def test_local_builds_load_nothing_of_fsspec(folder: Path) -> None:
    code = (
        f"import sys, shards\nassert shards.open({str(folder)!r})['train'][0].key\n"
        "assert not {'fsspec', 's3fs', 'aiohttp', 'botocore', 'shards.remote'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_slashes_and_capitals_make_no_other_location(memory: str) -> None:
    assert open_store("MEMORY://bucket/build/").location == memory
    assert open_store(f"{memory}//").name("manifest.json") == f"{memory}/manifest.json"


# Publishing


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
    content = dict(read_manifest(LocalStore(old)).content)
    (old / "tokenizer/merges.txt").write_bytes(b"a b\n")
    content["files"] = {**content["files"], "tokenizer/merges.txt": hashlib.sha256(b"a b\n").hexdigest()}
    del content["hash"]
    shards.manifest.write_manifest(old, content)
    publish(old, memory)
    write_at(f"{memory}/tokenizer/mine.txt", b"not ours")
    assert publish(folder, memory).stale == ("tokenizer/merges.txt",)
    assert set(files_at(memory)) == {*local_files(folder), "tokenizer/mine.txt"}


@pytest.mark.parametrize("change", ["shards", "rejects"])
def test_an_interrupted_upload_never_leaves_a_manifest_that_lies(
    folder: Path, flaky: str, tmp_path: Path, change: str
) -> None:
    """Stopped after any number of writes: there is the old build, the new one, or no manifest."""
    other = rebuilt(folder, tmp_path)
    if change == "rejects":
        content = dict(read_manifest(LocalStore(other)).content)
        (other / "rejects.jsonl").write_bytes(b"")
        content["files"] = {**content["files"], "rejects.jsonl": hashlib.sha256(b"").hexdigest()}
        del content["hash"]
        shards.manifest.write_manifest(other, content)
    hashes = {shards.open(build).manifest.hash: build.name for build in (folder, other)}
    outcomes = set()
    for stop in range(20):
        MemoryFileSystem.store.clear()
        publish(folder, flaky)
        store, writes = RemoteStore(flaky), iter(range(20))

        def stop_now(size: int, *, at: int = stop, writes: Iterator[int] = writes) -> None:
            if next(writes) == at:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run_upload(plan_upload(other, store), store, progress=stop_now)
            outcomes.add("done")
        if "manifest.json" not in files_at(flaky):
            outcomes.add("none")
        else:
            build = shards.open(flaky)
            outcomes.add(hashes[build.manifest.hash])
            assert all("does not name it" in problem for problem in shards.verify(build).problems)
        publish(other, flaky)
        assert files_at(flaky) == local_files(other)
    assert ("none" in outcomes) == (change == "rejects")
    assert {"local", "other", "done"} <= outcomes


def test_an_upload_that_did_not_arrive_gets_no_manifest(
    folder: Path, flaky: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flaky, "put_file", lambda self, local, path: self.pipe_file(path, b"lost"))
    with pytest.raises(ShardError, match="has 4 bytes after its upload, wanted"):
        publish(folder, flaky)
    assert "manifest.json" not in files_at(flaky)


def test_an_upload_goes_on_after_failures_and_tells_those_that_stay(folder: Path, flaky: str) -> None:
    store = RemoteStore(flaky)
    upload = plan_upload(folder, store)
    Flaky.failures = shards.remote.TRIES - 1
    run_upload(upload, store)
    assert files_at(flaky) == local_files(folder)
    MemoryFileSystem.store.clear()
    Flaky.failures = 1000
    with pytest.raises(ShardError, match=rf"{flaky}/shards/alpha/\S+: cannot be written: gave up after 5 tries"):
        run_upload(upload, store)


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


# Copies that go away or are damaged


def test_a_damaged_copy_is_named_with_what_to_do(folder: Path, memory: str) -> None:
    publish(folder, memory)
    build = shards.open(memory)
    assert build["train"][0].key
    info = build.manifest.shards["alpha"]["train"][0]
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
        found = real(store, path, size=size, sha256=sha256)
        times[path] = times.get(path, 0) + 1
        if times[path] < 3:
            found.unlink()
        return found

    monkeypatch.setattr(RemoteStore, "local", local)
    assert all_samples(build) == all_samples(shards.open(folder))
    assert set(times.values()) == {3}
    times.clear()
    monkeypatch.setattr(RemoteStore, "local", lambda *_, **__: folder / "nowhere")
    with pytest.raises(ShardError, match="cannot be read"):
        assert shards.open(memory)["train"][0]


def test_removed_copies_do_not_stay_open(
    folder: Path, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open file takes space on the disk after it was removed, which the cache does not see."""
    publish(folder, memory)
    monkeypatch.setattr("shards.split.OPEN_COPIES", 2)
    cache = Cache(tmp_path / "small", max_bytes=20_000)
    build = shards.open(memory, cache=cache)
    samples = [build["train"][index] for index in range(3)]
    assert all_samples(build) == all_samples(shards.open(folder))
    assert samples[0].images == build["train"][0].images
    for _ in range(2):
        open_files = Path("/proc/self/fd")
        if open_files.exists():
            links = [os.readlink(file) for file in open_files.iterdir() if file.is_symlink()]
            copies = [link for link in links if str(cache.folder) in link and ".tar" in link]
            assert len(copies) <= 2 * len(build.splits)
        shards.verify(build)
