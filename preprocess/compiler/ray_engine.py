"""Runs tasks on a Ray cluster: one that is started for this build on this machine, or the one of RAY_ADDRESS.

Rules: tasks in flight follow the CPUs of the cluster, which are counted again while nodes come and go; some more tasks
wait in Ray's own queue, because only those make an autoscaler add nodes. A task whose node or worker was lost is
started again, at most `TRIES` times. A node that cannot do the work is named with what it lacks. When a call ends
early, what still runs is cancelled on every node.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import Any, TypeVar

from preprocess.compiler.carried import Carrier, left_notes, remove_carried, run_carried
from preprocess.compiler.cluster_nodes import NodeNeeds, check_nodes, node_problem, on_every_node, this_node
from preprocess.compiler.task_errors import USERS_TO_MEND, failure_text
from preprocess.compiler.task_report import TaskReport, unreported
from preprocess.compiler.worker_deaths import Forgives, forgive_none
from preprocess.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

TRIES = 4
"""Of a task whose node or worker was lost."""

CONNECT_S = 10.0
"""The longest wait for the cluster of RAY_ADDRESS to accept a connection."""

JOIN_S = 60.0
"""The longest that Ray may take to join that cluster: by its own settings it may ask for minutes; by default a refusal
takes 20 s."""

COUNT_EVERY_S = 5.0
"""How often the CPUs of the cluster are counted."""

WAITING = 32
"""Tasks in Ray's queue in addition to two for each CPU: work for the nodes that an autoscaler may add."""

_STEP = "check the address, that its Ray and Python have the versions of this machine, and its token"

