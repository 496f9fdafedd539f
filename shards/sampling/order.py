"""Which sample comes when: a pure function of (manifest, seed, epoch, draw), in constant memory.

Rules
- An epoch draws from each dataset exactly as often as the manifest says (`draws`), evenly spread over the epoch.
- Samples with branches count as many draws as they have records; shards.sampling.record_draws says how that is exact.
- A dataset's draws run on through the epochs, cycle after cycle: a cycle shows every sample once before any comes
  again. So of 2.5 draws a sample, every sample gets 2 or 3 in each epoch, and 5 in two.

    order = build.order(seed=1)
    order.samples(epoch=0, start=0, stop=1000)      # numbers of samples in build["train"]

How: an epoch's draws are cut into stripes of 1024. The number of a dataset's draws before a stripe is that of its
draws k with (2k + 1) / 2n below a common threshold; within a stripe the datasets are shuffled.
shards.sampling.dataset_draws says which samples a dataset's draws are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from shards.errors import ShardError
from shards.sampling.dataset_draws import DatasetDraws, Draws
from shards.sampling.permutation import Indices, make_key, shuffled

STRIPE = 1024
_FINE = 1 << 62  # thresholds are integers out of this


class Order:
    """Draws of an endless run of epochs -> samples. `len(order)` is the number of draws of one epoch."""

    def __init__(self, datasets: Sequence[Draws], *, key: object, window: int | None = None) -> None:
        """key: what decides next to the epoch and the draw: the manifest's hash and the seed.

        window: None shuffles each dataset as a whole; a number shuffles shards, and samples within a window of this
        size, so that reading stays local: for remote storage and rotating disks. Raises ShardError for draws of no
        samples.
        """
        for dataset in datasets:
            if dataset.count and not sum(dataset.shard_sizes):
                raise ShardError(f"an order draws {dataset.count} samples of {dataset.name}, which has none")
        if window is not None and window < 1:
            raise ShardError(f"an order's window is {window}; expected at least 1")
        self._streams = [
            DatasetDraws(
                dataset,
                make_key(key, dataset.name if dataset.key is None else dataset.key),
                window=window,
                shards_key=make_key(key, dataset.name, "shards"),
            )
            for dataset in datasets
        ]
        starts = np.cumsum([0, *(stream.size for stream in self._streams)])
        self._numbers = [_Numbers(dataset, int(start)) for dataset, start in zip(datasets, starts, strict=False)]
        self._draws = [stream.draws for stream in self._streams]
        self._length = sum(self._draws)
        self._key = key
        self._stripe = lru_cache(maxsize=8)(self._make_stripe)

    def __len__(self) -> int:
        return self._length

    @property
    def opens_few_shards(self) -> bool:
        """Whether the shards that are open at a time are limited."""
        return any(stream.opens_few_shards for stream in self._streams)

    def samples(self, epoch: int, start: int, stop: int) -> Indices:
        """The samples of draws [start, stop) of an epoch: their numbers in the split, int64 [stop - start].

        Raises IndexError for draws that are not in an epoch.
        """
        if not 0 <= start <= stop <= self._length or epoch < 0:
            raise IndexError(f"draws {start} to {stop} of epoch {epoch}; an epoch has 0 to {self._length}")
        pieces = [np.zeros(0, np.int64)]
        for number in range(start // STRIPE, -(-stop // STRIPE)):
            begin = number * STRIPE
            pieces.append(self._stripe(epoch, number)[max(0, start - begin) : stop - begin])
        return np.concatenate(pieces)

    def sample_at(self, draw: int) -> int:
        """The sample of a draw of the endless run, from 0: epoch `draw // len(order)`."""
        epoch, in_epoch = divmod(draw, self._length)
        return int(self.samples(epoch, in_epoch, in_epoch + 1)[0])

    def open_shards(self, epoch: int, start: int, stop: int, *, has_spread: bool = False) -> Indices:
        """The shards, as numbers in the split, that draws [start, stop) of an epoch need in the cache.

        They are in the order in which they are opened; those of datasets without `open_shards` are not among them. Of a
        dataset with branches, samples with another number of records than most may be in further shards. has_spread:
        also gives those shards for the common numbers of records.
        """
        opened = [
            stream.open_shards(epoch, first, last, has_spread=has_spread)
            for stream, first, last in zip(
                self._streams, self._own_before(epoch, start), self._own_before(epoch, stop), strict=True
            )
        ]
        turns = [np.arange(len(shards)) / max(len(shards), 1) for shards in opened]
        every = np.concatenate(opened)[np.argsort(np.concatenate(turns), kind="stable")]
        return every[np.sort(np.unique(every, return_index=True)[1])]

    def draw_of(self, epoch: int, sample: int) -> int | None:
        """The first draw of an epoch that draws a sample, or None: without the draws of other datasets."""
        elements = ((dataset, numbers.element(sample)) for dataset, numbers in enumerate(self._numbers))
        dataset, element = next(pair for pair in elements if pair[1] is not None)
        own = None if element is None else self._streams[dataset].first_draw_of(epoch, element)
        if own is None:
            return None
        stripes = range(-(-self._length // STRIPE))
        number = bisect_right(stripes, own, key=lambda stripe: _draws_before(stripe * STRIPE, self._draws)[dataset]) - 1
        inside = np.flatnonzero(self._stripe(epoch, number) == sample)
        return number * STRIPE + int(inside[0])

    def _make_stripe(self, epoch: int, number: int) -> Indices:
        before, until = self._borders(number)
        drawn = [
            numbers.of(stream.draw(epoch, first, last))
            for stream, first, last, numbers in zip(self._streams, before, until, self._numbers, strict=True)
        ]
        turns = self._turns(epoch, number)
        samples = np.empty(len(turns), np.int64)
        for dataset, own in enumerate(drawn):
            samples[turns == dataset] = own
        return samples

    def _borders(self, number: int) -> tuple[list[int], list[int]]:
        """How many draws of each dataset come before a stripe, and until its end."""
        start = number * STRIPE
        return _draws_before(start, self._draws), _draws_before(min(start + STRIPE, self._length), self._draws)

    def _turns(self, epoch: int, number: int) -> Indices:
        """The dataset of each draw of a stripe."""
        counts = [last - first for first, last in zip(*self._borders(number), strict=True)]
        shuffle = shuffled(sum(counts), make_key(self._key, epoch, number))
        return np.repeat(np.arange(len(counts)), counts)[shuffle]

    def _own_before(self, epoch: int, draw: int) -> list[int]:
        """How many draws of each dataset come before a draw of an epoch."""
        number, inside = divmod(draw, STRIPE)
        before = _draws_before(number * STRIPE, self._draws)
        if inside:
            own = np.bincount(self._turns(epoch, number)[:inside], minlength=len(before))
            before = [first + count for first, count in zip(before, own.tolist(), strict=True)]
        return before


class StoredOrder:
    """Every sample once, in the order of the split: for evaluation."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def draw_of(self, epoch: int, sample: int) -> int | None:
        """The draw of an epoch that draws a sample, or None."""
        return sample if 0 <= sample < self._length else None

    def samples(self, epoch: int, start: int, stop: int) -> Indices:
        """The samples of draws [start, stop), the same in every epoch."""
        return np.arange(start, stop, dtype=np.int64)


