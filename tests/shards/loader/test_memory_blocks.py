"""Memory that a worker fills and another process reads: never filled again while anybody looks at it."""

from __future__ import annotations

import errno
import gc
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.loader.memory_blocks import LocalBlocks, MemoryBlock, OwnBlocks, SeenBlocks


def pass_on(block: MemoryBlock, seen: SeenBlocks) -> None:
    seen.add(block.number, os.dup(block.file))


def test_what_one_side_writes_the_other_reads() -> None:
    own, seen = OwnBlocks(), SeenBlocks()
    block, gone = own.take(1000)
    assert gone is None
    block.memory[:] = np.arange(1000) % 256
    pass_on(block, seen)
    assert seen.look(block.number).tolist() == block.memory.tolist()


def test_a_block_is_done_with_when_no_view_of_it_is_left() -> None:
    own, seen = OwnBlocks(), SeenBlocks()
    block, _ = own.take(64)
    pass_on(block, seen)
    memory = seen.look(block.number)
    tensor = torch.from_numpy(memory)[8:16].view(torch.int64).reshape(1, 1)
    views = [memory[3:5].view(np.int8), tensor, tensor.numpy(), memory.data[2:4]]
    del memory, tensor
    while views:
        assert seen.take_done() == []
        del views[random.Random(len(views)).randrange(len(views))]
        gc.collect()
    assert seen.take_done() == [block.number]
    assert seen.take_done() == []


def test_a_block_that_was_given_back_is_taken_again_and_no_other_is_made() -> None:
    own = OwnBlocks()
    first, _ = own.take(100)
    second, _ = own.take(100)
    assert first.number != second.number
    own.give_back([first.number])
    again, gone = own.take(90)
    assert (again.number, gone) == (first.number, None)


def test_blocks_that_are_too_small_make_room_for_larger_ones() -> None:
    own, seen = OwnBlocks(), SeenBlocks()
    small, _ = own.take(100)
    pass_on(small, seen)
    own.give_back([small.number])
    large, gone = own.take(5000)
    assert gone == small.number
    assert len(large.memory) == 5000
    seen.drop(small.number)
    following, _ = own.take(10)
    assert len(following.memory) == 5000, "the next batches may be as large"


def test_sizes_that_vary_end_in_as_many_blocks_as_are_in_use_at_once() -> None:
    own, generator, in_use = OwnBlocks(), random.Random(0), list[int]()
    made = set()
    for _ in range(500):
        block, _ = own.take(generator.choice([10, 5000, 10_000]))
        made.add(block.number)
        in_use.append(block.number)
        if len(in_use) > 3:
            own.give_back([in_use.pop(generator.randrange(4))])
    assert len(made) < 12


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted as Linux reports them")
def test_replaced_blocks_leave_no_file_open() -> None:
    own = OwnBlocks()
    counts = set()
    for size in range(100, 200):
        block, _ = own.take(size)
        own.give_back([block.number])
        os.close(block.file)
        del block
        counts.add(len(os.listdir("/proc/self/fd")))
    assert len(counts) <= 2


def test_memory_that_is_not_there_is_an_error_and_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        OwnBlocks().take(100)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_uses_its_own_blocks_again_and_never_one_that_somebody_looks_at() -> None:
    blocks, generator = LocalBlocks(), random.Random(0)
    kept: list[tuple[int, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]] = []
    places = set()
    for number in range(300):
        size = generator.choice([10, 500, 1000])
        memory = blocks.take(size)
        assert len(memory) >= size
        places.add(memory.ctypes.data)
        memory[:] = number % 251
        kept.append((number % 251, memory[:size]))
        del memory
        if len(kept) > 3:
            kept.pop(generator.randrange(4))
        assert all(set(view.tolist()) == {value} for value, view in kept)
    assert len(places) < 12
