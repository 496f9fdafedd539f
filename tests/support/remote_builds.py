"""Builds behind URLs: memory, a line that fails, and what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import shards.storage.retries
from shards import Build, Sample
from shards.storage.remote import RemoteStore
from shards.upload import Upload, plan_upload, run_upload

both = pytest.mark.parametrize("url", ["s3", "memory"], indirect=True)
"""A test of S3 and of memory"""


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


@contextlib.contextmanager
def memory_url() -> Iterator[str]:
    MemoryFileSystem.pseudo_dirs[:] = [""]  # folders outlive their files there
    yield "memory://bucket/build"
    MemoryFileSystem.store.clear()


@contextlib.contextmanager
def flaky_url() -> Iterator[str]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.failures, Flaky.spoil = 0, staticmethod(busy)
    Flaky.answers.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.storage.retries, "FIRST_WAIT_S", 0.0)
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


def flip(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
