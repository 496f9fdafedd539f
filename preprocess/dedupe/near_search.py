"""All pairs of 256-bit hashes within a Hamming distance, exactly, without comparing all pairs.

Cut each hash into 16 bands of 16 bits, in a circle. If two hashes differ in at most 31 bits, there is a band that
begins a chain with few differences (the cycle lemma; Qin and Xiao, "Pigeonring", VLDB 2018): at most 1 in the band, 3
in it and the next, 5 in three bands. So either the band is equal, and of the next one, cut in four, a part is equal; or
the band differs in one bit, and of the next one, cut in three, a part is equal. For each band and each part, hashes are
sorted by the bits that must be equal, and each is compared with those of the same key, or of a key one bit away
(multi-index hashing; Norouzi, Punjani, Fleet, CVPR 2012): first by the next two bands, then, one in some hundred, by
all bits. A pair counts once: in the first band that begins such a chain, for the first part that is equal.

Memory: the hashes, and per thread their order by one key. Pairs arrive in batches, so the caller decides how many to
keep.

Expected of the caller: hashes that repeat are given once. Otherwise a million flat images would be 10^12 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.dedupe.components import components

MAX_DISTANCE = 31

_BANDS = 16
_BAND_BITS = 16
_EQUAL_PARTS = ((0, 4), (4, 4), (8, 4), (12, 4))
_ONE_BIT_PARTS = ((0, 5), (5, 5), (10, 6))
"""Parts of the next band, as first bit and number of bits; one more than it has differences"""
_FEW = 1 << 18
"""Up to this many hashes, those that agree in a band are few enough without a part of the next one"""
_TABLE_HASHES = 1 << 16
"""With fewer hashes, a binary search takes less time than a table of all keys"""
_BLOCK_ROWS = 1 << 15
_BLOCK_PAIRS = 1 << 20
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
    columns = np.ascontiguousarray(words.T)
    with ThreadPoolExecutor(threads) as pool:
        for band in range(_BANDS):
            search = _BandSearch(columns, band, distance)
            for batch in pool.map(search.pairs, *zip(*search.tasks(), strict=True)):
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


class _BandSearch:
    """The pairs whose chain begins in one band. columns: uint64 [4, N]."""

    def __init__(self, columns: Words, band: int, distance: int) -> None:
        self.columns, self.band, self.distance = columns, band, distance
        self.values = _band_values(columns, band)
        second, third = (_band_values(columns, (band + step) % _BANDS) for step in (1, 2))
        self.next = second | third << np.uint32(_BAND_BITS)

    def tasks(self) -> list[tuple[bool, int]]:
        """(whether the band differs in one bit, the part of the next one that is equal)."""
        few = self.columns.shape[1] <= _FEW
        flips = [False, True] if self.distance >= _BANDS else [False]
        return [(flip, part) for flip in flips for part in range(1 if few else len(self._parts(flip)))]

    def _parts(self, flip: bool) -> tuple[tuple[int, int], ...]:
        if self.columns.shape[1] <= _FEW:
            return ((0, 0),)
        return _ONE_BIT_PARTS if flip else _EQUAL_PARTS

    def pairs(self, flip: bool, part: int) -> list[tuple[Rows, Rows]]:
        """Rows of pairs that count here."""
        shift, bits = self._parts(flip)[part]
        keys = self.values << np.uint32(bits) | self.next >> np.uint32(shift) & np.uint32((1 << bits) - 1)
        order = np.argsort(keys)
        keys, following = keys[order], self.next[order]
        starts = _Starts(keys, _BAND_BITS + bits)
        limit = self.distance * 3 // _BANDS - flip
        earlier = [np.uint32((1 << width) - 1 << first) for first, width in self._parts(flip)[:part]]
        found = []
        for begin in range(0, len(keys), _BLOCK_ROWS):
            block = keys[begin : begin + _BLOCK_ROWS]
            for bit in range(_BAND_BITS if flip else 1):
                if flip:
                    mask = np.uint32(1 << bits + bit)
                    rows = np.flatnonzero(block & mask == 0)
                    others = block[rows] | mask
                    rows += begin
                    first, end = starts.of(others), starts.of(others + np.uint32(1))
                else:
                    rows = np.arange(begin, begin + len(block))
                    first, end = rows + 1, starts.of(block + np.uint32(1))
                for left, right in _alike(following, rows, first, end, limit, earlier):
                    pairs = self._checked(order[left], order[right])
                    if len(pairs[0]):
                        found.append(pairs)
        return found

    def _checked(self, left: Rows, right: Rows) -> tuple[Rows, Rows]:
        """Those within the distance that count in this band; the smaller row first."""
        total = np.zeros(len(left), np.int64)
        for step in (2, 3, 1, 4):  # words that the keys say nothing of come first
            column = self.columns[(self.band // 4 + step) % 4]
            total += popcount(column[left] ^ column[right])
            near = total <= self.distance
            left, right, total = left[near], right[near], total[near]
            if not len(left):
                return left, right
        own = _first_chain(self.columns[:, left] ^ self.columns[:, right], self.distance) == self.band
        left, right = left[own], right[own]
        return np.minimum(left, right), np.maximum(left, right)


class _Starts:
    """Where each key begins in a sorted array of them."""

    def __init__(self, keys: npt.NDArray[np.uint32], bits: int) -> None:
        self._keys = keys
        self._table: npt.NDArray[np.integer[Any]] | None = None
        if len(keys) >= _TABLE_HASHES:
            self._table = np.zeros((1 << bits) + 1, np.int32 if len(keys) < 2**31 else np.int64)
            np.cumsum(np.bincount(keys, minlength=1 << bits), out=self._table[1:])

    def of(self, keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.integer[Any]]:
        return self._table[keys] if self._table is not None else np.searchsorted(self._keys, keys)


def _alike(
    words: npt.NDArray[np.uint32],
    rows: Rows,
    first: npt.NDArray[np.integer[Any]],
    end: npt.NDArray[np.integer[Any]],
    limit: int,
    earlier: Sequence[np.uint32],
) -> Iterator[tuple[Rows, Rows]]:
    """Of each row with those from `first` to before `end`: the pairs whose words differ in at most `limit` bits, and in
    each of the `earlier` parts."""
    counts = end - first
    some = np.flatnonzero(counts)
    rows, first, counts = rows[some], first[some], counts[some]
    totals = np.cumsum(counts)
    begin = 0
    while begin < len(rows):
        before = int(totals[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(totals, before + _BLOCK_PAIRS, "right")))
        part = slice(begin, stop)
        ends = totals[part] - before
        right = np.arange(ends[-1]) + np.repeat(first[part] - ends + counts[part], counts[part])
        differing = np.repeat(words[rows[part]], counts[part]) ^ words[right]
        close = np.flatnonzero(popcount(differing) <= limit)
        for bits in earlier:
            close = close[differing[close] & bits != 0]
        if len(close):
            yield rows[part][np.searchsorted(ends, close, "right")], right[close]
        begin = stop


def _band_values(columns: Words, band: int) -> npt.NDArray[np.uint32]:
    values: Words = columns[band // 4] >> np.uint64(_BAND_BITS * (band % 4)) & np.uint64(0xFFFF)
    return values.astype(np.uint32)


def _first_chain(bits: Words, distance: int) -> Rows:
    """bits: uint64 [4, P], where two hashes differ. The first band that begins a chain with few of them, int64 [P]."""
    counts = np.stack([popcount(_band_values(bits, band)) for band in range(_BANDS)])
    chain, good = np.zeros_like(counts), np.ones(counts.shape, np.bool_)
    for length in range(1, 4):
        chain += np.roll(counts, 1 - length, axis=0)
        good &= chain <= distance * length // _BANDS
    first: Rows = np.argmax(good, axis=0)
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
