"""All pairs of 256-bit hashes within a Hamming distance, exactly, without comparing all pairs.

Multi-index hashing (Norouzi, Punjani, Fleet, CVPR 2012): cut each hash into 16 bands of 16 bits. Two hashes within
distance 31 have a band in which they differ by at most one bit, or all 16 bands would differ by two or more. So for
each band, hashes are sorted by its value, and each bucket is compared with itself and with the 16 buckets one bit away.

Memory: the hashes, one sorted copy of them per thread, and blocks of fixed size; a bucket of any size is compared in
tiles. Pairs arrive in batches, so the caller decides how many to keep.

Expected of the caller: hashes that repeat are given once. Otherwise a million flat images would be 10^12 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from preprocess.dedupe.components import components

MAX_DISTANCE = 31

_BANDS = 16
_BAND_BITS = 16
_TILE_ROWS = 512
_TILE_COLUMNS = 4096
_TASK_BUCKETS = 1024
_BUCKET_ROWS = 64
"""With fewer hashes in a bucket, visiting it takes longer than comparing them"""
_FEW = 30_000
"""Up to this many hashes, comparing all pairs is faster than visiting the buckets of 16 bands"""
_KEPT_PAIRS = 1 << 22

Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def near_components(words: Words, distance: int, *, threads: int = 1) -> Rows:
    """For each of N hashes, the smallest row of its component; hashes within `distance` are connected. int64 [N].

    words: uint64 [N, 4]; equal rows are allowed here. distance: at most 31.
    """
    unique, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
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
    return lowest[label[inverse.reshape(-1)]]


def near_pairs(words: Words, distance: int, *, threads: int = 1) -> Iterator[tuple[Rows, Rows]]:
    """Pairs (i < j) of rows within `distance`, each once, in batches, in no particular order.

    words: uint64 [N, 4], without equal rows.
    """
    assert 0 <= distance <= MAX_DISTANCE
    if not len(words):
        return
    bands = [None] if len(words) <= _FEW else range(_BANDS)
    with ThreadPoolExecutor(threads) as pool:
        for band in bands:
            index = _BandIndex(words, band)
            for batch in pool.map(partial(index.pairs, distance=distance), index.tasks()):
                yield from batch


def near_matches(queries: Words, known: Words, distance: int, *, threads: int = 1) -> Rows:
    """For each query, the row in `known` with the smallest distance, or -1 if none is within `distance`. int64 [Q].

    queries: uint64 [Q, 4]; known: uint64 [K, 4]; both may have equal rows. Of several at one distance, the first.
    """
    both = np.concatenate([known, queries])
    unique, inverse = np.unique(both, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
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
    """The hashes in buckets by the value of one band; with few hashes by its upper bits, and without a band in one."""

    def __init__(self, words: Words, band: int | None) -> None:
        self.band = band
        few = int(_BUCKET_ROWS * (1 << _BAND_BITS) / len(words)).bit_length() - 1
        merged = min(max(few, 0), _BAND_BITS)  # lower bits that do not count, so that buckets have some rows
        keys = np.zeros(len(words), np.int64) if band is None else _band_values(words, band) >> merged
        self.bits = 0 if band is None else _BAND_BITS - merged
        self.order = np.argsort(keys, kind="stable")
        self.words = np.ascontiguousarray(words[self.order].T)  # [4, N]: one word of many hashes is compared at once
        keys = keys[self.order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        self.buckets = keys[starts]
        ends = [*starts[1:].tolist(), len(keys)]
        self.ranges = dict(zip(self.buckets.tolist(), zip(starts.tolist(), ends, strict=True), strict=True))

    def tasks(self) -> list[Rows]:
        return np.array_split(self.buckets, len(self.buckets) // _TASK_BUCKETS + 1)

    def pairs(self, buckets: Rows, distance: int) -> list[tuple[Rows, Rows]]:
        """The pairs of each of these buckets with itself, and with those above it that are one bit away."""
        found = []
        for bucket in buckets.tolist():
            start, end = self.ranges[bucket]
            near = [self.ranges.get(bucket | 1 << bit) for bit in range(self.bits) if not bucket >> bit & 1]
            columns = np.concatenate([np.arange(start, end), *(np.arange(*rows) for rows in near if rows)])
            for row in range(start, end, _TILE_ROWS):
                rows = slice(row, min(row + _TILE_ROWS, end))
                for column in range(row - start, len(columns), _TILE_COLUMNS):  # an earlier row has met this one
                    left, right = self._tile(rows, columns[column : column + _TILE_COLUMNS], distance)
                    if len(left):
                        found.append((left, right))
        return found

    def _tile(self, rows: slice, columns: Rows, distance: int) -> tuple[Rows, Rows]:
        """The pairs between two sets of positions: two words first, since few unlike hashes agree on 128 bits."""
        word = 0 if self.band is None else self.band // 4
        one, other = self.words[(word + 1) % 4], self.words[(word + 2) % 4]  # words without the band
        close = popcount(one[rows, None] ^ one[columns])
        close += popcount(other[rows, None] ^ other[columns])
        left, right = np.divmod(np.flatnonzero(close <= distance), len(columns))
        left, right = left + rows.start, columns[right]
        later = left < right  # a bucket meets itself twice, and each hash itself
        left, right = left[later], right[later]
        bits = self.words[:, left] ^ self.words[:, right]
        kept = popcount(bits).sum(axis=0, dtype=np.int64) <= distance
        if self.band is not None:
            kept &= _first_close_band(bits) == self.band
        left, right = self.order[left[kept]], self.order[right[kept]]
        return np.minimum(left, right), np.maximum(left, right)


def _band_values(words: Words, band: int) -> npt.NDArray[np.int64]:
    shift = np.uint64(_BAND_BITS * (band % 4))
    values: Words = (words[:, band // 4] >> shift) & np.uint64(0xFFFF)
    return values.astype(np.int64)


def _first_close_band(bits: Words) -> npt.NDArray[np.int64]:
    """bits: uint64 [4, P], where two hashes differ. The first band with at most one of them, by which a pair counts."""
    bands = np.stack([_band_values(bits.T, band) for band in range(_BANDS)])
    first: Rows = np.argmax(bands & (bands - 1) == 0, axis=0)
    return first


def _distances(words: Words, left: Rows, right: Rows) -> Rows:
    distances: Rows = popcount(words[left] ^ words[right]).sum(axis=1, dtype=np.int64)
    return distances


def swar_popcount(words: Words) -> npt.NDArray[np.uint8]:
    """The number of set bits of each word (Warren, Hacker's Delight, figure 5-2), for NumPy before 2.0."""
    one, two, four, last = (np.uint64(shift) for shift in (1, 2, 4, 56))
    pairs = words - ((words >> one) & np.uint64(0x5555555555555555))
    fours = (pairs & np.uint64(0x3333333333333333)) + ((pairs >> two) & np.uint64(0x3333333333333333))
    eights = (fours + (fours >> four)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    with np.errstate(over="ignore"):
        counts: npt.NDArray[np.uint8] = ((eights * np.uint64(0x0101010101010101)) >> last).astype(np.uint8)
    return counts


popcount: Callable[[Words], npt.NDArray[np.uint8]] = getattr(np, "bitwise_count", swar_popcount)
