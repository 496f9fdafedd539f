"""Batches made ahead by processes: tasks go out through one pipe, batches come back in shared blocks of memory.

Rules
- Batches come in the order of their tasks, and an error at its task's turn: nothing depends on which worker was faster.
- A worker that died is reported where its batch is waited for, as a ShardError, and nowhere else.
- Workers end with their iteration and with their parent, however these end.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import torch

from shards.errors import ShardError
from shards.loader.batch import Batch
from shards.loader.layout import Contents, Memory
from shards.loader.memory_blocks import MemoryBlock, OwnBlocks, SeenBlocks
from shards.loader.reader import BatchReader, BatchRequest

_EXIT_TIMEOUT_S = 60.0  # a worker that ends may take this long to free its memory on a busy machine
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM)  # signals to the whole group: the parent ends its workers
_STARTING = threading.Lock()  # a worker that another thread forks meanwhile would hold these pipes open
_PARENT_POLL_S = 1.0  # how often a worker checks that its parent still runs


def batches_ahead(
    reader: BatchReader, requests: Iterable[BatchRequest], *, workers: int, ahead: int, first_alone: bool = False
) -> Generator[Batch]:
    """The batch of each request, in order, from `workers` processes that together make up to `ahead` of them ahead.

    first_alone: the first batch has the network for itself. Raises ShardError for a request that cannot be read and for
    a dead worker, RuntimeError if one failed otherwise.
    """
    pool: list[_LoaderWorker] = []
    try:
        for number in range(workers):
            pool.append(_start(reader, number))
        yield from _in_order(pool, iter(requests), ahead, first_alone=first_alone)
    finally:
        for worker in pool:
            worker.kill()
        for worker in pool:
            worker.stop()


def _start(reader: BatchReader, number: int) -> _LoaderWorker:
    try:
        return _LoaderWorker(reader, number)
    except (OSError, AssertionError) as error:  # AssertionError: a daemonic process may start none
        raise ShardError(
            f"loader: worker {number} cannot be started ({error}); use fewer workers, or allow more open files and "
            "processes (ulimit -n, -u)"
        ) from None


def _in_order(
    pool: Sequence[_LoaderWorker], requests: Iterator[BatchRequest], ahead: int, *, first_alone: bool
) -> Iterator[Batch]:
    done: dict[int, tuple[_LoaderWorker, _Reply]] = {}
    sent = returned = 0
    request = next(requests, None)
    while request is not None or returned < sent:
        while request is not None and sent - returned < (1 if first_alone else ahead):
            min(pool, key=lambda worker: worker.waiting).send(sent, request)
            sent += 1
            request = next(requests, None)
        while returned not in done:
            done |= _received(pool)
        if first_alone:
            first_alone = False
            continue  # with further requests, before the batch is given out
        worker, reply = done.pop(returned)
        yield worker.batch(reply)
        returned += 1


def _received(pool: Sequence[_LoaderWorker]) -> dict[int, tuple[_LoaderWorker, _Reply]]:
    """Replies, by the number of their task; waits for one. Raises ShardError if there will be none."""
    ready = wait([*(worker.results for worker in pool), *(worker.sentinel for worker in pool)])
    replies = {}
    for worker in pool:
        if worker.results in ready:
            reply = worker.receive()
            if reply is not None:
                replies[reply.task] = worker, reply
    if not replies:
        raise next(worker.death() for worker in pool if worker.results in ready or worker.sentinel in ready)
    return replies


@dataclass(frozen=True, slots=True)
class _Reply:
    task: int
    block: int = 0
    is_new: bool = False
    """The block's file follows."""
    gone: int | None = None
    """Number of a block that the worker gave up"""
    contents: Contents | None = None
    problem: str = ""
    """What a ShardError says, if there are no contents"""
    failure: str = ""
    """The traceback of any other error"""


