"""Remote builds over lines and in stores that fail: tried again, detected, and reported."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

import shards
import shards.storage.retries
from shards import ShardError
from shards.errors import NetworkError
from shards.storage.cache import Cache
from shards.storage.remote import RemoteStore
from shards.upload import check_target, plan_upload
from tests.support.remote_builds import Flaky, all_samples, both, busy, flip, local_files, publish, remove_at, write_at

pytestmark = pytest.mark.usefixtures("cache_home")


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
    assert [problem.split(": ")[1][:15] for problem in problems] == ["cannot be read ", "is in the build"]
    with pytest.raises(ShardError, match="is not there, but the manifest names it; run the same dsvl-prep build"):
        all_samples(shards.open(memory))


def test_a_shard_that_was_swapped_is_refused_by_name_and_digests(folder: Path, memory: str) -> None:
    publish(folder, memory)
    info = shards.open(folder).manifest.datasets["alpha"].shards["train"][0]
    write_at(f"{memory}/{info.path}", flip((folder / info.path).read_bytes(), 700))
    with pytest.raises(ShardError, match=rf"{memory}/{info.path}: downloaded 2 times: .* {info.sha256[:12]}"):
        assert shards.open(memory)["train"][0]


@pytest.mark.parametrize("failures", [1, shards.storage.retries.TRIES - 1])
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


def test_a_failure_that_stays_is_reported_with_url_tries_and_last_error(folder: Path, flaky: str) -> None:
    publish(folder, flaky)
    build, store = shards.open(flaky), RemoteStore(flaky)
    message = "gave up after 5 tries, the last ended with OSError: .*reduce your request rate"
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
        with pytest.raises(ShardError, match=rf"flaky://bucket/build\S*: {message}"):
            read()
        assert len(Flaky.answers) == before + shards.storage.retries.TRIES


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
    monkeypatch.setattr(shards.storage.retries, "sleep", waits.append)

    def fail() -> None:
        raise TimeoutError("timed out")

    for _ in range(20):
        with pytest.raises(NetworkError, match="after 5 tries, the last ended with TimeoutError"):
            shards.storage.retries.retried(fail)
    for number in range(4):
        some = waits[number::4]
        assert 0.25 * 2**number <= min(some) < max(some) <= 0.75 * 2**number


def test_no_try_begins_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 40.0, 80.0])
    monkeypatch.setattr(shards.storage.retries, "monotonic", lambda: next(clock))
    monkeypatch.setattr(shards.storage.retries, "sleep", lambda seconds: None)

    def fail() -> None:
        raise TimeoutError("timed out")

    with pytest.raises(NetworkError, match="after 2 tries"):
        shards.storage.retries.retried(fail)


@pytest.mark.parametrize("error", [FileNotFoundError("no such key"), PermissionError("Forbidden")])
def test_what_will_not_pass_is_not_tried_again(error: OSError) -> None:
    tried: list[int] = []

    def fail() -> None:
        tried.append(1)
        raise error

    with pytest.raises(OSError, match=r"no such key|access refused .*Forbidden.*check the credentials"):
        shards.storage.retries.retried(fail)
    assert tried == [1]


def test_a_refusal_without_a_reason_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.storage.retries, "FIRST_WAIT_S", 0.0)

    def fail() -> None:
        raise OSError(errno.EINVAL, "Bad Request")  # as s3fs says of HEAD requests with a token that has ended

    with pytest.raises(NetworkError, match=r"after 5 tries.* where a token has ended: renew the credentials"):
        shards.storage.retries.retried(fail)


def test_an_error_that_is_the_cause_of_its_cause_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.storage.retries, "FIRST_WAIT_S", 0.0)

    def fail() -> None:
        cause = TimeoutError("timed out")
        try:
            raise ValueError from cause
        except ValueError:
            raise cause from None

    with pytest.raises(NetworkError, match=r"after 5 tries.* TimeoutError"):
        shards.storage.retries.retried(fail)


def test_a_bug_is_not_taken_for_a_bad_network() -> None:
    with pytest.raises(ZeroDivisionError):
        shards.storage.retries.retried(lambda: 1 // 0)


def test_a_truncated_answer_is_asked_for_again(folder: Path, flaky: str) -> None:
    publish(folder, flaky)
    build = shards.open(flaky)
    Flaky.failures, Flaky.spoil = 3, staticmethod(lambda data: data[:-1])
    assert all_samples(build) == all_samples(shards.open(folder))
    Flaky.failures = 1000
    shutil.rmtree(Cache().folder)
    with pytest.raises(
        ShardError, match=r"gave up after 5 tries, the last ended with OSError: \d+ bytes came, expected"
    ):
        assert shards.open(flaky)["train"][0]


def test_an_answer_with_other_bytes_is_asked_for_again(folder: Path, flaky: str) -> None:
    publish(folder, flaky)
    build = shards.open(flaky)
    Flaky.failures, Flaky.spoil = 1, staticmethod(lambda data: flip(data, 0))
    assert all_samples(build) == all_samples(shards.open(folder))
    assert Flaky.failures == 0
    assert len([path for path in Cache().folder.iterdir() if path.name.endswith(".partial")]) == 0


def test_an_endpoint_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(shards.storage.retries, "TRIES", 2)
    monkeypatch.setattr(shards.storage.retries, "FIRST_WAIT_S", 0.0)
    with pytest.raises(ShardError, match=rf"{bucket}/a/manifest.json: gave up after 2 tries.*EndpointConnectionError"):
        shards.open(f"{bucket}/a")


def test_missing_credentials_are_reported_at_once(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ShardError, match=r"access refused \(NoCredentialsError"):
        shards.open(f"{bucket}/a")
