"""A shuffle of few shards at a time: equal to the one made of lists, and each shard is needed once."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.sampling.dataset_draws import Draws
from shards.sampling.order import Order
from shards.sampling.shard_windows import ShardWindows
from tests.support import oracles_order
from tests.support.orders import EPOCHS, whole_epochs

BLOCKS = st.lists(st.integers(0, 12), max_size=8)
WIDTHS = st.sampled_from([1, 2, 3, 5, 20])
KEYS = st.integers(0, 1000)


def windows_of(sizes: list[int], width: int, key: int) -> ShardWindows:
    numbers = np.arange(len(sizes)) * 3 + 1
    return ShardWindows(numbers, np.array(sizes, np.int64), width=width, order_key=key + 7, key=key)


def blocks_of(sizes: list[int]) -> list[tuple[int, list[int]]]:
    ends = list(accumulate(sizes))
    return [(3 * number + 1, list(range(ends[number] - size, ends[number]))) for number, size in enumerate(sizes)]


@given(BLOCKS, WIDTHS, KEYS)
def test_it_equals_the_shuffle_made_of_lists(sizes: list[int], width: int, key: int) -> None:
    turns = oracles_order.shard_windows(blocks_of(sizes), width=width, order_key=key + 7, key=key)
    expected = [element for turn in turns for element in turn]
    assert windows_of(sizes, width, key)(np.arange(sum(sizes))).tolist() == expected
    assert sorted(expected) == list(range(sum(sizes)))


@given(BLOCKS, WIDTHS, KEYS, st.data())
def test_any_indices_give_what_the_whole_gives(sizes: list[int], width: int, key: int, data: st.DataObject) -> None:
    whole = windows_of(sizes, width, key)(np.arange(sum(sizes))).tolist()
    asked = data.draw(st.lists(st.sampled_from(range(len(whole))), max_size=30)) if whole else []
    shuffle = windows_of(sizes, width, key)
    assert shuffle(np.array(asked, np.int64)).tolist() == [whole[index] for index in asked]


@given(BLOCKS, WIDTHS, KEYS, st.data())
def test_what_a_range_shows_is_of_its_open_blocks(sizes: list[int], width: int, key: int, data: st.DataObject) -> None:
    shuffle, total = windows_of(sizes, width, key), sum(sizes)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
    block_of = {element: number for number, elements in blocks_of(sizes) for element in elements}
    shown = {block_of[element] for element in shuffle(np.arange(start, stop)).tolist()}
    opened = shuffle.open_blocks(start, stop).tolist()
    assert shown <= set(opened)
    assert len(opened) == len(set(opened))


@given(BLOCKS, WIDTHS, KEYS)
def test_every_block_is_open_once_and_few_are_at_a_time(sizes: list[int], width: int, key: int) -> None:
    shuffle = windows_of(sizes, width, key)
    at_each = [frozenset(shuffle.open_blocks(index, index + 1).tolist()) for index in range(sum(sizes))]
    assert max(map(len, at_each), default=0) <= width
    for number in {number for opened in at_each for number in opened}:
        runs = [is_open for is_open, _ in groupby(number in opened for opened in at_each)]
        assert runs.count(True) == 1


@pytest.mark.parametrize("width", [1, 4, 16])
def test_a_pass_begins_with_one_block_and_opens_one_more_a_turn(width: int) -> None:
    shuffle = windows_of([64] * 20, width, 3)
    ends = accumulate(64 // width * min(turn, width) for turn in range(1, 21))
    opened = [len(shuffle.open_blocks(0, end)) for end in ends]
    assert opened == list(range(1, 21))


def test_few_blocks_are_shuffled_as_one_sees_in_any_place() -> None:
    """In the middle of a pass every turn holds as much of each open block."""
    shuffle = windows_of([60] * 12, 6, 1)
    start = sum(10 * turn for turn in range(1, 6))
    shown = Counter((shuffle(np.arange(start, start + 60)) // 60).tolist())
    assert sorted(shown.values()) == [10] * 6


@pytest.mark.parametrize(("width", "shards", "spread"), [(40, 35, 1.5), (4, 4, 4.2)])
def test_how_random_a_run_of_samples_is(width: int, shards: int, spread: float) -> None:
    """Of 400 shards: those that 64 samples are from, and how much the mean of a sorted property varies between runs.

    spread: standard deviation of the means, out of that of independent samples.
    """
    shown = windows_of([128] * 400, width, 1)(np.arange(128 * 400)).reshape(-1, 64)[80:-80]
    distinct = np.mean([len(np.unique(run)) for run in shown // 128])
    means = (shown / (128 * 400)).mean(1)
    assert distinct == pytest.approx(shards, abs=2)
    assert means.std() / np.sqrt(1 / 12 / 64) == pytest.approx(spread, rel=0.15)


# In an order


def sources(width: int) -> list[Draws]:
    return [
        Draws("all", (7, 5, 9, 6, 8), 35, open_shards=width, first_shard=0),
        Draws("often", (4, 4, 4), 30, open_shards=width, first_shard=5),
        Draws("rare", (6, 6, 6, 6), 5, open_shards=width, first_shard=8),
        Draws("whole", (3, 3), 6),
    ]


def shard_of(draws: list[Draws]) -> list[int]:
    return [
        shard for shard, size in enumerate(size for each in draws for size in each.shard_sizes) for _ in range(size)
    ]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_epochs_draw_as_exactly_as_those_that_are_shuffled_as_a_whole(width: int) -> None:
    drawn = Counter[int]()
    for epoch, samples in enumerate(whole_epochs(Order(sources(width), key=1)), start=1):
        assert len(samples) == 35 + 30 + 5 + 6
        drawn.update(samples)
        for first, size, count in ((0, 35, 35), (35, 12, 30), (47, 24, 5), (71, 6, 6)):
            counts = [drawn[sample] for sample in range(first, first + size)]
            assert sum(counts) == epoch * count
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_samples_of_a_range_are_in_shards_that_are_open_there(width: int) -> None:
    order, shards = Order(sources(width), key=2), shard_of(sources(width))
    for epoch in range(EPOCHS):
        for start, stop in ((0, 10), (10, 40), (40, 76), (0, 76)):
            opened = order.open_shards(epoch, start, stop).tolist()
            needed = {shards[sample] for sample in order.samples(epoch, start, stop).tolist()}
            assert {shard for shard in needed if shard < 12} <= set(opened)
            assert max(opened) < 12, "a dataset without a limit has no open shards"
            assert len(opened) == len(set(opened))


def test_parts_of_a_dataset_open_its_shards_in_the_same_order() -> None:
    """Samples with one, two and three records: each shard has some of each."""
    sizes = ((40, 30, 50, 40), (20, 20, 10, 30), (5, 5, 5, 5))
    parts = [
        Draws("one", part, sum(part), key=f"one/{number}", shard_starts=(0, 100, 200, 300), open_shards=2)
        for number, part in enumerate(sizes, start=1)
    ]
    order = Order(parts, key=5)
    orders = [stream.open_shards(3, 0, stream.draws).tolist() for stream in order._streams]
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == [0, 1, 2, 3]


def test_the_order_of_open_shards_is_the_same_in_every_release() -> None:
    """Whoever changes these numbers changes the order of runs that were saved."""
    drawn = [Draws("alpha", (5, 3, 4), 12, open_shards=2), Draws("beta", (4,), 2, open_shards=1, first_shard=3)]
    assert whole_epochs(Order(drawn, key=("manifest", 1)), 2) == [
        [6, 2, 5, 13, 7, 1, 9, 11, 4, 3, 0, 12, 8, 10],
        [7, 1, 15, 0, 6, 5, 2, 4, 8, 11, 3, 14, 9, 10],
    ]
