"""Processes that make batches ahead: order, failures, and memory that is used again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import shards.loader.workers
from shards.errors import ShardError
from shards.loader import Batch
from shards.loader.layout import Contents, Memory
from shards.loader.reader import BatchRequest
from shards.loader.workers import batches_ahead
from tests.support.slow_batches import Slow, requests
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_hang")


class Watchful(Slow):
    """From its first batch on its process looks for its parent all the time, and writes a byte for each look."""

    def __init__(self, looks: Path) -> None:
        super().__init__()
        self._looks = looks

    def fill(self, request: BatchRequest, allocate: Callable[[int], Memory]) -> tuple[Contents, Memory]:
        if request.cursor == 0:
            getppid = os.getppid

            def look() -> int:
                with self._looks.open("ab") as file:
                    file.write(b".")
                return getppid()

            mock.patch.object(os, "getppid", look).start()
            mock.patch.object(shards.loader.workers, "_PARENT_POLL_S", 0.001).start()
        return super().fill(request, allocate)


def numbers(batches: Iterator[Batch]) -> list[int]:
    actual = []
    for batch in batches:
        assert set(batch.labels.flatten().tolist()) == {batch.cursor}
        actual.append(batch.cursor)
    return actual


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("prefetch", [1, 4])
def test_batches_come_in_order_whichever_worker_is_faster(workers: int, prefetch: int) -> None:
    reader = Slow(sizes=3)
    assert numbers(batches_ahead(reader, requests(60), workers=workers, ahead=workers * prefetch)) == list(range(60))
    assert numbers(batches_ahead(reader, requests(0), workers=workers, ahead=workers * prefetch)) == []
    assert multiprocessing.active_children() == []


class Logged(Slow):
    """Writes down when a batch is begun and ended."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def fill(self, request: BatchRequest, allocate: Callable[[int], Memory]) -> tuple[Contents, Memory]:
        for word in ("begin", "end"):
            with self._log.open("a") as file:
                file.write(f"{word} {request.cursor}\n")
            if word == "begin":
                time.sleep(0.05)
                batch = super().fill(request, allocate)
        return batch


def test_the_first_batch_is_made_alone_and_the_next_before_it_is_taken(tmp_path: Path) -> None:
    log = tmp_path / "log"
    batches = batches_ahead(Logged(log), requests(4), workers=2, ahead=4, first_alone=True)
    first = next(batches)
    assert log.read_text().splitlines()[:2] == ["begin 0", "end 0"]
    wait_until(lambda: log.read_text().count("end") == 4)
    assert [first.cursor, *numbers(batches)] == list(range(4))


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def test_workers_are_started_as_the_program_wants_it(start_method: str, tmp_path: Path) -> None:
    assert multiprocessing.get_start_method() == start_method
    looks = tmp_path / "looks"
    batches = batches_ahead(Watchful(looks), requests(5), workers=1, ahead=1)
    assert next(batches).cursor == 0
    wait_until(lambda: looks.stat().st_size > 10)  # a worker that has nothing to do looks whether its parent is there
    assert numbers(batches) == [1, 2, 3, 4]


def test_batches_that_are_kept_stay_as_they_are() -> None:
    """Their memory is used again only when they are gone."""
    kept = []
    for batch in batches_ahead(Slow(sizes=4), requests(80), workers=2, ahead=4):
        if batch.cursor % 5 == 0:
            kept.append(batch)
        if batch.cursor % 20 == 19:
            kept.pop(0)
    for batch in kept:
        assert set(batch.labels.flatten().tolist()) == {batch.cursor}


def test_after_the_first_batches_memory_is_used_again() -> None:
    places = []
    for batch in batches_ahead(Slow(), requests(50), workers=1, ahead=2):
        places.append(batch.labels.data_ptr())
    assert len(set(places)) <= 5


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("damage", ShardError, r"^sample 7 is damaged$"),
        ("bug", RuntimeError, r"(?s)loader worker \d failed:.*KeyError: 7"),
        ("exit", ShardError, r"worker \d \(process \d+\) ended with 3; if memory ran out, use fewer workers"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_at_the_turn_of_its_batch(kind: str, error: type[Exception], words: str, workers: int) -> None:
    actual: list[int] = []
    batches = batches_ahead(Slow(fail={7: kind}), requests(40), workers=workers, ahead=workers * 2)
    with pytest.raises(error, match=words):
        actual.extend(batch.cursor for batch in batches)
    if kind == "exit":  # batches that others made before may be lost with it
        assert actual == list(range(len(actual)))
        assert len(actual) <= 7
    else:
        assert actual == list(range(7))
    assert multiprocessing.active_children() == []


def test_workers_that_hang_end_with_the_iteration() -> None:
    batches = batches_ahead(Slow(fail={3: "stuck"}), requests(40), workers=3, ahead=24)
    assert next(batches).cursor == 0
    stopped = multiprocessing.active_children()[0]
    os.kill(stopped.pid or 0, signal.SIGSTOP)
    batches.close()
    assert multiprocessing.active_children() == []


def test_what_outgrew_its_block_is_mapped_no_more() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("mappings are counted as Linux reports them")
    counts = []
    for batch in batches_ahead(Slow(sizes=100), requests(60), workers=1, ahead=1):
        counts.append(maps.read_text().count("dsvl-batch"))
        del batch
    assert len(counts) == 60
    assert max(counts) < 8


def test_a_forked_copy_of_the_parent_leaves_the_workers_alone() -> None:
    batches = batches_ahead(Slow(), requests(30), workers=1, ahead=1)
    actual = [next(batches).cursor]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            batches.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert actual + numbers(batches) == list(range(30))


def test_memory_views_do_not_keep_a_worker_alive() -> None:
    batches = batches_ahead(Slow(), requests(3), workers=1, ahead=2)
    kept = list(batches)
    assert multiprocessing.active_children() == []
    assert [int(batch.labels[0, 0]) for batch in kept] == [0, 1, 2]
    assert kept[0].labels.numpy().dtype == np.int64
