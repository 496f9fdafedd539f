"""Which samples a dataset's draws are, numbered through all epochs.

How: a dataset's draw K is in cycle K // m. A shuffle of its m samples, the base, says which of them a run of draws
shows, the same until an epoch and a cycle begin together again; and each run within one cycle and one epoch is shuffled
once more, so that no two are alike. There are three kinds of shuffle:

    whole     all samples of a run among each other
    window    shards in random order, samples within a window that moves in steps of its size
    shards    few shards at a time, each once in a run (shards.sampling.shard_windows)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.sampling.permutation import BlockPermutation, Indices, Permutation, make_key
from shards.sampling.shard_windows import ShardWindows

_SEARCHED_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Draws:
    """What an order draws of a dataset or a part of it. shard_sizes: samples of each shard. count: draws in an epoch.

    key: what its shuffles depend on, next to the order's key. shard_starts: the number in the split of each shard's
    first sample of the part; None: they follow each other, after those of the entry before. open_shards: how many
    shards may be open at a time; None sets no limit. first_shard: the first shard's number in the split. leads: whether
    its open shards are those of the dataset; of the parts of a dataset one leads. is_common: whether most samples are
    in parts such as this one.
    """

    name: str
    shard_sizes: tuple[int, ...]
    count: int
    key: object = None
    shard_starts: tuple[int, ...] | None = None
    open_shards: int | None = None
    first_shard: int = 0
    leads: bool = True
    is_common: bool = True


class DatasetDraws:
    """One dataset's draws."""

    def __init__(self, dataset: Draws, key: int, *, window: int | None, shards_key: int) -> None:
        """window: as in Order; it is not used if the dataset has `open_shards`.

        shards_key decides the order of the shards then: parts of a dataset, whose samples are in the same shards, have
        the same, so that they need the same shards at the same time.
        """
        self.size, self.draws = sum(dataset.shard_sizes), dataset.count
        self._key, self._window, self._shards_key = key, window, shards_key
        self._open_shards, self._first_shard = dataset.open_shards, dataset.first_shard
        self._is_part, self._leads, self._is_common = (
            dataset.shard_starts is not None,
            dataset.leads,
            dataset.is_common,
        )
        self._shard_sizes = np.array(dataset.shard_sizes, np.int64)
        self._round = math.lcm(self.size, self.draws)  # after this many draws an epoch and a cycle begin together
        self._base = lru_cache(maxsize=2)(self._make_base)
        self._run = lru_cache(maxsize=8)(self._make_run)

    @property
    def opens_few_shards(self) -> bool:
        return self._open_shards is not None

    def draw(self, epoch: int, first: int, last: int) -> Indices:
        """Draws [first, last) of an epoch."""
        pieces = [np.zeros(0, np.int64)]
        for draw, until in self._pieces(epoch, first, last):
            start, stop = self._run_of(epoch, draw)
            inside = self._run(epoch, start, stop)(np.arange(draw - start, until - start))
            pieces.append(self._base(self._round_of(draw))(start % self.size + inside))
        return np.concatenate(pieces)

    def open_shards(self, epoch: int, first: int, last: int, *, has_spread: bool = False) -> Indices:
        """The shards that are open in draws [first, last) of an epoch, as numbers in the split.

        None without a limit, and for a part that does not lead, or with `has_spread` for one that is not common: it
        opens nearly the same shards at the same time.
        """
        opened = [np.zeros(0, np.int64)]
        counts = self._open_shards is not None and (self._leads or (has_spread and self._is_common))
        for draw, until in self._pieces(epoch, first, last) if counts else ():
            start, stop = self._run_of(epoch, draw)
            run = self._run(epoch, start, stop)
            assert isinstance(run, ShardWindows)
            opened.append(self._first_shard + run.open_blocks(draw - start, until - start))
        return np.concatenate(opened)

    def first_draw_of(self, epoch: int, element: int) -> int | None:
        """The first draw of an epoch, counted within it, that draws an element of the dataset."""
        for first in range(0, self.draws, _SEARCHED_AT_ONCE):
            drawn = self.draw(epoch, first, min(first + _SEARCHED_AT_ONCE, self.draws))
            if len(hits := np.flatnonzero(drawn == element)):
                return first + int(hits[0])
        return None

    def _pieces(self, epoch: int, first: int, last: int) -> list[tuple[int, int]]:
        """Draws [first, last) of an epoch, cut where runs end, counted through all epochs."""
        pieces = []
        draw, end = epoch * self.draws + first, epoch * self.draws + last
        while draw < end:
            until = min(end, self._run_of(epoch, draw)[1])
            pieces.append((draw, until))
            draw = until
        return pieces

    def _run_of(self, epoch: int, draw: int) -> tuple[int, int]:
        """The draws of the cycle and the epoch of a draw, counted through all epochs."""
        cycle = draw // self.size * self.size
        return max(cycle, epoch * self.draws), min(cycle + self.size, (epoch + 1) * self.draws)

    def _round_of(self, draw: int) -> int:
        """Parts of a dataset keep their base, since their rounds are not of the same length."""
        return 0 if self._open_shards is not None and self._is_part else draw // self._round

    def _make_base(self, number: int) -> Permutation | BlockPermutation:
        if self._open_shards is not None:
            return BlockPermutation(self._shard_sizes, make_key(self._shards_key, "round", number), 1)
        key = make_key(self._key, "round", number)
        return Permutation(self.size, key) if self._window is None else BlockPermutation(self._shard_sizes, key, 1)

    def _make_run(self, epoch: int, start: int, stop: int) -> Permutation | BlockPermutation | ShardWindows:
        key = make_key(self._key, start)
        base = self._base(self._round_of(start))
        if isinstance(base, Permutation):
            return Permutation(stop - start, key)
        cycle = start // self.size * self.size
        numbers, sizes = base.blocks(start - cycle, stop - cycle)
        if self._open_shards is not None:
            order_key = make_key(self._shards_key, epoch, start // self.size)
            return ShardWindows(numbers, sizes, width=self._open_shards, order_key=order_key, key=key)
        assert self._window is not None
        return BlockPermutation(sizes, key, self._window)
