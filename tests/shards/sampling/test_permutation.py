"""Shuffles: bijections that look random, never change between releases, and take no memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise, permutations
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shards.sampling import permutation
from shards.sampling.permutation import TABLE, BlockPermutation, Permutation, make_key, mix, shuffled
from tests.support import oracles_order

KEY = st.integers(0, 2**64 - 1)
AROUND_POWERS_OF_TWO = [2**bits + more for bits in (9, 10, 11, 13, 14, 16) for more in (-1, 0, 1)]
BLOCKS = st.lists(st.integers(0, 30), max_size=12)


def all_of(size: int, key: int) -> list[int]:
    actual: list[int] = Permutation(size, key)(np.arange(size)).tolist()
    return actual


def blocks_of(sizes: list[int], key: int, window: int) -> list[int]:
    shuffle = BlockPermutation(np.array(sizes, np.int64), key, window)
    actual: list[int] = shuffle(np.arange(shuffle.size)).tolist()
    return actual


# Keys


def test_a_key_stands_for_its_parts_and_their_order_on_every_machine() -> None:
    assert make_key("manifest", 1, 2) == 356444143685066292
    keys = [make_key(1), make_key(1, 2), make_key(2, 1), make_key(12), make_key("1", ""), make_key()]
    assert len(set(keys)) == len(keys)


@given(st.lists(KEY, unique=True, max_size=50))
def test_mixing_keeps_different_numbers_apart(values: list[int]) -> None:
    got = mix(np.array(values, np.uint64)).tolist()
    assert got == [oracles_order.mixed(value) for value in values]
    assert len(set(got)) == len(values)


# Tables and Feistel networks


@pytest.mark.parametrize("table", [TABLE, 0], ids=["table", "cipher"])
def test_every_small_size_is_shuffled_onto_itself(table: int) -> None:
    with mock.patch.object(permutation, "TABLE", table):
        for size in range(301):
            for key in (0, make_key(size), 2**64 - 1):
                assert sorted(all_of(size, key)) == list(range(size)), (size, key)


@pytest.mark.parametrize("size", [*AROUND_POWERS_OF_TWO, TABLE - 1, TABLE, TABLE + 1, TABLE + 2])
def test_sizes_around_powers_of_two_and_the_table_are_shuffled_onto_themselves(size: int) -> None:
    actual = Permutation(size, make_key(size))(np.arange(size))
    assert actual.dtype == np.int64
    assert np.array_equal(np.sort(actual), np.arange(size))


@given(st.integers(1, 400), KEY)
@example(1, 0)
@example(2, 2**64 - 1)
@example(256, 1)
@example(257, 1)
def test_both_kinds_of_shuffle_equal_their_twins(size: int, key: int) -> None:
    assert all_of(size, key) == shuffled(size, key).tolist() == oracles_order.table(size, key)
    with mock.patch.object(permutation, "TABLE", 0):
        assert all_of(size, key) == [oracles_order.feistel(size, key, position) for position in range(size)]


@pytest.mark.parametrize("size", [TABLE + 1, 10**7, 2**40, 10**12 + 1, 2**62])
def test_a_big_shuffle_equals_its_twin_stays_in_range_and_repeats_nothing(size: int) -> None:
    key = make_key("big", size)
    shuffle = Permutation(size, key)
    some = np.array([0, 1, size // 3, size // 2, size - 2, size - 1])
    assert shuffle(some).tolist() == [oracles_order.feistel(size, key, int(position)) for position in some]
    start = max(0, size // 2 - 50_000)
    chunk = shuffle(np.arange(start, min(size, start + 100_000)))
    assert chunk.min() >= 0
    assert chunk.max() < size
    assert len(np.unique(chunk)) == len(chunk)


def test_the_largest_table_is_a_table_and_one_more_element_makes_a_cipher() -> None:
    assert all_of(TABLE, 3) == oracles_order.table(TABLE, 3)
    assert all_of(TABLE + 1, 3)[:50] == [oracles_order.feistel(TABLE + 1, 3, position) for position in range(50)]


@given(st.integers(1, 10**7), KEY, st.data())
def test_many_positions_at_once_give_what_one_by_one_does(size: int, key: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    shuffle = Permutation(size, key)
    asked = np.array(positions, np.int64)
    assert shuffle(asked).tolist() == [int(shuffle(np.array([position]))[0]) for position in positions]
    assert asked.tolist() == positions


def test_the_shuffles_are_the_same_in_every_release() -> None:
    """Whoever changes these numbers changes the order of every run that was ever saved."""
    assert shuffled(10, 1).tolist() == [9, 0, 5, 4, 8, 1, 2, 6, 7, 3]
    assert shuffled(10, 2**64 - 1).tolist() == [3, 8, 4, 5, 0, 9, 6, 1, 2, 7]
    assert Permutation(10, 1)(np.array([0, 9])).tolist() == [9, 3]
    assert Permutation(4097, 7)(np.array([0, 1, 2, 4095, 4096])).tolist() == [3450, 1135, 514, 3969, 2271]
    million = Permutation(10**7, 7)(np.array([0, 1, 2, 9_999_999]))
    assert million.tolist() == [3490212, 1493145, 4966512, 7388719]
    huge = Permutation(10**12, 7)(np.array([0, 1, 10**12 - 1]))
    assert huge.tolist() == [373049786980, 402730307560, 926896977185]
    assert blocks_of([3, 1, 4, 2], 5, 1) == [8, 9, 3, 4, 5, 6, 7, 0, 1, 2]
    assert blocks_of([3, 1, 4, 2], 5, 4) == [9, 8, 4, 3, 7, 6, 5, 0, 1, 2]
    assert TABLE == 4096


@pytest.mark.parametrize("size", [30, 5000])
def test_different_keys_give_different_shuffles(size: int) -> None:
    keys = [0, 1, 2, 2**63, 2**64 - 1, make_key("a"), make_key("b")]
    assert len({tuple(all_of(size, key)) for key in keys}) == len(keys)


@pytest.mark.parametrize("neighbours", [True, False], ids=["keys in a row", "hashed keys"])
@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_few_elements_is_equally_likely(size: int, neighbours: bool) -> None:
    trials = 4800
    seen = Counter(tuple(shuffled(size, key if neighbours else make_key(key)).tolist()) for key in range(trials))
    orders = list(permutations(range(size)))
    expected = trials / len(orders)
    chi_square = sum((seen[order] - expected) ** 2 / expected for order in orders)
    freedom = len(orders) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(("size", "keys"), [(40, 2000), (TABLE + 904, 200)], ids=["table", "cipher"])
def test_every_element_comes_everywhere_equally_often(size: int, keys: int) -> None:
    """Element by tenth of the positions, and position by tenth of the elements."""
    for position in (0, 1, size // 2, size - 1):
        tenths = Counter(
            int(Permutation(size, make_key("fair", key))(np.array([position]))[0]) * 10 // size for key in range(keys)
        )
        expected = keys / 10
        assert sum((tenths[tenth] - expected) ** 2 / expected for tenth in range(10)) < 9 + 5 * 18**0.5


@pytest.mark.parametrize("size", [4000, 5000, 8192, 8193, 100_003])
def test_a_shuffle_has_no_drift_and_no_memory_of_its_neighbours(size: int) -> None:
    """A random shuffle's correlations lie within 4.5 / sqrt(size), its mean displacement near a third of the size."""
    positions = np.arange(size)
    actual = Permutation(size, make_key("drift", size))(positions)
    bound = 4.5 / size**0.5
    assert abs(np.corrcoef(positions, actual)[0, 1]) < bound
    for lag in (1, 2, 64, 1024):
        assert abs(np.corrcoef(actual[:-lag], actual[lag:])[0, 1]) < bound
    assert np.abs(actual - positions).mean() / size == pytest.approx(1 / 3, abs=bound)
    assert np.count_nonzero(actual == positions) < 10
    assert np.count_nonzero(np.diff(actual) == 1) < 10


