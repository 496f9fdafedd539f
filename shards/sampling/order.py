"""Which sample comes when: a pure function of (manifest, seed, epoch, position), in constant memory.

Rules
- An epoch draws from each dataset exactly as often as the manifest says (`draws`), evenly spread over the epoch.
- A dataset's draws run on through the epochs, cycle after cycle: a cycle shows every sample once before any comes
  again. So of 2.5 draws a sample, every sample gets 2 or 3 in each epoch, and 5 in two.

    order = build.order(seed=1)
    order.samples(epoch=0, start=0, stop=1000)      # numbers of samples in build["train"]

How: an epoch's positions are cut into stripes of 1024. The number of a dataset's draws before a stripe is that of its
draws k with (2k + 1) / 2n below a common threshold; within a stripe the datasets are shuffled. A dataset's draw K lies
in cycle K // m. A shuffle of its m samples says which of them a run of draws shows, the same until an epoch and a cycle
begin together again; and each run within one cycle and one epoch is shuffled once more, so that no two are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.errors import ShardError
from shards.sampling.permutation import BlockPermutation, Indices, Permutation, make_key, shuffled

STRIPE = 1024
_FINE = 1 << 62  # thresholds are integers out of this


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset in an order: `blocks` are its shards' numbers of samples, `draws` what an epoch takes of it."""

    name: str
    blocks: tuple[int, ...]
    draws: int


class Order:
    """Positions of an endless run of epochs -> samples. `len(order)` is the length of one epoch."""

    def __init__(self, sources: Sequence[Source], *, key: object, window: int | None = None) -> None:
        """key: what, beside the epoch and the position, decides: the manifest's hash and the seed.

        window: None shuffles each dataset as a whole; a number shuffles shards, and samples within so many, so that
        reading stays near one place: for remote storage and rotating disks. Raises ShardError for draws of no samples.
        """
        for source in sources:
            if source.draws and not sum(source.blocks):
                raise ShardError(f"an order draws {source.draws} samples of {source.name}, which has none")
        if window is not None and window < 1:
            raise ShardError(f"an order's window is {window}; wanted at least 1")
        self._sources = [_Stream(source, make_key(key, source.name), window) for source in sources]
        starts = np.cumsum([0, *(stream.size for stream in self._sources)])
        self._starts = starts[:-1]
        self._draws = [stream.draws for stream in self._sources]
        self._length = sum(self._draws)
        self._key = key
        self._stripe = lru_cache(maxsize=8)(self._make_stripe)

    def __len__(self) -> int:
        return self._length

    def samples(self, epoch: int, start: int, stop: int) -> Indices:
        """The samples at positions [start, stop) of an epoch: their numbers in the split, int64 [stop - start].

        Raises IndexError for positions that are not in an epoch.
        """
        if not 0 <= start <= stop <= self._length or epoch < 0:
            raise IndexError(f"positions {start} to {stop} of epoch {epoch}; an epoch has 0 to {self._length}")
        parts = [np.zeros(0, np.int64)]
        for number in range(start // STRIPE, -(-stop // STRIPE)):
            begin = number * STRIPE
            parts.append(self._stripe(epoch, number)[max(0, start - begin) : stop - begin])
        return np.concatenate(parts)

    def sample_at(self, position: int) -> int:
        """The sample at a position of the endless run, from 0: epoch `position // len(order)`."""
        epoch, place = divmod(position, self._length)
        return int(self.samples(epoch, place, place + 1)[0])

    def _make_stripe(self, epoch: int, number: int) -> Indices:
        start = number * STRIPE
        before = _draws_before(start, self._draws)
        until = _draws_before(min(start + STRIPE, self._length), self._draws)
        counts = [last - first for first, last in zip(before, until, strict=True)]
        drawn = [
            stream.draw(epoch, first, last) + offset
            for stream, first, last, offset in zip(self._sources, before, until, self._starts, strict=True)
        ]
        places = shuffled(sum(counts), make_key(self._key, epoch, number))
        turns = np.repeat(np.arange(len(counts)), counts)[places]  # whose turn it is at each position
        found = np.empty(len(turns), np.int64)
        for dataset, samples in enumerate(drawn):
            found[turns == dataset] = samples
        return found


class StoredOrder:
    """Every sample once, as they lie in the split: for evaluation."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def samples(self, epoch: int, start: int, stop: int) -> Indices:
        """The samples at positions [start, stop), the same in every epoch."""
        return np.arange(start, stop, dtype=np.int64)


class _Stream:
    """One dataset's draws, numbered through all epochs."""

    def __init__(self, source: Source, key: int, window: int | None) -> None:
        self.size, self.draws = sum(source.blocks), source.draws
        self._key, self._window = key, window
        self._blocks = np.array(source.blocks, np.int64)
        self._round = math.lcm(self.size, self.draws)  # after so many draws an epoch and a cycle begin together
        self._base = lru_cache(maxsize=2)(self._make_base)
        self._run = lru_cache(maxsize=8)(self._make_run)

    def draw(self, epoch: int, first: int, last: int) -> Indices:
        """Draws [first, last) of an epoch."""
        parts = [np.zeros(0, np.int64)]
        at, end = epoch * self.draws + first, epoch * self.draws + last
        while at < end:
            cycle = at // self.size * self.size
            start = max(cycle, epoch * self.draws)
            stop = min(cycle + self.size, (epoch + 1) * self.draws)
            until = min(end, stop)
            inside = self._run(start, stop)(np.arange(at - start, until - start))
            parts.append(self._base(at // self._round)(start - cycle + inside))
            at = until
        return np.concatenate(parts)

    def _make_base(self, number: int) -> Permutation | BlockPermutation:
        key = make_key(self._key, "round", number)
        return Permutation(self.size, key) if self._window is None else BlockPermutation(self._blocks, key, 1)

    def _make_run(self, start: int, stop: int) -> Permutation | BlockPermutation:
        key = make_key(self._key, start)
        base = self._base(start // self._round)
        if isinstance(base, Permutation) or self._window is None:
            return Permutation(stop - start, key)
        cycle = start // self.size * self.size
        return BlockPermutation(base.block_sizes(start - cycle, stop - cycle), key, self._window)


def _draws_before(position: int, draws: Sequence[int]) -> list[int]:
    """How many draws of each dataset come before a position: they sum to it, and never fall as it grows."""
    low, high = 0, _FINE
    while high - low > 1:
        middle = (low + high) // 2
        if sum(_below(middle, count) for count in draws) <= position:
            low = middle
        else:
            high = middle
    if position >= sum(draws):
        return list(draws)
    found = [_below(low, count) for count in draws]
    rest = position - sum(found)
    for dataset, count in enumerate(draws):  # these fall on one threshold; the earlier dataset goes first
        if rest and _below(high, count) > found[dataset]:
            found[dataset] += 1
            rest -= 1
    return found


def _below(threshold: int, draws: int) -> int:
    """How many k have (2k + 1) / (2 draws) <= threshold / _FINE."""
    return (2 * draws * threshold + _FINE) // (2 * _FINE)
