"""Blocks of memory for batches, used again and again; some are filled by a worker and read by the main process.

Rule: a block is filled again only when nobody looks at what was in it. So after the first batches no memory is asked
for, no page is touched for the first time and nothing is copied from process to process. Shared memory belongs to no
file system where the system can do that (Linux): the size of /dev/shm does not matter.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shards.loader.layout import Memory


@dataclass(frozen=True, slots=True)
class MemoryBlock:
    """number: among those of its worker. file: what another process maps; for the caller to close when it was sent."""

    number: int
    file: int
    memory: Memory


class OwnBlocks:
    """A worker's blocks."""

    def __init__(self) -> None:
        self._free: list[MemoryBlock] = []
        self._taken: dict[int, MemoryBlock] = {}
        self._made = 0
        self._largest = 0

    def take(self, size: int) -> tuple[MemoryBlock, int | None]:
        """A block of at least `size` bytes, and the number of one that is gone for it.

        Raises OSError or MemoryError if there is no memory.
        """
        self._largest = max(self._largest, size)
        gone = None
        index = next((index for index, block in enumerate(self._free) if len(block.memory) >= size), None)
        if index is not None:
            block = self._free.pop(index)
        else:
            if self._free:  # all are too small, and so the next batches would find them
                gone = self._free.pop().number
            block = self._new()
        self._taken[block.number] = block
        return block, gone

    def give_back(self, numbers: Iterable[int]) -> None:
        self._free += [self._taken.pop(number) for number in numbers]

    def _new(self) -> MemoryBlock:
        file = _anonymous_file(self._largest)
        self._made += 1
        return MemoryBlock(self._made, file, np.frombuffer(mmap.mmap(file, 0), np.uint8))


class SeenBlocks:
    """The same blocks in the main process."""

    def __init__(self) -> None:
        self._memory: dict[int, mmap.mmap] = {}
        self._lent = _Lent()

    def add(self, number: int, file: int) -> None:
        """Map a new one and close the file."""
        try:
            self._memory[number] = mmap.mmap(file, 0)
        finally:
            os.close(file)

    def drop(self, number: int) -> None:
        self._memory.pop(number, None)

    def look(self, number: int) -> Memory:
        """A block's memory. When neither this array nor a view of it is left, the block is done with."""
        return self._lent.array(number, self._memory[number])

    def take_done(self) -> list[int]:
        """Numbers of blocks that were done with since the last call."""
        return self._lent.take_done()


class LocalBlocks:
    """Blocks of a process that fills them itself."""

    def __init__(self) -> None:
        self._memory: dict[int, bytearray] = {}
        self._free: list[int] = []
        self._made = 0
        self._largest = 0
        self._lent = _Lent()

    def take(self, size: int) -> Memory:
        """At least `size` bytes that nobody looks at. Raises MemoryError."""
        self._largest = max(self._largest, size)
        self._free += self._lent.take_done()
        while self._free:
            number = self._free.pop()
            if len(self._memory[number]) >= size:
                return self._lent.array(number, self._memory[number])
            del self._memory[number]
        self._made += 1
        self._memory[self._made] = bytearray(self._largest)
        return self._lent.array(self._made, self._memory[self._made])


class _Lent:
    """Arrays over buffers that somebody looks at, by number."""

    def __init__(self) -> None:
        self._arrays: dict[int, weakref.ref[Memory]] = {}
        self._done: deque[int] = deque()

    def array(self, number: int, buffer: mmap.mmap | bytearray) -> Memory:
        array = np.frombuffer(buffer, np.uint8)  # no array itself, so views of this one hold it and not the buffer
        self._arrays[number] = weakref.ref(array, lambda _: self._end(number))
        return array

    def take_done(self) -> list[int]:
        return [self._done.popleft() for _ in range(len(self._done))]

    def _end(self, number: int) -> None:
        """Runs in whichever thread lets go of the array."""
        del self._arrays[number]
        self._done.append(number)


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("dsvl-batch", os.MFD_CLOEXEC)
    else:  # not Linux
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)  # a file with holes would stop the process where memory runs out
        else:
            os.ftruncate(file, size)
    except OSError:
        os.close(file)
        raise
    return file