class _LoaderWorker:
    """A process, as its parent sees it."""

    def __init__(self, reader: BatchReader, number: int) -> None:
        self._number = number
        self._blocks = SeenBlocks()
        self.waiting = 0
        """Tasks that were sent and not answered"""
        context = _context()
        with _STARTING, _signals_held():
            tasks, self._tasks = multiprocessing.Pipe(duplex=False)
            self.results, results = multiprocessing.Pipe()
            self._process = context.Process(
                target=_work, args=(reader, tasks, results), name=f"dsvl-loader-{number}", daemon=True
            )
            self._process.start()
            for theirs in (tasks, results):
                theirs.close()
        self.sentinel = self._process.sentinel
        self._parent = os.getpid()
        atexit.register(self.stop)  # comes before multiprocessing's own, which waits for processes after a SIGTERM

    def send(self, task: int, request: BatchRequest) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died: reported when its batch is waited for
            self._tasks.send((task, request, self._blocks.take_done()))
        self.waiting += 1

    def receive(self) -> _Reply | None:
        """None: it died."""
        try:
            reply: _Reply = self.results.recv()
        except (EOFError, OSError):
            return None
        if reply.gone is not None:
            self._blocks.drop(reply.gone)
        try:
            if reply.is_new:
                self._blocks.add(reply.block, recv_handle(self.results))
        except (EOFError, ConnectionError):
            return None
        except (OSError, RuntimeError) as error:  # RuntimeError: no number was left for the file
            raise ShardError(
                f"loader: a batch's memory cannot be had ({error}); keep fewer batches, or allow more open files "
                "(ulimit -n)"
            ) from None
        self.waiting -= 1
        return reply

    def batch(self, reply: _Reply) -> Batch:
        if reply.failure:
            raise RuntimeError(f"loader worker {self._number} failed:\n{reply.failure}")
        if reply.contents is None:
            raise ShardError(reply.problem)
        return Batch.of(reply.contents, self._blocks.look(reply.block))

    def death(self) -> ShardError:
        self._process.join(_EXIT_TIMEOUT_S)
        code = self._process.exitcode
        how = f"was ended by {_signal_name(-code)}" if code is not None and code < 0 else f"ended with {code}"
        return ShardError(
            f"loader: worker {self._number} (process {self._process.pid}) {how}; if memory ran out, use fewer workers, "
            "or prefetch less"
        )

    def kill(self) -> None:
        """The process ends whatever it does, and has nothing to put in order."""
        if self._is_ours():
            self._process.kill()

    def stop(self) -> None:
        """Kill it and wait for its end. A second call, by the iteration after the program's end, does nothing."""
        if not self._is_ours():
            return
        atexit.unregister(self.stop)
        self._process.kill()
        self._process.join()
        with contextlib.suppress(ValueError):  # where a program ignores SIGCHLD nobody learns of the end
            self._process.close()
        self._tasks.close()
        self.results.close()

    def _is_ours(self) -> bool:
        """Not stopped yet, and this is the parent and no forked copy of it, which happens to end."""
        return os.getpid() == self._parent and not self._tasks.closed


def _context() -> Any:
    """As the program starts processes; in place of its fork server each worker is spawned.

    A fork server keeps what was blocked when it was started: it would start workers that signals end while they import,
    or, if a worker was the first that it was asked for, leave all later processes of the program deaf to signals.
    """
    method = multiprocessing.get_start_method()
    return multiprocessing.get_context("spawn" if method == "forkserver" else method)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A process that starts inside is not ended by these before it can ignore them."""
    if multiprocessing.get_start_method() != "fork":  # else it would start inside, and let the signals through again
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _work(reader: BatchReader, tasks: Connection[Any, Any], results: Connection[Any, Any]) -> None:
    """What the process does until it is killed."""
    for number in _FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    inbox: queue.SimpleQueue[tuple[int, BatchRequest, list[int]]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks, inbox), daemon=True).start()
    blocks, shown = OwnBlocks(), set[int]()
    while True:
        task, request, done = inbox.get()
        blocks.give_back(done)
        reply, block = _answer(reader, task, request, blocks, shown)
        results.send(reply)
        if block is not None and reply.is_new:
            shown.add(block.number)
            send_handle(results, block.file, os.getppid())
            os.close(block.file)  # both sides have it mapped


def _answer(
    reader: BatchReader, task: int, request: BatchRequest, blocks: OwnBlocks, shown: set[int]
) -> tuple[_Reply, MemoryBlock | None]:
    block = gone = None

    def allocate(size: int) -> Memory:
        nonlocal block, gone
        block, gone = blocks.take(size)
        return block.memory

    try:
        contents, _ = reader.fill(request, allocate)
        assert block is not None
    except ShardError as error:
        return _Reply(task, problem=str(error)), None
    except Exception:
        return _Reply(task, failure=traceback.format_exc()), None
    return _Reply(task, block.number, block.number not in shown, gone, contents), block


def _listen(tasks: Connection[Any, Any], inbox: queue.SimpleQueue[Any]) -> None:
    """Runs in a thread: the parent is never kept waiting by a worker that itself waits to be heard."""
    parent = multiprocessing.parent_process()
    started_by = os.getppid()  # another process, if the parent is gone already
    assert parent is not None
    try:
        while True:
            while not tasks.poll(_PARENT_POLL_S):
                if os.getppid() != started_by or not parent.is_alive():
                    os._exit(1)
            inbox.put(tasks.recv())
    except (EOFError, OSError):
        os._exit(1)
