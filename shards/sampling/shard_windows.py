"""A shuffle that needs few shards at a time and each of them once: for copies of a build that do not fit a cache.

Rule: the shards of a pass come in random order, and each is cut at random into `width` parts. Turn t shows the first
part of shard t, the second of shard t - 1, and so on, shuffled among each other. So a pass opens a shard a turn, begins
with one, has at most `width` open at a time, and comes back to none. With `width` parts open a sample may come next to
those of 2 * width - 1 shards.

    turn    0     1        2           3           4        5
    shows   a1    a2 b1    a3 b2 c1    b3 c2 d1    c3 d2    d3      width 3, shards a, b, c, d in random order
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from shards.sampling.permutation import Indices, Permutation, by_hash, make_key


class ShardWindows:
    """Index -> element of blocks that follow each other.

    Memory: some numbers a block, one for each element of an open block up to 4,096, and the elements of four turns.
    """

    def __init__(self, blocks: Indices, sizes: Indices, *, width: int, order_key: int, key: int) -> None:
        """blocks: distinct numbers of the blocks, as stored; sizes: elements of each; width: blocks open at a time.

        order_key decides the order of the blocks, the same for any part of them; key everything else.
        """
        self.size = int(sizes.sum())
        self._width, self._key = min(width, max(1, len(blocks))), key
        order = by_hash(blocks, order_key)
        self._blocks, self._sizes = blocks[order], sizes[order]
        self._starts = (np.cumsum(sizes) - sizes)[order]
        turns = np.zeros(len(blocks) + self._width - 1, np.int64)
        for part in range(self._width):
            turns[part : part + len(blocks)] += self._part_start(part + 1) - self._part_start(part)
        self._ends = np.cumsum(turns)
        self._shuffle = lru_cache(maxsize=2 * self._width)(self._make_shuffle)
        self._elements = lru_cache(maxsize=4)(self._make_elements)

    def __call__(self, indices: Indices) -> Indices:
        """Elements at `indices`, int64 [n] in [0, size)."""
        elements = np.empty(len(indices), np.int64)
        turns = self._ends.searchsorted(indices, side="right")
        for turn in np.unique(turns).tolist():
            members = turns == turn
            elements[members] = self._elements(turn)[indices[members] - self._turn_start(turn)]
        return elements

    def open_blocks(self, start: int, stop: int) -> Indices:
        """Numbers of the blocks that are open while indices [start, stop) are shown, in the order of their opening."""
        if start >= stop:
            return self._blocks[:0]
        first, last = self._ends.searchsorted([start, stop - 1], side="right").tolist()
        shown = slice(max(0, first - self._width + 1), last + 1)
        return self._blocks[shown][self._sizes[shown] > 0]

    def _make_elements(self, turn: int) -> Indices:
        """What a turn shows, in order."""
        shown = []
        for block in range(max(0, turn - self._width + 1), min(turn + 1, len(self._blocks))):
            part, size = turn - block, int(self._sizes[block])
            start, stop = (number * size // self._width for number in (part, part + 1))
            if start < stop:
                shown.append(self._starts[block] + self._shuffle(block)(np.arange(start, stop)))
        elements = np.concatenate(shown)
        return elements[Permutation(len(elements), make_key(self._key, "turn", turn))(np.arange(len(elements)))]

    def _make_shuffle(self, block: int) -> Permutation:
        return Permutation(int(self._sizes[block]), make_key(self._key, "block", self._blocks[block]))

    def _part_start(self, part: int) -> Indices:
        """Where this part of each block begins in the block's own shuffle."""
        return np.asarray(part * self._sizes // self._width)

    def _turn_start(self, turn: int) -> int:
        return int(self._ends[turn - 1]) if turn else 0
