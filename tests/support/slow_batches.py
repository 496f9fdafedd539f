"""A reader of batches that take a while, for tests of the loader's workers, which import this module if spawned."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from shards.errors import ShardError
from shards.loader.layout import Contents, Memory
from shards.loader.reader import BatchReader, BatchRequest


class Slow(BatchReader):
    """Batches of a known content, some of which take long, fail, or end their process."""

    def __init__(self, *, sizes: int = 1, fail: dict[int, str] | None = None) -> None:
        self._sizes, self._fail = sizes, fail or {}

    def fill(self, request: BatchRequest, allocate: Callable[[int], Memory]) -> tuple[Contents, Memory]:
        number = request.cursor
        time.sleep(random.Random(number).random() / 100)
        match self._fail.get(number):
            case "damage":
                raise ShardError(f"sample {number} is damaged")
            case "bug":
                raise KeyError(number)
            case "exit":
                os._exit(3)
            case "stuck":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                threading.Event().wait()
        rows = 1 + number % self._sizes
        contents = Contents(
            shape=(rows, 8),
            side=2,
            num_tiles=0,
            grids=None,
            stored_sizes=None,
            samples=((("a", "x" * 1000),),),
            cursor=number,
        )
        memory = allocate(contents.size)
        contents.arrays(memory).labels[:] = number
        return contents, memory


def requests(count: int) -> Iterator[BatchRequest]:
    return (BatchRequest([], 0, number) for number in range(count))


def send_blocked_signals(pipe: Connection) -> None:
    pipe.send(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
