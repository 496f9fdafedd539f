"""The cache of remote files among processes: who waits for whom, and what a killed one leaves."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path

import pytest

from shards.storage.cache import Cache
from tests.support.cached_files import content, copies, fetch, size_of
from tests.support.waiting import LIMIT_S

FORK = multiprocessing.get_context("fork")
CREW = 3


class _Counted(Cache):
    """A cache that counts who did not find the file, and comes to the lock."""

    def __init__(self, folder: Path, arrived: Semaphore) -> None:
        super().__init__(folder)
        self._arrived = arrived

    @contextmanager
    def _download_lock(self, sha256: str, *, wait: bool = True) -> Iterator[bool]:
        self._arrived.release()
        with super()._download_lock(sha256, wait=wait) as is_ours:
            yield is_ours


def _fetch_with_others(folder: Path, log: Path, arrived: Semaphore) -> None:
    def download() -> Iterator[bytes]:
        with log.open("a") as file:
            file.write("download\n")
        for _ in range(CREW):
            assert arrived.acquire(timeout=LIMIT_S)
        yield content(1)

    assert fetch(_Counted(folder, arrived), content(1), download).read_bytes() == content(1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_want_the_same_file_download_it_once(tmp_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    arguments = (tmp_path / "cache", tmp_path / "log", context.Semaphore(0))
    crew = [context.Process(target=_fetch_with_others, args=arguments) for _ in range(CREW)]  # type: ignore[attr-defined]
    for process in crew:
        process.start()
    for process in crew:
        process.join(LIMIT_S)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "download\n"


def _endless_fetch(folder: Path, started: Event) -> None:
    def download() -> Iterator[bytes]:
        yield content(1)[:50]
        started.set()
        signal.pause()

    fetch(Cache(folder), content(1), download)


def test_a_killed_download_leaves_no_lock_and_no_half_file(tmp_path: Path) -> None:
    started = FORK.Event()
    process = FORK.Process(target=_endless_fetch, args=(tmp_path, started), daemon=True)
    process.start()
    assert started.wait(LIMIT_S)
    (half,) = copies(tmp_path)
    assert half.name.endswith(".partial")
    cache = Cache(tmp_path, max_bytes=250)
    other = fetch(cache, content(2))  # while the download runs: its bytes are counted, and stay
    assert copies(tmp_path) == sorted([half, other])
    third = fetch(cache, content(3))
    assert copies(tmp_path) == sorted([half, third])
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(LIMIT_S)
    assert fetch(cache, content(1)).read_bytes() == content(1)
    fetch(cache, content(4))
    assert not half.exists()
    assert size_of(tmp_path) <= 250


def test_a_process_forked_during_a_download_does_not_keep_its_lock(tmp_path: Path) -> None:
    ended = FORK.Event()
    children = []

    def download() -> Iterator[bytes]:
        child = FORK.Process(target=ended.wait, args=(LIMIT_S,), daemon=True)
        child.start()
        children.append(child)
        yield content(1)

    cache = Cache(tmp_path)
    path = fetch(cache, content(1), download)
    with (tmp_path / f".lock-{path.name[:2]}").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    ended.set()
    children[0].join(LIMIT_S)
    assert children[0].exitcode == 0


def test_a_removed_file_stays_readable_for_whoever_has_it_open(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=100)
    with fetch(cache, content(1)).open("rb") as file:
        fetch(cache, content(2))
        assert file.read() == content(1)
