"""Programs with workers: signals, limits of the system, and that workers end with their parent."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forked_programs import ForkedPrograms
from tests.support.paths import ROOT
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
made = [batch.cursor for batch in batches_ahead(Slow(), requests(20), workers=2, ahead=4)]
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
assert len(list(batches_ahead(Slow(), requests(2), workers=1, ahead=1))) == 2
ours, theirs = multiprocessing.Pipe()
multiprocessing.Process(target=send_blocked_signals, args=(theirs,)).start()
print("blocked:", ours.recv())
"""


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
    next(batches_ahead(Slow(), requests(100), workers=40, ahead=80))
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
batches = batches_ahead(Slow(), requests(10**6), workers=2, ahead=4)
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
