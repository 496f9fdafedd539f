"""The rows of a run, in order: windows of the sample order, packed one by one.

Rule: rows are a function of (order, limits, window); nothing is carried from one window to the next. So a run's state
is one number: `position`, the first sample position of a window plus how many of its rows were given. Windows end with
the epoch, so an epoch is a whole number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from shards.errors import ShardError
from shards.format.split import Split
from shards.sampling.packing import best_fit
from shards.sampling.permutation import Indices, make_key, shuffled

WINDOW = 2048
"""Samples packed together: enough that the rows left half full at its end do not count."""

_CHECKED_AT_ONCE = 1 << 20
_REMEMBERED = 1 << 16

Row = tuple[int, ...]
"""The samples of a row, as numbers in the split."""


class AnyOrder(Protocol):
    def __len__(self) -> int: ...

    def samples(self, epoch: int, start: int, stop: int) -> Indices: ...


class Rows:
    """Endless rows over a split."""

    def __init__(
        self,
        split: Split,
        order: AnyOrder,
        *,
        key: object,
        image_tokens: int,
        max_length: int,
        max_images: int | None = None,
        packed: bool = True,
        window: int = WINDOW,
    ) -> None:
        """key: decides the order of the rows within a window. packed: False gives every sample a row of its own."""
        self._split, self._order = split, order
        self._key = key
        self._image_tokens, self._max_length, self._max_images = image_tokens, max_length, max_images
        self._packed, self.size = packed, window
        self._window = lru_cache(maxsize=4)(self._make_window)
        self._lengths: dict[int, int] = {}
        """Of samples that had a row of their own in windows made lately"""

    def take(self, position: int, count: int, *, epochs: int | None = None) -> tuple[list[Row], int]:
        """The next `count` rows from a position on, and the position after them; fewer where the epochs end."""
        rows: list[Row] = []
        length = len(self._order)
        while len(rows) < count and (epochs is None or position < epochs * length):
            epoch, place = divmod(position, length)
            start = place // self.size * self.size
            found = self.window(epoch, start)
            taken = found[place - start :][: count - len(rows)]
            rows += taken
            position += len(taken)
            if place - start + len(taken) >= len(found):
                position = epoch * length + min(start + self.size, length)
        return rows, position

    def samples_before(self, position: int) -> int:
        """How many samples the rows before a position hold."""
        epoch, place = divmod(position, len(self._order))
        start = place // self.size * self.size
        given = self.window(epoch, start)[: place - start]
        return epoch * len(self._order) + start + sum(map(len, given))

    def check_all(self) -> None:
        """Look through the whole split for samples that no row takes. Raises ShardError naming the worst."""
        for start in range(0, len(self._split), _CHECKED_AT_ONCE):
            samples = np.arange(start, min(start + _CHECKED_AT_ONCE, len(self._split)))
            self._check(samples, *self._split.lengths(samples, self._image_tokens))

    def longest(self, rows: Sequence[Row]) -> int:
        """Positions of the longest of some rows of one sample each."""
        samples = [sample for row in rows for sample in row]
        if any(sample not in self._lengths for sample in samples):
            self._remember(samples, self._split.lengths(np.array(samples, np.int64), self._image_tokens)[0])
        return max((self._lengths[sample] for sample in samples), default=0)

    def window(self, epoch: int, start: int) -> list[Row]:
        """The rows of the window that starts at sample position `start` of an epoch."""
        return self._window(epoch, start)

    def _make_window(self, epoch: int, start: int) -> list[Row]:
        samples = self._order.samples(epoch, start, min(start + self.size, len(self._order)))
        lengths, images = self._split.lengths(samples, self._image_tokens)
        self._check(samples, lengths, images)
        numbers = samples.tolist()
        if not self._packed:
            self._remember(numbers, lengths)
            return [(number,) for number in numbers]
        packed = best_fit(lengths.tolist(), images.tolist(), max_length=self._max_length, max_images=self._max_images)
        turn = shuffled(len(packed), make_key(self._key, "rows", epoch, start)).tolist()
        return [tuple(numbers[sample] for sample in packed[row]) for row in turn]

    def _remember(self, samples: list[int], lengths: Indices) -> None:
        if len(self._lengths) > _REMEMBERED:
            self._lengths.clear()
        self._lengths.update(zip(samples, lengths.tolist(), strict=True))

    def _check(self, samples: Indices, lengths: Indices, images: Indices) -> None:
        limits = (("positions", lengths, self._max_length), ("images", images, self._max_images))
        for what, counts, limit in limits:
            if limit is not None and (counts > limit).any():
                worst = int(counts.argmax())
                self._split.check_index(int(samples[worst]))  # or a flipped bit would be told as too long a sample
                more = int((counts > limit).sum()) - 1
                raise ShardError(
                    f"{self._split.where(int(samples[worst]))} has {counts[worst]} {what}, a row takes {limit}"
                    + (f", and {more} more samples have too many" if more else "")
                    + "; raise the row's limit, or set the blend's limits lower and rebuild"
                )
