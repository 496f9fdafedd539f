"""The sequences of a run, in order: windows of the sample order, packed one by one.

Rule: sequences are a function of (order, limits, window); nothing is carried from one window to the next. So a run's
state is one number, its cursor: the number of the first draw of a window, counted over all epochs, plus the number of
the window's sequences that were taken. Windows end with the epoch, so an epoch is a whole number of sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from shards.errors import ShardError
from shards.format.split import SplitSamples
from shards.sampling.packing import best_fit
from shards.sampling.permutation import Indices, make_key, shuffled

WINDOW = 2048
"""Samples packed together: enough that the sequences left half full at its end do not count."""

_CHECKED_AT_ONCE = 1 << 20
_REMEMBERED = 1 << 16

PackedSequence = tuple[int, ...]
"""The samples of a sequence, as numbers in the split."""


class AnyOrder(Protocol):
    def __len__(self) -> int: ...

    def samples(self, epoch: int, start: int, stop: int) -> Indices: ...


class PackedSequences:
    """Endless sequences over a split."""

    def __init__(
        self,
        split: SplitSamples,
        order: AnyOrder,
        *,
        key: object,
        image_tokens: int,
        max_length: int,
        max_images: int | None = None,
        packed: bool = True,
        window: int = WINDOW,
    ) -> None:
        """key: decides the order of sequences within a window. packed: False gives every sample its own sequence."""
        self._split, self._order = split, order
        self._key = key
        self._image_tokens, self._max_length, self._max_images = image_tokens, max_length, max_images
        self._packed, self.size = packed, window
        self._window = lru_cache(maxsize=4)(self._make_window)
        self._lengths: dict[int, int] = {}
        """Of samples that had their own sequence in windows made lately"""

    def take(self, cursor: int, count: int, *, epochs: int | None = None) -> tuple[list[PackedSequence], int]:
        """The next `count` sequences from a cursor on, and the cursor after them; fewer where the epochs end."""
        sequences: list[PackedSequence] = []
        while len(sequences) < count:
            taken, cursor = self.take_from_window(cursor, count - len(sequences), epochs=epochs)
            if not taken:
                break
            sequences += taken
        return sequences, cursor

    def take_from_window(
        self, cursor: int, count: int, *, epochs: int | None = None
    ) -> tuple[list[PackedSequence], int]:
        """The next of the cursor's window, up to `count`, and the cursor after them; none where the epochs end."""
        length = len(self._order)
        if epochs is not None and cursor >= epochs * length:
            return [], cursor
        epoch, in_epoch = divmod(cursor, length)
        start = in_epoch // self.size * self.size
        window = self.window(epoch, start)
        taken = window[in_epoch - start :][:count]
        cursor += len(taken)
        if in_epoch - start + len(taken) >= len(window):
            cursor = epoch * length + min(start + self.size, length)
        return taken, cursor

    def count(self, epochs: int) -> int:
        """Sequences of this many epochs, each packed for it."""
        count = cursor = 0
        while True:
            taken, cursor = self.take(cursor, 1 << 16, epochs=epochs)
            if not taken:
                return count
            count += len(taken)

    def samples_before(self, cursor: int) -> int:
        """How many samples the sequences before a cursor hold."""
        epoch, in_epoch = divmod(cursor, len(self._order))
        start = in_epoch // self.size * self.size
        taken = self.window(epoch, start)[: in_epoch - start]
        return epoch * len(self._order) + start + sum(map(len, taken))

    def check_all(self) -> None:
        """Look through the whole split for samples that no sequence takes. Raises ShardError naming the worst."""
        for start in range(0, len(self._split), _CHECKED_AT_ONCE):
            samples = np.arange(start, min(start + _CHECKED_AT_ONCE, len(self._split)))
            self._check(samples, *self._split.lengths(samples, self._image_tokens))

    def longest(self, sequences: Sequence[PackedSequence]) -> int:
        """Tokens of the longest of some sequences of one sample each."""
        samples = [sample for sequence in sequences for sample in sequence]
        if any(sample not in self._lengths for sample in samples):
            self._remember(samples, self._split.lengths(np.array(samples, np.int64), self._image_tokens)[0])
        return max((self._lengths[sample] for sample in samples), default=0)

    def window(self, epoch: int, start: int) -> list[PackedSequence]:
        """The sequences of the window that starts at draw `start` of an epoch."""
        return self._window(epoch, start)

    def _make_window(self, epoch: int, start: int) -> list[PackedSequence]:
        samples = self._order.samples(epoch, start, min(start + self.size, len(self._order)))
        lengths, images = self._split.lengths(samples, self._image_tokens)
        self._check(samples, lengths, images)
        numbers = samples.tolist()
        if not self._packed:
            self._remember(numbers, lengths)
            return [(number,) for number in numbers]
        packed = best_fit(lengths.tolist(), images.tolist(), max_length=self._max_length, max_images=self._max_images)
        order = shuffled(len(packed), make_key(self._key, "rows", epoch, start)).tolist()
        return [tuple(numbers[sample] for sample in packed[sequence]) for sequence in order]

    def _remember(self, samples: list[int], lengths: Indices) -> None:
        if len(self._lengths) > _REMEMBERED:
            self._lengths.clear()
        self._lengths.update(zip(samples, lengths.tolist(), strict=True))

    def _check(self, samples: Indices, lengths: Indices, images: Indices) -> None:
        shown = "tiles" if self._split.has_tiles else "images"
        limits = (("tokens", lengths, self._max_length), (shown, images, self._max_images))
        for what, counts, limit in limits:
            if limit is not None and (counts > limit).any():
                worst = int(counts.argmax())
                self._split.check_index(
                    int(samples[worst])
                )  # else a flipped bit would be reported as too long a sample
                more = int((counts > limit).sum()) - 1
                raise ShardError(
                    f"{self._split.where(int(samples[worst]))} has {counts[worst]} {what}, a sequence takes {limit}"
                    + (f", and {more} more samples have too many" if more else "")
                    + "; raise the loader's limit, or set the blend's limits lower and rebuild"
                )
