"""All pairs of 256-bit hashes within a Hamming distance, exactly, without comparing all pairs.

Multi-index hashing (Norouzi, Punjani, Fleet, CVPR 2012): cut each hash into 16 bands of 16 bits. Two hashes within
distance 31 have a band in which they differ by at most one bit, or all 16 bands would differ by two or more. So for
each band, hashes are sorted by its value, and each bucket is compared with itself and with the 16 buckets one bit away.

What is compared first is the next two bands: one of the 16 bands also begins a chain of three, cyclically, with at most
3/16 of all differences (the cycle lemma; Qin and Xiao, "Pigeonring", VLDB 2018). Of random hashes in a bucket, one in
18,000 has so few, and only those are compared in full. A pair counts in the first band that begins such a chain.

Memory: the hashes, and for a band an order of them and one word of each; a bucket of any size is compared in tiles.
Pairs arrive in batches, so the caller decides how many to keep.

Expected of the caller: hashes that repeat are given once. Otherwise a million flat images would be 10^12 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.dedupe.components import components

MAX_DISTANCE = 31

_BANDS = 16
_BAND_BITS = 16
_CHAIN = 3
_TILE = 1 << 17
_TILE_COLUMNS = 4096
_TASK_BUCKETS = 1024
_BUCKET_ROWS = 96
"""With fewer hashes in a bucket, visiting it takes longer than comparing them"""
_DENSE = 32
"""Where more than one in so many pairs passes the first comparison, comparing all of them in full takes less time"""
_CHECKED_PAIRS = 1 << 18
_KEPT_PAIRS = 1 << 22

Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def near_components(words: Words, distance: int, *, threads: int = 1) -> Rows:
    """For each of N hashes, the smallest row of its component; hashes within `distance` are connected. int64 [N].

    words: uint64 [N, 4]; equal rows are allowed here. distance: at most 31.
    """
    unique, first, inverse = _distinct(words)
    left: list[Rows] = []
    right: list[Rows] = []
    waiting = 0
    for one, other in near_pairs(unique, distance, threads=threads):
        left.append(one)
        right.append(other)
        waiting += len(one)
        if waiting > _KEPT_PAIRS:  # keep one edge for each node instead of all pairs
            label = components(len(unique), np.concatenate(left), np.concatenate(right))
            moved = np.flatnonzero(label != np.arange(len(unique)))
            left, right, waiting = [moved], [label[moved]], 0
    nothing = np.zeros(0, np.int64)
    label = components(len(unique), np.concatenate([nothing, *left]), np.concatenate([nothing, *right]))
    # The smallest row of each component, over all of its hashes.
    lowest = np.full(len(unique), len(words), dtype=np.int64)
    np.minimum.at(lowest, label, first)
    return lowest[label[inverse]]


def near_pairs(words: Words, distance: int, *, threads: int = 1) -> Iterator[tuple[Rows, Rows]]:
    """Pairs (i < j) of rows within `distance`, each once, in batches, in no particular order.

    words: uint64 [N, 4], without equal rows.
    """
    assert 0 <= distance <= MAX_DISTANCE
    if not len(words):
        return
    with ThreadPoolExecutor(threads) as pool:
        for band in range(_BANDS):
            index = _BandIndex(words, band, distance)
            for batch in pool.map(index.pairs, index.tasks()):
                yield from batch


def near_matches(queries: Words, known: Words, distance: int, *, threads: int = 1) -> Rows:
    """For each query, the row in `known` with the smallest distance, or -1 if none is within `distance`. int64 [Q].

    queries: uint64 [Q, 4]; known: uint64 [K, 4]; both may have equal rows. Of several at one distance, the first.
    """
    unique, _, inverse = _distinct(np.concatenate([known, queries]))
    best = np.full(len(unique), -1, dtype=np.int64)  # of each unique hash, the first row in `known` that is closest
    best_distance = np.full(len(unique), MAX_DISTANCE + 1, dtype=np.int64)
    own = np.full(len(unique), -1, dtype=np.int64)
    own[inverse[: len(known)][::-1]] = np.arange(len(known))[::-1]
    exact = own >= 0
    best[exact], best_distance[exact] = own[exact], 0
    asked = np.zeros(len(unique), dtype=np.bool_)
    asked[inverse[len(known) :]] = True
    for one, other in near_pairs(unique, distance, threads=threads):
        for query, match in ((one, other), (other, one)):
            chosen = asked[query] & exact[match]
            _keep_closest(
                best, best_distance, query[chosen], own[match[chosen]], _distances(unique, query, match)[chosen]
            )
    return best[inverse[len(known) :]]


def _distinct(words: Words) -> tuple[Words, Rows, Rows]:
    """The distinct hashes [U, 4], the first row of each [U], and for each row the number of its hash [N]."""
    order = np.lexsort(words.T)
    words = words[order]
    new = np.ones(len(words), dtype=np.bool_)
    new[1:] = (words[1:] != words[:-1]).any(axis=1)
    inverse = np.empty(len(words), dtype=np.int64)
    inverse[order] = np.cumsum(new) - 1
    return words[new], order[new], inverse


def _keep_closest(best: Rows, best_distance: Rows, query: Rows, match: Rows, distance: Rows) -> None:
    """Replace the best matches that these beat; a smaller row wins a tie."""
    order = np.lexsort((match, distance, query))
    query, match, distance = query[order], match[order], distance[order]
    first = np.ones(len(query), dtype=np.bool_)
    first[1:] = query[1:] != query[:-1]
    query, match, distance = query[first], match[first], distance[first]
    better = (distance < best_distance[query]) | ((distance == best_distance[query]) & (match < best[query]))
    best[query[better]], best_distance[query[better]] = match[better], distance[better]


class _BandIndex:
    """The hashes in buckets by the value of one band; with few hashes by its upper bits."""

    def __init__(self, words: Words, band: int, distance: int) -> None:
        self.words, self.band, self.distance = words, band, distance
        few = int(_BUCKET_ROWS * (1 << _BAND_BITS) / len(words)).bit_length() - 1
        merged = min(max(few, 0), _BAND_BITS)  # lower bits that do not count, so that buckets have some rows
        self.bits = _BAND_BITS - merged
        keys = _band_values(words, band) >> merged
        self.order = np.argsort(keys.astype(np.uint16), kind="stable")  # of 16 bits: a radix sort
        keys = keys[self.order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        self.buckets = keys[starts]
        ends = [*starts[1:].tolist(), len(keys)]
        self.ranges = dict(zip(self.buckets.tolist(), zip(starts.tolist(), ends, strict=True), strict=True))
        following = [_band_values(words, (band + step) % _BANDS) for step in range(1, _CHAIN)]
        self.next = (following[0] | following[1] << _BAND_BITS).astype(np.uint32)[self.order]

    def tasks(self) -> list[Rows]:
        return np.array_split(self.buckets, len(self.buckets) // _TASK_BUCKETS + 1)

    def pairs(self, buckets: Rows) -> list[tuple[Rows, Rows]]:
        """The pairs of each of these buckets with itself, and with those above it that are one bit away."""
        tile = _Tile()
        found, lefts, rights, waiting = [], [], [], 0
        limit = self.distance * _CHAIN // _BANDS
        for bucket in buckets.tolist():
            start, end = self.ranges[bucket]
            ranges = [(start, end), *self._one_bit_above(bucket)]
            columns = np.concatenate([self.next[one:other] for one, other in ranges])
            step = max(1, _TILE // min(len(columns), _TILE_COLUMNS))
            for row in range(start, end, step):
                rows = np.arange(row, min(row + step, end))
                for column in range(row - start, len(columns), _TILE_COLUMNS):  # an earlier row has met this one
                    some = columns[column : column + _TILE_COLUMNS]
                    left, right = tile.close(self.next[row : rows[-1] + 1], some, limit)
                    if len(left) > len(rows) * len(some) // _DENSE:
                        places = _positions(np.arange(column, column + len(some)), ranges)
                        one, other = self.words[self.order[rows]], self.words[self.order[places]]
                        left, right = tile.near(one, other, self.distance)
                    if not len(left):
                        continue
                    lefts.append(rows[left])
                    rights.append(_positions(right + column, ranges))
                    waiting += len(left)
                    if waiting > _CHECKED_PAIRS:
                        found.append(self._checked(lefts, rights))
                        lefts, rights, waiting = [], [], 0
        if waiting:
            found.append(self._checked(lefts, rights))
        return found

    def _one_bit_above(self, bucket: int) -> Iterator[tuple[int, int]]:
        if self.distance < _BANDS:
            return  # then some band is equal
        for bit in range(self.bits):
            if not bucket >> bit & 1 and (found := self.ranges.get(bucket | 1 << bit)):
                yield found

    def _checked(self, lefts: list[Rows], rights: list[Rows]) -> tuple[Rows, Rows]:
        """Of pairs of positions, those within the distance that count in this band, as rows."""
        left, right = np.concatenate(lefts), np.concatenate(rights)
        later = left < right  # a bucket meets itself twice, and each hash itself
        left, right = self.order[left[later]], self.order[right[later]]
        bits = self.words[left] ^ self.words[right]
        near = popcount(bits).sum(axis=1, dtype=np.int64) <= self.distance
        near[near] = _first_chain(bits[near], self.distance) == self.band
        left, right = left[near], right[near]
        return np.minimum(left, right), np.maximum(left, right)


class _Tile:
    """Memory for the comparison of up to _TILE pairs, used again for the next ones."""

    def __init__(self) -> None:
        size = max(_TILE, _TILE_COLUMNS)
        self.bits, self.counts, self.few = (np.empty(size, kind) for kind in (np.uint32, np.uint8, np.bool_))

    def close(self, rows: npt.NDArray[np.uint32], columns: npt.NDArray[np.uint32], limit: int) -> tuple[Rows, Rows]:
        """The pairs of words that differ in at most `limit` bits: row and column of each."""
        shape = len(rows), len(columns)
        size = shape[0] * shape[1]
        np.bitwise_xor(rows[:, None], columns, out=self.bits[:size].reshape(shape))
        counts = popcount(self.bits[:size], out=self.counts[:size])
        row, column = np.divmod(np.flatnonzero(np.less_equal(counts, limit, out=self.few[:size])), len(columns))
        return row, column

    def near(self, rows: Words, columns: Words, distance: int) -> tuple[Rows, Rows]:
        """The pairs of hashes within the distance, and those that differ in all bits."""
        counts = np.zeros((len(rows), len(columns)), np.uint8)
        for word in range(rows.shape[1]):
            counts += popcount(rows[:, word, None] ^ columns[:, word])
        row, column = np.divmod(np.flatnonzero(counts <= distance), len(columns))
        return row, column


def _positions(columns: Rows, ranges: list[tuple[int, int]]) -> Rows:
    """Where columns are that were put together from ranges of positions."""
    starts = np.array([start for start, _ in ranges])
    before = np.cumsum([0, *(end - start for start, end in ranges[:-1])])
    part = np.searchsorted(before, columns, "right") - 1
    positions: Rows = columns + (starts - before)[part]
    return positions


def _band_values(words: Words, band: int) -> npt.NDArray[np.int64]:
    shift = np.uint64(_BAND_BITS * (band % 4))
    values: Words = (words[:, band // 4] >> shift) & np.uint64(0xFFFF)
    return values.astype(np.int64)


def _first_chain(bits: Words, distance: int) -> Rows:
    """bits: uint64 [P, 4], where two hashes differ. The first band that begins a chain with few of them, int64 [P]."""
    counts = np.stack([popcount(_band_values(bits, band).astype(np.uint64)) for band in range(_BANDS)])
    chains = np.sum([np.roll(counts, -step, axis=0) for step in range(_CHAIN)], axis=0)
    first: Rows = np.argmax((counts <= distance // _BANDS) & (chains <= distance * _CHAIN // _BANDS), axis=0)
    return first


def _distances(words: Words, left: Rows, right: Rows) -> Rows:
    distances: Rows = popcount(words[left] ^ words[right]).sum(axis=1, dtype=np.int64)
    return distances


def swar_popcount(words: npt.NDArray[Any], out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """The number of set bits of each word of 32 or 64 (Warren, Hacker's Delight, figure 5-2), for NumPy before 2.0."""
    kind = words.dtype.type
    one, two, four, last = (kind(shift) for shift in (1, 2, 4, 8 * words.itemsize - 8))
    fives, threes, ones, sums = (kind(byte * (np.iinfo(kind).max // 255)) for byte in (0x55, 0x33, 0x0F, 0x01))
    pairs = words - ((words >> one) & fives)
    fours = (pairs & threes) + ((pairs >> two) & threes)
    eights = (fours + (fours >> four)) & ones
    with np.errstate(over="ignore"):
        counts: npt.NDArray[np.uint8] = ((eights * sums) >> last).astype(np.uint8)
    if out is None:
        return counts
    out[:] = counts
    return out


popcount: Callable[..., npt.NDArray[np.uint8]] = getattr(np, "bitwise_count", swar_popcount)
