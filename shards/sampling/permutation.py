"""Shuffles that are computed, not stored: index -> element, the same on every machine and in every process.

Rule: each is a pure function of (size, key), a bijection of [0, size), and free of any library's random generator,
whose streams may change between releases.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

Indices = npt.NDArray[np.int64]

TABLE = 4096
"""Up to this size a shuffle is a table: for few elements that is fairer than a cipher, and as fast."""

_ROUNDS = 10
_GOLDEN = 0x9E3779B97F4A7C15


def make_key(*parts: object) -> int:
    """64 bits that stand for the parts."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode())


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 64-bit numbers that looks random. Source: the finaliser of SplitMix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffled(size: int, key: int) -> Indices:
    """The numbers below `size` in random order, as a table."""
    return by_hash(np.arange(size), key)


def by_hash(numbers: Indices, key: int) -> Indices:
    """Where each of some distinct numbers is if they are sorted by a hash: the same order for any part of them."""
    return np.argsort(mix(numbers.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)), kind="stable")


class Permutation:
    """A shuffle of [0, size) in constant memory: a Feistel network over the next power of two, walked until inside.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002), its cycle-walking method.
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        self._key = key
        bits = max(2, (size - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._masks = (np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1))

    def __call__(self, indices: Indices) -> Indices:
        """Elements at `indices`, int64 [n] in [0, size)."""
        if self.size <= TABLE:
            return self._table[indices]
        elements = self._encrypt(indices.astype(np.uint64))
        outside = np.flatnonzero(elements >= self.size)
        while len(outside):
            elements[outside] = self._encrypt(elements[outside])
            outside = outside[elements[outside] >= self.size]
        return elements.astype(np.int64)

    @cached_property
    def _table(self) -> Indices:
        return shuffled(self.size, self._key)

    @cached_property
    def _round_keys(self) -> npt.NDArray[np.uint64]:
        return mix(np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(self._key))

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Two halves, each in turn changed by a hash of the other."""
        low_mask, high_mask = self._masks
        low, high = values & low_mask, values >> self._low_bits
        for number, key in enumerate(self._round_keys):
            if number % 2:
                low ^= mix(high + key) & low_mask
            else:
                high ^= mix(low + key) & high_mask
        return (high << self._low_bits) | low


class BlockPermutation:
    """A shuffle that keeps neighbours near each other: blocks in random order, then elements within a moving window.

    For storage where a jump is expensive. Memory: some numbers per block, none per element.
    """

    def __init__(self, sizes: Indices, key: int, window: int) -> None:
        """sizes: elements of each block, as stored. window: elements that are shuffled among each other; 1 for none."""
        self.size = int(sizes.sum())
        self._key, self._window = key, window
        self._inside = lru_cache(maxsize=4)(self._shuffle)
        self._order = shuffled(len(sizes), make_key(key, "blocks"))
        self._stored_starts = (np.cumsum(sizes) - sizes)[self._order]
        self._ends = np.cumsum(sizes[self._order])
        self._starts = self._ends - sizes[self._order]

    def __call__(self, indices: Indices) -> Indices:
        """Elements at `indices`, int64 [n] in [0, size)."""
        moved = indices.copy()
        if self._window > 1:
            windows = indices // self._window
            for window in np.unique(windows).tolist():
                members = windows == window
                moved[members] = window * self._window + self._inside(window)(indices[members] - window * self._window)
        blocks = self._ends.searchsorted(moved, side="right")
        elements: Indices = self._stored_starts[blocks] + moved - self._starts[blocks]
        return elements

    def blocks(self, start: int, stop: int) -> tuple[Indices, Indices]:
        """Blocks with elements in [start, stop) of the order without the window's shuffle: numbers, and how many."""
        sizes: Indices = np.minimum(self._ends, stop) - np.maximum(self._starts, start)
        return self._order[sizes > 0], sizes[sizes > 0]

    def _shuffle(self, window: int) -> Permutation:
        return Permutation(min(self._window, self.size - window * self._window), make_key(self._key, window))