def test_two_keys_of_a_cipher_know_nothing_of_each_other() -> None:
    size = 5000
    first, second = (Permutation(size, key)(np.arange(size)) for key in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / size**0.5
    assert np.count_nonzero(first == second) < 10


def test_a_shuffle_of_a_billion_takes_no_more_memory_than_one_of_ten_thousand() -> None:
    peaks = []
    positions = np.arange(1000)
    Permutation(10**4, 1)(positions)
    for size in (10**4, 10**6, 10**9):
        tracemalloc.start()
        Permutation(size, 1)(positions)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2 * peaks[0]
    assert max(peaks) < 200_000


# Blocks


@given(BLOCKS, KEY, st.integers(1, 40))
def test_a_shuffle_by_blocks_equals_its_twin_and_is_a_bijection(sizes: list[int], key: int, window: int) -> None:
    by_window = blocks_of(sizes, key, window)
    assert sorted(by_window) == list(range(sum(sizes)))
    elements = iter(range(sum(sizes)))
    blocks = [[next(elements) for _ in range(size)] for size in sizes]
    assert by_window == oracles_order.block_permutation(blocks, key, window)


@given(BLOCKS, KEY)
def test_without_a_window_blocks_stay_whole_and_in_order(sizes: list[int], key: int) -> None:
    block_of = [block for block, size in enumerate(sizes) for _ in range(size)]
    blocks = blocks_of(sizes, key, 1)
    changes = sum(block_of[one] != block_of[other] for one, other in pairwise(blocks))
    assert changes == max(0, len(set(block_of)) - 1)
    assert all(one + 1 == other for one, other in pairwise(blocks) if block_of[one] == block_of[other])


@given(BLOCKS, KEY, st.integers(2, 40))
def test_a_window_moves_no_element_out_of_itself(sizes: list[int], key: int, window: int) -> None:
    laid, blocks = blocks_of(sizes, key, 1), blocks_of(sizes, key, window)
    position_of = {element: position for position, element in enumerate(laid)}
    for position, element in enumerate(blocks):
        assert position // window == position_of[element] // window
        assert abs(position - position_of[element]) < window


def test_blocks_and_windows_are_really_shuffled() -> None:
    sizes = [20] * 10
    assert blocks_of(sizes, 1, 1) != blocks_of(sizes, 2, 1)
    assert blocks_of(sizes, 1, 1) != list(range(200))
    blocks = blocks_of(sizes, 1, 10)
    assert all(blocks[start : start + 10] != sorted(blocks[start : start + 10]) for start in range(0, 200, 10))
    inside = [tuple(element % 10 for element in blocks[start : start + 10]) for start in range(0, 200, 10)]
    assert len(set(inside)) == len(inside), "every window has an order of its own"


@given(BLOCKS, KEY, st.integers(1, 9), st.data())
def test_any_positions_of_a_shuffle_by_blocks_give_what_the_whole_gives(
    sizes: list[int], key: int, window: int, data: st.DataObject
) -> None:
    whole = blocks_of(sizes, key, window)
    positions = data.draw(st.lists(st.sampled_from(range(len(whole))), max_size=30)) if whole else []
    asked = np.array(positions, np.int64)
    actual = BlockPermutation(np.array(sizes, np.int64), key, window)(asked)
    assert actual.tolist() == [whole[position] for position in positions]
    assert asked.tolist() == positions


@given(BLOCKS, KEY, st.data())
def test_the_parts_of_blocks_in_a_range_are_the_stretches_of_the_sequence_there(
    sizes: list[int], key: int, data: st.DataObject
) -> None:
    shuffle = BlockPermutation(np.array(sizes, np.int64), key, 1)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, sum(sizes)), st.integers(0, sum(sizes)))))
    block_of = [block for block, size in enumerate(sizes) for _ in range(size)]
    there = Counter(block_of[element] for element in shuffle(np.arange(start, stop)).tolist())
    numbers, parts = (column.tolist() for column in shuffle.blocks(start, stop))
    assert dict(zip(numbers, parts, strict=True)) == there
    assert parts == list(there.values())
    assert sum(parts) == stop - start


def test_a_window_larger_than_a_table_takes_no_memory_either() -> None:
    tracemalloc.start()
    shuffle = BlockPermutation(np.full(1000, 10**6), 3, 10**7)
    actual = shuffle(np.arange(10**8, 10**8 + 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(actual)) == 1000
    assert peak < 500_000
