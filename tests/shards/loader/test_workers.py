"""Processes that make batches ahead: order, failures, and that they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
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
from tests.support.forked_programs import ForkedPrograms
from tests.support.paths import ROOT
from tests.support.slow_batches import Slow, requests
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedPrograms]:
    """Runs programs that have torch and our modules loaded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    scratch = tmp_path_factory.mktemp("programs")
    with ForkedPrograms(
        sys.executable, "import tests.support.slow_batches", scratch=scratch, environment=environment
    ) as forked:
        yield forked


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
    assert numbers(batches_ahead(reader, requests(60), workers=workers, prefetch=prefetch)) == list(range(60))
    assert numbers(batches_ahead(reader, requests(0), workers=workers, prefetch=prefetch)) == []
    assert multiprocessing.active_children() == []


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def test_workers_are_started_as_the_program_wants_it(start_method: str, tmp_path: Path) -> None:
    assert multiprocessing.get_start_method() == start_method
    looks = tmp_path / "looks"
    batches = batches_ahead(Watchful(looks), requests(5), workers=1, prefetch=1)
    assert next(batches).cursor == 0
    wait_until(lambda: looks.stat().st_size > 10)  # a worker that has nothing to do looks whether its parent is there
    assert numbers(batches) == [1, 2, 3, 4]


def test_batches_that_are_kept_stay_as_they_are() -> None:
    """Their memory is used again only when they are gone."""
    kept = []
    for batch in batches_ahead(Slow(sizes=4), requests(80), workers=2, prefetch=2):
        if batch.cursor % 5 == 0:
            kept.append(batch)
        if batch.cursor % 20 == 19:
            kept.pop(0)
    for batch in kept:
        assert set(batch.labels.flatten().tolist()) == {batch.cursor}


def test_after_the_first_batches_memory_is_used_again() -> None:
    places = []
    for batch in batches_ahead(Slow(), requests(50), workers=1, prefetch=2):
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
    batches = batches_ahead(Slow(fail={7: kind}), requests(40), workers=workers, prefetch=2)
    with pytest.raises(error, match=words):
        actual.extend(batch.cursor for batch in batches)
    if kind == "exit":  # batches that others made before may be lost with it
        assert actual == list(range(len(actual)))
        assert len(actual) <= 7
    else:
        assert actual == list(range(7))
    assert multiprocessing.active_children() == []


def test_workers_that_hang_end_with_the_iteration() -> None:
    batches = batches_ahead(Slow(fail={3: "stuck"}), requests(40), workers=3, prefetch=8)
    assert next(batches).cursor == 0
    stopped = multiprocessing.active_children()[0]
    os.kill(stopped.pid or 0, signal.SIGSTOP)
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_signal_to_the_whole_group_is_the_parents_business(programs: ForkedPrograms, tmp_path: Path) -> None:
    program = ENDS.format(how=GROUP)
    done = programs.run(program, cwd=tmp_path)
    assert done.stdout.splitlines()[1:] == ["asked to stop", "10 more batches"]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_signals_to_the_group_end_no_worker_that_is_just_starting(
    start: str, programs: ForkedPrograms, tmp_path: Path
) -> None:
    program = STORM.format(start=start)
    done = programs.run(program, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all 20 batches, and signals\n", "")


STORM = """
import multiprocessing, os, signal, sys, threading, time
from tests.support.slow_batches import Slow, requests
from shards.loader.workers import batches_ahead

caught = []
signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))

def storm():
    while True:
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.05)

multiprocessing.set_start_method({start!r})
threading.Thread(target=storm, daemon=True).start()
while not caught:
    time.sleep(0.001)
made = [batch.cursor for batch in batches_ahead(Slow(), requests(20), workers=2, prefetch=2)]
print(f"all {{len(made)}} batches, and signals", flush=True)
os._exit(0)
"""
GROUP = """
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
    os.killpg(0, number)
print("asked to stop")
print(sum(1 for _, batch in zip(range(10), batches)), "more batches")
"""


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_what_the_program_starts_later_hears_signals(start: str, programs: ForkedPrograms, tmp_path: Path) -> None:
    program = LATER.format(start=start)
    done = programs.run(program, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "blocked: []\n", "")


LATER = """
import multiprocessing, sys
from tests.support.slow_batches import Slow, requests, send_blocked_signals
from shards.loader.workers import batches_ahead

multiprocessing.set_start_method({start!r})
assert len(list(batches_ahead(Slow(), requests(2), workers=1, prefetch=1))) == 2
ours, theirs = multiprocessing.Pipe()
multiprocessing.Process(target=send_blocked_signals, args=(theirs,)).start()
print("blocked:", ours.recv())
"""


def test_what_outgrew_its_block_is_mapped_no_more() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("mappings are counted as Linux reports them")
    counts = []
    for batch in batches_ahead(Slow(sizes=100), requests(60), workers=1, prefetch=1):
        counts.append(maps.read_text().count("dsvl-batch"))
        del batch
    assert len(counts) == 60
    assert max(counts) < 8


def test_too_many_workers_for_the_open_files_a_process_may_have_are_reported(
    programs: ForkedPrograms, tmp_path: Path
) -> None:
    done = programs.run(LIMITED, cwd=tmp_path)
    assert "worker 3 cannot be started (" in done.stdout or "worker 4 cannot be started (" in done.stdout, done
    assert "Too many open files); use fewer workers, or allow more open files" in done.stdout


LIMITED = """
import resource, sys
from tests.support.slow_batches import Slow, requests
from shards import ShardError
from shards.loader.workers import batches_ahead
import multiprocessing, os

used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
try:
    next(batches_ahead(Slow(), requests(100), workers=40, prefetch=2))
except ShardError as error:
    print(error)
assert multiprocessing.active_children() == []
"""


ENDS = """
import os, signal, sys, time
from tests.support.slow_batches import Slow, requests
from shards.loader.workers import batches_ahead
import multiprocessing

signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
batches = batches_ahead(Slow(), requests(10**6), workers=2, prefetch=2)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
{how}
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [("sys.exit(5)", 5), ("raise SystemExit(5)", 5), ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os._exit(4)", 4)],
)
def test_workers_end_with_their_parent_however_it_ends(
    how: str, code: int, programs: ForkedPrograms, tmp_path: Path
) -> None:
    program = ENDS.format(how=how)
    done = programs.run(program, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    wait_until(lambda: not any(map(is_running, workers)))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_a_forked_copy_of_the_parent_leaves_the_workers_alone() -> None:
    batches = batches_ahead(Slow(), requests(30), workers=1, prefetch=1)
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
    batches = batches_ahead(Slow(), requests(3), workers=1, prefetch=2)
    kept = list(batches)
    assert multiprocessing.active_children() == []
    assert [int(batch.labels[0, 0]) for batch in kept] == [0, 1, 2]
    assert kept[0].labels.numpy().dtype == np.int64
