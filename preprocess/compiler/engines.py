"""Where tasks run: worker processes on this machine, or a Ray cluster. Results are the same, only their order differs.

Rule: a run never hangs. The death of a worker ends the run at once, with the number of its task, unless the task may be
tried again; then it is, alone, once all others are done. Workers die with their parent, so a killed build leaves no
process that still writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from preprocess.compiler.ray_engine import ray_engine
from preprocess.compiler.task_errors import USERS_TO_MEND, failure_text
from preprocess.compiler.task_report import TaskReport, unreported
from preprocess.compiler.worker_deaths import Forgives, forgive_none, item_now, task_name
from preprocess.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

PerTask = Callable[[T], R]


class Engine(Protocol):
    """Yields (index of the task, result) as tasks finish. Raises DataError if a task fails, or its worker does.

    forgives: whether a task whose worker died is tried again.
    """

    def __call__(
        self,
        function: PerTask[T, R],
        tasks: Iterable[T],
        workers: int,
        report: TaskReport = unreported,
        forgives: Forgives = forgive_none,
    ) -> Iterator[tuple[int, R]]: ...


def process_engine(
    function: PerTask[T, R],
    tasks: Iterable[T],
    workers: int,
    report: TaskReport = unreported,
    forgives: Forgives = forgive_none,
) -> Iterator[tuple[int, R]]:
    """Spawned processes, each with one task at a time."""
    with _Crew() as crew:
        yield from crew(function, tasks, workers, report, forgives)


@contextlib.contextmanager
def keeping_workers(engine: Engine) -> Iterator[Engine]:
    """The engine, whose workers wait for its next call until this context ends: a start takes half a second."""
    if engine is process_engine:
        with _Crew() as crew:
            yield crew
    else:
        yield engine


QUIET_S = 60.0
"""Without the end of any task, after which a line on stderr says which processes still work"""

ENGINES: Mapping[str, Engine] = {"process": process_engine, "ray": ray_engine}


class _Crew:
    """An engine whose workers wait for the next call. A call that does not come to its end kills all of them."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        while self._workers:
            self._workers.pop().retire()

    def __call__(
        self,
        function: PerTask[T, R],
        tasks: Iterable[T],
        workers: int,
        report: TaskReport = unreported,
        forgives: Forgives = forgive_none,
    ) -> Iterator[tuple[int, R]]:
        queue = deque(enumerate(tasks))
        try:
            lost: deque[tuple[int, Any]] = deque()
            yield from self._run(function, queue, workers, report, forgives, lost)
            while lost:
                yield from self._run(function, deque([lost.popleft()]), 1, report, forgives, lost)
        except BaseException:
            while self._workers:
                self._workers.pop().kill()
            raise

    def _run(
        self,
        function: Callable[[Any], Any],
        queue: deque[tuple[int, Any]],
        workers: int,
        report: TaskReport,
        forgives: Forgives,
        lost: deque[tuple[int, Any]],
    ) -> Iterator[tuple[int, Any]]:
        """Those whose worker died and that may be tried again are added to `lost`."""
        busy: dict[Any, _Worker] = {}
        idle = self._workers[:workers]
        while queue or busy:
            while queue and len(busy) < workers:
                worker = idle.pop() if idle else self._hired()
                worker.give(function, queue.popleft())
                busy[worker.pipe] = worker
            report(len(busy), len(queue) + len(lost), len(lost))
            ready = wait(list(busy), QUIET_S)
            if not ready:
                _tell_quiet(list(busy.values()))
            for pipe in ready:
                worker = busy.pop(pipe)
                try:
                    yield worker.take()
                    idle.append(worker)
                except _WorkerDied as died:
                    self._workers.remove(worker)
                    if not forgives(worker.task[1], died.cause):
                        raise DataError(str(died)) from None
                    lost.append(worker.task)

    def _hired(self) -> _Worker:
        worker = _Worker()
        self._workers.append(worker)
        return worker


class _WorkerDied(Exception):  # noqa: N818 - what the crew forgives or reports
    def __init__(self, index: int, name: str, cause: str, step: str) -> None:
        super().__init__(
            f"a worker process died in task {index}{name} ({cause}); {step}; the same command resumes where this run "
            "stopped"
        )
        self.cause = cause


class _Worker:
    """A child process and the pipe to it. task: the last one that it was given, with its index."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        self._process = context.Process(target=_work, args=(far_end, os.getpid()), daemon=True)
        with _ctrl_c_later():
            self._process.start()
        far_end.close()
        self.task: tuple[int, Any] = (-1, None)

    def give(self, function: Callable[[Any], Any], task: tuple[int, Any]) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # it is dead, which `take` reports
            self.pipe.send((function, task[1]))

    def take(self) -> tuple[int, Any]:
        """The task's index and result. Raises DataError if it failed, and _WorkerDied."""
        try:
            result, failure = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if failure is not None:
            raise DataError(failure)
        return self.task[0], result

    def describe(self) -> str:
        """Its process, with the state that Linux gives, its task and the item that it is at."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
            state = {"T": ", stopped", "D": ", waiting for a disk"}.get(stat.rpartition(")")[2].split()[0], "")
        except OSError:
            state = ""
        return f"process {self._process.pid}{state} (task {self.task[0]}{item_now(self.task[1])})"

    def retire(self) -> None:
        self.pipe.close()
        self._process.join()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _death(self) -> _WorkerDied:
        self._process.join()
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            cause = "the system killed it, most often because memory ran out"
            step = "use fewer --workers or smaller shards (shard.max_images)"
        else:
            cause = f"exit code {code}"
            step = "what it printed last says why; if that is a traceback, please report it"
        return _WorkerDied(self.task[0], task_name(self.task[1]), cause, step)


def _tell_quiet(workers: Sequence[_Worker]) -> None:
    listed = ", ".join(worker.describe() for worker in workers[:4])
    more = f" and {len(workers) - 4} more" if len(workers) > 4 else ""
    print(
        f"no task has ended for {QUIET_S:g} s; still at work: {listed}{more}; continue a stopped process with kill "
        "-CONT, or stop the build: the same command resumes",
        file=sys.stderr,
        flush=True,
    )


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Block Ctrl-C while a child starts; the parent handles it after that.

    The child inherits the block, because a child that is still importing would print a traceback. A block applies to
    one thread only, and another thread (a progress bar's) may get the signal and interrupt this one, so the signal is
    also deferred.
    """
    resource_tracker.ensure_running()  # its start lifts the block, so it must run before
    pressed: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number)) if in_main_thread else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def _work(pipe: Connection, parent: int) -> None:
    """The child: run tasks from the pipe until it closes."""
    _die_with_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[Any, str | None] = (function(task), None)
        except USERS_TO_MEND as error:
            answer = (None, failure_text(error))
        with contextlib.suppress(OSError):
            pipe.send(answer)


def _die_with_parent(parent: int) -> None:
    """On Linux the kernel kills this process with its parent; elsewhere the closed pipe ends it after its task."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