_DEATHS = ("WorkerCrashedError", "OutOfMemoryError")
_LOST = ("WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "ObjectLostError", "OutOfMemoryError")


class RayEngine:
    """An engine on Ray Core. Tested with Ray 2.47.0 and 2.60.0.

    most: at most this many tasks run at the same time; None: as many as the cluster has CPUs. needs: what a node must
    have; it is checked on every node before the first task, and by each worker process that comes later. carrier_of:
    the build folder and the cache below it, if nodes do not share them.
    """

    def __init__(
        self,
        most: int | None = None,
        needs: NodeNeeds | None = None,
        *,
        carrier_of: tuple[Path, Path] | None = None,
    ) -> None:
        self._most = most
        self._needs = needs
        self._carrier_of = carrier_of
        self._carrier: Carrier | None = None
        self._checked = False

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._carrier is not None:
            on_every_node(importlib.import_module("ray"), remove_carried, self._carrier.name)

    def __call__(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        workers: int,
        report: TaskReport = unreported,
        forgives: Forgives = forgive_none,
    ) -> Iterator[tuple[int, R]]:
        queue = deque(enumerate(tasks))
        if not queue:
            return
        ray = connected(self._most or workers)
        if self._needs is not None and not self._checked:
            check_nodes(ray, self._needs)
            self._checked = True
        if self._carrier_of is not None and self._carrier is None:
            self._carrier = Carrier(*self._carrier_of, put=ray.put)
        if self._carrier is not None:
            self._carrier.begin()
        yield from _Run(ray, function, queue, self._most, self._needs, self._carrier, report, forgives)()


def ray_engine(
    function: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    report: TaskReport = unreported,
    forgives: Forgives = forgive_none,
) -> Iterator[tuple[int, R]]:
    """At most `workers` tasks at the same time, on nodes that are not checked."""
    return RayEngine(workers)(function, tasks, workers, report, forgives)


def connected(cpus: int) -> Any:
    """The module `ray`, connected to the cluster of RAY_ADDRESS, or else to one of this machine with some CPUs.

    Raises DataError if no cluster answers there.
    """
    ray = importlib.import_module("ray")
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS")
    try:
        _check_answers(address or "")
        if address:  # a cluster has its own number of CPUs; Ray rejects another one
            with _ended_after(JOIN_S, f"RAY_ADDRESS={address}: does not start (no answer in {JOIN_S:.0f} s); {_STEP}"):
                ray.init(log_to_driver=False, logging_level="error")
        else:
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        problem = " ".join(str(error).split())
        where = f"RAY_ADDRESS={address}" if address else "Ray on this machine"
        step = _STEP if address else "see the logs in /tmp/ray"
        raise DataError(f"{where}: does not start ({problem[:300]}); {step}") from None
    return ray


@contextmanager
def _ended_after(seconds: float, problem: str) -> Iterator[None]:
    """End this process if the context takes longer: Ray waits in code that no exception and no signal ends."""

    def end() -> None:
        os.write(2, f"error: {problem}\n".encode())
        os._exit(1)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_answers(address: str) -> None:
    """Raises OSError if nothing listens at `host:port`: Ray itself would ask for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()


class _Run:
    """One call of the engine."""

    def __init__(
        self,
        ray: Any,
        function: Callable[[Any], Any],
        queue: deque[tuple[int, Any]],
        most: int | None,
        needs: NodeNeeds | None,
        carrier: Carrier | None,
        report: TaskReport,
        forgives: Forgives,
    ) -> None:
        self._ray = ray
        work = function if carrier is None else partial(run_carried, function, get=_get)
        self._remote = ray.remote(_on_node(work, needs)).options(num_cpus=1, max_retries=0)
        self._carrier = carrier
        self._queue = queue
        self._most = most
        self._report = report
        self._forgives = forgives
        self._running: dict[Any, tuple[int, Any]] = {}
        self._tries: dict[int, int] = {}
        self._failed = 0
        self._cpus = 0
        self._counted = -COUNT_EVERY_S
        self._lost, self._deaths = (
            tuple(getattr(ray.exceptions, name) for name in names if hasattr(ray.exceptions, name))
            for names in (_LOST, _DEATHS)
        )

    def __call__(self) -> Iterator[tuple[int, Any]]:
        try:
            while self._queue or self._running:
                self._fill()
                references = list(self._running)
                self._tell()
                done, others = self._ray.wait(references, num_returns=1, timeout=COUNT_EVERY_S)
                if done and others:
                    more, _ = self._ray.wait(others, num_returns=len(others), timeout=0)
                    done += more
                for reference in done:
                    yield from self._taken(reference)
        finally:
            for reference in self._running:
                self._ray.cancel(reference, force=True)

    def _fill(self) -> None:
        if monotonic() - self._counted >= COUNT_EVERY_S:
            self._cpus = int(self._ray.cluster_resources().get("CPU", 0))
            self._counted = monotonic()
        most = 2 * self._cpus + WAITING if self._most is None else self._most
        while self._queue and len(self._running) < most:
            index, task = self._queue.popleft()
            packed = self._carrier.pack(task) if self._carrier else task
            self._running[self._remote.remote(packed)] = index, task

    def _taken(self, reference: Any) -> Iterator[tuple[int, Any]]:
        index, task = self._running.pop(reference)
        try:
            result, failure = self._ray.get(reference)
        except self._lost as error:
            self._failed += 1
            if isinstance(error, self._deaths):  # of the process, on a node that lives
                if self._carrier is not None:
                    self._carrier.take_notes(chain(*on_every_node(self._ray, left_notes, self._carrier.name)))
                if self._forgives(task, type(error).__name__):
                    self._queue.append((index, task))
                    return
            self._tries[index] = self._tries.get(index, 0) + 1
            if self._tries[index] == TRIES:
                raise DataError(f"task {index} failed in Ray {TRIES} times, the last time: {_line(error)}") from None
            self._queue.appendleft((index, task))
            return
        except self._ray.exceptions.RayError as error:
            raise DataError(f"task {index} failed in Ray: {error}") from None
        if failure is not None:
            raise DataError(failure)
        yield index, self._unpacked(result)

    def _unpacked(self, result: Any) -> Any:
        if self._carrier is None:
            return result
        try:
            return self._carrier.unpack(result)
        except OSError as error:
            raise DataError(failure_text(error)) from None

    def _tell(self) -> None:
        running = min(len(self._running), self._cpus)
        self._report(running, len(self._running) - running + len(self._queue), self._failed)


def _on_node(function: Callable[[T], R], needs: NodeNeeds | None) -> Callable[[T], tuple[R | None, str | None]]:
    """What a worker runs: the result, or the text of an error that a user can fix.

    One thread per task: the parallelism is between tasks.
    """

    def run(task: T) -> tuple[R | None, str | None]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if needs is not None and (problem := node_problem(needs)):
            return None, problem
        try:
            return function(task), None
        except USERS_TO_MEND as error:
            where = f"{this_node()}: " if needs is not None and isinstance(error, OSError | MemoryError) else ""
            return None, where + failure_text(error)

    return run


def _get(reference: Any) -> bytes:
    content: bytes = importlib.import_module("ray").get(reference)
    return content


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