class ListedOrder:
    """These samples, in this order, in every epoch: for evaluation on a part of a split."""

    def __init__(self, samples: Indices) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self, epoch: int, start: int, stop: int) -> Indices:
        """The samples of draws [start, stop), the same in every epoch."""
        return self._samples[start:stop]


class _Numbers:
    """Elements 0, 1, ... of what an order draws as a dataset -> numbers in the split."""

    def __init__(self, dataset: Draws, start: int) -> None:
        self._size = sum(dataset.shard_sizes)
        if dataset.shard_starts is None:
            self._firsts, self._starts = np.zeros(1, np.int64), np.array([start], np.int64)
            return
        held = np.array(dataset.shard_sizes, np.int64) > 0
        firsts = np.cumsum([0, *dataset.shard_sizes])[:-1]
        self._firsts, self._starts = firsts[held], np.array(dataset.shard_starts, np.int64)[held]

    def of(self, elements: Indices) -> Indices:
        if len(self._firsts) == 1:
            return np.asarray(elements + self._starts[0])
        shards = np.searchsorted(self._firsts, elements, side="right") - 1
        return np.asarray(self._starts[shards] + elements - self._firsts[shards])

    def element(self, sample: int) -> int | None:
        """The inverse of `of`; None for a sample that is not among them."""
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        if shard < 0:
            return None
        element = int(self._firsts[shard] + sample - self._starts[shard])
        end = self._firsts[shard + 1] if shard + 1 < len(self._firsts) else self._size
        return element if element < end else None


def _draws_before(draw: int, draws: Sequence[int]) -> list[int]:
    """How many draws of each dataset come before a draw of the epoch: they sum to it, and never fall as it grows."""
    low, high = 0, _FINE
    while high - low > 1:
        middle = (low + high) // 2
        if sum(_below(middle, count) for count in draws) <= draw:
            low = middle
        else:
            high = middle
    if draw >= sum(draws):
        return list(draws)
    before = [_below(low, count) for count in draws]
    rest = draw - sum(before)
    for dataset, count in enumerate(draws):  # these fall on one threshold; the earlier dataset goes first
        if rest and _below(high, count) > before[dataset]:
            before[dataset] += 1
            rest -= 1
    return before


def _below(threshold: int, draws: int) -> int:
    """How many k have (2k + 1) / (2 draws) <= threshold / _FINE."""
    return (2 * draws * threshold + _FINE) // (2 * _FINE)
